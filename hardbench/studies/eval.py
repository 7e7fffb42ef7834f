"""Evaluate a trained run on test data, clean or corrupted, and add the results to that run.

Reads the weights (best on validation, or last) and the standardisation they were trained with; a few seconds.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from hardbench import console, machine, seeding, tracking
from hardbench.configs.eval import STEPS, Config
from hardbench.data.corruption import Corruption
from hardbench.data.samples import Samples, Split, prepare
from hardbench.data.transforms import Standardise, check_pixels, unit_of
from hardbench.errors import DataError
from hardbench.figures import save
from hardbench.metrics.classification import class_report
from hardbench.metrics.hardness import mean_stderr
from hardbench.registry import MODELS
from hardbench.stored import StoredRun
from hardbench.studies import train
from hardbench.training import checkpoints
from hardbench.training.evaluation import Evaluation, evaluate, layer_accuracies
from hardbench.training.greedy import learner
from hardbench.training.learners import Learner

Level = tuple[Evaluation, torch.Tensor | None]
"""What one corruption level gave: the evaluation, and the accuracy of every layer [R, L] where layers predict."""


def run(config: Config) -> None:
    """Evaluate a run as the settings say and add the results to it."""
    target = train.out_folder(config.out)
    stored = tracking.find(config.run, ["train"])
    split, levels = measure(config, stored)
    with tracking.extend(stored) as open_run:
        made = store(open_run, config, split, levels)
    train.finish(open_run, target, made)


def measure(config: Config, stored: StoredRun) -> tuple[Split, dict[float, Level]]:
    """The data that a run's weights are tested on, and what every corruption level gives."""
    trained = stored.settings(train.Config, _place(config))
    split = _split(config, trained, stored.config)
    student, standardise = restore(stored, trained, split, config.checkpoint)
    if any(config.corruption_p):
        check_pixels(split.test)
    levels: dict[float, Level] = {}
    test, standardise = split.test.to(student.device), standardise.to(student.device)
    for p in config.corruption_p:
        samples = _corrupted(test, p, trained.seed)
        levels[p] = evaluate(student, samples, standardise, split.num_classes), layer_accuracies(student, samples, standardise)
    return split, levels


def _place(config: Config) -> dict[str, Any]:
    """Where to compute and read now, in place of where the run was trained."""
    return {"device": config.device, "threads": config.threads, "data_dir": config.data_dir, "config": None}


def _split(config: Config, trained: train.Config, stored: Mapping[str, Any]) -> Split:
    """The run's data, or another data set's under the same class map; DataError unless shapes and classes agree."""
    own = prepare(trained, trained.seed)
    if config.dataset is None or config.dataset == trained.dataset:
        return own
    kept = {name: value for name, value in stored.items() if not name.startswith(("gaussian_", "subset_"))}
    other = prepare(
        train.Config.read({**_place(config), "dataset": config.dataset}, kept | {"val_size": 0, "noise_ratio": 0}), trained.seed
    )
    found, wanted = (other.test.shape, other.num_classes), (own.test.shape, own.num_classes)
    if found != wanted:
        raise DataError(f"dataset: {config.dataset} of shape {found[0]}, {found[1]} classes; the run has {wanted[0]}, {wanted[1]} classes")
    return other


def restore(stored: StoredRun, trained: train.Config, split: Split, checkpoint: str) -> tuple[Learner, Standardise]:
    """A trained run's networks on this machine's device, and the standardisation they were trained with."""
    device = machine.take(trained)
    path = stored.file(f"checkpoints/{checkpoint}.pt")
    state = checkpoints.load(path, checkpoints.WEIGHTS)
    streams = seeding.networks(trained.seed, trained.first_repeat, trained.repeats)
    networks = MODELS[trained.model].call(split.test.shape, split.num_classes, trained, streams).to(device)
    with checkpoints.restoring(path, 0, 0):
        standardise = Standardise(**state["standardise"])
        if standardise(split.test.inputs[:1], unit_of(split.test.inputs)).shape[1:] != split.test.shape:
            raise ValueError("constants of inputs of another shape")
        networks.restore(state["networks"])
    return learner(networks, trained, 1), standardise


