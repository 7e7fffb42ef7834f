"""The hardness of samples as one run measured it, for use by another run: which samples of a split are hard, easy or unknown to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import DYNAMICS, HARD_SAMPLES, STRAGGLERS, Array
from hardbench.data.samples import Samples, Split
from hardbench.errors import ConfigError, DataError, TrackingError
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.selection import hardest
from hardbench.registry import SCORES

HARD, EASY = "hard", "easy"


@dataclass(frozen=True)
class Hardness:
    """The hardness of M samples by one run.

    source: the run's short id; index: int64 [M], position in the data set (its train samples, then its test samples); hard: bool [M];
    score: [M], higher is harder, nan where there is none; fingerprint: int64 [M], of the inputs; labels: int64 [M] (None: not kept).
    """

    source: str
    index: Array
    hard: Array
    score: Array
    fingerprint: Array
    labels: Array | None = None

    def match(self, samples: Samples, offset: int = 0) -> tuple[Tensor, Tensor]:
        """Rows [n] of the samples that the run knows, and which of these are hard, bool [n].

        For test samples the offset is the number of the data set's train samples. DataError if inputs of the same index differ, as on
        another data set.
        """
        rows, places = self._found(samples, offset)
        return torch.from_numpy(rows), torch.from_numpy(self.hard[places])

    def judge(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Scores [N] of train samples, nan where the run has none, and which of them are hard, bool [N]. DataError for unknown samples."""
        rows, places = self._found(samples)
        if len(rows) < len(samples):
            missing = f"{len(samples) - len(rows)} of {len(samples)}"
            raise DataError(f"hardness: {self.source}; a run that knows all training samples ({missing} it does not)")
        return torch.from_numpy(self.score[places]), torch.from_numpy(self.hard[places])

    def relabelled(self, samples: Samples) -> int:
        """The number of train samples that the run knows under another label."""
        if self.labels is None:
            return 0
        rows, places = self._found(samples)
        return int((samples.labels[rows].cpu().numpy() != self.labels[places]).sum())

    def _found(self, samples: Samples, offset: int = 0) -> tuple[Array, Array]:
        """Rows [n] of the samples that the run knows, and their places among its M."""
        order = np.argsort(self.index, kind="stable")
        wanted = samples.index.cpu().numpy() + offset
        nearest = order[np.searchsorted(self.index, wanted, sorter=order).clip(max=len(order) - 1)]
        rows = np.flatnonzero(self.index[nearest] == wanted)
        places = nearest[rows]
        same = samples.pick(torch.from_numpy(rows)).fingerprints.numpy() == self.fingerprint[places]
        if not same.all():
            raise DataError(f"hardness: {self.source}; a run on this data set (of {len(rows)} samples {(~same).sum()} are others)")
        return rows, places

    def groups(self, split: Split, train_size: int, needed: bool = True) -> dict[tuple[str, str], Samples]:
        """The hard and the easy samples by (phase, group), none of them empty. DataError if hard ones are needed and none is in the split.

        train_size is the number of train samples of the whole data set, of which the split may have a part.
        """
        groups: dict[tuple[str, str], Samples] = {}
        for phase, samples in (("train", split.train), ("val", split.val), ("test", split.test)):
            if samples is not None:
                rows, hard = self.match(samples, train_size if phase == "test" else 0)
                chosen = {HARD: rows[hard], EASY: rows[~hard]}
                groups |= {(phase, name): samples.pick(places) for name, places in chosen.items() if len(places)}
        if needed and not any(name == HARD for _, name in groups):
            raise DataError(f"hardness: {self.source}; a run whose hard samples are among those here")
        return groups


def read(study: str, run: str, arrays: Mapping[str, Array], strategy: str | None = None) -> Hardness:
    """The hardness of the samples of a study's run (its id), from the arrays of the artifact that SOURCES names.

    By the given strategy, or the run's first one; ConfigError if the run has no such score. A sample is hard if at least half of the run's
    sets (of stragglers), networks (of invert) or repeats (of recorded dynamics) call it hard. A repeat of dynamics calls hard the samples
    that it misclassified at the end, or, for scores other than wrong_at_end, as many of the hardest ones.
    """
    scores, hard = SOURCES[study][1](arrays, run, strategy)
    return Hardness(run[:8], arrays["index"], hard.mean(0) >= 0.5, scores.mean(0), arrays["fingerprint"], arrays.get("labels"))


def _of_stragglers(arrays: Mapping[str, Array], run: str, strategy: str | None) -> tuple[Array, Array]:
    strategies = [str(name) for name in arrays["strategies"]]
    chosen = strategies[0] if strategy is None else SCORES[strategy].name
    if chosen not in strategies:
        raise ConfigError(f"hardness: {run}:{chosen}; {' or '.join(strategies)}")
    if not {f"scores_{chosen}", f"hard_{chosen}"} <= arrays.keys():
        raise TrackingError(f"run: {run}; hard_samples.npz: no array scores_{chosen} or hard_{chosen} in it")
    return arrays[f"scores_{chosen}"], arrays[f"hard_{chosen}"]


def _of_inversions(arrays: Mapping[str, Array], run: str, strategy: str | None) -> tuple[Array, Array]:
    if strategy not in (None, "stragglers"):
        raise ConfigError(f"hardness: {run}:{strategy}; a run of invert has stragglers alone")
    return arrays["stragglers"].astype(float), arrays["stragglers"]


def _of_dynamics(arrays: Mapping[str, Array], run: str, strategy: str | None) -> tuple[Array, Array]:
    recording = Recording.of(arrays)
    wrong = SCORES["wrong_at_end"].call(recording) > 0
    chosen = SCORES[strategy or "wrong_at_end"]
    score = chosen.call(recording)
    if chosen.name == "wrong_at_end":
        return score.numpy(), wrong.numpy()
    return score.numpy(), torch.stack([hardest(row, int(count)) for row, count in zip(score, wrong.sum(1), strict=True)]).numpy()


Reader = Callable[[Mapping[str, Array], str, str | None], tuple[Array, Array]]
SOURCES: dict[str, tuple[str, Reader]] = {
    "stragglers": (HARD_SAMPLES, _of_stragglers),
    "invert": (STRAGGLERS, _of_inversions),
    "train": (DYNAMICS, _of_dynamics),
}
"""By study: the artifact that has the hardness of samples, and the function that reads scores and hard samples [S, N] from it."""


def run_and_strategy(word: str) -> tuple[str, str | None]:
    """The run and the strategy (None where none is named) of `RUN` or `RUN:STRATEGY`."""
    run, colon, strategy = word.partition(":")
    return run, strategy if colon else None
