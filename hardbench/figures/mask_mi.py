"""Figures of masked channels: information per layer, what masking loses, information against the kept share, classes, channels."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.style import Array, FigureOptions, StoredRun, line_style

BINS = 10  # of the kept share
SHOWN = 10  # channels per layer
LAYERS_APART = 8  # layers up to which a figure has a panel for each


class Part:
    """What a run stored of one model."""

    def __init__(self, label: str, arrays: dict[str, Array]):
        self.label, self.arrays = label, arrays
        self.layers = [int(number) for number in arrays["layers"]]

    def of(self, name: str, layer: int) -> Array:
        """An array of one layer."""
        return self.arrays[f"{name}_{layer:02d}"]


def parts(runs: Sequence[StoredRun]) -> list[Part]:
    """The models of all runs, labelled so that they differ."""
    found = []
    for run in runs:
        models = [str(name) for name in run.arrays["models"]]
        for model in models:
            start = "" if len(models) == 1 else f"{model}/"
            own = {name.removeprefix(start): value for name, value in run.arrays.items() if name.startswith(start)}
            same = len({(str(other.arrays["models"]), other.config.get("mask_mode")) for other in runs}) == len(runs)
            mode = f" {run.config.get('mask_mode')}" if len({other.config.get("mask_mode") for other in runs}) > 1 else ""
            found.append(Part(f"{model}{mode}" if same else f"{model}{mode} ({run.id[:6]})", own))
    return found


def _chosen(part: Part, options: FigureOptions) -> list[int]:
    if options.layer is None:
        return part.layers
    if options.layer not in part.layers:
        raise ConfigError(f"layer: {options.layer}; measured are {', '.join(map(str, part.layers))}")
    return [options.layer]


def _over_sets(part: Part, name: str) -> tuple[Array, Array]:
    """Mean and population standard deviation over sets per layer, means over repeats, [L] each."""
    rows = [part.of(name, layer) for layer in part.layers]
    return np.array([row.mean() for row in rows]), np.array([row.std(1).mean() for row in rows])


def _count(found: Sequence[Part]) -> str:
    sets = sorted({part.of("mi", layer).shape[1] for part in found for layer in part.layers})
    repeats = {len(part.arrays["mi_full"]) for part in found}
    words = f"{sets[0]} to {sets[-1]} sets" if len(sets) > 1 else f"{sets[0]} sets"
    return f"{words} per layer, {style.networks(max(repeats), error=False)}"


def _layer_axis(axis: Axes, found: Sequence[Part]) -> None:
    most = max(max(part.layers) for part in found)
    axis.set_xlabel("layer masked (0 is next to the input)")
    axis.set_xticks(range(0, most + 1, 1 if most < 12 else 2))
    axis.set_xlim(-0.5, most + 0.5)


def mi_per_layer(runs: Sequence[StoredRun], options: FigureOptions) -> dict[str, Figure]:
    """Information per masked layer, mean and standard deviation over sets; lines of the unmasked networks and of ln K."""
    found = parts(runs)
    figure, axes = style.sheet(width=5.6, height=3.6)
    axis = axes[0, 0]
    handles: list[Any] = []
    for number, part in enumerate(found):
        mean, spread = _over_sets(part, "mi")
        colour = line_style(number)["color"]
        x = np.array(part.layers) + 0.12 * (number - (len(found) - 1) / 2)
        handles.append(
            axis.errorbar(
                x, mean, spread, color=colour, marker="o", markersize=3.5, capsize=2, linewidth=1.3, elinewidth=0.8, label=part.label
            )
        )
        full = float(part.arrays["mi_full"].mean())
        axis.axhline(full, color=colour, linestyle="--", linewidth=1)
        handles.append(Line2D([], [], color=colour, linestyle="--", linewidth=1, label=f"no mask: {full:.2f}"))
    for classes in sorted({len(part.arrays["class_names"]) for part in found}):
        axis.axhline(np.log(classes), color=style.INK, linestyle=":", linewidth=1)
        handles.append(Line2D([], [], color=style.INK, linestyle=":", linewidth=1, label=f"ln {classes}: {np.log(classes):.2f}"))
    handles.append(Line2D([], [], linestyle="", label=f"mean ± standard deviation,\n{_count(found).replace(', ', ',' + chr(10))}"))
    _layer_axis(axis, found)
    axis.set_ylabel("I(label; prediction) / nats")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    style.legend(axis, handles)
    return {"mi_per_layer": figure}


def delta_mi(runs: Sequence[StoredRun], options: FigureOptions) -> dict[str, Figure]:
    """What masking a layer loses on average, with the bootstrap's 95 % interval over sets."""
    found = parts(runs)
    figure, axes = style.sheet(width=5.6, height=3.6)
    axis = axes[0, 0]
    wide = 0.8 / len(found)
    handles: list[Any] = []
    for number, part in enumerate(found):
        full = float(part.arrays["mi_full"].mean())
        lost = full - _over_sets(part, "mi")[0]
        bounds = np.array([part.of("ci95", layer) for layer in part.layers])
        error = np.clip(np.stack([lost - (full - bounds[:, 1]), (full - bounds[:, 0]) - lost]), 0, None)
        x = np.array(part.layers) + wide * (number - (len(found) - 1) / 2)
        look_of = {"color": line_style(number)["color"], "ecolor": style.INK, "capsize": 2, "error_kw": {"linewidth": 0.8}}
        handles.append(axis.bar(x, lost, wide * 0.9, yerr=error, label=part.label, **look_of))
    handles.append(Line2D([], [], linestyle="", label="bars: 95 % over sets\n" + _count(found).replace(", ", ",\n")))
    axis.axhline(0, color=style.INK, linewidth=0.8)
    _layer_axis(axis, found)
    axis.set_ylabel("information lost by masking / nats")
    style.legend(axis, handles)
    return {"delta_mi": figure}


