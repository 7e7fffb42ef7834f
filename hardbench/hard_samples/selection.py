"""The samples that a score calls hard: a given number, of the whole data set or of every class."""

import torch
from torch import Tensor


def hardest(score: Tensor, count: int) -> Tensor:
    """The `count` samples of the highest score, bool [N]; of equal ones the earlier, and none that has no score (nan)."""
    mask, absent = torch.zeros(len(score), dtype=torch.bool), score.isnan()
    mask[score.masked_fill(absent, -torch.inf).argsort(descending=True, stable=True)[:count]] = True
    return mask & ~absent


def hardest_at_level(score: Tensor, labels: Tensor, counts: Tensor, level: str) -> Tensor:
    """The hard samples of a score [N], bool [N]: the counts[c] hardest of every class c, or for level dataset the counts.sum() hardest.

    A class (or the data set) of fewer samples is hard as a whole.
    """
    if level == "dataset":
        return hardest(score, int(counts.sum()))
    mask = torch.zeros(len(score), dtype=torch.bool)
    for label, count in enumerate(counts.tolist()):
        rows = (labels == label).nonzero().flatten()
        mask[rows[hardest(score[rows], int(count))]] = True
    return mask
