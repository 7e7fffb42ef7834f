import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from made_runs import Run
from matplotlib.figure import Figure
from matplotlib.text import Text

from hardbench.errors import ConfigError
from hardbench.figures import questions
from hardbench.figures.layers import KINDS
from hardbench.figures.measures import held_out, with_error
from hardbench.figures.runs import FigureOptions
from hardbench.figures.train import KINDS as TRAIN_KINDS

pytestmark = pytest.mark.filterwarnings("error")
ALL = KINDS | questions.KINDS
SEVERAL = ("multi_run", "architecture_comparison")
FEW = ("probe_accuracy", "gaussian_entropy", "ridge_r2")
ANCHORED = ("accuracy", "cross_entropy", "cross_entropy_raw", "alignment", "margin", "ace_regularizer")
RANGES = {  # at initialisation, at the end in the first layer, at the end in the last
    "probe_accuracy": (0.62, 0.935, 0.98),
    "f1_score": (0.6, 0.933, 0.979),
    "accuracy": (0.1, 0.968, 0.98),
    "cross_entropy": (3.1, 0.12, 0.08),
    "cross_entropy_raw": (2.4, 1.78, 1.72),
    "mutual_information": (1.4, 1.1, 0.6),
    "gaussian_entropy": (0.2, 0.6, -0.4),
    "participation_ratio": (24, 18, 8.5),
    "dead_units": (0.0, 0.02, 0.2),
    "linear_cka": (0.97, 0.62, 0.93),
    "ridge_r2": (0.99, 0.8, 0.93),
    "alignment": (0.02, 0.6, 0.69),
    "margin": (-0.1, 0.42, 0.6),
    "ace_regularizer": (2.2, 0.25, 0.1),
}
CHANCE = {"probe_accuracy": 0.1, "f1_score": 0.1, "accuracy": 0.1, "cross_entropy": 6.5, "cross_entropy_raw": 2.4}


def make_run(
    layers: int = 4,
    repeats: int = 3,
    model: str = "gmlp",
    val: bool = True,
    nulls: bool = False,
    published: bool = False,
    seed: int = 0,
    stopped: bool = False,
    name: str | None = None,
    metrics: Sequence[str] | None = None,
) -> Run:
    """Layers that learn; the last has no ace_regularizer and no ridge_r2, `stopped` freezes the last repeat halfway."""
    draw = np.random.default_rng(seed)
    steps = np.array([0, 1, 2, 4, 9, 20, 44, 95, 204, 438, 938])
    time = (np.log1p(steps) / np.log1p(steps[-1]))[:, None] ** 1.5
    depth = np.linspace(0, 1, layers) if layers > 1 else np.zeros(1)
    arrays: dict[str, np.ndarray] = {"steps": steps, "accuracy": np.broadcast_to(time[:, 0], (repeats, len(steps))).copy()}
    for metric, (start, first, last) in RANGES.items():
        if (model == "mlp" and metric in ANCHORED) or metric not in (metrics or RANGES):
            continue
        end = first + (last - first) * np.sqrt(depth)
        curve = start + (end - start) * time
        spread = 0.08 * abs(last - first) + 1e-4
        values = curve + spread * (draw.normal(size=(repeats, 1, layers)) + 0.5 * draw.normal(size=(repeats, len(steps), layers)))
        if metric in ("ace_regularizer", "ridge_r2"):
            values[:, :, -1] = np.nan
        arrays[f"layer_{metric}"] = values
        arrays[f"layer_{metric}_train"] = values + 0.1 * (end - start) * time * (1 if "accuracy" in metric else 0.3) * 0.5
        arrays[f"layer_{metric}_test"] = values[:, -1] - 0.1 * spread
        if nulls and metric in CHANCE:
            arrays[f"layer_{metric}_null_mean"] = np.full(values.shape, CHANCE[metric])
            arrays[f"layer_{metric}_null_std"] = np.full(values.shape, 0.05 * CHANCE[metric])
        if published and metric in ("probe_accuracy", "f1_score", "mutual_information", "gaussian_entropy", "linear_cka"):
            arrays[f"layer_{metric}_published"] = 256 * values if metric == "gaussian_entropy" else values * 0 + np.maximum(values, 1)
    if model == "gmlp":
        arrays["log_steps"] = np.arange(1, 939, 5)
        decay = 2.3 * np.exp(-arrays["log_steps"] / 120)[:, None] + 0.1 + 0.1 * (1 - depth)
        arrays["train_layer_loss"] = decay + draw.normal(0, 0.03, (repeats, len(decay), layers))
    if stopped:
        for key, values in arrays.items():
            if values.ndim == 3:
                values[-1, 5 if key != "train_layer_loss" else 40 :] = np.nan
    config = {"model": model, "val_size": 0.1 if val else 0, "width": 256, "widths": None, "depth": layers}
    return Run(f"{seed:032x}"[::-1], arrays, name or f"{model} mnist s{seed}", config=config)


