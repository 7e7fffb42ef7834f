"""Which samples a score calls hard: as many as are asked for, of all or of every class."""

import torch
from torch import Tensor


def hardest(score: Tensor, count: int) -> Tensor:
    """The `count` samples of the highest score, bool [N]; of equal ones the earlier."""
    found = torch.zeros(len(score), dtype=torch.bool)
    found[score.argsort(descending=True, stable=True)[:count]] = True
    return found


def select(score: Tensor, labels: Tensor, counts: Tensor, level: str) -> Tensor:
    """The hard samples of a score [N], bool [N]: the counts[c] hardest of every class c, or for level dataset the sum of counts of all.

    A class (or the data set) of fewer samples is hard as a whole.
    """
    if level == "dataset":
        return hardest(score, int(counts.sum()))
    found = torch.zeros(len(score), dtype=torch.bool)
    for label, count in enumerate(counts.tolist()):
        rows = (labels == label).nonzero().flatten()
        found[rows[hardest(score[rows], int(count))]] = True
    return found
