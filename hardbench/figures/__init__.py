"""Figures, drawn from what a run stored: `draw` makes the kinds that a study's file declares in its `KINDS`."""

import importlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hardbench.errors import ConfigError, nearest
from hardbench.files import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hardbench.figures.runs import FigureOptions, Kind, Runs

NAMED = 4  # runs that a folder is named after


def has_figures(study: str) -> bool:
    """True for a study with a file of figures."""
    return (Path(__file__).parent / f"{study.replace('-', '_')}.py").is_file()


def draw(
    runs: "Runs", folder: Path, kinds: Sequence[str] | None = None, options: "FigureOptions | None" = None, strict: bool = True
) -> list[str]:
    """Draw the kinds asked for (default: all that apply to the runs) into a folder; the names of the files.

    ConfigError for an unknown kind; if `strict`, also where the runs have no numbers for one of those asked for, or for none at all.
    """
    from hardbench.figures.runs import FigureOptions

    options = options or FigureOptions()
    drawers: dict[str, Kind] = importlib.import_module(f"hardbench.figures.{runs[0].study.replace('-', '_')}").KINDS
    chosen = list(drawers if kinds is None else kinds)
    if unknown := [kind for kind in chosen if kind not in drawers]:
        raise ConfigError(f"kind: {unknown[0]}; {nearest(unknown[0], drawers)}, or all")
    names: list[str] = []
    missing: ConfigError | None = None
    for kind in chosen:
        try:
            names += save(drawers[kind](runs, options), folder, options.formats)
        except ConfigError as error:
            if strict and kinds is not None:
                raise
            missing = error
    if strict and missing is not None and not names:
        raise missing
    return list(dict.fromkeys(names))


def folder_name(runs: "Runs") -> str:
    """The name of a folder for figures of several runs, which go into none of them: the first ids; of many also a checksum of all."""
    ids = [run.id[:8] for run in runs[:NAMED]]
    many = [f"and-{len(runs) - NAMED}-more", f"{zlib.crc32(' '.join(run.id for run in runs).encode()):08x}"]
    return "-".join(["figures", *ids, *(many if len(runs) > NAMED else [])])


def save(figures: "Mapping[str, Figure]", folder: Path, formats: Sequence[str] = ("png",)) -> list[str]:
    """Write figures by file stem into a folder, in every format, each whole or not at all; the names of the files."""
    names = []
    for stem, figure in figures.items():
        for ending in formats:
            with whole(folder / f"{stem}.{ending}") as file:
                figure.savefig(file, format=ending)
            names.append(f"{stem}.{ending}")
    return names


def show(folder: Path, names: Sequence[str]) -> None:
    """Open a window for every PNG file named; ConfigError where there is no display."""
    import matplotlib

    if matplotlib.get_backend().lower() == "agg":
        raise ConfigError("show: true; a display to open windows on (the files are written)")
    from matplotlib import pyplot

    for name in names:
        axis = pyplot.figure(name).add_axes((0, 0, 1, 1))
        axis.imshow(pyplot.imread(folder / name))
        axis.set_axis_off()
    pyplot.show()
