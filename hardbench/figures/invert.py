"""Figures of inversion searches (Ciceri et al. 2024, arXiv:2303.05161): radii, distances and error, agreement, prune curve, stragglers."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hardbench.artifacts import Array
from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.runs import FigureOptions, Kind, Runs, StoredRun, class_names, measured, one_per_run, run_labels
from hardbench.figures.style import line_style
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
    figures = one_per_run(runs, "radii", lambda run: _radii(run, ""))
    again = [run for run in runs if "retrained_radii" in run.arrays]
    return figures | one_per_run(again, "radii_retrained", lambda run: _radii(run, "retrained_"))


def _radii(run: StoredRun, prefix: str) -> Figure:
    values, epochs = measured(run, f"{prefix}radii"), run.arrays[f"{prefix}inversion_epoch"]
    names, later = class_names(run), passed(values, epochs)
    shown = style.sampled(len(names), style.CROWD)
    columns = min(len(shown), 5 if len(shown) <= 15 else 10)
    figure, axes = style.sheet(-(-len(shown) // columns), columns, width=2.5, height=2.1, sharex=True)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for c, axis in zip(shown, axes.flat, strict=False):
        (_lines if len(values) <= APART else _bands)(axis, values[:, :, c], epochs[:, c], later[:, c])
        counts = f"{np.isfinite(epochs[:, c]).sum()} of {len(values)} invert" + f", {later[:, c].sum()} passed" * bool(later[:, c].any())
        axis.set_title(f"class {names[c]}: {counts}", fontsize=style.SMALL + 1, parse_math=False)
        style.log_steps(axis, "")  # so that the first epochs, which fall from far above, have room
    figure.supxlabel("epoch + 1", fontsize=style.SMALL + 2)
    figure.supylabel("radius" + (" without stragglers" if prefix else ""), fontsize=style.SMALL + 2)
    figure.legend(
        handles=_radius_handles(run, len(values)), loc="outside upper center", ncols=APART + 1, frameon=False, fontsize=style.SMALL
    )
    return figure


def _lines(axis: Axes, values: Array, epochs: Array, later: Array) -> None:
    """One class's radii [R, T] as a line per network, a circle at its epoch [R]: open where a smaller radius comes `later` [R]."""
    for r, (curve, epoch) in enumerate(zip(values, epochs, strict=True)):
        axis.plot(np.arange(len(curve)) + 1, curve, linewidth=1, **line_style(r))
        if np.isfinite(epoch):
            colour = line_style(r)["color"]
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
        line = Line2D([], [], color=style.COLOURS[0], label=f"mean ± std, {count} networks")
        marks: dict[str, Any] = {"color": style.COLOURS[1], "linewidth": 1}
        ticks = [Line2D([], [], **marks, label="inversions"), Line2D([], [], **marks | {"color": TICK_OF_PASSED}, label=passed_later)]
        return [line, *ticks, Line2D([], [], **marks, linestyle="--", label="their median")]
    numbers = run.arrays["repeats"]
    lines = [Line2D([], [], label=f"network {number}", **line_style(r)) for r, number in enumerate(numbers)]
    mark: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5, "markeredgecolor": style.INK}
    return [*lines, Line2D([], [], color=style.INK, label="inversion", **mark), Line2D([], [], color="white", label=passed_later, **mark)]


