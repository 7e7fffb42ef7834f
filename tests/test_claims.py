"""What figures claim and how they show it: verdicts with their errors, limits, colours, names as they are, many classes."""

import numpy as np
import pytest
from made_runs import Run
from matplotlib.figure import Figure
from matplotlib.text import Text
from test_figures import draw as draw_train, make_run as train_run, texts as drawn
from test_layer_figures import draw, make_run, texts

from hardbench.errors import TrackingError
from hardbench.figures import invert, questions, save, style
from hardbench.figures.runs import FigureOptions

pytestmark = pytest.mark.filterwarnings("error")


# verdicts


def test_one_network_is_judged_by_the_binomial_error_of_its_samples():
    """The issue's case: .972 and .979 of 143 samples are one sample apart."""
    one = np.array([[0.972, 0.9755, 0.979]])
    sentence = questions.predictive({"probe_accuracy": one}, 143)
    assert sentence == (
        "No difference seen: probe accuracy is 0.972 ± 0.014 (layer 0) and 0.979 ± 0.012 (layer 2), 0.007 ± 0.018 apart; "
        "one network, error of 143 samples."
    )
    assert questions.predictive({"probe_accuracy": one}, 100_000).startswith("Later layers are more predictive: probe accuracy rises")
    assert questions.predictive({"probe_accuracy": one}).endswith("one network, so its error is unknown.")
    assert questions.predictive({"probe_accuracy": one}).startswith("Not decided: probe accuracy is 0.972 (layer 0) and 0.979")
    assert questions.predictive({"cross_entropy": one}, 100_000).startswith("Not decided: ")  # not a share of samples


@pytest.mark.parametrize("samples", [143, 1000, 5000])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.97])
def test_equal_layers_of_one_network_are_seldom_told_apart_and_others_are(share, samples):
    draws = np.random.default_rng(samples)

    def told(first: float, last: float) -> float:
        pairs = draws.binomial(samples, (first, last), (1000, 2)) / samples
        return float(np.mean([questions.change(pair[None], samples).direction != 0 for pair in pairs]))

    assert told(share, share) < 0.07
    assert told(share, share - 5 * np.sqrt(2 * 0.25 / samples)) > 0.9


def test_no_verdict_is_below_two_standard_errors():
    assert questions.factor(1) == 2
    assert questions.factor(3) == pytest.approx(4.303, abs=1e-3)
    assert questions.factor(1000) == 2  # Student's would be 1.96
    noise = np.random.default_rng(0).normal(size=(3, 2000))
    values = noise - noise.mean(0)  # no difference at all but noise of three networks
    told = [questions.change(np.stack([values[:, i] * 0, values[:, i] + 1.5 * values[:, i].std()], 1)).direction for i in range(2000)]
    assert not any(told)
    values = np.random.default_rng(1).normal(size=100)
    values = (values - values.mean()) / (values.std(ddof=1) / 10)  # of mean 0 and standard error 1
    pairs = [np.stack([values * 0, sign * (values + size)], 1) for sign in (1, -1) for size in (1.99, 2.01)]
    assert [questions.change(each).direction for each in pairs] == [0, 1, 0, -1]


def test_only_networks_with_both_ends_are_compared():
    """One of three networks has both: the others' first layers are neither in the change nor in its error, nor in what is said."""
    values = np.array([[0.1, np.nan, np.nan], [0.5, 0.6, 0.7], [0.9, 0.9, np.nan]])
    assert questions.change(values, 1000) == questions.change(values[1:2], 1000)
    assert questions.change(values)[2:] == (pytest.approx(0.2), pytest.approx(np.nan, nan_ok=True), 0)
    assert questions.predictive({"probe_accuracy": values}, 1000) == questions.predictive({"probe_accuracy": values[1:2]}, 1000)
    assert questions.change(np.array([[0.1, np.nan], [np.nan, 0.3]])) is None


def test_several_measures_of_which_one_has_no_error():
    falls, one = np.array([[1, 0.5], [1.01, 0.5], [1, 0.51]]), np.array([[3.0, 1], [np.nan, 1], [np.nan, 1]])
    sentence = questions.compressing({"mutual_information": falls, "participation_ratio": one})
    assert sentence.startswith("Layers compress: from layer 0 to 1 mutual information falls by 0.50")
    assert sentence.endswith("directions, not decided.")


