"""Scores [R, N] at the end of training: from the probabilities p, the logits z and the label y at each network's last measured point."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hardbench.hard_samples.recording import Recording
from hardbench.registry import SCORES


@SCORES.add("loss")
def loss(recording: Recording) -> Tensor:
    """-ln p_y: cross entropy of the label in nats, at least 0."""
    return -logsigmoid(recording.at_end(recording.traces.log_odds))


@SCORES.add("softmax_confidence")
def softmax_confidence(recording: Recording) -> Tensor:
    """1 - max p, in [0, 1 - 1/K]; does not read the label. Hendrycks & Gimpel 2017 (arXiv:1610.02136)."""
    predicted = recording.probabilities.argmax(-1, keepdim=True)
    return recording.probabilities.scatter(-1, predicted, 0).sum(-1)  # the others' sum, which keeps its digits where max p is nearly 1


@SCORES.add("entropy")
def entropy(recording: Recording) -> Tensor:
    """-sum p ln p in nats, in [0, ln K]; does not read the label."""
    return torch.special.entr(recording.probabilities).sum(-1)


@SCORES.add("margin")
def margin(recording: Recording) -> Tensor:
    """-(p_y - max_{k != y} p_k), in [-1, 1]; above 0 where another class is more probable than the label."""
    return -probability_margin(recording.probabilities, recording.labels)


@SCORES.add("confidence")
def confidence(recording: Recording) -> Tensor:
    """-max z: minus the largest logit, of any sign; does not read the label. Pukowski & Lu 2024 (arXiv:2409.14401)."""
    return -recording.last.double().amax(-1)


@SCORES.add("energy")
def energy(recording: Recording) -> Tensor:
    """-ln sum exp z, of any sign; does not read the label. Liu et al. 2020, eq. 4 at temperature 1 (arXiv:2010.03759)."""
    return -recording.last.double().logsumexp(-1)


@SCORES.add("prototypicality", reads=("class_cosine",))
def prototypicality(recording: Recording) -> Tensor:
    """1 - cos(h, mean of h over the class of the label), h the last hidden activations, in [0, 2].

    The class means are those of the trained labels over the samples that the network trained on. After the prototypes of Carlini et al.
    2019 (arXiv:1910.13427) and of Sorscher et al. 2022 (arXiv:2206.14486), who take self-supervised activations and cluster centres.
    """
    assert recording.class_cosine is not None
    return 1 - recording.at_end(recording.class_cosine).double()


@SCORES.add("wrong_at_end")
def wrong_at_end(recording: Recording) -> Tensor:
    """1 for samples misclassified at the last point, else 0. A score of two values: ranks and average precisions have ties."""
    wrong = (~recording.at_end(recording.traces.right)).double()
    return wrong.masked_fill(~recording.measured.any(1, keepdim=True), torch.nan)


@SCORES.add("stragglers", reads=("stragglers",))
def stragglers(recording: Recording) -> Tensor:
    """1 for samples misclassified at the inversion point of their class, else 0. Ciceri et al. 2024 (arXiv:2303.05161)."""
    assert recording.stragglers is not None
    return recording.stragglers.double()


def probability_margin(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The label's probability minus the largest other one, [...] in [-1, 1], from probabilities [..., N, K] and labels [N]."""
    rows = labels.expand(probabilities.shape[:-1]).unsqueeze(-1)
    return probabilities.gather(-1, rows).squeeze(-1) - probabilities.scatter(-1, rows, -torch.inf).amax(-1)
