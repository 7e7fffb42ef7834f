"""Figures of invert and stragglers, drawn from small arrays made by hand: what is plotted are the numbers."""

import numpy as np
import pytest
from made_runs import Run, bar_ends, extent, legend_of, lines_of, only
from matplotlib.colors import to_hex

from hardbench.errors import ConfigError
from hardbench.figures import invert, stragglers, style
from hardbench.figures.runs import FigureOptions

pytestmark = pytest.mark.filterwarnings("error")
same = np.testing.assert_allclose
PLAIN = FigureOptions()


# invert: networks R, epochs T = 0 to 4, classes K = 2


def search(repeats: int = 2, name: str = "mlp mnist s0", **more: np.ndarray) -> Run:
    """Class 0 of every network turns at epoch 2, and in network 0 falls below that at the end; class 1 never turns."""
    radii = np.full((repeats, 5, 2), [[0.9, 0.8], [0.7, 0.7], [0.5, 0.6], [0.6, 0.5], [0.7, 0.4]])
    radii = radii + 0.01 * np.arange(repeats)[:, None, None]
    radii[0, 4, 0] = 0.3
    epochs = np.tile([2.0, np.nan], (repeats, 1))
    arrays = {
        "radii": radii, "inversion_epoch": epochs, "epochs": np.arange(5), "repeats": 3 + np.arange(repeats),
        "class_names": np.array(["cat", "dog"]), "error": np.linspace(0.5, 0.1, 5) * np.ones((repeats, 1)),
        "distances": np.ones((repeats, 5, 2, 2)) * np.arange(5)[:, None, None],
    }  # fmt: skip
    return Run(f"{repeats}" * 32, arrays | more, name, "invert")


def test_radii_of_a_few_networks_are_lines_with_their_inversions():
    run = search()
    figure = only(invert.radii([run], PLAIN), "radii")
    cat, dog = figure.axes
    assert [cat.get_title(), dog.get_title()] == ["class cat: 2 of 2 invert, 1 passed", "class dog: 0 of 2 invert"]
    first, circle, second, other = cat.lines
    same(first.get_ydata(), run.arrays["radii"][0, :, 0])
    same(second.get_ydata(), run.arrays["radii"][1, :, 0])
    same(first.get_xdata(), [1, 2, 3, 4, 5])
    same([circle.get_data(), other.get_data()], [([3], [0.5]), ([3], [0.51])])
    assert circle.get_markerfacecolor() == "white" and other.get_markerfacecolor() == style.COLOURS[1]
    same(lines_of(dog), run.arrays["radii"][:, :, 1])
    assert figure.get_supxlabel() == "epoch + 1" and figure.get_supylabel() == "radius"
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == ["network 3", "network 4", "inversion"]


def test_radii_of_many_networks_are_mean_and_standard_deviation():
    run = search(9)
    cat, dog = only(invert.radii([run], PLAIN), "radii").axes
    mean, std = run.arrays["radii"].mean(0), run.arrays["radii"].std(0, ddof=1)
    same(cat.lines[0].get_ydata(), mean[:, 0])
    same(extent(dog), ((mean - std)[:, 1].min(), (mean + std)[:, 1].max()))
    assert [line.get_xdata()[0] for line in cat.lines[1:]] == [3.0] * 10  # a tick per network, then the median
    assert [to_hex(line.get_color()) for line in cat.lines[1:]].count(invert.TICK_OF_PASSED) == 1
    assert len(dog.lines) == 1


def test_radii_of_networks_trained_again_are_another_figure():
    again = search(2, "again", retrained_radii=np.full((2, 5, 2), 0.2), retrained_inversion_epoch=np.full((2, 2), np.nan))
    figures = invert.radii([search(3, "a/b"), again], PLAIN)
    assert set(figures) == {"radii_a_b", "radii_again", "radii_retrained"}
    figure = figures["radii_retrained"]
    same(lines_of(figure.axes[0]), np.full((2, 5), 0.2))
    assert figure.get_supylabel() == "radius without stragglers"


def test_distance_and_error_are_means_with_the_quartiles_of_the_inversions():
    run = search()
    run.arrays["inversion_epoch"][:] = [[1, 2], [3, np.nan]]
    run.arrays["error"][1] += 0.2
    figure = only(invert.distance_error([run], PLAIN), "distance_error")
    left, right = figure.axes
    same(left.lines[0].get_ydata(), np.arange(5))
    same(right.lines[0].get_ydata(), np.linspace(0.6, 0.2, 5))
    same(extent(right), (0.1, 0.7))  # a standard error of .1
    assert [line.get_xdata()[0] for line in (left.lines[1], right.lines[1])] == [2, 2]
    quartiles = left.patches[0].get_extents().transformed(left.transData.inverted())
    same([quartiles.x0, quartiles.x1], [1.5, 2.5])
    assert legend_of(right) == ["1 pair of classes\nmean ± standard error,\n2 networks", "median inversion", "its quartiles"]
    both = only(invert.distance_error([run, search(3, "other")], PLAIN), "distance_error")
    assert [label.splitlines()[0] for label in legend_of(both.axes[1])[:2]] == ["mlp mnist s0", "other"]