def test_a_metric_without_an_error_decides_nothing():
    one = {"mutual_information": np.array([[1.4, 0.6]]), "participation_ratio": np.array([[24.0, 8.5]])}
    assert questions.compressing(one, 143).startswith("Not decided: from layer 0 to 1 mutual information changes by -0.800")
    assert questions.compressing(one, 143).endswith("; one network, so its error is unknown.")
    cka = questions.different({"linear_cka": np.array([[0.99, 0.941, 0.893, 0.963, 0.968]])})
    assert cka == "Not decided: linear CKA lies between 0.893 (layer 2) and 0.968 (layer 4); one network, so its error is unknown."


def test_cka_rises_with_depth_only_without_a_fall_on_the_way():
    noise = np.array([[-1e-3], [0], [1e-3]])
    rises, dips = np.array([0.99, 0.5, 0.6, 0.7, 0.8]) + noise, np.array([0.99, 0.941, 0.893, 0.963, 0.968]) + noise * [1, 1, -1, 1, 2]
    assert "rises with depth" in questions.different({"linear_cka": rises})
    assert "depth" not in questions.different({"linear_cka": dips})


def test_the_figure_prints_its_thresholds():
    run = make_run(repeats=3)
    shown = "\n".join(texts(draw("research_questions", run)["research_questions"]))
    assert "differences are told beyond 4.3 standard errors (3 networks, paired, Student's 95 %)" in shown
    one = make_run(repeats=1)
    one.arrays["measured_samples"] = np.array([143])
    shown = "\n".join(texts(draw("research_questions", one)["research_questions"]))
    assert "differences of accuracies are told beyond 2 binomial standard errors of the 143 samples, others not from one network" in shown


# limits, ticks, colours


def _outlier(layers: int = 4) -> Figure:
    run = make_run(layers)
    run.arrays["layer_ridge_r2"][:, 0, 0] = [-5, -2.6, -0.2]
    return run


@pytest.mark.parametrize("kind", ["all_metrics_overview", "timeline", "layer_progression_analysis", "train_val_comparison"])
def test_one_initial_outlier_does_not_flatten_ridge_r2(kind):
    run = _outlier()
    figures = draw(kind, run, metric="ridge_r2", phase="val") if kind != "train_val_comparison" else draw(kind, run, metric="ridge_r2")
    for figure in figures.values():
        axis = figure.axes[-1]
        low, high = axis.get_ylim()
        assert high - low < 1
        marks = [line for line in axis.lines if line.get_marker() in ("v", "^") and len(line.get_xdata())]
        assert len(marks) == 1 and marks[0].get_ydata()[0] == (low if marks[0].get_marker() == "v" else high)
        value = "3.6" if kind == "train_val_comparison" else "-2.6"
        assert value in [text.get_text() for text in axis.texts]


def test_runs_side_by_side_share_robust_limits():
    (figure,) = draw("multi_run", _outlier(), make_run(seed=1), metric="ridge_r2").values()
    figure.draw_without_rendering()
    assert all(axis.get_position().width > 0.15 for axis in figure.axes)  # marks at the edge take no room from the panels
    limits = {axis.get_ylim() for axis in figure.axes}
    assert len(limits) == 1
    low, high = limits.pop()
    assert high - low < 1


def test_learning_curves_are_not_outliers():
    assert style.inliers(np.array([2.3, 2.2, 2.0, 1.5, 0.9, 0.5, 0.3, 0.2, 0.15, 0.1])) == (0.1, 2.3)
    assert style.inliers(np.array([-2.6, *np.linspace(0.8, 1, 11)])) == (0.8, 1)
    assert style.inliers(np.array([9.0, *np.linspace(0.8, 1, 11)])) == (0.8, 9)
    assert style.inliers(np.array([9.0, *np.linspace(0.8, 1, 11)]), both=True) == (0.8, 1)
    assert style.inliers(np.array([0.0, 0, 0, 0, 1]), both=True) == (0, 0)
    assert style.inliers(np.array([np.nan, 1.0, np.inf, -np.inf])) == (1, 1)
    assert style.inliers(np.array([-2.6, *np.linspace(0.8, 1, 11)]), [-2.6, np.nan]) == (-2.6, 1)
    assert all(np.isnan(style.inliers(np.array([]))))
    run = make_run()
    (figure,) = draw("timeline", run, metric="ridge_r2").values()
    assert not [line for line in figure.axes[0].lines if line.get_marker() == "v"]


def test_outliers_do_not_hide_each_other():
    """One at either end: whichever is looked at first, and upside down, both are left out."""
    points = np.array([-90.0, 50, *np.linspace(0, 1, 30)])
    assert style.inliers(points, both=True) == (0, 1)
    assert style.inliers(-points, both=True) == (-1, 0)
    assert style.inliers(points[2:] * 0 + 1, both=True) == (1, 1)


