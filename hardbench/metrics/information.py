"""Information between a layer and the inputs, and the entropy of its units."""

import math

import torch
from torch import Tensor

from hardbench.metrics.view import LayerView, alive, centred, per_network, remembered, scaled_down, variances
from hardbench.registry import LAYER_METRICS
from hardbench.seeding import Seeds

BINS, PERMUTATIONS = 30, 10
BLOCK, SWEEPS = 8, 8  # subspace iteration: vectors kept, passes over the samples


@LAYER_METRICS.add("mutual_information")
def mutual_information(view: LayerView) -> Tensor:
    """Information between the first principal components of inputs and layer, per network [R], nats, 0 for independent ones.

    30 equal-width bins over the samples' own range, plug-in estimate minus its mean over 10 permutations of the samples (so it can fall
    a little below 0; below .02 from 5 000 samples on). A lower bound of what one direction carries, not I(X; T). nan for a dead layer.
    """
    return binned_information(view, BINS, PERMUTATIONS)


@LAYER_METRICS.add("gaussian_entropy")
def gaussian_entropy(view: LayerView) -> Tensor:
    """Mean differential entropy 1/2 ln(2 pi e v) of the live units were they Gaussian, per network [R], nats per unit, of either sign.

    A dead unit (v = 0) would make it -inf: it is left out here and counted in dead_units. nan where all are dead.
    """
    return per_network(lambda r: unit_entropies(view.activations, r).mean(), view.activations)


@LAYER_METRICS.add("dead_units")
def dead_units(view: LayerView) -> Tensor:
    """Share of units that are constant over the samples, per network [R], in [0, 1], lower is better; 1 for a dead layer."""
    spread = variances(view.activations).cpu()
    return torch.where(spread.isfinite().all(1), (spread == 0).double().mean(1), math.nan)


def unit_entropies(stack: Tensor, r: int) -> Tensor:
    """1/2 ln(2 pi e v) of network r's live units."""
    spread = variances(stack)[r]
    return 0.5 * (2 * math.pi * math.e * spread[spread > 0]).log()


def binned_information(view: LayerView, bins: int, permutations: int) -> Tensor:
    """Plug-in information of the two binned first components minus its mean over permutations of the samples (none: the plug-in), [R]."""
    generator = view.seeds.child("mutual_information").generator()
    count = view.activations.shape[1]
    rows = [torch.arange(count)] + [torch.randperm(count, generator=generator) for _ in range(permutations)]
    orders = torch.stack(rows).to(view.inputs.device)  # [1 + permutations, N]

    def value(r: int) -> Tensor:
        x = _binned(first_components(view.inputs)[0], bins)[orders]
        estimates = _plug_in(x, _binned(first_components(view.activations)[r], bins), bins)
        return estimates[0] - estimates[1:].sum() / max(permutations, 1)

    return per_network(value, view.activations, view.inputs)


def _plug_in(x: Tensor, y: Tensor, bins: int) -> Tensor:
    """sum p ln(p / (p_x p_y)) [P] of bins x [P, N] against bins y [N], nats."""
    table = torch.arange(len(x), device=x.device)[:, None] * bins * bins + x * bins + y
    joint = torch.bincount(table.flatten(), minlength=len(x) * bins * bins).view(-1, bins, bins).double() / x.shape[1]
    outer = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    return torch.where(joint > 0, joint * (joint / outer).log(), 0).sum((1, 2))


def _binned(values: Tensor, bins: int) -> Tensor:
    """Index of the equal-width bin over the values' own range, [N]."""
    low, high = values.aminmax()
    return ((values - low) / (high - low) * bins).long().clamp(0, bins - 1)


@remembered
def first_components(stack: Tensor) -> list[Tensor]:
    """Samples projected on their network's first principal direction, [N] each (none for a dead layer); the sign is arbitrary but fixed."""
    return [_first_component(scaled_down(centred(stack, r))) if fine else stack.new_zeros(0) for r, fine in enumerate(alive(stack))]


def _first_component(x: Tensor) -> Tensor:
    """Rayleigh-Ritz after subspace iteration from a fixed start: needs no [D, D] matrix, and a network gets the same alone or stacked."""
    count, width = x.shape
    start = torch.randn(width, min(BLOCK, width, count), generator=Seeds(0).child("first_component").generator())
    basis = start.to(x.device)
    for _ in range(SWEEPS):
        basis = torch.linalg.qr((basis.T @ x.T @ x).T).Q  # thin factors on the left: several times faster than x.T @ (x @ basis)
    ritz = basis.T @ x.T
    top: Tensor = torch.linalg.eigh((ritz @ ritz.T).double()).eigenvectors[:, -1].float()
    return top @ ritz
