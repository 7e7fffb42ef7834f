"""Overlap: cosine between class-mean vectors."""

import torch
from torch import Tensor

from hardbench.products import product


def overlap(means: Tensor, centre: Tensor | None = None) -> Tensor:
    """Cosine of every pair of class means, [..., K, K] in [-1, 1], symmetric with diagonal 1, from means [..., K, D].

    With `centre` [..., D] (the mean over all samples) the centred form: -1/(K-1) for a simplex (Papyan, Han, Donoho 2020).
    nan in rows and columns of a class without samples or whose mean is 0.
    """
    vectors = means.double() if centre is None else means.double() - centre.double().unsqueeze(-2)
    unit = vectors / torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    cosine = (unit @ unit.transpose(-1, -2)).clamp(-1, 1)
    same = torch.eye(cosine.shape[-1], dtype=torch.bool, device=cosine.device)
    return torch.where(same & ~cosine.isnan(), 1.0, cosine)


def class_sums(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sum of the rows [R, B, D] of each class, [R, K, D], as one product with the one-hot labels [B]."""
    onehot = torch.nn.functional.one_hot(labels, num_classes).to(rows.dtype)
    return product(onehot.t().expand(len(rows), -1, -1), rows)
