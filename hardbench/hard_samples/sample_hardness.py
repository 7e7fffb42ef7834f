"""The hardness of samples as one run measured it, for use by another run: which samples of a split are hard, easy or unknown to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import DYNAMICS, HARD_SAMPLES, SCORED, STRAGGLERS as STRAGGLERS_FILE, Array
from hardbench.data.samples import Samples, Split
from hardbench.errors import ConfigError, DataError, TrackingError
from hardbench.hard_samples import scoring
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.selection import hardest
from hardbench.registry import SCORES
from hardbench.settings import STRAGGLERS

HARD, EASY = "hard", "easy"
WRONG = "wrong_at_end"
DETECTED = ("self_confidence", "normalised_margin")  # whose hard samples are those of confident learning


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


def read(study: str, run: str, arrays: Mapping[str, Array], score: str | None = None) -> Hardness:
    """The hardness of the samples of a study's run (its id), from the arrays of the artifact that SOURCES names.

    By the given score, else the run's first one, for train and score runs wrong_at_end; ConfigError if the run cannot give it. A sample is
    hard if at least half of the run's sets (of stragglers) or networks (of the others) call it hard. A network of a train or score run
    calls hard the samples that it misclassified at the end, and by another score as many of the hardest ones. A score of all networks
    together calls hard as many of the hardest as they misclassified on average; self_confidence and normalised_margin those that
    confident learning detects.
    """
    values, hard = SOURCES[study][1](arrays, run, score)
    if "fingerprint" not in arrays:
        raise ConfigError(f"hardness: {run}; a run on a data set, and its samples are of a recording from elsewhere")
    return Hardness(run[:8], arrays["index"], hard, values, arrays["fingerprint"], arrays.get("labels"))


def _of_stragglers(arrays: Mapping[str, Array], run: str, score: str | None) -> tuple[Array, Array]:
    strategies = [str(name) for name in arrays["strategies"]]
    chosen = strategies[0] if score is None else SCORES[score].name
    if chosen not in strategies:
        raise ConfigError(f"hardness: {run}:{chosen}; {' or '.join(strategies)}")
    if not {f"scores_{chosen}", f"hard_{chosen}"} <= arrays.keys():
        raise TrackingError(f"run: {run}; hard_samples.npz: no array scores_{chosen} or hard_{chosen} in it")
    return arrays[f"scores_{chosen}"].mean(0), arrays[f"hard_{chosen}"].mean(0) >= 0.5


def _of_inversions(arrays: Mapping[str, Array], run: str, score: str | None) -> tuple[Array, Array]:
    if score not in (None, STRAGGLERS):
        raise ConfigError(f"hardness: {run}:{score}; a run of invert has stragglers alone")
    share = arrays["stragglers"].mean(0)
    return share, share >= 0.5


def _of_dynamics(arrays: Mapping[str, Array], run: str, score: str | None) -> tuple[Array, Array]:
    recording, name = Recording.of(arrays), SCORES[score or WRONG].name
    if name == STRAGGLERS:
        raise ConfigError(f"hardness: {run}:{name}; wrong_at_end of this run, or stragglers of a run of invert or stragglers")
    if missing := scoring.lacking(recording, name):
        raise ConfigError(f"hardness: {run}:{name}; a score that the run can give, and this one {missing}")
    values = scoring.values(recording, list(dict.fromkeys((name, WRONG))))
    if name in DETECTED:
        return scoring.ensemble(values[name]).numpy(), scoring.confident_learning(recording).numpy()
    return _judged(values[name], values[WRONG])


def _of_scores(arrays: Mapping[str, Array], run: str, score: str | None) -> tuple[Array, Array]:
    known = [str(name) for name in arrays["score_names"]]
    name = SCORES[score].name if score is not None and score in SCORES else score or (WRONG if WRONG in known else known[0])
    if name not in known:
        raise ConfigError(f"hardness: {run}:{name}; one of its scores: {', '.join(known)}")
    value = torch.from_numpy(arrays[name]).double()
    if name in DETECTED:
        return scoring.ensemble(value).numpy(), arrays["confident_learning"].astype(bool)
    if name == STRAGGLERS:  # 0 or 1 of other networks: hard where at least half of them say so, as of a run of invert
        share = scoring.ensemble(value).numpy()
        return share, share >= 0.5
    wrong = arrays[WRONG] if WRONG in known else (arrays["predicted"] != arrays["labels"])[None]
    return _judged(value, torch.from_numpy(wrong).double())


def _judged(value: Tensor, wrong: Tensor) -> tuple[Array, Array]:
    """The mean of a score [R, N] or [N] over networks, and which samples are hard, both [N].

    wrong: [R, N] (or [1, N] for all), 1 for samples misclassified at the end, 0 for others, nan for a network that was never measured.
    """
    if value.ndim == 1:
        measured = wrong[~wrong.isnan().any(1)].sum(1)
        return value.numpy(), hardest(value, round(float(measured.mean())) if len(measured) else 0).numpy()
    pairs = zip(value, wrong.expand(len(value), -1), strict=True)
    votes = [hardest(row, int(own.sum())) for row, own in pairs if not own.isnan().any()]
    hard = torch.stack(votes).double().mean(0) >= 0.5 if votes else torch.zeros(value.shape[1], dtype=torch.bool)
    return scoring.ensemble(value).numpy(), hard.numpy()


Reader = Callable[[Mapping[str, Array], str, str | None], tuple[Array, Array]]
SOURCES: dict[str, tuple[str, Reader]] = {
    "stragglers": (HARD_SAMPLES, _of_stragglers),
    "invert": (STRAGGLERS_FILE, _of_inversions),
    "train": (DYNAMICS, _of_dynamics),
    "score": (SCORED, _of_scores),
}
"""By study: the artifact that has the hardness of samples, and the function that reads mean score and hard samples [N] from it."""


def run_and_strategy(word: str) -> tuple[str, str | None]:
    """The run and the strategy (None where none is named) of `RUN` or `RUN:STRATEGY`."""
    run, colon, strategy = word.partition(":")
    return run, strategy if colon else None
