"""Layer metrics estimated as published, on ONE training mini-batch: they show the bias of a small batch and are not meant as measurements.

Each takes a view whose `activations` are those of the batch. Fitted and scored on the same 128 samples of 1 024 units, the probe is
perfect on random labels; 50 bins find two nats in independent data; CKA is biased upward; entropy sums over units and stops at 0.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from hardbench.metrics import probes
from hardbench.metrics.information import binned_information, unit_entropies
from hardbench.metrics.view import LayerView, centred, per_network, remembered, self_frobenius, squared_frobenius, variances


def summed_gaussian_entropy(view: LayerView) -> Tensor:
    """Sum of the units' Gaussian entropies, not below 0, per network [R], nats; one dead unit makes it 0."""

    def value(r: int) -> float:
        dead = bool((variances(view.activations)[r] == 0).any())
        return 0.0 if dead else max(0.0, float(unit_entropies(view.activations, r).sum()))

    return per_network(value, view.activations)


def biased_cka(view: LayerView) -> Tensor:
    """Linear CKA with the layer before by the biased HSIC, per network [R], in [0, 1]. Kornblith et al. 2019, eq. 5 (arXiv:1905.00414)."""

    def value(r: int) -> float:
        r0 = r if len(view.before) > 1 else 0
        cross = squared_frobenius(centred(view.before, r), centred(view.activations, r))
        return cross / math.sqrt(self_frobenius(view.before)[r0] * self_frobenius(view.activations)[r])

    return per_network(value, view.activations, view.before)


@remembered
def _fitted_on_itself(view: LayerView) -> LayerView:
    return replace(view, fit_activations=view.activations, fit_labels=view.labels)


PUBLISHED: dict[str, Callable[[LayerView], Tensor]] = {
    # of a ridge classifier, on the very samples it was fitted on, in [0, 1]
    "probe_accuracy": lambda view: probes.probe_accuracy(_fitted_on_itself(view)),
    "f1_score": lambda view: probes.f1_score(_fitted_on_itself(view)),
    # plug-in information of the first components over 50 bins, uncorrected, nats
    "mutual_information": lambda view: binned_information(view, bins=50, permutations=0),
    "gaussian_entropy": summed_gaussian_entropy,
    "linear_cka": biased_cka,
}
