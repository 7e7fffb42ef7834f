"""Compare runs in a table: the settings that differ, and the metrics with their standard errors."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from hardbench import console, tracking
from hardbench.config import ASIDE, options
from hardbench.configs.compare import Config
from hardbench.declaration import shown
from hardbench.errors import ConfigError, HardbenchError, TrackingError, nearest
from hardbench.settings import InversionSettings, TrainingSettings
from hardbench.stored import StoredRun


def run(config: Config) -> None:
    """Print the table, and write it where `--csv` says."""
    everything = tracking.runs(config.study)
    studies = sorted({one.study for one in tracking.runs()})
    if config.study is not None and config.study not in studies:
        raise ConfigError(f"study: {config.study}; {nearest(config.study, studies) if studies else 'there are no runs yet'}")
    chosen = [tracking.find(word, studies, finished=True if word == "last" else None) for word in config.runs]
    chosen = chosen or [one for one in everything if one.status == "FINISHED"]
    if not chosen:
        raise TrackingError(f"runs: none; there is no finished run in {tracking.place()}")
    names = config.metric or sorted({name for one in chosen for name in one.metrics if _shown(name)})
    names = [name.removesuffix("_stderr") for name in names]
    missing = [name for name in names if not any(name in one.metrics for one in chosen)]
    if missing:
        raise ConfigError(f"metric: {missing[0]}; {nearest(missing[0], sorted({name for one in chosen for name in one.metrics}))}")
    known = {one.id: _settings(one) for one in chosen}
    settings = _differing(chosen, known)
    if config.sort is not None:
        chosen = _sorted(chosen, config.sort, [*settings, *names], known)
    values = {one.id: [known[one.id].get(name, "-") for name in settings] for one in chosen}
    rows = [[one.id[:8], one.name, one.status.lower(), *values[one.id], *_cells(one, names)] for one in chosen]
    short = [name.removeprefix("final/").replace("_", " ") for name in names]
    console.table(f"{len(chosen)} runs", ["run", "name", "status", *(name.replace("_", " ") for name in settings), *short], rows)
    if config.csv is not None:
        _write(Path(config.csv), chosen, ["run", "name", "status", *settings], values, names)
        console.say(config.csv)


def _shown(name: str) -> bool:
    trained = ("final/test_accuracy", "final/test_loss", "final/val_accuracy", "eval/accuracy")
    return name in (*trained, "final/error", "inversions/found", "stragglers/fraction", "train/error_at_inversion")


def _settings(one: StoredRun) -> dict[str, str]:
    """All settings of a run as text: of config.yaml, which has the defaults, too, and those that are params alone (a sweep's headline)."""
    try:
        stored = {name: shown(value) for name, value in one.config.items()}
    except HardbenchError:  # a run that has none, or none that can be read: what the store says
        stored = {}
    return stored | one.params if one.study == "sweep" else one.params | stored


def _differing(chosen: Sequence[StoredRun], known: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Settings that are not the same in all runs, but for those that no result depends on.

    That a setting means something to one choice alone (tau to one model) is a difference only where it was given or is a headline.
    """
    logged = {name for one in chosen for name in one.params}
    particular = {name for cls in (TrainingSettings, InversionSettings) for name, option in options(cls).items() if option.declared.read_by}
    found = []
    for name in sorted({name for one in chosen for name in known[one.id]} - set(ASIDE)):
        values = {known[one.id].get(name, "-" if name in logged else None) for one in chosen} - {None}
        if len(values - {"-"} if name in particular - logged else values) > 1:
            found.append(name)
    return found


def _cells(one: StoredRun, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        value, error = one.metrics.get(name), one.metrics.get(f"{name}_stderr")
        cells.append("-" if value is None else f"{value:.4f}" + (f" +- {error:.4f}" if error is not None else ""))
    return cells


def _sorted(chosen: Sequence[StoredRun], word: str, columns: Sequence[str], known: Mapping[str, Mapping[str, str]]) -> list[StoredRun]:
    name = word.removeprefix("-")
    name = next((option for option in columns if option in (name, f"final/{name}")), name)
    if name not in columns and not any(name in one.metrics or name in known[one.id] for one in chosen):
        raise ConfigError(f"sort: {word}; {nearest(name, columns)}")

    def key(one: StoredRun) -> tuple[float, str]:
        value = one.metrics.get(name, known[one.id].get(name, ""))
        try:
            return float(value), ""
        except ValueError:
            return float("-inf"), str(value)

    there = [one for one in chosen if name in one.metrics or name in known[one.id]]
    ordered = sorted(there, key=key, reverse=not word.startswith("-"))
    return ordered + [one for one in chosen if one not in there]


def _write(
    path: Path, chosen: Sequence[StoredRun], heads: Sequence[str], values: Mapping[str, Sequence[str]], names: Sequence[str]
) -> None:
    columns = [column for name in names for column in (name, f"{name}_stderr")]
    rows = [[one.id, one.name, one.status, *values[one.id], *(one.metrics.get(column, "") for column in columns)] for one in chosen]
    try:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([[*heads, *columns], *rows])
    except OSError as error:
        raise ConfigError(f"csv: {path}; a file that can be written ({error.strerror})") from None
