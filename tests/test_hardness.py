import numpy as np
import pytest

from hardbench.metrics.hardness import (
    correlation,
    final,
    hardness_table,
    lasting_steps,
    mean_stderr,
    mean_with_others,
    overlap_hardness_spearman,
    row_shares,
)

pytestmark = pytest.mark.filterwarnings("error")
NAN = float("nan")
STATIC = np.array([[1.0, 0.2, 0.4], [0.2, 1.0, 0.9], [0.4, 0.9, 1.0]], dtype=np.float32)


def stored() -> dict[str, np.ndarray]:
    """Two repeats, four points, three classes of ten test samples; the second repeat was stopped after the third point."""
    right = np.array([[[0, 10, 2], [5, 8, 5], [8, 9, 6], [10, 9, 7]], [[0, 0, 0], [5, 5, 5], [9, 9, 5], [0, 0, 0]]])
    confusion = np.zeros((2, 4, 3, 3))
    for label in range(3):
        confusion[:, :, label, label] = right[:, :, label]
        confusion[:, :, label, (label + 1) % 3] = 10 - right[:, :, label]
    overlap = np.broadcast_to(STATIC, (2, 4, 3, 3)).copy()
    overlap[1] = np.where(np.eye(3, dtype=bool), 1, 0.5)
    arrays = {
        "accuracy": right.mean(-1) / 10,
        "accuracy_per_class": right / 10,
        "loss_per_class": 1 - right / 20,
        "confusion": confusion,
        "overlap_dynamic": overlap,
    }
    arrays = {name: values.astype(np.float32) for name, values in arrays.items()}
    for values in arrays.values():
        values[1, 3] = NAN
    return arrays | {"steps": np.array([0, 1, 4, 9]), "overlap_static": STATIC, "class_names": np.array(["3", "cat", "dog"])}


def test_mean_and_standard_error_leave_nan_out():
    mean, stderr = mean_stderr(np.array([[1.0, NAN, NAN], [3.0, 5.0, NAN]]))
    np.testing.assert_allclose(mean, [2, 5, NAN])
    np.testing.assert_allclose(stderr, [1, NAN, NAN])  # ddof 1: sqrt(2) / sqrt(2)


def test_final_is_each_repeats_own_last_point():
    arrays = stored()
    np.testing.assert_allclose(final(arrays, "accuracy_per_class"), [[1, 0.9, 0.7], [0.9, 0.9, 0.5]], rtol=1e-6)
    arrays["accuracy"][1] = NAN
    assert np.isnan(final(arrays, "confusion")[1]).all()


def test_a_level_is_reached_where_the_accuracy_stays_at_it_to_the_end_in_single_precision_too():
    arrays = stored()
    steps = lasting_steps(arrays["steps"], arrays["accuracy_per_class"], 0.9)
    np.testing.assert_allclose(steps, [[9, 4, NAN], [4, 4, NAN]])  # class 1 of the first starts at 1.0 and falls to .8
    flat = np.array([[[0.9, 0.95], [0.9, 0.8], [NAN, 0.95]]])
    np.testing.assert_allclose(lasting_steps(np.arange(3), flat, 0.9), [[0, 2]])
    assert np.isnan(lasting_steps(np.arange(3), flat * NAN, 0.9)).all()


def test_hardness_table():
    table = hardness_table(stored()).set_index("name")
    assert table["class"].tolist() == [0, 1, 2]
    assert table["repeats"].tolist() == [2, 2, 2]
    assert table["test_samples"].tolist() == [10, 10, 10]
    expected = {
        "hardness": [0.05, 0.1, 0.4], "hardness_stderr": [0.05, 0, 0.1], "accuracy": [0.95, 0.9, 0.6], "accuracy_stderr": [0.05, 0, 0.1],
        "loss": [0.525, 0.55, 0.7], "loss_stderr": [0.025, 0, 0.05],
        "step_50": [1, 0.5, 1], "step_50_stderr": [0, 0.5, 0], "step_50_never": [0, 0, 0],
        "step_80": [4, 2, NAN], "step_80_stderr": [0, 2, NAN], "step_80_never": [0, 0, 2],
        "step_90": [6.5, 4, NAN], "step_90_stderr": [2.5, 0, NAN], "step_90_never": [0, 0, 2],
        "confused_share": [0.05, 0.1, 0.4], "confused_share_stderr": [0.05, 0, 0.1],
        "overlap": [0.4, 0.525, 0.575], "overlap_stderr": [0.1, 0.025, 0.075], "overlap_static": [0.3, 0.55, 0.65],
    }  # fmt: skip
    for column, values in expected.items():
        np.testing.assert_allclose(table[column], values, atol=1e-6, err_msg=column)
    assert table["confused_with"].tolist() == ["cat", "dog", "3"]
    assert set(table.columns) == {"class", "repeats", "test_samples", "confused_with", *expected}


