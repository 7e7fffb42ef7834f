"""Figures of hardness scores: data map, agreement and stability; with those of judged.py, ranks.py and galleries.py."""

import textwrap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure

from hardbench.artifacts import Array
from hardbench.figures import galleries, judged, ranks, style
from hardbench.figures.runs import Kind, StoredRun, each_run, literal, measured
from hardbench.hard_samples.judged import ensemble

CORRECTNESS = ListedColormap(colormaps["viridis"](np.linspace(0, 0.92, 256)))  # its last yellow is unreadable on white
REGIONS = {"easy to learn": 0.97, "ambiguous": 0.5, "hard to learn": 0.03}  # by confidence, as the paper calls them
APART = 3  # scores from which on they are ordered by likeness


@each_run
def data_map(run: StoredRun) -> Figure:
    """Confidence (mean p_y over training) against variability (its standard deviation), correctness as colour; a panel per planted type.

    Swayamdipta et al. 2020 (arXiv:2009.10795), fig. 1. Means over networks. Of many samples up to 1 000 per panel, evenly chosen; grey in
    every panel: where the clean samples lie, darker where there are more.
    """
    harder, variability, wrong = (measured(run, f"data_maps_{part}") for part in ("confidence", "variability", "correctness"))
    count = len(harder) if harder.ndim == 2 else 1
    points = np.stack([ensemble(variability), 1 - ensemble(harder), 1 - ensemble(wrong)])  # scores are higher where it is harder
    groups = _groups(run, points.shape[1])
    columns = min(len(groups), 3)
    size = {"width": 2.4, "height": 2.2 if len(groups) > columns else 2.6} if columns > 1 else {"width": 4.6, "height": 3.2}
    figure, axes = style.panels(len(groups), columns, sharex=True, sharey=True, **size)
    for axis, (name, rows) in zip(axes, groups, strict=True):
        drawn = rows[style.sampled(len(rows))]
        _map(axis, points[:, drawn], points[:, groups[0][1]])
        part = f"{len(drawn)} of " * (len(drawn) < len(rows))
        axis.set_title(f"{name}: {part}{len(rows)} sample{'s' * (len(rows) != 1)}", fontsize=style.SMALL, parse_math=False)
    for name, confidence in REGIONS.items():
        text: dict[str, Any] = {"fontsize": style.SMALL - 1, "style": "italic", "color": style.INK, "ha": "right", "va": "center"}
        axes[0].text(0.51, confidence, name, rotation=90 if name == "ambiguous" else 0, **text)
    style.label_lowest(axes, columns)
    figure.supxlabel("variability (standard deviation of $p_y$ over training)", fontsize=style.SMALL + 1)
    figure.supylabel("confidence (mean of $p_y$\nover training)", fontsize=style.SMALL + 1)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), CORRECTNESS), ax=axes, aspect=30)
    bar.set_label(f"correctness (share of training\nat which right), {style.networks(count, error=False)}", fontsize=style.SMALL)
    bar.ax.tick_params(labelsize=style.SMALL)
    bar.ax.spines[:].set_visible(False)
    return figure


def _groups(run: StoredRun, count: int) -> list[tuple[str, Array]]:
    """Names and rows of the clean samples and of those of every planted type; of all samples where nothing was planted."""
    planted = run.arrays.get("planted", np.zeros(count))
    types = [(str(name), np.flatnonzero(planted == code)) for code, name in enumerate(run.arrays.get("plant_types", ()), start=1)]
    types = [(name, rows) for name, rows in types if len(rows)]
    return [("clean" if types else "all", np.flatnonzero(planted == 0)), *types]


def _map(axis: Axes, points: Array, clean: Array) -> None:
    """Samples as points, from variability, confidence and correctness [3, N], above the density of the clean ones [3, M]."""
    axis.grid(False)
    cells: dict[str, Any] = {"gridsize": (25, 20), "extent": (0, 0.5, 0, 1), "linewidths": 0.1, "mincnt": 1}
    axis.hexbin(clean[0], clean[1], bins="log", cmap="Greys", vmin=0.3, vmax=max(10 * clean.shape[1], 2), **cells)
    axis.scatter(points[0], points[1], s=6, c=points[2], cmap=CORRECTNESS, norm=Normalize(0, 1), linewidths=0)
    axis.set(xlim=(-0.015, 0.515), ylim=(-0.04, 1.04), yticks=(0, 0.5, 1))
    axis.set_xticks((0, 0.25, 0.5), ("0", ".25", ".5"))


