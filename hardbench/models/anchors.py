"""Class anchors as a head, and the scores of activations against them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from hardbench.products import product, sum_over


class Anchors(nn.Module):
    """Fixed class anchors E [K, D] as a head: logits = G(h, e_c) / tau."""

    vectors: Tensor

    def __init__(self, vectors: Tensor, similarity: str, tau: float):
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.similarity = similarity
        self.tau = tau

    def forward(self, activations: Tensor) -> Tensor:
        """Scores over the temperature, [..., B, K]."""
        return similarity_scores(activations, self.vectors, self.similarity, self.tau)


def similarity_scores(activations: Tensor, anchors: Tensor, similarity: str, tau: float = 1) -> Tensor:
    """G / tau [..., B, K] of activations [..., B, D] and anchors [..., K, D]; G is the cosine in [-1, 1] or minus the squared distance.

    The result is a view of [..., K, B]: the classes are few, so they are the slow axis, and the product and everything done to the
    classes runs along the samples.
    """
    if similarity == "cosine":
        columns = _Cosine.apply(activations, anchors, tau)
    else:
        wide = torch.promote_types(activations.dtype, torch.float32)  # small differences of three large numbers
        across = 2 * _times(anchors.to(activations.dtype), activations.transpose(-1, -2)).to(wide)
        columns = (across - activations.to(wide).square().sum(-1).unsqueeze(-2) - anchors.square().sum(-1, keepdim=True)) / tau
    return columns.transpose(-1, -2)


def _times(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b) if a.ndim == b.ndim == 3 else a @ b


class _Cosine(Function):
    """Cosines of activations with anchors over tau, [..., K, B], in float32 or wider; anchors get no gradient.

    With S = h.e / (|h||e| tau) the gradient is dS e / (|h||e| tau) - h (dS.S) / |h|^2: two passes over the activations, where
    autograd through norm and quotient makes seven.
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor, anchors: Tensor, tau: float) -> Tensor:
        wide = torch.promote_types(activations.dtype, torch.float32)
        norms = torch.linalg.vector_norm(activations, dim=-1, dtype=wide).clamp_min_(1e-12).unsqueeze(-2)
        scale = torch.linalg.vector_norm(anchors, dim=-1, keepdim=True).mul_(tau) * norms
        low = anchors.to(activations.dtype)
        cosines = _times(low, activations.transpose(-1, -2)).to(wide) / scale
        ctx.save_for_backward(activations, low, norms, scale, cosines)
        return cosines

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        activations, anchors, norms, scale, cosines = ctx.saved_tensors
        along = sum_over(grad * cosines, -2).unsqueeze(-2).div_(norms.square())
        across = _times((grad / scale).to(activations.dtype).transpose(-1, -2), anchors)
        return across.addcmul_(activations, along.to(activations.dtype).transpose(-1, -2), value=-1), None, None


class StackedAnchors(Anchors):
    """Anchors [R, K, D] of R networks."""

    def __init__(self, members: Sequence[Anchors]):
        super().__init__(torch.stack([m.vectors for m in members]), members[0].similarity, members[0].tau)

    def tensors(self, r: int) -> dict[str, Tensor]:
        """View of member r's anchors, by name."""
        return {"vectors": self.vectors[r]}
