"""Figures of training runs: learning curves, hardness and overlap of classes over time, overlap against overlap, confusions."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from hardbench.artifacts import Array
from hardbench.figures import layers, questions, style
from hardbench.figures.planted import planted
from hardbench.figures.runs import FigureOptions, Runs, StoredRun, class_names, file_stem, is_measured, literal, measured, run_labels, slug
from hardbench.metrics.hardness import correlation, final, mean_stderr, row_shares

Point = tuple[float, float, str, str]  # x, y, label, colour
AXIS_LABELS = {"loss": "loss / nats", "accuracy": "accuracy"}
# by phase: array of a metric, its steps, stroke
CURVES = {"train": ("train_{}", "log_steps", "--"), "val": ("val_{}", "steps", ":"), "test": ("{}", "steps", "-")}
CLASSES_APART = 12  # classes up to which each has a line style of its own
PAIRS_APART = 6  # the same for pairs of classes: all pairs of four


def _metric_axis(axis: Axes, metric: str) -> None:
    axis.set(ylabel=AXIS_LABELS[metric], ylim=(-0.02, 1.02) if metric == "accuracy" else (0, None))


def basic_training_curves(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Loss and accuracy against the optimiser step: of training batches, and of validation (where measured) and test samples.

    Mean and standard error over repeats. One run: phases are colours; several: runs are colours, phases strokes.
    """
    metric, phase = options.pick("metric", AXIS_LABELS), options.pick("phase", CURVES)
    metrics = [metric] if metric else list(AXIS_LABELS)
    figure, axes = style.sheet(1, len(metrics), width=4.6)
    phases: set[str] = set()
    for axis, name in zip(axes.flat, metrics, strict=True):
        for number, run in enumerate(runs):
            shown = [phase] if phase else [part for part in CURVES if part == "test" or is_measured(run, CURVES[part][0].format(name))]
            for part in shown:
                key, steps, stroke = CURVES[part]
                line = {**style.line_style(number), "linestyle": stroke} if len(runs) > 1 else style.line_style(list(CURVES).index(part))
                line |= {"linewidth": 0.8, "alpha": 0.8} if part == "train" else {"marker": "o", "markersize": 3}
                style.band(axis, run.arrays[steps], measured(run, key.format(name)), **line)
            phases.update(shown)
        axis.set_xlabel("optimiser step")
        axis.xaxis.set(major_locator=MaxNLocator(6, integer=True), major_formatter=EngFormatter(sep=""))
        _metric_axis(axis, name)
    style.legend(axes.flat[-1], _curve_handles(runs, [part for part in CURVES if part in phases]))
    return {"basic_training_curves": figure}


def _curve_handles(runs: Runs, phases: Sequence[str]) -> list[Any]:
    counts = [style.networks(len(run.arrays["accuracy"]), between=",\n") for run in runs]
    if len(runs) == 1:
        styles = [style.line_style(list(CURVES).index(phase)) | {"marker": "" if phase == "train" else "o"} for phase in phases]
        lines = [style.handle(phase, markersize=3, **line) for phase, line in zip(phases, styles, strict=True)]
        return [*lines, style.note(counts[0])]
    names = zip(run_labels(runs), counts, strict=True)
    lines = [style.handle(f"{name}\n{count}", color=style.line_style(number)["color"]) for number, (name, count) in enumerate(names)]
    return lines + [style.handle(phase, color=style.INK, linestyle=CURVES[phase][2]) for phase in phases]


