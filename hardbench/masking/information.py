"""Mutual information of predictions and labels, in nats, from confusion counts, and the share of it of every class and channel."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import json_numbers, masked_key
from hardbench.metrics.classification import overall_accuracy
from hardbench.settings import ESTIMATES

RESAMPLES = 200  # of a bootstrap
INTERVAL = torch.tensor([0.025, 0.975], dtype=torch.float64)  # quantiles of a 95 % interval
PARTS = ("unknown", "easy", "hard")  # of the images, where their hardness is known


def plugin(confusion: Tensor) -> Tensor:
    """Plug-in estimate of I(Y; prediction), [...] of counts [..., K, K], in [0, ln K] nats; too high by about (K-1)^2 / (2 N)."""
    counts = confusion.double()
    return entropy(counts.sum(-1)) + entropy(counts.sum(-2)) - entropy(counts.flatten(-2))


def grassberger(confusion: Tensor) -> Tensor:
    """I(Y; prediction) from Grassberger's entropies (2003, arXiv:physics/0307138), [...] of counts [..., K, K], nats; may be below 0.

    An estimate for few samples per cell: of near-independent tables of 100 classes and 10 000 samples it is right within .15.
    """
    counts = confusion.double()
    return _corrected(counts.sum(-1)) + _corrected(counts.sum(-2)) - _corrected(counts.flatten(-2))


ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = dict(zip(ESTIMATES, (plugin, grassberger), strict=True))


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


def class_information(confusion: Tensor) -> Tensor:
    """KL(p(prediction | class) || p(prediction)) of every class, [..., K] of counts [..., K, K], nats, >= 0; I is its mean over samples.

    How much the predictions of a class differ from those of all samples; nan for a class without samples.
    """
    counts = confusion.double()
    given = counts / counts.sum(-1, keepdim=True)
    overall = (counts.sum(-2) / counts.sum((-2, -1))[..., None]).unsqueeze(-2)
    terms = torch.special.xlogy(given, given) - torch.special.xlogy(given, overall)
    return terms.nan_to_num(nan=0.0).sum(-1).where(counts.sum(-1) > 0, torch.nan)


def mask_arrays(
    confusion: Tensor, masks: Tensor, estimator: str, pairs: int, generator: Callable[[], torch.Generator]
) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of one layer, from confusions [R, S, K, K] of R networks under the same masks bool [S, n] of its channels.

    mi and accuracy [R, S], class_information [R, S, K] (plug-in, whatever the estimator), contribution [R, 3, n], ci95 [2] of the mean
    over sets and networks; and, for pairs > 1 and several sets, the strongest channels of each network, pairs [R, P], and their synergy
    [R, 3, P, P]: channels of different networks do not correspond.
    """
    mi = ESTIMATORS[estimator](confusion)
    contribution = torch.stack([contributions(masks, row, generator()) for row in mi])
    arrays = {
        "masks": masks,
        "kept": masks.sum(1),
        "confusion": confusion.int(),
        "mi": mi,
        "accuracy": overall_accuracy(confusion),
        "class_information": class_information(confusion),
        "contribution": contribution,
        "ci95": torch.tensor(bootstrap_mean(mi.mean(0), generator()), dtype=torch.float64),
    }
    if pairs > 1 and len(masks) > 1:
        strongest = contribution[:, 0].argsort(dim=1, descending=True)[:, :pairs]
        arrays["pairs"] = strongest
        arrays["synergy"] = torch.stack([synergies(masks, row, channels, generator()) for row, channels in zip(mi, strongest, strict=True)])
    return {name: value.numpy() for name, value in arrays.items()}


