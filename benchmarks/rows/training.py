"""Training the perceptron 784-256-128-10 on MNIST for one epoch, per network: one after the other, or R at once.

The straightforward form has its mini-batches from a DataLoader and reads the loss at every step. hardbench makes its real `fit`, with the
callbacks `train` has at every step; evaluation, checkpoints and tracking are left out, as the straightforward form has none.
"""

import functools
import itertools
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from benchmarks import mnist
from benchmarks.row import DifferentError, Goal, Row, Workload
from hardbench import seeding
from hardbench.data.batches import Batches
from hardbench.data.samples import prepare
from hardbench.data.transforms import standardise_for
from hardbench.registry import MODELS
from hardbench.training import callbacks
from hardbench.training.evaluation import evaluate
from hardbench.training.greedy import make_learner
from hardbench.training.learners import Learner
from hardbench.training.loop import every, fit

SIZES, BATCH = (784, 256, 128, 10), 128
GOALS = {(1, "fp32"): 2.3, (5, "fp32"): 2.7, (5, "bf16"): 5.5}
EARLY = 20  # steps whose losses have to be the same; rounding differences grow from there
LOSS, ACCURACY = {"fp32": 1e-4, "bf16": 0.05}, {"fp32": 0.01, "bf16": 0.02}


def samples(quick: bool) -> int:
    """Training images per network."""
    return 2_560 if quick else 20_000


def flops(count: int) -> float:
    """FLOPs of an epoch's products: forward, weight gradients, and input gradients of all layers but the first."""
    layers = [a * b for a, b in itertools.pairwise(SIZES)]
    return 2.0 * count * (2 * sum(layers) + sum(layers[1:]))


def plain(quick: bool) -> Workload:
    """One network, from the same initial weights and with the same batches as hardbench's first."""
    return Workload(functools.partial(epoch, mnist.straightforward(True, samples(quick)), seeding.networks(0, 0, 1)[0]))


def epoch(data: Dataset[Any], streams: seeding.Seeds) -> tuple[nn.Module, list[float]]:
    """A network after one epoch in the straightforward form, with the losses of its steps."""
    torch.manual_seed(streams.child("init").integer)
    parts = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
    network = nn.Sequential(nn.Flatten(), *parts)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    order = RandomSampler(data, generator=streams.child("order").generator())  # type: ignore[arg-type]  # shuffle=True, own generator
    losses = []
    for inputs, labels in DataLoader(data, batch_size=BATCH, sampler=order):
        optimizer.zero_grad()
        loss = criterion(network(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return network, losses


def ours(repeats: int, precision: str, quick: bool) -> Workload:
    """R networks at once."""
    count = samples(quick)
    config = mnist.config(count, model="mlp", widths=SIZES[1:3], batch_size=BATCH, epochs=1, repeats=repeats, precision=precision)
    split = prepare(config, config.seed)
    standardise = standardise_for(config, split.train)
    streams = seeding.networks(config.seed, 0, repeats)

    def call() -> tuple[Learner, dict[str, np.ndarray]]:
        networks = MODELS[config.model].call(split.train.shape, split.num_classes, config, streams)
        batches = Batches(split.train, standardise, BATCH, streams, [0.0] * repeats)
        learner = make_learner(networks, config, batches.per_epoch)
        records = callbacks.Records()
        curves = every(config.log_every, functools.partial(callbacks.curves, records, lambda values, step: None))
        fit(learner, batches, batches.per_epoch, [callbacks.divergence(), curves, callbacks.progress(lambda done, text: None)])
        return learner, records.arrays()

    return Workload(call, repeats, flops(count))


def check(precision: str, expected: tuple[nn.Module, list[float]], found: tuple[Learner, dict[str, np.ndarray]]) -> str:
    """Same losses of the first network in the first steps, same accuracy on the test set at the end."""
    apart = losses_apart(expected[1], found[1])
    accuracies = _accuracy(expected[0]), _accuracy_of_first(found[0])
    words = f"losses to step {EARLY} within {apart:.0e}, test accuracy {accuracies[0]:.4f} and {accuracies[1]:.4f}"
    if apart > LOSS[precision] or abs(accuracies[0] - accuracies[1]) > ACCURACY[precision]:
        raise DifferentError(words)
    return words


def losses_apart(expected: list[float], found: dict[str, np.ndarray]) -> float:
    """The largest difference of the first network's loss in the early steps."""
    steps = [step for step in found["log_steps"] if step <= EARLY]
    return max(abs(found["train_loss"][0, at] - expected[step - 1]) for at, step in enumerate(steps))


def _accuracy(network: nn.Module) -> float:
    with torch.inference_mode():
        right = [network(inputs).argmax(1) == labels for inputs, labels in DataLoader(mnist.straightforward(False), batch_size=500)]
    return torch.cat(right).float().mean().item()


def _accuracy_of_first(learner: Learner) -> float:
    config = mnist.config(samples(True))
    split = prepare(config, config.seed)
    found = evaluate(learner, split.test, standardise_for(config, split.train))
    return float(found["accuracy"][0])


ROWS = [
    Row(
        f"mnist_mlp_r{repeats}_{precision}",
        f"MNIST, MLP 256-128, batch {BATCH}, Adam: one epoch, {repeats} networks at once, {precision}",
        "network",
        plain,
        functools.partial(ours, repeats, precision),
        functools.partial(check, precision),
        Goal("faster", GOALS[repeats, precision]) if (repeats, precision) in GOALS else None,
        precision=precision,
        needs=("mnist", "avx512_bf16") if precision == "bf16" else ("mnist",),
    )
    for precision in ("fp32", "bf16")
    for repeats in (1, 5, 20)
]