def test_stability_draws_pairs_their_mean_and_the_straggler_sets():
    sets = np.array([[True, True, False, False], [True, False, False, False], [False] * 4])
    run = search(
        3, stability_epochs=np.array([0, 4]), stability_z=np.array([[1.0, 2], [3, 4], [5, np.nan]]), straggler_z=np.array([6.0, np.nan, 8]),
        misclassified=np.array([[0.2, 0.1], [0.4, 0.1], [0.6, 0.1]]), stragglers=sets,
        judged_epoch=np.array([[2.0, 2], [2, 2], [np.nan, np.nan]]),
    )  # fmt: skip
    left, right = only(invert.stability([run], PLAIN), "stability").axes
    same(np.array(lines_of(left)[:4]), [[1, 2], [3, 4], [5, np.nan], [3, 3]])
    same(lines_of(left)[4], [7, 7])
    same(left.lines[0].get_xdata(), [1, 5])
    same(lines_of(right)[0], [0.4, 0.1])
    same(lines_of(right)[1], [0.375, 0.375])  # of the two networks that were judged
    assert legend_of(right)[0] == "misclassified:\nmean of 3 pairs"


def test_the_prune_curve_has_a_line_and_a_baseline_for_every_noise():
    errors = np.array([[[0.3, 0.4], [0.5, 0.6]], [[0.1, 0.2], [0.5, 0.8]]])  # [R, noise, epoch]
    run = search(
        prune_epochs=np.array([1, 4]), prune_removed=np.array([[0.5, 0.1], [0.7, 0.3]]), test_noise=np.array([0, 0.25]),
        prune_error=errors, prune_baseline=np.array([[0.2, 0.4], [0.3, 0.6]]),
    )  # fmt: skip
    left, right = only(invert.prune_curve([run], PLAIN), "prune_curve").axes
    same(np.array(lines_of(left)), [[0.2, 0.3], [0.25, 0.25], [0.5, 0.7], [0.5, 0.5]])
    same(extent(left), (0.1, 0.4))
    same(lines_of(right)[0], [0.6, 0.2])
    assert legend_of(right) == ["clean test inputs", "test noise 0.25", "nothing removed", "mean ± standard error,\n2 networks"]
    with pytest.raises(ConfigError, match="prune_error: not measured in run mlp mnist s0"):
        invert.prune_curve([search()], PLAIN)


def test_the_gallery_names_label_prediction_and_votes():
    images = np.stack([np.full((1, 2, 2), 7, dtype=np.uint8), np.arange(4, dtype=np.uint8).reshape(1, 2, 2)])
    run = search(
        gallery=np.array([2, 0]), gallery_inputs=images, labels=np.array([1, 0, 0]),
        stragglers=np.array([[True, False, True], [False, False, True]]), predicted=np.array([[0, 0, 1], [0, 0, 1]]),
    )  # fmt: skip
    figure = only(invert.gallery([run], PLAIN), "gallery")
    assert [axis.get_title() for axis in figure.axes] == ["cat → dog\n2 of 2", "dog → cat\n1 of 2"]
    same(figure.axes[1].images[0].get_array(), [[0, 1], [2, 3]])
    for inputs, reason in ((images[:0], "no stragglers"), (np.ones((2, 5)), "vectors")):
        with pytest.raises(ConfigError, match=f"gallery: run mlp mnist s0 has {reason}; stragglers among images"):
            invert.gallery([search(gallery_inputs=inputs)], PLAIN)


def test_images_are_scaled_and_their_channels_go_last():
    same(style.pixels(np.array([[[-1.0, 1], [0, 1]]])), [[0, 1], [0.5, 1]])
    assert style.pixels(np.zeros((4, 5, 6))).shape == (5, 6, 3)
    assert style.pixels(np.full((1, 2, 2), 9, dtype=np.uint8)).max() == 9


# stragglers: strategies M = 2, train ratios P = 2, shares remaining Q = 2, sets S, repeats R, classes K = 2


def hard_samples(sets: int = 1, strategies: tuple[str, ...] = ("loss", "aum")) -> Run:
    """Accuracies m + p / 10 + q / 100 (+ .02 s, - .01 and + .01 for the two repeats), larger shares remaining first."""
    m, p, q, s, r = np.indices((len(strategies), 2, 2, sets, 2))
    accuracy = 0.3 + 0.2 * m + 0.1 * p + 0.05 * q + 0.02 * s + 0.02 * (r - 0.5)
    arrays = {
        "accuracy_full": accuracy, "accuracy_hard": accuracy - 0.2, "accuracy_easy": accuracy + 0.2, "remaining": np.array([1.0, 0.25]),
        "accuracy_per_class": np.stack([accuracy, accuracy - 0.1], -1), "strategies": np.array(strategies),
        "train_ratios": np.array([0.9, 0.5]),
        "hard_per_class": np.array([[[1, 3]] * sets, [[2, 2]] * sets])[: len(strategies)], "samples_per_class": np.array([10, 20]),
        "class_names": np.array(["cat", "dog"]), "stability": np.array([np.nan, 4.2])[: len(strategies)],
        "jaccard": np.array([[[1, 0.25], [0.25, 1]]] * sets), "spearman": np.array([[[1, -0.5], [-0.5, 1]]] * sets),
        "jaccard_per_class": np.array([[[[1, 0.1], [0.1, 1]], [[1, 0.3], [0.3, 1]]]] * sets),
    }  # fmt: skip
    return Run("a" * 32, arrays, "hard", "stragglers", config={"reduce_hard": False})


