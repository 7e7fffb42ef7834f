"""Figures of inversion searches (Ciceri et al. 2024, arXiv:2303.05161): radii, distances and error, agreement, prune curve, stragglers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hardbench.artifacts import Array
from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.planted import planted
from hardbench.figures.runs import FigureOptions, Kind, Runs, StoredRun, class_names, each_run, measured, one_per_run, run_labels
from hardbench.inversion.agreement import share
from hardbench.inversion.radii import PASSED, passed
from hardbench.metrics.hardness import mean_stderr

APART = 7  # networks up to which each has a line of its own
TICK_OF_PASSED = "#808080"  # colour of the tick at an inversion that is passed later
SHOWN = 40  # stragglers in a gallery, at most


def radii(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Radius of every class against epoch + 1, one panel per class; a line per network with its inversion, or mean +- std for many.

    Beyond 50 classes 50 of them, evenly chosen. Open circles, or grey ticks, are inversions that are passed later, by a radius over
    1 % smaller. `radii_retrained` has the same networks trained again without their stragglers, where that was done.
    """
    again = [run for run in runs if "retrained_radii" in run.arrays]
    return one_per_run(runs, "radii", _radii) | one_per_run(again, "radii_retrained", partial(_radii, prefix="retrained_"))


def _radii(run: StoredRun, prefix: str = "") -> Figure:
    values, epochs = measured(run, f"{prefix}radii"), run.arrays[f"{prefix}inversion_epoch"]
    names, later = class_names(run), passed(values, epochs)
    shown = style.sampled(len(names), style.CROWD)
    figure, axes = style.panels(len(shown), min(len(shown), 5 if len(shown) <= 15 else 10), width=2.5, height=2.1, sharex=True)
    for c, axis in zip(shown, axes, strict=True):
        (_lines if len(values) <= APART else _bands)(axis, values[:, :, c], epochs[:, c], later[:, c])
        counts = f"{np.isfinite(epochs[:, c]).sum()} of {len(values)} invert" + f", {later[:, c].sum()} passed" * bool(later[:, c].any())
        axis.set_title(f"class {names[c]}: {counts}", fontsize=style.SMALL + 1, parse_math=False)
        style.log_steps(axis, "")  # so that the first epochs, which fall from far above, have room
    figure.supxlabel("epoch + 1", fontsize=style.SMALL + 2)
    figure.supylabel("radius" + (" without stragglers" if prefix else ""), fontsize=style.SMALL + 2)
    handles = _radius_handles(run, len(values))
    figure.legend(handles=handles, loc="outside upper center", ncols=APART + 1, frameon=False, fontsize=style.SMALL)
    return figure


def _lines(axis: Axes, values: Array, epochs: Array, later: Array) -> None:
    """One class's radii [R, T] as a line per network, a circle at its epoch [R]: open where a smaller radius comes `later` [R]."""
    for r, (curve, epoch) in enumerate(zip(values, epochs, strict=True)):
        axis.plot(np.arange(len(curve)) + 1, curve, linewidth=1, **style.line_style(r))
        if np.isfinite(epoch):
            colour = style.line_style(r)["color"]
            face, edge = ("white", colour) if later[r] else (colour, "white")
            axis.plot(epoch + 1, curve[int(epoch)], marker="o", markersize=5, color=face, markeredgecolor=edge, markeredgewidth=0.9)


def _bands(axis: Axes, values: Array, epochs: Array, later: Array) -> None:
    """One class's radii [R, T] as mean and standard deviation over networks, a tick at each epoch [R], a line at their median."""
    mean, stderr = mean_stderr(values)
    std, x = stderr * np.sqrt(np.isfinite(values).sum(axis=0)), np.arange(values.shape[1]) + 1
    axis.plot(x, mean, linewidth=1.5, color=style.COLOURS[0])
    axis.fill_between(x, mean - std, mean + std, color=style.COLOURS[0], alpha=0.2, linewidth=0)
    inverts = np.isfinite(epochs)
    for epoch, is_passed in zip(epochs[inverts], later[inverts], strict=True):
        axis.axvline(epoch + 1, ymax=0.06, color=TICK_OF_PASSED if is_passed else style.COLOURS[1], linewidth=0.8)
    if inverts.any():
        axis.axvline(np.median(epochs[inverts]) + 1, color=style.COLOURS[1], linewidth=1, linestyle="--")


