"""Compare runs in a table: the settings that differ, and the metrics with their standard errors."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardbench import console, tracking
from hardbench.config import ASIDE, options
from hardbench.configs.compare import Config
from hardbench.declaration import shown
from hardbench.errors import ConfigError, HardbenchError, TrackingError, nearest
from hardbench.metrics.hardness import mean_text
from hardbench.settings import InversionSettings, TrainingSettings
from hardbench.stored import StoredRun

TRAINED = ("final/test_accuracy", "final/test_loss", "final/val_accuracy", "final/error", "eval/accuracy")
HEADLINES = (*TRAINED, "inversions/found", "stragglers/fraction", "train/error_at_inversion")  # the metrics where none are asked for


def run(config: Config) -> None:
    """Print the table, and write it where `--csv` says."""
    studies = sorted({run.study for run in tracking.runs()})
    if config.study is not None and config.study not in studies:
        raise ConfigError(f"study: {config.study}; {nearest(config.study, studies) if studies else 'there are no runs yet'}")
    chosen = [tracking.find(word, studies, finished=True if word == "last" else None) for word in config.runs]
    chosen = chosen or [run for run in tracking.runs(config.study) if run.status == "FINISHED"]
    if not chosen:
        raise TrackingError(f"runs: none; there is no finished run in {tracking.place()}")
    measured = sorted({name for run in chosen for name in run.metrics})
    names = [name.removesuffix("_stderr") for name in config.metric or [name for name in measured if name in HEADLINES]]
    if missing := [name for name in names if name not in measured]:
        raise ConfigError(f"metric: {missing[0]}; {nearest(missing[0], measured)}")
    known = {run.id: _settings(run) for run in chosen}
    settings = _differing(chosen, known)
    if config.sort is not None:
        chosen = _sorted(chosen, config.sort, [*settings, *names], known)
    values = {run.id: [known[run.id].get(name, "-") for name in settings] for run in chosen}
    rows = [[run.id[:8], run.name, run.status.lower(), *values[run.id], *(_cell(run, name) for name in names)] for run in chosen]
    heads = ["run", "name", "status", *settings, *(name.removeprefix("final/") for name in names)]
    console.table(f"{len(chosen)} runs", [head.replace("_", " ") for head in heads], rows)
    if config.csv is not None:
        columns = [column for name in names for column in (name, f"{name}_stderr")]
        numbers = [[run.metrics.get(column, "") for column in columns] for run in chosen]
        whole = [[run.id, run.name, run.status, *values[run.id], *row] for run, row in zip(chosen, numbers, strict=True)]
        _write(Path(config.csv), [["run", "name", "status", *settings, *columns], *whole])
        console.say(config.csv)


def _settings(run: StoredRun) -> dict[str, str]:
    """All settings of a run as text: of config.yaml, which has the defaults, too, and those that are params alone (a sweep's headline)."""
    try:
        stored = {name: shown(value) for name, value in run.config.items()}
    except HardbenchError:  # a run that has none, or none that can be read: what the store says
        stored = {}
    return stored | run.params if run.study == "sweep" else run.params | stored


def _differing(chosen: Sequence[StoredRun], known: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Settings that are not the same in all runs, but for those that no result depends on.

    That a setting means something to one choice alone (tau to one model) is a difference only where it was given or is a headline.
    """
    logged = {name for run in chosen for name in run.params}
    particular = {name for cls in (TrainingSettings, InversionSettings) for name, option in options(cls).items() if option.declared.read_by}
    differing = []
    for name in sorted({name for run in chosen for name in known[run.id]} - set(ASIDE)):
        values = {known[run.id].get(name, "-" if name in logged else None) for run in chosen} - {None}
        if len(values - {"-"} if name in particular - logged else values) > 1:
            differing.append(name)
    return differing


def _cell(run: StoredRun, name: str) -> str:
    return mean_text(run.metrics.get(name, math.nan), run.metrics.get(f"{name}_stderr", math.nan))


def _sorted(chosen: Sequence[StoredRun], word: str, columns: Sequence[str], known: Mapping[str, Mapping[str, str]]) -> list[StoredRun]:
    name = word.removeprefix("-")
    name = next((option for option in columns if option in (name, f"final/{name}")), name)
    values = {run.id: {**known[run.id], **run.metrics}.get(name) for run in chosen}
    if name not in columns and set(values.values()) <= {None}:
        raise ConfigError(f"sort: {word}; {nearest(name, columns)}")

    def key(run: StoredRun) -> tuple[float, str]:
        value: Any = values[run.id]
        try:
            return float(value), ""
        except ValueError:
            return float("-inf"), str(value)

    ordered = sorted((run for run in chosen if values[run.id] is not None), key=key, reverse=not word.startswith("-"))
    return ordered + [run for run in chosen if values[run.id] is None]


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    try:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    except OSError as error:
        raise ConfigError(f"csv: {path}; a file that can be written ({error.strerror})") from None
