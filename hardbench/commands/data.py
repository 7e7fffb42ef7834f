"""List the data sets with what is on disk, or fetch one."""

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import Tensor

from hardbench.configs.data import Config
from hardbench.console import table
from hardbench.data.samples import Split, data_root
from hardbench.errors import DataError
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import DataSettings

COLUMNS = ("data set", "where", "train", "test", "classes", "per class", "shape")  # per class: fewest-most in train


def run(config: Config) -> None:
    """A table of the data sets; for one by name also its classes with their counts."""
    fetch = config.action == "fetch"
    words = [str(config.name)] if fetch else list(_words(config.name))
    splits = {word: _split(word, config, lenient=len(words) > 1) for word in words}
    embedded = fetch and splits[words[0]][0] == "embedded"
    title = f"{words[0]} is part of hardbench: nothing to fetch" if embedded else f"Data sets, folder {data_root(config)}"
    table(title, COLUMNS, [_row(word, *splits[word]) for word in words])
    if len(words) == 1 and (split := splits[words[0]][1]) is not None:
        counts = zip(split.class_names, _counts(split, split.train.labels), _counts(split, split.test.labels), strict=True)
        table(f"Classes of {words[0]}", ("class", "name", "train", "test"), [(index, *row) for index, row in enumerate(counts)])


def _home(word: str) -> ModuleType:
    """The module of a data set. It has `peek` and `KNOWN` (words to published sizes) where the set is read from files."""
    return sys.modules[DATASETS[word].call.__module__]


def _words(name: str | None) -> Iterator[str]:
    """The data sets a name stands for: itself, all of its variants (emnist), or everything."""
    for entry in [name] if name else DATASETS:
        variants = [word for word in getattr(_home(entry), "KNOWN", {}) if word.partition(":")[0] == entry]
        yield from variants or [entry]


def _split(word: str, config: Config, lenient: bool) -> tuple[str, Split | None]:
    """Where a data set is, and its split if it is there; a damaged one is an error unless `lenient`.

    One that is fetched, or is part of hardbench, is read whole; DataError if it has not the published size.
    """
    home, settings, root = _home(word), DataSettings(dataset=word, data_dir=config.data_dir), data_root(config)
    if config.action == "fetch" or not hasattr(home, "peek"):
        split = DATASETS[word].call(settings, root, Seeds(0))
        known = _published(word)
        if known and (len(split.train), len(split.test)) != (known.train, known.test):
            held = f"{len(split.train)} training and {len(split.test)} test samples in {root}"
            raise DataError(f"dataset: {word}; {held}; {known.train} and {known.test} were published")
        return ("on disk" if hasattr(home, "peek") else "embedded"), split
    try:
        split = home.peek(settings, root)
    except DataError:
        if not lenient:
            raise
        return "damaged", None
    return ("absent" if split is None else "on disk"), split


def _row(word: str, where: str, split: Split | None) -> tuple[object, ...]:
    if split is not None:
        counts = _counts(split, split.train.labels)
        span = "-".join(map(str, sorted({min(counts), max(counts)})))
        return (word, where, len(split.train), len(split.test), split.num_classes, span, _by(split.train.shape))
    known = _published(word)
    return (word, where, *((known.train, known.test, known.classes, "-", _by(known.shape)) if known else ("-",) * 5))


def _published(word: str) -> Any:
    """The published sizes of a data set; None where there are none."""
    return getattr(_home(word), "KNOWN", {}).get(word.lower())


def _counts(split: Split, labels: Tensor) -> list[int]:
    return labels.bincount(minlength=split.num_classes).tolist()


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
