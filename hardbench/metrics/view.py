"""The input of a layer metric: one layer of R networks; and the choice of metrics by name.

A metric is a function of a `LayerView`, registered in LAYER_METRICS; `reads` says what it needs beside activations (`labels`, `anchors`,
`after`). It returns one float64 per network, on the CPU: nan where it is undefined, as in a dead layer (every unit constant).
Networks are measured one by one on copies of their own, so that a network's number never depends on how many are stacked.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from hardbench.errors import ConfigError
from hardbench.registry import LAYER_METRICS
from hardbench.seeding import Seeds

T = TypeVar("T")
S = TypeVar("S")
LARGE = 2.0**15  # activations of more than this may overflow in sums of fourth powers
SCALE = 2.0**-40  # factor by which no finite activation overflows there
SLOW = frozenset({"participation_ratio", "ridge_r2"})  # left out by `fast`


@dataclass(frozen=True, eq=False)
class LayerView:
    """One layer of R networks on N held-out samples, with the M training samples that probes are fitted on.

    Quantities shared by metrics are remembered per tensor: pass the same tensor object as `activations` of a layer, `before` of the next
    and `after` of the one below, and the same `inputs` at every evaluation point. Nothing may write into them.
    """

    activations: Tensor  # [R, N, D]
    before: Tensor  # [R, N, D0] the layer before; for the first layer the inputs, [1, N, D0] will do
    inputs: Tensor  # [1, N, D_in] flattened and normalised
    labels: Tensor  # [N]
    num_classes: int
    fit_activations: Tensor  # [R, M, D]
    fit_labels: Tensor  # [M]
    after: Tensor | None = None  # [R, N, D2] the layer after; None for the last
    fit_after: Tensor | None = None  # [R, M, D2]
    scores: Tensor | None = None  # [R, N, K] G(h, c) of this layer; None without anchors
    next_scores: Tensor | None = None  # [R, N, K] of the layer after
    anchors: Tensor | None = None  # [R, K, D]
    tau: float = math.nan  # temperature of softmax(G / tau)
    seeds: Seeds = field(default_factory=lambda: Seeds(0))  # stream of the permutations, the same for all networks and layers

    def with_labels(self, labels: Tensor, fit_labels: Tensor) -> "LayerView":
        """The same layer under other labels, as for a shuffled-label band; what does not depend on labels is not computed again."""
        return replace(self, labels=labels, fit_labels=fit_labels)


def remembered(function: Callable[[S], T]) -> Callable[[S], T]:
    """The function of one object (a tensor or view), computed once per object and forgotten with it; tensors must not be written to."""
    results: WeakIdKeyDictionary = WeakIdKeyDictionary()  # by identity: tensors compare elementwise

    @functools.wraps(function)
    def call(argument: S) -> T:
        if argument not in results:
            results[argument] = function(argument)
        result: T = results[argument]
        return result

    return call


def member(stack: Tensor, r: int) -> Tensor:
    """Network r's float32 copy [N, D] of a stack [R, N, D], or the shared one of [1, N, D]. A copy, as products may round by alignment."""
    return stack[r if len(stack) > 1 else 0].to(torch.float32, copy=True)


def centred(stack: Tensor, r: int) -> Tensor:
    """Network r's samples [N, D] minus their mean, float32; a constant unit is exactly zero."""
    samples = member(stack, r)
    samples -= samples[0].clone()  # exact for a constant unit, whose rounded mean may differ from it
    samples -= samples.mean(0)
    return samples


@remembered
def variances(stack: Tensor) -> Tensor:
    """Variance (ddof 1) of every unit [R, D] of a stack [R, N, D], float64; exactly 0 for a constant unit."""
    rows = [centred(stack, r).square_().sum(0) for r in range(len(stack))]
    return torch.stack(rows).double() / (stack.shape[1] - 1)


@remembered
def alive(stack: Tensor) -> list[bool]:
    """True for each network whose layer is finite and has a unit that varies."""
    spread = variances(stack)
    return (spread.isfinite().all(1) & (spread > 0).any(1)).tolist()


def per_network(value: Callable[[int], Tensor | float], *stacks: Tensor) -> Tensor:
    """value(r) of every network as float64 [R]; nan where one of the stacks is dead or not finite. The first stack says how many."""
    defined = [all(alive(stack)[r if len(stack) > 1 else 0] for stack in stacks) for r in range(len(stacks[0]))]
    values = torch.tensor([float(value(r)) if sound else math.nan for r, sound in enumerate(defined)], dtype=torch.float64)
    return torch.where(values.isfinite(), values, math.nan)  # numbers at float32's end may pass it on the way


def undefined(view: LayerView) -> Tensor:
    """nan for every network [R]: what a metric returns where the layer lacks what it reads."""
    return torch.full((len(view.activations),), math.nan, dtype=torch.float64)


def scaled_down(samples: Tensor) -> Tensor:
    """The samples, times a power of two where they are so large that the squares of their products leave float32."""
    low, high = samples.aminmax()
    return samples * SCALE if max(-low, high) > LARGE else samples


def squared_frobenius(x: Tensor, y: Tensor) -> float:
    """|X'Y|_F^2 = tr(XX' YY') of [N, D] and [N, D2]."""
    norm = _squared_frobenius(x, y)
    return norm if math.isfinite(norm) else _squared_frobenius(x * SCALE, x * SCALE if y is x else y * SCALE) / SCALE**4


def _squared_frobenius(x: Tensor, y: Tensor) -> float:
    """By the products of features or those of samples, whichever are fewer."""
    (n, d), d2 = x.shape, y.shape[1]
    if d * d2 <= n * (d + d2):
        return float((x.T @ y).square_().sum(dtype=torch.float64))
    gram = x @ x.T
    return float(gram.mul_(gram if y is x else y @ y.T).sum(dtype=torch.float64))


@remembered
def self_frobenius(stack: Tensor) -> list[float]:
    """|X'X|_F^2 of every network's centred activations."""
    return [squared_frobenius(x, x) for x in (centred(stack, r) for r in range(len(stack)))]


def select(words: Sequence[str], has_anchors: bool) -> list[str]:
    """Metric names for the words `all`, `fast` (without the slow ones), `none` or names, sorted; ConfigError if one needs anchors."""
    allowed = [name for name in LAYER_METRICS if has_anchors or "anchors" not in LAYER_METRICS[name].reads]
    groups = {"all": set(allowed), "fast": set(allowed) - SLOW, "none": set[str]()}
    chosen: set[str] = set()
    for word in words:
        name = word.strip().lower().replace("-", "_")
        if name not in groups and LAYER_METRICS[name].name not in allowed:
            raise ConfigError(f"layer_metrics: {word}; needs a model with anchors (gmlp), others have {', '.join(allowed)}")
        chosen |= groups.get(name, {name})
    return sorted(chosen)
