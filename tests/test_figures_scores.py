"""Figures of hardness scores, drawn from small arrays made by hand: what is plotted are the numbers."""

from itertools import combinations

import numpy as np
import pytest
from made_runs import Run, bar_ends, legend_of, only
from made_scores import TYPES, ranked, scored, supported
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from hardbench.errors import ConfigError
from hardbench.figures import ranks, score, style
from hardbench.figures.runs import FigureOptions

pytestmark = pytest.mark.filterwarnings("error")
same = np.testing.assert_allclose
PLAIN = FigureOptions()


def drawn(kind: str, run: Run, **options: str) -> Figure:
    """The one figure of a kind, laid out as a file would have it."""
    (figure,) = score.KINDS[kind]([run], FigureOptions(**options)).values()
    figure.draw_without_rendering()
    return figure


def changed(run: Run, **arrays: np.ndarray) -> Run:
    """The run with some of its arrays replaced."""
    run.arrays.update(arrays)
    return run


@pytest.mark.parametrize("kind", score.KINDS)
@pytest.mark.parametrize(
    ("scores", "types", "classes", "samples", "repeats", "shape"), [(2, 1, 2, 24, 1, (1, 4, 4)), (28, 5, 30, 120, 2, (3, 5, 4))]
)
def test_every_kind_is_drawn_for_few_and_for_many(kind, scores, types, classes, samples, repeats, shape):
    run = scored(scores, types, classes, samples, repeats, shape)
    run = changed(run, class_names=np.array([f"a class of an unusually long name {c}" for c in range(classes)]))
    drawn(kind, changed(run, **ranked(scores, types), **supported(run, 3, shape=shape)))


def test_a_run_without_planted_samples_has_the_kinds_that_need_none():
    run = scored(4, 0, 3, 50, 2)
    for kind in ("data_map", "agreement_of_scores", "score_stability", "hardest"):
        drawn(kind, run)
    needs = {
        "detection_by_type": "samples made hard by train --plant", "critical_difference": "planted runs on five data sets or more",
        "influence": "train --train-share below 1 and --record-test",
    }  # fmt: skip
    for kind, words in needs.items():
        with pytest.raises(ConfigError, match=rf"{kind}: run mlp mnist s0 \(55555555\) has no numbers for it; it needs {words}"):
            score.KINDS[kind]([run], PLAIN)


def test_equal_runs_give_equal_files(tmp_path):
    files = [tmp_path / name for name in ("one.png", "other.png")]
    for file in files:
        drawn("data_map", scored(samples=2500)).savefig(file, dpi=50)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_data_map_has_a_panel_for_the_clean_samples_and_one_for_each_type():
    run = scored(samples=4000, types=2, repeats=3)
    figure = only(score.data_map([run], PLAIN), "data_map")
    confidence, variability, correctness = (
        run.arrays[f"data_maps_{part}"].mean(0) for part in ("confidence", "variability", "correctness")
    )
    for axis, code in zip(figure.axes, (0, 1, 2), strict=False):
        rows = np.flatnonzero(run.arrays["planted"] == code)
        points = axis.collections[1]
        assert len(points.get_offsets()) == min(len(rows), style.SAMPLED)
        picked = rows[style.sampled(len(rows))]
        same(points.get_offsets(), np.column_stack([variability[picked], 1 - confidence[picked]]), rtol=1e-6)
        same(points.get_array(), 1 - correctness[picked])
    titles = [axis.get_title() for axis in figure.axes[:3]]
    assert titles == ["clean: 1000 of 2667 samples", "mislabel: 667 samples", "mislabel_pairs: 666 samples"]
    assert figure.axes[3].get_ylabel() == "correctness (share of training\nat which right), mean of 3 networks"
    four = drawn("data_map", scored(types=3)).axes[:4]
    assert [bool(axis.xaxis.get_tick_params()["labelbottom"]) for axis in four] == [False, True, True, True]
    assert [axis.get_title() for axis in drawn("data_map", scored(types=0, repeats=1)).axes[:-1]] == ["all: 60 samples"]


def judged() -> Run:
    """Three scores, two types; the last is not defined for the second."""
    ap = np.array([[0.3, 0.2], [0.9, 0.8], [0.05, np.nan]])
    run = changed(
        scored(3, 2), detection_ap=ap, detection_low=ap - 0.04, detection_high=ap + 0.02, detection_base_rate=np.array([0.1, 0.2])
    )
    return changed(run, detection_ap_repeats=np.stack([ap - 0.01, ap + 0.01], -1))


