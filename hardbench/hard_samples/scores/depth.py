"""Prediction depth: the layer from which on a sample's neighbours vote as the network predicts."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hardbench.hard_samples.recording import Recording
from hardbench.registry import SCORES

NEIGHBOURS = 30  # Baldock et al. 2021
BLOCK = 1 << 24  # similarities at once


@SCORES.add("prediction_depth", reads=("network",))
def prediction_depth(recording: Recording, activations: Callable[[int], Iterable[Tensor]]) -> Tensor:
    """The first hidden layer, counted from 0, from which on the probes of all layers vote as the network predicts; 0 to L, L for none.

    A probe is the vote of the 30 nearest training samples in the layer by cosine, the sample itself left out; of equal votes the first
    class wins. The prediction is that of the last point. activations(r) yields the hidden layers of network r from the input side on, each
    [N, D], on the recording's samples in their order, in eval mode; a generator will do, since a layer is looked at once. Neighbours are
    the samples that the network trained on. Baldock et al. 2021 (arXiv:2106.09647).
    """
    depths = torch.full(recording.logits[:, 0, :, 0].shape, torch.nan, dtype=torch.float64)
    for r in recording.measured.any(1).nonzero().flatten().tolist():
        one = recording.repeat(r)
        trained = torch.ones_like(recording.labels, dtype=torch.bool) if one.membership is None else one.membership[0]
        votes = (neighbour_votes(layer, recording.labels, trained, one.last.shape[-1]) for layer in activations(r))
        depths[r] = depth(one.last[0].argmax(-1), votes)
    return depths


def depth(predicted: Tensor, votes: Iterable[Tensor]) -> Tensor:
    """One more than the last layer whose votes [N] differ from the predicted classes [N], 0 where all agree; float64 [N]."""
    depths = torch.zeros(len(predicted), dtype=torch.float64)
    for layer, classes in enumerate(votes):
        depths[classes != predicted] = layer + 1
    return depths


def neighbour_votes(layer: Tensor, labels: Tensor, trained: Tensor, classes: int, neighbours: int = NEIGHBOURS) -> Tensor:
    """The class that most of each sample's nearest trained samples have, int64 [N], by the cosine of activations [N, D].

    labels: int64 [N]; trained: bool [N], the samples that vote, none of them for itself. All of them where they are fewer than
    `neighbours`. Computed in blocks of samples, on the device of the layer.
    """
    units = normalize(layer.float(), dim=1)
    rows = trained.nonzero().flatten().to(units.device)
    voters, classes_of = units[rows], labels.to(units.device)[rows]
    place = torch.full((len(units),), -1, device=units.device)
    place[rows] = torch.arange(len(rows), device=units.device)
    size = max(1, BLOCK // max(1, len(rows)))
    votes = []
    for first in range(0, len(units), size):
        similarity = units[first : first + size] @ voters.T  # [B, M]
        own = place[first : first + size]
        itself = (own >= 0).nonzero().flatten()
        similarity[itself, own[itself]] = -torch.inf
        nearest = similarity.topk(min(neighbours, len(rows)), dim=1)
        counted = nearest.values.isfinite().float()  # a sample itself is drawn in only where there are no more voters
        tally = torch.zeros(len(similarity), classes, device=units.device).scatter_add_(1, classes_of[nearest.indices], counted)
        votes.append(tally.argmax(1).cpu())
    return torch.cat(votes)