def _radius_handles(run: StoredRun, count: int) -> list[Any]:
    passed_later = f"passed later (a radius over {PASSED:.0%} smaller)"
    if count > APART:
        mean = style.handle(f"mean ± std, {count} networks", color=style.COLOURS[0])
        tick = {"color": style.COLOURS[1], "linewidth": 1}
        ticks = [style.handle("inversions", **tick), style.handle(passed_later, **tick | {"color": TICK_OF_PASSED})]
        return [mean, *ticks, style.handle("their median", linestyle="--", **tick)]
    lines = [style.handle(f"network {number}", **style.line_style(r)) for r, number in enumerate(run.arrays["repeats"])]
    circle = {"linestyle": "", "marker": "o", "markersize": 5, "markeredgecolor": style.INK}
    return [*lines, style.handle("inversion", color=style.INK, **circle), style.handle(passed_later, color="white", **circle)]


def distance_error(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Distance of the class centres (mean over all pairs) and training error against the epoch; mean and standard error over networks.

    Vertical lines: the median inversion epoch, its quartiles shaded.
    """
    figure, axes = style.sheet(1, 2, width=4.4)
    left, right = axes[0]
    handles: list[Any] = []
    for number, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True)):
        values, error, x = measured(run, "distances"), measured(run, "error"), run.arrays["epochs"]
        pairs = np.triu_indices(values.shape[-1], 1)
        line = style.band(left, x, values[:, :, *pairs].mean(axis=-1), **style.line_style(number))
        style.band(right, x, error, **style.line_style(number))
        inversions = run.arrays["inversion_epoch"][np.isfinite(run.arrays["inversion_epoch"])]
        for axis in axes.flat if len(inversions) else ():
            low, middle, high = np.percentile(inversions, [25, 50, 75])
            axis.axvspan(low, high, color=line.get_color(), alpha=0.08, linewidth=0)
            axis.axvline(middle, color=line.get_color(), linewidth=0.9, linestyle="--")
        names = f"{len(pairs[0])} pair{'s' * (len(pairs[0]) > 1)} of classes"
        head = f"{label}\n" if len(runs) > 1 else ""
        count = style.networks(len(values), between=",\n")
        handles.append(style.handle(f"{head}{names}\n{count}", **style.line_style(number)))
    left.set(xlabel="epoch", ylabel="distance of class centres")
    right.set(xlabel="epoch", ylabel="training error", yscale="log")
    percent = FuncFormatter(lambda share, _: f"{100 * share:g} %")
    right.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter=percent, minor_formatter=NullFormatter())
    median = style.handle("median inversion", color=style.INK, linewidth=0.9, linestyle="--")
    style.legend(right, [*handles, median, Patch(color=style.INK, alpha=0.12, linewidth=0, label="its quartiles")])
    return {"distance_error": figure}


def stability(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """How far the samples that two networks misclassify overlap beyond chance (z-score), and their share, against the epoch.

    Faint: pairs of networks; line: their mean; dashed: the mean of the straggler sets. Pairs share networks: no error is given.
    """
    figure, axes = style.sheet(1, 2, width=4.4)
    left, right = axes[0]
    handles: list[Any] = []
    for number, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True)):
        z, x = measured(run, "stability_z"), run.arrays["stability_epochs"] + 1
        colour = style.line_style(number)["color"]
        left.plot(x, z.T, color=colour, linewidth=0.5, alpha=0.3)
        left.plot(x, mean_stderr(z)[0], color=colour, linewidth=1.8)
        style.band(right, x, run.arrays["misclassified"], color=colour)
        straggler_shares = share(run.arrays["stragglers"], run.arrays["judged_epoch"])
        for axis, values in ((left, run.arrays["straggler_z"]), (right, straggler_shares)):
            if np.isfinite(level := mean_stderr(values)[0]):
                axis.axhline(level, color=colour, linewidth=1, linestyle="--")
        head = f"{label}\n" if len(runs) > 1 else ""
        pairs = f"mean of {len(z)} pair{'s' * (len(z) > 1)}"
        handles.append(style.handle(f"{head}misclassified:\n{pairs}", color=colour, linewidth=1.8))
    handles.append(style.handle("one pair", color=style.INK, linewidth=0.5, alpha=0.5))
    handles.append(style.handle("straggler sets", color=style.INK, linewidth=1, linestyle="--"))
    _over_epochs(left, right, "epoch + 1", "overlap of two networks, z-score", "share of the samples", handles)
    return {"stability": figure}


def _over_epochs(left: Axes, right: Axes, xlabel: str, left_label: str, right_label: str, handles: Sequence[Any]) -> None:
    """Two axes over epochs + 1 on a log scale, the right one a share, with the legend beside it."""
    for axis, label in ((left, left_label), (right, right_label)):
        style.log_steps(axis, xlabel)
        axis.set_ylabel(label)
    right.set_ylim(bottom=0)
    style.legend(right, handles)


@each_run
def prune_curve(run: StoredRun) -> Figure:
    """Test error after training without the samples misclassified at an epoch, against that epoch, one line per test noise.

    Mean and standard error over networks; dashed: trained on everything. Right: the share of samples removed.
    """
    errors, x = measured(run, "prune_error"), run.arrays["prune_epochs"]
    figure, axes = style.sheet(1, 2, width=4.4)
    left, right = axes[0]
    handles = []
    for s, strength in enumerate(run.arrays["test_noise"]):
        line = style.band(left, x, errors[:, s], marker="o", markersize=3.5, **style.line_style(s))
        left.axhline(mean_stderr(run.arrays["prune_baseline"][:, s])[0], color=line.get_color(), linewidth=1, linestyle="--")
        handles.append(style.handle("clean test inputs" if not strength else f"test noise {strength:g}", **style.line_style(s)))
    style.band(right, x, run.arrays["prune_removed"], marker="o", markersize=3.5, color=style.INK)
    handles.append(style.handle("nothing removed", color=style.INK, linewidth=1, linestyle="--"))
    handles.append(style.note(style.networks(len(errors), between=",\n")))
    _over_epochs(left, right, "epoch at which misclassified", "test error", "share of the samples removed", handles)
    return figure


@each_run
def gallery(run: StoredRun) -> Figure:
    """The hardest stragglers as images: those most networks call stragglers, of equals those with the largest loss at the end."""
    arrays = run.arrays
    inputs = arrays["gallery_inputs"][:SHOWN]
    if inputs.ndim != 4 or not len(inputs):
        raise ConfigError(f"gallery: run {run.name} has {'no stragglers' if not len(inputs) else 'vectors'}; stragglers among images")
    names, count = class_names(run), len(arrays["stragglers"])
    figure, axes = style.panels(len(inputs), min(10, len(inputs)), width=1.05, height=1.45)
    for axis, image, place in zip(axes, inputs, arrays["gallery"], strict=False):
        guessed = arrays["predicted"][:, place][arrays["stragglers"][:, place]]
        votes = np.bincount(guessed, minlength=len(names))
        style.picture(axis, image, f"{names[arrays['labels'][place]]} → {names[votes.argmax()]}\n{len(guessed)} of {count}")
    title = f"label → prediction when its class was judged (the most frequent one); networks of {count} that call it a straggler"
    figure.suptitle(title, fontsize=style.SMALL + 1)
    return figure


KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (radii, distance_error, stability, prune_curve, gallery, planted)}
