"""Loss, accuracy, confusion and overlaps on a set of samples, all from one forward pass over it."""

import functools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hardbench.data.batches import Batches
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise
from hardbench.metrics.classification import accuracy_per_class, confusion_counts
from hardbench.metrics.overlap import class_sums, overlap
from hardbench.models.gmlp import GreedyStack
from hardbench.training.learners import Learner, cross_entropy

BATCH = 500  # samples per forward pass: fixed, so that no number depends on memory or R


def evaluate(learner: Learner, samples: Samples, standardise: Standardise) -> dict[str, Tensor]:
    """The arrays that a run records at an evaluation point, from one forward pass over all samples, on the learner's device.

    loss (nats) and accuracy [R], both per class [R, K], confusion (counts) [R, K, K], and the overlaps of the class means in the last
    hidden layer [R, K, K], uncentred and centred.
    """
    parts = (_sums(learner, inputs, labels) for inputs, labels in batches(samples, standardise))
    # added in turn: the rounding of torch.sum over the first axis depends on an element's place, and so on R
    loss_sums, confusion, feature_sums = (functools.reduce(torch.add, column) for column in zip(*parts, strict=True))
    counts = confusion[0].sum(-1)  # samples per class
    total = counts.sum().double()
    means = feature_sums / counts[:, None]
    return {
        "loss": loss_sums.sum(-1) / total,
        "accuracy": confusion.diagonal(dim1=-2, dim2=-1).sum(-1) / total,
        "loss_per_class": loss_sums / counts,
        "accuracy_per_class": accuracy_per_class(confusion.double()),
        "confusion": confusion,
        "overlap_dynamic": overlap(means),
        "overlap_dynamic_centred": overlap(means, feature_sums.sum(-2) / total),
    }


def batches(samples: Samples, standardise: Standardise) -> Iterator[tuple[Tensor, Tensor]]:
    """Standardised inputs and labels of all samples, in order."""
    for raw, labels in zip(samples.inputs.split(BATCH), samples.labels.split(BATCH), strict=True):
        yield standardise(raw), labels


def _sums(learner: Learner, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over one batch: loss per class [R, K], confusion [R, K, K], features of the last hidden layer per class [R, K, D]."""
    features, logits = learner.forward(inputs)
    repeats, _, num_classes = logits.shape
    with torch.inference_mode():
        losses = cross_entropy(logits, labels.expand(repeats, -1)).double()
        # not a product: the rounding of a matrix-vector kernel depends on the alignment of a network's rows
        loss_sums = (losses.unsqueeze(1) * one_hot(labels, num_classes).t().contiguous()).sum(-1)
        confusion = confusion_counts(labels, logits.argmax(-1), num_classes)
        return loss_sums, confusion, class_sums(features.float(), labels, num_classes).double()


def layer_accuracies(learner: Learner, samples: Samples, standardise: Standardise) -> Tensor | None:
    """Accuracy of every layer of greedy networks [R, L] over all samples; None for networks whose layers do not predict."""
    if not isinstance(learner.networks, GreedyStack):
        return None
    right = torch.zeros((), dtype=torch.float64, device=learner.device)
    for inputs, labels in batches(samples, standardise):
        activations = learner.activations(inputs)
        with torch.inference_mode(), learner.arithmetic():
            logits = [learner.networks.head(hidden) for hidden in activations]
        right = right + torch.stack([(layer.argmax(-1) == labels).sum(-1) for layer in logits], -1)
    return right / len(samples)


def reaches(learner: Learner, trained_on: Batches, target: float) -> Tensor:
    """Per repeat [R], True if its accuracy on the samples and labels that it trains on is at least `target`, in eval mode on clean inputs.

    Ends early when none can reach it.
    """
    allowed = (1 - target) * trained_on.count + 1e-6
    wrong = torch.zeros(learner.networks.repeats, device=learner.device)
    own, first = trained_on.membership, 0
    for inputs, labels in batches(trained_on.train, trained_on.standardise):
        rows = slice(first, first + len(labels))
        first = rows.stop
        missed = learner.predict(inputs).argmax(-1) != (labels if trained_on.labels is None else trained_on.labels[:, rows])
        wrong += (missed if own is None else missed & own[:, rows]).sum(-1)
        if bool((wrong > allowed).all()):
            break
    return wrong <= allowed
