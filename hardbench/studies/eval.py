"""Evaluate a trained run on test data, clean or corrupted, and add the results to that run.

Reads the weights (best on validation, or last) and the standardisation they were trained with; a few seconds.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hardbench import console, seeding, tracking
from hardbench.artifacts import CLASS_REPORT, CONFUSION, TEST_RESULTS
from hardbench.configs.eval import STEPS, Config
from hardbench.configs.train import Config as TrainConfig
from hardbench.data.corruption import Corruption
from hardbench.data.samples import Samples, Split
from hardbench.data.samples import prepare as split_of
from hardbench.data.transforms import check_pixels, unit_of
from hardbench.errors import DataError
from hardbench.figures import save
from hardbench.lifecycle import Prepared, Stages
from hardbench.metrics.classification import class_report
from hardbench.metrics.hardness import mean_stderr
from hardbench.stored import StoredRun
from hardbench.trained import restore
from hardbench.training.evaluation import Evaluation, evaluate, layer_accuracies

STUDY = "eval"
FIGURES = ()  # those of confusions are drawn with the results
Level = tuple[Evaluation, torch.Tensor | None]
"""The results at one level of corruption: the evaluation, and the accuracy of every layer [R, L] where layers predict."""


@dataclass(frozen=True, kw_only=True)
class Measured(Prepared):
    """The results of a trained run's weights, to be added to it: the run is held only while results are written."""

    trained: StoredRun
    split: Split
    levels: dict[float, Level]

    def opening(self, study: str, stored: StoredRun | None) -> AbstractContextManager[tracking.Run]:
        """The trained run, to add to."""
        return tracking.extend(self.trained)

    def describe(self, run: tracking.Run) -> None:
        """Nothing: the run stays what it was trained as."""

    def copied(self, run: tracking.Run) -> Sequence[str]:
        """The files that were added."""
        return run.published


def prepare(config: Config, stored: StoredRun | None = None) -> Measured:
    """The trained run that the settings name, evaluated as they say."""
    return measure(config, tracking.find(config.run, ["train"]))


def measure(config: Config, stored: StoredRun) -> Measured:
    """The data that a run's weights are tested on, and what every corruption level gives."""
    trained = stored.settings(TrainConfig, _place(config))
    split = _split(config, trained, stored.config)
    student, standardise = restore(stored, trained, split, config.checkpoint)
    if any(config.corruption_p):
        check_pixels(split.test)
    levels: dict[float, Level] = {}
    test, standardise = split.test.to(student.device), standardise.to(student.device)
    for p in config.corruption_p:
        samples = _corrupted(test, p, trained.seed)
        levels[p] = evaluate(student, samples, standardise), layer_accuracies(student, samples, standardise)
    title, note = f"eval {stored.name}", f"{config.checkpoint} weights of {stored.id}"
    return Measured(
        config=config,
        title=title,
        note=note,
        device=student.device,
        dataset=config.dataset or trained.dataset,
        digest=split.digest,
        trained=stored,
        split=split,
        levels=levels,
    )


def _place(config: Config) -> dict[str, Any]:
    """The settings of place of now, which replace those of the training."""
    return {"device": config.device, "threads": config.threads, "data_dir": config.data_dir, "config": None}


def _split(config: Config, trained: TrainConfig, stored: Mapping[str, Any]) -> Split:
    """The run's data, or another data set's under the same class map; DataError unless shapes and classes agree."""
    own = split_of(trained, trained.seed)
    if config.dataset is None or config.dataset == trained.dataset:
        return own
    kept = {name: value for name, value in stored.items() if not name.startswith(("gaussian_", "subset_"))}
    elsewhere = TrainConfig.read({**_place(config), "dataset": config.dataset}, kept | {"val_size": 0, "noise_ratio": 0})
    other = split_of(elsewhere, trained.seed)
    given, wanted = (other.test.shape, other.num_classes), (own.test.shape, own.num_classes)
    if given != wanted:
        raise DataError(f"dataset: {config.dataset} of shape {given[0]}, {given[1]} classes; the run has {wanted[0]}, {wanted[1]} classes")
    return other


def _corrupted(test: Samples, p: float, seed: int) -> Samples:
    """The test set with each pixel replaced with probability p, the same draw for every network."""
    if p == 0:
        return test
    stream, unit = seeding.Seeds(seed).child("eval", f"{p:g}"), unit_of(test.inputs)
    values = Corruption([stream], [p], test.inputs.device)(test.inputs.unsqueeze(0), unit)[0] / unit
    return Samples(values, test.labels, test.index, test.clean)


def compute(prepared: Measured, run: tracking.Run, stages: Stages) -> None:
    """Metrics under eval/ and JSON of every level; the clean one also gives report, confusion and figures."""
    config, split, levels = prepared.config, prepared.split, prepared.levels
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
    run.write_text(TEST_RESULTS, json.dumps(results, indent=1))
    if 0.0 in levels:
        _store_classes(run, split, levels[0.0][0].confusion.cpu())
    for step, values in points.items():  # when the files are there: a new point stays
        run.log(values, step)
    console.table(f"{results['dataset']} test set, {config.checkpoint} weights", ["corruption p", "accuracy", "loss"], rows)


def report(stored: StoredRun) -> None:
    """Nothing more: the table of the levels stands above."""


def _store_classes(run: tracking.Run, split: Split, first: torch.Tensor) -> None:
    """Confusion [R, K, K], report per class and confusion figures."""
    run.write_arrays(CONFUSION, {"": first.numpy()})
    report = {name: value.numpy() for name, value in class_report(first).items()}
    classes = {str(name): {key: spread(value[:, c]) for key, value in report.items()} for c, name in enumerate(split.class_names)}
    run.write_text(CLASS_REPORT, json.dumps(classes, indent=1))
    from hardbench.figures.train import confusion_figures

    for name in save(confusion_figures(first.numpy(), split.class_names), run.folder / "figures"):
        run.publish(f"figures/{name}")


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
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()


def _cell(entry: Mapping[str, Any]) -> str:
    return f"{entry['mean']:.4f}" + (f" +- {entry['stderr']:.4f}" if entry["stderr"] is not None else "")
