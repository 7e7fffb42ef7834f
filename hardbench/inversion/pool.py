"""The data of the inversion study: training and test samples pooled, a subset, constants of standardisation; one function per task."""

from dataclasses import replace

import torch

from hardbench.data.samples import Samples, Split, load, make_labels_wrong, map_classes
from hardbench.data.transforms import Standardise, moments
from hardbench.errors import DataError
from hardbench.registry import TASKS
from hardbench.seeding import Seeds
from hardbench.settings import PoolSettings

TINY = 1e-9  # added to a variance (classes) or a standard deviation (parity), as published


def prepare_pool(settings: PoolSettings, seed: int) -> tuple[Split, Standardise]:
    """The samples a network learns from (train) and what is left to test on (test, maybe empty), with the constants of the former.

    `index` of a sample is its position in the data set: training samples first, then test. Label noise touches train alone.
    """
    split = load(settings, seed)
    split = replace(split, test=replace(split.test, index=split.test.index + len(split.train)))
    if settings.class_map is not None:
        split = map_classes(split, settings.class_map)
    split, how = TASKS[settings.task].call(settings, split, seed)
    if settings.noise_ratio:
        wrong = make_labels_wrong(split.train, settings.noise_ratio, split.num_classes, Seeds(seed).child("data", "noise"))
        split = replace(split, train=wrong)
    mean, std = moments(split.train.inputs, how)
    return split, Standardise(mean, std + TINY if how == "pixel" else (std.square() + TINY).sqrt())


@TASKS.add("classes", subset_size=20000, depth=2)
def classes(settings: PoolSettings, split: Split, seed: int) -> tuple[Split, str]:
    """One class per label (Pukowski & Lu): train and test pooled, a subset drawn from both, one mean and one variance for all inputs."""
    pool = joined(split.train, split.test)
    order = torch.randperm(len(pool), generator=Seeds(seed).child("data", "subset").generator())
    size = _size(settings, len(pool))
    return replace(split, train=pool.pick(order[:size].sort().values), test=pool.pick(order[size:].sort().values)), "scalar"


@TASKS.add("parity", subset_size=8192, depth=1)
def parity(settings: PoolSettings, split: Split, seed: int) -> tuple[Split, str]:
    """Even against odd labels (Ciceri et al.): the first training samples, every pixel standardised by itself; tests on the test set."""
    train = split.train.pick(torch.arange(_size(settings, len(split.train))))

    def halved(samples: Samples) -> Samples:
        return replace(samples, labels=samples.labels % 2, clean=samples.clean % 2)

    return replace(split, train=halved(train), test=halved(split.test), class_names=("even", "odd")), "pixel"


def joined(first: Samples, second: Samples) -> Samples:
    """The samples of both, one after the other."""
    pairs = ((getattr(first, name), getattr(second, name)) for name in ("inputs", "labels", "index", "clean"))
    return Samples(*(torch.cat(pair) for pair in pairs))


def _size(settings: PoolSettings, available: int) -> int:
    """Samples to learn from; the task's own default takes all where there are fewer."""
    size = settings.subset_size
    if size == "all" or (size == TASKS[settings.task].defaults["subset_size"] and int(size) > available):
        return available
    if int(size) > available:
        raise DataError(f"subset_size: {size}; at most the {available} samples there are, or all")
    return int(size)
