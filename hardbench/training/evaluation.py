"""One pass over a set of samples gives everything that is measured of it."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise, unit_of
from hardbench.metrics.classification import accuracy_per_class, confusion_counts
from hardbench.metrics.overlap import class_sums, overlap
from hardbench.models.gmlp import GreedyStack
from hardbench.training.learners import Learner, cross_entropy

BATCH = 500  # samples per forward pass: fixed, so that no number depends on memory or R


@dataclass(frozen=True)
class Evaluation:
    """Sums over one set of samples: loss per class [R, K], confusion [R, K, K], features per class [R, K, D], hits per layer [R, L]."""

    loss_sums: Tensor
    confusion: Tensor
    feature_sums: Tensor
    layer_hits: Tensor | None

    @property
    def counts(self) -> Tensor:
        """Samples per class [K]."""
        return self.confusion[0].sum(-1)

    def arrays(self) -> dict[str, Tensor]:
        """What a run records at an evaluation point: loss and accuracy [R], per class [R, K], confusion, overlaps [R, K, K]."""
        total = self.counts.sum().double()
        means = self.feature_sums / self.counts[:, None]
        found = {
            "loss": self.loss_sums.sum(-1) / total,
            "accuracy": self.confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / total,
            "loss_per_class": self.loss_sums / self.counts,
            "accuracy_per_class": accuracy_per_class(self.confusion.double()),
            "confusion": self.confusion,
            "overlap_dynamic": overlap(means),
            "overlap_dynamic_centred": overlap(means, self.feature_sums.sum(-2) / total),
        }
        if self.layer_hits is not None:
            found["layer_accuracy"] = self.layer_hits / total
        return found


def evaluate(learner: Learner, samples: Samples, standardise: Standardise, num_classes: int) -> Evaluation:
    """Loss, confusion and class sums of the last hidden representation over all samples, from one forward pass."""
    parts = []
    for start in range(0, len(samples), BATCH):
        raw, labels = samples.inputs[start : start + BATCH], samples.labels[start : start + BATCH]
        parts.append(_part(learner, standardise(raw, unit_of(raw)), labels, num_classes))
    columns = zip(*parts, strict=True)
    # one after the other: torch.sum over the first axis rounds by the place of an element, and so by R
    sums = [None if column[0] is None else functools.reduce(torch.add, column) for column in columns]
    assert sums[0] is not None and sums[1] is not None and sums[2] is not None
    return Evaluation(sums[0], sums[1], sums[2], sums[3])


def _part(learner: Learner, inputs: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    activations, logits = learner.look(inputs)
    repeats = len(logits)
    with torch.inference_mode():
        losses = cross_entropy(logits, labels.expand(repeats, -1)).double()
        # not a product: a matrix-vector kernel rounds by the alignment of a network's rows
        loss_sums = (losses.unsqueeze(1) * one_hot(labels, num_classes).t().contiguous()).sum(-1)
        confusion = confusion_counts(labels, logits.argmax(-1), num_classes)
        features = class_sums(activations[-1].float(), labels, num_classes).double()
        layers = None
        if isinstance(learner.networks, GreedyStack):
            with learner.arithmetic():
                each = [*learner.networks.layer_logits(activations[:-1]), logits]
            layers = torch.stack([(layer.argmax(-1) == labels).sum(-1) for layer in each], -1)
    return loss_sums, confusion, features, layers


def reaches(learner: Learner, samples: Samples, standardise: Standardise, target: float) -> Tensor:
    """Which repeats [R] have accuracy of at least `target` on the samples, in eval mode; stops as soon as none can."""
    allowed = (1 - target) * len(samples) + 1e-6
    wrong = torch.zeros(learner.networks.repeats, device=learner.device)
    for start in range(0, len(samples), BATCH):
        raw, labels = samples.inputs[start : start + BATCH], samples.labels[start : start + BATCH]
        wrong += (learner.predict(standardise(raw, unit_of(raw))).argmax(-1) != labels).sum(-1)
        if bool((wrong > allowed).all()):
            break
    return wrong <= allowed
