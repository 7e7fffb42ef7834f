"""What `normalize` makes of images and of tables: a channel of an image is a plane of it, a channel of a vector is a feature."""

import numpy as np
import pytest
import torch
from setups import trained, training_setup

from hardbench.data.samples import Samples
from hardbench.data.transforms import moments, standardise_for
from hardbench.errors import ConfigError
from hardbench.settings import DataSettings


def samples(inputs):
    return Samples.of(torch.from_numpy(inputs), torch.zeros(len(inputs)))


@pytest.fixture(scope="module")
def tumours(tmp_path_factory):
    """scikit-learn's breast_cancer: 30 columns from thousandths to thousands, 400 rows to train on and 169 to test on."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(found.data))
    inputs, labels = found.data.astype(np.float32)[order], found.target[order]
    path = tmp_path_factory.mktemp("table") / "tumours.npz"
    np.savez(path, x_train=inputs[:400], y_train=labels[:400], x_test=inputs[400:], y_test=labels[400:])
    return {"dataset": f"npz:{path}"}


def test_a_table_is_standardised_feature_by_feature(tumours):
    """By default as well as by `pixel`; with one number for all columns the small ones are lost (0.910)."""
    accuracy = {
        name: trained(**tumours, repeats=3, **how).arrays["accuracy"][:, -1].mean()
        for name, how in {"default": {}, "pixel": {"normalize": "pixel"}, "scalar": {"normalize": "scalar"}}.items()
    }
    assert accuracy["default"] > 0.96
    assert accuracy["default"] == pytest.approx(accuracy["pixel"], abs=0.006)
    assert accuracy["default"] > accuracy["scalar"] + 0.03


def test_constants_of_a_table():
    """Columns whose mean is a million times their spread, whose spread is 1e-9, and that never vary: the last keep std 1."""
    rng = np.random.default_rng(1)
    columns = [1e6 + rng.normal(0, 1, 500), rng.normal(0, 1e-9, 500), np.full(500, 0.1), rng.normal(-5, 3, 500)]
    inputs = np.stack(columns, 1).astype(np.float32)
    mean, std = moments(torch.from_numpy(inputs), "channel")
    wide = inputs.astype(np.float64)
    np.testing.assert_allclose(mean, wide.mean(0), rtol=1e-6)
    np.testing.assert_allclose(std, [wide[:, 0].std(), wide[:, 1].std(), 1, wide[:, 3].std()], rtol=1e-6)


def test_standardised_features_have_mean_0_and_std_1():
    inputs = np.random.default_rng(2).normal([3, -50, 0.002], [1, 20, 0.0004], (300, 3)).astype(np.float32)
    found = standardise_for(DataSettings(dataset="gaussian"), samples(inputs))(torch.from_numpy(inputs), 1.0).numpy()
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-5)


@pytest.mark.parametrize("how", ["scalar", "channel", "pixel"])
@pytest.mark.parametrize("shape", [(1, 4, 5), (3, 4, 5)])
def test_images_keep_their_constants(how, shape):
    pixels = np.random.default_rng(3).integers(0, 256, (5000, *shape), dtype=np.uint8)
    mean, std = moments(torch.from_numpy(pixels), how)
    axes = {"scalar": (0, 1, 2, 3), "channel": (0, 2, 3), "pixel": (0,)}[how]
    wide = pixels / 255
    np.testing.assert_allclose(mean.squeeze(), wide.mean(axes).squeeze(), rtol=1e-6)
    np.testing.assert_allclose(std.squeeze(), wide.std(axes).squeeze(), rtol=1e-6)
    assert mean.shape == {"scalar": (1, 1, 1), "channel": (shape[0], 1, 1), "pixel": shape}[how]


def test_given_constants_are_one_or_one_per_feature(tumours):
    given = tuple(float(value) for value in range(30))
    assert torch.equal(training_setup(**tumours, mean=given).standardise.mean, torch.tensor(given))
    assert torch.equal(training_setup(**tumours, mean=(2.0,)).standardise.mean, torch.full((30,), 2.0))
    with pytest.raises(ConfigError, match=r"^mean: \[0\.0, 1\.0\]; as many numbers as 1 or 30$"):
        training_setup(**tumours, mean=(0.0, 1.0))


@pytest.mark.parametrize("how", ["channel", "pixel"])
@pytest.mark.parametrize("value", [0.1, 1e-30, -7e8, 1e30])
def test_a_feature_that_varies_by_rounding_alone_is_constant(how, value):
    """One number in a hundred is one float32 beside the others: a standard deviation made of that is noise."""
    column = np.full(100, value, "f4")
    column[7] = np.nextafter(column[7], np.float32(np.inf))
    varying = np.float32(value) * (1 + np.linspace(0, 1e-3, 100, dtype="f4"))
    mean, std = moments(torch.from_numpy(np.stack([column, varying], 1)), how)
    assert std[0] == 1
    assert std[1].item() == pytest.approx(varying.astype(float).std(), rel=1e-4)
    assert torch.equal(moments(torch.from_numpy(np.stack([column, varying], 1)), "pixel")[0], mean)
