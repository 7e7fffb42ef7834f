"""Batched products and sums over R networks whose numbers do not depend on R.

A matrix-product kernel rounds by the address its operands start at. A network alone starts at an aligned address; in a stack
only the members whose offset is a multiple of 64 bytes do. Where the sizes put members elsewhere, each is multiplied on an
aligned copy of its own, forward and backward, as it would be alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

ALIGNED = 16  # floats in 64 bytes
GRAIN = 1 << 15  # elements from which torch shares one sum among threads


class _Apart(Function):
    """A stack [R, ...] as R tensors [1, ...] of their own, laid out as they were."""

    @staticmethod
    def forward(ctx: Any, stack: Tensor) -> tuple[Tensor, ...]:
        return tuple(stack[r : r + 1].clone() for r in range(len(stack)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return torch.cat(grads)


class _Together(Function):
    """R tensors [1, ...] as a stack [R, ...]."""

    @staticmethod
    def forward(ctx: Any, *members: Tensor) -> Tensor:
        return torch.cat(members)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad[r : r + 1].clone() for r in range(len(grad)))


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a @ b (+ bias [R, 1, N]) of every network, [R, M, N] from [R, M, K] and [R, K, N]: member r as if it stood alone.

    `out` is memory for the result, and may be ignored; without a bias and outside autograd only.
    """
    repeats, rows, inner = a.shape
    columns = b.shape[2]
    apart = any(size % ALIGNED for size in (rows * inner, inner * columns, rows * columns))
    # threads share one product of odd sizes in other ways than several
    shared = torch.get_num_threads() > 1 and any(size % ALIGNED for size in (rows, inner, columns))
    if repeats == 1 or not (apart or shared):
        return torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b)
    left, right = _Apart.apply(a), _Apart.apply(b)
    if bias is None:
        return _Together.apply(*map(torch.bmm, left, right))
    return _Together.apply(*map(torch.baddbmm, _Apart.apply(bias), left, right))


def row_means(values: Tensor) -> Tensor:
    """Mean of every row, [R] of [R, B]; long rows one by one, since threads share the sum of one row, but not of several."""
    return values.mean(1) if values.shape[1] < GRAIN else torch.stack([row.mean() for row in values])


def sum_over(values: Tensor, dim: int) -> Tensor:
    """Sum over a short axis, in one order wherever in the tensor a number stands: torch's own depends on that, but for the last axis."""
    return values.movedim(dim, -1).contiguous().sum(-1)
