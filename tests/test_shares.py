"""Networks that train on random shares of the samples: whose are drawn how, alone as in the stack, after an interruption, with labels."""

import campaigns
import numpy as np
import pytest
import torch
from projects import all_runs, new_project
from setups import CLASSES, TRAIN, different_arrays, equal_weights, images_in_classes, run, stacked_is_alone, trained, training_setup

from hardbench.campaign import jobs
from hardbench.campaign.grid import numbers
from hardbench.cli import main
from hardbench.data.share import membership
from hardbench.errors import DataError
from hardbench.seeding import Seeds
from hardbench.settings import TrainingSettings
from hardbench.training import core, memory
from hardbench.training.evaluation import reaches
from hardbench.training.setup import train_setup

SHARE = {"train_share": 0.7, "batch_size": 13, "epochs": 2, "log_every": 1, "eval_points": 3}
NETWORKS = {"mlp": {"model": "mlp", "width": 20}, "cnn": {"model": "cnn", "width": 6}}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"dataset": images_in_classes(tmp_path_factory.mktemp("data") / "images.npz")}


def test_every_network_draws_its_own_samples(images):
    """round(share N) of them, the first of a permutation by a stream of that name; an epoch shows each of them once."""
    ready = training_setup(**images, **SHARE, repeats=3, seed=4, first_repeat=2, noise_ratio=0.2)
    batches, count = ready.batches, round(0.7 * TRAIN)
    assert (batches.count, batches.per_epoch, ready.total) == (count, -(-count // 13), 2 * -(-count // 13))
    drawn = [torch.randperm(TRAIN, generator=Seeds(4).child("repeat", r).child("share").generator())[:count] for r in (2, 3, 4)]
    assert all(set(own.tolist()) == set(order.tolist()) for own, order in zip(batches.own, drawn, strict=True))
    assert torch.equal(batches.membership, membership(ready.config, TRAIN))
    assert len({tuple(row) for row in batches.membership.tolist()}) == 3
    inputs = ready.standardise(ready.split.train.inputs, 255.0).flatten(1)
    for _ in range(2):
        seen, labels = (torch.cat(parts, 1) for parts in zip(*(batches.draw() for _ in range(batches.per_epoch)), strict=True))
        for r, own in enumerate(batches.own):
            rows = (seen[r].flatten(1).unsqueeze(1) == inputs[own]).all(-1).int().argmax(1)
            assert rows.sort().values.tolist() == list(range(count))
            assert torch.equal(labels[r], ready.split.train.labels[own[rows]])


@pytest.mark.parametrize("batch", [13, "full"])
@pytest.mark.parametrize("model", NETWORKS)
def test_a_network_of_the_stack_is_itself_alone(images, model, batch):
    assert stacked_is_alone(**images | SHARE | NETWORKS[model] | {"batch_size": batch, "val_size": 0.1, "noise_ratio": 0.1}) == []


@pytest.mark.parametrize("until", [3, 5])
def test_going_on_from_a_state(images, until):
    settings = images | SHARE | NETWORKS["mlp"] | {"repeats": 2, "corruption_p": 0.3}
    whole, state = run(training_setup(**settings), until=until)
    again, _ = run(training_setup(**settings), state)
    assert different_arrays(whole.arrays, again.arrays, [0, 1]) == []
    assert all(map(equal_weights, whole.weights, again.weights))


def test_the_whole_is_no_share(images):
    """Nothing is drawn for it; and where rounding leaves all samples, the networks are those of the whole."""
    assert training_setup(**images).batches.own is None
    whole, nearly = (trained(**images, **SHARE | {"train_share": share, "width": 12}) for share in (1, 0.999))
    assert nearly.setup.batches.own is not None
    assert different_arrays(whole.arrays, nearly.arrays, [0]) == []


def test_the_target_counts_a_networks_own_samples(images):
    """With as many of them right as there are, one more is not reached."""
    ready = trained(**images, **SHARE, **NETWORKS["mlp"], repeats=3).setup
    train, count = ready.batches.train, ready.batches.count
    right = ready.learner.predict(ready.standardise(train.inputs)).argmax(-1) == train.labels
    for r, own in enumerate((right & ready.batches.membership).sum(-1).tolist()):
        assert own < count < right.shape[1]
        assert [bool(reaches(ready.learner, ready.batches, (own + more) / count)[r]) for more in (0, 1)] == [True, False]


def test_labels_of_a_network_are_those_of_its_samples(images):
    """Members with other wrong labels in one stack, as each alone; the target is of these labels, too."""
    shared = images | SHARE | NETWORKS["mlp"] | {"threads": 1, "device": "cpu", "layer_metrics": ("none",), "epochs": 30, "lr": 5e-3}
    shared |= {"target_accuracy": 0.9, "repeats": 2, "keep_checkpoints": True}
    members = [shared | {"noise_ratio": ratio, "seed": seed} for ratio, seed in ((0.0, 0), (0.4, 1), (0.4, 0))]
    together = core.train_stack(members)
    alone = [core.train_stack([member])[0] for member in members]
    assert len({tuple(sorted(found.reached.items())) for found in alone}) > 1  # what is reached depends on the labels
    for one, other in zip(together, alone, strict=True):
        assert campaigns.same({"": one.arrays}, {"": other.arrays}) == []
        assert one.reached == other.reached
        assert all(map(equal_weights, one.checkpoints["last"]["networks"], other.checkpoints["last"]["networks"]))
    ready = train_setup(*(TrainingSettings(**member) for member in members))
    counts = [torch.bincount(row, minlength=CLASSES) for row in ready.batches.labels]
    assert not torch.equal(counts[0], counts[2])


def test_sweeps_keep_shares_apart():
    """In the stacks of a campaign; the hash of a cell that has none is what it was before there were shares."""
    none = {"layer_metrics": ("none",)}
    whole, some, other = (TrainingSettings(**none, train_share=share) for share in (1, 0.7, 0.5))
    assert len({jobs.stack_key(config, "data") for config in (whole, some, other)}) == 3
    assert jobs.stack_key(some, "data") == jobs.stack_key(TrainingSettings(**none, train_share=0.7, seed=3), "data")
    assert numbers(some).keys() - numbers(whole).keys() == {"train_share"}


def test_the_memory_of_a_full_batch_of_each_networks_own():
    settings = [TrainingSettings(batch_size="full", repeats=50, train_share=share) for share in (1, 0.5)]
    whole, half = (memory.Estimate((1, 28, 28), 10, round(s.train_share * 20_000), lambda one: one)(s, 50) for s in settings)
    of_inputs, of_activations = 4 * 784 * 20_000, 50 * 4 * 256 * 20_000
    assert half - whole == 50 * of_inputs / 2 - of_inputs - of_activations / 2


def test_what_leaves_nothing_to_train_on_is_one_line(monkeypatch, tmp_path, capsys, images):
    with pytest.raises(DataError, match=r"^train_share: 0.005; at least one of the 83 training samples there are$"):
        training_setup(**images, train_share=0.005)
    new_project(monkeypatch, tmp_path / "project")
    assert main(["train", "--train-share", "0"]) == 2
    assert "train_share: 0; above 0" in capsys.readouterr().err


def test_a_sweep_over_shares(monkeypatch, tmp_path):
    """Through the command line: as many steps as the share has batches."""
    folder = new_project(monkeypatch, tmp_path / "project")
    line = ["sweep", "train", "--dataset", images_in_classes(folder / "images.npz"), "--train-share", "0.5,1", "--epochs", "2"]
    assert main([*line, "--batch-size", "10", "--width", "8", "--depth", "1", "--repeats", "2", "--workers", "1", "--threads", "1"]) == 0
    ended = {run.config["train_share"]: int(run.arrays["steps"][-1]) for run in all_runs() if run.study == "train"}
    assert ended == {0.5: 2 * -(-round(0.5 * TRAIN) // 10), 1.0: 2 * -(-TRAIN // 10)}
    assert np.isfinite([run.metrics["final/test_accuracy"] for run in all_runs() if run.study == "train"]).all()
