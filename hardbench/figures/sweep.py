"""Figures of sweeps: accuracy against the corruption level, and a coloured table over any two settings."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hardbench.errors import ConfigError, nearest
from hardbench.figures import style
from hardbench.figures.style import FigureOptions, StoredRun
from hardbench.metrics.hardness import mean_stderr

Array = np.ndarray[Any, Any]
WORDS = {"corruption_p": "corruption probability p", "noise_ratio": "share of wrong labels", "test_accuracy": "test accuracy"}
WORDS |= {"test_loss": "test loss / nats"}
PANELS = 12  # of one grid


def _settings(run: StoredRun) -> dict[str, Array]:
    """Settings as words [C] by name, those first that a table starts with."""
    return {name.removeprefix("setting_"): values for name, values in run.arrays.items() if name.startswith("setting_")}


def _varying(run: StoredRun) -> list[str]:
    """Settings with several values."""
    return [name for name, values in _settings(run).items() if len(set(values)) > 1]


def _score(run: StoredRun, options: FigureOptions) -> tuple[str, Array]:
    known = {name: values for name, values in run.arrays.items() if values.ndim == 2}
    name = options.metric or ("test_accuracy" if "test_accuracy" in known else next(iter(known), ""))
    if name not in known:
        raise ConfigError(f"metric: {name or 'none'}; {nearest(name, known) if known else 'nothing was measured'}")
    return name, known[name]


def _ordered(values: Array) -> list[str]:
    """Distinct values, numbers by size."""
    words = list(dict.fromkeys(values.tolist()))
    try:
        return sorted(words, key=float)
    except ValueError:
        return sorted(words)


def accuracy_vs_p(runs: Sequence[StoredRun], options: FigureOptions) -> dict[str, Figure]:
    """Test accuracy (or another `metric`) against the corruption level: a figure per model, a panel per activation.

    Mean over networks, bars are standard errors; a line per value of every other swept setting. The dashed line is the rule of the nearest
    class mean, on clean test samples.
    """
    figures = {}
    for run, prefix in zip(runs, style.run_labels(runs), strict=True):
        settings, (metric, values) = _settings(run), _score(run, options)
        if len(set(settings["corruption_p"])) < 2 or not all(settings["model"]):
            raise ConfigError(f"kind: accuracy_vs_p; a sweep of trainings over corruption_p, and {run.name} is none")
        for model in _ordered(settings["model"]):
            rows = settings["model"] == model
            stem = f"accuracy_vs_p_{style.slug(model)}" if metric == "test_accuracy" else f"{style.slug(metric)}_vs_p_{style.slug(model)}"
            figures[stem if len(runs) == 1 else f"{stem}_{style.slug(prefix)}"] = _levels(run, rows, metric, values, model)
    return figures


def _levels(run: StoredRun, rows: Array, metric: str, values: Array, model: str) -> Figure:
    settings = _settings(run)
    others = [name for name in _varying(run) if name not in ("corruption_p", "model", "activation")]
    panels = _ordered(settings["activation"][rows])
    figure, axes = style.sheet(1, len(panels), width=3.6 if len(panels) > 1 else 4.8, sharey=True)
    handles: dict[str, Any] = {}
    for axis, activation in zip(axes.flat, panels, strict=True):
        here = rows & (settings["activation"] == activation)
        lines = list(dict.fromkeys(zip(*(settings[name][here] for name in others), strict=True))) if others else [()]
        for number, line in enumerate(lines):
            chosen = here.copy()
            for name, value in zip(others, line, strict=True):
                chosen &= settings[name] == value
            label = _line(others, line) or "networks"
            handles.setdefault(label, _bars(axis, settings["corruption_p"][chosen], values[chosen], label, number))
        known = run.arrays["baseline"][here]
        if metric == "test_accuracy" and np.isfinite(known).any():
            for level in sorted(set(known[np.isfinite(known)].tolist())):
                line = axis.axhline(level, color=style.INK, linewidth=1.0, linestyle="--", label="nearest class mean", zorder=1)
                handles["nearest class mean"] = line
        counts = np.isfinite(values[here]).sum(1).tolist()
        spread = str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        title = f"{model}, {activation}" if activation else model
        axis.set_title(f"{title}\n{spread} network{'s' * (max(counts) > 1)} per point", fontsize=style.SMALL + 1, parse_math=False)
        axis.set_xlabel(WORDS["corruption_p"])
    axes[0, 0].set_ylabel(WORDS.get(metric, metric.replace("_", " ")))
    if metric.endswith("accuracy"):
        axes[0, 0].set_ylim(-0.02, 1.02)
    style.legend(axes.flat[-1], list(handles.values()), "mean ± standard error")
    return figure


def _line(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value or '-'}" for name, value in zip(names, values, strict=True))


def _bars(axis: Any, levels: Array, values: Array, label: str, number: int) -> Any:
    """The mean of values [C, R] at every level, pooled where several cells share one, with its standard error."""
    x = np.array(_ordered(levels))
    pooled = [mean_stderr(values[levels == level].ravel()) for level in x]
    mean, stderr = (np.array(column) for column in zip(*pooled, strict=True))
    bars = np.nan_to_num(stderr)
    return axis.errorbar(x.astype(float), mean, yerr=bars, label=label, marker="o", markersize=3.5, capsize=2, **style.line_style(number))


def grid(runs: Sequence[StoredRun], options: FigureOptions) -> dict[str, Figure]:
    """The mean of a score (`metric`, default test accuracy) over two swept settings, a panel per value of the others.

    `by` names the two: columns, then rows; default: corruption_p where it is swept, and the next of the swept ones.
    """
    figures = {}
    for run, prefix in zip(runs, style.run_labels(runs), strict=True):
        settings, (metric, values) = _settings(run), _score(run, options)
        varying = _varying(run)
        x, y = options.by or _two(varying, run)
        for name in (x, y):
            if name not in settings:
                raise ConfigError(f"by: {name}; {nearest(name, settings)}")
        stem = f"grid_{y}_{x}" if metric == "test_accuracy" else f"grid_{style.slug(metric)}_{y}_{x}"
        others = [name for name in varying if name not in (x, y)]
        figures[stem if len(runs) == 1 else f"{stem}_{style.slug(prefix)}"] = _tables(settings, metric, values, (x, y), others)
    return figures


def _two(varying: Sequence[str], run: StoredRun) -> tuple[str, str]:
    ordered = sorted(varying, key=lambda name: name != "corruption_p")
    if len(ordered) < 2:
        raise ConfigError(f"kind: grid; a sweep over two settings, and {run.name} has {' '.join(ordered) or 'none'}")
    return ordered[0], ordered[1]


def _tables(settings: dict[str, Array], metric: str, values: Array, by: tuple[str, str], others: Sequence[str]) -> Figure:
    x, y = by
    panels = list(dict.fromkeys(zip(*(settings[name] for name in others), strict=True))) if others else [()]
    if len(panels) > PANELS:
        raise ConfigError(f"by: {x},{y}; two settings that leave at most {PANELS} combinations of the others, not {len(panels)}")
    columns, rows = _ordered(settings[x]), _ordered(settings[y])
    width = 1.8 + max(0.42 * len(columns), 2.2) + 0.07 * max(map(len, rows))
    across = min(len(panels), 3)
    figure, axes = style.sheet(-(-len(panels) // across), across, width=width, height=1.4 + max(0.42 * len(rows), 1.2))
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    means = mean_stderr(values.T)[0]
    top = np.nanmax(means, initial=1e-9) if not metric.endswith("accuracy") else 1.0
    for axis, panel in zip(axes.flat, panels, strict=False):
        table = np.full((len(rows), len(columns)), np.nan)
        chosen = np.ones(len(values), dtype=bool)
        for name, value in zip(others, panel, strict=True):
            chosen &= settings[name] == value
        for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
            cells = chosen & (settings[y] == row) & (settings[x] == column)
            if cells.any():
                table[i, j] = mean_stderr(values[cells].ravel())[0]
        texts = np.array([["-" if np.isnan(value) else f"{value:.3f}" for value in line] for line in table], dtype=object)
        label = f"{WORDS.get(metric, metric.replace('_', ' '))}, mean"
        style.heatmap(axis, table, rows, columns, label, texts, norm=Normalize(0, top), aspect="auto")
        axis.set(xlabel=WORDS.get(x, x.replace("_", " ")), ylabel=WORDS.get(y, y.replace("_", " ")))
        axis.set_title(_line(others, panel), fontsize=style.SMALL + 1, parse_math=False)
    return figure


KINDS: dict[str, Callable[[Sequence[StoredRun], FigureOptions], dict[str, Figure]]] = {"accuracy_vs_p": accuracy_vs_p, "grid": grid}
