"""What is registered works: every model, optimiser and schedule builds, trains, evaluates, and keeps the promise, by existing."""

import numpy as np
import pytest
import torch
from setups import copied, different_arrays, equal_weights, run, trained, training_setup

from hardbench.errors import HardbenchError
from hardbench.registry import MODELS, OPTIMIZERS, SCHEDULERS
from hardbench.studies import train

SHAPES = ((9,), (1, 7, 9), (1, 8, 8), (3, 32, 32), (3, 64, 64))  # smallest first
TINY = {"dataset": "gaussian", "gaussian_train": 5, "gaussian_test": 2, "batch_size": 8, "epochs": 1, "eval_points": 2, "log_every": 1}


def _fitting(model):
    """The smallest data set that a model takes: two steps of 8 and 7 samples of three classes."""
    refused = []
    for shape in SHAPES:
        try:
            training_setup(**TINY, model=model, gaussian_shape=shape)
        except HardbenchError as error:
            refused.append(str(error))
        else:
            return TINY | {"model": model, "gaussian_shape": shape}
    raise AssertionError(refused)


@pytest.mark.parametrize("model", list(MODELS))
def test_every_model_trains_evaluates_and_keeps_the_promise(model):
    settings = _fitting(model)
    ready = training_setup(**settings, repeats=2)
    initial = copied(ready.learner.networks.states())
    found = run(ready)[0]
    assert found.arrays["steps"].tolist() == [0, 1, 2]
    assert found.arrays["confusion"].sum((2, 3)).tolist() == [[6] * 3] * 2
    for name in ("loss", "train_loss", "loss_per_class"):
        assert np.isfinite(found.arrays[name]).all()
    networks, inputs = ready.learner.networks.eval(), torch.randn(4, *settings["gaussian_shape"])
    logits, activations = networks(inputs), networks.activations(inputs)
    assert logits.shape == (2, 4, 3)
    assert all(hidden.shape[:2] == (2, 4) and hidden.ndim == 3 for hidden in activations)
    torch.testing.assert_close(networks.logits(activations[-1]), logits)
    for r in range(2):
        member, after = networks.member(r).eval(), networks.member_state(r)
        trainable = [name for name, _ in member.named_parameters()]
        assert not any(torch.equal(initial[r][name], after[name]) for name in trainable)
        torch.testing.assert_close(member(inputs), logits[r], rtol=1e-4, atol=1e-4)
        alone = trained(**settings, repeats=1, first_repeat=r)
        assert different_arrays(found.arrays, alone.arrays, [r]) == []
        assert equal_weights(found.weights[r], alone.weights[0])


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_optimizer_learns(name):
    """Sixty samples of well separated classes are learned, the first loss being about ln 3."""
    apart = {"gaussian_mode": "overlap", "gaussian_cosine": -0.5, "gaussian_separation": 6.0, "gaussian_shape": (9,), "gaussian_train": 20}
    found = trained(**TINY | apart | {"epochs": 10}, model="mlp", width=16, optimizer=name, lr=1e-2 if name != "sgd" else 0.1).arrays
    assert found["loss"][0, 0] > 0.7
    assert found["loss"][0, -1] < 0.1
    assert found["accuracy"][0, -1] == 1


@pytest.mark.parametrize("name", list(SCHEDULERS))
def test_every_schedule_is_a_factor(name):
    settings = train.Config(scheduler=name)
    for total in (1, 2, 7, 100):
        factors = [SCHEDULERS[name].call(step, total, settings) for step in range(total)]
        assert all(0 < factor <= 1 for factor in factors)
        assert max(factors) == pytest.approx(1, abs=0.02)


def test_init_is_what_it_says():
    """kaiming: variance 2 / fan_in, biases 0, the head too; one law bounded at sqrt(3) standard deviations, the other not."""
    for init in ("kaiming_normal", "kaiming_uniform"):
        member = training_setup(dataset="digits", model="mlp", widths=(400, 300), init=init).learner.networks.member(0)
        for name, value in member.state_dict().items():
            if name.endswith("bias"):
                assert not value.any()
            else:
                std = (2 / value.shape[1]) ** 0.5
                assert value.std().item() == pytest.approx(std, rel=0.05)
                assert (value.abs().max().item() <= 3**0.5 * std * 1.0001) == (init == "kaiming_uniform")
    plain = training_setup(dataset="digits", model="mlp", widths=(400, 300)).learner.networks.member(0).state_dict()
    for name, value in plain.items():
        fan_in = plain[name.removesuffix("bias") + "weight" if name.endswith("bias") else name].shape[1]
        assert 0 < value.abs().max() <= fan_in**-0.5
