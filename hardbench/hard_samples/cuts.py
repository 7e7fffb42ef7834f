"""Training sets with some of their hard or easy samples removed, and the test sets beside them, as slices of one order of the samples.

The experiment is that of Pukowski & Lu 2024 (arXiv:2409.14401).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hardbench.seeding import Seeds


@dataclass(frozen=True)
class TrainSlice:
    """One training set and its test sets as positions in a `HardEasyOrder`.

    The samples [low, high) are trained on; the hard test samples are [0, hard_end), the easy ones [easy_start, N); the full test is both.
    """

    low: int
    high: int
    hard_end: int
    easy_start: int

    def __len__(self) -> int:
        return self.high - self.low


@dataclass(frozen=True)
class HardEasyOrder:
    """Rows [N] of a data set, the hard samples (`hard` of them) before the easy ones, each group in random order.

    A group is trained on from the middle outwards, so that every training set of the order is a slice and a smaller one lies in a larger.
    """

    rows: Tensor
    hard: int

    @classmethod
    def of(cls, hard: Tensor, seeds: Seeds) -> "HardEasyOrder":
        """An order of the samples, of which those of the mask [N] are hard; the groups are shuffled separately."""
        groups = []
        for name, mask in (("hard", hard), ("easy", ~hard)):
            rows = mask.nonzero().flatten()
            groups.append(rows[torch.randperm(len(rows), generator=seeds.child(name).generator())])
        return cls(torch.cat([groups[0].flip(0), groups[1]]), len(groups[0]))

    def train_slice(self, train_ratio: float, remaining: float, reduce_hard: bool = False) -> TrainSlice:
        """The training set of int(n * train_ratio) samples of either group, of which the reduced group keeps int(n * remaining).

        The easy group is the reduced one unless `reduce_hard`. The test sets do not depend on `remaining`.
        """
        hard, easy = (int(n * train_ratio) for n in (self.hard, len(self.rows) - self.hard))
        kept = (int(hard * remaining), easy) if reduce_hard else (hard, int(easy * remaining))
        return TrainSlice(self.hard - kept[0], self.hard + kept[1], self.hard - hard, self.hard + easy)
