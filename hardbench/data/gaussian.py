"""Gaussian classes: without information in the labels (null), or with a prescribed overlap and a known Bayes accuracy."""

import math
from pathlib import Path

import torch
from torch import Tensor

from hardbench.data.samples import Samples, Split
from hardbench.errors import ConfigError
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import SourceSettings


@DATASETS.add(
    "gaussian",
    reads=(
        "gaussian_mode",
        "gaussian_shape",
        "gaussian_classes",
        "gaussian_train",
        "gaussian_test",
        "gaussian_mean",
        "gaussian_std",
        "gaussian_cosine",
        "gaussian_separation",
    ),
)
def load(settings: SourceSettings, root: Path, seeds: Seeds) -> Split:
    """The split of `gaussian_train` and `gaussian_test` samples per class, float32 [N, *gaussian_shape], the classes taking turns.

    Mode null: N(gaussian_mean, gaussian_std) in every feature of every class. Mode overlap: gaussian_separation mu_c + gaussian_std N(0, 1)
    with unit means mu_c, any two of them at gaussian_cosine. Means, train and test have streams of their own.
    bayes_accuracy is that of the classes `class_map` keeps; None where it merges some.
    """
    shape, classes = settings.gaussian_shape, settings.gaussian_classes
    if len(shape) not in (1, 3):
        raise ConfigError(f"gaussian_shape: {','.join(map(str, shape))}; C,H,W or D")
    separation, cosine = settings.gaussian_separation or 0.0, settings.gaussian_cosine or 0.0
    centres = torch.full((classes, math.prod(shape)), settings.gaussian_mean)
    if settings.gaussian_mode == "overlap":
        if settings.gaussian_mean:
            raise ConfigError(f"gaussian_mean: {settings.gaussian_mean}; mode null only, in mode overlap the means follow from the cosine")
        centres = (separation * class_means(classes, math.prod(shape), cosine, seeds.child("means"))).float()
    parts = []
    for name, count in (("train", settings.gaussian_train), ("test", settings.gaussian_test)):
        labels = torch.arange(classes).repeat(count)
        noise = torch.randn(len(labels), centres.shape[1], generator=seeds.child(name).generator())
        inputs = centres[labels] + settings.gaussian_std * noise
        parts.append(Samples.of(inputs.reshape(-1, *shape), labels))
    kept = list((settings.class_map or dict(enumerate(range(classes)))).values())
    bayes = bayes_accuracy(len(kept), cosine, separation, settings.gaussian_std) if len(set(kept)) == len(kept) else None
    return Split(parts[0], parts[1], tuple(map(str, range(classes))), bayes_accuracy=bayes)


def class_means(classes: int, features: int, cosine: float, seeds: Seeds) -> Tensor:
    """Unit vectors [K, D] (float64) with the same cosine between any two, in a random orientation; ConfigError if there are none.

    The rows of a Q^T + b sum(Q^T) for Q [D, K] with orthonormal columns: the symmetric root of their Gram matrix (1 - rho) I + rho 11^T.
    """
    lowest = -1 / (classes - 1)
    if not lowest - 1e-9 <= cosine <= 1:
        raise ConfigError(f"gaussian_cosine: {cosine}; from {lowest:.6g} (-1 / ({classes} - 1)) to 1 for {classes} classes")
    if features < classes:
        raise ConfigError(f"gaussian_shape: {features} features; at least as many as the {classes} classes")
    basis = torch.linalg.qr(torch.randn(features, classes, generator=seeds.generator(), dtype=torch.float64)).Q.T
    a = math.sqrt(1 - cosine)
    b = (math.sqrt(max(0.0, 1 + (classes - 1) * cosine)) - a) / classes
    return a * basis + b * basis.sum(dim=0)


def bayes_accuracy(classes: int, cosine: float, separation: float, std: float) -> float:
    """Accuracy of the best possible classifier of K equally likely Gaussian classes with unit means at one cosine, from 1/K to 1.

    It takes the nearest mean, and is right if z + d is above K - 1 other standard normals, d = separation sqrt(1 - cosine) / std:
    the integral of phi(z) Phi(z + d)^(K-1), Phi(d / sqrt 2) for two classes.
    """
    distance = separation * math.sqrt(1 - cosine) / std
    if classes == 2:
        return 0.5 * (1 + math.erf(distance / 2))
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    return float(torch.trapezoid(density * torch.special.ndtr(z + distance) ** (classes - 1), z))