def _corrupted(test: Samples, p: float, seed: int) -> Samples:
    """The test set with each pixel replaced with probability p, the same draw for every network."""
    if p == 0:
        return test
    stream, unit = seeding.Seeds(seed).child("eval", f"{p:g}"), unit_of(test.inputs)
    values = Corruption([stream], [p], test.inputs.device)(test.inputs.unsqueeze(0), unit)[0] / unit
    return Samples(values, test.labels, test.index, test.clean)


def store(run: tracking.Run, config: Config, split: Split, levels: Mapping[float, Level]) -> list[str]:
    """Metrics under eval/ and JSON of every level; the clean one also gives report, confusion and figures. The files made."""
    prefix = "eval" if config.dataset is None else f"eval_{split_name(config.dataset)}"
    results: dict[str, Any] = {"checkpoint": config.checkpoint, "dataset": config.dataset or "own", "levels": []}
    rows, points = [], {}
    for p, (level, layers) in levels.items():
        arrays = {name: value.cpu().numpy() for name, value in level.arrays().items()}
        arrays |= {} if layers is None else {"layer_accuracy": layers.cpu().numpy()}
        entry: dict[str, Any] = {name: spread(arrays[name]) for name in ("loss", "accuracy", "layer_accuracy") if name in arrays}
        results["levels"].append({"corruption_p": p, **entry})
        level_of, step = ("corrupted_", round(p * STEPS)) if p else ("", 0)  # MLflow shows the value at the largest step
        points[step] = {f"{prefix}/{level_of}{name}": arrays[name] for name in ("loss", "accuracy")}
        name = f"{prefix}_{level_of}layer_accuracy"
        points[step] |= {f"{name}/{i:02d}": row for i, row in enumerate(arrays.get("layer_accuracy", np.empty((0, 0))).T)}
        rows.append([p, *(_cell(entry[name]) for name in ("accuracy", "loss"))])
    run.write_text("test_results.json", json.dumps(results, indent=1))
    made = ["test_results.json"]
    if 0.0 in levels:
        made += _store_classes(run, split, levels[0.0][0].confusion.cpu())
    for step, values in points.items():  # when the files are there: a new point stays
        run.log(values, step)
    console.table(f"{results['dataset']} test set, {config.checkpoint} weights", ["corruption p", "accuracy", "loss"], rows)
    return made


def _store_classes(run: tracking.Run, split: Split, first: torch.Tensor) -> list[str]:
    """Confusion [R, K, K], report per class and confusion figures; the files made."""
    run.write_arrays("confusion.npy", {"": first.numpy()})
    report = {name: value.numpy() for name, value in class_report(first).items()}
    classes = {str(name): {key: spread(value[:, c]) for key, value in report.items()} for c, name in enumerate(split.class_names)}
    run.write_text("class_report.json", json.dumps(classes, indent=1))
    from hardbench.figures.train import confusion_figures

    drawn = save(confusion_figures(first.numpy(), split.class_names), run.folder / "figures")
    figures = [f"figures/{name}" for name in drawn]
    for name in figures:
        run.publish(name)
    return ["confusion.npy", "class_report.json", *figures]


def split_name(dataset: str) -> str:
    """A data set's name as part of a metric's: letters, digits and `_`."""
    name = dataset.rpartition("/")[2]
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def spread(values: np.ndarray) -> dict[str, Any]:
    """values [R, ...], mean and stderr over the repeats as JSON; what is undefined is null."""
    mean, stderr = mean_stderr(values)
    return {"values": _plain(values), "mean": _plain(mean), "stderr": _plain(stderr)}


def _plain(values: np.ndarray) -> Any:
    array = np.asarray(values, dtype=float)
    found = array.astype(object)
    found[~np.isfinite(array)] = None
    return found.tolist()


def _cell(entry: Mapping[str, Any]) -> str:
    return f"{entry['mean']:.4f}" + (f" +- {entry['stderr']:.4f}" if entry["stderr"] is not None else "")
