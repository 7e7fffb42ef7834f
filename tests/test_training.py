"""The promise: a network's numbers depend on its settings, seed and repeat alone, bit for bit, whatever else trains beside it."""

from itertools import product

import numpy as np
import pytest
import torch
from setups import copied, different_arrays, equal_weights, images_in_classes, run, stacked_is_alone, trained, training_setup
from torch import nn

from hardbench.models.stacked import StackedLinear
from hardbench.registry import SCHEDULERS
from hardbench.seeding import Seeds
from hardbench.studies.train import Config
from hardbench.training.loop import evaluation_steps

OPTIMISERS = {
    "momentum": {"optimizer": "sgd", "momentum": 0.9, "lr": 0.05},
    "adam": {"optimizer": "adam", "lr": 3e-3, "scheduler": "cosine"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.01, "lr": 3e-3, "scheduler": "warmup_cosine", "warmup": 0.3},
}
NETWORKS = {
    "mlp": {"model": "mlp", "widths": (19, 33), "init": "kaiming_normal"},
    "gmlp": {"model": "gmlp", "depth": 3, "width": 21, "layer_metrics": ("all",), "eval_points": 4},
    "cnn": {"model": "cnn", "depth": 2, "width": 5, "activation": "tanh", "pooling": "avg"},
}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"dataset": images_in_classes(tmp_path_factory.mktemp("data") / "images.npz"), "batch_size": 13, "epochs": 2, "log_every": 2}


# together is alone


ALL = [*product(("mlp", "gmlp"), OPTIMISERS, ("fp32", "bf16")), ("cnn", "momentum", "bf16"), ("cnn", "adam", "fp32")]


@pytest.mark.parametrize(("model", "optimiser", "precision"), ALL, ids=["-".join(words) for words in ALL])
def test_stacked_is_alone(images, model, optimiser, precision):
    disturbed = {"augment": True, "corruption_p": 0.2, "val_size": 0.1, "noise_ratio": 0.1}
    assert stacked_is_alone(**images, **disturbed, **NETWORKS[model], **OPTIMISERS[optimiser], precision=precision) == []


def test_batch_norm_stacked_is_alone(images):
    small = images | {"batch_size": 10, "epochs": 1, "subset_size": 20}
    assert stacked_is_alone(2, **small, model="resnet18", small_input=True, augment=True, precision="bf16") == []