def mi_vs_kept(runs: Sequence[StoredRun], options: FigureOptions) -> dict[str, Figure]:
    """Information against the share of channels kept: every set a dot, means and standard deviations in ten bins; a figure per model."""
    figures = {}
    found = parts(runs)
    for part in found:
        layers = _chosen(part, options)
        figure, axes = style.sheet(width=5.6, height=3.6)
        axis = axes[0, 0]
        handles: list[Any] = []
        for layer, colour in zip(layers, style.ordered(len(layers)), strict=True):
            share = part.of("kept", layer) / part.of("masks", layer).shape[1]
            mi = part.of("mi", layer).mean(0)
            axis.scatter(share, mi, s=6, color=colour, alpha=0.35, linewidth=0)
            middle, mean, spread = _binned(share, mi)
            handles += axis.plot(middle, mean, color=colour, linewidth=1.5, label=f"{layer}")
            axis.fill_between(middle, mean - spread, mean + spread, color=colour, alpha=0.12, linewidth=0)
        full = float(part.arrays["mi_full"].mean())
        handles += axis.plot([0, 1], [full, full], color=style.INK, linestyle="--", linewidth=1, label=f"no mask: {full:.2f}")
        handles.append(Line2D([], [], linestyle="", label="lines, bands: mean ±\nstandard deviation\nof sets in a bin"))
        axis.set(xlabel="share of the layer's channels kept", ylabel="I(label; prediction) / nats", xlim=(0, 1.01))
        axis.set_title(part.label, fontsize=style.SMALL + 2, parse_math=False)
        style.legend(axis, handles, "layer")
        figures["mi_vs_kept" if len(found) == 1 else f"mi_vs_kept_{style.slug(part.label)}"] = figure
    return figures


def _binned(share: Array, values: Array) -> tuple[Array, Array, Array]:
    """Mean share, mean value and standard deviation of the sets in each bin that has any."""
    where = np.minimum((share * BINS).astype(int), BINS - 1)
    rows = [where == b for b in range(BINS) if (where == b).any()]
    return tuple(np.array(column) for column in zip(*[(share[r].mean(), values[r].mean(), values[r].std()) for r in rows], strict=True))  # type: ignore[return-value]


