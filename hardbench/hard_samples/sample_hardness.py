"""The hardness of samples as one run found it, for another: which samples of a split are hard, which easy, which unknown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench.data.samples import Samples, Split
from hardbench.errors import ConfigError, DataError, TrackingError
from hardbench.hard_samples.dynamics import Dynamics
from hardbench.hard_samples.selection import hardest
from hardbench.registry import SCORES

Array = np.ndarray[Any, Any]
HARD, EASY = "hard", "easy"


@dataclass(frozen=True)
class Hardness:
    """Which of M samples are hard, bool [M].

    index: int64 [M], counts the data set's train samples, then its test samples, each in their own order; score: [M], higher is harder;
    fingerprint: int64 [M], of the inputs.
    """

    source: str
    index: Array
    hard: Array
    score: Array
    fingerprint: Array

    def match(self, samples: Samples, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Rows [n] of the samples that have a score, and which of these are hard, bool [n].

        Test samples have the number of the data set's train samples as offset. DataError if inputs of the same index are not the same: the
        data set is another.
        """
        order = np.argsort(self.index, kind="stable")
        wanted = samples.index.cpu().numpy() + offset
        place = np.searchsorted(self.index, wanted, sorter=order).clip(max=len(order) - 1)
        found = order[place]
        rows = np.flatnonzero(self.index[found] == wanted)
        same = samples.pick(torch.from_numpy(rows)).fingerprints.numpy() == self.fingerprint[found[rows]]
        if not same.all():
            raise DataError(f"hardness: {self.source}; a run on this data set (of {len(rows)} samples {(~same).sum()} are others)")
        return torch.from_numpy(rows), torch.from_numpy(self.hard[found[rows]])

    def groups(self, split: Split, train_size: int) -> dict[tuple[str, str], Samples]:
        """The hard and the easy samples by (phase, group), without empty ones. DataError if no hard one is there.

        train_size is the number of train samples that the data set has, whatever the split has of them.
        """
        found: dict[tuple[str, str], Samples] = {}
        for phase, samples in (("train", split.train), ("val", split.val), ("test", split.test)):
            if samples is not None:
                rows, hard = self.match(samples, train_size if phase == "test" else 0)
                picked = {HARD: rows[hard], EASY: rows[~hard]}
                found |= {(phase, group): samples.pick(chosen) for group, chosen in picked.items() if len(chosen)}
        if not any(group == HARD for _, group in found):
            raise DataError(f"hardness: {self.source}; a run whose hard samples are among those here")
        return found


def read(study: str, run: str, arrays: Mapping[str, Array], strategy: str | None = None) -> Hardness:
    """What a study's run, by its id, says of its samples, from the arrays of the artifact that SOURCES names.

    By a strategy's name, else the run's first one. ConfigError if it has no such score.

    Hard is what at least half of the run's sets (of stragglers), networks (of invert) or repeats (of recorded dynamics) call hard. For each
    repeat of dynamics these are the samples misclassified at the end, for strategies other than stragglers as many of the hardest ones.
    """
    scores, hard = SOURCES[study][1](arrays, run, strategy)
    return Hardness(run[:8], arrays["index"], hard.mean(0) >= 0.5, scores.mean(0), arrays["fingerprint"])


def _of_stragglers(arrays: Mapping[str, Array], run: str, strategy: str | None) -> tuple[Array, Array]:
    known = [str(name) for name in arrays["strategies"]]
    chosen = known[0] if strategy is None else SCORES[strategy].name
    if chosen not in known:
        raise ConfigError(f"hardness: {run}:{chosen}; {' or '.join(known)}")
    if not {f"scores_{chosen}", f"hard_{chosen}"} <= arrays.keys():
        raise TrackingError(f"run: {run}; hard_samples.npz: no array scores_{chosen} or hard_{chosen} in it")
    return arrays[f"scores_{chosen}"], arrays[f"hard_{chosen}"]


def _of_inversions(arrays: Mapping[str, Array], run: str, strategy: str | None) -> tuple[Array, Array]:
    if strategy not in (None, "stragglers"):
        raise ConfigError(f"hardness: {run}:{strategy}; a run of invert has stragglers alone")
    return arrays["stragglers"].astype(float), arrays["stragglers"]


def _of_dynamics(arrays: Mapping[str, Array], run: str, strategy: str | None) -> tuple[Array, Array]:
    dynamics = Dynamics.of(arrays)
    wrong = SCORES["stragglers"].call(dynamics) > 0
    score = SCORES[strategy or "stragglers"].call(dynamics)
    if SCORES[strategy or "stragglers"].name == "stragglers":
        return score.numpy(), wrong.numpy()
    return score.numpy(), torch.stack([hardest(own, int(count)) for own, count in zip(score, wrong.sum(1), strict=True)]).numpy()


Reader = Callable[[Mapping[str, Array], str, str | None], tuple[Array, Array]]
SOURCES: dict[str, tuple[str, Reader]] = {
    "stragglers": ("hard_samples.npz", _of_stragglers),
    "invert": ("stragglers.npz", _of_inversions),
    "train": ("dynamics.npz", _of_dynamics),
}
"""Studies that hand hardness on: the artifact, and what reads scores and hard samples [S, N] from it."""


def words(given: str) -> tuple[str, str | None]:
    """Run and strategy (None where none is named) of `RUN` or `RUN:STRATEGY`."""
    run, colon, strategy = given.partition(":")
    return run, strategy if colon else None
