import gc
import itertools
import weakref
from typing import Any

import numpy as np
import pytest
from made_runs import Run
from matplotlib.figure import Figure
from matplotlib.text import Text

from hardbench.errors import ConfigError
from hardbench.figures import style
from hardbench.figures.runs import FigureOptions, run_labels, slug
from hardbench.figures.train import KINDS, confusion_figures

pytestmark = pytest.mark.filterwarnings("error")
PNG = b"\x89PNG"


def make_run(classes: int, repeats: int, seed: int = 0, name: str = "mlp mnist s0", stopped: bool = False) -> Run:
    """Curves that rise, overlaps that fall; `stopped` freezes the last repeat halfway and empties class 0."""
    draw = np.random.default_rng(seed)
    steps = np.array([0, 1, 2, 4, 9, 20, 44, 95])
    progress = np.linspace(0, 1, len(steps))[None, :, None]
    accuracy = np.clip(progress * draw.uniform(0.7, 1, classes) + draw.normal(0, 0.02, (repeats, len(steps), classes)), 0, 1)
    right = np.round(20 * accuracy)
    confusion = right[..., None] * np.eye(classes) + (20 - right)[..., None] * np.roll(np.eye(classes), 1, axis=1)
    means = draw.normal(0.5, 1, (classes, 6))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    static = means @ means.T
    dynamic = 1 - (1 - static) * (progress * draw.uniform(0.8, 1, (repeats, 1, 1)))[..., None]
    arrays = {
        "accuracy_per_class": accuracy, "loss_per_class": 2 - accuracy, "accuracy": accuracy.mean(-1), "loss": 2 - accuracy.mean(-1),
        "val_accuracy": np.full(accuracy.shape[:2], np.nan), "val_loss": np.full(accuracy.shape[:2], np.nan),
        "confusion": confusion, "overlap_dynamic": dynamic,
        "train_loss": draw.uniform(0, 2, (repeats, 19)), "train_accuracy": draw.uniform(0, 1, (repeats, 19)),
    }  # fmt: skip
    if stopped:
        for values in arrays.values():
            values[-1, 4 if values.shape[1] == len(steps) else 9 :] = np.nan
        arrays["confusion"][:, :, 0] = np.where(np.isnan(arrays["confusion"][:, :, 0]), np.nan, 0)
        arrays["accuracy_per_class"][:, :, 0] = arrays["loss_per_class"][:, :, 0] = np.nan
        arrays["overlap_dynamic"][:, :, 0] = arrays["overlap_dynamic"][:, :, :, 0] = np.nan
    names = np.array([f"kind {index}" for index in range(classes)])
    return Run(
        f"{seed:032x}"[::-1],
        arrays | {"steps": steps, "log_steps": np.arange(19) * 5, "overlap_static": static, "class_names": names},
        name,
    )


def texts(figure: Figure) -> set[str]:
    return {text.get_text() for text in figure.findobj(Text)}


def draw(kind: str, *runs: Run, **options: Any) -> dict[str, Figure]:
    return KINDS[kind](runs, FigureOptions(**options))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("classes", "repeats", "stopped"), [(2, 1, True), (3, 5, True), (10, 5, False), (30, 1, False)])
@pytest.mark.parametrize("kind", ["basic_training_curves", "class_hardness", "overlap_scatter", "confusion_matrix"])
def test_every_kind_is_drawn_for_any_runs(kind, classes, repeats, stopped, count, tmp_path):
    runs = [make_run(classes, repeats, seed, stopped=stopped) for seed in range(count)]
    figures = draw(kind, *runs)
    assert figures
    for stem, figure in figures.items():
        assert stem == slug(stem)
        path = tmp_path / f"{stem}.png"
        figure.savefig(path, dpi=40)
        assert path.read_bytes().startswith(PNG)


def test_training_curves_name_axes_phases_and_repeats():
    run = make_run(3, 5)
    figure = draw("basic_training_curves", run)["basic_training_curves"]
    assert {"optimiser step", "loss / nats", "accuracy", "train", "test", "mean ± standard error,\n5 networks"} <= texts(figure)
    assert "val" not in texts(figure)
    run.arrays["val_accuracy"][:] = 0.5
    assert "val" in texts(draw("basic_training_curves", run, metric="accuracy")["basic_training_curves"])
    with pytest.raises(ConfigError, match=r"val_loss: not measured in run mlp mnist s0 \(00000000\); it has accuracy"):
        draw("basic_training_curves", run, phase="val")


def test_training_curves_of_several_runs_name_them():
    shown = texts(draw("basic_training_curves", make_run(3, 1), make_run(3, 1, 1), make_run(3, 1, 2, "other"))["basic_training_curves"])
    assert {"mlp mnist s0 (000000)\none network", "mlp mnist s0 (100000)\none network", "other\none network"} <= shown


def test_class_hardness_has_classes_in_the_legend_and_pairs_at_the_lines():
    figure = draw("class_hardness", make_run(3, 5))["class_hardness"]
    top, bottom = figure.axes
    assert [text.get_text() for text in top.get_legend().get_texts()] == ["kind 0", "kind 1", "kind 2"]
    assert {"kind 0 - kind 1", "kind 0 - kind 2", "kind 1 - kind 2"} == {text.get_text() for text in bottom.texts}
    assert (bottom.get_xscale(), bottom.get_xlabel()) == ("log", "optimiser step + 1")
    assert top.lines[0].get_xdata()[0] == 1
    looks = {(line.get_color(), line.get_linestyle()) for line in [*top.lines, *bottom.lines]}
    assert len(looks) == 6
    assert len(top.collections) == 3  # bands
    assert draw("class_hardness", make_run(3, 5), metric="loss")["class_hardness"].axes[0].get_ylabel() == "loss / nats"


