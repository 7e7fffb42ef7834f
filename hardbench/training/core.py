"""The one training core: a single run is a stack of one configuration whose log writes to the store, a sweep's is one of several."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hardbench import artifacts
from hardbench.settings import TrainingSettings
from hardbench.training.callbacks import Best, Records, Sink
from hardbench.training.layer_metrics import sample_count
from hardbench.training.loop import Callback, fit
from hardbench.training.setup import TrainSetup, measuring_callbacks, remembered, train_setup

Journal = list[tuple[dict[str, np.ndarray], int]]  # metrics with their step, as they were measured


@dataclass
class TrainResult:
    """The results of one configuration's networks, as plain data that can go to another process: all that a store keeps of its run."""

    arrays: dict[str, np.ndarray]
    step: int  # updates made
    diverged: dict[int, int]  # place among the repeats -> step
    reached: dict[int, float]  # place among the repeats -> epoch in which it reached the target accuracy
    validated: bool
    bayes_accuracy: float | None
    digest: str
    train_samples: int  # of one network
    kept: str  # how many of the training samples there are, by `keep`: 800 of 1000
    journal: Journal = field(default_factory=list)
    checkpoints: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # of one network


class Training:
    """A training under way: its set-up, what it has recorded, the best weights so far and the seconds it has taken."""

    def __init__(self, setup: TrainSetup):
        self.setup = setup
        self.records, self.best = Records(), Best(setup.learner.networks.repeats)
        self._began, self._before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return self._before + time.monotonic() - self._began

    def state(self) -> dict[str, Any]:
        """All that going on needs, as last.pt holds it."""
        setup = self.setup
        state = {**setup.learner.state(), "standardise": setup.standardise.constants(), "batches": setup.batches.state()}
        return {**state, "records": self.records.state(), "best": self.best.state(), "seconds": self.seconds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.setup.learner.load(dict(state))
        for part, name in ((self.setup.batches, "batches"), (self.records, "records"), (self.best, "best")):
            part.load(state[name])
        self._before = float(state.get("seconds", 0))

    def run(self, log: Sink, further: Sequence[Callback] = ()) -> None:
        """Train to the end; further callbacks come after those that measure."""
        self._began = time.monotonic()
        callbacks = measuring_callbacks(self.setup, self.records, self.best, log)
        fit(self.setup.learner, self.setup.batches, self.setup.total, [*callbacks, *further])

    def result(self, place: int = 0) -> TrainResult:
        """The results of the configuration at a place."""
        setup, rows = self.setup, self.setup.rows(place)
        member, split, learner = setup.members[place], setup.noisy[place], setup.learner
        arrays = {name: value[rows] if per_network(name) else value for name, value in self.records.arrays().items()}
        arrays |= setup.static(place)
        repeats = range(rows.start, rows.stop)
        arrays["stopped_step"] = np.array([learner.stopped.get(r, -1) for r in repeats])
        arrays["class_names"] = np.array(split.class_names)
        if setup.layer_metrics:
            arrays["measured_samples"] = np.full(member.repeats, sample_count(split.train, split.val or split.test, split.test))
        diverged = {r - rows.start: step for r, step in learner.diverged.items() if r in repeats}
        reached = {r - rows.start: step / setup.batches.per_epoch for r, step in learner.reached.items() if r in repeats}
        facts = (split.val is not None, split.bayes_accuracy, split.digest, setup.batches.count, f"{len(split.train)} of {setup.available}")
        return TrainResult(arrays, learner.steps, diverged, reached, *facts)

    def best_weights(self, networks: Sequence[Mapping[str, Any]], place: int = 0) -> dict[str, Any]:
        """The best weights of a configuration's networks with their step and validation accuracy, as best.pt holds them.

        `networks` are the weights of all networks now: the best ones where there is no validation split.
        """
        rows, standardise = self.setup.rows(place), {"standardise": self.setup.standardise.constants()}
        if self.setup.split.val is not None:
            return {name: value[rows] for name, value in self.best.state().items()} | standardise
        last = networks[rows]
        return {"networks": last, "step": [self.setup.learner.steps] * len(last), "is_last": True} | standardise


def train_stack(settings: Sequence[Mapping[str, Any]]) -> list[TrainResult]:
    """Train configurations (given as plain settings) in one stack; returns the result of each."""
    began = time.monotonic()
    training = Training(train_setup(*(TrainingSettings(**values) for values in settings), load=remembered))
    setup = training.setup
    journal: Journal = []
    training.run(lambda values, step: journal.append((dict(values), step)))
    networks, constants = setup.learner.settled_states() if setup.config.keep_checkpoints else [], setup.standardise.constants()
    results = []
    for place in range(len(setup.members)):
        result, rows = training.result(place), setup.rows(place)
        result.journal = [({name: value if value.ndim == 0 else value[rows] for name, value in row.items()}, step) for row, step in journal]
        if networks:
            last = {"networks": networks[rows], "steps": setup.learner.steps, "standardise": constants}
            result.checkpoints = {"last": last, "best": training.best_weights(networks, place)}
        _cut_unmeasured(result)
        results.append(result)
    for result in results:
        result.seconds = (time.monotonic() - began) / setup.learner.networks.repeats
    return results


def per_network(name: str) -> bool:
    """True if an array of a training has the networks as its first axis."""
    return artifacts.axes_of("train", name).startswith("R")


def _cut_unmeasured(result: TrainResult) -> None:
    """Cut off the points after the last measured one: where all networks of a member diverged, the stack may have gone on."""
    for letter, name in (("T", "accuracy"), ("S", "train_loss")):
        measured = np.isfinite(result.arrays[name]).any(0)
        kept = int(measured.nonzero()[0].max(initial=-1)) + 1
        for key, value in result.arrays.items():
            axis = artifacts.axes_of("train", key).find(letter)
            if axis >= 0:
                result.arrays[key] = value[(slice(None),) * axis + (slice(kept),)]


def joined(parts: Sequence[TrainResult]) -> TrainResult:
    """One result of the same configuration's parts, in the order of the repeats."""
    first = parts[0]
    if len(parts) == 1:
        return first
    offsets = np.cumsum([0, *(len(part.arrays["accuracy"]) for part in parts)])
    longest = max(parts, key=lambda part: len(part.arrays["log_steps"]))
    arrays = dict(longest.arrays)
    arrays |= {name: _stacked([part.arrays[name] for part in parts]) for name in first.arrays if per_network(name)}
    known = [{(name, step): value for row, step in part.journal for name, value in row.items()} for part in parts]
    nothing = [np.full(len(part.arrays["accuracy"]), np.nan) for part in parts]
    journal = [
        ({name: value if value.ndim == 0 else _at(known, nothing, (name, step)) for name, value in row.items()}, step)
        for row, step in longest.journal
    ]
    diverged = {int(offset) + r: step for offset, part in zip(offsets, parts, strict=False) for r, step in part.diverged.items()}
    reached = {int(offset) + r: epoch for offset, part in zip(offsets, parts, strict=False) for r, epoch in part.reached.items()}
    seconds = float(np.average([part.seconds for part in parts], weights=np.diff(offsets)))
    step = max(part.step for part in parts)
    checkpoints = _joined_checkpoints([part.checkpoints for part in parts])
    return replace(
        first, arrays=arrays, journal=journal, diverged=diverged, reached=reached, step=step, seconds=seconds, checkpoints=checkpoints
    )


def _at(known: Sequence[Mapping[tuple[str, int], np.ndarray]], nothing: Sequence[np.ndarray], point: tuple[str, int]) -> np.ndarray:
    """A metric (name, step) of all parts, one after the other; `nothing` (nan) for a part that had ended before the step."""
    return np.concatenate([part.get(point, none) for part, none in zip(known, nothing, strict=True)])


def _stacked(values: Sequence[np.ndarray]) -> np.ndarray:
    """Parts [r, T, ...] along the repeats; one that ended early is nan from there on."""
    if values[0].ndim < 2:
        return np.concatenate(values)
    points = max(value.shape[1] for value in values)
    missing = ([(0, 0), (0, points - value.shape[1]), *[(0, 0)] * (value.ndim - 2)] for value in values)
    return np.concatenate([np.pad(value, width, constant_values=np.nan) for value, width in zip(values, missing, strict=True)])


def _joined_checkpoints(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Checkpoints of the parts by name, their lists (of an item per network) one after the other."""
    checkpoints: dict[str, Any] = {}
    for name, first in parts[0].items():
        lists = {key: [item for part in parts for item in part[name][key]] for key, value in first.items() if isinstance(value, list)}
        checkpoints[name] = {**first, **lists}
    return checkpoints
