"""The same code with device=cuda, below the tracking: every model trains, measures and goes on from a checkpoint."""

import copy
from dataclasses import replace

import pytest
import torch

from hardbench import seeding
from hardbench.data.batches import Batches
from hardbench.data.samples import prepare
from hardbench.data.transforms import standardise_for
from hardbench.registry import MODELS
from hardbench.settings import TrainingSettings
from hardbench.training.evaluation import evaluate
from hardbench.training.greedy import make_learner
from hardbench.training.layer_metrics import LayerMetrics, draw_samples
from hardbench.training.loop import fit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def training_parts(device, **given):
    settings = TrainingSettings(repeats=3, **given)
    split = prepare(settings, 0)
    standardise = standardise_for(settings, split.train).to(device)
    split = replace(split, train=split.train.to(device), test=split.test.to(device))
    streams = seeding.networks(0, 0, 3)
    networks = MODELS[settings.model].call(split.train.shape, 10, settings, streams).to(device)
    batches = Batches(split.train, standardise, settings.batch_size, streams, [settings.corruption_p] * 3, settings.augment)
    return split, standardise, make_learner(networks, settings, settings.epochs * batches.per_epoch), batches


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("given", [{"model": "mlp"}, {"model": "gmlp"}, {"model": "simple_cnn"}, {"model": "mlp", "corruption_p": 0.1}])
def test_a_model_learns_on_a_gpu(given, precision):
    split, standardise, learner, batches = training_parts("cuda", precision=precision, epochs=15, **given)
    assert fit(learner, batches, learner.total_steps) == learner.total_steps
    found = evaluate(learner, split.test, standardise).arrays()
    assert found["accuracy"].shape == (3,) and found["accuracy"].min() > 0.9
    assert found["overlap_dynamic"].isfinite().all()


def test_resnet_with_augmentation():
    split, standardise, learner, batches = training_parts("cuda", model="resnet18", augment=True, epochs=1)
    fit(learner, batches, 3)
    assert evaluate(learner, split.test, standardise).arrays()["loss"].isfinite().all()


def test_gpu_and_cpu_start_from_the_same_networks_and_orders():
    losses = []
    for device in ("cpu", "cuda"):
        _, _, learner, batches = training_parts(device, model="mlp")
        losses.append(torch.stack([learner.update(*batches.draw())["loss"].cpu() for _ in range(5)]))
    assert torch.allclose(losses[0], losses[1], rtol=1e-3)


def test_a_stack_equals_its_continuation():
    _, _, first, batches = training_parts("cuda", model="mlp", corruption_p=0.2)
    fit(first, batches, 5)
    state, position = copy.deepcopy(first.state()), batches.state()
    fit(first, batches, 10)
    _, _, second, again = training_parts("cuda", model="mlp", corruption_p=0.2)
    second.load(state)
    again.load(position)
    fit(second, again, 10)
    for one, other in zip(first.networks.states(), second.networks.states(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_layer_metrics():
    split, standardise, learner, batches = training_parts("cuda", model="gmlp")
    fit(learner, batches, 20)
    names = ["probe_accuracy", "linear_cka", "accuracy", "ridge_r2"]
    phases, fitted = draw_samples(split.train, split.val, split.test, seeding.Seeds(0))
    metrics = LayerMetrics(names, phases, fitted, standardise, 10, seeding.Seeds(0), null_repeats=2, published_batch=64)
    found = metrics.measure(learner, "val")
    assert found["layer_probe_accuracy"].shape == (3, 4) and found["layer_probe_accuracy"].min() > 0.8
    assert found["layer_probe_accuracy_null_mean"].mean() < 0.2
