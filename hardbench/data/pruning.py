"""Data pruning: the part of the training samples that a run trains on.

Which part costs least: Paul et al. 2021 (arXiv:2107.07075), Sorscher et al. 2022 (arXiv:2206.14486). Random shares are the control.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hardbench.data.samples import Samples
from hardbench.errors import DataError
from hardbench.rules import UNSUSPECTED, how_kept
from hardbench.seeding import Seeds

Judge = Callable[[Samples], tuple[Tensor, Tensor]]
"""Samples to their score [N], higher is harder, nan where there is none, and which of them are hard, bool [N]."""


def rows_kept(keep: str, samples: Samples, seed: int, judge: Judge | None = None) -> Tensor:
    """The rows that `keep` keeps, in order, int64 [n]; a share of N samples are round(share N).

    easy and hard: those of the lowest and of the highest scores; equal scores in a random order that the seed fixes, so that a larger share
    contains a smaller one. random: drawn by a stream of its own, whatever the judge says. unsuspected: those that are not hard, with
    those that have no score. DataError where easy or hard lack scores, and where nothing is kept.
    """
    how, share = how_kept(keep)
    streams, count = Seeds(seed).child("data", "keep"), len(samples)
    if how == "random":
        rows = torch.randperm(count, generator=streams.child("random").generator())[: round(share * count)]
    else:
        assert judge is not None
        score, hard = judge(samples)
        if how == UNSUSPECTED:
            rows = (~hard).nonzero().flatten()
        elif missing := int(score.isnan().sum()):
            raise DataError(f"keep: {keep}; a score of every training sample ({missing} of {count} have none)")
        else:
            ties = torch.randperm(count, generator=streams.child("ties").generator())
            order = ties[score[ties].argsort(stable=True, descending=how == "hard")]
            rows = order[: round(share * count)]
    if not len(rows):
        raise DataError(f"keep: {keep}; at least one of the {count} training samples")
    return rows.sort().values
