"""What predictions tell about labels, in nats, from confusions; which classes and which channels it hangs on."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench.array_keys import masked_key
from hardbench.settings import ESTIMATES

RESAMPLES = 200  # of a bootstrap
PARTS = ("unknown", "easy", "hard")  # of the images, where their hardness is given


def plugin(confusion: Tensor) -> Tensor:
    """I(Y; prediction) of the observed shares, [...] of counts [..., K, K], in [0, ln K] nats; too high by about (K-1)^2 / (2 N)."""
    counts = confusion.double()
    return entropy(counts.sum(-1)) + entropy(counts.sum(-2)) - entropy(counts.flatten(-2))


def grassberger(confusion: Tensor) -> Tensor:
    """I(Y; prediction) from Grassberger's entropies (2003, arXiv:physics/0307138), [...] of counts [..., K, K], nats; may fall below 0.

    His estimate is for few samples per cell: near-independent tables of 100 classes and 10 000 samples come out right within .15.
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

    How far the predictions of a class stand out from those of all; nan for a class without samples.
    """
    counts = confusion.double()
    given = counts / counts.sum(-1, keepdim=True)
    overall = (counts.sum(-2) / counts.sum((-2, -1))[..., None]).unsqueeze(-2)
    return (
        (torch.special.xlogy(given, given) - torch.special.xlogy(given, overall))
        .nan_to_num(nan=0.0)
        .sum(-1)
        .where(counts.sum(-1) > 0, torch.nan)
    )


def accuracy(confusion: Tensor) -> Tensor:
    """Share of right predictions, [...] of counts [..., K, K], in [0, 1]; nan without samples."""
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1).double() / confusion.sum((-2, -1))


def of_sets(
    confusion: Tensor, masks: Tensor, estimator: str, pairs: int, generator: Callable[[], torch.Generator]
) -> dict[str, np.ndarray[Any, Any]]:
    """What follows from confusions [R, S, K, K] of R networks under sets of a layer's channels, bool [S, n], that all of them share.

    mi and accuracy [R, S], class_information [R, S, K] (of the observed shares, whatever the estimator), contribution [R, 3, n], ci95 [2]
    of the mean over sets and networks; and, for pairs > 1 and several sets, each network's own strongest channels, pairs [R, P], and
    their synergy [R, 3, P, P]: channels of different networks do not correspond.
    """
    mi = ESTIMATORS[estimator](confusion)
    contribution = torch.stack([contributions(masks, row, generator()) for row in mi])
    found = {
        "masks": masks,
        "kept": masks.sum(1),
        "confusion": confusion.int(),
        "mi": mi,
        "accuracy": accuracy(confusion),
        "class_information": class_information(confusion),
        "contribution": contribution,
        "ci95": torch.tensor(bootstrap_mean(mi.mean(0), generator()), dtype=torch.float64),
    }
    if pairs > 1 and len(masks) > 1:
        strongest = contribution[:, 0].argsort(dim=1, descending=True)[:, :pairs]
        found["pairs"] = strongest
        found["synergy"] = torch.stack([synergies(masks, row, own, generator()) for row, own in zip(mi, strongest, strict=True)])
    return {name: value.numpy() for name, value in found.items()}


def bootstrap_mean(values: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The 95 % interval of the mean of values [S], by drawing the values anew; nan for a single value."""
    if len(values) < 2:
        return math.nan, math.nan
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    low, high = torch.quantile(values.double()[rows].mean(1), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def contributions(masks: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
    """What each channel adds to the information, (estimate, low, high) [3, n] in nats, from masks bool [S, n] and values [S].

    The coefficients of a ridge regression of the values on the indicators of the kept channels, which are the Shapley values of the linear
    game that fits best; the penalty by generalised cross-validation. low and high bound 95 % of the coefficients over subsets drawn anew.
    With fewer than 4 n subsets the coefficients are pulled together: read them as an order. nan for a single subset.
    """
    kept, values = masks.double(), values.double()
    if len(values) < 2:
        return kept.new_full((3, kept.shape[1]), torch.nan)
    penalty = _penalty(kept, values)
    estimate = _ridge(kept, values, penalty)
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    drawn = torch.stack([_ridge(kept[row], values[row], penalty) for row in rows])
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    return torch.stack([estimate, low, high])


def _penalty(kept: Tensor, values: Tensor) -> float:
    """The ridge penalty with the least generalised cross-validation error, of 25 between 1e-4 and 1e4 times the mean variance."""
    x, y = kept - kept.mean(0), values - values.mean()
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    grid = torch.logspace(-4, 4, 25, dtype=torch.float64) * max(float(s.square().mean()), 1e-12)
    shrink = s.square() / (s.square() + grid[:, None])  # [25, M]
    left = (y - (shrink * (u.T @ y)) @ u.T).square().sum(1)
    freedom = (len(y) - 1 - shrink.sum(1)).clamp_min(1e-9)
    return float(grid[(left / freedom.square()).argmin()])


def _ridge(kept: Tensor, values: Tensor, penalty: float) -> Tensor:
    x, y = kept - kept.mean(0), values - values.mean()
    if x.shape[0] < x.shape[1]:
        gram = x @ x.T + penalty * torch.eye(len(x), dtype=x.dtype)
        return x.T @ torch.linalg.solve(gram, y)
    return torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)


def synergies(masks: Tensor, values: Tensor, channels: Tensor, generator: torch.Generator) -> Tensor:
    """What two channels tell together beyond what each adds, (estimate, low, high) [3, P, P] nats, for channels [P]; nan on the diagonal.

    Above 0 they need each other, below 0 they tell the same. The slope of what the ridge regression leaves on the product of both centred
    indicators, with its 95 % interval over subsets drawn anew. With fewer than 4 n subsets the regression explains too much and leaves
    too little: pulled towards 0.
    """
    kept, values = masks.double(), values.double()
    rest = values - values.mean() - (kept - kept.mean(0)) @ _ridge(kept, values, _penalty(kept, values))
    centred = (kept - kept.mean(0))[:, channels]
    products = centred[:, :, None] * centred[:, None, :]  # [S, P, P]
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    drawn = torch.stack([_slope(products[row], rest[row]) for row in rows])
    low, high = torch.nanquantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0)
    found = torch.stack([_slope(products, rest), low, high])
    found[:, range(len(channels)), range(len(channels))] = torch.nan
    return found


