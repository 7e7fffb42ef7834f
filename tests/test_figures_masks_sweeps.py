"""Figures of mask-mi and sweep, drawn from small arrays made by hand: what is plotted are the numbers."""

import numpy as np
import pytest
from made_runs import Run, bar_ends, extent, legend_of, only

from hardbench.errors import ConfigError
from hardbench.figures import mask_mi, sweep
from hardbench.figures.runs import FigureOptions

pytestmark = pytest.mark.filterwarnings("error")
same = np.testing.assert_allclose
PLAIN = FigureOptions()


# mask-mi: networks R = 2, sets S = 4, layers 0 and 2, channels 3, classes K = 2


def masked(models: tuple[str, ...] = ("vgg11",), mode: str = "zero", id: str = "b", layers: tuple[int, ...] = (0, 2)) -> Run:
    """Information .1 to .4 of the sets (.1 more in network 1), halved in the last layer; .8 and 1 without masks."""
    mi = np.array([[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.5]])
    own = {"layers": np.array(layers), "mi_full": np.array([0.8, 1.0]), "class_names": np.array(["cat", "dog"])}
    own["class_information_full"] = np.array([[1.0, 2], [3, 4]])
    contribution = np.array([[[0.1, 0.5, 0.3], [0, 0.4, 0.1], [0.2, 0.7, 0.6]], [[0.6, 0.2, 0.4], [0.5, 0.1, 0.3], [0.7, 0.3, 0.5]]])
    for layer in layers:
        share = 0.5 if layer == layers[-1] else 1.0
        values = {
            "mi": share * mi, "kept": np.array([1, 1, 2, 3]), "masks": np.ones((4, 3), dtype=bool), "ci95": share * np.array([0.2, 0.5]),
            "class_information": np.full((2, 4, 2), [0.5, share]), "contribution": contribution,
        }  # fmt: skip
        own |= {f"{name}_{layer:02d}": value for name, value in values.items()}
    arrays = own if len(models) == 1 else {f"{model}/{name}": value for model in models for name, value in own.items()}
    return Run(id * 32, arrays | {"models": np.array(models)}, "masks", "mask-mi", config={"mask_mode": mode})


def test_information_per_layer_is_mean_and_deviation_over_sets():
    axis = only(mask_mi.mi_per_layer([masked()], PLAIN), "mi_per_layer").axes[0]
    same(axis.containers[0].lines[0].get_data(), [[0, 2], [0.3, 0.15]])
    std = np.array([0.1, 0.2, 0.3, 0.4]).std()
    same(bar_ends(axis.containers[0]), [[0.3 - std, 0.3 + std], [0.15 - std / 2, 0.15 + std / 2]])
    assert legend_of(axis) == [
        "vgg11", "no mask: 0.90", "ln 2: 0.69", "mean ± standard deviation,\n4 sets per layer,\nmean of 2 networks"
    ]  # fmt: skip
    levels = [line.get_ydata()[0] for line in axis.lines if len(line.get_ydata()) == 2 and line.get_linestyle() in ("--", ":")]
    same(levels, [0.9, np.log(2)])


def test_information_lost_has_the_interval_of_the_mean():
    axis = only(mask_mi.delta_mi([masked()], PLAIN), "delta_mi").axes[0]
    same([bar.get_height() for bar in axis.patches], [0.6, 0.75])
    same(bar_ends(axis.containers[-1]), [[0.4, 0.7], [0.65, 0.8]])


@pytest.mark.parametrize(
    ("runs", "labels"),
    [
        ([masked(("vgg11", "vgg13"))], ["vgg11", "vgg13"]),
        ([masked(), masked(mode="mean", id="c")], ["vgg11 zero", "vgg11 mean"]),
        ([masked(), masked(id="c")], ["vgg11 (bbbbbb)", "vgg11 (cccccc)"]),
    ],
)
def test_models_are_labelled_so_that_they_differ(runs, labels):
    assert [model.label for model in mask_mi.masked_models(runs)] == labels
    axis = only(mask_mi.mi_per_layer(runs, PLAIN), "mi_per_layer").axes[0]
    assert legend_of(axis)[:4:2] == labels
    same(np.concatenate([bars.lines[0].get_xdata() for bars in axis.containers]), [-0.06, 1.94, 0.06, 2.06])
    assert len(mask_mi.class_information(runs, PLAIN)) == 2


