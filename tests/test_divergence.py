"""Training that runs away: what has numbers is measured, what has none is nan, and divergence is told as such."""

import math

import numpy as np
import pytest
import torch
from projects import last, new_project
from setups import different_arrays, run, trained, training_setup
from test_layer_metrics import CALLS, noise, view_of

from hardbench.cli import main

HUGE = (1e5, 1e8, 1e12, 1e16, 1e18)
SCALE_FREE = ("linear_cka", "participation_ratio", "mutual_information", "dead_units", "alignment", "margin", "probe_accuracy", "f1_score")
WORDS = ["train", "--threads", "1", "--epochs", "1", "--subset-size", "400", "--layer-metrics", "all"]


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("factor", [*HUGE, 1e25, 1e37])
def test_large_activations_are_measured_or_nan(name, factor):
    """Finite, though their squares, or the squares of those, are beyond float32: never an error, never infinite, never another's number."""
    good, fit = noise(2, 60, 8), noise(2, 60, 8, seed=2)
    large, large_fit = good.clone(), fit.clone()
    large[1], large_fit[1] = large[1] * factor, large_fit[1] * factor
    values = CALLS[name](view_of(large, fit_activations=large_fit))
    plain = CALLS[name](view_of(good, fit_activations=fit))
    assert values[0] == plain[0]
    assert values[1].isfinite() or values[1].isnan()
    if name in SCALE_FREE and factor in HUGE:
        assert values[1].item() == pytest.approx(plain[1].item(), rel=1e-3, abs=1e-5)
    elif name in SCALE_FREE and values[1].isfinite():
        assert values[1].item() == pytest.approx(plain[1].item(), rel=0.1, abs=0.05)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wide", [False, True])
def test_one_huge_sample_raises_nothing(name, wide):
    """As of a network that is about to diverge, with more units than samples as well."""
    width = 90 if wide else 8
    for size in (1e15, 1e19, 3e38, math.inf, math.nan):
        broken = noise(2, 40, width)
        broken[1, 3] = size
        values = CALLS[name](view_of(broken, fit_activations=broken.clone()))
        assert values.shape == (2,)
        assert not values.isinf().any()


@pytest.mark.parametrize("model", ["mlp", "gmlp", "cnn"])
def test_the_others_are_measured(model):
    """Repeats that diverge leave the layer metrics of the rest as they are alone."""
    settings = {"model": model, "width": 8, "epochs": 1, "subset_size": 300, "layer_metrics": ("all",), "repeats": 3}
    sane = trained(**settings)
    ready = training_setup(**settings)
    networks = ready.learner.networks
    networks.load_member(1, {name: value * (1 if name == "head.vectors" else 1e19) for name, value in networks.member_state(1).items()})
    wild, _ = run(ready)
    kept = np.isin(wild.arrays["steps"], sane.arrays["steps"])
    for name, values in wild.arrays.items():
        if name.startswith("layer_"):
            picked = values[:, kept] if values.ndim == 3 else values
            np.testing.assert_array_equal(picked[[0, 2]], sane.arrays[name][[0, 2]], err_msg=name)
            assert not np.isinf(values).any()
    assert np.isnan(wild.arrays["layer_linear_cka"][1, 1:]).any()


@pytest.mark.parametrize(
    ("more", "repeats"),
    [
        (["--optimizer", "sgd", "--lr", "1e10"], 1),
        (["--optimizer", "adam", "--lr", "3e8"], 5),
        (["--model", "cnn", "--lr", "1e9", "--width", "4"], 2),
        (["--model", "gmlp", "--lr", "1e10", "--similarity", "l2"], 2),
        (["--optimizer", "adam", "--lr", "1e20", "--layer-estimator", "published", "--null-repeats", "2"], 2),
    ],
)
def test_a_run_that_diverges_says_so(monkeypatch, tmp_path, capfd, more, repeats):
    """Exit code 4 and one line where the loss was not finite, 0 where it was to the end; what was measured is stored, no traceback."""
    new_project(monkeypatch, tmp_path / "project")
    code = main([*WORDS, *more, "--repeats", str(repeats)])
    told = capfd.readouterr().err
    assert "Traceback" not in told and "eigh" not in told
    run = last()
    arrays = run.arrays
    diverged = arrays["stopped_step"] >= 0
    assert code == (4 if diverged.any() else 0)
    assert run.status == ("FAILED" if diverged.any() else "FINISHED")
    assert ("loss: not finite at step" in " ".join(told.split())) == bool(diverged.any())
    assert arrays["layer_linear_cka"].shape[:2] == (repeats, len(arrays["steps"]))
    assert np.isfinite(arrays["layer_linear_cka"][:, 0]).all()


def test_huge_networks_have_the_same_bits_alone():
    """Weights of some 1e5 make activations that pass float32 in places."""
    settings = {"model": "mlp", "width": 8, "epochs": 1, "subset_size": 300, "layer_metrics": ("all",), "optimizer": "adam", "lr": 3e4}
    together = trained(**settings, repeats=3)
    for r in range(3):
        alone = trained(**settings, repeats=1, first_repeat=r)
        assert different_arrays(together.arrays, alone.arrays, [r]) == []
    assert torch.tensor(together.arrays["layer_linear_cka"]).isfinite().any()
