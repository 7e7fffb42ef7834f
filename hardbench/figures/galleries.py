"""Galleries of the study of hardness scores: the hardest samples of every class, and test samples beside their supporters."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hardbench.artifacts import Array
from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.runs import (
    FigureOptions,
    Kind,
    Runs,
    StoredRun,
    class_names,
    each_run,
    literal,
    needed,
    one_per_run,
    slug,
)
from hardbench.hard_samples.judged import ensemble

HEADLINE = 6  # scores in a gallery of several
# scores by which a gallery is drawn, the first six that a run has
FIRST = (
    "stragglers", "mean_loss", "aum", "data_maps_variability", "el2n", "memorization", "forgetting", "self_confidence", "prototypicality",
    "loss", "wrong_at_end",
)  # fmt: skip
CLASSES = 12  # classes in a gallery of several scores, evenly chosen of more
TESTS, SUPPORTERS = 8, 8  # test samples, and training samples beside each
NEEDS = "it needs train --train-share below 1 and --record-test"
LETTERS_PER_INCH = 12  # of a title
LETTERS = 14  # of a class's name below an image


def hardest(runs: Runs, options: FigureOptions) -> dict[str, Figure]:
    """The hardest sample of every class by six scores; with `metric`, a score's name, the 12 hardest of every class by that one.

    Below each the class that the networks predict, and the score, higher is harder; in colour what was planted there.
    """
    if options.metric is None:
        return one_per_run(runs, "hardest", _by_scores)
    return one_per_run(runs, f"hardest_{slug(options.metric)}", lambda run: _by_one_score(run, options))


def _by_scores(run: StoredRun) -> Figure:
    """A row per score, a column per class: the hardest sample of each."""
    images, names, classes = _images(run), _score_names(run), class_names(run)
    scores = [name for name in FIRST if name in names] + [name for name in names if name not in FIRST and name != "random"]
    shown = style.sampled(len(classes), CLASSES)
    scores = scores[:HEADLINE] or names
    figure, axes = _grid(len(scores), len(shown))
    for line, score in zip(axes, scores, strict=True):
        for axis, c in zip(line, shown, strict=True):
            row = int(run.arrays["gallery"][names.index(score), c, 0])
            _sample(axis, run, score, row, images.get(row), brief(classes[c]) if axis in axes[0] else "")
        _name_line(line[0], score)
    _explain(figure, run, "the hardest sample of every class (its label above)")
    return figure


def _by_one_score(run: StoredRun, options: FigureOptions) -> Figure:
    """A row per class with its hardest samples by the score that the options name."""
    images, names, classes = _images(run), _score_names(run), class_names(run)
    score = options.pick("metric", names)
    assert score is not None
    shown = style.sampled(len(classes), style.ANNOTATED)
    rows = run.arrays["gallery"][names.index(score)]  # [K, G]
    figure, axes = _grid(len(shown), rows.shape[1])
    for line, c in zip(axes, shown, strict=True):
        for axis, row in zip(line, rows[c], strict=True):
            _sample(axis, run, score, int(row), images.get(int(row)), "")
        _name_line(line[0], brief(classes[c]))
    _explain(figure, run, f"the hardest samples of every class by {literal(score)}")
    return figure


def _images(run: StoredRun) -> dict[int, Array]:
    """The images [C, H, W] of a run's gallery by the samples' rows; ConfigError where it has none."""
    inputs = run.arrays.get("gallery_inputs")
    if inputs is None or inputs.ndim != 4 or not len(inputs):
        raise ConfigError(f"hardest: run {run.name} has {'no inputs' if inputs is None or not len(inputs) else 'vectors'}; images")
    return {int(row): image for row, image in zip(run.arrays["gallery_rows"], inputs, strict=True)}


def _score_names(run: StoredRun) -> list[str]:
    return [str(name) for name in run.arrays["score_names"]]


def _sample(axis: Axes, run: StoredRun, score: str, row: int, image: Array | None, title: str) -> None:
    """One image with what the networks predict for it, its score, and what was planted; nothing where there is none."""
    if image is None:
        axis.set_axis_off()
        axis.set_title(title, fontsize=style.SMALL, parse_math=False, pad=2)
        return
    arrays, classes = run.arrays, class_names(run)
    planted = _planted(run, row)
    text = f"→ {brief(classes[int(arrays['predicted'][row])])}\n{ensemble(arrays[score])[row]:.3g}\n{planted}"
    _describe(axis, image, title, text, bool(planted))


def _describe(axis: Axes, image: Array, title: str, text: str, coloured: bool) -> None:
    """An image below its title and above its text."""
    style.picture(axis, image, title, style.INK)
    axis.title.set_fontsize(style.SMALL)
    axis.set_xlabel(text, fontsize=style.SMALL - 1, parse_math=False, labelpad=2, color=style.HIGH if coloured else style.INK)


def _planted(run: StoredRun, row: int) -> str:
    """What was planted in a sample, with the true class where the label was made wrong; nothing for a clean one."""
    code = int(run.arrays["planted"][row]) if "planted" in run.arrays else 0
    kind = literal(str(run.arrays["plant_types"][code - 1])) if code else ""
    clean = int(run.arrays["clean"][row]) if "clean" in run.arrays else -1
    wrong = clean >= 0 and clean != int(run.arrays["labels"][row])
    return kind + (f"\nis {brief(class_names(run)[clean])}" if wrong else "")


def _name_line(axis: Axes, name: str) -> None:
    axis.set_ylabel(literal(name), fontsize=style.SMALL, rotation=0, ha="right", va="center", labelpad=4, parse_math=False)


def _explain(figure: Figure, run: StoredRun, what: str) -> None:
    """Title a gallery of hardest samples."""
    anything = "planted" in run.arrays and bool(run.arrays["planted"].any())
    _title(figure, what, "below: predicted class and score, higher is harder" + "; in colour: what was planted" * anything)


def _grid(rows: int, columns: int) -> tuple[Figure, Array]:
    """A figure of images, each with up to four lines below, with room for a title however few there are."""
    return style.sheet(rows, columns, width=max(0.95, 5.4 / columns), height=1.4 + 0.6 / rows)


def _title(figure: Figure, *parts: str) -> None:
    """A title, each part in as many lines as the figure's width asks for."""
    wrapped = [textwrap.fill(part, int(LETTERS_PER_INCH * figure.get_figwidth())) for part in parts]
    figure.suptitle("\n".join(wrapped), fontsize=style.SMALL + 1, parse_math=False)


