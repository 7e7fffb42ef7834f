"""Small files in the real formats of published data sets (real ones are never committed), and splits read from them."""

import bz2
import gzip
import hashlib
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hardbench.data.samples import Split, prepare
from hardbench.settings import DataSettings

CODES = {"uint8": 0x08, "int32": 0x0C}


def idx_bytes(array: np.ndarray) -> bytes:
    """An array as an IDX file: two zero bytes, element type, dimensions, sizes (big-endian), data (big-endian)."""
    head = bytes([0, 0, CODES[array.dtype.name], array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, content: bytes, packed: bool = False) -> Path:
    """The path of a file with that content, gzipped (and named .gz) if packed."""
    path = path.with_name(path.name + ".gz") if packed else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)
    return path


def images(count: int, side: int = 28, seed: int = 0) -> np.ndarray:
    """Random uint8 images [N, side, side]."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side), dtype=np.uint8)


def cycle(count: int, classes: int = 10, first: int = 0) -> np.ndarray:
    """Labels first, first + 1, ... over and over, uint8 [N]."""
    return (np.arange(count) % classes + first).astype(np.uint8)


def idx_set(
    root: Path, home: str = "MNIST", stems: Sequence[str] = ("train", "t10k"), packed: bool = True, first: int = 0, train: int = 40
) -> dict[str, np.ndarray]:
    """Files of a set in torchvision's layout (20 for test, ten labels over and over); returns x_train, y_train, x_test, y_test."""
    arrays = {}
    for part, stem, count in zip(("train", "test"), stems, (train, 20), strict=True):
        arrays[f"x_{part}"], arrays[f"y_{part}"] = images(count, seed=count), cycle(count, first=first)
        write(root / home / "raw" / f"{stem}-images-idx3-ubyte", idx_bytes(arrays[f"x_{part}"]), packed)
        write(root / home / "raw" / f"{stem}-labels-idx1-ubyte", idx_bytes(arrays[f"y_{part}"]), packed)
    return arrays


def qmnist_set(root: Path) -> None:
    """QMNIST's files, its labels int32 [N, 8] with the class in column 0."""
    for part, count in (("train", 40), ("test", 20)):
        labels = np.full((count, 8), 99, dtype=np.int32)
        labels[:, 0] = cycle(count)
        write(root / "QMNIST" / "raw" / f"qmnist-{part}-images-idx3-ubyte", idx_bytes(images(count)))
        write(root / "QMNIST" / "raw" / f"qmnist-{part}-labels-idx2-int", idx_bytes(labels))


def usps_set(root: Path) -> None:
    """USPS in the libsvm text format: label 1 to 10, then 256 pixels in [-1, 1]."""
    for name, count in (("usps.bz2", 40), ("usps.t.bz2", 20)):
        values = images(count, side=16).reshape(count, -1) / 127.5 - 1
        pixels = [" ".join(f"{at}:{value:.6f}" for at, value in enumerate(row, start=1)) for row in values]
        lines = [f"{label} {row}" for label, row in zip(cycle(count, first=1), pixels, strict=True)]
        (root / name).write_bytes(bz2.compress("\n".join(lines).encode()))


def cifar_batch(path: Path, count: int, **more: object) -> str:
    """A pickled CIFAR file with that many samples and further keys; returns its md5."""
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
    content = pickle.dumps({"data": pixels, "labels": cycle(count).tolist()} | more)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.md5(content).hexdigest()


def archive(path: Path, **changes: np.ndarray | None) -> str:
    """The name of an archive of 12 and 6 random 5x4 images in three classes, with changes (None leaves a key out)."""
    arrays = {"x_train": images(12)[:, :5, :4], "y_train": cycle(12, 3), "x_test": images(6, seed=1)[:, :5, :4], "y_test": cycle(6, 3)}
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return f"npz:{path}"


def load(dataset: str, root: Path | str | None = None, seed: int = 0, **more: object) -> Split:
    """The split a run would train on, from the files below `root`."""
    return prepare(DataSettings(dataset=dataset, data_dir=None if root is None else str(root), **more), seed)
