"""When a network stops before the others: at its target, or because its loss is not finite."""

import numpy as np
import pytest
import torch
from setups import different_arrays, equal_weights, images_in_classes, run, trained, training_setup

from hardbench.training.evaluation import reaches


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"dataset": images_in_classes(tmp_path_factory.mktemp("data") / "images.npz"), "batch_size": 13, "log_every": 1}


# stopping


STOP = {"target_accuracy": 0.97, "stop_at_target": True, "epochs": 12, "eval_points": 30}


APART = {"mlp": {"model": "mlp", "width": 20, "lr": 2e-3}, "cnn": {"model": "cnn", "width": 6, "lr": 4e-3}}


@pytest.mark.parametrize("settings", APART.values(), ids=APART)
def test_a_network_that_reaches_its_target_is_frozen(images, settings):
    settings = images | settings | STOP
    found = trained(**settings, repeats=3)
    steps, epoch = found.arrays["steps"], found.setup.batches.per_epoch
    assert sorted(found.stopped) == [0, 1, 2]
    assert len(set(found.stopped.values())) > 1  # they stop apart, or nothing is tested here
    assert steps[-1] == max(found.stopped.values()) < found.setup.total
    for r, step in found.stopped.items():
        assert step % epoch == 0
        free = trained(**settings | {"repeats": 1, "first_repeat": r, "stop_at_target": False, "epochs": step // epoch})
        assert equal_weights(found.weights[r], free.weights[0])  # what it had learned by then, and nothing after
        for name in ("loss", "accuracy", "loss_per_class", "confusion", "overlap_dynamic"):
            there = np.isfinite(found.arrays[name][r]).reshape(len(steps), -1)
            assert there[steps <= step].all()
            assert not there[steps > step].any()
        curve = np.isfinite(found.arrays["train_accuracy"][r])
        np.testing.assert_array_equal(curve, found.arrays["log_steps"] <= step)
        np.testing.assert_allclose(found.arrays["accuracy"][r][steps == step][0], free.arrays["accuracy"][0, -1])


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_the_target_counts_the_whole_training_set(model):
    """1437 digits are several passes: one sample more than there are right is not reached."""
    ready = trained(dataset="digits", model=model, width=8, epochs=1, repeats=2).setup
    train = ready.batches.train
    right = (ready.learner.predict(ready.standardise(train.inputs, 1.0)).argmax(-1) == train.labels).sum(-1).tolist()
    for r, count in enumerate(right):
        for target, reached in ((count / len(train), True), ((count + 1) / len(train), False), (0.0, True), (1.0, count == len(train))):
            assert bool(reaches(ready.learner, ready.batches, target)[r]) == reached


def test_the_target_is_of_clean_inputs(images):
    """Most pixels are replaced in training, so that its own accuracy is far below; the clean training set is what counts."""
    found = trained(**images | STOP | {"epochs": 40, "target_accuracy": 0.9}, model="mlp", width=20, lr=2e-3, corruption_p=0.8)
    epoch = found.setup.batches.per_epoch
    last = found.arrays["log_steps"] > found.stopped[0] - epoch
    assert np.nanmean(found.arrays["train_accuracy"][0][last]) < 0.8


def test_stopping_survives_an_interruption(images):
    settings = images | {"model": "mlp", "width": 20, "lr": 2e-3, "repeats": 3} | STOP
    first = min(trained(**settings).stopped.values())
    whole, state = run(training_setup(**settings), until=first + 2)
    again, _ = run(training_setup(**settings), state=state)
    assert again.stopped == whole.stopped
    assert different_arrays(whole.arrays, again.arrays, [0, 1, 2]) == []
    assert all(map(equal_weights, whole.weights, again.weights))


# divergence


WILD = {"model": "mlp", "width": 8, "activation": "leaky_relu", "optimizer": "sgd", "lr": 0.1, "epochs": 10, "repeats": 3}


def _spoil(ready):
    """Repeat 1 gets weights so large that they grow from step to step: its loss is finite at the first and overflows soon."""
    networks = ready.learner.networks
    networks.load_member(1, {name: value * 100 for name, value in networks.member_state(1).items()})
    return ready


def _first_bad_step(ready):
    """The first step whose training loss is not finite for repeat 1, watched step by step."""
    for _ in range(ready.total):
        if not ready.learner.update(*ready.batches.draw())["loss"][1].isfinite():
            return ready.learner.steps
    raise AssertionError("never")


def test_a_network_that_diverges_is_frozen_and_the_others_finish(images):
    step = _first_bad_step(_spoil(training_setup(**images, **WILD)))
    assert step > 1
    sane, wild = trained(**images, **WILD), run(_spoil(training_setup(**images, **WILD)))[0]
    assert (wild.setup.learner.diverged, wild.stopped) == ({1: step}, {1: step})
    assert wild.arrays["steps"][-1] == wild.setup.total == sane.arrays["steps"][-1]
    for r in (0, 2):
        assert equal_weights(wild.weights[r], sane.weights[r])
        kept = np.isin(wild.arrays["steps"], sane.arrays["steps"])
        np.testing.assert_array_equal(wild.arrays["loss"][r][kept], sane.arrays["loss"][r])
    assert np.isfinite(wild.arrays["accuracy"][1][wild.arrays["steps"] < step]).all()


def test_what_a_diverged_network_measured_afterwards_is_nan(images):
    """Also between its step and the state it was noticed: an accuracy of weights that are not numbers is none."""
    wild = run(_spoil(training_setup(**images, **WILD)))[0]
    step = wild.stopped[1]
    for name, values in wild.arrays.items():
        if values.ndim > 1 and not name.startswith("val"):
            after = wild.arrays["log_steps" if name.startswith("train") else "steps"] >= step
            assert after.any()
            assert np.isnan(values[1][after]).all(), name


def test_divergence_survives_an_interruption(images):
    """Noticed or not when the checkpoint was written: the same step is named, the same is recorded."""
    step = _first_bad_step(_spoil(training_setup(**images, **WILD)))
    whole, state = run(_spoil(training_setup(**images, **WILD)), until=step + 3)
    again, _ = run(training_setup(**images, **WILD), state=state)
    assert again.setup.learner.diverged == whole.setup.learner.diverged
    assert different_arrays(whole.arrays, again.arrays, [0, 1, 2]) == []


def test_a_diverged_network_is_never_best(images):
    """Weights that are not numbers predict class 0, and may well be right more often than the network was before."""
    ready = training_setup(**images, **WILD, val_size=0.3)
    shares = ready.split.val.labels.bincount(minlength=3)
    rarest = int(shares.argmin())
    assert shares[0] > shares[rarest]
    networks = ready.learner.networks
    bias = torch.zeros(3).index_fill(0, torch.tensor(rarest), torch.inf)
    networks.load_member(1, networks.member_state(1) | {"head.bias": bias})
    wild = run(ready)[0]
    assert wild.stopped == {1: 1}
    assert wild.best.step[1] == 0
    assert torch.equal(wild.best.networks[1]["head.bias"], bias)


def test_training_ends_when_all_have_diverged(images):
    wild = trained(**images, **WILD | {"repeats": 2, "lr": 1e30})
    assert wild.arrays["steps"][-1] < wild.setup.total
    assert sorted(wild.stopped) == [0, 1]