def test_detection_marks_what_is_below_the_base_rate():
    figure = only(score.KINDS["detection_by_type"]([judged()], PLAIN), "detection_by_type")
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["random", "loss", "mean_loss"]  # the best at the top
    assert [axis.get_title() for axis in figure.axes] == ["mislabel\nbase rate 0.100", "mislabel_pairs\nbase rate 0.200"]
    below, within, above = left.containers
    same(below.lines[0].get_data(), [[0.05], [0]])
    same(above.lines[0].get_data(), [[0.3, 0.9], [1, 2]])
    same(np.sort(bar_ends(above)), [[0.26, 0.32], [0.86, 0.92]])
    assert not len(within.lines[0].get_xdata())
    assert [to_hex(part.lines[0].get_color()) for part in (below, above)] == [style.COLOURS[1].lower(), style.COLOURS[0].lower()]
    same([line.get_xdata()[0] for line in (left.lines[0], right.lines[0])], [0.1, 0.2])
    same(right.containers[1].lines[0].get_data(), [[0.2], [1]])
    assert [text.get_text() for text in right.texts] == ["not defined"]
    assert legend_of(right)[:2] == ["above base rate", "base rate within\nthe interval"]
    assert legend_of(right)[4] == "one of 2 networks;\nother marks:\ntheir mean score"
    ticks = [line for line in left.lines if line.get_marker() == "|"]
    same(np.stack([line.get_xdata() for line in ticks]), [[0.04, 0.29, 0.89], [0.06, 0.31, 0.91]])


def test_detection_by_the_area_under_the_roc_curve_stands_beside_a_half():
    auroc = np.array([[0.5, 0.5], [0.8, 0.4], [0.45, 0.6]])
    run = changed(judged(), detection_auroc=auroc, detection_auroc_low=auroc - 0.02, detection_auroc_high=auroc + 0.02)
    (stem, figure), *_ = score.KINDS["detection_by_type"]([run], FigureOptions(metric="auroc")).items()
    assert (
        stem == "detection_by_type_auroc" and figure.get_supxlabel() == "area under the ROC curve, samples of the type against clean ones"
    )
    left = figure.axes[0]
    same(left.lines[0].get_xdata(), [0.5, 0.5])
    same([part.lines[0].get_xdata() for part in left.containers], [[0.45], [0.5], [0.8]])
    with pytest.raises(ConfigError, match="metric: recall; this figure draws average_precision or auroc"):
        score.KINDS["detection_by_type"]([run], FigureOptions(metric="recall"))


def test_agreement_puts_scores_that_rank_alike_side_by_side():
    rho = np.eye(4)
    for i, j, value in ((0, 2, 0.9), (1, 3, 0.8), (0, 1, -0.5), (0, 3, -0.4), (1, 2, -0.6), (2, 3, -0.5)):
        rho[i, j] = rho[j, i] = value
    run = changed(scored(4), agreement_spearman=rho, agreement_jaccard=np.clip(rho, 0, 1))
    left, right = only(score.KINDS["agreement_of_scores"]([run], PLAIN), "agreement_of_scores").axes[:2]
    names = [label.get_text() for label in left.get_yticklabels()]
    order = [list(run.arrays["score_names"]).index(name) for name in names]
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset((0, 2)), frozenset((1, 3))}
    same(left.images[0].get_array(), rho[np.ix_(order, order)])
    same(right.images[0].get_array(), np.clip(rho, 0, 1)[np.ix_(order, order)])
    unknown = np.where(np.eye(3, dtype=bool), 1, np.nan)
    drawn("agreement_of_scores", changed(scored(3), agreement_spearman=unknown, agreement_jaccard=unknown))


def test_stability_leaves_out_and_names_the_scores_of_all_networks_together():
    values = np.array([0.5, np.nan, 0.9, -0.2])
    figure = drawn("score_stability", changed(scored(4), stability_spearman=values, stability_z=10 * values))
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["random", "loss", "softmax_confidence"]
    same(left.lines[1].get_xdata(), [-0.2, 0.5, 0.9])
    same(right.lines[1].get_xdata(), [-2, 5, 9])
    assert left.get_xlim()[0] < -0.2
    assert figure.get_supxlabel().endswith("samples: mean_loss")


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_joined_that_differ_by_less_than_the_critical_difference(seed):
    mean_ranks = np.random.default_rng(seed).uniform(1, 9, 9).round(1)
    joined = ranks.groups(mean_ranks, 2.0)
    for a, b in combinations(mean_ranks, 2):
        assert (abs(a - b) < 2.0 - 1e-9) == any(low <= min(a, b) and max(a, b) <= high for low, high in joined), (a, b)
    assert not any(low <= other and end <= high for (low, high), (other, end) in combinations(joined, 2))


