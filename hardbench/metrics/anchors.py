"""A layer's activations h beside the anchors e_c: predictions by the scores G(h, c), and angles.

Shoham & Permuter 2020 (arXiv:2007.08140).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from hardbench.metrics.view import LayerView, member, per_network, remembered, scaled_down, undefined
from hardbench.registry import LAYER_METRICS

FLOOR = math.log(1e-12)  # probabilities are clamped at 1e-12


@LAYER_METRICS.add("accuracy", reads=("anchors", "labels"))
def accuracy(view: LayerView) -> Tensor:
    """Share of samples whose highest-scoring anchor is their class's, per network [R], in [0, 1], higher is better.

    A plain MLP's anchors are untrained, so it has none; probe_accuracy compares the two.
    """
    return _per_table(view, view.scores, lambda scores: (scores.argmax(1) == view.labels).double().mean())


@LAYER_METRICS.add("cross_entropy", reads=("anchors", "labels"))
def cross_entropy(view: LayerView) -> Tensor:
    """Cross entropy of the labels under softmax(G / tau), per network [R], nats, in [0, 27.6], lower is better; ln K is chance."""
    return _per_table(view, view.scores, lambda scores: -_of_class(_log_q(scores, view.tau), view.labels).clamp(min=FLOOR).mean())


@LAYER_METRICS.add("cross_entropy_raw", reads=("anchors", "labels"))
def cross_entropy_raw(view: LayerView) -> Tensor:
    """Cross entropy of the labels under softmax(G), without tau, per network [R], nats, lower is better.

    The published form; with cosine scores in [-1, 1] it can't fall below ln(1 + (K - 1) e^-2).
    """
    return cross_entropy(replace(view, tau=1.0))


@LAYER_METRICS.add("alignment", reads=("anchors", "labels"))
def alignment(view: LayerView) -> Tensor:
    """Mean cosine of an activation and its class's anchor, per network [R], in [-1, 1]; an activation of length 0 counts 0.

    Non-negative activations against anchors of random signs reach about .71.
    """
    return _per_table(view, _cosines(view), lambda cosines: _of_class(cosines, view.labels).double().mean())


@LAYER_METRICS.add("margin", reads=("anchors", "labels"))
def margin(view: LayerView) -> Tensor:
    """Mean of cos(h, e_y) minus the largest cosine with another class's anchor, per network [R], in [-2, 2], higher is better."""

    def value(cosines: Tensor) -> Tensor:
        others = cosines.scatter(1, view.labels[:, None], -math.inf).amax(1)
        return (_of_class(cosines, view.labels) - others).double().mean()

    return _per_table(view, _cosines(view), value)


@LAYER_METRICS.add("ace_regularizer", reads=("anchors", "after"))
def ace_regularizer(view: LayerView) -> Tensor:
    """H(q_i, q_i+1) of this layer's predictions and the next one's, q = softmax(G / tau), per network [R], nats; higher is further apart.

    nan for the last layer. The term that the local loss subtracts; in Shoham & Permuter 2020 (arXiv:2007.08140) the arguments are swapped.
    """
    scores, after, tau = view.scores, view.next_scores, view.tau
    if scores is None or after is None:
        return undefined(view)
    return per_network(lambda r: -(_log_q(scores[r], tau).exp() * _log_q(after[r], tau).clamp(min=FLOOR)).sum(1).mean(), view.activations)


def _per_table(view: LayerView, tables: Sequence[Tensor] | Tensor | None, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The value of every network's table [N, K] of scores or cosines, [R]; nan for a layer without anchors, which has no tables."""
    if tables is None:
        return undefined(view)
    return per_network(lambda r: value(tables[r]), view.activations)


def _log_q(scores: Tensor, tau: float) -> Tensor:
    return functional.log_softmax(scores.double() / tau, 1)


def _of_class(values: Tensor, labels: Tensor) -> Tensor:
    return values.gather(1, labels[:, None]).squeeze(1)


@remembered
def _cosines(view: LayerView) -> list[Tensor] | None:
    """cos(h, e_c) [N, K] of every network; None without anchors."""
    if view.anchors is None:
        return None
    pairs = [(scaled_down(member(view.activations, r)), member(view.anchors, r)) for r in range(len(view.activations))]
    return [functional.normalize(h) @ functional.normalize(e).T for h, e in pairs]