def class_hardness(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Per-class test accuracy (or loss, with `metric`) over pairwise overlaps of the last hidden layer, against step + 1 on a log axis.

    One column per run: one run makes one column, two make a 2x2, more make a 2x2 for every two. Mean and standard error over repeats.
    """
    metric = options.pick("metric", AXIS_LABELS) or "accuracy"
    options.pick("phase", ("test",))
    labelled = list(zip(run_labels(runs), runs, strict=True))
    if len(runs) <= 2:
        return {"class_hardness": _hardness_columns(labelled, metric)}
    pairs = itertools.combinations(labelled, 2)
    return {f"class_hardness_{slug(a[0])}_vs_{slug(b[0])}": _hardness_columns([a, b], metric) for a, b in pairs}


def _hardness_columns(labelled: Sequence[tuple[str, StoredRun]], metric: str) -> Figure:
    longest = max(len(name) for _, run in labelled for name in class_names(run))
    figure, axes = style.sheet(2, len(labelled), width=4.8 + 0.12 * longest, height=3.3, sharex="col", sharey="row")
    classes, overlaps = [], []
    for (top, bottom), (label, run) in zip(axes.T, labelled, strict=True):
        names, x = class_names(run), run.arrays["steps"] + 1
        values = measured(run, f"{metric}_per_class")
        classes.append(style.family(top, x, values, names, CLASSES_APART))
        pairs, ends = style.pairs_of(names)
        overlap = measured(run, "overlap_dynamic")[:, :, *ends]
        overlaps.append(style.family(bottom, x, overlap, pairs, PAIRS_APART, first=len(names))[0])
        top.set_title(f"{label}\n{style.networks(len(values))}", fontsize=style.SMALL + 1, parse_math=False)
        style.log_steps(bottom)
    _metric_axis(axes[0, 0], metric)
    axes[1, 0].set_ylabel("class overlap, last hidden layer\n(cosine of class means)")
    legends = [[(line.get_label(), line.get_color(), line.get_linestyle()) for line in lines] for lines, _ in classes]
    for axis, (lines, rest), entries in zip(axes[0], classes, legends, strict=True):
        if axis is axes[0, -1] or entries != legends[-1]:
            style.legend(axis, [*lines, *rest], "class" if not rest else f"{metric} highest, lowest")
    for axis, lines in zip(axes[1], overlaps, strict=True):
        style.label_ends(axis, lines)
    return figure


def overlap_scatter(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Final dynamic (x) against static (y) overlap of every pair of classes and every repeat of the runs, with Pearson's and Spearman's r.

    Small points are repeats, large ones their means. Labelled are the two highest, the two lowest and the two pairs whose ranks in x and y
    differ most. Beyond 50 classes some of the pairs are drawn, evenly chosen; r is of all. The points of one pair share their static
    overlap and are not independent: no p value is given.
    """
    options.pick("phase", ("test",))
    figure, axis = style.panel(width=6.2, height=4.6)
    overlaps: list[tuple[Array, Array]] = []  # dynamic, static of each run
    means: list[Point] = []
    handles: list[Any] = []
    for number, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True)):
        measured(run, "overlap_dynamic")
        pairs, ends = style.pairs_of(class_names(run))
        dynamic = final(run.arrays, "overlap_dynamic")[:, *ends]  # [R, M]
        static = np.broadcast_to(measured(run, "overlap_static")[ends], dynamic.shape)
        overlaps.append((dynamic.ravel(), static.ravel()))
        mean, colour = mean_stderr(dynamic)[0], style.line_style(number)["color"]
        drawn = np.arange(len(pairs))
        if len(class_names(run)) > style.CROWD:
            order = np.argsort(mean)[: np.isfinite(mean).sum()]
            drawn = np.unique([*order[style.sampled(len(order))], *order[:2], *order[-2:]])
        size = 22 if len(pairs) <= 200 else 6
        axis.scatter(dynamic[:, drawn], static[:, drawn], s=size / 4, color=colour, alpha=0.35, linewidth=0)
        count = f"{len(pairs)} pair{'s' * (len(pairs) > 1)}, {len(dynamic)} network{'s' * (len(dynamic) > 1)}"
        count += f",\n{len(drawn)} pairs drawn" if len(drawn) < len(pairs) else ""
        name = f"{label}\n{count}\n{_correlations(*overlaps[-1])}"
        handles.append(axis.scatter(mean[drawn], static[0, drawn], s=size, color=colour, linewidth=0, label=name))
        means += [(mean[pair], static[0, pair], pairs[pair], colour) for pair in drawn if np.isfinite(mean[pair] + static[0, pair])]
    style.at_least(axis, 0.1)
    low, high = max(axis.get_xlim()[0], axis.get_ylim()[0]), min(axis.get_xlim()[1], axis.get_ylim()[1])
    if low < high:
        handles += axis.plot([low, high], [low, high], color=style.GREY, linewidth=0.8, linestyle="--", label="dynamic = static", zorder=1)
    if len(runs) > 1:
        handles.append(style.note("all runs\n" + _correlations(*map(np.concatenate, zip(*overlaps, strict=True)))))
    axis.set(xlabel="dynamic overlap at the end (last hidden layer, test set)", ylabel="static overlap (inputs, training set)")
    style.legend(axis, handles)
    style.label_points(axis, _extremes(means))
    return {"overlap_scatter": figure}


