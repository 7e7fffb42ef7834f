"""One class-hardness evaluation of the 10 000 test images of MNIST by perceptrons 2x128.

Against one forward pass of the same networks over the same images, which it must not exceed by much, and against the usual
implementation: the network run once for the logits and once for the features, then loops over classes and over pairs of them.
"""

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks import mnist
from benchmarks.row import DifferentError, Goal, Row, Workload
from hardbench import seeding
from hardbench.data.samples import Samples, prepare
from hardbench.data.transforms import Standardise, standardise_for, unit_of
from hardbench.registry import MODELS
from hardbench.training.evaluation import BATCH, evaluate
from hardbench.training.greedy import make_learner
from hardbench.training.learners import Learner

CLASSES, WIDTH = 10, 128
TRAIN = 1_000  # training images, which nothing is made of: no network is trained here
TIMES = 5  # evaluations in one timed call: one alone is too short for the clock


def images(quick: bool) -> int:
    """Test images per evaluation."""
    return 2_500 if quick else 10_000


def made(repeats: int, quick: bool) -> tuple[Learner, Samples, Standardise]:
    """R networks at their initial weights, the test images and the constants of standardisation."""
    config = mnist.config(TRAIN, model="mlp", depth=2, width=WIDTH, init="kaiming_normal", repeats=repeats)
    split = prepare(config, config.seed)
    networks = MODELS[config.model].call(split.train.shape, CLASSES, config, seeding.networks(config.seed, 0, repeats))
    return make_learner(networks, config, 1), split.test.pick(torch.arange(images(quick))), standardise_for(config, split.train)


def _flops(count: int) -> float:
    """FLOPs of one network's forward pass over that many images."""
    return 2.0 * count * (784 * WIDTH + WIDTH * WIDTH + WIDTH * CLASSES)


def ours(repeats: int, quick: bool) -> Workload:
    """Everything that an evaluation point records."""
    learner, test, standardise = made(repeats, quick)

    def call() -> dict[str, Tensor]:
        for _ in range(TIMES):
            found = evaluate(learner, test, standardise).arrays()
        return found

    return Workload(call, TIMES, repeats * _flops(len(test)))


def forward(repeats: int, quick: bool) -> Workload:
    """Logits of all images, and nothing else; the images are standardised on the way, as in an evaluation."""
    learner, test, standardise = made(repeats, quick)
    networks, unit = learner.networks.eval(), unit_of(test.inputs)

    def call() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            for _ in range(TIMES):
                logits = [networks(standardise(part, unit)) for part in test.inputs.split(BATCH)]
        return torch.cat(logits, 1), test.labels

    return Workload(call, TIMES)


def usual(quick: bool) -> Workload:
    """Two passes over a DataLoader, then loops."""
    learner, _, _ = made(1, quick)
    network = learner.networks.member(0).eval()
    loader = DataLoader(mnist.straightforward(False, images(quick)), batch_size=BATCH)

    def call() -> dict[str, Any]:
        with torch.no_grad():
            logits = torch.cat([network(inputs) for inputs, _ in loader])
            parts = [(network.activations(inputs)[-1], labels) for inputs, labels in loader]
        features, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        losses, accuracies, means = [], [], []
        for c in range(CLASSES):
            own = labels == c
            losses.append(functional.cross_entropy(logits[own], labels[own]).item())
            accuracies.append((logits[own].argmax(1) == c).float().mean().item())
            means.append(features[own].mean(0))
        overlaps = np.array([[functional.cosine_similarity(means[a], means[b], 0).item() for b in range(CLASSES)] for a in range(CLASSES)])
        return {"loss_per_class": np.array(losses), "accuracy_per_class": np.array(accuracies), "overlap_dynamic": overlaps}

    return Workload(call)


def check_forward(expected: tuple[Tensor, Tensor], found: dict[str, Tensor]) -> str:
    """The accuracy of the same logits."""
    logits, labels = expected
    plain = (logits.argmax(-1) == labels).double().mean(-1)
    words = f"accuracy {plain[0]:.4f} and {found['accuracy'][0]:.4f}"
    if (plain - found["accuracy"]).abs().max() > 1e-9:
        raise DifferentError(words)
    return words


def check_usual(expected: dict[str, Any], found: dict[str, Tensor]) -> str:
    """Loss, accuracy and overlap of the classes."""
    apart = {name: float(np.abs(values - found[name][0].numpy()).max()) for name, values in expected.items()}
    words = ", ".join(f"{name.replace('_', ' ')} within {value:.0e}" for name, value in apart.items())
    if max(apart.values()) > 1e-4:
        raise DifferentError(words)
    return words


ROWS = [
    *(
        Row(
            f"evaluation_forward_r{repeats}",
            f"MNIST test set, MLP 2x128: one evaluation of {repeats} networks against one forward pass",
            "evaluation",
            functools.partial(forward, repeats),
            functools.partial(ours, repeats),
            check_forward,
            Goal("share", 1.3),
            needs=("mnist",),
        )
        for repeats in (1, 5)
    ),
    Row(
        "evaluation_usual",
        "MNIST test set, MLP 2x128: one evaluation of one network against two passes and loops over classes",
        "evaluation",
        usual,
        functools.partial(ours, 1),
        check_usual,
        needs=("mnist",),
    ),
]