def test_the_last_point_of_a_line_stays_in_view():
    _, axes = style.sheet(1, 1)
    falls, rises = np.array([0.9, 0.91, 0.92, np.nan, -3]), np.array([-9, 0.9, 0.91, 0.92, np.inf])
    for _ in range(3):
        axes[0, 0].plot(np.arange(5), rises)
    axes[0, 0].plot(np.arange(5), falls)
    style.robust_view(axes[0, 0])
    low, high = axes[0, 0].get_ylim()
    assert -9 < low < -3 and 0.92 < high < 2


def test_error_ticks_are_told_apart():
    run = invert_run(3, 2)
    run.arrays["error"][:] = np.geomspace(0.9, 0.0009, 61)
    (figure,) = invert.distance_error([run], FigureOptions()).values()
    figure.draw_without_rendering()
    low, high = figure.axes[1].get_ylim()
    ticks = figure.axes[1].get_yticks()
    labels = [label.get_text() for label, tick in zip(figure.axes[1].get_yticklabels(), ticks, strict=True) if low <= tick <= high]
    assert len(set(labels)) == len(labels) > 4
    assert "0.1 %" in labels and "50 %" in labels


def test_panels_say_what_samples_they_are_of():
    (figure,) = draw("architecture_comparison", make_run(), make_run(model="mlp", seed=1), metric="probe_accuracy").values()
    left, right = figure.axes
    assert left.get_title() == "test set, end of training"
    assert right.get_title() == "validation split, last layer"
    assert not any("set" in text.get_text() or "split" in text.get_text() for text in right.get_legend().get_texts())
    (mixed,) = draw("architecture_comparison", make_run(), make_run(model="mlp", val=False, seed=1), metric="probe_accuracy").values()
    assert mixed.axes[1].get_title() == "held-out samples, last layer"
    ends = [text.get_text().splitlines()[-1] for text in mixed.axes[1].get_legend().get_texts()]
    assert ends == ["right: layer 3, validation split", "right: layer 3, test set"]


def test_near_numbers_are_near_in_colour():
    run = make_run(metrics=("probe_accuracy", "participation_ratio", "gaussian_entropy"))
    run.arrays["layer_probe_accuracy"][:] = np.linspace(0.963, 0.972, 4)
    (figure,) = draw("metrics_heatmap", run, phase="val").values()
    colours = np.asarray(figure.axes[0].images[0].get_array())
    np.testing.assert_allclose(colours[0], np.linspace(0.963, 0.972, 4))
    assert (colours >= 0).all() and (colours <= 1).all()


# inversions


def invert_run(classes: int, repeats: int):
    """A stored search: every class turns at epoch 30, the first network of class 0 is passed at the end."""
    x = np.arange(61.0)
    values = np.repeat(np.repeat((0.5 + 0.01 * np.abs(x - 30))[None, :, None], classes, 2), repeats, 0)
    values[0, 55:, 0] = 0.4
    values[:, 0] = 0.99
    arrays = {
        "radii": values, "inversion_epoch": np.full((repeats, classes), 30.0), "repeats": np.arange(repeats), "epochs": np.arange(61),
        "class_names": np.array([f"kind {c}" for c in range(classes)]), "error": np.full((repeats, 61), 0.2),
        "distances": np.ones((repeats, 61, classes, classes)),
    }  # fmt: skip
    return Run("a" * 32, arrays, "parity mnist s0", "invert")


