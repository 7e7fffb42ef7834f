"""Scores judged: detection by type, agreement, stability and ranks over data sets, against closed forms, scikit-learn and SciPy."""

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, rankdata, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from hardbench.errors import DataError
from hardbench.hard_samples import comparison, judged
from hardbench.hard_samples.joining import Sets, joined, matches
from hardbench.hard_samples.score_tables import detection_table, result_rows, sentences
from hardbench.hard_samples.subjects import Subject
from hardbench.rules import PLANT_TYPES

TYPES = ("mislabel", "unused", "zoom")


@pytest.fixture(scope="module")
def planted():
    return np.random.default_rng(0).permutation(np.repeat([0, 1, 3], [300, 20, 30]))


@pytest.fixture(scope="module")
def values(planted):
    """An oracle for one type, noise with a signal of three networks, its negative, and one that knows half of the samples."""
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(3, 350)) + 2.0 * (planted == 1)
    half = np.where(np.arange(350) % 2, signal.mean(0), np.nan)
    return {"oracle": (planted == 1).astype(float), "signal": signal, "turned": -signal, "half": half}


@pytest.fixture(scope="module")
def arrays(values, planted):
    return judged.detection_arrays(values, planted, TYPES, np.random.default_rng(2))


def test_positives_are_one_type_and_negatives_the_clean_ones(arrays, values, planted):
    assert arrays["detection_types"].tolist() == ["mislabel", "zoom"]
    np.testing.assert_allclose(arrays["detection_base_rate"], [20 / 320, 30 / 330])
    for p, code in enumerate((1, 3)):
        rows = np.isin(planted, (0, code))
        mean = values["signal"].mean(0)[rows]
        assert arrays["detection_ap"][1, p] == pytest.approx(average_precision_score(planted[rows] == code, mean))
        assert arrays["detection_auroc"][1, p] == pytest.approx(roc_auc_score(planted[rows] == code, mean))
        assert arrays["detection_auroc"][2, p] == pytest.approx(1 - arrays["detection_auroc"][1, p])
        for r in range(3):
            expected = average_precision_score(planted[rows] == code, values["signal"][r][rows])
            assert arrays["detection_ap_repeats"][1, p, r] == pytest.approx(expected)
    assert arrays["detection_ap"][0, 0] == arrays["detection_precision"][0, 0] == arrays["detection_low"][0, 0] == 1
    assert np.isnan(arrays["detection_ap_repeats"][0]).all()  # of all networks together
    assert (arrays["detection_low"] <= arrays["detection_ap"]).all() and (arrays["detection_ap"] <= arrays["detection_high"]).all()


def test_a_score_of_some_samples_is_judged_on_these(arrays, values, planted):
    known = np.isfinite(values["half"])
    assert arrays["detection_n"][3].tolist() == [(known & np.isin(planted, (0, code))).sum() for code in (1, 3)]
    rows = known & np.isin(planted, (0, 1))
    expected = average_precision_score(planted[rows] == 1, values["half"][rows])
    assert arrays["detection_ap"][3, 0] == pytest.approx(expected)
    table = detection_table(arrays)
    (row,) = table[(table.score == "half") & (table.type == "mislabel")].to_dict("records")
    assert (row["n"], row["repeat"]) == (rows.sum(), "all")
    assert row["base_rate"] == pytest.approx((planted[rows] == 1).mean())


def test_tables_say_what_is_best_and_what_is_below_the_base_rate(arrays, planted):
    _, columns, rows = result_rows(arrays)
    assert columns == ["score", "mislabel (0.062)", "zoom (0.091)", "mean"]
    assert rows[0][:2] == ["oracle", "1.000"]
    means = [float(row[-1]) for row in rows]
    assert means == sorted(means, reverse=True)
    line = sentences({**arrays, "labels": planted})[0]
    assert line.startswith("mislabel: best found by oracle, 1.000 [1.000, 1.000] at base rate 0.062; below the base rate: turned")


def test_without_planting_there_is_no_detection(values):
    assert judged.detection_arrays(values, np.zeros(350, int), TYPES, np.random.default_rng(0)) == {}
    assert judged.hard_count(np.zeros(350, int)) == round(0.05 * 350)
    assert judged.hard_count(np.array([0, 2, 2])) == 2


def test_detectors_of_sets():
    planted, called = np.array([0, 0, 0, 0, 1, 1, 3, 3]), np.array([1, 0, 0, 0, 1, 1, 1, 0], dtype=bool)
    found = judged.set_arrays("name", called, planted, TYPES)
    assert found["name_recall"].tolist() == [1, 0.5]
    assert found["name_precision"].tolist() == [2 / 3, 0.5]  # among the clean ones and those of the type


