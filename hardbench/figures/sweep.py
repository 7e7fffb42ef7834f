"""Figures of sweeps: accuracy against the corruption level or the share of samples kept, and a coloured table over any two settings."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hardbench.artifacts import Array, settings_of
from hardbench.errors import ConfigError, nearest
from hardbench.figures import style
from hardbench.figures.runs import FigureOptions, Kind, Runs, StoredRun, file_stem, run_labels, slug
from hardbench.metrics.hardness import mean_stderr

Settings = Mapping[str, Array]  # values as words [C] by the setting's name
LABELS = {"corruption_p": "corruption probability p", "noise_ratio": "share of wrong labels", "test_accuracy": "test accuracy"}
LABELS |= {"test_loss": "test loss / nats"}
PANELS = 12  # of one grid
MARKERS = {"hard": "v", "unsuspected": "s"}  # by the way in which samples were kept


def _label(name: str) -> str:
    return LABELS.get(name, name.replace("_", " "))


def _varying(settings: Settings) -> list[str]:
    """Settings with several values."""
    return [name for name, values in settings.items() if len(set(values)) > 1]


def _score(run: StoredRun, options: FigureOptions) -> tuple[str, Array]:
    """Name and values [C, R] of the metric asked for, test accuracy by default; ConfigError for one that was not measured."""
    scores = {name: values for name, values in run.arrays.items() if values.ndim == 2}
    name = options.metric or ("test_accuracy" if "test_accuracy" in scores else next(iter(scores), ""))
    if name not in scores:
        raise ConfigError(f"metric: {name or 'none'}; {nearest(name, scores) if scores else 'nothing was measured'}")
    return name, scores[name]


def _ordered(values: Array) -> list[str]:
    """Distinct values, numbers by size."""
    words = list(dict.fromkeys(values.tolist()))
    try:
        return sorted(words, key=float)
    except ValueError:
        return sorted(words)


def _combinations(settings: Settings, names: Sequence[str], cells: Array) -> list[tuple[str, ...]]:
    """The values that settings have together in some of the cells (bool [C]), in the order of the cells; one empty one for no settings."""
    return list(dict.fromkeys(zip(*(settings[name][cells] for name in names), strict=True))) if names else [()]


def _cells(settings: Settings, names: Sequence[str], values: Sequence[str]) -> Array:
    """The cells in which settings have the given values, bool [C], or True for no settings."""
    return np.all([settings[name] == value for name, value in zip(names, values, strict=True)], axis=0)


def _words(names: Sequence[str], values: Sequence[str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value or '-'}" for name, value in zip(names, values, strict=True))


def accuracy_vs_p(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Test accuracy (or another `metric`) against the corruption level: a figure per model, a panel per activation.

    Mean over networks, bars are standard errors; a line per value of every other swept setting. The dashed line is the rule of the nearest
    class mean, on clean test samples.
    """
    figures = {}
    for run, label in zip(runs, run_labels(runs), strict=True):
        settings, (metric, values) = settings_of(run.arrays), _score(run, options)
        if len(set(settings["corruption_p"])) < 2 or not all(settings["model"]):
            raise ConfigError(f"kind: accuracy_vs_p; a sweep of trainings over corruption_p, and {run.name} is none")
        score = "accuracy" if metric == "test_accuracy" else slug(metric)
        for model in _ordered(settings["model"]):
            figure = _accuracy_vs_p(run, settings["model"] == model, metric, values, model)
            figures[file_stem(f"{score}_vs_p_{slug(model)}", label, len(runs))] = figure
    return figures


