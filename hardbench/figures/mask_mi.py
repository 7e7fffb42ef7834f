"""Figures of masked channels: information per layer, what masking loses, information against the kept share, classes, channels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hardbench.artifacts import Array, by_model, masked_key
from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.runs import FigureOptions, Kind, Runs, file_stem

BINS = 10  # of the kept share
SHOWN = 10  # channels per layer
LAYERS_APART = 8  # layers up to which a figure has a panel for each


@dataclass(frozen=True)
class MaskedModel:
    """The arrays that a run stored of one model."""

    label: str
    arrays: dict[str, Array]

    @property
    def layers(self) -> list[int]:
        """The numbers of the layers that were masked."""
        return [int(number) for number in self.arrays["layers"]]

    @property
    def unmasked(self) -> float:
        """Information of the networks as they are, in nats, mean over repeats."""
        return float(self.arrays["mi_full"].mean())

    def of_layer(self, name: str, layer: int) -> Array:
        """An array of one layer."""
        return self.arrays[masked_key(name, layer)]

    def mi_of_layers(self) -> tuple[Array, Array]:
        """Mean and population standard deviation over sets, [L] each in nats, means over repeats."""
        rows = [self.of_layer("mi", layer) for layer in self.layers]
        return np.array([row.mean() for row in rows]), np.array([row.std(1).mean() for row in rows])


def masked_models(runs: Runs) -> list[MaskedModel]:
    """The models of all runs, labelled so that they differ."""
    modes = [run.config.get("mask_mode") for run in runs]
    told_apart = len({(str(run.arrays["models"]), mode) for run, mode in zip(runs, modes, strict=True)}) == len(runs)
    models = []
    for run, mode in zip(runs, modes, strict=True):
        ending = (f" {mode}" if len(set(modes)) > 1 else "") + ("" if told_apart else f" ({run.id[:6]})")
        models += [MaskedModel(f"{name}{ending}", arrays) for name, arrays in by_model(run.arrays).items()]
    return models


def _one_per_model(runs: Runs, kind: str, draw: Callable[[MaskedModel], Figure]) -> dict[str, Figure]:
    models = masked_models(runs)
    return {file_stem(kind, model.label, len(models)): draw(model) for model in models}


def _chosen(model: MaskedModel, options: FigureOptions) -> list[int]:
    """The layer asked for, or all; ConfigError for one that was not measured."""
    if options.layer is None:
        return model.layers
    if options.layer not in model.layers:
        raise ConfigError(f"layer: {options.layer}; measured are {', '.join(map(str, model.layers))}")
    return [options.layer]


def _count(models: Sequence[MaskedModel]) -> str:
    """How many sets and networks the numbers are of, on two lines."""
    sets = sorted({model.of_layer("mi", layer).shape[1] for model in models for layer in model.layers})
    repeats = max(len(model.arrays["mi_full"]) for model in models)
    words = f"{sets[0]} to {sets[-1]} sets" if len(sets) > 1 else f"{sets[0]} sets"
    return f"{words} per layer,\n{style.networks(repeats, error=False)}"


def _layer_sheet(models: Sequence[MaskedModel]) -> tuple[Figure, Axes]:
    """A figure with one axis, whose x is the masked layer."""
    figure, axis = style.panel(width=5.6, height=3.6)
    last = max(max(model.layers) for model in models)
    axis.set(xlabel="layer masked (0 is next to the input)", xticks=range(0, last + 1, 1 if last < 12 else 2), xlim=(-0.5, last + 0.5))
    return figure, axis


def mi_per_layer(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Information per masked layer, mean and standard deviation over sets; lines of the unmasked networks and of ln K."""
    models = masked_models(runs)
    figure, axis = _layer_sheet(models)
    handles: list[Any] = []
    for number, model in enumerate(models):
        colour = style.line_style(number)["color"]
        x = np.array(model.layers) + 0.12 * (number - (len(models) - 1) / 2)
        marks: dict[str, Any] = {"color": colour, "marker": "o", "markersize": 3.5, "capsize": 2, "linewidth": 1.3, "elinewidth": 0.8}
        handles.append(axis.errorbar(x, *model.mi_of_layers(), **marks, label=model.label))
        handles.append(axis.axhline(model.unmasked, color=colour, linestyle="--", linewidth=1, label=f"no mask: {model.unmasked:.2f}"))
    for classes in sorted({len(model.arrays["class_names"]) for model in models}):
        limit = float(np.log(classes))
        handles.append(axis.axhline(limit, color=style.INK, linestyle=":", linewidth=1, label=f"ln {classes}: {limit:.2f}"))
    handles.append(style.note(f"mean ± standard deviation,\n{_count(models)}"))
    axis.set_ylabel("I(label; prediction) / nats")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    style.legend(axis, handles)
    return {"mi_per_layer": figure}


