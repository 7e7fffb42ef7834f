"""Inversions of MNIST beside the figures of Ciceri et al. 2024 (arXiv:2303.05161) and Pukowski & Lu 2024 (arXiv:2409.14401)."""

import numpy as np
import pytest
import torch

from hardbench.config import environment
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.radii import published
from hardbench.inversion.search import Search, TrainingData
from hardbench.settings import InversionSettings

pytestmark = [pytest.mark.slow, pytest.mark.real]


def search(repeats, **words):
    settings = InversionSettings.read({"dataset": "mnist", "detector": "published"} | words, environment(InversionSettings))
    split, standardise = prepare_pool(settings, 0)
    return Search(TrainingData(split.train, standardise, split.num_classes), settings, range(repeats))


def test_parity():
    found = search(8, task="parity").run()
    errors, epochs = found.error_at_inversion, found.inversion_epoch
    assert bool(epochs.isfinite().all())
    assert bool(((epochs >= 60) & (epochs <= 120)).all())
    assert 0.083 <= errors.min() <= errors.max() <= 0.096
    assert errors.max() - errors.min() < 0.01
    assert bool(((found.error[:, -1] > 0.022) & (found.error[:, -1] < 0.035)).all())


def test_classes():
    one = search(5)
    found = one.run()
    epochs = found.inversion_epoch
    assert epochs.isfinite().sum() >= 44
    assert 100 <= epochs.nanmedian() <= 250
    smallest = found.radii.min(1).values.mean(0)
    assert smallest.argmin() == 1
    assert smallest.argmax() in (2, 5)
    assert 0.33 < smallest[1] < 0.42
    assert 0.58 < smallest.max() < 0.70
    assert bool(((found.error[:, -1] > 0.05) & (found.error[:, -1] < 0.065)).all())
    own = found.stragglers.float().mean(1)
    one.settings = InversionSettings(dataset="mnist", detector="published", snapshot="last")
    last = one.result().stragglers.float().mean(1)
    assert bool(((last > 0.05) & (last < 0.095)).all())
    assert 0.075 < own.mean() < 0.11
    assert bool((own > last).all())


def test_the_smooth_detector_finds_most_of_them_near_the_published_ones():
    found = search(5, detector="smooth").run()
    epochs = found.inversion_epoch.numpy()
    assert np.isfinite(epochs).sum() >= 44
    assert 100 <= np.nanmedian(epochs) <= 250
    assert np.nanmedian(np.abs(epochs - published(found.radii.transpose(0, 1).numpy()))) < 10
    assert torch.equal(found.inversion_epoch.isnan(), found.judged == 500)  # a class without inversion is judged at the end
