"""The data of the inversion study: a subset of the training and test samples, the constants of standardisation; one function per task.

Task classes: Pukowski & Lu 2024 (arXiv:2409.14401); task parity: Ciceri et al. 2024 (arXiv:2303.05161).
"""

from dataclasses import replace

import torch

from hardbench.data.plant import planted
from hardbench.data.samples import Samples, Split, load, make_labels_wrong, map_classes
from hardbench.data.transforms import Standardise, moments
from hardbench.errors import DataError
from hardbench.inversion.search import training_settings
from hardbench.registry import TASKS
from hardbench.seeding import Seeds
from hardbench.settings import InversionSettings, PoolSettings
from hardbench.training.reference import reference

TINY = 1e-9  # added to a variance (classes) or a standard deviation (parity), as published


def prepare_pool(settings: InversionSettings, seed: int) -> tuple[Split, Standardise]:
    """The samples to learn from (train) and the rest to test on (test, may be empty), with the constants that standardise train.

    `index` of a sample is its position in the data set: training samples first, then test. Label noise and what is planted touch train
    alone; with `pool` train the samples are those of `hardbench train` with the same seed, class map, subset and plant, in the same order.
    """
    split = load(settings, seed)
    split = replace(split, test=replace(split.test, index=split.test.index + len(split.train)))
    if settings.class_map is not None:
        split = map_classes(split, settings.class_map)
    split, kind = TASKS[settings.task].call(settings, split, seed)
    split = make_labels_wrong(split, settings.noise_ratio, seed)
    split = planted(split, settings, seed, reference(replace(training_settings(settings), normalize=kind), seed))
    mean, std = moments(split.train.inputs, kind)
    return split, Standardise(mean, std + TINY if kind == "pixel" else (std.square() + TINY).sqrt())


@TASKS.add("classes", subset_size=20000, depth=2)
def classes(settings: PoolSettings, split: Split, seed: int) -> tuple[Split, str]:
    """One class per label (Pukowski & Lu): train and test pooled, a subset drawn from both, one mean and one variance for all inputs.

    With `pool` train the subset is drawn from the training samples, and the test set is that of the data set.
    """
    if settings.pool == "train":
        return replace(split, train=_drawn(settings, split.train, seed)[0]), "scalar"
    pairs = ((getattr(split.train, name), getattr(split.test, name)) for name in ("inputs", "labels", "index", "clean", "planted"))
    pool = Samples(*(torch.cat(pair) for pair in pairs))
    train, test = _drawn(settings, pool, seed)
    return replace(split, train=train, test=test), "scalar"


def _drawn(settings: PoolSettings, samples: Samples, seed: int) -> tuple[Samples, Samples]:
    """A random subset and the rest, each in the order of the samples."""
    order = torch.randperm(len(samples), generator=Seeds(seed).child("data", "subset").generator())
    size = _size(settings, len(samples))
    return samples.pick(order[:size].sort().values), samples.pick(order[size:].sort().values)


@TASKS.add("parity", subset_size=8192, depth=1)
def parity(settings: PoolSettings, split: Split, seed: int) -> tuple[Split, str]:
    """Even against odd labels (Ciceri et al.): the first training samples, every pixel standardised by itself; tests on the test set."""
    train = split.train.pick(torch.arange(_size(settings, len(split.train))))

    def halved(samples: Samples) -> Samples:
        return replace(samples, labels=samples.labels % 2, clean=samples.clean % 2)

    return replace(split, train=halved(train), test=halved(split.test), class_names=("even", "odd")), "pixel"


def _size(settings: PoolSettings, available: int) -> int:
    """The number of samples to learn from; where the task's default size exceeds what is available, all of them."""
    size = settings.subset_size
    if size == "all" or (size == TASKS[settings.task].defaults["subset_size"] and int(size) > available):
        return available
    if int(size) > available:
        raise DataError(f"subset_size: {size}; at most the {available} samples there are, or all")
    return int(size)