def delta_mi(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Information lost on average by masking a layer, with the bootstrap's 95 % interval over sets."""
    models = masked_models(runs)
    figure, axis = _layer_sheet(models)
    width = 0.8 / len(models)
    handles: list[Any] = []
    for number, model in enumerate(models):
        full = model.unmasked
        lost = full - model.mi_of_layers()[0]
        bounds = np.array([model.of_layer("ci95", layer) for layer in model.layers])
        error = np.clip(np.stack([lost - (full - bounds[:, 1]), (full - bounds[:, 0]) - lost]), 0, None)
        x = np.array(model.layers) + width * (number - (len(models) - 1) / 2)
        marks = {"color": style.line_style(number)["color"], "ecolor": style.INK, "capsize": 2, "error_kw": {"linewidth": 0.8}}
        handles.append(axis.bar(x, lost, width * 0.9, yerr=error, label=model.label, **marks))
    handles.append(style.note(f"bars: 95 % over sets\n{_count(models)}"))
    axis.axhline(0, color=style.INK, linewidth=0.8)
    axis.set_ylabel("information lost by masking / nats")
    style.legend(axis, handles)
    return {"delta_mi": figure}


def mi_vs_kept(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Information against the share of channels kept: every set a dot, means and standard deviations in ten bins; a figure per model."""
    return _one_per_model(runs, "mi_vs_kept", lambda model: _mi_vs_kept(model, _chosen(model, options)))


def _mi_vs_kept(model: MaskedModel, layers: Sequence[int]) -> Figure:
    figure, axis = style.panel(width=5.6, height=3.6)
    handles: list[Any] = []
    for layer, colour in zip(layers, style.ordered(len(layers)), strict=True):
        share = model.of_layer("kept", layer) / model.of_layer("masks", layer).shape[1]
        mi = model.of_layer("mi", layer).mean(0)
        axis.scatter(share, mi, s=6, color=colour, alpha=0.35, linewidth=0)
        middle, mean, std = _binned(share, mi)
        handles += axis.plot(middle, mean, color=colour, linewidth=1.5, label=f"{layer}")
        axis.fill_between(middle, mean - std, mean + std, color=colour, alpha=0.12, linewidth=0)
    full = model.unmasked
    handles += axis.plot([0, 1], [full, full], color=style.INK, linestyle="--", linewidth=1, label=f"no mask: {full:.2f}")
    handles.append(style.note("lines, bands: mean ±\nstandard deviation\nof sets in a bin"))
    axis.set(xlabel="share of the layer's channels kept", ylabel="I(label; prediction) / nats", xlim=(0, 1.01))
    axis.set_title(model.label, fontsize=style.SMALL + 2, parse_math=False)
    style.legend(axis, handles, "layer")
    return figure


def _binned(share: Array, values: Array) -> tuple[Array, Array, Array]:
    """Mean share, mean value and standard deviation of the sets in each bin that has any."""
    where = np.minimum((share * BINS).astype(int), BINS - 1)
    rows = [where == b for b in range(BINS) if (where == b).any()]
    return tuple(np.array(column) for column in zip(*[(share[r].mean(), values[r].mean(), values[r].std()) for r in rows], strict=True))  # type: ignore[return-value]


def class_information(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """Per layer and class: the class's information without masks less its mean over sets; a figure per model."""
    return _one_per_model(runs, "class_information", _class_information)


def _class_information(model: MaskedModel) -> Figure:
    full = model.arrays["class_information_full"][:, None]  # [R, 1, K]
    lost = np.stack([(full - model.of_layer("class_information", layer)).mean((0, 1)) for layer in model.layers], 1)  # [K, L]
    names, layers = [str(name) for name in model.arrays["class_names"]], [str(layer) for layer in model.layers]
    figure, axis = style.panel(width=2.6 + 0.5 * len(layers), height=1.6 + min(0.32 * len(names), 9.0))
    limits = Normalize(min(0.0, float(np.nanmin(lost))), max(float(np.nan_to_num(np.abs(lost)).max()), 1e-9))
    style.heatmap(axis, lost, names, layers, "information of the class lost / nats", limits, aspect="auto")
    axis.set(xlabel="layer masked", ylabel="class")
    axis.set_title(model.label, fontsize=style.SMALL + 2, parse_math=False)
    return figure


def top_channels(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """The channels that add most, layer by layer, with the bootstrap's 95 % intervals; a figure per model, of eight layers at the most.

    Several networks are ranked each by itself and the ranks' means are drawn, since channels of different networks do not correspond.
    """
    return _one_per_model(runs, "top_channels", lambda model: _top_channels(model, _chosen(model, options)))


def _top_channels(model: MaskedModel, layers: Sequence[int]) -> Figure:
    layers = [layers[place] for place in style.sampled(len(layers), LAYERS_APART)]
    figure, axes = style.panels(len(layers), min(4, len(layers)), width=2.7, height=2.6)
    for axis, layer in zip(axes, layers, strict=True):
        _channels(axis, model, layer)
    figure.supxlabel("what a channel adds to the information / nats, 95 % over sets", fontsize=style.SMALL + 2)
    figure.suptitle(f"{model.label}: strongest channels", fontsize=style.SMALL + 2)
    return figure


def _channels(axis: Axes, model: MaskedModel, layer: int) -> None:
    """The strongest channels of a layer, from the top down, with their intervals."""
    values = model.of_layer("contribution", layer)  # [R, 3, n]
    order = np.argsort(-values[:, 0], axis=1)[:, :SHOWN]
    picked = np.take_along_axis(values, order[:, None], axis=2).mean(0)  # [3, M]
    names = [str(channel) for channel in order[0]] if len(values) == 1 else [f"rank {rank + 1}" for rank in range(order.shape[1])]
    y = np.arange(len(names))
    error = np.clip(np.stack([picked[0] - picked[1], picked[2] - picked[0]]), 0, None)
    underdetermined = len(model.of_layer("kept", layer)) < 4 * values.shape[2]
    colour = style.GREY if underdetermined else style.LOW
    axis.errorbar(picked[0], y, xerr=error, fmt="o", markersize=3.5, color=colour, ecolor=colour, elinewidth=1)
    axis.axvline(0, color=style.INK, linewidth=0.8)
    axis.set_yticks(y, names)
    axis.invert_yaxis()
    axis.set_ylabel("channel" if len(values) == 1 else f"mean of {len(values)} networks")
    axis.set_title(f"layer {layer}" + (": few sets, an order" if underdetermined else ""), fontsize=style.SMALL + 1)
    axis.xaxis.set_major_locator(MaxNLocator(4))


KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (mi_per_layer, delta_mi, mi_vs_kept, class_information, top_channels)}
