"""Memorization of wrong labels on MNIST (Feldman & Zhang 2020, arXiv:2008.03703), beside a plain loop over single networks."""

import numpy as np
import pytest
import torch
from projects import last, main, new_project
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from hardbench.artifacts import DYNAMICS
from hardbench.configs.train import Config
from hardbench.training.setup import split_of

pytestmark = [pytest.mark.slow, pytest.mark.real]
NETWORKS = 40
RESAMPLES = 200


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        new_project(patch, tmp_path_factory.mktemp("memorization"))
        assert main(["train", "--config", "memorization_mnist", "--repeats", str(NETWORKS)]) == 0
        train = last()
        assert main(["score", train.id]) == 0
        yield train, train.archive(DYNAMICS), last().arrays


def _plain(inputs, labels, membership):
    """Whether single networks, each trained on its members by the usual loop, are right, bool [R, N]."""
    data, rights = TensorDataset(inputs, labels), []
    for r, members in enumerate(membership):
        torch.manual_seed(1000 + r)
        network = nn.Sequential(nn.Flatten(), nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
        own = np.flatnonzero(members)
        loader = DataLoader(Subset(data, own.tolist()), batch_size=128, shuffle=True)
        for _ in range(60):
            for batch, wanted in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(batch), wanted).backward()
                optimizer.step()
            with torch.no_grad():
                right = (network(inputs).argmax(1) == labels).numpy()
            if right[own].mean() >= 0.99:
                break
        rights.append(right)
    return np.stack(rights)


def _numbers(right, membership, planted):
    """Mean memorization of planted and of clean samples, and the share of planted ones right without having been trained on."""
    inside, outside = membership.sum(0), (~membership).sum(0)
    both = (inside > 0) & (outside > 0)
    shares = [(right & chosen).sum(0)[both] / count[both] for chosen, count in ((membership, inside), (~membership, outside))]
    memorization, wrong = shares[0] - shares[1], planted[both] > 0
    return np.array([memorization[wrong].mean(), memorization[~wrong].mean(), shares[1][wrong].mean()])


def test_wrong_labels_are_memorized(recorded):
    _, dynamics, scores = recorded
    right = dynamics["logits"][:, -1].argmax(-1) == dynamics["labels"]
    membership, planted = dynamics["membership"], dynamics["planted"]
    assert (right & membership).sum() / membership.sum() >= 0.99
    numbers = _numbers(right, membership, planted)
    memorization = scores["memorization"]
    assert numbers[:2] == pytest.approx([np.nanmean(memorization[planted > 0]), np.nanmean(memorization[planted == 0])], abs=1e-6)
    assert numbers[0] - numbers[1] >= 0.5
    assert numbers[2] < 0.1


def test_a_plain_loop_says_the_same(recorded):
    """Within three standard errors, by a bootstrap over the networks of either."""
    train, dynamics, _ = recorded
    membership, planted = dynamics["membership"], dynamics["planted"]
    inputs, labels = _inputs(train), torch.from_numpy(dynamics["labels"])
    rng = np.random.default_rng(0)
    found, errors = [], []
    for right in (dynamics["logits"][:, -1].argmax(-1) == dynamics["labels"], _plain(inputs, labels, membership)):
        found.append(_numbers(right, membership, planted))
        draws = [rng.integers(0, NETWORKS, NETWORKS) for _ in range(RESAMPLES)]
        errors.append(np.std([_numbers(right[rows], membership[rows], planted) for rows in draws], axis=0))
    print(f"memorization of planted, of clean; planted right without: {found[0]} plain {found[1]} errors {errors}")
    assert (np.abs(found[0] - found[1]) <= 3 * np.hypot(*errors)).all()


def _inputs(train):
    """The training inputs of the run as a user would prepare them: pixels in [0, 1], one mean and one standard deviation."""
    split = split_of(train.settings(Config, {}), 0)
    values = split.train.inputs.float() / 255
    return (values - values.mean()) / values.std()