def test_where_some_never_stay_at_a_level_their_number_stands_in_place_of_a_mean():
    arrays = stored()
    arrays["accuracy_per_class"][1, :3, 2] = [0.9, 0.9, 0.2]
    table = hardness_table(arrays)
    assert table["step_50_never"].tolist() == [0, 0, 1]
    assert np.isnan(table["step_50"][2]) and np.isnan(table["step_50_stderr"][2])


def test_equal_numbers_have_no_error_whatever_their_mean_rounds_to():
    for value, count in ((0.9411764705882353, 3), (0.1, 3), (0.1, 10), (1e-300, 7), (0.7, 49)):
        mean, stderr = mean_stderr(np.full((count, 2), value))
        assert (stderr == 0).all() and mean[0] == pytest.approx(value, rel=1e-15)
    assert mean_stderr(np.array([0.3, 0.1 + 0.2, 0.3]))[1] == 0
    assert all(np.isnan(part).all() for part in mean_stderr(np.empty((0, 2))))
    assert mean_stderr(np.array([0.0, 1e-12]))[1] == pytest.approx(5e-13)
    assert mean_stderr(np.array([1.0, 1 + 1e-12]))[1] == pytest.approx(5e-13, rel=1e-3)


def test_one_repeat_has_no_standard_error():
    arrays = {name: values[:1] if values.ndim > 1 and name != "overlap_static" else values for name, values in stored().items()}
    table = hardness_table(arrays)
    assert table.filter(like="_stderr").isna().all(axis=None)
    assert table["accuracy"].notna().all()


def test_a_class_without_test_samples_is_nan_and_never_confused():
    arrays = stored()
    arrays["confusion"][:, :, 1] = 0
    arrays["confusion"][:, :, :, 1] = 0
    for name in ("accuracy_per_class", "loss_per_class"):
        arrays[name][:, :, 1] = NAN
    arrays["overlap_dynamic"][:, :, 1] = arrays["overlap_dynamic"][:, :, :, 1] = NAN
    table = hardness_table(arrays)
    assert (table["test_samples"][1], table["repeats"][1]) == (0, 0)
    assert table.loc[1, ["hardness", "loss", "step_50", "confused_with", "confused_share", "overlap"]].isna().all()
    np.testing.assert_allclose(table["overlap"], [0.45, NAN, 0.45], rtol=1e-6)  # with the other measured class alone


def test_a_class_never_confused_names_no_other():
    arrays = stored()
    arrays["confusion"][:, :, 0] = [10, 0, 0]
    table = hardness_table(arrays)
    assert table["confused_with"].isna().tolist() == [True, False, False]


def test_what_was_not_measured_is_nan():
    arrays = {
        name: values for name, values in stored().items() if name not in ("confusion", "overlap_dynamic", "overlap_static", "class_names")
    }
    table = hardness_table(arrays)
    assert table["name"].tolist() == ["0", "1", "2"]
    assert table[["overlap", "overlap_static", "confused_share", "confused_with", "test_samples"]].isna().all(axis=None)


def test_spearman_of_overlap_and_hardness():
    arrays = stored()
    np.testing.assert_allclose(overlap_hardness_spearman(arrays), [1, np.sqrt(3) / 2])  # hardness .1 .1 .5 has a tie
    arrays["accuracy_per_class"][:] = 0.5
    assert np.isnan(overlap_hardness_spearman(arrays)).all()
    two = {name: arrays[name][:, :, :2] for name in ("accuracy_per_class",)} | {"accuracy": arrays["accuracy"]}
    assert np.isnan(overlap_hardness_spearman(two | {"overlap_static": STATIC[:2, :2]})).all()


def test_correlation_agrees_with_scipy_and_leaves_nan_out():
    from scipy.stats import pearsonr, spearmanr

    x, y = np.random.default_rng(0).integers(0, 6, (2, 40)).astype(float)  # with ties
    assert correlation(x, y) == pytest.approx(pearsonr(x, y).statistic)
    assert correlation(x, y, ranks=True) == pytest.approx(spearmanr(x, y).statistic)
    assert correlation(np.append(x, NAN), np.append(y, 1.0)) == pytest.approx(correlation(x, y))
    assert np.isnan(correlation(x, np.full(40, 0.3)))
    assert np.isnan(correlation(x[:2], y[:2]))


def test_shares_and_overlaps_of_nothing_are_nan():
    np.testing.assert_allclose(row_shares(np.array([[1, 3], [0, 0]])), [[0.25, 0.75], [NAN, NAN]])
    np.testing.assert_allclose(mean_with_others(np.array([[1, NAN, NAN], [NAN, 1, 0.5], [NAN, 0.5, 1]])), [NAN, 0.5, 0.5])
