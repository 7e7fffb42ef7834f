"""Figures of layer metrics: over time, over layers, and between metrics, phases, runs and architectures.

The options `metric`, `layer` and `phase` restrict a figure; a figure that has no use for an option is drawn as without it. Without
options, a kind whose files are named after a metric draws every metric of the held-out phase, with layers as lines, rows or panels. The
other kinds draw one file, or where their files are named after a phase, one file for each phase that was measured.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from hardbench.errors import ConfigError
from hardbench.figures import measures, style
from hardbench.figures.measures import PHASES, ROBUST, array_of, ends, grid, held_out, of_layer, over_time, profile, single, wording
from hardbench.figures.runs import FigureOptions, Kind, Runs, StoredRun, is_measured, measured, run_labels
from hardbench.figures.style import HIGH, LOW, SMALL, line_style
from hardbench.metrics.hardness import correlation, mean_stderr

PHASE_STYLES = {"train": {"color": HIGH, "linestyle": "--"}, "val": {"color": LOW}, "test": {"color": style.COLOURS[2], "linestyle": "-."}}
MODELS = {"mlp": LOW, "gmlp": HIGH}
WIDE: dict[str, Any] = {"width": 5.6, "height": 3.8}
BATCH = "published (one batch)"


def _overview(run: StoredRun, phase: str, *metrics: str) -> Figure:
    """Every metric against step + 1, layers as lines; against the layer for a test set measured at the end alone."""
    timed = measured(run, array_of(run, metrics[0], phase)).ndim == 3
    titles = [wording(metric)[2] for metric in metrics]
    figure, axes = grid(len(metrics), titles, "optimiser step + 1 (at lines: layer)" if timed else "layer")
    for axis, metric in zip(axes, metrics, strict=True):
        if not timed:
            profile(axis, ends(run, metric, phase))
            continue
        if measures.null_lines(axis, run, metric, phase):
            figure.set_label(f"{PHASES[phase]}; grey: permuted labels, ± 2 std")
        measures.layer_lines(axis, run.arrays["steps"] + 1, over_time(run, metric, phase), metric, "{}")
    return figure


def _distributions(run: StoredRun, phase: str, *metrics: str) -> Figure:
    """The metrics at the end of training, layer by layer: a dot for each network, a bar for their mean with its standard error."""
    figure, axes = grid(len(metrics), [wording(metric)[2] for metric in metrics], "layer (dots: networks)")
    for axis, metric in zip(axes, metrics, strict=True):
        values = ends(run, metric, phase)
        repeats, count = values.shape
        measures.layer_axis(axis, count)
        x = np.arange(count) + np.linspace(-0.22, 0.22, repeats)[:, None] * (repeats > 1)
        axis.scatter(x, values, s=14, c=style.ordered(count) * repeats, linewidth=0, alpha=0.8)
        axis.errorbar(np.arange(count), *mean_stderr(values), 0.3, color=style.INK, linestyle="", linewidth=1)
    return figure


def _progression(run: StoredRun, phase: str, *metrics: str) -> Figure:
    """Every metric against the layer, as a line for each of up to five evaluation points, from light (the first) to dark."""
    figure, axes = grid(len(metrics), [wording(metric)[2] for metric in metrics], "layer (at lines: optimiser step)")
    steps = run.arrays["steps"]
    times = style.sampled(len(steps), 5)
    shades = dict(zip(times, style.ordered(len(times), "Blues", 0.5, 1.0), strict=True))
    for axis, metric in zip(axes, metrics, strict=True):
        values = over_time(run, metric, phase)
        lines = [profile(axis, values[:, t], str(steps[t]), color=shade, markersize=2.5) for t, shade in shades.items()]
        measures.robust_view(metric, axis)
        style.label_ends(axis, lines)
    return figure


def _heatmap(run: StoredRun, phase: str, metric: str) -> Figure:
    """A metric by layer (rows, layer 0 at the bottom) and evaluation point (columns), mean over repeats."""
    table = mean_stderr(over_time(run, metric, phase))[0].T[::-1]
    low, high = style.inliers(table, table[:, -1]) if metric in ROBUST else (np.nanmin(table), np.nanmax(table))
    figure, axis = style.panel(width=2.2 + min(0.5 * table.shape[1], 11), height=1.6 + 0.32 * len(table))
    layers, steps = [str(layer) for layer in range(len(table))][::-1], [str(step) for step in run.arrays["steps"]]
    texts, norm = np.vectorize(measures.with_error, otypes=[object])(table), Normalize(low, max(high, low + 1e-9))
    style.heatmap(axis, table, layers, steps, wording(metric)[2], norm, texts, cmap="viridis", aspect="auto")
    axis.set(xlabel="optimiser step", ylabel="layer")
    return figure


def _metrics_heatmap(run: StoredRun, phase: str, *metrics: str) -> Figure:
    """All metrics (rows) of all layers (columns) at the end, coloured from 0 to 1, or to the largest of the row where that is more.

    Rows with negative numbers are coloured from their lowest. A small difference is thus small in colour, too.
    """
    mean, stderr = mean_stderr(np.stack([ends(run, metric, phase) for metric in metrics], axis=1))  # [M, L]
    low, high = np.fmin.reduce(mean, axis=1, keepdims=True, initial=0), np.fmax.reduce(mean, axis=1, keepdims=True, initial=1)
    shares = (mean - low) / (high - low)
    texts = np.vectorize(partial(measures.with_error, between="\n"), otypes=[object])(mean, stderr)
    height = 1.5 + (0.38 if np.isfinite(stderr).any() else 0.3) * len(metrics)
    figure, axis = style.panel(width=3.8 + 0.55 * mean.shape[1], height=height)
    names, layers = [wording(metric)[1] for metric in metrics], [str(layer) for layer in range(mean.shape[1])]
    label = "from 0 (or a negative lowest) to 1 (or a larger highest of the row)"
    style.heatmap(axis, shares, names, layers, label, Normalize(0, 1), texts, cmap="viridis", aspect="auto")
    axis.set_xlabel("layer")
    return figure


def _correlations(run: StoredRun, phase: str, *metrics: str) -> Figure:
    """Spearman's r between metrics over layers and evaluation points (at the end alone: layers), mean over networks.

    The points of one network are not independent and share the trend of training: no p value is given.
    """
    values = [measured(run, array_of(run, metric, phase)) for metric in metrics]
    rows = [[[correlation(a[r].ravel(), b[r].ravel(), ranks=True) for b in values] for a in values] for r in range(len(values[0]))]
    mean = mean_stderr(np.array(rows))[0]
    if not np.isfinite(mean[~np.eye(len(metrics), dtype=bool)]).any():
        raise ConfigError(f"phase: {phase}; one with two metrics that vary over three layers or evaluation points, to be correlated")
    names, side = [wording(metric)[0] for metric in metrics], 2.2 + 0.42 * len(metrics)
    figure, axis = style.panel(width=side + 1, height=side, layout="compressed")
    label = "Spearman's r over layers" + (" and evaluation points" if values[0].ndim == 3 else " at the end")
    style.heatmap(axis, mean, names, names, label, Normalize(-1, 1), cmap="RdBu_r")
    return figure


def _layerwise(run: StoredRun, phase: str, metric: str) -> Figure:
    """A metric against the layer at the end of training; the published estimate is dashed, permuted labels are a grey band."""
    figure, axis = style.panel(width=6.2, height=3.9)
    lines = [profile(axis, values := ends(run, metric, phase), PHASES[phase], color=LOW)]
    if (batch := measures.published(run, metric)) is not None:
        lines.append(profile(axis, measures.last(batch), BATCH, color=LOW, linestyle="--", marker="s"))
    if (limits := measures.null_range(run, metric, phase, end=True)) is not None:
        x = np.arange(values.shape[1]) if values.shape[1] > 1 else np.array([-0.3, 0.3])
        lines.append(measures.grey_band(axis, x, *(np.broadcast_to(limit, x.shape) for limit in limits)))
    axis.set(xlabel="layer", ylabel=wording(metric)[2])
    style.label_ends(axis, lines)
    return figure


def _timeline(layer: int | None, asked: str | None, run: StoredRun, phase: str, metric: str) -> Figure:
    figure, axis = style.panel(**WIDE)
    axis.set(xlabel="optimiser step + 1", ylabel=wording(metric)[2])
    if metric == "loss":
        figure.set_label("training batches")
        values = measured(run, "train_layer_loss")
        if layer is not None:  # the other layers are left out, the colours stay
            values = np.where(np.arange(values.shape[2]) == layer, of_layer(values, layer)[..., None], np.nan)
        measures.layer_lines(axis, run.arrays["log_steps"] + 1, values, metric)
    elif layer is None:
        null = measures.null_lines(axis, run, metric, phase)
        measures.layer_lines(axis, run.arrays["steps"] + 1, over_time(run, metric, phase), metric, more=null)
    else:
        figure.set_label(f"layer {layer}")
        _one_layer(axis, run, metric, layer, [phase] if asked else ["train", phase])
    return figure


def timeline(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """A metric against step + 1: layers as lines; with `layer`, that layer's phases, published estimate and grey band.

    For gmlp runs `loss` is one of the metrics: the local training loss of the layers, over the batches whatever the phase.
    """
    stem = "timeline_{metric}" + ("" if options.layer is None else f"_{options.layer}")
    kind = single(stem, partial(_timeline, options.layer, options.phase))
    greedy = options.metric is None and options.phase in (None, "train") and all(is_measured(run, "train_layer_loss") for run in runs)
    return kind(runs, options) | (kind(runs, replace(options, metric="loss")) if greedy else {})


def _one_layer(axis: Axes, run: StoredRun, metric: str, layer: int, phases: list[str]) -> None:
    """One layer's metric against the step: each phase that has numbers, permuted labels, and the published estimate.

    ConfigError if no phase has numbers.
    """
    x, lines = run.arrays["steps"] + 1, []
    for phase in [phase for phase in phases if is_measured(run, array_of(run, metric, phase))] or phases[-1:]:
        values = of_layer(over_time(run, metric, phase), layer)
        lines += [style.band(axis, x, values, PHASES[phase], marker="o", markersize=3, **PHASE_STYLES[phase])]
        lines += measures.null_lines(axis, run, metric, phase, layer)
    if (batch := measures.published(run, metric)) is not None:
        lines.append(style.band(axis, x, batch[:, :, layer], BATCH, color=style.INK, linestyle=":"))
    style.log_steps(axis)
    measures.robust_view(metric, axis)
    style.label_ends(axis, lines)


def _train_val(run: StoredRun, phase: str, metric: str) -> Figure:
    """Training against held-out samples: a metric by layer at the end, and training minus held out against step + 1."""
    held = held_out(run)
    gaps = over_time(run, metric, "train") - over_time(run, metric, held)
    figure, axes = style.sheet(1, 2, **WIDE)
    figure.set_label("training against held-out samples")
    left, right = axes[0]
    tested = ["test"] if is_measured(run, array_of(run, metric, "test")) else []
    phases = [shown for shown in PHASES if shown in ("train", held, phase, *tested)]
    style.label_ends(left, [profile(left, ends(run, metric, shown), PHASES[shown], **PHASE_STYLES[shown]) for shown in phases])
    left.set(xlabel="layer, at the end", ylabel=wording(metric)[2])
    right.axhline(0, color=style.GREY, linewidth=0.8)
    right.set(xlabel="optimiser step + 1", ylabel=f"{wording(metric)[1]}:\n{PHASES['train']} minus {PHASES[held]}")
    measures.layer_lines(right, run.arrays["steps"] + 1, gaps, metric, both=True)
    return figure


def multi_run(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """A metric against step + 1, runs as lines, a panel for each layer, or for `layer` alone: `multi_run_{metric}_{layer}_{phase}`."""
    if len(runs) < 2:
        raise ConfigError(f"runs: {runs[0].name}; two or more, to be compared")
    layer, asked = options.layer, options.pick("phase", PHASES)
    parts = [(run, asked or held_out(run)) for run in runs]
    phases = {phase for _, phase in parts}
    stem = "multi_run_{}_" + ("" if layer is None else f"{layer}_") + (phases.pop() if len(phases) == 1 else "held_out")

    def draw(metric: str) -> Figure:
        curves = [over_time(run, metric, phase) for run, phase in parts]
        if layer is not None:
            curves = [of_layer(values, layer)[..., None] for values in curves]
        count = 1 + max(np.flatnonzero(np.isfinite(values).any(axis=(0, 1)))[-1] for values in curves)  # layers with numbers
        titles = [f"layer {index if layer is None else layer}" for index in range(count)]
        figure, axes = grid(count, titles, "optimiser step + 1", most=4, sharey=True, **(WIDE if count == 1 else {}))
        for index, axis in enumerate(axes):
            for number, (run, values) in enumerate(zip(runs, curves, strict=True)):
                if index < values.shape[2]:
                    style.band(axis, run.arrays["steps"] + 1, values[:, :, index], **line_style(number))
            style.log_steps(axis, axis.get_xlabel())
            axis.set_ylabel(wording(metric)[2] if index % 4 == 0 else "")
        measures.robust_view(metric, *axes)
        names = [measures.headline(run, label, PHASES[phase]) for (run, phase), label in zip(parts, run_labels(runs), strict=True)]
        handles = [style.handle(name.replace("; ", "\n"), **line_style(number)) for number, name in enumerate(names)]
        style.legend(axes[min(3, count - 1)], handles)
        return figure

    drawings = {stem.format(metric): partial(draw, metric) for metric in measures.metrics_of(parts, options.metric)}
    return measures.collect(runs, drawings, strict=bool(options.metric))


def architecture_comparison(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """mlp runs against gmlp runs: a metric by layer at the end (of the test set, or the phase asked for), and of the last layer over steps.

    Colours are architectures, strokes their runs. The metrics are those that all runs have: none that need anchors, which mlp lacks.
    """
    models = [str(run.config.get("model")) for run in runs]
    if set(models) != set(MODELS):
        raise ConfigError(f"runs: of {', '.join(models)}; at least one mlp and one gmlp, and no other")
    lines_of = [{"color": MODELS[model], "linestyle": style.STROKES[models[:i].count(model) % 4]} for i, model in enumerate(models)]
    phase = options.pick("phase", PHASES) or "test"

    def draw(metric: str) -> Figure:
        figure, axes = style.sheet(1, 2, **WIDE)
        (left, right), lines = axes[0], []
        timed = ["train" if phase == "train" else held_out(run) for run in runs]
        for run, label, shown, line in zip(runs, run_labels(runs), timed, lines_of, strict=True):
            values = ends(run, metric, phase)
            top = int(np.flatnonzero(np.isfinite(values).any(axis=0))[-1])  # the last layer has no ridge_r2
            profile(left, values, **line)
            name = measures.headline(run, label, "").replace("; ", "") + f"\nright: layer {top}"
            name += f", {PHASES[shown]}" if len(set(timed)) > 1 else ""
            lines.append(style.band(right, run.arrays["steps"] + 1, over_time(run, metric, shown)[:, :, top], name, **line))
        measures.layer_axis(left, max(ends(run, metric, phase).shape[1] for run in runs))
        left.set(xlabel="layer", ylabel=wording(metric)[2])
        left.set_title(f"{PHASES[phase]}, end of training", fontsize=SMALL + 1)
        samples = PHASES[timed[0]] if len(set(timed)) == 1 else "held-out samples"
        right.set_title(f"{samples}, last layer", fontsize=SMALL + 1)
        style.log_steps(right)
        measures.robust_view(metric, right)
        style.legend(right, lines)
        return figure

    names = measures.metrics_of([(run, phase) for run in runs], options.metric)
    return measures.collect(runs, {f"architecture_comparison_{name}": partial(draw, name) for name in names}, strict=bool(options.metric))


KINDS: dict[str, Kind] = {
    "all_metrics_overview": single("all_metrics_overview_{phase}", _overview),
    "metric_distributions": single("metric_distributions_{phase}", _distributions),
    "layer_progression_analysis": single("layer_progression_analysis", _progression),
    "heatmap": single("heatmap_{metric}_{phase}", _heatmap, error=False),
    "train_val_comparison": single("train_val_comparison_{metric}", _train_val),
    "multi_run": multi_run,
    "architecture_comparison": architecture_comparison,
    "correlation_matrix": single("correlation_matrix_{phase}", _correlations, error=False),
    "timeline": timeline,
    "layerwise": single("layerwise_{metric}_{phase}", _layerwise),
    "metrics_heatmap": single("metrics_heatmap_{phase}", _metrics_heatmap),
}
