"""Layer metrics in figures: their words, how they are read from a run, and the parts that several figures draw.

Layers count from 0 at the input side. The held-out phase is `val`, or `test` for a run without a validation split; with one, `test` was
measured at the end alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hardbench.artifacts import Array, layer_key, metric_of
from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.runs import FigureOptions, Kind, Runs, StoredRun, file_stem, is_measured, measured, run_labels
from hardbench.metrics.hardness import mean_stderr

PHASES = {"train": "training samples", "val": "validation split", "test": "test set"}
METRICS = {  # name, unit or reference, range and direction
    "probe_accuracy": ("probe accuracy", "", "0 to 1, higher is better"),
    "f1_score": ("probe F1", ", classes weighted", "0 to 1, higher is better"),
    "accuracy": ("anchor accuracy", "", "0 to 1, higher is better"),
    "cross_entropy": ("cross entropy", " / nats", "lower is better"),
    "cross_entropy_raw": ("cross entropy without τ", " / nats", "lower is better"),
    "mutual_information": ("mutual information", " with inputs / nats", "first components; 0: none"),
    "gaussian_entropy": ("Gaussian entropy", " / nats per unit", "lower: narrower"),
    "participation_ratio": ("participation ratio", " / directions", "from 1, a line"),
    "dead_units": ("dead units", " / share", "0 to 1, lower is better"),
    "linear_cka": ("linear CKA", " with the layer before", "up to 1, the same"),
    "ridge_r2": ("ridge R²", " to the next layer", "up to 1, a linear map"),
    "alignment": ("alignment", " / cosine", "own anchor, higher is better"),
    "margin": ("margin", " / cosine", "over other anchors, higher is better"),
    "ace_regularizer": ("ACE", " to the next layer / nats", "higher: further apart"),
    "loss": ("local training loss", " / nats", "lower is better"),
}

ROBUST = ("ridge_r2",)  # metrics without a lower bound, of which an untrained layer or two would flatten all others


def wording(metric: str) -> tuple[str, str, str]:
    """Name, label with unit, and the label above its range and direction; a metric registered elsewhere goes by its own name."""
    name, tail, meaning = METRICS.get(metric, (metric.replace("_", " "), "", ""))
    return name, name + tail, name + tail + (f"\n({meaning})" if meaning else "")


def with_error(mean: float, stderr: float = np.nan, between: str = " ") -> str:
    """`mean ± stderr` to the first figure of the error (the second after a 1), with at most four decimals.

    Without an error, the mean to three figures, or three decimals below 1; `-` for nan.
    """
    if stderr > 0:
        digits = int(np.clip(np.ceil(-np.log10(stderr / 1.95)), 0, 4))
        return f"{mean:.{digits}f}{between}± {stderr:.{digits}f}"
    digits = 0 if abs(mean) >= 100 else 1 if abs(mean) >= 10 else 2 if abs(mean) >= 1 else 3
    return "-" if np.isnan(mean) else f"{round(mean, digits) + 0.0:.{digits}f}"


def held_out(run: StoredRun) -> str:
    """The phase that `layer_<metric>` is of: val, or test for a run without a validation split."""
    return "val" if float(run.config.get("val_size") or 0) > 0 else "test"


def array_of(run: StoredRun, metric: str, phase: str) -> str:
    """Name of the array of a metric in a phase; ConfigError for the validation phase of a run without a validation split."""
    if phase == "val" and held_out(run) == "test":
        raise ConfigError(f"phase: val; {run.name} ({run.id[:8]}) has no validation split (val_size 0): test is what it held out")
    return layer_key(metric, "val" if phase == held_out(run) else phase)


def over_time(run: StoredRun, metric: str, phase: str) -> Array:
    """A metric at every evaluation point [R, T, L]; ConfigError where the phase was measured at the end alone."""
    name = array_of(run, metric, phase)
    if measured(run, name).ndim == 2:
        raise ConfigError(f"{name}: measured at the end alone; this figure needs train or {held_out(run)}")
    return run.arrays[name]


def of_layer(values: Array, layer: int) -> Array:
    """One layer of values [R, T, L], [R, T]; ConfigError where there is no such layer or it has no number."""
    if layer >= values.shape[2]:
        raise ConfigError(f"layer: {layer}; 0 to {values.shape[2] - 1}")
    if not np.isfinite(values[:, :, layer]).any():
        raise ConfigError(f"layer: {layer}; another, the metric is undefined there")
    return np.asarray(values[:, :, layer])


def last(values: Array) -> Array:
    """Values [R, T, L] at the last evaluation point where a repeat has a number in any layer, [R, L]; [R, L] is returned as it is."""
    if values.ndim == 2:
        return values
    known = np.asarray(np.isfinite(values).any(axis=2))
    return np.asarray(values[np.arange(len(values)), known.shape[1] - 1 - known[:, ::-1].argmax(axis=1)])


def ends(run: StoredRun, metric: str, phase: str) -> Array:
    """A metric at each repeat's last measured evaluation point [R, L]."""
    return last(measured(run, array_of(run, metric, phase)))


