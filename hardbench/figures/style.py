"""How figures look: colours, bands, labels, heatmaps and images.

Figures are made as objects, never through pyplot: no display is needed, nothing is kept alive, no global setting is touched.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from hardbench.artifacts import Array
from hardbench.metrics.hardness import mean_stderr

# Okabe & Ito 2008, without black (the text) and yellow (unreadable on white); distinct with any colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7A5230")
STROKES = ("-", "--", ":", "-.")
HIGH, LOW, GREY, INK = COLOURS[1], COLOURS[0], "#B8B8B8", "#333333"
SMALL = 8  # points
ANNOTATED = 20  # classes up to which a heatmap carries its numbers
CROWD = 50  # classes beyond which figures are drawn coarser: names of some, curves and points of a part
SAMPLED = 1000  # curves or points that stand for a crowd


def networks(count: int, error: bool = True, between: str = ", ") -> str:
    """In words: one network, or the mean of `count` networks, with its standard error where `error` is drawn."""
    if count == 1:
        return "one network"
    return f"mean ± standard error{between}{count} networks" if error else f"mean of {count} networks"


def pairs_of(names: Sequence[str]) -> tuple[list[str], tuple[Array, Array]]:
    """Names and indices of all M = K(K-1)/2 pairs of classes, or of other names."""
    return [f"{a} - {b}" for a, b in itertools.combinations(names, 2)], np.triu_indices(len(names), 1)


def ordered(count: int, shades: str = "viridis", low: float = 0.0, high: float = 0.8) -> list[Any]:
    """Colours of an ordered family such as layers, dark to light in even steps, so that the order shows with any colour vision."""
    return [colormaps[shades](share) for share in np.linspace(low, high, count)]


def line_style(index: int) -> dict[str, Any]:
    """Colour and stroke of the index-th line of a family: seven colours, then the same dashed, dotted, dash-dotted (28 in all)."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": STROKES[index // len(COLOURS) % len(STROKES)]}


def sheet(
    rows: int, columns: int, width: float = 4.8, height: float = 3.4, layout: Any = "constrained", **more: Any
) -> tuple[Figure, Array]:
    """A figure and its axes [rows, columns], each about width x height inches, laid out so that labels keep clear of each other.

    `layout` is `compressed` for axes of fixed aspect; `more` goes to Figure.subplots.
    """
    figure = Figure(figsize=(columns * width, rows * height), dpi=150, layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False, **more)
    for axis in axes.flat:
        dress(axis)
    return figure, axes


def panel(**size: Any) -> tuple[Figure, Axes]:
    """A figure with one axis; `size` goes to `sheet`."""
    figure, axes = sheet(1, 1, **size)
    return figure, axes[0, 0]


def panels(count: int, columns: int, **size: Any) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes in rows of so many columns; `size` goes to `sheet`."""
    figure, axes = sheet(-(-count // columns), columns, **size)
    for axis in axes.flat[count:]:
        axis.remove()
    return figure, list(axes.flat[:count])


def label_lowest(axes: Sequence[Axes], columns: int) -> None:
    """Write the ticks of a shared x axis below the lowest panel of every column, also where the last row is not full."""
    for axis in axes[-columns:]:
        axis.tick_params(labelbottom=True)


def dress(axis: Axes) -> None:
    """Leave an axis open at the top and right, with a faint grid behind."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(True, color="#E6E6E6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=SMALL + 1, color=INK)


def at_least(axis: Axes, span: float) -> None:
    """Widen each axis to the span if it is narrower, so that a few near points do not look far apart."""
    for limits, widen in ((axis.get_xlim(), axis.set_xlim), (axis.get_ylim(), axis.set_ylim)):
        margin = max(span - (limits[1] - limits[0]), 0) / 2
        widen(limits[0] - margin, limits[1] + margin)


def log_steps(axis: Axes, label: str = "optimiser step + 1") -> None:
    """Make x the optimiser step on a log axis, shifted by one so that initialisation (step 0) is on it. Call it after drawing."""
    axis.set(xscale="log", xlabel=label)
    axis.xaxis.set(major_formatter=EngFormatter(sep=""), minor_formatter=NullFormatter())
    low, high = axis.get_xlim()
    if high < 50 * low:
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def band(axis: Axes, x: Array, values: Array, label: str | None = None, **style: Any) -> Line2D:
    """The line of the mean over repeats, with a band of one standard error around it, from values [R, T].

    nan-aware point by point; no band where fewer than two repeats were measured. `style` is that of the line.
    """
    mean, stderr = mean_stderr(values)
    known = np.isfinite(mean)
    (line,) = axis.plot(np.asarray(x)[known], mean[known], label=label, **{"linewidth": 1.5, **style})
    if np.isfinite(stderr).any():
        axis.fill_between(x, mean - stderr, mean + stderr, color=line.get_color(), alpha=0.2, linewidth=0)
    return line


def spread_out(heights: Array, gap: float, top: float) -> Array:
    """Heights moved as little as possible (least squares) so that neighbours are `gap` apart within [0, top], order kept.

    If they cannot fit, the gap shrinks until they do.
    """
    count = len(heights)
    gap = min(gap, top / max(count - 1, 1))
    order = np.argsort(heights, kind="stable")
    offsets = gap * np.arange(count)
    free = heights[order] - offsets
    # isotonic regression by its max-min formula (Barlow et al. 1972)
    fitted = [max(min(free[a : b + 1].mean() for b in range(i, count)) for a in range(i + 1)) for i in range(count)]
    placed = np.empty(count)
    placed[order] = np.clip(fitted, 0, max(top - gap * (count - 1), 0)) + offsets
    return placed


def label_ends(axis: Axes, lines: Sequence[Line2D]) -> None:
    """Write each line's label right of the axes at its last point, moved apart where they would overlap and tied to it by a hair line.

    Call it last: it takes limits and scale as they are.
    """
    drawn = [(line, data[-1]) for line in lines if len(data := np.asarray(line.get_xydata()))]
    if not drawn:
        return
    axis.autoscale_view()  # what was put off
    axis.autoscale(False)
    heights = axis.transAxes.inverted().transform(axis.transData.transform([end for _, end in drawn]))[:, 1]
    root = axis.get_figure(root=True)
    assert root is not None
    points = 72 * axis.get_position().height * root.get_figheight()
    for (line, end), height in zip(drawn, spread_out(heights, 1.3 * SMALL / points, 1.0), strict=True):
        text: dict[str, Any] = {"color": line.get_color(), "fontsize": SMALL, "va": "center", "parse_math": False, "annotation_clip": False}
        tie = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.5, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)}
        axis.annotate(str(line.get_label()), end, (1.04, height), "data", "axes fraction", arrowprops=tie, **text)


