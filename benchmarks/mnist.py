"""MNIST for both forms, from one unpacked copy: torchvision would unpack into the folder it reads."""

import gzip
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from torch.utils.data import Subset

from hardbench.config import environment
from hardbench.data.samples import data_root
from hardbench.data.torchvision_sets import KNOWN
from hardbench.settings import PlaceSettings
from hardbench.studies.train import Config

MEAN, STD = 0.1307, 0.3081


def folder() -> Path:
    """The data folder: HARDBENCH_DATA, else the user's cache."""
    return data_root(PlaceSettings.read(environment(PlaceSettings)))


def there() -> bool:
    """True if all files are in the data folder, packed or not."""
    return not KNOWN["mnist"].missing(folder())


@contextmanager
def unpacked() -> Iterator[None]:
    """Within the block HARDBENCH_DATA, for this process and those it starts, is a temporary folder with the unpacked files."""
    if not there():
        yield
        return
    source = folder()
    with tempfile.TemporaryDirectory(prefix="hardbench-") as name:
        for file in KNOWN["mnist"].files:
            target = Path(name) / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if (source / file).is_file():
                shutil.copyfile(source / file, target)
            else:
                with gzip.open(source / f"{file}.gz") as packed, target.open("wb") as plain:
                    shutil.copyfileobj(packed, plain)
        with mock.patch.dict(os.environ, HARDBENCH_DATA=name):
            yield


def straightforward(train: bool, count: int = 10_000) -> Subset[Any]:
    """The first `count` images as torchvision gives them: a PIL image at a time, to a tensor, standardised."""
    from torchvision import datasets, transforms

    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    return Subset(datasets.MNIST(folder(), train=train, transform=steps), range(count))


def config(count: int, **more: Any) -> Config:
    """Settings of a training run on the first `count` images, standardised by the same constants, on one thread."""
    same: dict[str, Any] = {"dataset": "mnist", "data_dir": str(folder()), "mean": (MEAN,), "std": (STD,), "val_size": 0, "threads": 1}
    return Config(**same, subset_size=count, subset_from="first", **more)
