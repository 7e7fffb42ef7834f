"""Compare runs in a table: the settings that differ, and the metrics with their standard errors."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardbench import console, tracking
from hardbench.config import Config as AnyConfig
from hardbench.config import setting
from hardbench.errors import ConfigError, TrackingError, nearest
from hardbench.stored import StoredRun


@dataclass(frozen=True)
class Config(AnyConfig):
    """Settings of `hardbench compare`."""

    runs: tuple[str, ...] = setting((), "Runs: ids, unique prefixes, or last; default: all finished ones.", position=True, also=("run",))
    study: str | None = setting(None, "Only runs of this study.")
    metric: tuple[str, ...] = setting((), "Metrics to show; default: the final ones.")
    sort: str | None = setting(None, "Metric or setting to sort by, the largest first; -NAME for the smallest.")
    csv: str | None = setting(None, "File that gets the table, all digits.", stored=False)
    config: str | None = setting(None, "YAML file whose keys are option names.", stored=False)


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
    settings = _differing(chosen)
    if config.sort is not None:
        chosen = _sorted(chosen, config.sort, [*settings, *names])
    rows = [[one.id[:8], one.name, one.status.lower(), *(one.params.get(s, "-") for s in settings), *_cells(one, names)] for one in chosen]
    short = [name.removeprefix("final/").replace("_", " ") for name in names]
    console.table(f"{len(chosen)} runs", ["run", "name", "status", *(name.replace("_", " ") for name in settings), *short], rows)
    if config.csv is not None:
        _write(Path(config.csv), chosen, settings, names)
        console.say(config.csv)


def _shown(name: str) -> bool:
    trained = ("final/test_accuracy", "final/test_loss", "final/val_accuracy", "eval/accuracy")
    return name in (*trained, "final/error", "inversions/found", "stragglers/fraction", "train/error_at_inversion")


def _differing(chosen: Sequence[StoredRun]) -> list[str]:
    """Headline settings that are not the same in all runs, in the order of the first run's."""
    names = list(dict.fromkeys(name for one in chosen for name in one.params))
    return sorted(name for name in names if len({one.params.get(name) for one in chosen}) > 1)


def _cells(one: StoredRun, names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        value, error = one.metrics.get(name), one.metrics.get(f"{name}_stderr")
        cells.append("-" if value is None else f"{value:.4f}" + (f" +- {error:.4f}" if error is not None else ""))
    return cells


def _sorted(chosen: Sequence[StoredRun], word: str, known: Sequence[str]) -> list[StoredRun]:
    name = word.removeprefix("-")
    name = next((option for option in known if option in (name, f"final/{name}")), name)
    if name not in known and not any(name in one.metrics or name in one.params for one in chosen):
        raise ConfigError(f"sort: {word}; {nearest(name, known)}")

    def key(one: StoredRun) -> tuple[float, str]:
        value = one.metrics.get(name, one.params.get(name, ""))
        try:
            return float(value), ""
        except ValueError:
            return float("-inf"), str(value)

    there = [one for one in chosen if name in one.metrics or name in one.params]
    ordered = sorted(there, key=key, reverse=not word.startswith("-"))
    return ordered + [one for one in chosen if one not in there]


def _write(path: Path, chosen: Sequence[StoredRun], settings: Sequence[str], names: Sequence[str]) -> None:
    columns = [column for name in names for column in (name, f"{name}_stderr")]
    try:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "name", "status", *settings, *columns])
            for one in chosen:
                numbers = [one.metrics.get(column, "") for column in columns]
                writer.writerow([one.id, one.name, one.status, *(one.params.get(name, "") for name in settings), *numbers])
    except OSError as error:
        raise ConfigError(f"csv: {path}; a file that can be written ({error.strerror})") from None
