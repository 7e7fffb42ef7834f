"""Confusion counts and accuracies, overall and per class."""

import torch
from torch import Tensor


def confusion_counts(labels: Tensor, predicted: Tensor, num_classes: int) -> Tensor:
    """Counts [R, K, K] (true class, predicted class) from labels [B] and predictions [R, B]."""
    repeats = len(predicted)
    offset = torch.arange(repeats, device=labels.device)[:, None] * num_classes**2
    cells = offset + labels * num_classes + predicted
    return torch.bincount(cells.flatten(), minlength=repeats * num_classes**2).view(repeats, num_classes, num_classes)


def overall_accuracy(confusion: Tensor) -> Tensor:
    """Share of right predictions, [...] of counts [..., K, K], in [0, 1]; nan without samples."""
    return confusion.diagonal(dim1=-2, dim2=-1).sum(-1).double() / confusion.sum((-2, -1))


def accuracy_per_class(confusion: Tensor) -> Tensor:
    """Share of each class predicted right, [R, K] in [0, 1]; nan for a class without samples."""
    return confusion.diagonal(dim1=-2, dim2=-1) / confusion.sum(-1)


def class_report(confusion: Tensor) -> dict[str, Tensor]:
    """precision, recall and f1 per class, [R, K] in [0, 1] each; nan for a class that was never predicted or has no samples."""
    right = confusion.diagonal(dim1=-2, dim2=-1).double()
    predicted, samples = confusion.sum(-2), confusion.sum(-1)
    return {"precision": right / predicted, "recall": right / samples, "f1": 2 * right / (predicted + samples)}


def nearest_mean_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, num_classes: int) -> float:
    """Accuracy in [0, 1] of the rule that gives test inputs [M, ...] the class whose mean of the training inputs [N, ...] is nearest.

    The limit of heavily corrupted training (arXiv 2606.11319). A class without training samples is never chosen.
    """
    sums = torch.zeros(num_classes, train[0].numel(), dtype=torch.float64)
    for rows, row_labels in zip(train.split(4096), labels.split(4096), strict=True):
        sums.index_add_(0, row_labels, rows.flatten(1).double())
    means = sums / torch.bincount(labels, minlength=num_classes).double()[:, None]
    scores = test.flatten(1).double() @ means.t() - means.square().sum(1) / 2  # the nearest has the largest
    return (scores.nan_to_num(-torch.inf).argmax(1) == truth).double().mean().item()
