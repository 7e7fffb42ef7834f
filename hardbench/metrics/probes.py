"""Linear probes: ridge regression of the classes, and of the next layer, on a layer.

Fitted on training samples, scored on held-out ones, as in Alain & Bengio 2016 (arXiv:1610.01644).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from hardbench.metrics.classification import class_report, confusion_counts
from hardbench.metrics.view import LayerView, member, per_network, remembered, undefined, variances
from hardbench.registry import LAYER_METRICS

PENALTY = 1e-3  # lambda per fitted sample


@LAYER_METRICS.add("probe_accuracy", reads=("labels",))
def probe_accuracy(view: LayerView) -> Tensor:
    """Held-out accuracy of a ridge classifier on the layer, per network [R], in [0, 1], higher is better.

    Features standardised by the fitted samples, one-hot targets, lambda 1e-3 M. Permuted labels give
    chance, sum_k P(predicted k) P(label k). nan for a dead layer.
    """
    return per_network(lambda r: (_predictions(view)[r] == view.labels).double().mean(), view.activations, view.fit_activations)


@LAYER_METRICS.add("f1_score", reads=("labels",))
def f1_score(view: LayerView) -> Tensor:
    """F1 of probe_accuracy's classifier, classes weighted by their share of the labels, per network [R], in [0, 1], higher is better."""

    def value(r: int) -> Tensor:
        confusion = confusion_counts(view.labels, _predictions(view)[r][None], view.num_classes)
        shares = confusion.sum(-1) / len(view.labels)
        return (class_report(confusion)["f1"] * shares).nansum()

    return per_network(value, view.activations, view.fit_activations)


@LAYER_METRICS.add("ridge_r2", reads=("after",))
def ridge_r2(view: LayerView) -> Tensor:
    """Held-out R^2 of the next layer from this one by ridge, per network [R], at most 1; 1 is a linear map, below 0 worse than the mean.

    1 - SSE / SST over all units together, so units count by their variance. nan for the last layer, or where either layer is dead.
    """
    after, fit_after = view.after, view.fit_after
    if after is None or fit_after is None:
        return undefined(view)

    def value(r: int) -> Tensor:
        predicted = _predicted(view, r, member(fit_after, r))
        error = predicted.sub_(member(after, r)).square_().mean(0, dtype=torch.float64).sum()
        return 1 - error / (variances(after)[r].sum() * (1 - 1 / len(predicted)))

    return per_network(value, view.activations, view.fit_activations, after, fit_after)


@dataclass(frozen=True)
class _Ridge:
    """Ridge regression on the standardised features of one network, factorised and free of targets."""

    shift: Tensor  # [D]
    scale: Tensor  # [D] 1 / std, 0 for a constant unit
    factor: Tensor  # Cholesky factor of Z'Z + lambda [D, D], or of ZZ' + lambda [M, M] where samples are fewer

    def predict(self, fitted: Tensor, targets: Tensor, samples: Tensor) -> Tensor:
        """Predictions [N, P] for samples [N, D] after a fit of targets [M, P] on the factor's own samples [M, D]; overwrites all three."""
        mean = targets.mean(0)
        targets -= mean
        z = self.standardise(fitted)
        if z.shape[1] == len(self.factor):
            weights = torch.cholesky_solve((targets.T @ z).T.double(), self.factor).float()
        else:
            weights = z.T @ torch.cholesky_solve(targets.double(), self.factor).float()
        return (self.standardise(samples) @ weights).add_(mean)

    def standardise(self, samples: Tensor) -> Tensor:
        """Samples [N, D] in the units of the fitted ones, in place."""
        return samples.sub_(self.shift).mul_(self.scale)


@remembered
def _ridges(stack: Tensor) -> list[_Ridge]:
    """The factorised ridge of every network's fitted activations [R, M, D]."""
    return [_factorise(member(stack, r), variances(stack)[r]) for r in range(len(stack))]


def _factorise(fitted: Tensor, variance: Tensor) -> _Ridge:
    count, width = fitted.shape
    shift = fitted[0] + (fitted - fitted[0]).mean(0)
    scale = torch.where(variance > 0, variance.rsqrt(), 0).float()
    z = fitted.sub_(shift).mul_(scale)
    system = (z.T @ z if width <= count else z @ z.T).double()
    system.diagonal().add_(PENALTY * count)
    return _Ridge(shift, scale, torch.linalg.cholesky_ex(system).L)  # _ex: a network that diverged must not raise


@remembered
def _predictions(view: LayerView) -> list[Tensor]:
    """Classes [N] predicted for every network's held-out samples."""
    one_hot = functional.one_hot(view.fit_labels, view.num_classes).float()
    return [_predicted(view, r, one_hot.clone()).argmax(1) for r in range(len(view.fit_activations))]


def _predicted(view: LayerView, r: int, targets: Tensor) -> Tensor:
    """Predictions [N, P] for network r's held-out samples, of a fit of targets [M, P], which are overwritten."""
    return _ridges(view.fit_activations)[r].predict(member(view.fit_activations, r), targets, member(view.activations, r))
