"""Information of predictions about labels: identities, scikit-learn's numbers, known biases; what classes and channels add."""

import math

import numpy as np
import pytest
import torch

from hardbench.masking.information import bootstrap_mean, class_information, contributions, entropy, grassberger, plugin, synergies


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table(labels, predicted, classes):
    return torch.bincount(torch.as_tensor(labels) * classes + torch.as_tensor(predicted), minlength=classes**2).view(classes, classes)


def test_none_for_independent_all_for_equal():
    rows = torch.tensor([[2.0], [3.0], [5.0]])
    assert plugin(rows * torch.tensor([[4.0, 1.0, 7.0]])).item() == pytest.approx(0, abs=1e-12)
    counts = torch.tensor([5, 3, 2])
    assert plugin(torch.diag(counts)).item() == pytest.approx(entropy(counts).item())
    assert entropy(torch.ones(8)).item() == pytest.approx(math.log(8))
    assert plugin(torch.tensor([[0, 7], [0, 9]])).item() == pytest.approx(0, abs=1e-12)  # one prediction for all


def test_equals_scikit_learn():
    from sklearn.metrics import mutual_info_score

    rng = np.random.default_rng(1)
    for classes, samples in ((2, 40), (7, 300), (30, 500)):
        labels = rng.integers(classes, size=samples)
        predicted = np.where(rng.random(samples) < 0.5, labels, rng.integers(classes, size=samples))
        found = plugin(torch.stack([table(labels, predicted, classes), table(predicted, labels, classes)]))
        assert found.tolist() == pytest.approx([mutual_info_score(labels, predicted)] * 2)


def test_the_published_value_for_uniform_errors():
    """Accuracy .93 among ten classes, errors spread evenly: 1.895 nats."""
    assert plugin(torch.full((10, 10), 0.07 / 9).fill_diagonal_(0.93)).item() == pytest.approx(1.895, abs=5e-4)


@pytest.mark.parametrize("accuracy", [0.01, 0.1, 0.3])
def test_grassberger_where_plugin_is_off_by_half_a_nat(accuracy):
    classes, samples = 100, 10_000
    shares = np.full((classes, classes), (1 - accuracy) / classes / (classes - 1))
    np.fill_diagonal(shares, accuracy / classes)
    truth = plugin(torch.from_numpy(shares)).item()
    counts = torch.from_numpy(np.random.default_rng(2).multinomial(samples, shares.ravel()).reshape(classes, classes))
    assert plugin(counts).item() - truth > 0.45
    assert abs(grassberger(counts).item() - truth) < 0.15


def test_the_bias_of_plugin_is_what_it_says():
    rng = np.random.default_rng(3)
    found = [plugin(table(rng.integers(10, size=10_000), rng.integers(10, size=10_000), 10)).item() for _ in range(20)]
    assert np.mean(found) == pytest.approx(81 / 20_000, rel=0.15)


def test_information_is_the_mean_over_classes():
    counts = torch.from_numpy(np.random.default_rng(4).integers(0, 9, (3, 6, 6)))
    shares = counts.sum(-1) / counts.sum((-2, -1))[:, None]
    assert (shares * class_information(counts)).sum(-1).tolist() == pytest.approx(plugin(counts).tolist())
    gone = torch.tensor([[0, 0], [3, 5]])
    assert class_information(gone)[0].isnan() and class_information(gone)[1] == 0


def game(sets, channels, noise=0.0, seed=5):
    """Masks, values of an additive game on them, and what each channel adds."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, channels + 1, sets)
    masks = torch.from_numpy(np.stack([rng.permutation(channels) < size for size in sizes]))
    worth = torch.linspace(-0.1, 0.3, channels, dtype=torch.float64)
    return masks, masks.double() @ worth + noise * torch.from_numpy(rng.normal(size=sets)), worth


def test_contributions_of_an_additive_game_are_its_shapley_values():
    masks, values, worth = game(80, 12)
    estimate, low, high = contributions(masks, values, generator())
    torch.testing.assert_close(estimate, worth, rtol=0, atol=1e-3)
    assert ((low <= estimate + 1e-9) & (estimate <= high + 1e-9)).all()


def test_intervals_of_contributions_hold_the_truth():
    inside = []
    for seed in range(10):
        masks, values, worth = game(200, 12, noise=0.1, seed=seed)
        _, low, high = contributions(masks, values, generator(seed))
        inside.append(((low <= worth) & (worth <= high)).double().mean())
    assert 0.85 < np.mean(inside) <= 1


def test_few_sets_still_give_an_order():
    masks, values, worth = game(40, 64)
    estimate = contributions(masks, values, generator())[0]
    assert torch.corrcoef(torch.stack([estimate, worth]))[0, 1] > 0.5
    assert contributions(masks[:1], values[:1], generator()).isnan().all()


def test_synergy_and_redundancy_are_told_apart():
    masks, values, _ = game(400, 8)
    both = masks[:, 0] & masks[:, 1]
    either = masks[:, 2] | masks[:, 3]
    found = synergies(masks, values + both + either, torch.tensor([0, 1, 2, 3, 4, 5]), generator())
    estimate, low, high = found
    assert low[0, 1] > 0.5 and high[2, 3] < -0.5
    assert abs(estimate[4, 5]) < 0.3 and estimate.diagonal().isnan().all()
    torch.testing.assert_close(estimate, estimate.T, equal_nan=True)


def test_the_interval_of_a_mean():
    values = torch.randn(400, generator=generator(7), dtype=torch.float64)
    low, high = bootstrap_mean(values, generator())
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
    assert low < values.mean() < high
