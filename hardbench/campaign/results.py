"""The results of a campaign: rows per network, a summary per cell, arrays that its figures are drawn from."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardbench.artifacts import ARRAYS, SECONDS, setting_key
from hardbench.files import write_text
from hardbench.metrics.hardness import final, mean_stderr
from hardbench.stored import KEPT, StoredRun

FIRST = {"activation": "activation", "model_type": "model", "p": "corruption_p"}  # column -> setting
SCORES = {"test_accuracy": "accuracy", "test_loss": "loss"}  # column -> array


class Table:
    """Finished cells with the numbers of their networks. `swept` are the settings that differ."""

    def __init__(self, swept: Sequence[str]):
        self.settings = {**FIRST, **{name: name for name in sorted(swept) if name not in FIRST.values() and name != "seed"}}
        self.swept = sorted(swept)
        self.cells: dict[str, dict[str, Any]] = {}  # by hash

    def add(self, key: str, stored: StoredRun, baseline: float) -> None:
        """Read a finished cell from the store."""
        config = stored.config
        row: dict[str, Any] = {column: _word(config.get(name)) for column, name in self.settings.items()}
        row |= {"seed": config.get("seed", ""), "first": config.get("first_repeat", 0), "run": stored.id, "baseline": baseline}
        kept, _, available = stored.tags.get(KEPT, "1 of 1").partition(" of ")
        row["kept"] = float(kept) / float(available)
        if stored.has(ARRAYS) and "accuracy" in stored.arrays and "confusion" in stored.arrays:
            row |= {column: final(stored.arrays, name) for column, name in SCORES.items()}
        else:  # of another study: whatever it measured, as one row
            row |= {name: np.array([value]) for name, value in sorted(stored.metrics.items()) if not name.endswith("_stderr")}
        row["seconds"] = np.load(stored.file(SECONDS), allow_pickle=False) if stored.has(SECONDS) else np.full(1, np.nan)
        self.cells[key] = row

    def ordered(self) -> list[dict[str, Any]]:
        """Cells by model_type, activation, p, then the other settings; numbers as numbers."""
        names = ["model_type", "activation", "p", *(name for name in self.settings if name not in FIRST), "seed", "first", "run"]
        return sorted(self.cells.values(), key=lambda row: [_rank(row[name]) for name in names])

    def measured(self) -> list[str]:
        """Columns of numbers."""
        return list(dict.fromkeys(name for row in self.cells.values() for name, value in row.items() if isinstance(value, np.ndarray)))

    def per_run(self) -> list[list[Any]]:
        """Header and one row per network: settings, seed, repeat, test accuracy and loss, seconds."""
        scores = [name for name in self.measured() if name != "seconds"] or list(SCORES)
        rows: list[list[Any]] = [[*self.settings, "seed", "repeat", *scores, "seconds", "run"]]
        for row in self.ordered():
            count = max((len(row[name]) for name in scores if name in row), default=0)
            for r in range(count):
                measured = [row.get(name, ()) for name in [*scores, "seconds"]]
                numbers = [_text(values[r]) if r < len(values) else "" for values in measured]
                rows.append([*(row[name] for name in self.settings), row["seed"], row["first"] + r, *numbers, row["run"]])
        return rows

    def summary(self) -> list[list[Any]]:
        """Header and one row per cell: repeats, mean, std (ddof 1), population std and standard error of every score."""
        scores = [name for name in self.measured() if name not in ("seconds", "test_loss")] or ["test_accuracy"]
        kinds = [f"{kind}_{name}" for name in scores for kind in ("mean", "std", "pstd", "stderr")]
        seeds = ["seed"] if "seed" in self.swept else []
        rows: list[list[Any]] = [[*self.settings, *seeds, "repeats", *kinds]]
        for row in self.ordered():
            numbers: list[Any] = []
            for name in scores:
                values = np.asarray(row.get(name, []), dtype=float)
                values = values[np.isfinite(values)]
                mean, stderr = mean_stderr(values) if len(values) else (np.nan, np.nan)
                std = np.std(values, ddof=1) if len(values) > 1 else np.nan
                numbers += [mean, std, np.std(values) if len(values) else np.nan, stderr]
            repeats = max(len(row[name]) for name in scores if name in row)
            rows.append([*(row[name] for name in [*self.settings, *seeds]), repeats, *map(_text, numbers)])
        return rows

    def arrays(self) -> dict[str, np.ndarray]:
        """For figures: every score [C, R] (nan where a cell has fewer networks), settings as words [C], and baseline and kept [C].

        baseline: accuracy of the nearest class mean; kept: share of the training samples that a cell trained on, by `keep`.
        """
        rows = self.ordered()
        arrays: dict[str, np.ndarray] = {"swept": np.array(self.swept, dtype=str)}
        for column, name in {**self.settings, "seed": "seed"}.items():
            arrays[setting_key(name)] = np.array([str(row[column]) for row in rows], dtype=str)
        arrays |= {name: np.array([row[name] for row in rows], dtype=float) for name in ("baseline", "kept")}
        longest = max((len(value) for row in rows for value in row.values() if isinstance(value, np.ndarray)), default=0)
        for name in self.measured():
            arrays[name] = np.full((len(rows), longest), np.nan)
            for place, row in enumerate(rows):
                values = row.get(name, ())
                arrays[name][place, : len(values)] = values
        return arrays


def _word(value: Any) -> Any:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "" if value is None else value


def _rank(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def _text(value: Any) -> Any:
    return "" if np.isnan(value) else float(value)


def write(path: Path, rows: Sequence[Sequence[Any]]) -> None:
    """A CSV file."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue())