def bootstrap_mean(values: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of values [S]; nan for a single value."""
    if len(values) < 2:
        return math.nan, math.nan
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = torch.quantile(values.double()[rows].mean(1), INTERVAL).tolist()
    return low, high


def contributions(masks: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    """The contribution of each channel to the information, (estimate, low, high) [3, n] in nats, from masks bool [S, n] and values [S].

    The coefficients of a ridge regression of the values on the indicators of the kept channels, which are the Shapley values of the linear
    game that fits best; the penalty by generalised cross-validation. low and high are the 95 % bootstrap interval over the sets. With fewer
    than 4 n sets the coefficients are shrunk towards each other: only their order is meaningful. nan for a single set.
    """
    kept, values = masks.double(), values.double()
    if len(values) < 2:
        return kept.new_full((3, kept.shape[1]), torch.nan)
    penalty = _penalty(kept, values)
    estimate = _ridge(kept, values, penalty)
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    drawn = torch.stack([_ridge(kept[row], values[row], penalty) for row in rows])
    low, high = torch.quantile(drawn, INTERVAL, dim=0)
    return torch.stack([estimate, low, high])


def _penalty(kept: Tensor, values: Tensor) -> float:
    """The ridge penalty with the least generalised cross-validation error, of 25 between 1e-4 and 1e4 times the mean variance."""
    x, y = kept - kept.mean(0), values - values.mean()
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    grid = torch.logspace(-4, 4, 25, dtype=torch.float64) * max(float(s.square().mean()), 1e-12)
    shrink = s.square() / (s.square() + grid[:, None])  # [25, M]
    errors = (y - (shrink * (u.T @ y)) @ u.T).square().sum(1)
    freedom = (len(y) - 1 - shrink.sum(1)).clamp_min(1e-9)
    return float(grid[(errors / freedom.square()).argmin()])


def _ridge(kept: Tensor, values: Tensor, penalty: float) -> Tensor:
    """Coefficients [n] of a ridge regression of values [S] on indicators [S, n], both centred."""
    x, y = kept - kept.mean(0), values - values.mean()
    if x.shape[0] < x.shape[1]:
        gram = x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype)
        return x.T @ torch.linalg.solve(gram, y)
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def synergies(masks: Tensor, values: Tensor, channels: Tensor, generator: torch.Generator) -> Tensor:
    """The synergy of every pair of channels [P]: what both contribute beyond their sum, (estimate, low, high) [3, P, P] nats.

    Above 0 they need each other, below 0 they are redundant; nan on the diagonal. The slope of the ridge regression's residuals on the
    product of both centred indicators, with its 95 % bootstrap interval over the sets. With fewer than 4 n sets the regression explains
    too much and synergies are shrunk towards 0.
    """
    kept, values = masks.double(), values.double()
    residuals = values - values.mean() - (kept - kept.mean(0)) @ _ridge(kept, values, _penalty(kept, values))
    centred = (kept - kept.mean(0))[:, channels]
    products = centred[:, :, None] * centred[:, None, :]  # [S, P, P]
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    drawn = torch.stack([_slope(products[row], residuals[row]) for row in rows])
    low, high = torch.nanquantile(drawn, INTERVAL, dim=0)
    synergy = torch.stack([_slope(products, residuals), low, high])
    synergy[:, range(len(channels)), range(len(channels))] = torch.nan
    return synergy


def _slope(products: Tensor, residuals: Tensor) -> Tensor:
    """Slopes [P, P] of residuals [S] on products [S, P, P]."""
    centred = products - products.mean(0)
    return torch.einsum("spq,s->pq", centred, residuals - residuals.mean()) / centred.square().sum(0)


def per_repeat(layers: Sequence[int], arrays: Mapping[str, np.ndarray], r: int) -> dict[str, Any]:
    """One network's numbers as JSON, layer by layer, with the synergies of its strongest channels where they were measured."""
    full, entries = float(arrays["mi_full"][r]), []
    for layer in layers:
        mi = arrays[masked_key("mi", layer)][r]
        mean = float(mi.mean())
        entry: dict[str, Any] = {"layer_idx": layer, "mean_mi": mean, "std_mi": float(mi.std()), "delta_mi": full - mean}
        if (pairs := masked_key("pairs", layer)) in arrays:
            channels, synergy = arrays[pairs][r].tolist(), arrays[masked_key("synergy", layer)][r]
            entry["pairs"] = []
            for i, j in itertools.combinations(range(len(channels)), 2):
                estimate, *bounds = json_numbers(synergy[:, i, j])
                entry["pairs"].append({"channels": [channels[i], channels[j]], "synergy": estimate, "ci95": bounds})
        entries.append(entry)
    return {"repeat": r, "i_full": full, "accuracy_full": float(arrays["accuracy_full"][r]), "layers": entries}


def by_hardness(arrays: Mapping[str, np.ndarray], name: str, layer: int | None) -> dict[str, float]:
    """The mean information of the easy and of the hard images under a layer's masks (None: without), as <name>_easy and <name>_hard.

    Only where they were measured separately.
    """
    keys = {group: masked_key(f"mi_{group}", layer) for group in PARTS[1:]}
    means = {group: float(arrays[key].mean()) for group, key in keys.items() if key in arrays}
    return {f"{name}_{group}": mean for group, mean in means.items() if np.isfinite(mean)}
