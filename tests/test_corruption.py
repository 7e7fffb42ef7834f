"""Corrupted pixels: the law of the new values, streams of every network's own, positions that can be stored."""

import numpy as np
import pytest
import torch

from hardbench.data.corruption import Corruption
from hardbench.seeding import networks

CPU = torch.device("cpu")
LEVELS = (0.001, 0.1, 0.5, 1.0)


def corrupted(p, raw, unit=1.0, repeat=0):
    return Corruption(networks(0, repeat, 1), [p], CPU)(raw.unsqueeze(0), unit)[0]


@pytest.mark.parametrize("p", LEVELS)
@pytest.mark.parametrize("pixel", [0, 51])
def test_mean_and_variance_are_the_closed_form(p, pixel):
    """E = (1-p) x + p/2 and Var = p (1-p) (x - 1/2)^2 + p/12, within five standard errors of a million draws."""
    x, count = pixel / 255, 1_000_000
    values = corrupted(p, torch.full((1000, 1000), pixel, dtype=torch.uint8), 255.0).double() / 255
    mean, variance = (1 - p) * x + p / 2, p * (1 - p) * (x - 0.5) ** 2 + p / 12
    assert abs(values.mean().item() - mean) < 5 * (variance / count) ** 0.5
    fourth = (1 - p) * (x - mean) ** 4 + p * ((1 - mean) ** 5 + mean**5) / 5
    assert abs(values.var().item() - variance) < 5 * ((fourth - variance**2) / count) ** 0.5


@pytest.mark.parametrize("p", LEVELS)
def test_the_share_is_p_and_the_rest_is_untouched(p):
    """A marker outside [0, 1] tells the kept values from the new ones."""
    values = corrupted(p, torch.full((1000, 1000), 2.0))
    new = values[values != 2.0]
    assert abs(len(new) / 1e6 - p) < 5 * (p * (1 - p) / 1e6) ** 0.5 + 2**-17
    assert new.min() > 0 and new.max() < 1


@pytest.mark.parametrize("p", [0.01, 0.1, 1.0])
def test_new_values_are_uniform(p):
    """The largest distance from the straight line, against the Kolmogorov-Smirnov bound at 1e-6."""
    values = corrupted(p, torch.full((1000, 1000), 2.0))
    new = np.sort(values[values != 2.0].double().numpy())
    steps = np.arange(len(new)) / len(new)
    assert max(np.abs(new - steps).max(), np.abs(new - steps - 1 / len(new)).max()) < 2.7 / len(new) ** 0.5


@pytest.mark.parametrize("p", [0.01, 0.4])
def test_neighbours_and_repeats_are_independent(p):
    hit = corrupted(p, torch.full((1000, 1000), 2.0)) != 2.0
    other = corrupted(p, torch.full((1000, 1000), 2.0), repeat=1) != 2.0
    for left, right in ((hit[:, 1:], hit[:, :-1]), (hit[1:], hit[:-1]), (hit, other)):
        both = (left & right).double().mean().item()
        assert abs(both - p * p) < 6 * p / 1000


def test_p_0_changes_nothing():
    raw = torch.randint(0, 256, (3, 50, 7), dtype=torch.uint8)
    assert torch.equal(Corruption(networks(0, 0, 3), [0.0, 0.0, 0.0], CPU)(raw, 255.0), raw.float())


def test_inputs_are_not_written_to():
    raw = torch.full((1, 20, 20), 0.5)
    Corruption(networks(0, 0, 1), [0.9], CPU)(raw, 1.0)
    assert (raw == 0.5).all()


@pytest.mark.parametrize("shape", [(5, 3), (7, 9, 11)])
def test_a_network_in_a_stack_is_the_network_alone(shape):
    """Each with a level of its own, over batches whose size is no multiple of a word."""
    levels = [0.3, 0.0, 0.005, 1.0]
    raw = torch.rand(4, *shape)
    stack = Corruption(networks(3, 0, 4), levels, CPU)
    together = [stack(raw, 1.0) for _ in range(3)]
    for r, p in enumerate(levels):
        alone = Corruption(networks(3, r, 1), [p], CPU)
        for batch in together:
            assert torch.equal(alone(raw[r : r + 1], 1.0)[0], batch[r])


def test_it_goes_on_where_it_was():
    raw = torch.rand(2, 9, 5)
    first = Corruption(networks(0, 0, 2), [0.2, 0.001], CPU)
    first(raw, 1.0)
    state = first.state().clone()
    expected = first(raw, 1.0)
    second = Corruption(networks(0, 0, 2), [0.2, 0.001], CPU)
    second.load(state)
    assert torch.equal(second(raw, 1.0), expected)
    assert not torch.equal(second(raw, 1.0), expected)
