"""The stored runs and the options that figures are drawn from, with the names that runs, classes and files get."""

import functools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from hardbench.artifacts import Array
from hardbench.data.samples import distinct
from hardbench.errors import ConfigError
from hardbench.stored import StoredRun

LONGEST = 40  # letters of a name


@dataclass(frozen=True)
class FigureOptions:
    """The options of `plot`; None leaves the choice to the figure."""

    metric: str | None = None
    layer: int | None = None
    phase: str | None = None
    by: tuple[str, str] | None = None  # two settings of a sweep: columns, rows
    formats: Sequence[str] = ("png",)  # of the files

    def pick(self, option: str, allowed: Collection[str]) -> str | None:
        """The word given for `metric` or `phase`, None if none was; ConfigError if it is not one of `allowed`."""
        word: str | None = getattr(self, option)
        if word is not None and word not in allowed:
            raise ConfigError(f"{option}: {word}; this figure draws {' or '.join(allowed)}")
        return word


Runs = Sequence[StoredRun]
Kind = Callable[[Runs, FigureOptions], dict[str, Figure]]
"""A kind of figure: from runs and options the figures by the stem of their file; ConfigError where the runs lack the numbers."""


def is_measured(run: StoredRun, name: str) -> bool:
    """True if a run stored an array of numbers that is not all nan."""
    return name in run.arrays and run.arrays[name].dtype.kind in "fiu" and bool(np.isfinite(run.arrays[name]).any())


def measured(run: StoredRun, name: str) -> Array:
    """A stored array; ConfigError if the run did not measure it."""
    if not is_measured(run, name):
        names = ", ".join(sorted(key for key in run.arrays if is_measured(run, key)))
        raise ConfigError(f"{name}: not measured in run {run.name} ({run.id[:8]}); it has {names or 'nothing'}")
    return run.arrays[name]


def needed(run: StoredRun, name: str, kind: str, needs: str) -> Array:
    """A stored array without which a kind of figure cannot be drawn; ConfigError, saying what it needs, for a run without it."""
    if not is_measured(run, name):
        raise ConfigError(f"{kind}: run {run.name} ({run.id[:8]}) has no numbers for it; {needs}")
    return run.arrays[name]


def run_labels(runs: Runs) -> list[str]:
    """A label for each run, its name, followed by the start of its id where names repeat; distinct in file names, too."""
    stems = [slug(literal(run.name)) for run in runs]
    return [literal(run.name) + ("" if stems.count(stem) == 1 else f" ({run.id[:6]})") for run, stem in zip(runs, stems, strict=True)]


def class_names(run: StoredRun) -> list[str]:
    """The original names of the K classes, by class number, as they are drawn: distinct, on one line each."""
    return list(distinct([literal(str(name)) for name in run.arrays["class_names"]]))


def literal(text: str) -> str:
    """Text from outside as it is drawn: characters that have no shape as their escapes (`\\n`), cut to LONGEST letters."""
    shown = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"


def slug(text: str) -> str:
    """Text as part of a file name: letters, digits, `.` and `-`, with `_` for the rest."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text).strip("_.")


def file_stem(kind: str, label: str, count: int) -> str:
    """The name of a figure's file without its ending: the kind, and of several runs (or models) the label of this one."""
    return kind if count == 1 else f"{kind}_{slug(label)}"


def one_per_run(runs: Runs, kind: str, draw: Callable[[StoredRun], Figure]) -> dict[str, Figure]:
    """One figure for each run, by the stem of its file."""
    return {file_stem(kind, label, len(runs)): draw(run) for label, run in zip(run_labels(runs), runs, strict=True)}


def each_run(draw: Callable[[StoredRun], Figure]) -> Kind:
    """The kind that draws one figure for each run, named after the function that draws it; it has no options."""
    return functools.wraps(draw)(lambda runs, options: one_per_run(runs, draw.__name__, draw))
