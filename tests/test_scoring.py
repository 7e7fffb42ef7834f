"""Scores that need all networks, their bootstrap, labels that are called wrong (as cleanlab calls them) and prediction depth."""

import itertools

import numpy as np
import pytest
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.spatial.distance import jensenshannon
from sklearn.neighbors import NearestNeighbors

from hardbench.errors import ConfigError
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.scores.depth import NEIGHBOURS, depth, neighbour_votes
from hardbench.hard_samples.scoring import bootstrap_error, confident_learning, ensemble, lacking, out_of_sample, values
from hardbench.registry import SCORES

OVER_NETWORKS = ("consistency", "disagreement", "memorization", "normalised_margin", "self_confidence")


def recording(logits, labels=None, **more):
    """A recording of logits at one point, [R, N, K]; labels are 0 unless they are given."""
    logits = torch.as_tensor(logits)
    labels = torch.zeros(logits.shape[1], dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    return Recording(logits[:, None], labels, torch.ones(1), torch.arange(len(labels)), **more)


def drawn(seed, networks, samples=6, classes=3):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(networks, samples, classes, generator=generator)
    membership = torch.rand(networks, samples, generator=generator) < 0.6
    return recording(logits, torch.randint(0, classes, (samples,), generator=generator), membership=membership)


def score(name, found):
    return values(found, [name])[name].numpy()


RIGHT = torch.tensor([[1, 1, 0, 1], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]])  # four networks, four samples
TRAINED = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1]], dtype=torch.bool)


def test_memorization_and_consistency_are_shares_of_networks():
    found = recording(torch.stack([RIGHT, 1 - RIGHT], -1).float(), membership=TRAINED)
    np.testing.assert_allclose(score("memorization", found), [0, 1, 1 / 3, np.nan])
    np.testing.assert_allclose(score("consistency", found), [0, 1, 1, np.nan])
    none = recording(found.logits[:, 0], membership=torch.zeros(4, 4, dtype=torch.bool))
    np.testing.assert_allclose(score("consistency", none), 1 - RIGHT.double().mean(0))
    assert np.isnan(score("memorization", none)).all()


def test_out_of_sample_probabilities_are_the_means_of_the_others():
    p = torch.tensor([[[0.9, 0.1, 0.0], [0.2, 0.5, 0.3]], [[0.7, 0.2, 0.1], [0.0, 0.2, 0.8]], [[0.1, 0.1, 0.8], [0.6, 0.4, 0.0]]])
    membership = torch.tensor([[False, True], [False, True], [True, True]])
    found = recording(p.double().log(), torch.tensor([0, 2]), membership=membership)
    np.testing.assert_allclose(out_of_sample(found), [[0.8, 0.15, 0.05], [np.nan] * 3], rtol=1e-6)
    np.testing.assert_allclose(score("self_confidence", found), [0.2, np.nan], rtol=1e-6)
    np.testing.assert_allclose(score("normalised_margin", found), [-0.65, np.nan], rtol=1e-6)


def test_disagreement_is_the_mean_divergence_of_pairs():
    certain = 1e4 * torch.eye(3)
    assert score("disagreement", recording(certain[[0, 0]][:, None])).item() == 0
    assert score("disagreement", recording(certain[[0, 1]][:, None])).item() == pytest.approx(np.log(2))
    assert score("disagreement", recording(certain[[0, 1, 0, 1]][:, None])).item() == pytest.approx(np.log(2) * 4 / 6)
    found = drawn(0, 5)
    p = found.logits[:, 0].double().softmax(-1).numpy()
    expected = [np.mean([jensenshannon(p[i, n], p[j, n]) ** 2 for i, j in itertools.combinations(range(5), 2)]) for n in range(6)]
    np.testing.assert_allclose(score("disagreement", found), expected, rtol=1e-6)


def test_many_samples_are_scored_in_blocks():
    """More than go into one block: each sample as it is alone."""
    found = drawn(1, 300, samples=100)
    for name in OVER_NETWORKS:
        whole = score(name, found)
        for rows in (slice(0, 3), slice(97, 100)):
            np.testing.assert_allclose(whole[rows], score(name, found.samples(rows)), rtol=1e-10, err_msg=name)


def test_a_mean_over_networks_leaves_out_those_without_a_score():
    value = torch.tensor([[1.0, 2.0], [3.0, torch.nan], [torch.nan, torch.nan]])
    assert ensemble(value).tolist() == [2, 2]
    assert ensemble(value[0]).tolist() == [1, 2]


# errors


