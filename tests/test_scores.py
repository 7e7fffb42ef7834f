"""Hardness scores, which samples they call hard, how well they find wrong labels, and whether they agree: by closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies
from scipy.stats import hypergeom, spearmanr
from sklearn.metrics import jaccard_score

from hardbench.hard_samples.cuts import HardEasyOrder
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.scoring import lacking, values
from hardbench.hard_samples.selection import hardest, hardest_at_level
from hardbench.inversion import agreement
from hardbench.registry import SCORES
from hardbench.seeding import Seeds

TEN = torch.arange(1.0, 11.0)  # epochs


def recording(logits, labels=None, epochs=None, **more):
    """A recording of logits [R, T, N, K]; labels are 0 unless they are given."""
    logits = torch.as_tensor(logits)
    labels = torch.zeros(logits.shape[2], dtype=torch.int64) if labels is None else labels
    epochs = torch.arange(1.0, logits.shape[1] + 1) if epochs is None else epochs
    return Recording(logits, labels, epochs, more.pop("index", torch.arange(len(labels))), **more)


def score(name, *words, **more):
    """A score of a recording made from the words, as an array."""
    return values(recording(*words, **more), [name])[name].numpy()


def drawn(seed, networks=3, points=4, samples=7, classes=3, dtype=torch.float32, scale=3.0):
    """A recording with everything in it but stragglers, at random; a membership in which every sample is left out by some network."""
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(networks, points, samples, classes, generator=generator)).to(dtype)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    more = {name: torch.rand(networks, points, samples, generator=generator) for name in ("feature_norm", "class_cosine")}
    membership = torch.rand(networks, samples, generator=generator) < 0.6
    membership[torch.randint(0, networks, (samples,), generator=generator), torch.arange(samples)] = False
    stragglers = torch.rand(networks, samples, generator=generator) < 0.2
    return recording(logits, labels, membership=membership, stragglers=stragglers, index=torch.arange(samples) * 3 + 5, **more)


def every(found):
    """All scores of a recording that need no network."""
    return values(found, [name for name in SCORES if lacking(found, name) is None])


ALL = sorted(set(SCORES) - {"prediction_depth"})
PER_NETWORK = sorted(name for name in ALL if "repeats" not in SCORES[name].reads)
BY_LOGITS = sorted(name for name in PER_NETWORK if SCORES[name].reads <= {"time"})


def test_scores_are_their_formulas():
    """Worked out once more from the definitions, in numpy, sample by sample."""
    found = drawn(0, networks=2, points=10, samples=5)
    z, y = found.logits.double().numpy(), found.labels.numpy()
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    scores, rows = every(found), np.arange(5)
    assert set(scores) == set(ALL)
    o = np.eye(3)[y]
    own, others = p[..., rows, y], np.where(o, -np.inf, p).max(-1)
    right = p.argmax(-1) == y
    norm, cosine = found.feature_norm.double().numpy(), found.class_cosine.double().numpy()
    learned = [[next((t + 1 for t in range(10) if right[r, t:, n].all()), 11) for n in range(5)] for r in range(2)]
    expected = {
        "loss": -np.log(own[:, -1]),
        "mean_loss": -np.log(own).mean(1),
        "softmax_confidence": 1 - p[:, -1].max(-1),
        "entropy": -(p[:, -1] * np.log(p[:, -1])).sum(-1),
        "margin": others[:, -1] - own[:, -1],
        "confidence": -z[:, -1].max(-1),
        "energy": -np.log(np.exp(z[:, -1]).sum(-1)),
        "aum": (np.where(o, -np.inf, z).max(-1) - z[..., rows, y]).mean(1),
        "el2n": np.linalg.norm(p[:, 0] - o, axis=-1),  # of ten epochs the first
        "grand": np.linalg.norm(p[:, 0] - o, axis=-1) * np.sqrt(1 + norm[:, 0] ** 2),
        "data_maps_confidence": 1 - own.mean(1),
        "data_maps_variability": own.std(1),
        "data_maps_correctness": 1 - right.mean(1),
        "aleatoric": (own * (1 - own)).mean(1),
        "forgetting": np.where(right.any(1), (right[:, :-1] & ~right[:, 1:]).sum(1), 10),
        "iteration_learned": learned,
        "prototypicality": 1 - cosine[:, -1],
        "wrong_at_end": ~right[:, -1],
        "stragglers": found.stragglers,
    }
    assert set(expected) == set(PER_NETWORK)
    for name, value in expected.items():
        np.testing.assert_allclose(scores[name], value, rtol=1e-12, atol=1e-14, err_msg=name)


def patterns(*rows, size=1.0):
    """Logits of one network on samples of class 0 of two, right where a row has a 1: (size, 0) or (0, size)."""
    right = torch.tensor(rows, dtype=torch.float64).T  # [T, N]
    return size * torch.stack([right, 1 - right], -1)[None]


def test_always_right_never_learned_and_forgotten():
    logits = patterns(
        [1] * 8, [0] * 8, [0, 1, 0, 1, 0, 1, 1, 1], [1, 0, 1, 0, 1, 0, 1, 0], [0] * 7 + [1], [0, 0, 0, 1, 1, 1, 1, 1], size=1e4
    )
    expected = {
        "forgetting": [0, 8, 2, 4, 0, 0],
        "iteration_learned": [1, 9, 6, 9, 8, 4],
        "data_maps_correctness": [0, 1, 3 / 8, 1 / 2, 7 / 8, 3 / 8],
        "data_maps_confidence": [0, 1, 3 / 8, 1 / 2, 7 / 8, 3 / 8],
        "data_maps_variability": np.sqrt([0, 0, 15 / 64, 1 / 4, 7 / 64, 15 / 64]),
        "aleatoric": [0] * 6,
        "aum": np.array([-8, 8, -2, 0, 6, -2]) * 1e4 / 8,
        "mean_loss": np.array([0, 8, 3, 4, 7, 3]) * 1e4 / 8,
        "el2n": np.sqrt(2) * np.array([0, 1, 1, 0, 1, 1]),
        "wrong_at_end": [0, 1, 0, 1, 0, 0],
        "loss": [0, 1e4, 0, 1e4, 0, 0],
        "margin": [-1, 1, -1, 1, -1, -1],
    }
    for name, value in expected.items():
        np.testing.assert_allclose(score(name, logits), [value], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_uniform_probabilities(classes):
    """Of equal logits the first class is predicted: right for label 0, wrong for 1."""
    u, labels = 1 / classes, torch.tensor([0, 1])
    logits = torch.full((1, 4, 2, classes), 2.0)
    expected = {
        "loss": np.log(classes),
        "mean_loss": np.log(classes),
        "softmax_confidence": 1 - u,
        "entropy": np.log(classes),
        "margin": 0,
        "confidence": -2,
        "energy": -2 - np.log(classes),
        "aum": 0,
        "el2n": np.sqrt(1 - u),
        "data_maps_confidence": 1 - u,
        "data_maps_variability": 0,
        "aleatoric": u * (1 - u),
        "data_maps_correctness": [0, 1],
        "forgetting": [0, 4],
        "iteration_learned": [1, 5],
        "wrong_at_end": [0, 1],
    }
    assert set(expected) == set(BY_LOGITS)
    for name, value in expected.items():
        np.testing.assert_allclose(score(name, logits, labels), [np.broadcast_to(value, 2)], rtol=1e-12, atol=1e-12, err_msg=name)


def test_one_hot_probabilities():
    """Logits of +-1e4: certain and right, certain and wrong. Every number is finite."""
    logits = torch.full((1, 4, 2, 3), -1e4)
    logits[..., 0] = 1e4
    expected = {
        "loss": [0, 2e4],
        "mean_loss": [0, 2e4],
        "softmax_confidence": [0, 0],
        "entropy": [0, 0],
        "margin": [-1, 1],
        "confidence": [-1e4, -1e4],
        "energy": [-1e4, -1e4],
        "aum": [-2e4, 2e4],
        "el2n": [0, np.sqrt(2)],
        "data_maps_confidence": [0, 1],
        "data_maps_variability": [0, 0],
        "aleatoric": [0, 0],
        "data_maps_correctness": [0, 1],
        "forgetting": [0, 4],
        "iteration_learned": [1, 5],
        "wrong_at_end": [0, 1],
    }
    assert set(expected) == set(BY_LOGITS)
    for dtype in (torch.float16, torch.float32, torch.float64):
        for name, value in expected.items():
            found = score(name, logits.to(dtype), torch.tensor([0, 1]))
            np.testing.assert_allclose(found, [value], rtol=2e-4, atol=1e-12, err_msg=name)  # float16 has 1e4 exactly


def test_samples_that_are_nearly_certain_keep_their_order():
    """Where 1 - p_y is below the rounding of 1, scores are those of the exact numbers; so logits of long training do not become ties."""
    margins = torch.tensor([20.0, 30.0, 40.0, 80.0])
    logits = torch.stack([margins, torch.zeros(4), torch.full((4,), -200.0)], -1).expand(1, 3, 4, 3)
    error = np.exp(-margins.double().numpy())
    for name in ("loss", "mean_loss", "softmax_confidence", "data_maps_confidence", "aleatoric"):
        np.testing.assert_allclose(score(name, logits), [error], rtol=1e-6, err_msg=name)
    np.testing.assert_allclose(score("el2n", logits), [np.sqrt(2) * error], rtol=1e-6)
    np.testing.assert_allclose(score("entropy", logits)[0, :2], (error * (1 + margins.numpy()))[:2], rtol=1e-2)


def test_every_score_of_logits_is_higher_for_a_sample_that_is_less_clear():
    """Right with a large margin, right later and with a small one: the second is the harder for every score that tells right ones apart."""
    logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 0.1, 0.0]], [[9.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])[None]
    for name in BY_LOGITS:
        (clear, unclear) = score(name, logits)[0]
        assert unclear >= clear if name in ("wrong_at_end", "forgetting") else unclear > clear, name
    stragglers = torch.tensor([[False, True]])
    assert score("stragglers", logits, stragglers=stragglers).tolist() == [[0, 1]]


def test_a_network_that_stopped_counts_up_to_its_last_point():
    """Its scores are those of a recording that ends there; one that was never measured has none, and is left out of the ensemble's."""
    found = drawn(1, networks=3, points=5)
    logits, norm, cosine = found.logits.clone(), found.feature_norm.clone(), found.class_cosine.clone()
    for values_ in (logits, norm, cosine):
        values_[1, 3:] = torch.nan
        values_[2] = torch.nan
    more = {"membership": found.membership, "stragglers": found.stragglers}
    whole = recording(logits, found.labels, feature_norm=norm, class_cosine=cosine, **more)
    short = recording(logits[:2, :3], found.labels, TEN[[0, 1, 4]], feature_norm=norm[:2, :3], class_cosine=cosine[:2, :3]).repeat(1)
    expected = values(short, [name for name in PER_NETWORK if name != "stragglers"])
    scores = every(whole)
    for name, value in expected.items():
        np.testing.assert_array_equal(scores[name][1], value[0], err_msg=name)
        assert scores[name][2].isnan().all(), name
    for name in set(ALL) - set(PER_NETWORK) - {"random"}:
        two = values(whole.networks(slice(0, 2)), [name])[name]
        np.testing.assert_allclose(scores[name], two, rtol=1e-12, err_msg=name)


