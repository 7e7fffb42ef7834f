"""scikit-learn's handwritten digits: 1797 images of 8x8, embedded, so that everything runs without a download."""

from pathlib import Path

import torch

from hardbench.data.samples import Samples, Split
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import DataSettings

TEST = 360  # the last samples, as in scikit-learn's own examples


@DATASETS.add("digits")
def load(settings: DataSettings, root: Path, seeds: Seeds) -> Split:
    """The split of 1437 training and 360 test digits, float32 [N, 1, 8, 8] in [0, 1] (grey levels 0 to 16, divided by 16)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    inputs = torch.from_numpy(found.images / 16).float().unsqueeze(1)
    labels = torch.from_numpy(found.target)
    train, test = (Samples.of(inputs[rows], labels[rows]) for rows in (slice(None, -TEST), slice(-TEST, None)))
    return Split(train, test, tuple("0123456789"))
