"""Class anchors as a head, and the scores of activations against them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from hardbench.products import product


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
        return similarity_scores(activations, self.vectors, self.similarity) / self.tau


def similarity_scores(activations: Tensor, anchors: Tensor, similarity: str) -> Tensor:
    """G [..., B, K] of activations [..., B, D] and anchors [..., K, D]: cosine in [-1, 1] or minus the squared distance."""
    if similarity == "cosine":
        return _Cosine.apply(activations, anchors)
    return (
        2 * _times(activations, anchors.transpose(-1, -2))
        - activations.square().sum(-1, keepdim=True)
        - anchors.square().sum(-1).unsqueeze(-2)
    )


def _times(a: Tensor, b: Tensor) -> Tensor:
    return product(a, b) if b.ndim == 3 else a @ b


class _Cosine(Function):
    """Cosines in float32 of activations with anchors, whose own gradient is never asked for.

    With G = h.e / (|h||e|) the gradient is dG e / (|h||e|) - h (dG.G) / |h|^2: two passes over the activations, where the
    graph of norm and quotient takes seven.
    """

    @staticmethod
    def forward(ctx: Any, activations: Tensor, anchors: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(activations.float(), dim=-1, keepdim=True).clamp_min(1e-12)
        scale = norms * torch.linalg.vector_norm(anchors, dim=-1).unsqueeze(-2)
        cosines = _times(activations, anchors.transpose(-1, -2).to(activations.dtype)).float() / scale
        ctx.save_for_backward(activations, anchors, norms, scale, cosines)
        return cosines

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        activations, anchors, norms, scale, cosines = ctx.saved_tensors
        along = -(grad * cosines).sum(-1, keepdim=True) / norms.square()
        across = _times((grad / scale).to(activations.dtype), anchors.to(activations.dtype))
        return across.addcmul_(activations, along.to(activations.dtype)), None


class StackedAnchors(Anchors):
    """Anchors [R, K, D] of R networks."""

    def __init__(self, members: Sequence[Anchors]):
        super().__init__(torch.stack([m.vectors for m in members]), members[0].similarity, members[0].tau)

    def tensors(self, r: int) -> dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]]:
        """View of member r's anchors."""
        return {"vectors": (self.vectors[r], lambda rows: rows)}
