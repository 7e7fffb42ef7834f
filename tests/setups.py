"""Trainings for tests: small images of odd size in three classes, and a training with what it recorded, without a store."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hardbench.studies import train
from hardbench.training import callbacks
from hardbench.training.loop import fit
from hardbench.training.setup import TrainSetup, measuring_callbacks

TRAIN, TEST, SHAPE, CLASSES = 83, 41, (7, 9), 3


def images_in_classes(path: Path) -> str:
    """The name of an archive of noisy uint8 images [N, 7, 9] around one pattern per class: three classes, nothing a multiple of 16."""
    rng = np.random.default_rng(5)
    patterns = rng.uniform(0, 160, (CLASSES, *SHAPE))
    arrays = {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        labels = np.arange(count) % CLASSES
        arrays[f"x_{part}"] = (patterns[labels] + rng.uniform(0, 95, (count, *SHAPE))).astype(np.uint8)
        arrays[f"y_{part}"] = labels
    np.savez(path, **arrays)
    return f"npz:{path}"


def training_setup(**settings: object) -> TrainSetup:
    """A training on one CPU thread, ready to start; layer metrics only if asked for."""
    return train.prepare(train.Config(**{"threads": 1, "device": "cpu", "layer_metrics": ("none",)} | settings)).setup


@dataclass
class Trained:
    """A training that has run: its arrays and the weights of every network."""

    setup: TrainSetup
    arrays: dict[str, np.ndarray]
    best: callbacks.Best

    @property
    def weights(self) -> list[dict[str, Tensor]]:
        return self.setup.learner.state()["networks"]

    @property
    def stopped(self) -> dict[int, int]:
        return self.setup.learner.stopped


def run(ready: TrainSetup, state: Mapping[str, object] | None = None, until: int | None = None) -> tuple[Trained, dict[str, object]]:
    """Train, from a state on and up to a step if asked: what came out, and the state there."""
    records, best = callbacks.Records(), callbacks.Best(ready.config.repeats)
    if state is not None:
        ready.learner.load(state["learner"])
        ready.batches.load(state["batches"])
        records.load(state["records"])
        best.load(state["best"])
    measuring = measuring_callbacks(ready, records, best, lambda values, step: None)
    taken: dict[str, object] = {}

    def take(state: object) -> None:
        if ready.learner.steps == until:
            parts = {"learner": ready.learner, "batches": ready.batches, "records": records, "best": best}
            taken.update(copied({name: part.state() for name, part in parts.items()}))

    fit(ready.learner, ready.batches, ready.total, [*measuring, take])
    return Trained(ready, records.arrays(), best), taken


def copied(state: object) -> object:
    """A deep copy of a state, as a file would hold it."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    return type(state)(map(copied, state)) if isinstance(state, list | tuple) else state


def trained(**settings: object) -> Trained:
    return run(training_setup(**settings))[0]


def equal_weights(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    """Bit for bit, the same names included."""
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def different_arrays(left: Mapping[str, np.ndarray], right: Mapping[str, np.ndarray], rows: Sequence[int]) -> list[str]:
    """Names of arrays whose `rows` (of the left) are not all of the right, bit for bit (nan equals nan)."""
    assert left.keys() == right.keys()
    picked = {name: left[name] if left[name].ndim < 2 else left[name][list(rows)] for name in left}
    return [name for name in left if not np.array_equal(picked[name], right[name], equal_nan=True)]


def stacked_is_alone(repeats: int = 3, make: Callable[..., Trained] = trained, **settings: object) -> list[str]:
    """What differs between R networks trained together and one by one: empty if the promise holds."""
    together = make(repeats=repeats, **settings)
    wrong = []
    for r in range(repeats):
        alone = make(repeats=1, first_repeat=r, **settings)
        wrong += [f"{name} of repeat {r}" for name in different_arrays(together.arrays, alone.arrays, [r])]
        if not equal_weights(together.weights[r], alone.weights[0]):
            wrong.append(f"weights of repeat {r}")
    return wrong
