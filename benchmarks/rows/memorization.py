"""The networks by which memorization is measured: each trained on its own share of the samples, and then asked about all of them.

The straightforward form has a DataLoader over a Subset for each network and one over all samples. hardbench trains them in one stack and
records what they come to, as `train --train-share 0.7 --record-dynamics --record-points last` does.
"""

import functools
import itertools
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from benchmarks import mnist
from benchmarks.row import DifferentError, Goal, Row, Workload
from benchmarks.rows.training import BATCH, EARLY, LOSS, SIZES, epoch, flops, losses_apart, samples
from hardbench import seeding
from hardbench.data.share import share_count, share_rows
from hardbench.hard_samples.recorder import DynamicsRecorder, read, when
from hardbench.training import callbacks
from hardbench.training.loop import every, fit
from hardbench.training.setup import train_setup

SHARE, NETWORKS = 0.7, 50
AGREEING = 0.97  # share of the samples to which two networks that differ by rounding give the same class


def plain(quick: bool) -> Workload:
    """One network on the samples of hardbench's first."""
    everything = mnist.straightforward(True, samples(quick))
    streams = seeding.networks(0, 0, 1)
    rows = share_rows(SHARE, len(everything), streams)
    assert rows is not None
    own = Subset(everything, rows[0].tolist())

    def call() -> tuple[list[float], Tensor]:
        network, losses = epoch(own, streams[0])
        with torch.inference_mode():
            return losses, torch.cat([network(inputs).argmax(1) for inputs, _ in DataLoader(everything, batch_size=500)])

    return Workload(call)


def ours(quick: bool) -> Workload:
    """All networks at once."""
    folder = tempfile.TemporaryDirectory(prefix="hardbench-")
    count = samples(quick)
    more = {"train_share": SHARE, "record_dynamics": True, "record_points": "last"}
    config = mnist.config(count, model="mlp", widths=SIZES[1:3], batch_size=BATCH, epochs=1, repeats=NETWORKS, **more)

    def call() -> tuple[dict[str, np.ndarray], np.ndarray]:
        setup, records = train_setup(config), callbacks.Records()
        path = Path(folder.name) / "dynamics"
        recorder = DynamicsRecorder(setup.batches, setup.split.class_names, path, lambda name: None, ended=True)
        recorder.begin()
        curves = every(config.log_every, functools.partial(callbacks.curves, records, lambda values, step: None))
        fit(setup.learner, setup.batches, setup.total, [callbacks.divergence(), curves, when("last", (), recorder)])
        recorder.write(path.with_suffix(".npz"), [setup.total])
        return records.arrays(), read(path.with_suffix(".npz"))["logits"][0, 0].argmax(-1)

    forward = 2.0 * count * sum(a * b for a, b in itertools.pairwise(SIZES))
    products = flops(share_count(SHARE, count)) + forward
    return Workload(call, NETWORKS, products, folder.cleanup)


def check(expected: tuple[list[float], Tensor], found: tuple[dict[str, np.ndarray], np.ndarray]) -> str:
    """Same losses of the first network in the first steps, nearly all samples in the same class at the end."""
    apart, agreeing = losses_apart(expected[0], found[0]), float((expected[1].numpy() == found[1]).mean())
    words = f"losses to step {EARLY} within {apart:.0e}, {agreeing:.1%} of all samples in the same class"
    if apart > LOSS["fp32"] or agreeing < AGREEING:
        raise DifferentError(words)
    return words


ROWS = [
    Row(
        "memorization_mlp",
        f"MNIST, MLP 256-128, batch {BATCH}, Adam: one epoch on {SHARE:.0%} of the samples, then all of them; {NETWORKS} networks at once",
        "network",
        plain,
        ours,
        check,
        Goal("faster", 5.0),
        needs=("mnist",),
    )
]
