"""Figures, drawn from what a run stored: `draw` makes the kinds that a study's file declares in its `KINDS`."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hardbench.errors import ConfigError, nearest

if TYPE_CHECKING:
    from hardbench.figures.style import FigureOptions, StoredRun


def draw(
    runs: "Sequence[StoredRun]",
    folder: Path,
    kinds: Sequence[str] | None = None,
    options: "FigureOptions | None" = None,
    formats: Sequence[str] = ("png",),
) -> list[str]:
    """Draw the kinds asked for (default: all that apply to the runs) into a folder; the names of the files.

    ConfigError for an unknown kind, or for one asked for that the runs have no numbers for.
    """
    from hardbench.figures.style import FigureOptions

    known = importlib.import_module(f"hardbench.figures.{runs[0].study.replace('-', '_')}").KINDS
    names: list[str] = []
    for kind in kinds if kinds is not None else known:
        if kind not in known:
            raise ConfigError(f"kind: {kind}; {nearest(kind, known)}, or all")
        try:
            figures = known[kind](runs, options or FigureOptions())
        except ConfigError:
            if kinds is not None:
                raise
            continue
        folder.mkdir(parents=True, exist_ok=True)
        for stem, figure in figures.items():
            for ending in formats:
                figure.savefig(folder / f"{stem}.{ending}")
                names.append(f"{stem}.{ending}")
    return names
