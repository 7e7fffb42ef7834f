"""Figures of the study of hard samples: accuracies against what remains, strategies, classes, agreement, the hardest images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.planted import planted
from hardbench.figures.runs import FigureOptions, Kind, Runs, StoredRun, class_names, each_run, measured, one_per_run
from hardbench.hard_samples.tables import TESTS, class_error, independent
from hardbench.metrics.hardness import correlation, mean_stderr

SHOWN = 12  # images per strategy in a gallery
MARKERS = "osD^vPX"


def _several(run: StoredRun) -> list[str]:
    """The strategies of a run; ConfigError unless there are two or more."""
    names = [str(name) for name in run.arrays["strategies"]]
    if len(names) < 2:
        raise ConfigError(f"strategy: run {run.name} has {names[0]} alone; two strategies or more to compare")
    return names


def _errorbars(axis: Axes, run: StoredRun, test: str, place: tuple[int, int], number: int, label: str) -> Line2D:
    """The accuracy on a test against the percent remaining, of the strategy and train ratio at a place of the arrays."""
    order = np.argsort(run.arrays["remaining"])
    mean, stderr = mean_stderr(independent(measured(run, f"accuracy_{test}")[place])[order].T)  # of [sets or repeats, Q]
    line = {**style.line_style(number), "marker": MARKERS[number % len(MARKERS)], "markersize": 4, "linewidth": 1.3, "capsize": 2}
    curve, _, _ = axis.errorbar(100 * run.arrays["remaining"][order], 100 * mean, 100 * np.nan_to_num(stderr), **line)
    curve.set_label(label)
    return curve


def _against_remaining(run: StoredRun, titles: Sequence[str], labels: Sequence[str], by_strategy: bool = False) -> Figure:
    """Accuracies on all, hard and easy test samples against what remains: a row for each title, a line for each label.

    Rows are strategies and lines train ratios, or with `by_strategy` the other way round.
    """
    sets, repeats = run.arrays["accuracy_full"].shape[3:]
    several = f"mean ± standard error\nover {sets} sets of {repeats} networks"
    error_bars = style.note(several if sets > 1 else style.networks(repeats, between=",\n"))
    figure, axes = style.sheet(len(titles), len(TESTS), width=3.3, height=2.9, sharex=True, sharey="col")
    for r, (row, title) in enumerate(zip(axes, titles, strict=True)):
        for axis, test in zip(row, TESTS, strict=True):
            axis.set_title("all test samples" if test == "full" else f"{test} test samples", fontsize=style.SMALL + 1)
            places = [(number, r) if by_strategy else (r, number) for number in range(len(labels))]
            lines = [_errorbars(axis, run, test, place, number, labels[number]) for number, place in enumerate(places)]
        row[0].set_ylabel("accuracy / %")
        style.legend(row[-1], [*lines, error_bars], title)
    group = "hard" if run.config["reduce_hard"] else "easy"
    figure.supxlabel(f"{group} training samples that remain / %", fontsize=style.SMALL + 2)
    return figure


@each_run
def accuracy_vs_remaining(run: StoredRun) -> Figure:
    """Accuracy on all, hard and easy test samples against the share of the reduced group that remains: a line per train ratio."""
    ratios = [f"{100 * ratio:g} %" for ratio in run.arrays["train_ratios"]]
    return _against_remaining(run, [f"{name}\ntrained on" for name in run.arrays["strategies"]], ratios)


@each_run
def strategies(run: StoredRun) -> Figure:
    """Accuracy on all, hard and easy test samples against the share that remains, at the first train ratio: a line per strategy."""
    title = f"{100 * run.arrays['train_ratios'][0]:g} % trained on"
    return _against_remaining(run, [title], _several(run), by_strategy=True)


@each_run
def hard_per_class(run: StoredRun) -> Figure:
    """Share of every class that is hard, by strategy; beside it the class's test error against that share, with Pearson's r."""
    names, classes = [str(name) for name in run.arrays["strategies"]], class_names(run)
    counts = measured(run, "hard_per_class")  # [M, S, K]
    shares = 100 * counts / run.arrays["samples_per_class"]
    figure, axes = style.sheet(1, 2, width=max(4.6, 0.3 * min(len(classes), style.CROWD)), height=3.4)
    bars, scatter = axes[0]
    width = 0.8 / len(names)
    handles = []
    for m, name in enumerate(names):
        mean, stderr = mean_stderr(shares[m])
        error = 100 * class_error(run.arrays, m)
        place = np.arange(len(classes)) + (m - (len(names) - 1) / 2) * width
        marks: dict[str, Any] = {"linestyle": "", "marker": MARKERS[m % len(MARKERS)], "color": style.line_style(m)["color"]}
        bars.bar(place, mean, width, yerr=np.nan_to_num(stderr), color=marks["color"], error_kw={"elinewidth": 0.8})
        scatter.plot(mean, error, markersize=4.5, **marks)
        for point in zip(classes, mean, error, strict=True) if len(names) == 1 and len(classes) <= style.CROWD else ():
            scatter.annotate(point[0], point[1:], (4, 3), textcoords="offset points", fontsize=style.SMALL, parse_math=False)
        r = correlation(mean, error)
        handles.append(style.handle(name + ("" if np.isnan(r) else f", r = {r:.2f}"), **marks))
    named = style.sampled(len(classes), style.CROWD)
    bars.set_xticks(named, [classes[c] for c in named], rotation=90 if max(map(len, classes)) > 3 else 0, parse_math=False)
    bars.set(xlabel="class", ylabel="hard samples of the class / %")
    scatter.set(xlabel="hard samples of the class / %", ylabel="test error of the class / %\n(least removed)")
    sets = counts.shape[1]
    style.legend(scatter, [*handles, style.note(f"bars: standard error\nover {sets} sets" if sets > 1 else "one set")])
    return figure


def agreement(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Overlap (Jaccard) of the strategies' hard samples and rank correlation (Spearman) of their scores, means over the sets.

    `agreement_per_class` has the overlap within every class. Behind a strategy's name stands its stability: by how many standard
    deviations its hard samples of different sets overlap beyond chance.
    """
    return one_per_run(runs, "agreement", _agreement) | one_per_run(runs, "agreement_per_class", _agreement_per_class)


