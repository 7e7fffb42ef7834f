"""A training step of the greedy network at width 1024, depth 4, batch 128.

The straightforward form follows the text: layer by layer, q_{i+1} computed apart by a second forward pass, one unfused Adam and one
schedule per layer, batches from a DataLoader; loss and accuracy of every layer are read at every step, as hardbench measures them.
"""

import functools
from math import cos, pi
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, RandomSampler

from benchmarks import mnist
from benchmarks.row import DifferentError, Goal, Row, Workload
from hardbench import seeding
from hardbench.data.batches import Batches
from hardbench.data.samples import prepare
from hardbench.data.transforms import standardise_for
from hardbench.registry import MODELS
from hardbench.training import callbacks
from hardbench.training.greedy import make_learner
from hardbench.training.loop import every, fit

DEPTH, WIDTH, BATCH, CLASSES = 4, 1024, 128, 10
LR, DECAY, TAU, LAMBDA, WARMUP = 1e-3, 1e-4, 0.1, 0.1, 0.05
TOTAL = 1_000  # steps that the schedules are made for
EARLY = 10  # steps whose losses have to be the same; rounding differences grow from there
LOSS = {"fp32": 1e-4, "bf16": 0.05}
GOALS = {"fp32": 0.52, "bf16": 0.34}


def steps(quick: bool) -> int:
    """Steps in one timed call."""
    return 10 if quick else 30


def flops() -> float:
    """FLOPs of a step's products: forward, weight gradients, scores and their gradients; inputs are detached."""
    return 2.0 * BATCH * 2 * (784 * WIDTH + (DEPTH - 1) * WIDTH * WIDTH + DEPTH * WIDTH * CLASSES)


class Straightforward:
    """The two-forward form."""

    def __init__(self) -> None:
        streams = seeding.networks(0, 0, 1)[0]
        torch.manual_seed(streams.child("init").integer)
        self.layers = [nn.Linear(784 if i == 0 else WIDTH, WIDTH) for i in range(DEPTH)]
        for layer in self.layers:
            nn.init.zeros_(layer.bias)
        self.anchors = torch.linalg.qr(torch.randn(WIDTH, CLASSES)).Q.t()
        more: dict[str, Any] = {"lr": LR, "weight_decay": DECAY, "foreach": False, "fused": False}
        self.optimizers = [torch.optim.Adam(layer.parameters(), **more) for layer in self.layers]
        self.schedules = [torch.optim.lr_scheduler.LambdaLR(optimizer, _factor) for optimizer in self.optimizers]
        self.order = streams.child("order").generator()

    def probabilities(self, hidden: Tensor) -> Tensor:
        """q = softmax(G / tau), G the cosine with every anchor."""
        scores = functional.normalize(hidden, dim=1) @ functional.normalize(self.anchors, dim=1).t()
        return functional.softmax(scores / TAU, 1)

    def step(self, inputs: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
        """Update every layer; their losses and accuracies."""
        hidden, losses, accuracies = inputs.flatten(1), [], []
        target = functional.one_hot(labels, CLASSES).float()
        for i, layer in enumerate(self.layers):
            hidden = functional.relu(layer(hidden.detach()))
            q = self.probabilities(hidden)
            loss = _entropy(target, q)
            if i + 1 < DEPTH:
                with torch.no_grad():
                    after = self.probabilities(functional.relu(self.layers[i + 1](hidden)))
                loss = loss - LAMBDA * _entropy(q, after)
            self.optimizers[i].zero_grad()
            loss.backward()
            self.optimizers[i].step()
            self.schedules[i].step()
            losses.append(loss.item())
            accuracies.append((q.argmax(1) == labels).float().mean().item())
        return losses, accuracies


def _entropy(a: Tensor, b: Tensor) -> Tensor:
    """H(a, b) = -sum_c a_c ln b_c, mean over the batch."""
    return -(a * b.clamp_min(1e-12).log()).sum(1).mean()


def _factor(step: int) -> float:
    """Linear warm-up, then half a cosine."""
    rising = int(WARMUP * TOTAL)
    return (step + 1) / rising if step < rising else 0.5 * (1 + cos(pi * (step - rising) / (TOTAL - rising)))


def plain(quick: bool) -> Workload:
    """Steps of the two-forward form, continued from call to call."""
    data = mnist.straightforward(True, steps(quick) * BATCH)
    network = Straightforward()

    def call() -> Tensor:
        order = RandomSampler(data, generator=network.order)
        return torch.tensor([network.step(*batch)[0] for batch in DataLoader(data, batch_size=BATCH, sampler=order)])

    return Workload(call, steps(quick))


def ours(precision: str, quick: bool) -> Workload:
    """The same steps by `fit`, with the callbacks `train` has at every step."""
    config = mnist.config(steps(quick) * BATCH, model="gmlp", depth=DEPTH, width=WIDTH, batch_size=BATCH, precision=precision)
    split = prepare(config, config.seed)
    streams = seeding.networks(config.seed, 0, 1)
    networks = MODELS[config.model].call(split.train.shape, split.num_classes, config, streams)
    batches = Batches(split.train, standardise_for(config, split.train), BATCH, streams, [0.0])
    learner = make_learner(networks, config, TOTAL)

    def call() -> dict[str, np.ndarray]:
        records = callbacks.Records()
        curves = every(config.log_every, functools.partial(callbacks.curves, records, lambda values, step: None))
        further = [callbacks.divergence(), curves, callbacks.progress(lambda done, text: None)]
        fit(learner, batches, learner.steps + steps(quick), further)
        return records.arrays()

    return Workload(call, steps(quick), flops())


def check(precision: str, expected: Tensor, found: dict[str, np.ndarray]) -> str:
    """Same losses of every layer in the first steps (where hardbench has recorded them)."""
    steps = [step for step in found["log_steps"] if step <= EARLY]
    apart = max(float(np.abs(found["train_layer_loss"][0, at] - expected[step - 1].numpy()).max()) for at, step in enumerate(steps))
    words = f"losses of every layer to step {EARLY} within {apart:.0e}"
    if apart > LOSS[precision]:
        raise DifferentError(words)
    return words


ROWS = [
    Row(
        f"gmlp_step_{precision}",
        f"MNIST, greedy MLP {DEPTH}x{WIDTH}, batch {BATCH}: one training step, {precision}",
        "step",
        plain,
        functools.partial(ours, precision),
        functools.partial(check, precision),
        Goal("share", GOALS[precision]),
        precision=precision,
        rounds=15,  # these steps wait for memory more than others: other work on the machine shows in single calls
        needs=("mnist", "avx512_bf16") if precision == "bf16" else ("mnist",),
    )
    for precision in ("fp32", "bf16")
]
