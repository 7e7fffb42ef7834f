"""The default study of hard samples on 20 000 MNIST images: one of its 500 full-batch epochs, for all its networks.

These are 54 networks 784-20-20-10 on 18 training sets (2 train ratios x 9 shares of the easy samples that remain, 3 networks each) and the
one whose stragglers say which samples are hard, with its radii. The straightforward form trains one network after the other from a
DataLoader over a TensorDataset, and measures radii class by class in a second pass. The study is 500 such epochs in either form.
"""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import mnist
from benchmarks.row import DifferentError, Goal, Row, Workload
from hardbench import seeding
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise, unit_of
from hardbench.hard_samples.cuts import HardEasyOrder, TrainSlice
from hardbench.hard_samples.selection import hardest
from hardbench.hard_samples.slices import SliceTraining
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.search import Search, TrainingData, training_settings
from hardbench.models.layers import Chain
from hardbench.registry import MODELS
from hardbench.studies.stragglers import Config
from hardbench.training import callbacks
from hardbench.training.loop import TrainState, fit

SIZES = (784, 20, 20, 10)
HARD = 0.07  # share of the samples; which ones makes no difference to the time
EPOCHS = 20  # of hardbench in one timed call, over which setting up is shared; the study's own are 500
LR, APART = 0.1, 1e-4


def settings(quick: bool) -> Config:
    """The default command; 4 000 images and one network per training set if quick."""
    less = {"subset_size": 4_000, "repeats": 1} if quick else {}
    return Config(data_dir=str(mnist.folder()), epochs=EPOCHS, threads=1, **less)  # type: ignore[arg-type]


def prepared(config: Config) -> tuple[Samples, Standardise, list[TrainSlice]]:
    """The samples, hard ones before easy ones, the constants of standardisation, and the training sets."""
    split, standardise = prepare_pool(config, config.seed)
    count = len(split.train)
    mask = hardest(torch.rand(count, generator=torch.Generator().manual_seed(0)), int(HARD * count))
    order = HardEasyOrder.of(mask, seeding.Seeds(config.seed))
    pairs = itertools.product(config.train_ratios, config.remaining_train_ratios)
    return split.train.pick(order.rows), standardise, [order.train_slice(ratio, share) for ratio, share in pairs]


def streams(config: Config) -> list[seeding.Seeds]:
    """Streams of the networks of one training set."""
    return seeding.networks(config.seed, 0, config.repeats)


def flops(config: Config, cuts: Sequence[TrainSlice], count: int) -> float:
    """FLOPs of an epoch's products: forward, weight gradients, and input gradients of all layers but the first."""
    layers = [a * b for a, b in itertools.pairwise(SIZES)]
    return 2.0 * (config.repeats * sum(map(len, cuts)) + count) * (2 * sum(layers) + sum(layers[1:]))


def plain(quick: bool) -> Workload:
    """One network after the other, each from its initial weights of hardbench."""
    config = settings(quick)
    samples, standardise, cuts = prepared(config)
    inputs, labels = standardise(samples.inputs, unit_of(samples.inputs)).flatten(1), samples.labels
    made = MODELS["mlp"].call((784,), 10, training_settings(config), streams(config))

    def call() -> list[dict[str, Tensor]]:
        trained = []
        for cut in cuts:
            data = TensorDataset(inputs[cut.low : cut.high], labels[cut.low : cut.high])
            for r in range(config.repeats):
                network = made.member(r)
                _epoch(network, data)
                trained.append({name: value.clone() for name, value in network.state_dict().items()})
        network = made.member(0)
        data = TensorDataset(inputs, labels)
        _epoch(network, data)
        trained.append({"radii": _radii(network, data)})
        return trained

    return Workload(call)


def _epoch(network: nn.Module, data: TensorDataset) -> None:
    optimizer, criterion = torch.optim.SGD(network.parameters(), lr=LR), nn.CrossEntropyLoss()
    network.train()
    for inputs, labels in DataLoader(data, batch_size=len(data)):
        optimizer.zero_grad()
        loss = criterion(network(inputs), labels)
        loss.backward()
        optimizer.step()
        loss.item()


def _radii(network: Chain, data: TensorDataset) -> Tensor:
    network.eval()
    found = []
    with torch.no_grad():
        for inputs, labels in DataLoader(data, batch_size=len(data)):
            hidden = network.activations(inputs)[0]
            hidden = hidden / hidden.norm(dim=1, keepdim=True)
            for c in range(10):
                own = hidden[labels == c]
                found.append((own - own.mean(0)).square().sum(1).mean().sqrt())
    return torch.stack(found)


def ours(quick: bool) -> Workload:
    """The study's own training over its training sets and its own search."""
    config = settings(quick)
    samples, standardise, cuts = prepared(config)
    training = training_settings(config)

    def call() -> list[dict[str, Tensor]]:
        networks = SliceTraining(TrainingData(samples, standardise, 10), cuts, streams(config), training)
        first: list[dict[str, Tensor]] = []

        def keep(state: TrainState) -> None:
            if state.step == 1:
                first.extend(networks.states())

        fit(networks.learner, networks.batches, config.epochs, [callbacks.divergence(), keep])
        found = Search(TrainingData(samples, standardise, 10), config, [0], config.seed).run()
        return [*first, {"radii": found.radii[0, 1]}]

    return Workload(call, EPOCHS, flops(config, cuts, len(samples)))


def check(expected: Sequence[dict[str, Tensor]], found: Sequence[dict[str, Tensor]]) -> str:
    """Same weights of every network and same radii after the first epoch."""
    assert len(expected) == len(found)
    apart = max(float((found[i][name] - value).abs().max()) for i, one in enumerate(expected) for name, value in one.items())
    words = f"weights of {len(expected) - 1} networks and radii after an epoch within {apart:.0e}"
    if not apart <= APART:
        raise DifferentError(words)
    return words


ROWS = [
    Row(
        "stragglers_default",
        "MNIST, 20 000 samples, 784-20-20-10: an epoch of the default study, 54 networks on 18 training sets and a straggler search",
        "epoch",
        plain,
        ours,
        check,
        Goal("faster", 10.0),
        needs=("mnist",),
    )
]