def _agreement(run: StoredRun) -> Figure:
    names = _several(run)
    stabilities = zip(names, run.arrays["stability"], strict=True)
    with_stability = [name if np.isnan(z) else f"{name}\nz = {z:.0f}" for name, z in stabilities]  # nan for a single set
    side = 1.9 + 0.45 * len(names)
    figure, axes = style.sheet(1, 2, width=side + 1.1, height=side, layout="compressed")
    overlap, ranks = (mean_stderr(measured(run, name))[0] for name in ("jaccard", "spearman"))
    style.heatmap(axes[0, 0], overlap, with_stability, names, "Jaccard overlap of the hard samples", Normalize(0, 1))
    style.heatmap(axes[0, 1], ranks, names, names, "Spearman correlation of the scores", Normalize(-1, 1), cmap="RdBu_r")
    return figure


def _agreement_per_class(run: StoredRun) -> Figure:
    (pairs, ends), classes = style.pairs_of(_several(run)), class_names(run)
    overlap = mean_stderr(measured(run, "jaccard_per_class"))[0]  # [K, M, M]
    figure, axis = style.panel(width=3.6 + 0.36 * min(len(classes), style.CROWD), height=1.3 + 0.3 * len(pairs))
    style.heatmap(axis, overlap[:, *ends].T, pairs, classes, "Jaccard overlap", Normalize(0, 1), aspect="auto")
    axis.set_xlabel("class")
    return figure


@each_run
def gallery(run: StoredRun) -> Figure:
    """The hardest images of every strategy, by mean score over the sets; of equal scores those with the largest loss."""
    arrays = run.arrays
    if "gallery_images" not in arrays:
        raise ConfigError(f"gallery: run {run.name} has vectors; images")
    names, classes = arrays["strategies"], class_names(run)
    figure, axes = style.sheet(len(names), min(SHOWN, arrays["gallery_images"].shape[1]), width=0.95, height=1.32)
    for m, row in enumerate(axes):
        for g, axis in enumerate(row):
            label, predicted, clean = (int(arrays[f"gallery_{part}"][m, g]) for part in ("labels", "predicted", "clean"))
            noisy = label != clean
            text = f"{classes[label]} → {classes[predicted]}" + (f"\nis {classes[clean]}" if noisy else "\n")
            style.picture(axis, arrays["gallery_images"][m, g], text, style.HIGH if noisy else style.INK)
        row[0].set_ylabel(str(names[m]), fontsize=style.SMALL)
    wrong = "; in colour: labels made wrong, and the true class" if (arrays["gallery_labels"] != arrays["gallery_clean"]).any() else ""
    figure.suptitle(f"label → prediction of the straggler networks{wrong}", fontsize=style.SMALL + 1)
    return figure


KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (accuracy_vs_remaining, strategies, hard_per_class, agreement, gallery, planted)}
