"""Published image sets in torchvision's folder layout: read where they lie, packed or not; downloaded at first use."""

import bz2
import gzip
import math
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench import files
from hardbench.data.samples import Samples, Split
from hardbench.errors import ConfigError, DataError
from hardbench.ram import free_memory
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import SourceSettings

DIGITS = tuple("0123456789")
USPS = ("usps.bz2", "usps.t.bz2")
PATIENCE = 30  # seconds without a byte after which a download fails
MAGIC = {"idx3-ubyte": (0x803, "u1"), "idx1-ubyte": (0x801, "u1"), "idx2-int": (0xC02, ">i4")}  # by the file name's end, with the elements
DEFLATE = 1032  # bytes that one byte of a .gz file can unpack to
TEXT = 1 << 28  # largest text of a USPS file in bytes, many times the published one


@dataclass(frozen=True)
class ImageSet:
    """A published set of images: torchvision's class for it, sizes and shape, its files below the data folder and how they are read."""

    home: str
    train: int
    test: int
    classes: int
    shape: tuple[int, ...]
    files: tuple[str, ...]
    archives: tuple[str, ...]  # downloads, from which torchvision unpacks the files
    read: Callable[["ImageSet", Path, bool], Split]
    names: tuple[str, ...] | None = None  # None: torchvision knows them
    options: Mapping[str, str] = field(default_factory=dict)

    def missing(self, root: Path) -> list[str]:
        """The files that are in the folder neither as they are nor as .gz."""
        return [name for name in self.files if not any(files.is_there(root / (name + end)) for end in ("", ".gz"))]


def read_idx(path: Path, body: bool = True) -> Tensor:
    """The array of an IDX file (`path`, or `path`.gz), integers of any shape; without `body` zeros of that shape that take no memory."""
    path = path if files.is_there(path) else path.with_name(path.name + ".gz")
    magic, kind = next(known for end, known in MAGIC.items() if path.name.removesuffix(".gz").endswith(end))
    element, dims = np.dtype(kind), magic & 0xFF
    try:
        size = files.regular(path).stat().st_size
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * dims)
            shape = tuple(int.from_bytes(head[at : at + 4], "big") for at in range(4, len(head), 4))
            promised = math.prod(shape) * element.itemsize
            most = min(size * DEFLATE, free_memory())
            content = file.read(promised + 1) if body and promised <= most else b""
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it to download it again") from None
    if int.from_bytes(head[:4], "big") != magic or len(head) < 4 + 4 * dims:
        raise DataError(f"{path}: begins with 0x{head[:4].hex()}, {len(head)} bytes of header; 0x{magic:08x} and {dims} sizes (IDX)")
    items = f"{' x '.join(map(str, shape))} items of {element.itemsize} bytes"
    if promised > most:
        raise DataError(f"{path}: promises {items} and is a file of {size} bytes, {most} at most to read; a complete file")
    if not body:
        return torch.zeros((), dtype=torch.uint8).expand(shape)
    if len(content) != promised:
        held = f"{len(content)} bytes" + (" or more" if len(content) > promised else "")
        raise DataError(f"{path}: promises {items} and holds {held}; a complete file")
    array = np.frombuffer(content, element).reshape(shape)
    return torch.from_numpy(array.copy() if element.itemsize == 1 else array.astype(np.int64))


def _read_idx_set(image_set: ImageSet, root: Path, pixels: bool) -> Split:
    parts = []
    for images, labels in (image_set.files[:2], image_set.files[2:]):
        targets = read_idx(root / labels)
        targets = targets[:, :1].flatten() if targets.ndim == 2 else targets  # QMNIST: the class, then where the digit comes from
        inputs = read_idx(root / images, body=pixels)
        if len(inputs) != len(targets):
            raise DataError(f"{root / labels}: {len(targets)} labels; {len(inputs)}, as many as images in {Path(images).name}")
        parts.append(Samples.of(inputs.unsqueeze(1), targets))
    return Split(parts[0], parts[1], image_set.names or _names(image_set))


def _names(image_set: ImageSet) -> tuple[str, ...]:
    from torchvision import datasets

    home = getattr(datasets, image_set.home)
    return tuple(getattr(home, "classes_split_dict", {}).get(image_set.options.get("split"), home.classes))


def _check_text(path: Path) -> None:
    """ValueError for a .bz2 file with far more text than the published one: torchvision reads all of it."""
    with bz2.open(path) as text:
        if sum(len(part) for part in iter(lambda: text.read(1 << 20) if text.tell() <= TEXT else b"", b"")) > TEXT:
            raise ValueError(f"more than {TEXT} bytes of text in {path.name}")


def _read_with_torchvision(image_set: ImageSet, root: Path, pixels: bool) -> Split:
    from torchvision import datasets

    parts = []
    try:
        for file in image_set.files:
            files.regular(root / file)
            if file.endswith(".bz2"):
                _check_text(root / file)
        for train in (True, False):
            images = getattr(datasets, image_set.home)(root, train=train)
            inputs = torch.from_numpy(images.data)
            inputs = inputs.unsqueeze(1) if inputs.ndim == 3 else inputs.permute(0, 3, 1, 2).contiguous()
            parts.append(Samples.of(inputs, torch.tensor(images.targets)))
    except MemoryError:
        raise DataError(f"{', '.join(image_set.files)} in {root}: does not fit into memory; more of it, or a smaller set") from None
    except Exception as error:  # whatever a damaged file makes torchvision raise (it checks the sums of files it unpickles)
        said = " ".join(str(error).split())
        raise DataError(f"{', '.join(image_set.files)} in {root}: damaged ({said}); delete them to download them again") from None
    return Split(parts[0], parts[1], image_set.names or tuple(images.classes))


