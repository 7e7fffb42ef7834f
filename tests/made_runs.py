"""Stored runs made by hand, and what figures of them show: for tests without a store."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Run:
    """What figures read of hardbench.stored.StoredRun."""

    id: str
    arrays: dict[str, np.ndarray]
    name: str = "mlp mnist s0"
    study: str = "train"
    params: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def only(figures: dict[str, Figure], stem: str) -> Figure:
    """The one figure that was drawn."""
    assert list(figures) == [stem]
    return figures[stem]


def lines_of(axis: Axes) -> list[np.ndarray]:
    """The ordinates of every line."""
    return [np.asarray(line.get_ydata(), dtype=float) for line in axis.lines]


def legend_of(axis: Axes) -> list[str]:
    """The labels of the legend."""
    return [text.get_text() for text in axis.get_legend().get_texts()]


def bar_ends(container: Any) -> np.ndarray:
    """Low and high end of every error bar [N, 2] of an axis's errorbar, or of its bars."""
    collection = getattr(container, "errorbar", container).lines[2][0]
    ends = np.array(collection.get_segments())  # [N, 2, xy]
    vertical = np.ptp(ends[:, :, 1], axis=1).any() or not np.ptp(ends[:, :, 0], axis=1).any()
    return ends[:, :, 1 if vertical else 0]


def extent(axis: Axes, place: int = 0) -> tuple[float, float]:
    """Lowest and highest ordinate of a band."""
    box = axis.collections[place].get_paths()[0].get_extents()
    return box.ymin, box.ymax