def test_early_scores_look_at_the_nearest_point():
    logits = torch.zeros(1, 10, 1, 2)
    logits[0, :, 0, 1] = TEN
    for early, epoch in ((0.1, 1), (0.29, 3), (0.25, 2), (1.0, 10), (0.0, 1)):
        p = 1 / (1 + np.exp(epoch))
        np.testing.assert_allclose(score("el2n", logits, epochs=TEN, early=early), np.sqrt(2) * (1 - p), rtol=1e-6)
    half = score("el2n", logits, epochs=TEN / 2, early=0.1)  # two points an epoch
    np.testing.assert_array_equal(half, score("el2n", logits, epochs=TEN, early=0.1))


SEEDS = strategies.integers(0, 2**32)


@settings(max_examples=15, deadline=None)
@given(SEEDS, strategies.integers(2, 5), strategies.integers(2, 6), strategies.integers(1, 40), strategies.integers(2, 11))
def test_a_network_in_the_stack_scores_as_alone_bit_for_bit(seed, networks, points, samples, classes):
    for dtype in (torch.float16, torch.float32):
        found = drawn(seed, networks, points, samples, classes, dtype)
        stacked = values(found, PER_NETWORK)
        for r in range(networks):
            own = {name: getattr(found, name)[r : r + 1].clone() for name in ("feature_norm", "class_cosine", "stragglers")}
            alone = values(recording(found.logits[r : r + 1].clone(), found.labels, **own), PER_NETWORK)
            for name in PER_NETWORK:
                np.testing.assert_array_equal(stacked[name][r], alone[name][0], err_msg=name)