@pytest.mark.parametrize("name", sorted(set(OVER_NETWORKS) - {"disagreement"}))
def test_the_error_is_the_deviation_over_drawn_networks(name):
    """The scores of recordings that are made of the drawn networks, one by one."""
    found = drawn(2, 5)
    drawn_networks = np.random.default_rng(7).multinomial(5, [0.2] * 5, size=50)
    scores = [score(name, found.networks(torch.from_numpy(np.repeat(np.arange(5), count)))) for count in drawn_networks]
    defined = np.isfinite(scores).sum(0)
    assert defined.min() < 50  # some resamples have no network that left a sample out
    expected = np.where(defined > 1, np.nanstd(scores, axis=0, ddof=1), np.nan)
    np.testing.assert_allclose(bootstrap_error(found, name, np.random.default_rng(7), 50), expected, rtol=1e-9, atol=1e-12)


def test_the_error_of_disagreement_leaves_out_copies():
    found = drawn(3, 4)
    counts = np.random.default_rng(0).multinomial(4, [0.25] * 4, size=60)
    pairs = list(itertools.combinations(range(4), 2))
    single = {pair: score("disagreement", found.networks(torch.tensor(pair))) for pair in pairs}
    weights = np.array([[count[i] * count[j] for i, j in pairs] for count in counts], dtype=float)
    weights = weights[weights.sum(1) > 0]
    expected = (weights @ np.stack([single[pair] for pair in pairs]) / weights.sum(1, keepdims=True)).std(0, ddof=1)
    np.testing.assert_allclose(bootstrap_error(found, "disagreement", np.random.default_rng(0), 60), expected, rtol=1e-6)


def test_the_error_of_a_share_is_that_of_the_binomial_law():
    """A share of R networks: sqrt(s (1 - s) / R), within four standard errors of 2 000 resamples."""
    right = torch.arange(40)[:, None] < torch.tensor([[4, 20, 40]])
    found = recording(torch.stack([right, ~right], -1).float(), membership=torch.zeros(40, 3, dtype=torch.bool))
    share = np.array([0.1, 0.5, 1])
    error = bootstrap_error(found, "consistency", np.random.default_rng(1), 2000).numpy()
    np.testing.assert_allclose(error, np.sqrt(share * (1 - share) / 40), rtol=4 / np.sqrt(2 * 2000))


def test_the_control_has_no_error():
    assert bootstrap_error(drawn(0, 2), "random", np.random.default_rng(0)).tolist() == [0] * 6


# what is missing


def test_what_a_recording_lacks_is_said():
    found = recording(torch.zeros(1, 4, 3))
    known = {name: lacking(found, name) for name in SCORES}
    assert {name for name, text in known.items() if text is None} == {
        *("loss", "softmax_confidence", "entropy", "margin", "confidence", "energy", "wrong_at_end", "random")
    }
    assert known["self_confidence"] == known["consistency"] == "needs --train-share"
    assert known["disagreement"] == "needs --repeats 2 or more"
    assert known["aum"] == "needs two recorded points or more (--record-points epochs)"
    assert known["prototypicality"] == "needs the array class_cosine"
    assert known["stragglers"] == "needs a run of invert or stragglers"
    assert "networks" in known["prediction_depth"]
    assert lacking(found, "prediction_depth", lambda r: []) is None
    all_on_all = recording(torch.zeros(2, 4, 3), membership=torch.ones(2, 4, dtype=torch.bool))
    assert lacking(all_on_all, "memorization") == "needs --train-share"
    with pytest.raises(ConfigError, match=r"^score: memorization; needs --train-share$"):
        values(all_on_all, ["loss", "memorization"])


# labels that are called wrong


def probabilities(rng, samples, classes, sharpness):
    """Labels, a fifth of them wrong, and probabilities of a model that is not sure, some classes more probable than others."""
    true = rng.integers(0, classes, samples)
    logits = sharpness * rng.normal(size=(samples, classes)) + rng.normal(size=classes)
    logits[np.arange(samples), true] += rng.uniform(0, 4)
    labels = np.where(rng.random(samples) < 0.2, rng.integers(0, classes, samples), true)
    return labels, logits


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 5.0])
def test_the_labels_that_cleanlab_calls_wrong(sharpness):
    """The set of its find_label_issues. Where shares of samples round equally well up and down, a sample or two may be others."""
    differ = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        samples, classes = int(rng.integers(300, 3000)), int(rng.integers(2, 11))
        labels, logits = probabilities(rng, samples, classes, sharpness)
        found = recording(logits[None], labels, membership=torch.zeros(1, samples, dtype=torch.bool))
        expected = find_label_issues(labels, out_of_sample(found).numpy(), n_jobs=1)
        assert expected.sum() > 10
        differ.append(int((confident_learning(found).numpy() != expected).sum()))
    assert max(differ) <= 2 and differ.count(0) >= 10


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_cleanlabs_label_quality(seed):
    """From the samples that it says have the worst labels on, our scores fall; and they are one minus its own."""
    labels, logits = probabilities(np.random.default_rng(seed), 500, 4, 3.0)
    found = recording(logits[None], labels, membership=torch.zeros(1, 500, dtype=torch.bool))
    p = out_of_sample(found).numpy()
    for ours, theirs in (("self_confidence", "self_confidence"), ("normalised_margin", "normalized_margin")):
        quality = get_label_quality_scores(labels, p, method=theirs)
        hardness = score(ours, found)
        assert len(np.unique(quality)) > 490
        np.testing.assert_array_equal(np.argsort(quality, kind="stable"), np.argsort(-hardness, kind="stable"))
        np.testing.assert_allclose(hardness, 1 - quality if ours == "self_confidence" else 1 - 2 * quality, atol=1e-12)


