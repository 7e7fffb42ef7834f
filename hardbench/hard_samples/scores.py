"""Hardness scores from logits: Dynamics -> [R, N], higher is harder. They use the logits at the end of training, except aum."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from hardbench.hard_samples.dynamics import Dynamics
from hardbench.registry import SCORES


@SCORES.add("stragglers")
def stragglers(dynamics: Dynamics) -> Tensor:
    """1 for samples misclassified at the inversion point of their class, else 0 (Ciceri et al. 2024, arXiv:2303.05161).

    Where no inversion was searched for, misclassified at the last point. A score of two values: ranks and average precisions have ties.
    """
    if dynamics.stragglers is not None:
        return dynamics.stragglers.float()
    return (dynamics.last.argmax(-1) != dynamics.labels).float()


@SCORES.add("confidence")
def confidence(dynamics: Dynamics) -> Tensor:
    """Minus the largest logit (Pukowski & Lu 2024, arXiv:2409.14401), of any sign."""
    return -dynamics.last.amax(-1)


@SCORES.add("energy")
def energy(dynamics: Dynamics) -> Tensor:
    """Minus the logarithm of the sum of exp over the logits (Liu et al. 2020, arXiv:2010.03759), of any sign."""
    return -dynamics.last.logsumexp(-1)


@SCORES.add("softmax_confidence")
def softmax_confidence(dynamics: Dynamics) -> Tensor:
    """Minus the largest probability, in [-1, -1/K] (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return -dynamics.last.softmax(-1).amax(-1)


@SCORES.add("loss")
def loss(dynamics: Dynamics) -> Tensor:
    """Cross entropy of the label in nats, at least 0. The one score here, beside stragglers and aum, that reads the label."""
    last = dynamics.last
    return cross_entropy(last.flatten(0, 1), dynamics.labels.repeat(len(last)), reduction="none").view(last.shape[:2])


@SCORES.add("aum")
def aum(dynamics: Dynamics) -> Tensor:
    """Minus the margin averaged over the points measured (Pleiss et al. 2020, arXiv:2001.10528), of any sign."""
    return -dynamics.margins.nanmean(1)
