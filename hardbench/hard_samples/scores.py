"""Hardness scores from logits: Recording -> [R, N], higher is harder. They use the logits at the end of training, except aum."""

from torch import Tensor
from torch.nn.functional import cross_entropy

from hardbench.hard_samples.recording import Recording
from hardbench.registry import SCORES


@SCORES.add("stragglers", reads=("stragglers",))
def stragglers(recording: Recording) -> Tensor:
    """1 for samples misclassified at the inversion point of their class, else 0 (Ciceri et al. 2024, arXiv:2303.05161)."""
    assert recording.stragglers is not None
    return recording.stragglers.float()


@SCORES.add("wrong_at_end")
def wrong_at_end(recording: Recording) -> Tensor:
    """1 for samples misclassified at the last point, else 0. A score of two values: ranks and average precisions have ties."""
    return (recording.last.argmax(-1) != recording.labels).float()


@SCORES.add("confidence")
def confidence(recording: Recording) -> Tensor:
    """Minus the largest logit (Pukowski & Lu 2024, arXiv:2409.14401), of any sign."""
    return -recording.last.amax(-1)


@SCORES.add("energy")
def energy(recording: Recording) -> Tensor:
    """Minus the logarithm of the sum of exp over the logits (Liu et al. 2020, arXiv:2010.03759), of any sign."""
    return -recording.last.logsumexp(-1)


@SCORES.add("softmax_confidence")
def softmax_confidence(recording: Recording) -> Tensor:
    """Minus the largest probability, in [-1, -1/K] (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""
    return -recording.last.softmax(-1).amax(-1)


@SCORES.add("loss")
def loss(recording: Recording) -> Tensor:
    """Cross entropy of the label in nats, at least 0. The one score here, beside stragglers and aum, that reads the label."""
    last = recording.last
    return cross_entropy(last.flatten(0, 1), recording.labels.repeat(len(last)), reduction="none").view(last.shape[:2])


@SCORES.add("aum")
def aum(recording: Recording) -> Tensor:
    """Minus the margin averaged over the points measured (Pleiss et al. 2020, arXiv:2001.10528), of any sign."""
    return -recording.margins.nanmean(1)