@settings(max_examples=15, deadline=None)
@given(SEEDS, strategies.randoms(use_true_random=False))
def test_permuting_networks_samples_or_classes_permutes_the_scores(seed, random):
    found = drawn(seed, 4, 3, 9, 4)
    scores = every(found)
    networks, samples, classes = (torch.tensor(random.sample(range(count), count)) for count in (4, 9, 4))
    own = {name: getattr(found, name) for name in ("feature_norm", "class_cosine", "membership", "stragglers")}

    def permuted(value):
        """A value [R, N] or [R, T, N] with its networks and samples in the other order."""
        return value[networks][..., samples]

    more = {name: permuted(value) for name, value in own.items()}
    logits = found.logits[networks][:, :, samples][..., classes]
    labels = classes.argsort()[found.labels[samples]]  # where each label's class went
    other = every(recording(logits, labels, index=found.index[samples], **more))
    assert scores.keys() == other.keys() == set(ALL)
    for name, value in scores.items():
        expected = permuted(value) if value.ndim == 2 else value[samples]
        np.testing.assert_allclose(other[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)


def test_half_precision_recordings_have_the_scores_of_their_numbers():
    half = drawn(4, dtype=torch.float16)
    full = recording(half.logits.double(), half.labels, **{name: getattr(half, name) for name in ("feature_norm", "class_cosine")})
    for name in [*BY_LOGITS, "grand"]:
        np.testing.assert_allclose(values(half, [name])[name], values(full, [name])[name], rtol=1e-12, atol=1e-15)


def test_the_control_is_uniform_and_goes_by_seed_and_index():
    index = torch.arange(100_000)
    logits = torch.zeros(1, 1, 100_000, 2)
    numbers = score("random", logits, index=index)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 1 / 2) < 4 / np.sqrt(12 * 1e5)
    assert np.bincount((numbers * 10).astype(int)).std() < 4 * np.sqrt(9000)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / np.sqrt(1e5)
    some = torch.tensor([99_999, 17, 10**12])
    few = score("random", logits[:, :, :3], index=some)
    assert few[:2].tolist() == [numbers[99_999], numbers[17]]
    other = score("random", logits, index=index, seed=1)
    assert abs(np.corrcoef(numbers, other)[0, 1]) < 4 / np.sqrt(1e5)