def _accuracy_vs_p(run: StoredRun, of_model: Array, metric: str, values: Array, model: str) -> Figure:
    """The figure of one model, whose cells are `of_model` (bool [C]), from values [C, R]."""
    settings = settings_of(run.arrays)
    others = [name for name in _varying(settings) if name not in ("corruption_p", "model", "activation")]
    panels = _ordered(settings["activation"][of_model])
    figure, axes = style.sheet(1, len(panels), width=3.6 if len(panels) > 1 else 4.8, sharey=True)
    handles: dict[str, Any] = {}
    for axis, activation in zip(axes.flat, panels, strict=True):
        of_panel = of_model & (settings["activation"] == activation)
        for number, combination in enumerate(_combinations(settings, others, of_panel)):
            cells = of_panel & _cells(settings, others, combination)
            label = _words(others, combination) or "networks"
            handles.setdefault(label, _error_bars(axis, settings["corruption_p"][cells], values[cells], label, number))
        baselines = run.arrays["baseline"][of_panel]
        for level in sorted(set(baselines[np.isfinite(baselines)].tolist())) if metric == "test_accuracy" else ():
            line = axis.axhline(level, color=style.INK, linewidth=1.0, linestyle="--", label="nearest class mean", zorder=1)
            handles["nearest class mean"] = line
        title = f"{model}, {activation}" if activation else model
        axis.set_title(f"{title}\n{_per_point(values[of_panel])}", fontsize=style.SMALL + 1, parse_math=False)
        axis.set_xlabel(LABELS["corruption_p"])
    axes[0, 0].set_ylabel(_label(metric))
    if metric.endswith("accuracy"):
        axes[0, 0].set_ylim(-0.02, 1.02)
    style.legend(axes.flat[-1], list(handles.values()), "mean ± standard error")
    return figure