def _extremes(points: list[Point]) -> list[Point]:
    """The two lowest and the two highest x, and of the rest the two whose ranks in x and y differ most."""
    points = sorted(points)
    ranks = np.argsort(np.argsort([point[1] for point in points]))
    apart = sorted(range(2, len(points) - 2), key=lambda place: -abs(ranks[place] - place))[:2]
    return points if len(points) <= 6 else points[:2] + points[-2:] + [points[place] for place in apart]


def _correlations(x: Array, y: Array) -> str:
    values = {"Pearson": correlation(x, y), "Spearman": correlation(x, y, ranks=True)}
    return "\n".join(f"{name} r {'undefined' if np.isnan(r) else f'{r:.2f}'}" for name, r in values.items())


def confusion_matrix(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Test confusions at each repeat's last evaluation point, as counts and as shares of the true class; several runs: one pair each."""
    options.pick("phase", ("test",))
    figures: dict[str, Figure] = {}
    for run, label in zip(runs, run_labels(runs), strict=True):
        measured(run, "confusion")
        drawn = confusion_figures(final(run.arrays, "confusion"), class_names(run))
        figures |= {file_stem(kind, label, len(runs)): figure for kind, figure in drawn.items()}
    return figures


def confusion_figures(confusion: Array, names: Sequence[str]) -> dict[str, Figure]:
    """`confusion_matrix` (counts) and `confusion_matrix_normalized` (shares of the true class), means over the repeats of [R, K, K].

    Rows are the true classes. Up to ten classes the standard error is in the cell; a class without samples has no shares.
    """
    confusion, names = np.asarray(confusion, dtype=float), [literal(name) for name in names]
    networks = style.networks(len(confusion), error=False)
    counts = _confusion(confusion, names, f"test samples, {networks}", None)
    shares = _confusion(row_shares(confusion), names, f"share of the true class, {networks}", 1.0)
    return {"confusion_matrix": counts, "confusion_matrix_normalized": shares}


def _confusion(values: Array, names: list[str], label: str, top: float | None) -> Figure:
    """A heatmap of the mean of values [R, K, K], in colours from 0 to `top` (None, for counts: to the largest)."""
    side = min(3.0 + 0.5 * len(names), 12.0)
    figure, axis = style.panel(width=side + 1.4, height=side, layout="compressed")
    mean, stderr = mean_stderr(values)
    roomy = len(names) <= 10
    digits = (3 if roomy else 2) if top else 0 if np.array_equal(mean, np.round(mean), equal_nan=True) else 1
    texts = np.full(mean.shape, "-", dtype=object)
    for row, column in np.argwhere(np.isfinite(mean)) if len(names) <= style.ANNOTATED else ():
        value, error = mean[row, column], stderr[row, column]
        text = f"{value:.{digits}f}" if value >= 0.5 * 10**-digits else f"<{10.0**-digits:g}" if value else "0"
        texts[row, column] = text + (f"\n±{error:.{max(digits, 1)}f}" if roomy and error >= 0.5 * 10 ** -max(digits, 1) else "")
    # the colour scale is the square root, so that small values beside large ones can be told from none
    norm = PowerNorm(0.5, 0, top or max(np.nan_to_num(mean).max(initial=0), 1e-9))
    style.heatmap(axis, mean, names, names, label, norm, texts)
    axis.set(xlabel="predicted class", ylabel="true class")
    return figure


def confusion_matrix_normalized(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """The shares of confusion_matrix alone."""
    return {stem: figure for stem, figure in confusion_matrix(runs, options).items() if "normalized" in stem}


OF_CLASSES = (class_hardness, overlap_scatter, confusion_matrix, confusion_matrix_normalized)
KINDS = {kind.__name__: kind for kind in (basic_training_curves, *OF_CLASSES, planted)} | questions.KINDS | layers.KINDS
