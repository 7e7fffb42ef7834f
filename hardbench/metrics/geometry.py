"""The geometry of a layer's samples: their effective dimension, and the similarity of two layers whatever their rotation and scale."""

import math

from torch import Tensor

from hardbench.metrics.view import LayerView, centred, per_network, self_frobenius, squared_frobenius, variances
from hardbench.registry import LAYER_METRICS


@LAYER_METRICS.add("participation_ratio")
def participation_ratio(view: LayerView) -> Tensor:
    """Effective dimension (tr C)^2 / tr(C^2) of the covariance C, per network [R], from 1 (a line) to min(D, N - 1); nan for a dead layer.

    Isotropic samples give about D n / (n + D + 1) with n = N - 1: compare it between equal N only.
    """
    scale = (view.activations.shape[1] - 1) ** 2
    return per_network(lambda r: variances(view.activations)[r].sum() ** 2 * scale / self_frobenius(view.activations)[r], view.activations)


@LAYER_METRICS.add("linear_cka")
def linear_cka(view: LayerView) -> Tensor:
    """Linear CKA between a layer and the one before it (for the first layer: the inputs), per network [R], at most about 1; 0 is unrelated.

    1 is equal up to rotation and scale. Debiased HSIC, so few samples do not inflate it (it can fall a little below 0). nan where either
    layer is dead. Kornblith et al. 2019, eq. 5 (arXiv:1905.00414); Nguyen, Raghu & Kornblith 2021 (arXiv:2010.15327).
    """
    activations, before = view.activations, view.before

    def value(r: int) -> float:
        r0 = r if len(before) > 1 else 0
        x, y = centred(before, r), centred(activations, r)
        norms = debiased_hsic(x, x, self_frobenius(before)[r0]) * debiased_hsic(y, y, self_frobenius(activations)[r])
        return debiased_hsic(x, y, squared_frobenius(x, y)) / math.sqrt(norms) if norms > 0 else math.nan

    return per_network(value, activations, before)


def debiased_hsic(x: Tensor, y: Tensor, frobenius: float) -> float:
    """Unbiased linear HSIC of centred x [N, D] and y [N, D2], given frobenius = |x'y|_F^2; nan for N < 4.

    HSIC_1 of Song et al. 2012 (JMLR 13) for K = xx', L = yy' with zero diagonals: x'y, row norms and row sums suffice, no N x N matrix.
    """
    n = len(x)
    if n < 4:
        return math.nan
    norms, sums = zip(*(_rows(z) for z in (x, y)), strict=True)
    trace = frobenius - float(norms[0] @ norms[1])
    total = float(sums[0].sum() * sums[1].sum()) / ((n - 1) * (n - 2))
    return (trace + total - 2 * float(sums[0] @ sums[1]) / (n - 2)) / (n * (n - 3))


def _rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonal of xx' [N], and its row sums without the diagonal [N], float64."""
    norms = x.square().sum(1).double()
    return norms, (x @ x.sum(0)).double() - norms
