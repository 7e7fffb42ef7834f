"""Evaluate a trained run on test data, clean or corrupted, and add the results to that run.

Reads the weights (best on validation, or last) and the standardisation they were trained with; a few seconds.
"""

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hardbench import console, seeding, tracking
from hardbench.artifacts import CLASS_REPORT, CONFUSION, TEST_RESULTS, json_numbers
from hardbench.configs.eval import STEPS, Config
from hardbench.configs.train import Config as TrainConfig
from hardbench.data.corruption import Corruption
from hardbench.data.samples import Samples, Split, prepare as split_of
from hardbench.data.transforms import check_pixels, unit_of
from hardbench.errors import DataError
from hardbench.figures import save
from hardbench.lifecycle import Prepared, Stages
from hardbench.metrics.classification import class_report
from hardbench.metrics.hardness import mean_stderr, mean_text
from hardbench.stored import StoredRun
from hardbench.trained import place, restore
from hardbench.training.evaluation import evaluate, layer_accuracies

STUDY = "eval"
FIGURES = ()  # those of confusions are drawn with the results


@dataclass(frozen=True, kw_only=True)
class Measured(Prepared):
    """The results of a trained run's weights, to be added to it: the run is held only while results are written."""

    trained: StoredRun
    split: Split
    levels: dict[float, dict[str, np.ndarray]]  # by corruption_p, those of `evaluate`; layer_accuracy [R, L] where layers predict

    def opening(self, study: str, stored: StoredRun | None) -> AbstractContextManager[tracking.Run]:
        """The trained run, to add to."""
        return tracking.extend(self.trained)

    def copied(self, run: tracking.Run) -> Sequence[str]:
        """The files that were added."""
        return run.published


def prepare(config: Config, stored: StoredRun | None = None) -> Measured:
    """The trained run that the settings name, evaluated as they say."""
    return measure(config, tracking.find(config.run, ["train"]))


def measure(config: Config, stored: StoredRun) -> Measured:
    """The data that a run's weights are tested on, and what every corruption level gives."""
    trained = stored.settings(TrainConfig, place(config))
    split = _split(config, trained, stored.config)
    learner, standardise = restore(stored, trained, split, config.checkpoint)
    if any(config.corruption_p):
        check_pixels(split.test)
    levels = {}
    test, standardise = split.test.to(learner.device), standardise.to(learner.device)
    for p in config.corruption_p:
        samples = _corrupted(test, p, trained.seed)
        arrays = evaluate(learner, samples, standardise)
        if (layers := layer_accuracies(learner, samples, standardise)) is not None:
            arrays["layer_accuracy"] = layers
        levels[p] = {name: value.cpu().numpy() for name, value in arrays.items()}
    return Measured(config=config, trained=stored, split=split, levels=levels)


def _split(config: Config, trained: TrainConfig, stored: Mapping[str, Any]) -> Split:
    """The run's data, or another data set's under the same class map; DataError unless shapes and classes agree.

    Without what was planted among the training samples: the test set is all that is read.
    """
    trained_on = split_of(trained, trained.seed)
    if config.dataset is None or config.dataset == trained.dataset:
        return trained_on
    kept = {name: value for name, value in stored.items() if not name.startswith(("gaussian_", "subset_", "plant"))}
    elsewhere = TrainConfig.read({**place(config), "dataset": config.dataset}, kept | {"val_size": 0, "noise_ratio": 0})
    other = split_of(elsewhere, trained.seed)
    given, wanted = ((split.test.shape, split.num_classes) for split in (other, trained_on))
    if given != wanted:
        raise DataError(f"dataset: {config.dataset} of shape {given[0]}, {given[1]} classes; the run has {wanted[0]}, {wanted[1]} classes")
    return other


def _corrupted(test: Samples, p: float, seed: int) -> Samples:
    """The test set with each pixel replaced with probability p, the same draw for every network."""
    if p == 0:
        return test
    stream, unit = seeding.Seeds(seed).child("eval", f"{p:g}"), unit_of(test.inputs)
    values = Corruption([stream], [p], test.inputs.device)(test.inputs.unsqueeze(0), unit)[0] / unit
    return replace(test, inputs=values)


def compute(prepared: Measured, run: tracking.Run, stages: Stages) -> None:
    """Metrics under eval/ and JSON of every level; the clean one also gives report, confusion and figures."""
    config, split, levels = prepared.config, prepared.split, prepared.levels
    prefix = "eval"
    if config.dataset is not None:
        prefix += "_" + re.sub(r"\W", "_", config.dataset.rpartition("/")[2])
    results: dict[str, Any] = {"checkpoint": config.checkpoint, "dataset": config.dataset or "own", "levels": []}
    points = {}
    for p, arrays in levels.items():
        entry: dict[str, Any] = {name: _spread(arrays[name]) for name in ("loss", "accuracy", "layer_accuracy") if name in arrays}
        results["levels"].append({"corruption_p": p, **entry})
        level_of, step = ("corrupted_", round(p * STEPS)) if p else ("", 0)  # MLflow shows the value at the largest step
        points[step] = {f"{prefix}/{level_of}{name}": arrays[name] for name in ("loss", "accuracy")}
        name = f"{prefix}_{level_of}layer_accuracy"
        points[step] |= {f"{name}/{i:02d}": row for i, row in enumerate(arrays.get("layer_accuracy", np.empty((0, 0))).T)}
    run.write_text(TEST_RESULTS, json.dumps(results, indent=1))
    if 0.0 in levels:
        _store_classes(run, split, levels[0.0]["confusion"])
    for step, values in points.items():  # when the files are there: a new point stays
        run.log(values, step)


def _store_classes(run: tracking.Run, split: Split, confusion: np.ndarray) -> None:
    """Confusion [R, K, K], report per class and confusion figures."""
    run.write_arrays(CONFUSION, {"": confusion})
    report = {name: value.numpy() for name, value in class_report(torch.from_numpy(confusion)).items()}
    classes = {str(name): {key: _spread(value[:, c]) for key, value in report.items()} for c, name in enumerate(split.class_names)}
    run.write_text(CLASS_REPORT, json.dumps(classes, indent=1))
    from hardbench.figures.train import confusion_figures

    for name in save(confusion_figures(confusion, split.class_names), run.folder / "figures"):
        run.publish(f"figures/{name}")


def _spread(values: np.ndarray) -> dict[str, Any]:
    """values [R, ...], mean and stderr over the repeats as JSON; what is undefined is null."""
    mean, stderr = mean_stderr(values)
    return {"values": json_numbers(values), "mean": json_numbers(mean), "stderr": json_numbers(stderr)}


def report(stored: StoredRun) -> None:
    """Print a line per level."""
    results = json.loads(stored.file(TEST_RESULTS).read_text())
    rows = []
    for level in results["levels"]:
        numbers = [np.array([level[name]["mean"], level[name]["stderr"]], dtype=float) for name in ("accuracy", "loss")]  # null is nan
        rows.append([level["corruption_p"], *(mean_text(*pair) for pair in numbers)])
    console.table(f"{results['dataset']} test set, {results['checkpoint']} weights", ["corruption p", "accuracy", "loss"], rows)
