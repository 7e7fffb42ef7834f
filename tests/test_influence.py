"""Influence against its definition, pair by pair; ties, samples without an influence."""

import math

import numpy as np
import pytest
import torch

from hardbench.hard_samples.influence import gallery, influence


def networks(repeats: int, tests: int, samples: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rights [R, M] and memberships [R, N], drawn; the first training sample is in all networks and the second in none."""
    draw = np.random.default_rng(seed)
    membership = draw.random((repeats, samples)) < 0.7
    membership[:, :2] = [True, False]
    return torch.from_numpy(draw.random((repeats, tests)) < 0.6), torch.from_numpy(membership)


def plain(right: np.ndarray, membership: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Influence and standard error of every pair [M, N], by the definition."""
    value, error = np.full((2, right.shape[1], membership.shape[1]), np.nan)
    for j in range(right.shape[1]):
        for i in range(membership.shape[1]):
            groups = [right[membership[:, i], j], right[~membership[:, i], j]]
            if min(map(len, groups)):
                value[j, i] = groups[0].mean() - groups[1].mean()
                shares = [(group.sum() + 1) / (len(group) + 2) for group in groups]
                squares = [share * (1 - share) / (len(group) + 2) for share, group in zip(shares, groups, strict=True)]
                error[j, i] = math.sqrt(sum(squares))
    return value, error


@pytest.mark.parametrize(("repeats", "tests", "samples", "top"), [(9, 13, 40, 10), (2, 5, 12, 3), (30, 1, 11, 11), (25, 17, 60, 1)])
def test_influence_is_the_difference_of_shares_of_every_pair(repeats, tests, samples, top):
    right, membership = networks(repeats, tests, samples)
    found = influence(right, membership, top)
    value, error = plain(right.numpy(), membership.numpy())
    assert found.pop("influence_networks") == repeats
    assert {name: array.shape for name, array in found.items()} == dict.fromkeys(found, (tests, top))
    for j, rows in enumerate(found["influence_train"]):
        known = rows >= 0
        assert len(set(rows[known])) == known.sum() == min(top, np.isfinite(value[j]).sum())
        np.testing.assert_allclose(found["influence"][j, known], np.sort(value[j][np.isfinite(value[j])])[::-1][: known.sum()], atol=1e-6)
        np.testing.assert_allclose(found["influence"][j, known], value[j, rows[known]], atol=1e-6)
        np.testing.assert_allclose(found["influence_stderr"][j, known], error[j, rows[known]], atol=1e-6)
        assert np.isnan(found["influence"][j, ~known]).all() and np.isnan(found["influence_stderr"][j, ~known]).all()


def test_a_sample_that_decides_is_found_and_equal_ones_come_in_the_order_of_rows():
    membership = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 0], [1, 1, 0, 0, 1], [1, 0, 1, 0, 1]], dtype=torch.bool)
    right = torch.stack([membership[:, 1], torch.ones(4, dtype=torch.bool), membership[:, 2]], 1)
    found = influence(right, membership, top=4)
    assert found["influence_train"].tolist() == [[1, 4, 2, -1], [1, 2, 4, -1], [2, 4, 1, -1]]
    np.testing.assert_allclose(found["influence"][:, :3], [[1, 2 / 3, -1], [0, 0, 0], [1, -2 / 3, -1]], atol=1e-6)
    # two of two right and none of two: shares 3/4 and 1/4 with the one added, variance 3/64 each
    assert found["influence_stderr"][0, 0] == pytest.approx(math.sqrt(6) / 8)


def test_blocks_change_nothing_and_permutations_permute():
    right, membership = networks(12, 37, 90, seed=1)
    whole = influence(right, membership)
    for block in (1, 5, 36, 37, 100):
        for name, array in influence(right, membership, block=block).items():
            np.testing.assert_array_equal(array, whole[name])
    turned = influence(right.flip(0), membership.flip(0))
    for name, array in turned.items():
        np.testing.assert_array_equal(array, whole[name])  # of the order of networks
    order = torch.randperm(37, generator=torch.Generator().manual_seed(0))
    others = influence(right[:, order], membership)
    for name in ("influence_train", "influence", "influence_stderr"):
        np.testing.assert_array_equal(others[name], whole[name][order.numpy()])
    samples = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    moved = influence(right, membership[:, samples])
    np.testing.assert_array_equal(moved["influence"], whole["influence"])
    strict = whole["influence"] > whole["influence"][:, -1:]  # those at the bound may be others of the same value
    for j in range(37):
        assert set(samples.numpy()[moved["influence_train"][j, strict[j]]]) == set(whole["influence_train"][j, strict[j]])


def test_without_both_kinds_of_networks_nothing_has_an_influence():
    for membership in (torch.ones(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)):
        found = influence(torch.ones(3, 2, dtype=torch.bool), membership)
        assert (found["influence_train"] == -1).all() and np.isnan(found["influence"]).all() and np.isnan(found["influence_stderr"]).all()
        assert gallery(found, torch.ones(4, 1, 2, 2), torch.ones(2, 1, 2, 2))["influence_shown"].shape == (0,)
    assert influence(torch.ones(3, 0, dtype=torch.bool), membership)["influence"].shape == (0, 10)


def test_the_standard_error_covers_the_truth_where_shares_are_near_one():
    """Of 20 networks, 14 with the sample, shares .95 and .8: within 1.96 standard errors in 98 of 100, with the plain form in 72."""
    draw, truth, n = np.random.default_rng(0), 0.95 - 0.8, 4000
    membership = torch.arange(20).unsqueeze(1) < 14
    right = torch.from_numpy(draw.random((20, n)) < np.where(membership.numpy(), 0.95, 0.8))
    found = influence(right, membership, top=1)
    within = np.abs(found["influence"] - truth) < 1.96 * found["influence_stderr"]
    assert within.mean() == pytest.approx(0.977, abs=0.015)


def test_the_gallery_has_the_test_samples_with_the_clearest_supporters():
    right, membership = networks(10, 20, 30)
    right[:, 3] = True
    found, inputs, tests = influence(right, membership, top=29), torch.rand(30, 1, 3, 3), torch.rand(20, 1, 3, 3)
    shown = gallery(found, inputs, tests, count=5)
    rows = shown["influence_shown"]
    clear = np.nanmax(found["influence"] / found["influence_stderr"], axis=1)
    assert rows.tolist() == np.argsort(-clear, kind="stable")[:5].tolist() and 3 not in rows
    np.testing.assert_array_equal(shown["influence_inputs"], tests.numpy()[rows])
    supporters = found["influence_train"][rows]
    assert (supporters[:, 28] == -1).all() and not shown["influence_supporters"][:, 28].any()
    np.testing.assert_array_equal(shown["influence_supporters"][:, :28], inputs.numpy()[supporters[:, :28]])
    assert 3 not in gallery(found, inputs, tests, count=20)["influence_shown"]  # always right: owes nothing to a sample
