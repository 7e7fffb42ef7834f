"""Batched products, means and sums over R networks, such that a network's numbers do not depend on R.

The rounding of a matrix-product kernel depends on the address at which its operands start. A network alone starts at an aligned address;
in a stack only the members do whose offset is a multiple of 64 bytes. Where the sizes put members elsewhere, each is multiplied on an
aligned copy of its own, forward and backward, as it would be alone.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

ALIGNED = 16  # floats in 64 bytes
GRAIN = 1 << 15  # elements from which torch shares one sum among threads


class _Together(Function):
    """R tensors [1, ...] as a stack [R, ...]; each gets a gradient of its own, not a part of the stack's."""

    @staticmethod
    def forward(ctx: Any, *members: Tensor) -> Tensor:
        return torch.cat(members)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(grad[r : r + 1].clone() for r in range(len(grad)))


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a @ b (+ bias [R, 1, N]) of every network, [R, M, N] from [R, M, K] and [R, K, N]: member r as if it stood alone."""
    repeats, rows, inner = a.shape
    columns = b.shape[2]
    apart = any(size % ALIGNED for size in (rows * inner, inner * columns, rows * columns))
    # threads divide one product of odd sizes in another way than several products
    shared = torch.get_num_threads() > 1 and any(size % ALIGNED for size in (rows, inner, columns))
    if repeats == 1 or not (apart or shared):
        return torch.bmm(a, b) if bias is None else torch.baddbmm(bias, a, b)
    left, right = _members(a), _members(b)
    if bias is None:
        return _Together.apply(*map(torch.bmm, left, right))
    return _Together.apply(*map(torch.baddbmm, _members(bias), left, right))


def _members(stack: Tensor) -> list[Tensor]:
    """A stack [R, ...] as R tensors [1, ...] of their own, laid out as they were."""
    return [member.clone() for member in stack.split(1)]


def row_means(values: Tensor) -> Tensor:
    """Mean of every row, [R] of [R, B]; long rows one by one, since threads divide the sum of one row, but not those of several."""
    return values.mean(1) if values.shape[1] < GRAIN else torch.stack([row.mean() for row in values])


def sum_over(values: Tensor, dim: int) -> Tensor:
    """Sum over a short axis in a fixed order: torch's own order depends on an element's place in the tensor unless the axis is the last."""
    return values.movedim(dim, -1).contiguous().sum(-1)