def test_labels_nobody_can_judge_are_not_called_wrong():
    """Samples that all networks trained on; they do not count for the thresholds either."""
    labels, logits = probabilities(np.random.default_rng(0), 200, 3, 1.0)
    logits[100:] = 50 * np.eye(3)[(labels[100:] + 1) % 3]
    membership = (torch.arange(200) >= 100).expand(1, -1)
    called = confident_learning(recording(logits[None], labels, membership=membership))
    first = recording(logits[None, :100], labels[:100], membership=membership[:, :100])
    assert called[:100].any() and torch.equal(called[:100], confident_learning(first))
    assert not called[100:].any()


# prediction depth


def test_depth_is_the_layer_from_which_on_all_agree():
    predicted = torch.tensor([0, 0, 0, 0, 1])
    votes = torch.tensor([[0, 1, 0, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 0]])
    assert depth(predicted, votes).tolist() == [0, 1, 2, 3, 3]
    assert depth(predicted, []).tolist() == [0] * 5


@pytest.mark.parametrize("block", [1 << 24, 3000])
def test_votes_are_those_of_scikit_learns_neighbours(monkeypatch, block):
    monkeypatch.setattr("hardbench.hard_samples.scores.depth.BLOCK", block)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 300)
    layer = rng.normal(size=(300, 6)) + 1.5 * rng.normal(size=(4, 6))[labels]
    trained = rng.random(300) < 0.8
    near = NearestNeighbors(n_neighbors=NEIGHBOURS + 1, metric="cosine").fit(layer[trained]).kneighbors(layer, return_distance=False)
    rows = np.flatnonzero(trained)[near]
    others = [[row for row in own if row != n][:NEIGHBOURS] for n, own in enumerate(rows)]
    expected = [np.bincount(labels[own], minlength=4).argmax() for own in others]
    votes = neighbour_votes(torch.from_numpy(layer), torch.from_numpy(labels), torch.from_numpy(trained), 4)
    np.testing.assert_array_equal(votes, expected)
    assert 0.4 < (votes.numpy() == labels).mean() < 1


def test_prediction_depth_of_layers_made_by_hand():
    """Two networks on two classes of 40 samples: the first layer is noise, the next separate the classes as the network does or swapped."""
    labels = torch.arange(80) % 2
    noise = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
    apart = torch.nn.functional.one_hot(labels, 5) + 0.01 * noise
    logits = torch.nn.functional.one_hot(labels, 2).float().expand(2, -1, -1).clone()
    logits[1, 0] = torch.tensor([0.0, 1.0])  # network 1 predicts another class than its neighbours have
    found = recording(logits, labels)
    layers = [[noise, apart, apart], [apart, apart, noise]]
    depths = values(found, ["prediction_depth"], lambda r: iter(layers[r]))["prediction_depth"]
    agrees = neighbour_votes(noise, labels, torch.ones(80, dtype=torch.bool), 2) == labels
    assert 0.2 < agrees.double().mean() < 0.8
    assert torch.equal(depths[0], torch.where(agrees, 0.0, 1.0).double())
    assert torch.equal(depths[1, 1:], torch.where(agrees, 0.0, 3.0).double()[1:])
    assert depths[1, 0] == (2 if agrees[0].logical_not() else 3)


def test_fewer_samples_than_neighbours_all_vote():
    labels = torch.tensor([0, 0, 0, 1, 1])
    layer = torch.eye(5)
    assert neighbour_votes(layer, labels, torch.ones(5, dtype=torch.bool), 2).tolist() == [0, 0, 0, 0, 0]
    assert neighbour_votes(layer, labels, torch.tensor([True, False, False, True, True]), 2).tolist() == [1, 1, 1, 0, 0]
