"""Whether two ways of looking for hard samples find the same ones: overlap of sets, of ranks, and against chance."""

from typing import Any

import numpy as np
import torch

from hardbench.metrics.hardness import correlation
from hardbench.metrics.stragglers import overlap_z

Array = np.ndarray[Any, Any]


def jaccard(left: Array, right: Array) -> float:
    """Samples in both of two sets over those in either, in [0, 1], from masks [N]; nan where both are empty."""
    either = (left | right).sum()
    return float((left & right).sum() / either) if either else float("nan")


def jaccard_matrix(sets: Array) -> Array:
    """Jaccard of every pair of M sets [M, N], [M, M]."""
    return np.array([[jaccard(one, two) for two in sets] for one in sets])


def jaccard_per_class(sets: Array, labels: Array, classes: int) -> Array:
    """Jaccard of every pair of M sets [M, N] within every class, [K, M, M]; nan where a class has samples in neither."""
    return np.stack([jaccard_matrix(sets[:, labels == label]) for label in range(classes)])


def spearman_matrix(scores: Array) -> Array:
    """Spearman's rank correlation of every pair of M scores [M, N], [M, M] in [-1, 1]; ties share their mean rank."""
    return np.array([[correlation(one, two, ranks=True) for two in scores] for one in scores])


def stability(sets: Array) -> float:
    """Mean over all pairs of S sets [S, N] of how many standard deviations their overlap exceeds that of random sets of their sizes.

    nan for fewer than two sets, or where all are empty or whole.
    """
    z = overlap_z(torch.from_numpy(sets))
    known = z[np.isfinite(z)]
    return float(known.mean()) if len(known) else float("nan")
