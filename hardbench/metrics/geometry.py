"""The effective dimension of a layer."""

from torch import Tensor

from hardbench.metrics.view import LayerView, per_network, self_frobenius, variances
from hardbench.registry import LAYER_METRICS


@LAYER_METRICS.add("participation_ratio")
def participation_ratio(view: LayerView) -> Tensor:
    """Effective dimension (tr C)^2 / tr(C^2) of the covariance C, per network [R], from 1 (a line) to min(D, N - 1); nan for a dead layer.

    Isotropic samples give about D n / (n + D + 1) with n = N - 1: compare it between equal N only.
    """
    scale = (view.activations.shape[1] - 1) ** 2
    return per_network(lambda r: variances(view.activations)[r].sum() ** 2 * scale / self_frobenius(view.activations)[r], view.activations)