def published(run: StoredRun, metric: str) -> Array | None:
    """The published estimate on one training mini-batch [R, T, L], None if not measured.

    The published entropy is a sum over the units of a layer; it is divided by their number, as the other estimate is.
    """
    name, units = layer_key(metric, "published"), run.config.get("widths") or run.config.get("width")
    if not is_measured(run, name) or (metric == "gaussian_entropy" and not units):
        return None
    return np.asarray(run.arrays[name] / np.asarray(units if metric == "gaussian_entropy" else 1.0, dtype=float))


def null_range(run: StoredRun, metric: str, phase: str, end: bool = False) -> Array | None:
    """The held-out metric under permuted labels: mean - 2 std and mean + 2 std of the permutations, each a mean over repeats.

    [2, T, L], with `end` [2, L] at the last evaluation point; None for another phase, or where it was not measured.
    """
    names = [layer_key(metric, part) for part in ("null_mean", "null_std")]
    if phase != held_out(run) or not all(is_measured(run, name) for name in names):
        return None
    mean, std = (mean_stderr(last(run.arrays[name]) if end else run.arrays[name])[0] for name in names)
    return np.stack((mean - 2 * std, mean + 2 * std))


def metrics_of(parts: Sequence[tuple[StoredRun, str]], asked: str | None) -> list[str]:
    """The metric asked for, or all that every run measured in its phase, in METRICS' order."""
    if asked:
        return [asked.replace("-", "_")]
    measured_by = [{name for name in map(metric_of, run.arrays) if name and is_measured(run, array_of(run, name, p))} for run, p in parts]
    return sorted(set.intersection(*measured_by), key=lambda name: (list(METRICS).index(name) if name in METRICS else len(METRICS), name))


def repeats_of(run: StoredRun) -> int:
    """The number of networks whose layers were measured."""
    return len(next(values for key, values in run.arrays.items() if metric_of(key)))


def headline(run: StoredRun, label: str, samples: str, error: bool = True) -> str:
    """The title of a figure: the run, the samples, and what is drawn of the networks."""
    return f"{label}\n{samples}; {style.networks(repeats_of(run), error)}"


def collect(runs: Runs, drawings: Mapping[str, Callable[[], Figure]], strict: bool) -> dict[str, Figure]:
    """The figures by file stem. Those that lack numbers are left out; ConfigError where all do, or with `strict` one does."""
    figures: dict[str, Figure] = {}
    first: ConfigError | None = None
    for stem, draw in drawings.items():
        try:
            figures[stem] = draw()
        except ConfigError as error:
            if strict:
                raise
            first = first or error
    if not figures:
        names = " and ".join(f"{run.name} ({run.id[:8]})" for run in runs)
        raise first or ConfigError(f"layer_metrics: none measured in {names}")
    return figures