def _slope(products: Tensor, rest: Tensor) -> Tensor:
    apart = products - products.mean(0)
    return torch.einsum("spq,s->pq", apart, rest - rest.mean()) / apart.square().sum(0)


def pairs_of(channels: np.ndarray[Any, Any], synergy: np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Synergies (estimate, low, high) [3, P, P] of channels [P] as a list, pair by pair."""
    places = itertools.combinations(range(len(channels)), 2)
    both = [([int(channels[i]), int(channels[j])], known(synergy[:, i, j])) for i, j in places]
    return [{"channels": pair, "synergy": estimate, "ci95": bounds} for pair, (estimate, *bounds) in both]


def known(values: np.ndarray[Any, Any]) -> Any:
    """For JSON, which has no nan: numbers, None for those that are not finite."""
    found = np.asarray(values, dtype=object)
    found[~np.isfinite(values)] = None
    return found.tolist()


def of_repeat(layers: Sequence[int], arrays: Mapping[str, np.ndarray], r: int) -> dict[str, Any]:
    """One network's numbers as JSON, layer by layer, and the synergies of its strongest channels where they were asked for."""
    full, found = float(arrays["mi_full"][r]), []
    for layer in layers:
        mi = arrays[masked_key("mi", layer)][r]
        own: dict[str, Any] = {
            "layer_idx": layer,
            "mean_mi": float(mi.mean()),
            "std_mi": float(mi.std()),
            "delta_mi": full - float(mi.mean()),
        }
        if (pairs := masked_key("pairs", layer)) in arrays:
            own["pairs"] = pairs_of(arrays[pairs][r], arrays[masked_key("synergy", layer)][r])
        found.append(own)
    return {"repeat": r, "i_full": full, "accuracy_full": float(arrays["accuracy_full"][r]), "layers": found}


def apart(arrays: Mapping[str, np.ndarray], name: str, layer: int | None) -> dict[str, float]:
    """The mean information of easy and of hard images under a layer's masks (None: without), where they were measured apart."""
    keys = {group: masked_key(f"mi_{group}", layer) for group in PARTS[1:]}
    means = {group: float(arrays[key].mean()) for group, key in keys.items() if key in arrays}
    return {f"{name}_{group}": mean for group, mean in means.items() if np.isfinite(mean)}
