"""Samples and splits: from a data set's name to the training, validation and test samples a run uses."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from hardbench.errors import DataError
from hardbench.files import expanded
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import DataSettings, PlaceSettings, SourceSettings


@dataclass(frozen=True)
class Samples:
    """N inputs with their labels.

    inputs: uint8 [N, C, H, W] (pixels), or float32 [N, C, H, W] or [N, D] (taken as they are); labels: int64 [N];
    index: int64 [N], the position in the data set's own order; clean: int64 [N], the labels before label noise;
    planted: int64 [N], the kind of hardness that was planted on purpose (data/plant.py), 0 for none.
    """

    inputs: Tensor
    labels: Tensor
    index: Tensor
    clean: Tensor
    planted: Tensor

    @classmethod
    def of(cls, inputs: Tensor, labels: Tensor) -> "Samples":
        """Samples as loaded, in their own order."""
        labels = labels.long()
        return cls(inputs, labels, torch.arange(len(labels)), labels, torch.zeros_like(labels))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    def pick(self, rows: Tensor) -> "Samples":
        """The samples at the given rows, in that order."""
        return self._each(lambda values: values[rows])

    @property
    def fingerprints(self) -> Tensor:
        """64 bits of the BLAKE2 hash of every input, int64 [N], by which another run recognises the samples."""
        rows = self.inputs.flatten(1).contiguous().cpu().numpy()
        digests = bytearray(b"".join(hashlib.blake2b(row.data, digest_size=8).digest() for row in rows))
        return torch.frombuffer(digests, dtype=torch.int64) if len(rows) else torch.empty(0, dtype=torch.int64)

    def to(self, device: torch.device | str) -> "Samples":
        """The same samples on a device."""
        return self._each(lambda values: values.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Samples":
        return Samples(*(change(getattr(self, field.name)) for field in fields(self)))


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """The class names; one that several classes have gets the class number: `a (0)`, `a (3)`."""
    names = tuple(names)
    while len(count := Counter(names)) < len(names):
        names = tuple(f"{name} ({c})" if count[name] > 1 else name for c, name in enumerate(names))
    return names


@dataclass(frozen=True)
class Split:
    """Training, validation (if the settings ask for it) and test samples of one data set; bayes_accuracy if it is known.

    Class names are made distinct.
    """

    train: Samples
    test: Samples
    class_names: tuple[str, ...]
    val: Samples | None = None
    bayes_accuracy: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_names", distinct(self.class_names))

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """SHA-256 (first 16 digits) over shapes, inputs and labels of every part."""
        state = hashlib.sha256()
        for part in (self.train, self.val, self.test):
            if part is not None:
                state.update(f"{tuple(part.inputs.shape)}{part.inputs.dtype}".encode())
                state.update(part.inputs.contiguous().numpy().data)
                state.update(part.labels.numpy().data)
        return state.hexdigest()[:16]


def data_root(settings: PlaceSettings) -> Path:
    """Folder of the data files: `data_dir` (or HARDBENCH_DATA), else a user cache folder."""
    if settings.data_dir:
        return expanded(settings.data_dir)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hardbench"


def load(settings: SourceSettings, seed: int) -> Split:
    """A data set as published, all classes; `index` counts train and test separately."""
    split: Split = DATASETS[settings.dataset].call(settings, data_root(settings), Seeds(seed).child("data", "gaussian"))
    return split


def prepare(settings: DataSettings, seed: int) -> Split:
    """The split before anything is planted: load, select and relabel classes, draw the subset, split off validation, make labels wrong.

    A training's own split is that of training/setup.py, `split_of`.
    """
    seeds = Seeds(seed).child("data")
    split = load(settings, seed)
    if settings.class_map is not None:
        split = map_classes(split, settings.class_map)
    train, val = split.train, None
    if settings.subset_size != "all":
        train = _subset(train, int(settings.subset_size), settings.subset_from, seeds)
    count = validation_count(settings.val_size, len(train))
    if count:
        order = torch.randperm(len(train), generator=seeds.child("split").generator())
        val, train = train.pick(order[:count].sort().values), train.pick(order[count:].sort().values)
    return make_labels_wrong(replace(split, train=train, val=val), settings.noise_ratio, seed)


def map_classes(split: Split, class_map: Mapping[int, int]) -> Split:
    """The split with the listed classes alone, all relabelled at the same time (so that {0: 1, 1: 0} swaps)."""
    missing = [old for old in class_map if not 0 <= old < split.num_classes]
    if missing:
        raise DataError(f"class_map: class {missing[0]}; the data set has classes 0 to {split.num_classes - 1}")
    table = torch.full((split.num_classes,), -1)
    for old, new in class_map.items():
        table[old] = new
    names = ["+".join(split.class_names[old] for old, to in class_map.items() if to == new) for new in sorted(set(class_map.values()))]

    def mapped(samples: Samples) -> Samples:
        kept = samples.pick((table[samples.labels] >= 0).nonzero().flatten())
        return replace(kept, labels=table[kept.labels], clean=table[kept.clean])

    return replace(split, train=mapped(split.train), test=mapped(split.test), class_names=tuple(names))


def _subset(train: Samples, size: int, how: str, seeds: Seeds) -> Samples:
    if size > len(train):
        raise DataError(f"subset_size: {size}; at most the {len(train)} training samples there are")
    generator = seeds.child("subset").generator()
    order = torch.arange(size) if how == "first" else torch.randperm(len(train), generator=generator)
    return train.pick(order[:size].sort().values)


def validation_count(val_size: float, available: int) -> int:
    """The number of validation samples for `val_size` (a share below 1, a count from 1 on); DataError if none is left to train on."""
    count = int(val_size) if val_size >= 1 else int(val_size * available)
    if count >= available:
        raise DataError(f"val_size: {val_size:g}; fewer than the {available} training samples there are")
    return count


def make_labels_wrong(split: Split, ratio: float, seed: int) -> Split:
    """The split, int(ratio N) of its training labels wrong, drawn uniformly from the other classes; `clean` keeps the right ones."""
    if not ratio:
        return split
    generator = Seeds(seed).child("data", "noise").generator()
    rows = torch.randperm(len(split.train), generator=generator)[: int(ratio * len(split.train))]
    shift = torch.randint(1, split.num_classes, (len(rows),), generator=generator)
    labels = split.train.labels.clone()
    labels[rows] = (labels[rows] + shift) % split.num_classes
    return replace(split, train=replace(split.train, labels=labels))
