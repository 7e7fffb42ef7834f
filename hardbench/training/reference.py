"""The reference network behind planted labels: the wrong class that a network of the run's kind finds most likely for a sample."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from hardbench import machine
from hardbench.config import options
from hardbench.data.batches import Batches, batch_length
from hardbench.data.plant import Closest
from hardbench.data.samples import Split
from hardbench.data.transforms import standardise_for
from hardbench.errors import ConfigError, TrainingError
from hardbench.models.stacked import Stacked
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import ModelSettings, TrainingSettings
from hardbench.training import memory
from hardbench.training.evaluation import batches
from hardbench.training.greedy import make_learner
from hardbench.training.loop import fit

BATCH = 64  # samples per step where the run sees all of them at once: one full-batch step tells nothing
OF_TRAINING = ("batch_size", "optimizer", "lr", "momentum", "weight_decay", "scheduler", "warmup")
READS = (*options(ModelSettings), *OF_TRAINING, "normalize", "mean", "std", "shift")
"""The settings of a training that its reference network depends on."""


def reference(config: TrainingSettings, seed: int) -> Closest:
    """The function that trains the reference network of a run's settings on a split, and gives its `closest` classes."""
    return partial(closest, config, seed)


def closest(config: TrainingSettings, seed: int, split: Split) -> Tensor:
    """For every training sample the class other than its label with the largest logit, int64 [N].

    By one network of the run's architecture and optimizer, with a random stream of its own, after one epoch on the training samples: in
    fp32, neither corrupted nor augmented, in batches of 64 where the run has the full batch. It computes on one CPU thread, so that the
    number of threads changes no label; a network that does not stack, on a GPU if the run does. TrainingError if it diverges.
    """
    train, before = split.train, torch.get_num_threads()
    if len(train) < 2:
        raise ConfigError(f"plant: mislabel_close; two training samples at least, not {len(train)}")
    size = max(2, BATCH if config.batch_size == "full" else batch_length(config.batch_size, len(train)))
    while size < len(train) and len(train) % size == 1:
        size += 1  # batch norm cannot train on a single sample
    config = replace(config, batch_size=size, epochs=1, repeats=1, precision="fp32", threads=1)
    streams = [Seeds(seed).child("data", "plant", "mislabel_close", "reference")]
    try:
        device = machine.take(config)
        memory.check(memory.Estimate(train.shape, split.num_classes, len(train), lambda settings: settings), config, device, "repeats")
        networks = MODELS[config.model].call(train.shape, split.num_classes, config, streams)
        device = torch.device("cpu") if isinstance(networks, Stacked) else device
        standardise = standardise_for(config, train).to(device)
        ordered = Batches(train.to(device), standardise, size, streams, [0.0])
        learner = make_learner(networks.to(device), config, ordered.per_epoch)
        fit(learner, ordered, ordered.per_epoch)
        logits = torch.cat([learner.predict(inputs)[0].float().cpu() for inputs, _ in batches(ordered.train, standardise)])
    finally:
        torch.set_num_threads(before)
    if not logits.isfinite().all():
        raise TrainingError(f"lr: {config.lr:g}; a smaller one, as the network that is to plant mislabel_close diverged")
    return logits.scatter(1, train.labels.unsqueeze(1), -torch.inf).argmax(1)