def accuracy_vs_kept(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Test accuracy (or another `metric`) against the share of the training samples kept, by easy, hard and random shares and the detector.

    Mean over networks, bars are standard errors; a line for each score, and for every value of the other swept settings.
    """
    figures = {}
    for run, label in zip(runs, run_labels(runs), strict=True):
        settings, (metric, values) = settings_of(run.arrays), _score(run, options)
        if not any(settings.get("keep", ())) or "kept" not in run.arrays:
            raise ConfigError(f"kind: accuracy_vs_kept; a sweep of trainings over keep, and {run.name} is none")
        score = "accuracy" if metric == "test_accuracy" else slug(metric)
        figures[file_stem(f"{score}_vs_kept", label, len(runs))] = _accuracy_vs_kept(run, settings, metric, values)
    return figures


def _accuracy_vs_kept(run: StoredRun, settings: Settings, metric: str, values: Array) -> Figure:
    """The figure of a sweep over `keep` from values [C, R]: a colour per score and for random shares, hard shares dashed."""
    others = [name for name in _varying(settings) if name not in ("keep", "hardness")]
    names = ["keep", "hardness", *others]
    kept = np.array([f"{share:.6g}" for share in run.arrays["kept"]])
    ways = [keep.partition(":")[0] or "all samples" for keep in settings["keep"]]
    chosen = {**settings, "keep": np.array(ways), "hardness": _sources(settings)}
    colours = list(dict.fromkeys((source or way, *more) for way, source, *more in _combinations(chosen, names, np.ones(len(kept), bool))))
    figure, axis = style.panel(width=5.4)
    handles = []
    for way, source, *more in _combinations(chosen, names, np.ones(len(kept), bool)):
        cells = _cells(chosen, names, (way, source, *more))
        label = ", ".join(filter(None, (f"{way} by {source}" if source else way, _words(others, more))))
        number = colours.index((source or way, *more)) + len(style.COLOURS) * (way == "hard")
        handles.append(_error_bars(axis, kept[cells], values[cells], label, number, MARKERS.get(way, "o")))
    axis.set_title(_per_point(values), fontsize=style.SMALL + 1)
    axis.set(xlabel="share of the training samples kept", ylabel=_label(metric), xlim=(0, 1.04))
    style.legend(axis, handles, "mean ± standard error")
    return figure


def _sources(settings: Settings) -> Array:
    """The score by which every cell chose its samples, [C], with its run where several have it; empty where none did."""
    words = [word.partition(":")[::2] for word in settings.get("hardness", [""] * len(settings["keep"]))]
    several = {score for _, score in words if score and len({run for run, other in words if other == score}) > 1}
    sources = [f"{score} of {run[:8]}" if score in several else score or run[:8] for run, score in words]
    asked = [keep and not keep.startswith("random") for keep in settings["keep"]]
    return np.array([source if asks else "" for source, asks in zip(sources, asked, strict=True)])


def _per_point(values: Array) -> str:
    """In words the number of networks with a value in each cell of [C, R]."""
    counts = np.isfinite(values).sum(1).tolist()
    count = str(max(counts)) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{count} network{'s' * (max(counts) > 1)} per point"


def _error_bars(axis: Axes, levels: Array, values: Array, label: str, number: int, marker: str = "o") -> Any:
    """The mean of values [C, R] at every level [C], pooled where several cells share one, with its standard error."""
    x = np.array(_ordered(levels))
    pooled = [mean_stderr(values[levels == level].ravel()) for level in x]
    mean, stderr = (np.array(column) for column in zip(*pooled, strict=True))
    bars = np.nan_to_num(stderr)
    look: dict[str, Any] = {"marker": marker, "markersize": 3.5, "capsize": 2, **style.line_style(number)}
    return axis.errorbar(x.astype(float), mean, yerr=bars, label=label, **look)


def grid(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """The mean of a score (`metric`, default test accuracy) over two swept settings, a panel per value of the others.

    `by` names the two: columns, then rows; default: corruption_p where it is swept, and the next of the swept ones.
    """
    figures = {}
    for run, label in zip(runs, run_labels(runs), strict=True):
        settings, (metric, values) = settings_of(run.arrays), _score(run, options)
        x, y = options.by or _first_two(_varying(settings), run)
        for name in (x, y):
            if name not in settings:
                raise ConfigError(f"by: {name}; {nearest(name, settings)}")
        score = "" if metric == "test_accuracy" else f"{slug(metric)}_"
        figures[file_stem(f"grid_{score}{y}_{x}", label, len(runs))] = _grid(settings, metric, values, x, y)
    return figures


def _first_two(varying: Sequence[str], run: StoredRun) -> tuple[str, str]:
    names = sorted(varying, key=lambda name: name != "corruption_p")
    if len(names) < 2:
        raise ConfigError(f"kind: grid; a sweep over two settings, and {run.name} has {' '.join(names) or 'none'}")
    return names[0], names[1]


def _grid(settings: Settings, metric: str, values: Array, x: str, y: str) -> Figure:
    """A table for each combination of the other settings: mean of values [C, R] over networks and cells, by x (columns) and y (rows)."""
    others = [name for name in _varying(settings) if name not in (x, y)]
    panels = _combinations(settings, others, np.ones(len(values), dtype=bool))
    if len(panels) > PANELS:
        raise ConfigError(f"by: {x},{y}; two settings that leave at most {PANELS} combinations of the others, not {len(panels)}")
    columns, rows = _ordered(settings[x]), _ordered(settings[y])
    width = 1.8 + max(0.42 * len(columns), 2.2) + 0.07 * max(map(len, rows))
    figure, axes = style.panels(len(panels), min(len(panels), 3), width=width, height=1.4 + max(0.42 * len(rows), 1.2))
    top = 1.0 if metric.endswith("accuracy") else np.nanmax(mean_stderr(values.T)[0], initial=1e-9)
    for axis, panel in zip(axes, panels, strict=True):
        cells = [[_cells(settings, (*others, y, x), (*panel, row, column)) for column in columns] for row in rows]
        table = np.array([[mean_stderr(values[cell].ravel())[0] for cell in row] for row in cells])
        texts = np.array([["-" if np.isnan(value) else f"{value:.3f}" for value in row] for row in table], dtype=object)
        style.heatmap(axis, table, rows, columns, f"{_label(metric)}, mean", Normalize(0, top), texts, aspect="auto")
        axis.set(xlabel=_label(x), ylabel=_label(y))
        axis.set_title(_words(others, panel), fontsize=style.SMALL + 1, parse_math=False)
    return figure


KINDS: dict[str, Kind] = {"accuracy_vs_p": accuracy_vs_p, "accuracy_vs_kept": accuracy_vs_kept, "grid": grid}
