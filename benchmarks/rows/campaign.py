"""Training on corrupted pixels: the perceptron 784-256-128-10 on MNIST at p = 0.5 for one epoch, per network of a campaign.

The straightforward form corrupts sample by sample in `__getitem__` of a torchvision data set, behind a DataLoader. hardbench trains a stack
of a campaign's size by its real training: draws, callbacks and all; evaluation is left out, as the straightforward form has none.
"""

import functools
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks import mnist
from benchmarks.row import DifferentError, Goal, Row, Workload
from benchmarks.rows.training import BATCH, SIZES, flops, samples
from hardbench.campaign.jobs import chunk
from hardbench.training import callbacks
from hardbench.training.evaluation import evaluate
from hardbench.training.loop import every, fit
from hardbench.training.setup import TrainSetup, remembered, train_setup

P = 0.5
GOALS = {"fp32": 2.8, "bf16": 4.5}


class Corrupted(Dataset[tuple[Tensor, int]]):
    """A torchvision data set whose every access draws anew."""

    def __init__(self, count: int):
        from torchvision import datasets, transforms

        self.data = datasets.MNIST(mnist.folder(), train=True, transform=transforms.ToTensor())
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.data[index]
        hit = torch.rand_like(image) < P
        return torch.where(hit, torch.rand_like(image), image), label


def plain(quick: bool) -> Workload:
    """One network."""
    data = Corrupted(samples(quick))

    def call() -> float:
        torch.manual_seed(0)
        parts = [nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
        network = nn.Sequential(nn.Flatten(), *parts)
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        criterion = nn.CrossEntropyLoss()
        for inputs, labels in DataLoader(data, batch_size=BATCH, shuffle=True):
            optimizer.zero_grad()
            loss = criterion(network(inputs), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        with torch.inference_mode():  # a share of a percent of the time
            test = remembered(_config(quick, "fp32", 1), 0).test
            right = network(test.inputs.float() / 255).argmax(1) == test.labels
        return right.float().mean().item()

    return Workload(call)


def _config(quick: bool, precision: str, repeats: int) -> Any:
    shared: dict[str, Any] = {"dataset": "mnist", "data_dir": str(mnist.folder()), "normalize": "none", "val_size": 0, "threads": 1}
    shared |= {"subset_size": samples(quick), "subset_from": "first", "layer_metrics": ("none",), "device": "cpu"}
    return mnist.Config(**shared, widths=SIZES[1:3], batch_size=BATCH, epochs=1, repeats=repeats, corruption_p=P, precision=precision)


def ours(precision: str, quick: bool) -> Workload:
    """A stack of the size that a campaign takes."""
    repeats = chunk(_config(quick, precision, 1), False)
    config = _config(quick, precision, repeats)
    remembered(config, config.seed)

    def call() -> TrainSetup:
        setup = train_setup(config, load=remembered)
        curves = every(config.log_every, functools.partial(callbacks.curves, callbacks.Records(), lambda values, step: None))
        fit(setup.learner, setup.batches, setup.total, [callbacks.divergence(), curves])
        return setup

    return Workload(call, repeats, flops(samples(quick)))


def check(expected: float, found: TrainSetup) -> str:
    """Test accuracy within five standard deviations of the networks'."""
    values = evaluate(found.learner, found.split.test, found.standardise).arrays()["accuracy"]
    mean, std = values.mean().item(), values.std().item()
    words = f"test accuracy {expected:.4f} and {mean:.4f} +- {std / sqrt(len(values)):.4f} over {len(values)} networks"
    if abs(expected - mean) > 5 * std:
        raise DifferentError(words)
    return words


ROWS = [
    Row(
        f"corrupted_mlp_{precision}",
        f"MNIST at p = {P:g}, MLP 256-128, batch {BATCH}, Adam: one epoch, {precision}",
        "network",
        plain,
        functools.partial(ours, precision),
        check,
        Goal("faster", bound),
        precision=precision,
        needs=("mnist", "avx512_bf16") if precision == "bf16" else ("mnist",),
    )
    for precision, bound in GOALS.items()
]