def single(stem: str, draw: Callable[..., Figure], error: bool = True) -> Kind:
    """A kind that draws run by run: by metric and phase where the stem names them, in the phase asked for.

    Without one: the held-out phase, or where the stem names a phase and no metric, each that was measured. `draw` takes run, phase and
    metrics; the label of its figure, if any, says in the title what samples it is of. Several runs have their labels in the stems.
    """
    by_metric, every_phase = "{metric}" in stem, "{phase}" in stem and "{metric}" not in stem

    def titled(run: StoredRun, label: str, phase: str, metrics: list[str]) -> Figure:
        figure = draw(run, phase, *metrics)
        title = headline(run, label, str(figure.get_label()) or PHASES[phase], error)
        figure.suptitle(title, fontsize=style.SMALL + 1).set_parse_math(False)
        return figure

    def kind(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
        drawings, asked = {}, options.pick("phase", PHASES)
        for run, label in zip(runs, run_labels(runs), strict=True):
            held = held_out(run)
            for phase in [asked] if asked else dict.fromkeys(("train", held, "test")) if every_phase else [held]:
                metrics = metrics_of([(run, phase)], options.metric)
                for group in [[metric] for metric in metrics] if by_metric else [metrics] if metrics else []:
                    name = file_stem(stem.format(metric=group[0], phase=phase), label, len(runs))
                    drawings[name] = partial(titled, run, label, phase, group)
        return collect(runs, drawings, strict=bool(options.metric if by_metric else asked))

    return kind


def grid(count: int, titles: Sequence[str], xlabel: str, most: int = 0, **more: Any) -> tuple[Figure, list[Axes]]:
    """Panels with titles in rows of up to `most` (default: four or five, whichever leaves fewer gaps), the x label below the lowest."""
    columns = min(count, most or (5 if -count % 5 < -count % 4 else 4))
    figure, axes = style.panels(count, columns, **{"width": 3.3, "height": 2.5, **more})
    for index, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        axis.set_title(title, fontsize=style.SMALL, loc="left")
        axis.set_xlabel(xlabel if index + columns >= count else "", fontsize=style.SMALL + 1)
    return figure, axes


def layer_axis(axis: Axes, count: int) -> None:
    """Limits and ticks of an x axis that is the layer."""
    axis.set(xlim=(-0.35, count - 0.65), xticks=range(0, count, 1 + count // 17))


def profile(axis: Axes, values: Array, label: str | None = None, **more: Any) -> Line2D:
    """Mean over repeats against the layer from values [R, L], with the band of one standard error (a bar where there is one layer)."""
    count = values.shape[1]
    line = style.band(axis, np.arange(count), values, label, **{"marker": "o", "markersize": 3.5, **more})
    if count == 1:
        axis.errorbar([0], *mean_stderr(values), color=line.get_color(), capsize=3)
    layer_axis(axis, count)
    return line


def robust_view(metric: str, *axes: Axes, both: bool = False) -> None:
    """Have outliers at the low end (`both`: at either) marked at the edge where the metric has no lower bound."""
    if metric in ROBUST:
        style.robust_view(*axes, both=both)


def layer_lines(
    axis: Axes, x: Array, values: Array, metric: str, name: str = "layer {}", more: Sequence[Line2D] = (), both: bool = False
) -> None:
    """Layers from a metric's values [R, T, L] as lines against the step, up to twelve of them named at their ends, as are `more` lines.

    `both`: see `robust_view`.
    """
    shades = style.ordered(values.shape[2])
    lines = [style.band(axis, x, values[:, :, i], name.format(i), color=shade, linewidth=1.2) for i, shade in enumerate(shades)]
    style.log_steps(axis, axis.get_xlabel())
    robust_view(metric, axis, both=both)
    style.label_ends(axis, [*(lines[i] for i in style.sampled(len(lines), 12)), *more])


def null_lines(axis: Axes, run: StoredRun, metric: str, phase: str, layer: int | None = None) -> list[Line2D]:
    """The grey band of permuted labels against the step, of one layer or the span of all; the line in its middle, or none."""
    limits = null_range(run, metric, phase)
    if limits is None:
        return []
    picked = limits if layer is None else limits[:, :, [layer]]
    return [grey_band(axis, run.arrays["steps"] + 1, np.fmin.reduce(picked[0], axis=1), np.fmax.reduce(picked[1], axis=1))]


def grey_band(axis: Axes, x: Array, low: Array, high: Array) -> Line2D:
    """The band of permuted labels; the line in its middle carries the name."""
    axis.fill_between(x, low, high, color=style.GREY, alpha=0.5, linewidth=0, zorder=1.2)
    return axis.plot(x, (low + high) / 2, color="#808080", linewidth=0.6, zorder=1.2, label="permuted labels")[0]