def test_the_hardest_are_those_of_the_highest_score_and_ties_are_drawn():
    values = np.array([3.0, 1, 1, 1, 0, np.nan])
    drawn = np.stack([judged.hardest(values, 2, np.random.default_rng(seed)) for seed in range(900)])
    assert (drawn.sum(1) == 2).all() and drawn[:, 0].all() and not drawn[:, 4:].any()
    assert np.abs(drawn[:, 1:4].mean(0) - 1 / 3).max() < 4 * np.sqrt(2 / 9 / 900)
    assert judged.hardest(values, 6, np.random.default_rng(0)).tolist() == [True] * 5 + [False]
    both = judged.hardest(np.stack([values, -values]), 1, np.random.default_rng(0))
    assert both.nonzero()[1].tolist() == [0, 4]


def test_ranks_are_those_of_scipy():
    values = np.random.default_rng(0).integers(0, 5, 40).astype(float)
    np.testing.assert_array_equal(judged.ranks(values), rankdata(-values, "min"))
    assert judged.ranks(np.array([1.0, np.nan, 2.0])).tolist()[::2] == [2, 1]


def test_agreement_and_stability(values):
    labels = np.arange(350) % 2
    found = judged.agreement_arrays(values, labels, 3, 35, np.random.default_rng(0))
    mean = values["signal"].mean(0)
    known = labels == 1
    assert found["agreement_spearman"][1, 2] == pytest.approx(-1)
    assert found["agreement_spearman"][0, 1] == pytest.approx(spearmanr(values["oracle"], mean).statistic)
    assert found["agreement_spearman"][3, 0] == pytest.approx(spearmanr(mean[known], values["oracle"][known]).statistic)
    pairs = [spearmanr(values["signal"][i], values["signal"][j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found["stability_spearman"][1] == pytest.approx(np.mean(pairs))
    assert np.isnan(found["stability_spearman"][[0, 3]]).all() and np.isnan(found["stability_z"][[0, 3]]).all()
    assert found["stability_z"][1] > 3 and found["agreement_jaccard"][1, 2] == 0
    easier = (rankdata(mean) - 0.5) / 350
    np.testing.assert_allclose(found["class_rank"][1, :2], [easier[labels == c].mean() for c in (0, 1)])
    assert np.isnan(found["class_rank"][3, 0]) and np.isnan(found["class_rank"][:, 2]).all()


def test_the_hardest_of_every_class():
    values, labels = np.array([5.0, 1, 4, np.nan, 3]), np.array([0, 1, 0, 1, 0])
    rows = judged.hardest_of_classes({"a": values, "b": np.stack([-values, -values])}, labels, 3)
    assert rows.shape == (2, 3, 12)
    assert rows[0, :, :3].tolist() == [[0, 2, 4], [1, -1, -1], [-1, -1, -1]]
    assert rows[1, 0, :3].tolist() == [4, 2, 0]


# over data sets


def test_friedman_is_that_of_scipy_with_ties():
    rng = np.random.default_rng(0)
    for values in (rng.random((7, 4)), rng.integers(0, 3, (9, 5)).astype(float)):
        ranks, statistic, p = comparison.friedman(values)
        expected = friedmanchisquare(*values.T)
        np.testing.assert_allclose([statistic, p], [expected.statistic, expected.pvalue])
        np.testing.assert_allclose(ranks, np.stack([rankdata(-row) for row in values]).mean(0))
    assert np.isnan(comparison.friedman(np.ones((5, 3)))[1])


@pytest.mark.parametrize(("k", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_differences_have_the_published_quantiles(k, q):
    """Demsar 2006, table 5(a), alpha .05; for four treatments and 14 data sets his example has 1.25."""
    assert comparison.critical_difference(k, 6) / np.sqrt(k * (k + 1) / 36) == pytest.approx(q, abs=1e-3)
    assert comparison.critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def _judged(rng, scores=("a", "b", "c"), types=("mislabel", "zoom")):
    return {"detection_scores": np.array(scores), "detection_types": np.array(types), "detection_ap": rng.random((len(scores), len(types)))}


def test_seeds_of_a_data_set_are_averaged_before_ranks():
    rng = np.random.default_rng(0)
    runs = [_judged(rng) for _ in range(6)]
    runs[3] = {name: array[::-1] for name, array in runs[3].items()}  # its scores in another order
    runs[3]["detection_types"], runs[3]["detection_ap"] = np.array(["zoom", "mislabel"]), runs[3]["detection_ap"][:, ::-1]
    runs[2]["detection_scores"] = np.array(["a", "b", "other"])
    found = comparison.friedman_arrays(runs, ["p", "q", "r", "q", "s", "t"])
    assert found["friedman_scores"].tolist() == ["a", "b"] and found["friedman_types"].tolist() == ["mislabel", "zoom"]
    assert found["friedman_datasets"].tolist() == ["p", "q", "r", "s", "t"] and int(found["friedman_blocks"]) == 5
    other = runs[3]["detection_ap"][::-1, ::-1]
    np.testing.assert_allclose(found["friedman_ap"][:, 1], ((runs[1]["detection_ap"] + other) / 2)[:2].T)
    np.testing.assert_allclose(found["friedman_ranks"], [comparison.friedman(block)[0] for block in found["friedman_ap"]])
    assert found["friedman_critical_difference"] == pytest.approx(np.full(2, comparison.critical_difference(2, 5)))


def test_fewer_than_five_data_sets_are_not_compared():
    rng = np.random.default_rng(0)
    runs = [_judged(rng) for _ in range(6)]
    assert comparison.friedman_arrays(runs, ["p", "q", "r", "s", "p", "q"]) == {}
    assert comparison.friedman_arrays([*runs[:5], {}], ["p", "q", "r", "s", "t", "u"]) == {}
    assert comparison.friedman_arrays([_judged(rng, ("a",)) for _ in range(5)], list("pqrst")) == {}


# joins


def _sets(values, fingerprint, index, labels, planted=None):
    return Sets("other", np.array(values, dtype=float), *(np.array(part) for part in (fingerprint, index, labels)), planted)


def test_samples_are_found_by_their_fingerprints():
    """Of equal inputs the one of the same index; of an unknown one there is none."""
    own, others = np.array([7, 8, 9, 7]), np.array([7, 7, 8])
    assert matches(own, np.array([1, 2, 3, 4]), others, np.array([4, 1, 99])).tolist() == [1, 2, -1, 0]
    sets = _sets([[1, 0, 1], [0, 0, np.nan]], others, [4, 1, 99], [5, 5, 6])
    assert sets.shared(own, np.array([1, 2, 3, 4])) == 3
    found = joined(sets, own, np.array([1, 2, 3, 4]), np.array([5, 6, 0, 5]), None)
    np.testing.assert_array_equal(found, [[0, 1, np.nan, 1], [0, np.nan, np.nan, 0]])


def test_wrong_labels_are_no_plant_of_the_other_run():
    """A training with label noise, and a search that saw the same: nothing is planted for the search, and its stragglers are joined."""
    labels, clean = np.array([1, 0, 2]), np.array([1, 2, 2])
    arrays = {"logits": np.zeros((1, 1, 3, 3), np.float32), "steps": np.array([1]), "labels": labels, "clean": clean, "index": np.arange(3)}
    subject = Subject.of(arrays | {"fingerprint": np.array([7, 8, 9])}, "training", "mnist", 0.1, 0)
    subject.join([_sets([[0, 1, 0]], [7, 8, 9], [0, 1, 2], labels, np.zeros(3, dtype=int))])
    assert subject.truth["planted"].tolist() == [0, 1, 0]
    assert subject.values(["stragglers"])["stragglers"].tolist() == [[0, 1, 0]]


def test_the_base_rate_is_that_of_the_samples_with_a_score():
    """One score has half of the clean samples: .07 is above the base rate of all samples, and below that of its own."""
    arrays = {
        "detection_types": np.array(["shift"]),
        "detection_scores": np.array(["all", "some"]),
        "detection_ap": np.array([[0.06], [0.07]]),
    }
    arrays |= {"detection_low": np.zeros((2, 1)), "detection_high": np.ones((2, 1)), "detection_base_rate": np.array([0.05])}
    arrays |= {
        "detection_positives": np.array([[50], [50]]),
        "detection_n": np.array([[1000], [550]]),
        "missing_scores": np.array([], dtype=str),
    }
    line = sentences({**arrays, "missing_why": np.array([], dtype=str), "labels": np.zeros(1000)})[0]
    assert line.endswith("at base rate 0.091; below the base rate: some")


def test_samples_of_other_labels_or_other_plants_are_refused():
    own, index, labels = np.array([7, 8]), np.array([0, 1]), np.array([1, 2])
    with pytest.raises(DataError, match=r"^runs: other; .* none of them"):
        joined(_sets([[0]], [6], [0], [1]), own, index, labels, None)
    with pytest.raises(DataError, match=r"^runs: other; .* 1 of 2 have another label there$"):
        joined(_sets([[0, 1]], [7, 8], [0, 1], [1, 1]), own, index, labels, None)
    with pytest.raises(DataError, match=r"^runs: other; .* 2 of 2 have another planted hardness there$"):
        joined(_sets([[0, 1]], [7, 8], [0, 1], [1, 2], np.array([3, 3])), own, index, labels, np.array([0, 1]))
    close = np.array([0, PLANT_TYPES.index("mislabel_close") + 1])  # its wrong class is that of the network's own kind
    other = _sets([[0, 1]], [7, 8], [0, 1], [labels[0], labels[1] + 1], close)
    assert joined(other, own, index, labels, close).tolist() == [[0, 1]]