def label_points(axis: Axes, points: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the label of each point (x, y, label, colour) near it, tied by a hair line, where it covers the fewest labels and dots.

    Call it last: it takes limits and layout as they are.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    axis.autoscale(False)
    figure.draw_without_rendering()
    dots = np.concatenate([axis.transData.transform(np.ma.filled(group.get_offsets(), np.nan)) for group in axis.collections])
    style: dict[str, Any] = {"fontsize": SMALL, "parse_math": False, "va": "center", "in_layout": False}
    pixels = figure.dpi / 72
    taken: list[Bbox] = []
    for x, y, label, colour in points:
        probe = axis.text(0, 0, label, **style)
        width, height = probe.get_window_extent().size
        probe.remove()
        centre = axis.transData.transform((x, y))
        best: tuple[float, Any, Any] = (np.inf, None, None)
        for reach, turn in itertools.product((10, 18, 28, 40, 55), np.arange(16) * np.pi / 8):
            shift = reach * np.array([np.cos(turn), np.sin(turn)])
            left, middle = centre + shift * pixels - (0 if shift[0] >= 0 else width, 0)
            box = Bbox.from_bounds(left, middle - height / 2, width, height).padded(3 * pixels)
            outside = axis.bbox.count_contains(box.corners()) < 4
            cost = 100 * box.count_overlaps(taken) + 3 * box.count_contains(dots) + 300 * outside + reach / 5
            best = min(best, (cost, shift, box), key=lambda option: option[0])
        _, shift, box = best
        taken.append(box)
        tie = {"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2, "relpos": (0 if shift[0] >= 0 else 1, 0.5)}
        side = "left" if shift[0] >= 0 else "right"
        axis.annotate(label, (x, y), tuple(shift), textcoords="offset points", ha=side, color=colour, arrowprops=tie, **style)


def legend(axis: Axes, handles: Sequence[Any], title: str | None = None) -> None:
    """A legend right of the axes, with the labels that the handles have."""
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02), "frameon": False}
    for text in axis.legend(handles=list(handles), title=title, fontsize=SMALL, title_fontsize=SMALL, **place).get_texts():
        text.set_parse_math(False)