def test_accuracies_stand_against_the_percent_that_remains():
    figure = only(stragglers.accuracy_vs_remaining([hard_samples()], PLAIN), "accuracy_vs_remaining")
    assert len(figure.axes) == 6
    assert [axis.get_title() for axis in figure.axes[:3]] == ["all test samples", "hard test samples", "easy test samples"]
    assert figure.get_supxlabel() == "easy training samples that remain / %"
    for place, lowest in enumerate((30, 10, 50, 50, 30, 70)):  # strategies below each other, tests side by side
        first, second = figure.axes[place].containers
        same(first.lines[0].get_xdata(), [25, 100])
        same(first.lines[0].get_ydata(), [lowest + 5, lowest])
        same(second.lines[0].get_ydata(), [lowest + 15, lowest + 10])
        same(bar_ends(first), [[lowest + 4, lowest + 6], [lowest - 1, lowest + 1]])
    assert legend_of(figure.axes[5]) == ["90 %", "50 %", "mean ± standard error,\n2 networks"]
    assert figure.axes[5].get_legend().get_title().get_text() == "aum\ntrained on"


def test_the_error_of_several_sets_is_that_of_their_means():
    axis = only(stragglers.strategies([hard_samples(sets=2)], PLAIN), "strategies").axes[0]
    same([line.lines[0].get_ydata() for line in axis.containers], [[36, 31], [56, 51]])
    same(bar_ends(axis.containers[0]), [[35, 37], [30, 32]])
    legend = axis.get_figure().axes[-1]
    assert legend_of(legend) == ["loss", "aum", "mean ± standard error\nover 2 sets of 2 networks"]
    assert legend.get_legend().get_title().get_text() == "90 % trained on"


def test_hard_samples_of_classes_are_bars_and_points():
    figure = only(stragglers.hard_per_class([hard_samples()], PLAIN), "hard_per_class")
    bars, scatter = figure.axes
    same([patch.get_height() for patch in bars.patches], [10, 15, 20, 10])
    same([patch.get_x() + patch.get_width() / 2 for patch in bars.patches], [-0.2, 0.8, 0.2, 1.2])
    same([line.get_data() for line in scatter.lines], [([10, 15], [70, 80]), ([20, 10], [50, 60])])
    assert legend_of(scatter) == ["loss", "aum", "one set"]  # two classes have no correlation
    alone = only(stragglers.hard_per_class([hard_samples(1, ("loss",))], PLAIN), "hard_per_class")
    assert [text.get_text() for text in alone.axes[1].texts] == ["cat", "dog"]


def test_agreement_is_a_table_of_overlaps_and_one_of_ranks():
    figures = stragglers.agreement([hard_samples(2)], PLAIN)
    assert set(figures) == {"agreement", "agreement_per_class"}
    overlap, ranks = figures["agreement"].axes[:2]
    same(overlap.images[0].get_array(), [[1, 0.25], [0.25, 1]])
    same(ranks.images[0].get_array(), [[1, -0.5], [-0.5, 1]])
    assert [label.get_text() for label in overlap.get_yticklabels()] == ["loss", "aum\nz = 4"]
    axis = figures["agreement_per_class"].axes[0]
    same(axis.images[0].get_array(), [[0.1, 0.3]])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["loss - aum"]


@pytest.mark.parametrize("kind", ["strategies", "agreement"])
def test_one_strategy_is_not_compared(kind):
    with pytest.raises(ConfigError, match="strategy: run hard has loss alone; two strategies or more to compare"):
        stragglers.KINDS[kind]([hard_samples(1, ("loss",))], PLAIN)


def test_the_gallery_colours_labels_made_wrong():
    run = hard_samples(1, ("loss",))
    with pytest.raises(ConfigError, match="gallery: run hard has vectors; images"):
        stragglers.gallery([run], PLAIN)
    run.arrays.update(gallery_images=np.zeros((1, 2, 1, 3, 3)), gallery_labels=np.array([[0, 1]]), gallery_predicted=np.array([[1, 1]]))
    run.arrays["gallery_clean"] = np.array([[0, 0]])
    figure = only(stragglers.gallery([run], PLAIN), "gallery")
    assert [axis.get_title() for axis in figure.axes] == ["cat → dog\n", "dog → dog\nis cat"]
    assert [axis.title.get_color() for axis in figure.axes] == [style.INK, style.HIGH]
    assert figure.get_suptitle().endswith("in colour: labels made wrong, and the true class")