@each_run
def agreement_of_scores(run: StoredRun) -> Figure:
    """Rank correlation (Spearman) of every two scores over all samples, and overlap (Jaccard) of their hardest samples.

    Scores that rank alike stand side by side: the order of the leaves of a clustering by 1 - Spearman (average linkage).
    """
    correlations, overlap = measured(run, "agreement_spearman"), measured(run, "agreement_jaccard")
    order = _alike(correlations)
    names = [literal(str(run.arrays["score_names"][place])) for place in order]
    side = 2.4 + (0.45 if len(names) <= 10 else 0.27 if len(names) <= style.ANNOTATED else 0.2) * len(names)
    figure, axes = style.sheet(1, 2, width=side + 0.9, height=side, layout="compressed")
    mixed = np.ix_(order, order)
    style.heatmap(axes[0, 0], correlations[mixed], names, names, "Spearman correlation", Normalize(-1, 1), cmap="RdBu_r")
    style.heatmap(axes[0, 1], overlap[mixed], names, names, f"Jaccard overlap\nof the {_hardest(run)}", Normalize(0, 1))
    return figure


def _alike(ranks: Array) -> Array:
    """The order [S] of scores in which neighbours correlate, from correlations [S, S]; one that has none (nan) is far from all."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(ranks) < APART:
        return np.arange(len(ranks))
    apart = 1 - np.nan_to_num((ranks + ranks.T) / 2, nan=-1.0)
    np.fill_diagonal(apart, 0)
    order: Array = leaves_list(linkage(squareform(np.clip(apart, 0, None), checks=False), "average", optimal_ordering=True))
    return order


def _hardest(run: StoredRun) -> str:
    """The samples that are called hard, in words."""
    return f"{int(run.arrays['hard_count'])} hardest samples" if "hard_count" in run.arrays else "hardest samples"


@each_run
def score_stability(run: StoredRun) -> Figure:
    """Agreement of two networks: rank correlation of their scores, and by how far their hardest samples overlap beyond chance (z).

    Means over all pairs of networks, which share networks: no error is given. Scores that need all networks are left out and named.
    """
    likeness, z = measured(run, "stability_spearman"), run.arrays["stability_z"]
    shown = np.flatnonzero(np.isfinite(likeness) | np.isfinite(z))
    shown = shown[np.argsort(np.nan_to_num(likeness[shown], nan=-2), kind="stable")]
    names = [literal(str(name)) for name in run.arrays["score_names"]]
    figure, axes = style.sheet(1, 2, width=3.3, height=1.0 + judged.ROW * len(shown), sharey=True)
    labels = ("Spearman correlation of two\nnetworks, mean over pairs", f"overlap of their {_hardest(run)},\nz-score, mean over pairs")
    for axis, values, label in zip(axes[0], (likeness[shown], z[shown]), labels, strict=True):
        axis.axvline(0, color=style.INK, linewidth=0.8)
        axis.hlines(np.arange(len(shown)), 0, values, color=style.GREY, linewidth=0.8)
        axis.plot(values, np.arange(len(shown)), "o", color=style.COLOURS[0], markersize=4)
        axis.set_xlabel(label, fontsize=style.SMALL + 1)
    axes[0, 0].set_xlim(min(0.0, np.nanmin(likeness[shown], initial=0.0) - 0.05), 1.03)
    judged.name_rows(axes[0, 0], [names[place] for place in shown])
    others = [name for place, name in enumerate(names) if place not in shown]
    if others:
        words = textwrap.fill(f"of all networks together, or the same for all samples: {', '.join(others)}", 90)
        figure.supxlabel(words, fontsize=style.SMALL - 1, parse_math=False)
    return figure


ALL = (judged.detection_by_type, data_map, agreement_of_scores, score_stability, ranks.critical_difference)
KINDS: dict[str, Kind] = {kind.__name__: kind for kind in ALL} | galleries.KINDS