def handle(label: str, **line: Any) -> Line2D:
    """A handle for `legend`: a line that is drawn nowhere else."""
    return Line2D([], [], label=label, **line)


def note(text: str) -> Line2D:
    """A handle for `legend` that is text alone."""
    return handle(text, linestyle="")


def pixels(image: Array) -> Array:
    """An image [C, H, W] as [H, W] or [H, W, 3], floats scaled to [0, 1]."""
    shown: Array = image[0] if image.shape[0] == 1 else np.moveaxis(image[:3], 0, -1)
    return shown if shown.dtype == np.uint8 else (shown - shown.min()) / max(float(np.ptp(shown)), 1e-12)


def picture(axis: Axes, image: Array, title: str, colour: str = "black") -> None:
    """An image [C, H, W] alone on its axis, below a title."""
    axis.imshow(pixels(image), cmap="gray_r" if image.shape[0] == 1 else None)
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=SMALL - 1, parse_math=False, pad=2, color=colour)


def sampled(count: int, most: int = SAMPLED) -> Array:
    """Up to `most` of the places 0 to count - 1, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def robust_view(*axes: Axes, both: bool = False) -> None:
    """Set one y range for all axes that leaves out a few outliers; each is marked at the edge, the farthest with its value.

    Outliers: see `inliers`; the last point of a line is none. Without any nothing changes. Call it when the lines are drawn.
    """
    lines = [(axis, np.asarray(line.get_data(), dtype=float), line.get_color()) for axis in axes for line in axis.get_lines()]
    lines = [(axis, data[:, np.isfinite(data[1])], colour) for axis, data, colour in lines]
    lines = [line for line in lines if line[1].shape[1] > 2]
    points = np.sort(np.concatenate([data[1] for _, data, _ in lines])) if lines else np.empty(0)
    low, high = inliers(points, np.array([data[1][-1] for _, data, _ in lines]), both)
    if not len(points) or (low, high) == (points[0], points[-1]):
        return
    margin = 0.08 * (high - low or 1)
    for axis in axes:
        axis.set_ylim(low - margin, high + margin)
    for axis, (x, y), colour in lines:
        for mark, out, edge, up in (("v", y < low, low - margin, 1), ("^", y > high, high + margin, -1)):
            if out.any():
                marks = axis.plot(x[out], np.full(out.sum(), edge), mark, color=colour, markersize=5, clip_on=False, zorder=4)
                marks[0].set_in_layout(False)
            for place in np.flatnonzero(out & np.isin(y, points[[0, -1]])):
                text: dict[str, Any] = {"va": "bottom" if up > 0 else "top", "fontsize": SMALL - 1, "color": colour, "in_layout": False}
                axis.annotate(f"{y[place]:.2g}", (x[place], edge), (3, 5 * up), textcoords="offset points", **text)


def inliers(points: Array, kept: Array | Sequence[float] = (), both: bool = False) -> tuple[float, float]:
    """The range of numbers but for outliers at its low end (`both`: at either), and of those that are `kept` anyway; nan for none.

    Outliers are up to a quarter of all beyond a gap wider than the range of what is left.
    """
    points, kept = np.sort(points[np.isfinite(points)]), np.asarray(kept)[np.isfinite(kept)]
    spare, before = len(points) // 4, -1
    while len(points) and spare != before:  # without an outlier at one end another may stand out at the other
        before = spare
        for end in (True, both):  # the low one, and upside down the high one
            gaps = np.diff(points)[: spare * end]
            far = np.flatnonzero(gaps > points[-1] - points[1 : len(gaps) + 1])
            cut = int(far[-1]) + 1 if len(far) else 0
            points, spare = -points[cut:][::-1], spare - cut
    return (float(min([points[0], *kept])), float(max([points[-1], *kept]))) if len(points) else (np.nan, np.nan)


def family(axis: Axes, x: Array, values: Array, names: list[str], apart: int, first: int = 0) -> tuple[list[Line2D], list[LineCollection]]:
    """Draw M curves from values [R, T, M]; returns the lines that carry a name and, if there are too many, one for the rest.

    Up to `apart` curves have line styles of their own, from line_style(first) on, and bands. Of more, all are grey but the three that
    end highest and the three that end lowest; of more than SAMPLED others as many are drawn, evenly chosen by where they end. Curves that
    are all nan are left out.
    """
    mean = mean_stderr(values)[0]  # [T, M]
    known = np.isfinite(mean)
    drawn = np.flatnonzero(known.any(axis=0)).tolist()
    if len(drawn) <= max(apart, 6):
        return [band(axis, x, values[:, :, i], names[i], **line_style(first + i)) for i in drawn], []
    last = mean[len(mean) - 1 - known[::-1].argmax(axis=0), np.arange(mean.shape[1])]
    ordered = sorted(drawn, key=last.__getitem__, reverse=True)
    others = ordered[3:-3]
    picked = [others[place] for place in sampled(len(others))]
    curves = [np.column_stack((x, mean[:, index])) for index in picked]
    faint = max(0.05, min(0.8, 40 / len(curves)))
    label = f"{len(others)} others" + (f",\n{len(picked)} drawn" if len(picked) < len(others) else "")
    rest = LineCollection(curves, color=GREY, linewidth=0.6, alpha=faint, label=label, zorder=1.5)
    axis.add_collection(rest)
    axis.autoscale_view()
    marked = zip(ordered[:3] + ordered[-3:], [HIGH] * 3 + [LOW] * 3, ("-", "--", ":", ":", "--", "-"), strict=True)
    return [band(axis, x, values[:, :, i], names[i], color=colour, linestyle=stroke) for i, colour, stroke in marked], [rest]


def heatmap(
    axis: Axes, values: Array, rows: list[str], columns: list[str], label: str, norm: Normalize, texts: Array | None = None, **more: Any
) -> None:
    """A coloured table of values [rows, columns], written into the cells up to 20 x 20; nan is grey. Up to 50 rows and columns are named.

    `texts` replaces the numbers. `label` names the colour bar. `more` goes to Axes.imshow: `cmap`, else Blues; `aspect`.
    """
    image = axis.imshow(np.ma.masked_invalid(values), norm=norm, **{"cmap": "Blues", **more})
    colours = image.get_cmap().with_extremes(bad="#DDDDDD")
    image.set_cmap(colours)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    count = max(len(rows), len(columns))
    size = min(SMALL, max(4.5, 300 / min(count, CROWD)))
    across, down = sampled(len(columns), CROWD), sampled(len(rows), CROWD)
    turn = 90 if max(map(len, columns)) > 2 else 0
    axis.set_xticks(across, [columns[place] for place in across], rotation=turn, fontsize=size, parse_math=False)
    axis.set_yticks(down, [rows[place] for place in down], fontsize=size, parse_math=False)
    axis.tick_params(length=0)
    axis.figure.colorbar(image, ax=axis, label=label, shrink=0.8, format=ScalarFormatter(useOffset=False)).outline.set_visible(False)
    if count > ANNOTATED:
        return
    for (row, column), value in np.ndenumerate(values):
        text = ("-" if np.isnan(value) else f"{value:.2f}") if texts is None else str(texts[row, column])
        dark = np.isfinite(value) and np.dot(colours(float(norm(value)))[:3], (0.299, 0.587, 0.114)) < 0.5
        shade = "white" if dark else INK
        axis.text(column, row, text, ha="center", va="center", color=shade, fontsize=6.5 if count > 10 else SMALL - 0.5)
