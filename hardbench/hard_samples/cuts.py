"""Training sets with some of their hard or easy samples removed, and the test sets beside them, as slices of one order."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hardbench.seeding import Seeds


@dataclass(frozen=True)
class TrainSlice:
    """One training set and its tests as positions in an `Order`.

    Trained on are [low, high); hard test samples are [0, hard_end), easy ones [easy_start, N), and the full test is both.
    """

    low: int
    high: int
    hard_end: int
    easy_start: int

    def __len__(self) -> int:
        return self.high - self.low


@dataclass(frozen=True)
class Order:
    """Rows [N] of a data set, the hard samples (`hard` of them) before the easy ones, each group in random order.

    A group is trained on from the middle outwards, so that every training set of the order is a slice and a smaller one lies in a larger.
    """

    rows: Tensor
    hard: int

    @classmethod
    def of(cls, hard: Tensor, seeds: Seeds) -> "Order":
        """An order of the samples, of which those of the mask [N] are hard; the groups are shuffled separately."""
        groups = []
        for name, mask in (("hard", hard), ("easy", ~hard)):
            found = mask.nonzero().flatten()
            groups.append(found[torch.randperm(len(found), generator=seeds.child(name).generator())])
        return cls(torch.cat([groups[0].flip(0), groups[1]]), len(groups[0]))

    def cut(self, train_ratio: float, remaining: float, reduce_hard: bool = False) -> TrainSlice:
        """The cut at int(n train_ratio) of either group, int(n remaining) of the reduced group's training samples being kept."""
        hard, easy = (int(n * train_ratio) for n in (self.hard, len(self.rows) - self.hard))
        kept = (int(hard * remaining), easy) if reduce_hard else (hard, int(easy * remaining))
        return TrainSlice(self.hard - kept[0], self.hard + kept[1], self.hard - hard, self.hard + easy)
