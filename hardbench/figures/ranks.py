"""Diagrams of mean ranks with the critical difference of Nemenyi's test (Demsar 2006, JMLR 7, fig. 1)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hardbench.artifacts import Array
from hardbench.figures import style
from hardbench.figures.judged import LETTER
from hardbench.figures.runs import StoredRun, each_run, literal, needed

LEVEL = 0.05  # of significance, of both tests
LINE = 0.17  # inches between labels
TIE = 0.08  # inches between the bars that join scores
HEAD = 0.75  # inches above the axis: title, critical difference, numbers
AXIS, MARGIN = 2.6, 0.5  # inches of the axis, and of title and label


@each_run
def critical_difference(run: StoredRun) -> Figure:
    """Mean ranks of the scores over data sets, by average precision, 1 the best; one diagram per planted type.

    Bars join scores whose mean ranks differ by less than the critical difference (CD, drawn above; Nemenyi, .05): the data sets do not
    tell them apart. The p-value is Friedman's.
    """
    ranks, arrays = (
        needed(run, "friedman_ranks", "critical_difference", "it needs planted runs on five data sets or more"),
        run.arrays,
    )  # [P, S]
    names = [literal(str(name)) for name in arrays["friedman_scores"]]
    types = [literal(str(name)) for name in arrays["friedman_types"]]
    tied = [groups(row, float(difference)) for row, difference in zip(ranks, arrays["friedman_critical_difference"], strict=True)]
    height = HEAD + TIE * (1 + max(map(len, tied))) + LINE * (-(-len(names) // 2) + 1)
    side = LETTER * (max(map(len, names)) + 7)  # inches beside the axis: a name and its rank
    columns = 1 if len(types) == 1 else 2
    figure, axes = style.panels(len(types), columns, width=2 * side + AXIS, height=height + MARGIN)
    for place, axis in enumerate(axes):
        difference, p = float(arrays["friedman_critical_difference"][place]), float(arrays["friedman_p"][place])
        with_p = "Friedman's p < 0.001" if p < 0.001 else f"Friedman's p = {p:.3f}" + " (not significant)" * (p >= LEVEL)
        axis.set(xlim=(-side, AXIS + side), ylim=(height, 0))
        _diagram(axis, ranks[place], names, difference, tied[place])
        axis.set_title(f"{types[place]}: {with_p}", fontsize=style.SMALL + 1, parse_math=False)
    blocks = int(arrays["friedman_blocks"])
    figure.supxlabel(
        f"mean rank over {blocks} data sets, 1: highest average precision; CD: critical difference at .05", fontsize=style.SMALL
    )
    return figure


def groups(ranks: Array, difference: float) -> list[tuple[float, float]]:
    """The lowest and the highest of mean ranks [S] that lie closer together than a difference, for every such group of two or more."""
    ordered = np.sort(ranks)
    ends = np.searchsorted(ordered, ordered + difference, side="left") - 1  # of the group that each begins
    begins = [place for place, end in enumerate(ends) if end > place and (place == 0 or ends[place - 1] < end)]
    return [(float(ordered[place]), float(ordered[ends[place]])) for place in begins]


def _diagram(axis: Axes, ranks: Array, names: Sequence[str], difference: float, tied: Sequence[tuple[float, float]]) -> None:
    """One diagram, in inches from the top: the axis of ranks, CD above it, bars below, then the scores, the better half at the left."""
    axis.set_axis_off()
    count = len(ranks)
    scale = AXIS / max(count - 1, 1)
    place = (ranks - 1) * scale
    line: dict[str, Any] = {"color": style.INK, "linewidth": 0.8, "clip_on": False}
    text: dict[str, Any] = {"fontsize": style.SMALL, "color": style.INK, "va": "center", "parse_math": False, "in_layout": False}
    axis.plot([0, AXIS], [HEAD, HEAD], **line)
    for number in range(1, count + 1) if count <= 10 else (1, *range(5, count + 1, 5)):
        x = (number - 1) * scale
        axis.plot([x, x], [HEAD - 0.05, HEAD], **line)
        axis.text(x, HEAD - 0.14, str(number), ha="center", **text)
    reach = min(difference, count - 1) * scale
    axis.plot([0, 0, 0, reach, reach, reach], [0.33, 0.41, 0.37, 0.37, 0.33, 0.41], **line)
    axis.text(reach / 2, 0.22, f"CD = {difference:.2f}" + " (beyond the axis)" * (difference > count - 1), ha="center", **text)
    for number, (low, high) in enumerate(tied):
        y = HEAD + TIE * (number + 1)
        ends = [(low - 1) * scale - 0.03, (high - 1) * scale + 0.03]
        axis.plot(ends, [y, y], color=style.COLOURS[0], linewidth=2.5, solid_capstyle="butt")
    order = np.argsort(ranks, kind="stable")
    half = -(-count // 2)
    for number, score in enumerate(order):
        left = number < half
        y = HEAD + TIE * (len(tied) + 1) + LINE * (0.5 + (number if left else count - 1 - number))
        side = -0.15 if left else AXIS + 0.15
        axis.plot([place[score], place[score], side], [HEAD, y, y], **line | {"linewidth": 0.6})
        label = f"{names[score]}  {ranks[score]:.1f}" if left else f"{ranks[score]:.1f}  {names[score]}"
        axis.text(side - 0.05 if left else side + 0.05, y, label, ha="right" if left else "left", **text)