def test_information_against_the_share_kept_is_binned():
    run = masked()
    run.arrays.update(kept_02=np.array([1, 2, 19, 20]), masks_02=np.ones((4, 20), dtype=bool))
    axis = only(mask_mi.mi_vs_kept([run], FigureOptions(layer=2)), "mi_vs_kept").axes[0]
    same(axis.collections[0].get_offsets(), np.stack([[0.05, 0.1, 0.95, 1], [0.075, 0.125, 0.175, 0.225]], 1))
    same(axis.lines[0].get_data(), [[0.05, 0.1, 0.975], [0.075, 0.125, 0.2]])  # of .1 width; the last two share a bin
    same(extent(axis, 1), (0.075, 0.225))
    assert legend_of(axis)[:2] == ["2", "no mask: 0.90"]
    with pytest.raises(ConfigError, match="layer: 1; measured are 0, 2"):
        mask_mi.mi_vs_kept([masked()], FigureOptions(layer=1))


def test_class_information_lost_is_a_table_of_classes_and_layers():
    axis = only(mask_mi.class_information([masked()], PLAIN), "class_information").axes[0]
    same(axis.images[0].get_array(), [[1.5, 1.5], [2.0, 2.5]])
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "2"]


def test_channels_are_ranked_network_by_network():
    axes = only(mask_mi.top_channels([masked()], PLAIN), "top_channels").axes
    assert [axis.get_title() for axis in axes] == [f"layer {layer}: few sets, an order" for layer in (0, 2)]
    bars = axes[0].containers[0]
    same(bars.lines[0].get_xdata(), [0.55, 0.35, 0.15])
    same(np.array(bars.lines[2][0].get_segments())[:, :, 0], [[0.45, 0.7], [0.2, 0.55], [0.05, 0.25]])
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["rank 1", "rank 2", "rank 3"]
    many = only(mask_mi.top_channels([masked(layers=tuple(range(15)))], PLAIN), "top_channels")
    assert [int(axis.get_title().split()[1].strip(":")) for axis in many.axes] == [0, 2, 4, 6, 8, 10, 12, 14]


# sweep: cells C, networks R = 2


def grid_of_cells(**settings: list[str]) -> Run:
    """Every combination of the settings, accuracies .1, .12; .2, .22; ... in their order."""
    combinations = np.array(np.meshgrid(*settings.values(), indexing="ij")).reshape(len(settings), -1)
    count = combinations.shape[1]
    arrays = {f"setting_{name}": values for name, values in zip(settings, combinations, strict=True)}
    arrays |= {"swept": np.array(list(settings)), "baseline": np.full(count, np.nan), "test_loss": np.ones((count, 2))}
    return Run("d" * 32, arrays | {"test_accuracy": 0.1 * np.arange(1, count + 1)[:, None] + [0, 0.02]}, "campaign", "sweep")


def by_level() -> Run:
    return grid_of_cells(model=["mlp"], activation=["relu", "tanh"], lr=["1", "0.1"], corruption_p=["1.0", "0.5"])


def test_accuracy_against_the_corruption_level():
    run = by_level()
    run.arrays["baseline"][:4] = 0.65
    run.arrays["test_accuracy"][7, 1] = np.nan
    relu, tanh = only(sweep.accuracy_vs_p([run], PLAIN), "accuracy_vs_p_mlp").axes
    assert [axis.get_title() for axis in (relu, tanh)] == ["mlp, relu\n2 networks per point", "mlp, tanh\n1 to 2 networks per point"]
    for container, means in zip((*relu.containers, tanh.containers[0]), ([0.21, 0.11], [0.41, 0.31], [0.61, 0.51]), strict=True):
        same(container.lines[0].get_data(), [[0.5, 1], means])
        same(bar_ends(container), np.array(means)[:, None] + [-0.01, 0.01])
    same(tanh.containers[1].lines[0].get_ydata(), [0.8, 0.71])
    same(bar_ends(tanh.containers[1]), [[0.8, 0.8], [0.7, 0.72]])  # one network has no error
    assert legend_of(tanh) == ["lr 1", "lr 0.1", "nearest class mean"]
    assert [line.get_ydata()[0] for line in relu.lines if line.get_linestyle() == "--"] == [0.65]
    assert not [line for line in tanh.lines if line.get_label() == "nearest class mean"]


