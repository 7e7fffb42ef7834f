"""Agreement of networks, or of strategies for hard samples, on the samples they select: overlap of sets, of ranks, and beside chance."""

import itertools

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import Array
from hardbench.metrics.hardness import correlation, directions


def overlap_z(sets: Tensor) -> Array:
    """z-score of |S_i n S_j| under random sets of the same sizes, for every pair of networks: [..., P], in standard deviations.

    From sets [..., R, N] (boolean), P = R (R - 1) / 2 pairs in the order of itertools.combinations. The law of the size of the overlap of
    random subsets is hypergeometric: mean a b / N, variance a b (N - a)(N - b) / (N^2 (N - 1)). nan where it has no variance (a set
    that is empty or whole).
    """
    sizes, count = sets.sum(-1).double(), sets.shape[-1]
    scores = []
    for i, j in itertools.combinations(range(sets.shape[-2]), 2):
        a, b = sizes[..., i], sizes[..., j]
        shared = (sets[..., i, :] & sets[..., j, :]).sum(-1)
        variance = a * b * (count - a) * (count - b) / (count**2 * (count - 1))
        scores.append((shared - a * b / count) / variance.sqrt())
    stacked = torch.stack(scores, -1) if scores else torch.empty(*sizes.shape[:-1], 0)
    return torch.where(stacked.isfinite(), stacked, torch.nan).numpy()


def share(stragglers: Array, judged: Array) -> Array:
    """Share of all samples that are stragglers, [R] in [0, 1], from stragglers [R, N]; nan for a network none of whose classes was judged.

    judged [R, K]: epoch of the weights that judged a class, nan where it was left out.
    """
    return np.where(np.isfinite(judged).any(1), stragglers.mean(1), np.nan)


def class_shares(stragglers: Array, labels: Array, judged: Array) -> Array:
    """Share of each class's samples that are stragglers, [R, K] in [0, 1], nan where the class was left out; `judged` as for `share`."""
    shares = np.stack([stragglers[:, labels == c].mean(1) for c in range(judged.shape[1])], 1)
    return np.where(np.isfinite(judged), shares, np.nan)


def most_voted(stragglers: Tensor, logits: Tensor, labels: Tensor, count: int) -> Tensor:
    """Rows [count] of the samples that most networks call stragglers, of equal ones those with the largest mean loss at the end.

    From stragglers [R, N], logits [R, N, K], labels [N]. Only samples that are stragglers of some network, so there may be fewer.
    """
    votes = stragglers.sum(0)
    right = logits.gather(2, labels.expand(len(logits), -1).unsqueeze(2)).squeeze(2)
    loss = (logits.logsumexp(2) - right).mean(0).nan_to_num()
    order = np.lexsort((-loss.numpy(), -votes.numpy()))
    return torch.from_numpy(order[: min(count, int((votes > 0).sum()))].copy())


def jaccard(left: Array, right: Array) -> float:
    """Samples in both of two sets over those in either, in [0, 1], from masks [N]; nan where both are empty."""
    either = (left | right).sum()
    return float((left & right).sum() / either) if either else float("nan")


def jaccard_matrix(sets: Array) -> Array:
    """Jaccard of every pair of M sets [M, N], [M, M]; nan for two empty ones."""
    return np.array([[jaccard(left, right) for right in sets] for left in sets])


def spearman_matrix(scores: Array) -> Array:
    """Spearman's rank correlation of every pair of M scores [M, N], [M, M] in [-1, 1]; ties share their mean rank.

    Of a pair with nan the samples that have both scores count.
    """
    whole = [directions(row, ranks=True) if np.isfinite(row).all() else None for row in scores]
    matrix = np.empty((len(scores), len(scores)))
    for i, j in itertools.combinations_with_replacement(range(len(scores)), 2):
        left, right = whole[i], whole[j]
        if left is None or right is None:
            matrix[i, j] = matrix[j, i] = correlation(scores[i], scores[j], ranks=True)
        else:
            matrix[i, j] = matrix[j, i] = np.clip(left @ right, -1, 1)
    return matrix


def mean_overlap_z(sets: Array) -> float:
    """Mean of `overlap_z` over all pairs of S sets [S, N]: by how many standard deviations they overlap more than random sets.

    nan for fewer than two sets, or where all are empty or whole.
    """
    z = overlap_z(torch.from_numpy(sets))
    defined = z[np.isfinite(z)]
    return float(defined.mean()) if len(defined) else float("nan")