# which samples are hard


def test_counts_are_exact_at_both_levels():
    generator = torch.Generator().manual_seed(3)
    scores, labels = torch.rand(1000, generator=generator), torch.randint(0, 4, (1000,), generator=generator)
    counts = torch.tensor([17, 0, 120, 1])
    for level, expected in (("class", counts.tolist()), ("dataset", None)):
        hard = hardest_at_level(scores, labels, counts, level)
        assert int(hard.sum()) == 138
        if expected:
            assert torch.bincount(labels[hard], minlength=4).tolist() == expected
            for c in (0, 2):
                assert scores[hard & (labels == c)].min() > scores[~hard & (labels == c)].max()
        else:
            assert scores[hard].min() > scores[~hard].max()
    assert int(hardest_at_level(scores, labels, torch.tensor([2000, 0, 0, 0]), "class").sum()) == int((labels == 0).sum())


def test_of_equal_scores_the_earlier_sample_is_hard():
    assert hardest(torch.tensor([1.0, 0.0, 1.0, 1.0]), 2).tolist() == [True, False, True, False]


@pytest.mark.parametrize("reduce_hard", [False, True])
@pytest.mark.parametrize("train_ratio", [0.9, 0.5, 0.29])
def test_cuts_are_int_of_n_times_ratio(train_ratio, reduce_hard):
    hard = torch.zeros(1237, dtype=torch.bool)
    hard[torch.randperm(1237, generator=torch.Generator().manual_seed(0))[:107]] = True
    order = HardEasyOrder.of(hard, Seeds(0).child("split", 0))
    assert order.rows.sort().values.tolist() == list(range(1237))
    assert hard[order.rows].tolist() == [True] * 107 + [False] * 1130
    tests, before = set(), None
    for remaining in (0, 0.05, 0.25, 1):
        cut = order.train_slice(train_ratio, remaining, reduce_hard)
        trained = order.rows[cut.low : cut.high]
        kept = [int(n * train_ratio) for n in (107, 1130)]
        kept[0 if reduce_hard else 1] = int(kept[0 if reduce_hard else 1] * remaining)
        assert [int(hard[trained].sum()), int((~hard[trained]).sum())] == kept
        assert len(cut) == sum(kept)
        held = torch.cat([order.rows[: cut.hard_end], order.rows[cut.easy_start :]])
        assert len(held) == 107 - int(107 * train_ratio) + 1130 - int(1130 * train_ratio)
        assert not set(trained.tolist()) & set(held.tolist())
        tests.add(tuple(held.tolist()))
        assert before is None or before <= set(trained.tolist())  # fewer samples are some of more
        before = set(trained.tolist())
    assert len(tests) == 1  # whatever remains to train on


