"""An epoch of the inversion study: 20 000 MNIST images, full batch, 784-20-20-10, with the radii of every class; per network.

The usual form trains one network after the other, has its full batch from a DataLoader over a TensorDataset, and goes over the data a
second time for the radii, class by class. The second form is the same loop on the tensors themselves. hardbench makes its real search, with
everything it records at every epoch.
"""

import functools
import itertools

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import mnist
from benchmarks.row import WALL, DifferentError, Goal, Row, Workload
from hardbench.data.transforms import unit_of
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.search import Search, TrainingData
from hardbench.settings import InversionSettings
from hardbench.training import callbacks
from hardbench.training.loop import fit

SIZES, COUNT, CLASSES = (784, 20, 20, 10), 20_000, 10
RADIUS = {"fp32": 1e-4, "bf16": 5e-3}
GOALS = {"fp32": 25.0, "bf16": 40.0}


def settings(epochs: int) -> InversionSettings:
    """The study's defaults for a few epochs."""
    return InversionSettings(dataset="mnist", data_dir=str(mnist.folder()), subset_size=COUNT, epochs=epochs)


def data() -> TrainingData:
    """The pooled, drawn, standardised samples both forms train on."""
    split, standardise = prepare_pool(settings(1), 0)
    return TrainingData(split.train, standardise, split.num_classes)


def plain(loader: bool, quick: bool) -> Workload:
    """A few epochs of one network: an update, then a second pass for the radii [E, K]."""
    epochs = 2 if quick else 4
    pool = data()
    inputs = pool.standardise(pool.train.inputs, unit_of(pool.train.inputs)).flatten(1)
    whole = TensorDataset(inputs, pool.train.labels)
    start = Search(pool, settings(1), [0]).learner.networks.member(0)

    def batches() -> DataLoader[tuple[Tensor, ...]] | list[tuple[Tensor, Tensor]]:
        return DataLoader(whole, batch_size=COUNT, shuffle=True) if loader else [(inputs, pool.train.labels)]

    def call() -> Tensor:
        hidden, rest = _network(start)
        network = nn.Sequential(hidden, rest)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        criterion = nn.CrossEntropyLoss()
        radii, errors = [], []
        for _ in range(epochs):
            for batch, labels in batches():
                optimizer.zero_grad()
                logits = network(batch)
                loss = criterion(logits, labels)
                loss.backward()
                optimizer.step()
                errors.append((logits.argmax(1) != labels).float().mean().item())
            radii.append(_radii(hidden, batches()))
        return torch.tensor(radii)

    return Workload(call, epochs)


def _network(start: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The hidden layer that is measured and the rest, from hardbench's first network's initial weights."""
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(SIZES)]
    for layer, given in zip(layers, [module for module in start.modules() if isinstance(module, nn.Linear)], strict=True):
        layer.load_state_dict(given.state_dict())
    return nn.Sequential(layers[0], nn.Tanh()), nn.Sequential(layers[1], nn.Tanh(), layers[2])


@torch.no_grad()
def _radii(hidden: nn.Module, batches: DataLoader[tuple[Tensor, ...]] | list[tuple[Tensor, Tensor]]) -> list[float]:
    """Radius of every class, class by class."""
    found = []
    for batch, labels in batches:
        activations = hidden(batch)
        unit = activations / activations.norm(dim=1, keepdim=True)
        for c in range(CLASSES):
            own = unit[labels == c]
            found.append((own - own.mean(0)).square().sum(1).mean().sqrt().item())
    return found


def ours(repeats: int, precision: str, quick: bool) -> Workload:
    """R networks at once, set-up included."""
    epochs = 10 if quick else 20
    pool = data()

    def call() -> Tensor:
        search = Search(pool, settings(epochs), range(repeats), precision=precision)
        further = [callbacks.progress(lambda done, text: None)]
        fit(search.learner, search.batches, epochs, [search.recorder, *further])
        return search.recorder.rows["radii"].transpose(0, 1)

    layers = [a * b for a, b in itertools.pairwise(SIZES)]
    return Workload(call, epochs * repeats, 2.0 * COUNT * (2 * sum(layers) + sum(layers[1:])))


def check(precision: str, expected: Tensor, found: Tensor) -> str:
    """Same radii of the first network after every step."""
    apart = float((found[0, 1 : 1 + len(expected)] - expected).abs().max())
    words = f"radii of {len(expected)} epochs within {apart:.0e}"
    if apart > RADIUS[precision]:
        raise DifferentError(words)
    return words


ROWS = [
    Row(
        f"invert{'' if loader else '_tensors'}_r{repeats}_{precision}",
        f"inversion study, one epoch with radii, {repeats} networks at once, {precision}"
        + ("" if loader else ", beside a loop on tensors"),
        "network and epoch",
        functools.partial(plain, loader),
        functools.partial(ours, repeats, precision),
        functools.partial(check, precision),
        Goal("faster", GOALS[precision]) if loader else None,
        clock=WALL,
        threads=2,
        precision=precision,
        needs=("mnist", "avx512_bf16") if precision == "bf16" else ("mnist",),
    )
    for loader in (True, False)
    for repeats, precision in ((5, "fp32"), (20, "bf16"))
]
