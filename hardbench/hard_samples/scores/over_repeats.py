"""Scores [N] that need all networks at once, at the last measured point of each, and the laws that their bootstrap repeats.

A law is a function of the recording and of weights [B, R], how often each network counts, and gives [B, N]: the score is that of weights
1, its bootstrap that of resampled networks. Networks that were never measured are left out.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.scores.at_end import probability_margin
from hardbench.registry import SCORES

BLOCK = 1 << 22  # numbers at once
Law = Callable[[Recording, Tensor], Tensor]


@SCORES.add("disagreement", reads=("repeats", "several"))
def disagreement(recording: Recording) -> Tensor:
    """Mean Jensen-Shannon divergence of the networks' probabilities over all pairs, [N] in nats, in [0, ln 2]; does not read the label.

    JS(p, q) = H((p + q) / 2) - (H(p) + H(q)) / 2. After the ensemble agreement of Carlini et al. 2019 (arXiv:1910.13427).
    """
    return of_all(recording, _disagreement)


@SCORES.add("memorization", reads=("repeats", "several", "membership"))
def memorization(recording: Recording) -> Tensor:
    """Pr_r[right | trained on it] - Pr_r[right | not], [N] in [-1, 1]; nan without a network of either kind.

    Feldman & Zhang 2020, eq. 1 (arXiv:2008.03703).
    """
    return of_all(recording, _memorization)


@SCORES.add("consistency", reads=("repeats", "membership"))
def consistency(recording: Recording) -> Tensor:
    """1 - Pr_r[right | not trained on it], [N] in [0, 1]; nan where every network trained on it.

    Jiang et al. 2021 (arXiv:2002.03206), whose C-score is that share, averaged over the size of the training set: here at one size.
    """
    return of_all(recording, _consistency)


@SCORES.add("self_confidence", reads=("repeats", "membership"))
def self_confidence(recording: Recording) -> Tensor:
    """1 - p_y of the out-of-sample probabilities p, [N] in [0, 1]; nan where every network trained on it.

    Northcutt et al. 2021 (arXiv:1911.00068); cleanlab's score of this name is p_y.
    """
    return of_all(recording, _self_confidence)


@SCORES.add("normalised_margin", reads=("repeats", "membership"))
def normalised_margin(recording: Recording) -> Tensor:
    """-(p_y - max_{k != y} p_k) of the out-of-sample probabilities p, [N] in [-1, 1]; nan where every network trained on it.

    Northcutt et al. 2021 (arXiv:1911.00068); cleanlab's normalized_margin is (p_y - max_{k != y} p_k + 1) / 2.
    """
    return of_all(recording, _normalised_margin)


def out_of_sample(recording: Recording) -> Tensor:
    """Mean probabilities [N, K] at the end of the networks that were not trained on a sample; nan where every network was."""
    return of_all(recording, _held_out)


def of_all(recording: Recording, law: Law) -> Tensor:
    """A law of all networks, each counted once, [N, ...]."""
    return by_blocks(recording, law, torch.ones(1, len(recording.logits), dtype=torch.float64), lambda values: values[0])


def by_blocks(recording: Recording, law: Law, weights: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """A law's values [B, n, ...] reduced to [n, ...] block by block of samples, [N, ...]; weights: [B, R]."""
    measured = recording.measured.any(1)
    if not measured.all():
        recording, weights = recording.networks(measured), weights[:, measured]
    networks, _, samples, classes = recording.logits.shape
    size = max(1, BLOCK // (max(1, networks, len(weights)) * max(classes, networks)))
    blocks = (recording.samples(slice(first, first + size)) for first in range(0, samples, size))
    return torch.cat([reduce(law(block, weights)) for block in blocks])


def _disagreement(recording: Recording, weights: Tensor) -> Tensor:
    """Pairs of two copies of one network, which a bootstrap draws, do not count."""
    probabilities = recording.probabilities.transpose(1, 2).clamp(min=torch.finfo(torch.float64).tiny).contiguous()  # [R, K, N]
    entropy = _entropy(probabilities)
    divergences, pairs = [entropy[:0]], [weights[:, :0]]
    for i in range(len(entropy) - 1):
        mixed = _entropy((probabilities[i + 1 :] + probabilities[i]).div_(2))
        divergences.append(mixed - (entropy[i + 1 :] + entropy[i]) / 2)
        pairs.append(weights[:, i + 1 :] * weights[:, i, None])
    counted = torch.cat(pairs, 1)
    return counted @ torch.cat(divergences).clamp_(min=0) / counted.sum(1, keepdim=True)  # a rounding can fall below 0


def _entropy(probabilities: Tensor) -> Tensor:
    """Entropy in nats over axis 1, [R, N], of probabilities above 0."""
    return -probabilities.log().mul_(probabilities).sum(1)


def _memorization(recording: Recording, weights: Tensor) -> Tensor:
    held_out = _left_out(recording)
    right = _right(recording)
    return _mean(weights, ~held_out, right) - _mean(weights, held_out, right)


def _consistency(recording: Recording, weights: Tensor) -> Tensor:
    return 1 - _mean(weights, _left_out(recording), _right(recording))


def _self_confidence(recording: Recording, weights: Tensor) -> Tensor:
    labels = recording.labels.expand(len(recording.probabilities), -1).unsqueeze(-1)
    return 1 - _mean(weights, _left_out(recording), recording.probabilities.gather(-1, labels).squeeze(-1))


def _normalised_margin(recording: Recording, weights: Tensor) -> Tensor:
    return -probability_margin(_held_out(recording, weights), recording.labels)


def _held_out(recording: Recording, weights: Tensor) -> Tensor:
    """Mean out-of-sample probabilities [B, N, K]."""
    _, samples, classes = recording.probabilities.shape
    chosen = _left_out(recording).unsqueeze(-1).expand(-1, -1, classes).flatten(1)
    return _mean(weights, chosen, recording.probabilities.flatten(1)).view(-1, samples, classes)


def _left_out(recording: Recording) -> Tensor:
    """True where a network did not train on a sample, bool [R, N]."""
    assert recording.membership is not None
    return ~recording.membership


def _right(recording: Recording) -> Tensor:
    return (recording.last.argmax(-1) == recording.labels).double()


def _mean(weights: Tensor, chosen: Tensor, values: Tensor) -> Tensor:
    """Weighted mean [B, M] of the values [R, M] of those networks that are chosen, bool [R, M]; nan where there are none."""
    return (weights @ (values * chosen)) / (weights @ chosen.double())


LAWS: dict[str, Law] = {
    "disagreement": _disagreement,
    "memorization": _memorization,
    "consistency": _consistency,
    "self_confidence": _self_confidence,
    "normalised_margin": _normalised_margin,
}