def distance_error(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Distance of the class centres (mean over all pairs) and training error against the epoch; mean and standard error over networks.

    Vertical lines: the median inversion epoch, its quartiles shaded.
    """
    figure, axes = style.sheet(1, 2, width=4.4)
    handles: list[Any] = []
    for number, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True)):
        values, error = measured(run, "distances"), measured(run, "error")
        pairs = np.triu_indices(values.shape[-1], 1)
        x = run.arrays["epochs"]
        line = style.band(axes[0, 0], x, values[:, :, *pairs].mean(axis=-1), **line_style(number))
        style.band(axes[0, 1], x, error, **line_style(number))
        inversions = run.arrays["inversion_epoch"][np.isfinite(run.arrays["inversion_epoch"])]
        for axis in axes.flat if len(inversions) else ():
            low, middle, high = np.percentile(inversions, [25, 50, 75])
            axis.axvspan(low, high, color=line.get_color(), alpha=0.08, linewidth=0)
            axis.axvline(middle, color=line.get_color(), linewidth=0.9, linestyle="--")
        names = f"{len(pairs[0])} pair{'s' * (len(pairs[0]) > 1)} of classes"
        head = f"{label}\n" if len(runs) > 1 else ""
        count = style.networks(len(values)).replace(", ", ",\n")
        handles.append(Line2D([], [], label=f"{head}{names}\n{count}", **line_style(number)))
    axes[0, 0].set(xlabel="epoch", ylabel="distance of class centres")
    axes[0, 1].set(xlabel="epoch", ylabel="training error", yscale="log")
    axes[0, 1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes[0, 1].yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    axes[0, 1].yaxis.set_minor_formatter(NullFormatter())
    handles.append(Line2D([], [], color=style.INK, linewidth=0.9, linestyle="--", label="median inversion"))
    handles.append(Patch(color=style.INK, alpha=0.12, linewidth=0, label="its quartiles"))
    style.legend(axes[0, 1], handles)
    return {"distance_error": figure}


def stability(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """How far the samples that two networks misclassify overlap beyond chance (z-score), and their share, against the epoch.

    Faint: pairs of networks; line: their mean; dashed: the mean of the straggler sets. Pairs share networks: no error is given.
    """
    figure, axes = style.sheet(1, 2, width=4.4)
    handles: list[Any] = []
    for number, (run, label) in enumerate(zip(runs, run_labels(runs), strict=True)):
        z, x = measured(run, "stability_z"), run.arrays["stability_epochs"] + 1
        colour = line_style(number)["color"]
        for pair in z:
            axes[0, 0].plot(x, pair, color=colour, linewidth=0.5, alpha=0.3)
        axes[0, 0].plot(x, mean_stderr(z)[0], color=colour, linewidth=1.8)
        level = mean_stderr(run.arrays["straggler_z"])[0]
        if np.isfinite(level):
            axes[0, 0].axhline(level, color=colour, linewidth=1, linestyle="--")
        style.band(axes[0, 1], x, run.arrays["misclassified"], color=colour)
        if np.isfinite(fraction := mean_stderr(share(run.arrays["stragglers"], run.arrays["judged_epoch"]))[0]):
            axes[0, 1].axhline(fraction, color=colour, linewidth=1, linestyle="--")
        head = f"{label}\n" if len(runs) > 1 else ""
        handles.append(
            Line2D([], [], color=colour, linewidth=1.8, label=f"{head}misclassified:\nmean of {len(z)} pair{'s' * (len(z) > 1)}")
        )
    handles.append(Line2D([], [], color=style.INK, linewidth=0.5, alpha=0.5, label="one pair"))
    handles.append(Line2D([], [], color=style.INK, linewidth=1, linestyle="--", label="straggler sets"))
    for axis in axes.flat:
        style.log_steps(axis, "epoch + 1")
    axes[0, 0].set(ylabel="overlap of two networks, z-score")
    axes[0, 1].set(ylabel="share of the samples")
    axes[0, 1].set_ylim(bottom=0)
    style.legend(axes[0, 1], handles)
    return {"stability": figure}


def prune_curve(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Test error after training without the samples misclassified at an epoch, against that epoch, one line per test noise.

    Mean and standard error over networks; dashed: trained on everything. Right: the share of samples removed.
    """
    return one_per_run(runs, "prune_curve", _prune_curve)


def _prune_curve(run: StoredRun) -> Figure:
    errors, x = measured(run, "prune_error"), run.arrays["prune_epochs"]
    figure, axes = style.sheet(1, 2, width=4.4)
    handles = []
    for s, strength in enumerate(run.arrays["test_noise"]):
        line = style.band(axes[0, 0], x, errors[:, s], marker="o", markersize=3.5, **line_style(s))
        baseline = mean_stderr(run.arrays["prune_baseline"][:, s])[0]
        axes[0, 0].axhline(baseline, color=line.get_color(), linewidth=1, linestyle="--")
        handles.append(Line2D([], [], label="clean test inputs" if not strength else f"test noise {strength:g}", **line_style(s)))
    style.band(axes[0, 1], x, run.arrays["prune_removed"], marker="o", markersize=3.5, color=style.INK)
    handles.append(Line2D([], [], color=style.INK, linewidth=1, linestyle="--", label="nothing removed"))
    handles.append(style.note(style.networks(len(errors)).replace(", ", ",\n")))
    for axis in axes.flat:
        style.log_steps(axis, "epoch at which misclassified")
    axes[0, 0].set(ylabel="test error")
    axes[0, 1].set(ylabel="share of the samples removed")
    axes[0, 1].set_ylim(bottom=0)
    style.legend(axes[0, 1], handles)
    return figure


def gallery(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """The hardest stragglers as images: those most networks call stragglers, of equals those with the largest loss at the end."""
    return one_per_run(runs, "gallery", _gallery)


def _gallery(run: StoredRun) -> Figure:
    arrays = run.arrays
    inputs = arrays["gallery_inputs"][:SHOWN]
    if inputs.ndim != 4 or not len(inputs):
        raise ConfigError(f"gallery: run {run.name} has {'no stragglers' if not len(inputs) else 'vectors'}; stragglers among images")
    names, count = class_names(run), len(arrays["stragglers"])
    figure, axes = style.sheet(-(-len(inputs) // 10), min(10, len(inputs)), width=1.05, height=1.45)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, image, place in zip(axes.flat, inputs, arrays["gallery"], strict=False):
        guessed = arrays["predicted"][:, place][arrays["stragglers"][:, place]]
        votes = np.bincount(guessed, minlength=len(names))
        axis.imshow(style.pixels(image), cmap="gray_r" if image.shape[0] == 1 else None)
        text = f"{names[arrays['labels'][place]]} → {names[votes.argmax()]}\n{len(guessed)} of {count}"
        axis.set_title(text, fontsize=style.SMALL - 1, parse_math=False, pad=2)
    title = f"label → prediction when its class was judged (the most frequent one); networks of {count} that call it a straggler"
    figure.suptitle(title, fontsize=style.SMALL + 1)
    return figure


KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (radii, distance_error, stability, prune_curve, gallery)}
