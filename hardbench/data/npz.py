"""A user's data set: `npz:PATH`, a NumPy archive with x_train, y_train, x_test and y_test."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench import archives, files
from hardbench.data.samples import Samples, Split
from hardbench.errors import ConfigError, DataError, brief
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import SourceSettings

KNOWN: dict[str, None] = {"npz:PATH": None}
NEEDED = ("x_train", "y_train", "x_test", "y_test")
MOST_CLASSES = 100_000  # above it labels are identifiers, not classes


@DATASETS.add("npz", variants=True)
def load(settings: SourceSettings, root: Path, seeds: Seeds) -> Split:
    """The split in an archive; PATH is relative to the working directory.

    Inputs [N, H, W], [N, H, W, C] or [N, D]: uint8 images stay pixels, uint8 vectors become float32 in [0, 1], floats are taken
    as they are. Labels [N] or [N, 1], integers from 0 to K - 1. `class_names` is optional, K strings. DataError if something does not fit.
    """
    path = _path(settings)
    if path == Path():
        raise ConfigError(f"dataset: {settings.dataset}; the archive's path behind a colon, npz:PATH")
    try:
        if not files.is_there(path):
            raise DataError(f"no such file (looked for {path.absolute()})")
        return _split(archives.read(path, NEEDED, ["class_names"]))
    except (DataError, ValueError) as error:
        raise DataError(f"dataset: {brief(settings.dataset)}; {error}") from None


def peek(settings: SourceSettings, root: Path) -> Split | None:
    """The split, or None where there is no such file."""
    return load(settings, root, Seeds(0)) if files.is_there(_path(settings)) else None


def _path(settings: SourceSettings) -> Path:
    return files.expanded(settings.dataset.partition(":")[2])


def _split(arrays: Mapping[str, Any]) -> Split:
    parts = {}
    for part in ("train", "test"):
        inputs, labels = _inputs(f"x_{part}", arrays[f"x_{part}"]), _labels(f"y_{part}", arrays[f"y_{part}"])
        if not len(inputs) == len(labels) > 0:
            raise DataError(f"x_{part} holds {len(inputs)} inputs, y_{part} {len(labels)} labels; as many of both, at least one")
        parts[part] = Samples.of(inputs, labels)
    train, test = parts["train"], parts["test"]
    if train.shape != test.shape or train.inputs.dtype != test.inputs.dtype:
        described = [f"{tuple(arrays[name].shape[1:])} {arrays[name].dtype}" for name in ("x_train", "x_test")]
        raise DataError(f"x_train holds {described[0]}, x_test {described[1]}; the same shape and type in both")
    unseen = sorted(set(test.labels.unique().tolist()) - set(train.labels.unique().tolist()))
    if unseen:
        raise DataError(f"class {unseen[0]} is in y_test and not in y_train; every test class in train")
    count = int(train.labels.max()) + 1
    if not 2 <= count <= MOST_CLASSES:
        raise DataError(f"labels up to {count - 1}; classes 0, 1, ..., at least two and at most {MOST_CLASSES}")
    names = arrays.get("class_names", np.arange(count).astype(str))
    if names.dtype.kind != "U" or names.shape != (count,):
        raise DataError(f"class_names: {names.dtype} {names.shape}; {count} strings, one for each class")
    if any(not str(name).isprintable() or len(name) > 200 for name in names):
        raise DataError("class_names: names of one line and at most 200 characters each")
    return Split(train, test, tuple(map(str, names)))


def _inputs(name: str, array: np.ndarray) -> Tensor:
    """Inputs as Samples takes them: uint8 or float32 [N, C, H, W], float32 [N, D]."""
    if array.ndim not in (2, 3, 4) or 0 in array.shape[1:]:
        raise DataError(f"{name} has shape {array.shape}; [N, H, W], [N, H, W, C] or [N, D]")
    if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] > 4:
        raise DataError(f"{name} has shape {array.shape}; [N, H, W, C], channels last")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise DataError(f"{name} is {array.dtype}; uint8 for pixels, or floats")
    pixels = array.dtype == np.uint8
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused below
        inputs = torch.from_numpy(np.ascontiguousarray(array, dtype=np.uint8 if pixels else np.float32))
    if not pixels and not inputs.isfinite().all():
        raise DataError(f"{name} holds values that are not finite; finite float32 numbers")
    if inputs.ndim == 2:
        return inputs / 255 if pixels else inputs
    return inputs.unsqueeze(1) if inputs.ndim == 3 else inputs.permute(0, 3, 1, 2).contiguous()


def _labels(name: str, array: np.ndarray) -> Tensor:
    """Labels as int64 [N]."""
    if not array.ndim or array.shape[1:] not in ((), (1,)):
        raise DataError(f"{name} has shape {array.shape}; [N] or [N, 1]")
    if array.dtype.kind not in "iu":
        raise DataError(f"{name} is {array.dtype}; integers")
    if array.size and (array.min() < 0 or array.max() > np.iinfo(np.int64).max):
        raise DataError(f"{name} holds labels from {array.min()} to {array.max()}; from 0 on")
    return torch.from_numpy(np.ascontiguousarray(array.reshape(-1), dtype=np.int64))
