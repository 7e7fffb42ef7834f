"""The samples that were planted, as images: the same figure for every study that plants."""

import numpy as np
from matplotlib.figure import Figure

from hardbench.artifacts import PLANTED
from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.runs import StoredRun, each_run, literal


@each_run
def planted(run: StoredRun) -> Figure:
    """Samples of every planted type, a row each: the label they are trained on and, where it was made wrong, the true class."""
    arrays = run.archive(PLANTED) if run.has(PLANTED) else {}
    there = arrays.get("gallery_index", np.empty((0, 0))) >= 0
    if "gallery_images" not in arrays or not there.any():
        raise ConfigError(f"planted: run {run.name} has {'vectors' if arrays else 'nothing planted'}; planted images (--plant)")
    classes, names = ([literal(str(name)) for name in arrays[key]] for key in ("class_names", "plant_types"))
    counts = np.bincount(arrays["planted"], minlength=len(names) + 1)[1:]
    rows = np.flatnonzero(there.any(axis=1))
    figure, axes = style.sheet(len(rows), there.shape[1], width=1.05, height=1.36)
    for row, line in zip(rows, axes, strict=True):
        for place, axis in enumerate(line):
            if not there[row, place]:
                axis.set_axis_off()
                continue
            label, true = (classes[arrays[f"gallery_{part}"][row, place]] for part in ("labels", "clean"))
            text, colour = (f"{label}\nis {true}", style.HIGH) if label != true else (f"\n{label}", style.INK)
            style.picture(axis, arrays["gallery_images"][row, place], text, colour)
            axis.spines[:].set(visible=True, color=style.GREY, linewidth=0.6)  # without a frame nobody sees a digit moved on white
        line[0].set_ylabel(f"{names[row]}\n{counts[row]} samples", fontsize=style.SMALL)
    wrong = "; in colour: a wrong one, and the true class" if (arrays["gallery_labels"] != arrays["gallery_clean"]).any() else ""
    figure.suptitle(f"planted samples and their labels{wrong}", fontsize=style.SMALL + 1)
    return figure