def brief(name: str) -> str:
    """A name cut to what fits below an image."""
    return name if len(name) <= LETTERS else name[: LETTERS - 1] + "…"


@each_run
def influence(run: StoredRun) -> Figure:
    """Test samples that owe most to single training samples, each beside these: the label, and the influence with its standard error.

    Influence: Pr[test sample right | trained on it] - Pr[right | not] over networks (Feldman & Zhang 2020, eq. 2, arXiv:2008.03703).
    """
    values, errors, arrays = needed(run, "influence", "influence", NEEDS), run.arrays["influence_stderr"], run.arrays
    images, classes = arrays["influence_inputs"], class_names(run)
    if images.ndim != 4 or not len(images):
        raise ConfigError(f"influence: run {run.name} has {'vectors' if len(images) else 'no test sample with supporters'}; images")
    count = min(SUPPORTERS, int((arrays["influence_train"][arrays["influence_shown"]] >= 0).sum(1).max()))
    figure, axes = _grid(min(TESTS, len(images)), 1 + count)
    for line, image, supporters, test in zip(axes, images, arrays["influence_supporters"], arrays["influence_shown"], strict=False):
        _describe(line[0], image, "", brief(classes[int(arrays["influence_test_labels"][test])]), False)
        for place, axis in enumerate(line[1:]):
            row = int(arrays["influence_train"][test, place])
            if row < 0:
                axis.set_axis_off()
                continue
            planted, label = _planted(run, row), brief(classes[int(arrays["labels"][row])])
            number = f"{values[test, place]:.2f} ± {errors[test, place]:.2f}"
            _describe(axis, supporters[place], "", f"{label}\n{number}" + f"\n{planted}" * bool(planted), bool(planted))
    for axis, title in zip(axes[0, :2], ("test sample", "supporters"), strict=True):
        axis.set_title(title, fontsize=style.SMALL + 1, pad=4)
    pairs = len(values) * len(arrays["labels"])
    by_chance = np.sqrt(2 * np.log(max(pairs, 2)))
    _title(
        figure,
        "training samples with the largest influence on a test sample:",
        "Pr[right | trained on it] - Pr[right | not] ± standard error",
        f"{arrays['influence_networks']} networks; by chance the largest of {pairs} pairs reaches {by_chance:.1f} standard errors, "
        "of few networks more",
    )
    return figure


KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (hardest, influence)}