@pytest.mark.parametrize("settings", [{"model": "mlp"}, {"model": "gmlp"}, {"model": "mlp", "batch_size": "full", "epochs": 5}], ids=str)
def test_stacked_is_alone_at_the_defaults(settings):
    assert stacked_is_alone(**{"dataset": "digits", "epochs": 1} | settings) == []


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"dataset": "gaussian", "batch_size": 10, "depth": 1, "width": 32},
        {"dataset": "digits", "subset_size": 300, "batch_size": 100, "model": "gmlp", "depth": 3, "width": 333, "epochs": 1},
        {"dataset": "digits", "subset_size": 320, "batch_size": 64, "model": "gmlp", "precision": "bf16", "residual": True, "epochs": 1},
    ],
    ids=["images", "gaussian", "greedy", "greedy-bf16"],
)
def test_stacked_is_alone_on_two_threads(images, settings):
    assert stacked_is_alone(**images | {"model": "mlp", "depth": 2, "width": 33, "threads": 2} | settings) == []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_products_do_not_depend_on_the_place_in_the_stack(threads):
    """Output and gradients of a member of a StackedLinear, over sizes: its rows start at other addresses, and others want the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    wrong = []
    for batch, inputs, outputs in product((3, 17, 29, 32, 128), (3, 33, 64, 100), (3, 10, 19, 33, 128)):
        torch.manual_seed(0)
        members = [nn.Linear(inputs, outputs) for _ in range(3)]
        rows = torch.randn(3, batch, inputs)
        whole = _through(members, rows)
        for r in range(3):
            alone = _through([members[r]], rows[r : r + 1])
            if not all(torch.equal(part[r : r + 1], same) for part, same in zip(whole, alone, strict=True)):
                wrong.append((batch, inputs, outputs, r))
    torch.set_num_threads(before)
    assert wrong == []


def _through(members, rows):
    layer, rows = StackedLinear(members), rows.clone().requires_grad_()
    out = layer(rows)
    out.square().sum().backward()
    count = layer.inputs * layer.outputs
    return out.detach(), rows.grad, layer.weight.grad[:, :count], layer.bias.grad[:, : layer.outputs]


def test_chunks_of_repeats_agree(images):
    """Repeats 1 and 2 as a pair are repeats 1 and 2 of four."""
    four, pair = trained(**images, model="mlp", width=33, repeats=4), trained(**images, model="mlp", width=33, repeats=2, first_repeat=1)
    assert different_arrays(four.arrays, pair.arrays, [1, 2]) == []
    assert all(equal_weights(four.weights[1 + r], pair.weights[r]) for r in range(2))


# the same again, and not the same


@pytest.mark.parametrize("model", NETWORKS)
def test_same_seed_same_bits(images, model):
    settings = images | NETWORKS[model] | {"repeats": 2, "augment": True, "corruption_p": 0.3}
    one, two = trained(**settings), trained(**settings)
    assert different_arrays(one.arrays, two.arrays, [0, 1]) == []
    assert all(map(equal_weights, one.weights, two.weights))


def test_the_global_generators_have_no_say(images):
    settings = images | {"model": "mlp", "width": 20, "augment": True, "corruption_p": 0.3}
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the very thing that must not matter
    one = trained(**settings)
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    before = torch.get_rng_state()
    two = trained(**settings)
    assert equal_weights(one.weights[0], two.weights[0])
    assert torch.equal(torch.get_rng_state(), before)  # nor are they moved


def test_seeds_and_repeats_differ(images):
    settings = images | {"model": "mlp", "width": 20}
    found = trained(**settings, repeats=2).weights + trained(**settings, seed=1).weights
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert not any(torch.equal(found[i][name], found[j][name]) for name in found[i])


CHANGES = [
    {"corruption_p": 0.5},
    {"augment": True},
    {"lr": 0.1},
    {"epochs": 7},
    {"precision": "bf16"},
    {"noise_ratio": 0.2},
    {"plant": "mislabel_close:0.1"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_a_setting_moves_no_stream_but_its_own(images, change):
    """Initial weights and the order of the samples are drawn as before."""
    one, two = (training_setup(**images | {"model": "mlp", "width": 20, "repeats": 2} | more) for more in ({}, change))
    assert all(map(equal_weights, one.learner.networks.states(), two.learner.networks.states()))
    for _ in range(2 * one.batches.per_epoch):
        one.batches.draw()
        two.batches.draw()
        assert torch.equal(one.batches._rows, two.batches._rows)


def test_the_order_of_the_samples_has_its_own_name(images):
    ready = training_setup(**images | {"model": "mlp", "width": 8, "seed": 4, "repeats": 2, "first_repeat": 3})
    generators = [Seeds(4).child("repeat", r).child("order").generator() for r in (3, 4)]
    for _ in range(2):
        labels = torch.cat([ready.batches.draw()[1] for _ in range(ready.batches.per_epoch)], 1)
        for own, generator in zip(labels, generators, strict=True):
            assert torch.equal(own, ready.split.train.labels[torch.randperm(len(own), generator=generator)])


def test_streams_are_named():
    seeds = Seeds(3)
    numbers = [seeds.child("repeat", r).child(word).integer for r in range(3) for word in ("init", "order", "corruption", "augment")]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= number < 2**63 for number in numbers)
    one = seeds.child("repeat", 1, "init").integer
    assert one == seeds.child("repeat", 1).child("init").integer != Seeds(4).child("repeat", 1, "init").integer
    assert torch.equal(torch.rand(3, generator=seeds.generator()), torch.rand(3, generator=Seeds(3).generator()))


# a position can be stored


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("until", [3, 6, 7], ids=["inside an epoch", "at its end", "at the next one's start"])
def test_going_on_from_a_state(images, model, until):
    settings = images | NETWORKS[model] | {"repeats": 2, "augment": True, "corruption_p": 0.3, "val_size": 0.1, "epochs": 3}
    whole, state = run(training_setup(**settings), until=until)
    again, _ = run(training_setup(**settings), state=copied(state))
    assert different_arrays(whole.arrays, again.arrays, [0, 1]) == []
    assert all(map(equal_weights, whole.weights, again.weights))
    assert (whole.best.step, whole.best.accuracy) == (again.best.step, again.best.accuracy)
    assert all(map(equal_weights, whole.best.networks, again.best.networks))


# when


def test_evaluation_steps():
    assert evaluation_steps(10, None, 938) == [0, 1, 2, 4, 9, 20, 44, 95, 204, 438, 938]
    assert evaluation_steps(10, (5, 3, 3, 0), 20) == [0, 3, 5, 20]


@pytest.mark.parametrize("total", [1, 2, 7, 64, 938, 1563])
@pytest.mark.parametrize("points", [1, 2, 5, 10, 100])
def test_the_first_and_last_step_are_always_evaluated(points, total):
    steps = evaluation_steps(points, None, total)
    assert (steps[0], steps[-1]) == (0, total)
    assert steps == sorted(set(steps))
    assert len(steps) <= points + 2
    assert set(np.logspace(0, np.log10(total), points).astype(int)) <= set(steps)


def test_what_is_recorded_when(images):
    """83 samples in batches of 13: 7 steps an epoch, the last of 5 samples."""
    found = trained(**images, model="mlp", width=8, eval_steps=(1, 6, 99)).arrays
    assert found["steps"].tolist() == [0, 1, 6, 14]
    assert found["log_steps"].tolist() == [2, 4, 6, 8, 10, 12, 14]
    assert trained(**images | {"log_every": 5}, model="mlp", width=8).arrays["log_steps"].tolist() == [5, 10, 14]


# schedules


def _course_of_lr(name, total, **more):
    settings = Config(scheduler=name, **more)
    return np.array([SCHEDULERS[name].call(step, total, settings) for step in range(total)])


def test_schedules():
    assert (_course_of_lr("constant", 50) == 1).all()
    cosine = _course_of_lr("cosine", 50)
    assert (cosine[0], cosine[25]) == (1, pytest.approx(0.5))
    assert (np.diff(cosine) < 0).all()
    assert 0 < cosine[-1] < 0.01
    np.testing.assert_allclose(cosine[1:] + cosine[:0:-1], np.ones(49))  # odd about its middle
    warm = _course_of_lr("warmup_cosine", 200, warmup=0.1)
    np.testing.assert_allclose(warm[:20], np.arange(1, 21) / 20)
    np.testing.assert_allclose(warm[20:], _course_of_lr("cosine", 180))
    np.testing.assert_array_equal(_course_of_lr("warmup_cosine", 50, warmup=0), cosine)
    np.testing.assert_allclose(_course_of_lr("warmup_cosine", 50, warmup=1), np.arange(1, 51) / 50)


@pytest.mark.parametrize("scheduler", ["cosine", "warmup_cosine"])
def test_every_update_has_its_own_rate(images, scheduler):
    ready = training_setup(**images, model="mlp", width=8, lr=0.5, scheduler=scheduler)
    used = []
    for _ in range(ready.total):
        ready.learner.update(*ready.batches.draw())
        used += {group["lr"] for group in ready.learner.optimizer.param_groups}
    np.testing.assert_allclose(used, 0.5 * _course_of_lr(scheduler, ready.total))