def test_critical_difference_places_scores_by_rank():
    arrays = {
        "friedman_ranks": np.array([[1.5, 3.5, 1.75, 3.25]]),
        "friedman_critical_difference": np.array([1.5]), "friedman_p": np.array([0.2]),
        "friedman_types": np.array(["shift"]), "friedman_blocks": np.array(7), "friedman_scores": np.array(["a", "b", "c", "d"]),
    }  # fmt: skip
    figure = drawn("critical_difference", changed(scored(), **arrays))
    (axis,) = figure.axes
    texts = [text.get_text() for text in axis.texts]
    assert texts == ["1", "2", "3", "4", "CD = 1.50", "a  1.5", "c  1.8", "3.2  d", "3.5  b"]
    assert axis.get_title() == "shift: Friedman's p = 0.200 (not significant)" and "over 7 data sets" in figure.get_supxlabel()
    third = ranks.AXIS / 3  # inches of a rank
    bars = [line.get_xdata() for line in axis.lines if line.get_linewidth() == 2.5]
    same(np.array(bars) / third + 1 + np.array([0.03, -0.03]) / third, [[1.5, 1.75], [3.25, 3.5]])


def test_the_gallery_of_the_hardest_names_prediction_score_and_what_was_planted():
    run = scored(3, 2, 2, 20, 2)
    figure = only(score.KINDS["hardest"]([run], PLAIN), "hardest")
    axes = np.array(figure.axes).reshape(2, 2)  # random is no score to look at
    assert [axis.get_title() for axis in axes[0]] == ["kind 0", "kind 1"]
    assert [line[0].get_ylabel() for line in axes] == ["mean_loss", "loss"]
    arrays = run.arrays
    for name, line in zip(("mean_loss", "loss"), axes, strict=True):
        for c, axis in enumerate(line):
            value = arrays[name].mean(0)
            row = int(np.argmax(np.where(arrays["labels"] == c, value, -np.inf)))
            planted = TYPES[arrays["planted"][row] - 1] if arrays["planted"][row] else ""
            true = f"\nis kind {arrays['clean'][row]}" if arrays["clean"][row] != c else ""
            assert axis.get_xlabel() == f"→ kind {arrays['predicted'][row]}\n{value[row]:.3g}\n{planted}{true}"
            assert axis.xaxis.label.get_color() == (style.HIGH if planted else style.INK)
            same(axis.images[0].get_array(), arrays["gallery_inputs"][np.searchsorted(arrays["gallery_rows"], row), 0])


def test_the_gallery_of_one_score_has_a_row_for_every_class():
    run = scored(3, 2, 4, 30, 2)
    figure = only(score.KINDS["hardest"]([run], FigureOptions(metric="mean_loss")), "hardest_mean_loss")
    axes = np.array(figure.axes).reshape(4, 12)
    assert [line[0].get_ylabel() for line in axes] == ["kind 0", "kind 1", "kind 2", "kind 3"]
    assert [bool(axis.images) for axis in axes[3]] == [True] * 7 + [False] * 5  # seven samples of it
    with pytest.raises(ConfigError, match="metric: speed; this figure draws loss or mean_loss or random"):
        score.KINDS["hardest"]([run], FigureOptions(metric="speed"))
    for inputs, what in ((np.ones((3, 5)), "vectors"), (np.ones((0, 1, 2, 2)), "no inputs")):
        with pytest.raises(ConfigError, match=f"hardest: run mlp mnist s0 has {what}; images"):
            score.KINDS["hardest"]([changed(run, gallery_inputs=inputs)], PLAIN)


def test_the_gallery_of_influence_sets_a_test_sample_beside_its_supporters():
    run = scored(3, 2, 3, 30, 2)
    arrays = supported(run, tests=2)
    arrays["influence_shown"], arrays["influence_test_labels"] = np.array([1, 0]), np.array([2, 0])
    figure = only(score.KINDS["influence"]([changed(run, **arrays)], PLAIN), "influence")
    axes = np.array(figure.axes).reshape(2, 9)
    assert [axis.get_xlabel() for axis in axes[:, 0]] == ["kind 0", "kind 2"]
    assert [bool(axis.images) for axis in axes[0]] == [True] * 3 + [False] * 6  # test sample 1 has two
    row = int(arrays["influence_train"][0, 0])
    label = f"kind {run.arrays['labels'][row]}\n{arrays['influence'][0, 0]:.2f} ± 0.10"
    assert axes[1, 1].get_xlabel().startswith(label)
    assert [axis.get_title() for axis in axes[0, :2]] == ["test sample", "supporters"]
    assert "40 networks; by chance the largest of 60 pairs reaches 2.9 standard errors" in figure.get_suptitle()
    for inputs, what in ((np.ones((2, 5)), "vectors"), (np.ones((0, 1, 2, 2)), "no test sample with supporters")):
        with pytest.raises(ConfigError, match=f"influence: run mlp mnist s0 has {what}; images"):
            score.KINDS["influence"]([changed(run, influence_inputs=inputs)], PLAIN)


def test_several_runs_have_a_figure_each():
    runs = [scored(), Run("6" * 32, scored().arrays, "other", "score")]
    assert set(score.KINDS["data_map"](runs, PLAIN)) == {"data_map_mlp_mnist_s0", "data_map_other"}