def test_another_score_and_a_sweep_of_something_else():
    figure = only(sweep.accuracy_vs_p([by_level()], FigureOptions(metric="test_loss")), "test_loss_vs_p_mlp")
    assert figure.axes[0].get_ylabel() == "test loss / nats"
    same(figure.axes[0].containers[0].lines[0].get_ydata(), [1, 1])
    with pytest.raises(ConfigError, match="metric: speed; "):
        sweep.accuracy_vs_p([by_level()], FigureOptions(metric="speed"))
    with pytest.raises(ConfigError, match="a sweep of trainings over corruption_p, and campaign is none"):
        sweep.accuracy_vs_p([grid_of_cells(model=["mlp"], corruption_p=["0"])], PLAIN)


def test_accuracy_against_the_share_kept():
    """A line for each score and way, at the shares that were kept; random shares are nobody's."""
    run = grid_of_cells(hardness=[f"{'a' * 32}:aum", f"{'a' * 32}:loss"], keep=["easy:0.5", "easy:0.1", "unsuspected", "hard:0.5"])
    run.arrays["setting_keep"][7], run.arrays["setting_hardness"][7] = "random:0.3", ""
    run.arrays["kept"] = np.array([0.5, 0.1, 0.8, 0.5, 0.5, 0.1, 0.7, 0.3])
    axis = only(sweep.accuracy_vs_kept([run], PLAIN), "accuracy_vs_kept").axes[0]
    assert axis.get_title() == "2 networks per point"
    names = ["easy by aum", "unsuspected by aum", "hard by aum", "easy by loss", "unsuspected by loss", "random"]
    assert legend_of(axis) == names
    points = [([0.1, 0.5], [0.21, 0.11]), ([0.8], [0.31]), ([0.5], [0.41]), ([0.1, 0.5], [0.61, 0.51]), ([0.7], [0.71]), ([0.3], [0.81])]
    for container, (x, means) in zip(axis.containers, points, strict=True):
        same(container.lines[0].get_data(), [x, means])
        same(bar_ends(container), np.array(means)[:, None] + [-0.01, 0.01])
    with pytest.raises(ConfigError, match="a sweep of trainings over keep, and campaign is none"):
        sweep.accuracy_vs_kept([by_level()], PLAIN)


def test_a_grid_is_a_table_for_every_other_combination():
    figure = only(sweep.grid([by_level()], PLAIN), "grid_activation_corruption_p")
    first, second = figure.axes[:2]
    assert [first.get_title(), second.get_title()] == ["lr 1", "lr 0.1"]
    same(first.images[0].get_array(), [[0.21, 0.11], [0.61, 0.51]])  # rows relu, tanh; columns .5, 1
    same(second.images[0].get_array(), [[0.41, 0.31], [0.81, 0.71]])
    assert [label.get_text() for label in first.get_xticklabels()] == ["0.5", "1.0"]
    assert "0.210" in [text.get_text() for text in first.texts]
    other = only(sweep.grid([by_level()], FigureOptions(by=("lr", "activation"), metric="test_loss")), "grid_test_loss_activation_lr")
    assert [other.axes[0].get_xlabel(), other.axes[0].get_ylabel()] == ["lr", "activation"]


def test_cells_that_are_missing_are_grey():
    run = grid_of_cells(lr=["1", "2"], width=["8", "16"])
    arrays = {name: values if name == "swept" else values[:3] for name, values in run.arrays.items()}
    image = only(sweep.grid([Run(run.id, arrays, run.name, "sweep")], PLAIN), "grid_width_lr").axes[0].images[0].get_array()
    same(image.filled(-1), [[0.11, 0.31], [0.21, -1]])


@pytest.mark.parametrize(
    ("run", "by", "message"),
    [
        (by_level(), ("lr", "speed"), "by: speed; "),
        (grid_of_cells(lr=["1", "2"], model=["mlp"]), None, "a sweep over two settings, and campaign has lr"),
        (grid_of_cells(a=["1", "2"], b=["1", "2"], c=list("abcdefghijklm")), ("a", "b"), "at most 12 combinations of the others, not 13"),
    ],
)
def test_grids_that_cannot_be_drawn(run, by, message):
    with pytest.raises(ConfigError, match=message):
        sweep.grid([run], FigureOptions(by=by))
