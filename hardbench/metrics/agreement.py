"""Whether two ways of looking for hard samples find the same ones: overlap of sets, of ranks, and against chance."""

from typing import Any

import numpy as np

from hardbench.metrics.hardness import correlation

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


def overlap_z(left: Array, right: Array) -> float:
    """By how many standard deviations two sets' overlap exceeds that of random sets of their sizes (hypergeometric), from masks [N].

    nan where a set is empty or everything, which leaves no room for chance.
    """
    n, a, b = len(left), int(left.sum()), int(right.sum())
    variance = a * b * (n - a) * (n - b) / (n**2 * (n - 1)) if n > 1 else 0.0
    return float(((left & right).sum() - a * b / n) / np.sqrt(variance)) if variance else float("nan")


def stability(sets: Array) -> float:
    """Mean `overlap_z` over all pairs of S sets [S, N]; nan for fewer than two."""
    pairs = [overlap_z(sets[i], sets[j]) for i in range(len(sets)) for j in range(i)]
    known = [z for z in pairs if np.isfinite(z)]
    return float(np.mean(known)) if known else float("nan")
