"""Detection of planted hardness by hardness scores: average precision or area under the ROC curve, by type."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hardbench.artifacts import Array
from hardbench.figures import style
from hardbench.figures.runs import FigureOptions, Runs, StoredRun, literal, needed, one_per_run
from hardbench.metrics.hardness import mean_stderr

ROW, LETTER = 0.17, 0.066  # inches of a score's row, and of a letter of its name
PANEL, LEGEND = 1.5, 2.0  # inches of a panel's width, and of the legend's sides
COLUMNS = 4  # panels side by side
AVERAGE_PRECISION = "average_precision"
# by measure: its array, ends of its interval, label of the axis
MEASURES = {
    AVERAGE_PRECISION: ("detection_ap", "detection_low", "detection_high", "detection_ap_repeats", "average precision"),
    "auroc": ("detection_auroc", "detection_auroc_low", "detection_auroc_high", "detection_auroc_repeats", "area under the ROC curve"),
}
# a point by where its interval lies: its mark and the words of the legend
BELOW, WITHIN, ABOVE = 0, 1, 2
SIDES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"marker": "v", "color": style.COLOURS[1], "markerfacecolor": style.COLOURS[1]}, "below {}:\nranks them as easy"),
    ({"marker": "s", "color": style.INK, "markerfacecolor": "white"}, "{} within\nthe interval"),
    ({"marker": "o", "color": style.COLOURS[0], "markerfacecolor": style.COLOURS[0]}, "above {}"),
)


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Name the rows 0 to S - 1 of a panel, the first at the bottom."""
    axis.set_yticks(range(len(names)), names, fontsize=style.SMALL, parse_math=False)
    axis.set_ylim(-0.7, len(names) - 0.3)
    axis.tick_params(axis="y", length=0)


def detection_by_type(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Average precision of every score for every planted type (`metric` auroc: area under the ROC curve), one panel per type.

    Positives are the samples of the type, negatives the clean ones. Points: scores averaged over the networks, with the 95 % interval of
    a bootstrap over samples; grey ticks: single networks. Line: what a random order gives, the base rate or .5. All panels have the
    scores in one order, that of their mean over the types, the best at the top.
    """
    metric = options.pick("metric", MEASURES) or AVERAGE_PRECISION
    kind = "detection_by_type" + ("" if metric == AVERAGE_PRECISION else f"_{metric}")
    return one_per_run(runs, kind, lambda run: _detection(run, metric))


def _detection(run: StoredRun, metric: str) -> Figure:
    (*parts, label), arrays = MEASURES[metric], run.arrays
    values = needed(run, parts[0], "detection_by_type", "it needs samples made hard by train --plant")  # [S, P]
    order = np.argsort(np.nan_to_num(mean_stderr(values.T)[0], nan=-1.0), kind="stable")
    values, low, high, repeats = (arrays[part][order] for part in parts)
    by_rate = metric == AVERAGE_PRECISION
    scores = [literal(str(arrays["detection_scores"][score])) for score in order]
    rates, names = arrays["detection_base_rate"], [literal(str(name)) for name in arrays["detection_types"]]
    columns = min(len(names), COLUMNS)
    width = PANEL + (LETTER * max(map(len, scores)) + LEGEND) / columns
    height = max(0.7 + ROW * len(order), 2.4 * columns / len(names))  # room for the legend beside one row
    figure, axes = style.panels(len(names), columns, width=width, height=height, sharex=True, sharey=True)
    for place, axis in enumerate(axes):
        chance = float(rates[place]) if by_rate else 0.5
        axis.axvline(chance, color=style.INK, linewidth=0.9, linestyle="--", zorder=1.5)
        rows = np.arange(len(order))[:, None]
        if repeats.shape[2] > 1:
            axis.plot(repeats[:, place], np.broadcast_to(rows, repeats[:, place].shape), "|", color=style.GREY, markersize=6, zorder=1.8)
        _points(axis, values[:, place], low[:, place], high[:, place], chance)
        axis.set_title(f"{names[place]}\nbase rate {rates[place]:.3f}", fontsize=style.SMALL + 1, parse_math=False)
        axis.set(xlim=(-0.04, 1.04), xticks=(0, 0.5, 1))
    for axis in axes[::columns]:
        name_rows(axis, scores)
    style.label_lowest(axes, columns)
    figure.supxlabel(f"{label}, samples of the type against clean ones", fontsize=style.SMALL + 1)
    handles = _handles("base rate" if by_rate else ".5", repeats.shape[2])
    style.legend(axes[columns - 1], handles)
    return figure


def _points(axis: Axes, values: Array, low: Array, high: Array, chance: float) -> None:
    """The values of S scores, one per row, with their intervals, marked by the side of `chance` that the interval lies on."""
    side = np.where(high < chance, BELOW, np.where(low > chance, ABOVE, WITHIN))
    for number, (mark, _) in enumerate(SIDES):
        rows = np.flatnonzero((side == number) & np.isfinite(values))
        reach = np.nan_to_num(np.clip([values[rows] - low[rows], high[rows] - values[rows]], 0, None))
        axis.errorbar(values[rows], rows, xerr=reach, linestyle="", markersize=4, elinewidth=1, **mark)
    for row in np.flatnonzero(np.isnan(values)).tolist():
        axis.text(0.5, row, "not defined", fontsize=style.SMALL - 1, color=style.INK, ha="center", va="center")


def _handles(chance: str, networks: int) -> list[Line2D]:
    handles = [style.handle(words.format(chance), linestyle="", markersize=4, **mark) for mark, words in reversed(SIDES)]
    handles.append(style.handle(chance, color=style.INK, linewidth=0.9, linestyle="--"))
    if networks > 1:
        handles.append(
            style.handle(f"one of {networks} networks;\nother marks:\ntheir mean score", color=style.GREY, marker="|", linestyle="")
        )
    return [*handles, style.handle("95 % interval,\nbootstrap over samples", color=style.INK, linewidth=1)]
