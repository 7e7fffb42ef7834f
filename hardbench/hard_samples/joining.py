"""Scores of other runs brought onto the samples of a recording, which are recognised by the fingerprints of their inputs."""

from dataclasses import dataclass

import numpy as np

from hardbench.artifacts import Array
from hardbench.errors import DataError
from hardbench.rules import PLANT_TYPES

CLOSE = PLANT_TYPES.index("mislabel_close") + 1


@dataclass(frozen=True)
class Sets:
    """The stragglers of Q networks among M samples of another run.

    run: its id; values: [Q, M], 1 for a straggler, else 0, nan where a class was not judged; fingerprint, index, labels: int64 [M];
    planted: int64 [M], the kinds planted there, counted as in the recording, or None where nothing is known.
    """

    run: str
    values: Array
    fingerprint: Array
    index: Array
    labels: Array
    planted: Array | None = None

    def shared(self, fingerprint: Array, index: Array) -> int:
        """How many of these samples are among them."""
        return int((matches(fingerprint, index, self.fingerprint, self.index) >= 0).sum())


def matches(fingerprint: Array, index: Array, others: Array, others_index: Array) -> Array:
    """For every sample its place among others, int64 [N], -1 for none: that of the same fingerprint, of several that of the same index."""
    exact: dict[tuple[int, int], int] = {}
    any_of: dict[int, int] = {}
    for place, (found, number) in enumerate(zip(others.tolist(), others_index.tolist(), strict=True)):
        exact[found, number] = place
        any_of.setdefault(found, place)
    pairs = zip(fingerprint.tolist(), index.tolist(), strict=True)
    return np.array([exact.get(pair, any_of.get(pair[0], -1)) for pair in pairs], dtype=np.int64)


def joined(sets: Sets, fingerprint: Array, index: Array, labels: Array, planted: Array | None) -> Array:
    """The values [Q, N] of the sets on samples [N], nan where the other run did not have one.

    DataError if none is in common, or if labels, or what was planted, differ: the scores would be of other samples. Only samples planted as
    mislabel_close may have another label: their wrong class is the one that networks of the run's own kind confuse them with.
    """
    places = matches(fingerprint, index, sets.fingerprint, sets.index)
    known = places >= 0
    if not known.any():
        raise DataError(f"runs: {sets.run}; a run on the same samples, and it has none of them (--pool train, the same subset and seed)")
    free = np.zeros(len(labels), dtype=bool) if planted is None else planted == CLOSE
    for name, own, others in (("planted hardness", planted, sets.planted), ("label", np.where(free, -1, labels), sets.labels)):
        if own is not None and others is not None and (differ := int(((own >= 0) & known & (own != others[places])).sum())):
            raise DataError(f"runs: {sets.run}; a run on the same samples, and {differ} of {known.sum()} have another {name} there")
    values = np.full((len(sets.values), len(fingerprint)), np.nan, dtype=np.float32)
    values[:, known] = sets.values[:, places[known]]
    return values
