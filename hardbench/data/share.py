"""Each network's own random share of the training samples, as memorization is measured by (Feldman & Zhang 2020, arXiv:2008.03703)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hardbench.errors import DataError
from hardbench.seeding import Seeds, networks
from hardbench.settings import TrainingSettings


def share_count(share: float, samples: int) -> int:
    """The number n of samples that a network trains on, round(share N); DataError where that is none."""
    count = round(share * samples)
    if count < 1:
        raise DataError(f"train_share: {share:g}; at least one of the {samples} training samples there are")
    return count


def share_rows(share: float, samples: int, streams: Sequence[Seeds]) -> Tensor | None:
    """Rows [R, n] of the training samples that each network trains on, rising, from a stream of its own; None at share 1: all of them."""
    if share == 1:
        return None
    count = share_count(share, samples)
    orders = (torch.randperm(samples, generator=seeds.child("share").generator()) for seeds in streams)
    return torch.stack([order[:count].sort().values for order in orders])


def membership_of(rows: Tensor, samples: int) -> Tensor:
    """True where a network trains on a sample, bool [R, N], from the rows [R, n]."""
    return torch.zeros(len(rows), samples, dtype=torch.bool, device=rows.device).scatter_(1, rows, True)


def membership(settings: TrainingSettings, samples: int) -> Tensor:
    """The samples that each network of a training trains on, bool [R, N], of its N training samples: known by the settings alone."""
    rows = share_rows(settings.train_share, samples, networks(settings.seed, settings.first_repeat, settings.repeats))
    return torch.ones(settings.repeats, samples, dtype=torch.bool) if rows is None else membership_of(rows, samples)
