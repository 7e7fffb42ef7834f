"""What predictions tell about labels, in nats, from confusions; which classes and which channels it hangs on."""

from collections.abc import Callable

import torch
from torch import Tensor


def plugin(confusion: Tensor) -> Tensor:
    """I(Y; prediction) of the observed shares, [...] of counts [..., K, K], in [0, ln K] nats; too high by about (K-1)^2 / (2 N)."""
    counts = confusion.double()
    return entropy(counts.sum(-1)) + entropy(counts.sum(-2)) - entropy(counts.flatten(-2))


def grassberger(confusion: Tensor) -> Tensor:
    """I(Y; prediction) from Grassberger's entropies (2003, arXiv:physics/0307138), [...] of counts [..., K, K], nats; may fall below 0.

    His estimate is for few samples per cell: near-independent tables of 100 classes and 10 000 samples come out right within .15.
    """
    counts = confusion.double()
    return _corrected(counts.sum(-1)) + _corrected(counts.sum(-2)) - _corrected(counts.flatten(-2))


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"plugin": plugin, "grassberger": grassberger}


def entropy(counts: Tensor) -> Tensor:
    """-sum p ln p of counts [..., M], nats; nan where there are none."""
    shares = counts.double() / counts.sum(-1, keepdim=True)
    return -torch.special.xlogy(shares, shares).sum(-1)


def _corrected(counts: Tensor) -> Tensor:
    """ln N - sum n G(n) / N with G(n) = psi(n) + (-1)^n / 2 (psi((n + 1) / 2) - psi(n / 2))."""
    total = counts.sum(-1)
    n = counts.clamp_min(1)
    sign = 1 - 2 * (n % 2)
    g = torch.digamma(n) + sign / 2 * (torch.digamma((n + 1) / 2) - torch.digamma(n / 2))
    return total.log() - (counts * g).sum(-1) / total