def class_information(runs: Sequence[StoredRun], options: FigureOptions) -> dict[str, Figure]:
    """Per layer and class: the class's information without masks less its mean over sets; a figure per model."""
    figures = {}
    found = parts(runs)
    for part in found:
        full = part.arrays["class_information_full"][:, None]  # [R, 1, K]
        lost = np.stack([(full - part.of("class_information", layer)).mean((0, 1)) for layer in part.layers], 1)  # [K, L]
        names = [str(name) for name in part.arrays["class_names"]]
        figure, axes = style.sheet(width=2.6 + 0.5 * len(part.layers), height=1.6 + min(0.32 * len(names), 9.0))
        top = np.nan_to_num(np.abs(lost)).max()
        limits = Normalize(min(0.0, float(np.nanmin(lost))), max(float(top), 1e-9))
        style.heatmap(
            axes[0, 0], lost, names, [str(n) for n in part.layers], "information of the class lost / nats", norm=limits, aspect="auto"
        )
        axes[0, 0].set(xlabel="layer masked", ylabel="class")
        axes[0, 0].set_title(part.label, fontsize=style.SMALL + 2, parse_math=False)
        figures["class_information" if len(found) == 1 else f"class_information_{style.slug(part.label)}"] = figure
    return figures


def top_channels(runs: Sequence[StoredRun], options: FigureOptions) -> dict[str, Figure]:
    """The channels that add most, layer by layer, with the bootstrap's 95 % intervals; a figure per model, of eight layers at the most.

    Several networks are ranked each by itself and the ranks' means are drawn, since channels of different networks do not correspond.
    """
    figures = {}
    found = parts(runs)
    for part in found:
        layers = _chosen(part, options)
        if len(layers) > LAYERS_APART:
            layers = [layers[i] for i in np.linspace(0, len(layers) - 1, LAYERS_APART).round().astype(int)]
        columns = min(4, len(layers))
        figure, axes = style.sheet(-(-len(layers) // columns), columns, width=2.7, height=2.6)
        for axis in axes.flat[len(layers) :]:
            axis.set_axis_off()
        for axis, layer in zip(axes.flat, layers, strict=False):
            _channels(axis, part, layer)
        figure.supxlabel("what a channel adds to the information / nats, 95 % over sets", fontsize=style.SMALL + 2)
        figure.suptitle(f"{part.label}: strongest channels", fontsize=style.SMALL + 2)
        figures["top_channels" if len(found) == 1 else f"top_channels_{style.slug(part.label)}"] = figure
    return figures


def _channels(axis: Axes, part: Part, layer: int) -> None:
    values = part.of("contribution", layer)  # [R, 3, n]
    order = np.argsort(-values[:, 0], axis=1)[:, :SHOWN]
    picked = np.take_along_axis(values, order[:, None], axis=2).mean(0)  # [3, M]
    names = [str(channel) for channel in order[0]] if len(values) == 1 else [f"rank {rank + 1}" for rank in range(order.shape[1])]
    y = np.arange(len(names))
    error = np.clip(np.stack([picked[0] - picked[1], picked[2] - picked[0]]), 0, None)
    few = len(part.of("kept", layer)) < 4 * values.shape[2]
    colour = style.GREY if few else style.LOW
    axis.errorbar(picked[0], y, xerr=error, fmt="o", markersize=3.5, color=colour, ecolor=colour, elinewidth=1)
    axis.axvline(0, color=style.INK, linewidth=0.8)
    axis.set_yticks(y, names)
    axis.invert_yaxis()
    axis.set_ylabel("channel" if len(values) == 1 else f"mean of {len(values)} networks")
    axis.set_title(f"layer {layer}" + (": few sets, an order" if few else ""), fontsize=style.SMALL + 1)
    axis.xaxis.set_major_locator(MaxNLocator(4))


KINDS: dict[str, Callable[[Sequence[StoredRun], FigureOptions], dict[str, Figure]]] = {
    kind.__name__: kind for kind in (mi_per_layer, delta_mi, mi_vs_kept, class_information, top_channels)
}