def draw(kind: str, *runs: Run, **options: Any) -> dict[str, Figure]:
    return ALL[kind](runs, FigureOptions(**options))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


@pytest.mark.parametrize(
    ("layers", "repeats", "model", "more"),
    [
        (1, 1, "gmlp", {"nulls": True, "published": True}),
        (1, 3, "mlp", {"val": False}),
        (4, 1, "gmlp", {"val": False}),
        (4, 3, "gmlp", {"nulls": True, "published": True, "stopped": True}),
        (12, 3, "gmlp", {"nulls": True, "published": True}),
    ],
)
@pytest.mark.parametrize("kind", list(ALL))
def test_every_kind_is_drawn(kind, layers, repeats, model, more):
    runs = [make_run(layers, repeats, model, metrics=FEW, **more)]
    if kind in SEVERAL:
        other = "mlp" if model == "gmlp" else "gmlp"
        runs += [make_run(layers, 2, other, seed=1, metrics=FEW), make_run(2, 1, other, seed=2, metrics=FEW)]
    figures = ALL[kind](runs, FigureOptions())
    assert figures
    assert all(stem.startswith(kind) and axis.has_data() for stem, figure in figures.items() for axis in figure.axes)
    figures.popitem()[1].draw_without_rendering()


def test_single_run_kinds_name_several_runs():
    runs = [make_run(2, 2, seed=seed, metrics=FEW[:1], name="run/1") for seed in range(2)]
    figures = draw("layerwise", *runs)
    assert set(figures) == {"layerwise_probe_accuracy_val_run_1_000000", "layerwise_probe_accuracy_val_run_1_100000"}
    assert "run/1 (100000)\nvalidation split; mean ± standard error, 2 networks" in texts(list(figures.values())[1])


def test_files_without_options():
    run = make_run(metrics=FEW)
    assert set(draw("all_metrics_overview", run)) == {f"all_metrics_overview_{phase}" for phase in ("train", "val", "test")}
    assert set(draw("heatmap", run)) == {f"heatmap_{metric}_val" for metric in FEW}
    assert set(draw("timeline", run)) == {f"timeline_{metric}" for metric in (*FEW, "loss")}
    assert set(draw("train_val_comparison", run)) == {f"train_val_comparison_{metric}" for metric in FEW}
    runs = run, make_run(2, 2, "mlp", val=False, seed=1)
    assert set(draw("multi_run", *runs)) == {f"multi_run_{metric}_held_out" for metric in FEW if metric not in ANCHORED}
    assert set(draw("architecture_comparison", *runs)) == {f"architecture_comparison_{m}" for m in FEW if m not in ANCHORED}
    assert set(draw("heatmap", make_run(val=False, metrics=FEW[:1]))) == {"heatmap_probe_accuracy_test"}


