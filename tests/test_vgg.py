"""VGG networks and what their recipe asks of training: dropout from streams of its own, a target that is noted, one model at a time."""

import numpy as np
import pytest
import torch
from projects import last, new_project
from setups import copied, different_arrays, equal_weights, run, training_setup
from torch import nn
from words import given

from hardbench import seeding
from hardbench.cli import main
from hardbench.config import presets
from hardbench.errors import ConfigError
from hardbench.lifecycle import launch
from hardbench.models.dropout import Dropout
from hardbench.registry import MODELS
from hardbench.studies import train

CONVOLUTIONS = {"vgg11": 8, "vgg13": 10, "vgg16": 13, "vgg19": 16}
SMALL = {"dataset": "gaussian", "gaussian_shape": (3, 32, 32), "gaussian_train": 5, "gaussian_test": 2, "batch_size": 8, "val_size": 0}


def network(model, shape=(3, 32, 32), classes=10, **settings):
    config = train.Config(model=model, **settings)
    return MODELS[model].call(shape, classes, config, seeding.networks(0, 0, 1)).member(0)


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_the_layers_are_the_published_ones(model):
    """Conv 3x3 with bias, batch norm, ReLU; five poolings; 512-512-512-K with ReLU and dropout .5; the layers' number is in the name."""
    modules = [module for module in network(model).modules() if not list(module.children())]
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == CONVOLUTIONS[model] == int(model[3:]) - 3
    assert all(c.bias is not None and (c.kernel_size, c.padding, c.stride) == ((3, 3), (1, 1), (1, 1)) for c in convolutions)
    assert (convolutions[0].in_channels, convolutions[0].out_channels, convolutions[-1].out_channels) == (3, 64, 512)
    for place, module in enumerate(modules):
        if isinstance(module, nn.Conv2d):
            assert isinstance(modules[place + 1], nn.BatchNorm2d) and isinstance(modules[place + 2], nn.ReLU)
    assert sum(isinstance(module, nn.MaxPool2d) for module in modules) == 5
    assert [(m.in_features, m.out_features) for m in modules if isinstance(m, nn.Linear)] == [(512, 512), (512, 512), (512, 10)]
    assert [m.p for m in modules if isinstance(m, Dropout)] == [0.5, 0.5]


def test_vgg11_has_the_published_size():
    assert sum(p.numel() for p in network("vgg11").parameters()) == 9_756_426


@pytest.mark.parametrize("model", CONVOLUTIONS)
def test_the_presets_are_the_recipe(model):
    config = given("--config", f"{model}_cifar10")
    assert f"{model}_cifar10" in presets()
    assert (config.model, config.dataset, config.optimizer, config.scheduler) == (model, "cifar10", "sgd", "cosine")
    assert (config.lr, config.momentum, config.weight_decay, config.epochs, config.batch_size) == (0.01, 0.9, 5e-4, 200, 128)
    assert config.augment and config.target_accuracy == 0.9999 and not config.stop_at_target
    assert config.mean == (0.4914, 0.4822, 0.4465) and config.std == (0.2023, 0.1994, 0.2010)
    own = given("--model", model, "--dataset", "cifar10")
    assert (own.lr, own.momentum, own.weight_decay, own.val_size, own.dropout) == (0.01, 0.9, 5e-4, 0.1, 0.5)
    assert given("--model", model, "--optimizer", "adam").momentum is None


def test_images_that_are_too_small_are_refused_with_sets_that_fit():
    with pytest.raises(ConfigError, match=r"model: vgg11; images of side 32 at least \(cifar10 .* side 8"):
        training_setup(model="vgg11")


def test_training_all_at_once_is_refused_with_the_line_that_does_it():
    with pytest.raises(ConfigError, match="hardbench sweep train --model vgg11,vgg13,vgg16,vgg19 trains all"):
        given("--model", "all")


def test_dropout_is_its_law():
    layer = Dropout(0.3)
    values = torch.ones(200, 500)
    assert torch.equal(layer.eval()(values), values)
    out = layer.train()(values)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    assert (out == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)
    assert not torch.equal(out, layer(values))
    assert not Dropout(1.0).train()(values).any()


def test_dropout_draws_from_the_stream_of_its_network_and_place():
    networks = training_setup(**SMALL, model="vgg11", repeats=2).learner.networks
    layers = [module for module in networks.modules() if isinstance(module, Dropout)]
    first = torch.ones(50, 40)
    drawn = [layer.train()(first) for layer in layers]
    assert len(drawn) == 4 and not any(torch.equal(drawn[i], drawn[j]) for i in range(4) for j in range(i))
    keep = torch.rand(50, 40, generator=seeding.networks(0, 0, 2)[1].child("dropout", 0).generator()) >= 0.5
    assert torch.equal(drawn[2], 2.0 * keep)


def test_a_resumed_training_draws_the_same_dropout():
    settings = SMALL | {"model": "vgg11", "epochs": 2, "eval_points": 1, "log_every": 1}
    whole, state = run(training_setup(**settings), until=3)
    again, _ = run(training_setup(**settings), copied(state))
    assert different_arrays(whole.arrays, again.arrays, [0]) == []
    assert equal_weights(whole.weights[0], again.weights[0])
    moved = copied(state)
    moved["learner"]["streams"] = [torch.Generator().manual_seed(1).get_state() for _ in moved["learner"]["streams"]]
    assert not equal_weights(whole.weights[0], run(training_setup(**settings), moved)[0].weights[0])  # it matters


def test_the_target_is_noted_and_missing_it_warns(monkeypatch, tmp_path, capsys):
    """Easy digits reach .5 in the first epochs, and go on; nothing reaches 1 in one."""
    new_project(monkeypatch, tmp_path)
    more = {"threads": 1, "layer_metrics": ("none",), "eval_points": 1, "repeats": 2}
    launch(train, train.Config(**more, target_accuracy=0.5, epochs=3), draw=False)
    found, told = last(), capsys.readouterr().err
    assert found.metrics["train/target_reached"] == 1
    assert 1 <= found.metrics["train/target_epoch"] <= 3 and "target" not in told
    assert np.isfinite(found.arrays["loss"]).all()
    assert main(["train", "--threads", "1", "--layer-metrics", "none", "--repeats", "2", "--target-accuracy", "1", "--epochs", "1"]) == 0
    found, told = last(), capsys.readouterr().err
    assert found.metrics["train/target_reached"] == 0 and "train/target_epoch" not in found.metrics
    assert "warning: target_accuracy: 1 of the training set was not reached by repeat 0, 1" in told
    launch(train, train.Config(**more, epochs=1), draw=False)
    assert not any("target" in name for name in last().metrics)  # a recipe without a target is not judged by one