def test_class_hardness_of_many_classes_marks_the_extremes():
    run = make_run(30, 2)
    top, bottom = draw("class_hardness", run)["class_hardness"].axes
    final = run.arrays["overlap_dynamic"].mean(0)[-1][np.triu_indices(30, 1)]
    names = [f"kind {a} - kind {b}" for a, b in itertools.combinations(range(30), 2)]
    order = np.argsort(-final)
    assert [text.get_text() for text in bottom.texts] == [names[pair] for pair in [*order[:3], *order[-3:]]]
    assert len(top.get_legend().get_texts()) == 7
    assert top.get_legend().get_texts()[-1].get_text() == "24 others"


def test_class_hardness_of_several_runs_is_a_figure_for_every_two():
    runs = [make_run(3, 2, seed, f"run/{seed}") for seed in range(3)]
    assert set(draw("class_hardness", *runs[:2])) == {"class_hardness"}
    assert len(draw("class_hardness", *runs[:2])["class_hardness"].axes) == 4
    stems = {f"class_hardness_run_{a}_vs_run_{b}" for a, b in ((0, 1), (0, 2), (1, 2))}
    assert set(draw("class_hardness", *runs)) == stems


def test_overlap_scatter_shows_correlations_pairs_and_runs():
    run = make_run(3, 5)
    run.arrays["overlap_dynamic"][:] = run.arrays["overlap_static"]
    shown = texts(draw("overlap_scatter", run)["overlap_scatter"])
    assert "mlp mnist s0\n3 pairs, 5 networks\nPearson r 1.00\nSpearman r 1.00" in shown
    assert {"kind 0 - kind 1", "kind 0 - kind 2", "kind 1 - kind 2", "dynamic = static"} <= shown
    run.arrays["overlap_static"][:] = 0.3
    assert any("Pearson r undefined\nSpearman r undefined" in text for text in texts(draw("overlap_scatter", run)["overlap_scatter"]))
    assert any(text.startswith("all runs\nPearson") for text in texts(draw("overlap_scatter", run, make_run(4, 2, 1))["overlap_scatter"]))


def test_labels_of_points_do_not_overlap():
    figure = draw("overlap_scatter", make_run(10, 5))["overlap_scatter"]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_confusions_are_counts_and_shares_with_names():
    counts = np.array([[[8, 2, 0], [0, 0, 0], [1, 0, 3]], [[6, 4, 0], [0, 0, 0], [1, 0, 3]]])
    figures = confusion_figures(counts, ["cat", "dog", "owl"])
    assert list(figures) == ["confusion_matrix", "confusion_matrix_normalized"]
    shown, shares = texts(figures["confusion_matrix"]), texts(figures["confusion_matrix_normalized"])
    assert {"7\n±1.0", "3\n±1.0", "1", "0", "cat", "dog", "owl", "true class", "predicted class"} <= shown
    assert "test samples, mean of 2 networks" in shown
    assert {"0.700\n±0.100", "0.250", "-", "share of the true class, mean of 2 networks"} <= shares
    image = figures["confusion_matrix_normalized"].axes[0].images[0].get_array()
    np.testing.assert_allclose(image[0], [0.7, 0.3, 0])
    assert image.mask[1].all()


def test_large_confusions_carry_no_numbers():
    assert not confusion_figures(np.ones((1, 30, 30)), [str(k) for k in range(30)])["confusion_matrix"].axes[0].texts


@pytest.mark.parametrize(("kind", "options"), [("class_hardness", {"metric": "margin"}), ("confusion_matrix", {"phase": "train"})])
def test_what_a_figure_does_not_draw_is_said(kind, options):
    with pytest.raises(ConfigError, match="this figure draws"):
        draw(kind, make_run(3, 1), **options)


@pytest.mark.parametrize(
    ("kind", "array"), [("class_hardness", "overlap_dynamic"), ("overlap_scatter", "overlap_static"), ("confusion_matrix", "confusion")]
)
def test_what_was_not_measured_is_said(kind, array):
    run = make_run(3, 1)
    del run.arrays[array]
    with pytest.raises(ConfigError, match=f"{array}: not measured in run mlp mnist s0"):
        draw(kind, run)


def test_band_is_one_standard_error_and_absent_for_one_repeat():
    _, axes = style.sheet(1, 1)
    values = np.array([[1.0, 2.0, np.nan], [3.0, 2.0, 5.0]])
    line = style.band(axes[0, 0], np.arange(3), values, "name")
    np.testing.assert_allclose(line.get_ydata(), [2, 2, 5])
    edges = axes[0, 0].collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([edges.ymin, edges.ymax], [1, 3])  # 2 ± sqrt(2) / sqrt(2)
    style.band(axes[0, 0], np.arange(3), values[1:])
    assert len(axes[0, 0].collections) == 1


def test_labels_are_spread_by_the_gap_and_as_little_as_possible():
    np.testing.assert_allclose(style.spread_out(np.array([0.5, 0.1, 0.5]), 0.1, 1.0), [0.45, 0.1, 0.55])
    np.testing.assert_allclose(style.spread_out(np.array([0.0, -1.0, 2.0]), 0.1, 1.0), [0.1, 0, 1])
    np.testing.assert_allclose(style.spread_out(np.full(5, 0.2), 1.0, 1.0), [0, 0.25, 0.5, 0.75, 1])


def test_lines_of_a_family_are_told_apart():
    assert len({tuple(style.line_style(index).items()) for index in range(28)}) == 28
    assert run_labels([make_run(2, 1, name="a"), make_run(2, 1, 1, "b")]) == ["a", "b"]


def test_figures_do_not_stay_alive():
    figures = list(draw("class_hardness", make_run(3, 2)).values())
    seen = weakref.ref(figures.pop())
    gc.collect()
    assert seen() is None