def _idx(home: str, train: int, test: int, stems: Sequence[str] = ("train", "t10k"), labels: str = "idx1-ubyte", **more: Any) -> ImageSet:
    files = tuple(f"{home}/raw/{stem}-{kind}" for stem in stems for kind in ("images-idx3-ubyte", f"labels-{labels}"))
    return replace(ImageSet(home, train, test, 10, (1, 28, 28), files, tuple(f"{name}.gz" for name in files), _read_idx_set), **more)


def _emnist(split: str, train: int, test: int, classes: int) -> ImageSet:
    stems, archives = (f"emnist-{split}-train", f"emnist-{split}-test"), ("EMNIST/raw/gzip.zip",)
    return _idx("EMNIST", train, test, stems, classes=classes, archives=archives, options={"split": split})


def _cifar(classes: int, folder: str, *names: str) -> ImageSet:
    files = tuple(f"{folder}/{name}" for name in names)
    archive = f"cifar-{classes}-python.tar.gz"
    return ImageSet(f"CIFAR{classes}", 50_000, 10_000, classes, (3, 32, 32), files, (archive,), _read_with_torchvision)


KNOWN = {
    "mnist": _idx("MNIST", 60_000, 10_000, names=DIGITS),
    "fashionmnist": _idx("FashionMNIST", 60_000, 10_000),
    "kmnist": _idx("KMNIST", 60_000, 10_000),
    "qmnist": _idx("QMNIST", 60_000, 60_000, stems=("qmnist-train", "qmnist-test"), labels="idx2-int", names=DIGITS),
    "emnist:balanced": _emnist("balanced", 112_800, 18_800, 47),
    "emnist:byclass": _emnist("byclass", 697_932, 116_323, 62),
    "emnist:bymerge": _emnist("bymerge", 697_932, 116_323, 47),
    "emnist:digits": _emnist("digits", 240_000, 40_000, 10),
    "emnist:letters": _emnist("letters", 124_800, 20_800, 27),
    "emnist:mnist": _emnist("mnist", 60_000, 10_000, 10),
    "usps": ImageSet("USPS", 7_291, 2_007, 10, (1, 16, 16), USPS, USPS, _read_with_torchvision, DIGITS),
    "cifar10": _cifar(10, "cifar-10-batches-py", *(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"),
    "cifar100": _cifar(100, "cifar-100-python", "train", "test", "meta"),
}


def _image_set(word: str) -> ImageSet:
    if word.lower() in KNOWN:
        return KNOWN[word.lower()]
    family = [name for name in KNOWN if name.partition(":")[0] == word.lower().partition(":")[0]]
    raise ConfigError(f"dataset: {word}; {'one of ' if len(family) > 1 else ''}{', '.join(family)}")


@DATASETS.add("emnist", variants=True)
@DATASETS.add("cifar10", "cifar100", "fashionmnist", "kmnist", "mnist", "qmnist", "usps")
def load(settings: SourceSettings, root: Path, seeds: Seeds) -> Split:
    """The published split, uint8 [N, C, H, W]; files that are missing below `root` are downloaded first.

    Images, labels and class names are torchvision's: EMNIST's images are transposed, and its letters count from 1 (class 0, N/A, is empty).
    """
    image_set = _image_set(settings.dataset)
    if image_set.missing(root):
        _download(settings.dataset, image_set, root)
    return _read(settings.dataset, image_set, root)


def peek(settings: SourceSettings, root: Path) -> Split | None:
    """The split with its labels, IDX pixels left unread (zeros of the right shape); None where files are missing."""
    image_set = _image_set(settings.dataset)
    return None if image_set.missing(root) else _read(settings.dataset, image_set, root, pixels=False)


def _read(word: str, image_set: ImageSet, root: Path, pixels: bool = True) -> Split:
    try:
        split = image_set.read(image_set, root, pixels)
    except DataError as error:
        raise DataError(f"dataset: {word}; {error}") from None
    if split.train.shape != split.test.shape or 0 in split.train.shape:
        raise DataError(f"dataset: {word}; training images {split.train.shape}, test images {split.test.shape} in {root}; of one size")
    for part, samples in (("training", split.train), ("test", split.test)):
        if not len(samples) or not 0 <= samples.labels.min() <= samples.labels.max() < split.num_classes:
            held = f"labels from {samples.labels.min()} to {samples.labels.max()}" if len(samples) else "no samples"
            raise DataError(f"dataset: {word}; {held} in the {part} files in {root}; labels from 0 to {split.num_classes - 1}")
    return split


def _download(word: str, image_set: ImageSet, root: Path) -> None:
    """Put the set's files below `root` by torchvision's downloader, in a folder of their own until they are complete and checked."""
    from torchvision import datasets

    absent = f"dataset: {word}; looked for {', '.join(image_set.files)} in {root}"
    if root.parts[:1] == ("~",):
        raise DataError(f"{absent}, and there is no home folder; a folder as data_dir")
    try:
        root.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(prefix=".download-", dir=root)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", error)
        raise DataError(f"{absent}, which cannot be written to ({reason}); the files, or a folder to download to") from None
    before = socket.getdefaulttimeout()
    with place as name:
        try:
            socket.setdefaulttimeout(PATIENCE)
            for archive in filter(lambda archive: (root / archive).is_file(), image_set.archives):
                (Path(name) / archive).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(root / archive, Path(name) / archive)
            for train in (True, False):
                getattr(datasets, image_set.home)(name, train=train, download=True, **image_set.options)
            for file in filter(Path.is_file, Path(name).rglob("*")):
                target = root / file.relative_to(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
        except (OSError, RuntimeError, EOFError, ValueError, HTTPException) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{absent}, and the download failed ({reason}); the files, or a network") from None
        finally:
            socket.setdefaulttimeout(before)