def test_options_restrict():
    run, other = make_run(nulls=True, published=True), make_run(seed=1)
    (figure,) = draw("timeline", run, metric="probe-accuracy", layer=1).values()
    assert {"training samples", "validation split", "published (one batch)", "permuted labels", "optimiser step + 1"} <= set(texts(figure))
    assert list(draw("timeline", run, metric="margin", layer=1, phase="train")) == ["timeline_margin_1"]
    assert "timeline_ridge_r2_3" not in draw("timeline", run, layer=3)
    assert list(draw("multi_run", run, other, metric="margin", layer=2, phase="train")) == ["multi_run_margin_2_train"]
    assert list(draw("layerwise", run, metric="margin", phase="test")) == ["layerwise_margin_test"]
    assert len(draw("multi_run", run, other, metric="ridge_r2")["multi_run_ridge_r2_val"].axes) == 3  # undefined for the last layer
    assert list(draw("timeline", run, metric="loss", layer=0)) == ["timeline_loss_0"]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("heatmap", {"metric": "nonsense"}, "layer_nonsense: not measured in run mlp mnist s0"),
        ("heatmap", {"metric": "margin"}, "layer_margin: not measured"),
        ("layerwise", {"phase": "val"}, "no validation split"),
        ("research_questions", {"phase": "val"}, "no validation split"),
        ("timeline", {"phase": "nonsense"}, "phase: nonsense; this figure draws train or val or test"),
        ("timeline", {"layer": 4}, "layer: 4; 0 to 3"),
        ("timeline", {"layer": 3, "metric": "ridge_r2"}, "layer: 3; another, the metric is undefined there"),
        ("timeline", {"layer": 1, "metric": "margin"}, "layer_margin: not measured"),
        ("timeline", {"metric": "loss"}, "train_layer_loss: not measured"),
        ("multi_run", {}, "runs: mlp mnist s0; two or more"),
        ("architecture_comparison", {}, "runs: of mlp; at least one mlp and one gmlp"),
        ("correlation_matrix", {"metric": "linear_cka"}, "two metrics"),
    ],
)
def test_what_cannot_be_drawn_is_said(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        draw(kind, make_run(4, 2, "mlp", val=False), **options)


@pytest.mark.parametrize("kind", list(ALL))
def test_runs_without_layer_metrics_are_said(kind):
    assert TRAIN_KINDS[kind] is ALL[kind]
    runs = [
        Run(f"{place}" * 32, {"steps": np.arange(3)}, f"{model} mnist s0", config={"model": model})
        for place, model in enumerate(("mlp", "gmlp"))
    ]
    with pytest.raises(ConfigError, match=r"^layer_metrics: none measured in mlp mnist s0 \(00000000\)"):
        ALL[kind](runs if kind in SEVERAL else runs[:1], FigureOptions())


def test_a_phase_measured_at_the_end_alone_has_no_heatmap():
    with pytest.raises(ConfigError, match=r"^layer_probe_accuracy_test: measured at the end alone; this figure needs train or val$"):
        draw("heatmap", make_run(metrics=FEW[:1]), phase="test")


@pytest.mark.parametrize(("kind", "layers"), [("research_questions", 4), ("research_questions", 12), ("all_metrics_overview", 12)])
def test_labels_neither_overlap_nor_leave_the_figure(kind, layers):
    options = {} if kind == "research_questions" else {"phase": "val"}
    (figure,) = draw(kind, make_run(layers, nulls=True, metrics=None if layers == 4 else FEW + ANCHORED), **options).values()
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [Text.get_window_extent(text).padded(-2) for text in [*axis.texts, axis._left_title] if text.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
        assert all(figure.bbox.padded(3).count_contains(box.corners()) == 4 for box in boxes)
    for part in (figure, *figure.subfigs):
        for text in part.texts:
            assert figure.bbox.padded(3).count_contains(Text.get_window_extent(text).corners()) == 4, text.get_text()


def test_numbers_of_a_heatmap_are_means_with_layer_0_below():
    run = make_run(3, 2, metrics=FEW[:1])
    (axis, _) = draw("heatmap", run)["heatmap_probe_accuracy_val"].axes
    np.testing.assert_allclose(axis.images[0].get_array(), run.arrays["layer_probe_accuracy"].mean(0).T[::-1])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["2", "1", "0"]


def test_correlations_are_of_ranks_over_layers_and_points():
    run = make_run(4, 2, metrics=("probe_accuracy", "margin"))
    run.arrays["layer_margin"] = -np.exp(run.arrays["layer_probe_accuracy"])
    matrix = draw("correlation_matrix", run, phase="val")["correlation_matrix_val"].axes[0].images[0].get_array()
    np.testing.assert_allclose(matrix, [[1, -1], [-1, 1]])


def test_ends_of_a_stopped_repeat_are_its_last_numbers():
    run = make_run(2, 2, metrics=FEW[:1], stopped=True)
    (figure,) = draw("metric_distributions", run, phase="val").values()
    dots = figure.axes[0].collections[0].get_offsets()[:, 1]
    values = run.arrays["layer_probe_accuracy"]
    np.testing.assert_allclose(dots, [*values[0, -1], *values[1, 4]])


def test_published_entropy_is_shown_per_unit_and_grey_bands_are_two_std():
    run = make_run(2, 1, published=True, nulls=True)
    lines = draw("layerwise", run, metric="gaussian_entropy")["layerwise_gaussian_entropy_val"].axes[0].lines
    np.testing.assert_allclose(lines[1].get_ydata(), lines[0].get_ydata())
    (axis,) = draw("layerwise", run, metric="probe_accuracy")["layerwise_probe_accuracy_val"].axes
    band = axis.collections[0].get_paths()[0].get_extents()
    np.testing.assert_allclose([band.ymin, band.ymax], [0.09, 0.11])


def _pairs(first: float, last: float, noise: float, repeats: int = 4) -> np.ndarray:
    """[R, 3] with networks that differ widely, but whose layers differ by last - first up to noise."""
    network = np.linspace(-0.5, 0.5, repeats)[:, None] * 0.05
    return np.array([first, (first + last) / 2, last]) + network + noise * np.array([[1, 0, -1], [-1, 0, 1]] * (repeats // 2 + 1))[:repeats]


def test_later_layers_are_more_predictive_by_pairs():
    rise = questions.predictive({"probe_accuracy": _pairs(0.93, 0.98, 0.001)})  # the spread over networks hides it unpaired
    assert rise == ("Later layers are more predictive: probe accuracy rises from 0.930 ± 0.011 (layer 0) to 0.980 ± 0.011 (layer 2).")
    assert questions.predictive({"probe_accuracy": _pairs(0.98, 0.93, 0.001)}).startswith(
        "Later layers are less predictive: probe accuracy falls"
    )
    assert questions.predictive({"probe_accuracy": _pairs(0.95, 0.951, 0.01)}).startswith("No difference seen: probe accuracy is")
    assert questions.predictive({"cross_entropy": _pairs(0.9, 0.3, 0.001)}).startswith(
        "Later layers are more predictive: cross entropy falls"
    )


def test_compression_is_told_measure_by_measure():
    falls, rises, flat = _pairs(1.0, 0.5, 0.001), _pairs(0.5, 1.0, 0.001), _pairs(1, 1, 0.01)
    sentence = questions.compressing({"mutual_information": falls, "participation_ratio": flat})
    assert sentence.startswith("Layers compress: from layer 0 to 2 mutual information falls by 0.5000 ±")
    assert sentence.endswith("directions, no difference seen.")
    assert questions.compressing({"mutual_information": rises}).startswith("Layers do not compress: ")
    assert questions.compressing({"mutual_information": flat}).startswith("No difference seen: from layer 0 to 2")
    both = questions.compressing({"mutual_information": falls, "gaussian_entropy": rises})
    assert both.startswith("Layers compress by some measures, not by others: ")


def test_layers_differ_where_cka_stays_below():
    low, high = np.full((3, 1), 0.2), np.array([[0.989], [0.99], [0.991]])
    some = np.array([[0.6], [0.61], [0.59]])
    assert questions.different({"linear_cka": np.hstack([high, some, some])}).startswith(
        "Each layer differs from the one before: linear CKA"
    )
    mixed = questions.different({"linear_cka": np.hstack([low, some, high])})
    assert mixed.startswith(
        "No difference seen of layer 2 from the one before, all others differ: linear CKA lies between 0.600 ± 0.006 (layer 1)"
    )
    assert "rises with depth" in mixed
    assert questions.different({"linear_cka": np.hstack([low, high, high])}).startswith("No difference seen: linear CKA")
    assert questions.different({"linear_cka": low}) == "One layer: there is none before it but the input."


def test_verdicts_of_what_was_not_measured():
    run = make_run(metrics=("probe_accuracy",))
    answers = list(questions.verdicts(run, "val").values())
    assert answers[1] == "Not measured: mutual information, Gaussian entropy, participation ratio."
    assert held_out(run) == "val"
    (figure,) = draw("research_questions", run).values()
    assert len(figure.axes) == 1


def test_numbers_are_written_to_their_error():
    assert [with_error(value) for value in (np.nan, 0.5, 12.345, 1234.4, -1e-5, 0.0123)] == ["-", "0.500", "12.3", "1234", "0.000", "0.012"]
    assert [with_error(0.97881, e) for e in (np.nan, 0.0, 0.0123, 0.0321, 3e-4)] == [
        "0.979", "0.979", "0.979 ± 0.012", "0.98 ± 0.03", "0.9788 ± 0.0003",
    ]  # fmt: skip