def test_a_split_depends_on_its_set_alone():
    hard = torch.arange(50) < 9
    one, again, other = (HardEasyOrder.of(hard, Seeds(4).child("split", s)).rows for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


# agreement


def test_jaccard_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    sets, labels = rng.random((3, 200)) < 0.3, rng.integers(0, 3, 200)
    whole, each = agreement.jaccard_matrix(sets), np.array([agreement.jaccard_matrix(sets[:, labels == c]) for c in range(4)])
    for i in range(3):
        for j in range(3):
            assert whole[i, j] == pytest.approx(jaccard_score(sets[i], sets[j]))
            assert each[1, i, j] == pytest.approx(jaccard_score(sets[i, labels == 1], sets[j, labels == 1]))
    assert np.isnan(each[3]).all()  # a class without samples
    assert agreement.jaccard(sets[0], ~sets[0]) == 0


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(0)
    scores = np.stack([rng.normal(size=300), rng.integers(0, 2, 300).astype(float), rng.integers(0, 9, 300).astype(float)])
    scores[2] += scores[1] * 4
    np.testing.assert_allclose(agreement.spearman_matrix(scores), spearmanr(scores.T).statistic, atol=1e-12)


def test_stability_is_the_hypergeometric_z():
    left, right = np.arange(500) < 60, (np.arange(500) >= 40) & (np.arange(500) < 110)
    chance = hypergeom(500, 60, 70)
    z = (20 - chance.mean()) / chance.std()
    assert agreement.mean_overlap_z(np.stack([left, right])) == pytest.approx(z)
    same = (60 - 60 * 60 / 500) / hypergeom(500, 60, 60).std()
    assert agreement.mean_overlap_z(np.stack([left, right, left])) == pytest.approx((2 * z + same) / 3)
    assert np.isnan(agreement.mean_overlap_z(np.stack([left, np.zeros(500, bool)])))


def test_stability_of_random_sets_is_chance():
    """z has mean 0 and variance 1: over 200 draws of 2 sets the mean is within three standard errors of 0."""
    rng = np.random.default_rng(0)
    z = [agreement.mean_overlap_z(np.stack([rng.permutation(300) < 30, rng.permutation(300) < 45])) for _ in range(200)]
    assert abs(np.mean(z)) < 3 / np.sqrt(200)
    assert np.std(z) == pytest.approx(1, abs=0.2)
    assert agreement.mean_overlap_z(np.stack([np.arange(300) < 30] * 3)) > 15
    assert np.isnan(agreement.mean_overlap_z(np.ones((1, 9), bool)))