@pytest.mark.parametrize("repeats", [2, 9])
def test_radii_show_the_whole_course_and_mark_what_is_passed(repeats):
    run = invert_run(3, repeats)
    (figure,) = invert.radii([run], FigureOptions()).values()
    assert "passed later (a radius over 1% smaller)" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert [axis.get_title() for axis in figure.axes] == [
        f"class kind 0: {repeats} of {repeats} invert, 1 passed", *(f"class kind {c}: {repeats} of {repeats} invert" for c in (1, 2))
    ]  # fmt: skip
    for axis in figure.axes:
        low, high = axis.get_ylim()
        assert low < 0.5 and high > (0.99 if repeats <= invert.APART else 0.98)
        assert axis.get_xlim()[0] <= 1 and axis.get_xscale() == "log"
    if repeats <= invert.APART:
        faces = [line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"]
        assert faces.count("white") == 1 and len(faces) == repeats


# names


NASTY = ["$x$", r"$\frac{1", "a_b^{", "[/b]", "line\nbreak", "tab\there", "", "$x$", "é" * 300, r"\n", "{}", "%s"]


@pytest.mark.parametrize("kind", ["basic_training_curves", "class_hardness", "overlap_scatter", "confusion_matrix"])
def test_names_are_drawn_as_they_are(kind, tmp_path):
    runs = []
    for seed in range(2):
        run = train_run(len(NASTY), 2, seed, name=r"$\frac{1 _^ [/b]" + "\n" * seed)
        run.arrays["class_names"] = np.array(NASTY)
        runs.append(run)
    for chosen in (runs[:1], runs):
        figures = draw_train(kind, *chosen)
        assert len({stem.lower() for stem in figures}) == len(figures)
        save(figures, tmp_path)
        for figure in figures.values():
            _no_mathematics(figure)
    if kind == "confusion_matrix":
        shown = drawn(figures[next(iter(figures))])
        assert {"$x$ (0)", "$x$ (7)", "a_b^{", "[/b]", r"line\nbreak", r"tab\there"} <= shown


def _no_mathematics(figure: Figure) -> None:
    for text in figure.findobj(Text):
        assert "\n\n" not in text.get_text().rstrip()
        if text.get_parse_math():
            assert "$" not in text.get_text().replace("$\\mathdefault{", "").replace("}$", ""), text.get_text()


def test_layer_and_inversion_figures_draw_names_as_they_are(tmp_path):
    runs = [make_run(2, 2, seed=seed, name="$\\frac{1", metrics=("probe_accuracy",)) for seed in range(2)]
    runs.append(make_run(2, 2, "mlp", seed=3, name="$\\frac{2", metrics=("probe_accuracy",)))
    for kind in ("research_questions", "timeline", "multi_run", "architecture_comparison", "layerwise"):
        figures = draw(kind, *runs)
        save(figures, tmp_path)
        for figure in figures.values():
            _no_mathematics(figure)
    run = invert_run(len(NASTY), 2)
    run.arrays["class_names"] = np.array(NASTY)
    save(invert.radii([run], FigureOptions()) | invert.distance_error([run, run], FigureOptions()), tmp_path)


def test_a_figure_is_written_whole_or_not_at_all(tmp_path):
    class Broken(Figure):
        def savefig(self, file, **more):
            file.write(b"half")
            raise OSError("no space left")

    (tmp_path / "a.png").write_bytes(b"former")
    with pytest.raises(TrackingError, match="no space"):
        save({"a": Broken()}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"former"
    assert save({"b": Figure()}, tmp_path / "new", ("png", "svg", "pdf")) == ["b.png", "b.svg", "b.pdf"]
    assert [(tmp_path / "new" / f"b.{end}").read_bytes()[:4] for end in ("png", "pdf")] == [b"\x89PNG", b"%PDF"]


# many classes


def test_figures_of_many_classes_draw_a_part_and_say_so():
    """What is drawn of 200 classes: bounds on the artists, not on the time they take."""
    run = train_run(200, 2)
    figure = draw_train("class_hardness", run)["class_hardness"]
    bottom = figure.axes[1]
    assert len(bottom.collections[0].get_segments()) <= style.SAMPLED
    figure = draw_train("overlap_scatter", run)["overlap_scatter"]
    assert sum(len(group.get_offsets()) for group in figure.axes[0].collections) <= 3 * (style.SAMPLED + 4)
    assert any("19900 pairs, 2 networks,\n1002 pairs drawn" in text for text in drawn(figure))
    final = run.arrays["overlap_dynamic"][:, -1].mean(0)[np.triu_indices(200, 1)]
    pairs = np.argsort(final)[[0, 1, -2, -1]]
    named = {" - ".join(f"kind {end}" for end in ends) for ends in np.transpose(np.triu_indices(200, 1))[pairs]}
    assert named <= drawn(figure)
    figure = draw_train("confusion_matrix", run)["confusion_matrix"]
    assert not figure.axes[0].texts
    assert max(len(figure.axes[0].get_xticks()), len(figure.axes[0].get_yticks())) <= style.CROWD
    assert figure.axes[0].images[0].get_array().shape == (200, 200)
    assert len(invert.radii([invert_run(200, 2)], FigureOptions())["radii"].axes) <= style.CROWD


def test_fifty_classes_are_all_there():
    run = train_run(50, 1)
    assert len(draw_train("confusion_matrix", run)["confusion_matrix"].axes[0].get_xticks()) == 50
    figure = draw_train("overlap_scatter", run)["overlap_scatter"]
    assert not any("drawn" in text for text in drawn(figure))
