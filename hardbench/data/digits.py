"""scikit-learn's handwritten digits: 1797 images of 8x8, embedded, so that everything runs without a download."""

from pathlib import Path

import torch

from hardbench.data.samples import Samples, Split
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import SourceSettings

TEST = 360


@DATASETS.add("digits")
def load(settings: SourceSettings, root: Path, seeds: Seeds) -> Split:
    """The split of 1437 training and 360 test digits, float32 [N, 1, 8, 8] in [0, 1] (grey levels 0 to 16, divided by 16).

    The test set is the last 360 of one fixed shuffle, the same for every seed: scikit-learn keeps the digits in the order of their
    writers, so that the last 360 of the file are by a few writers who are not in training (any MLP has an accuracy of .90-.92 there).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=Seeds(0).child("data", "digits").generator())
    inputs = torch.from_numpy(digits.images / 16).float().unsqueeze(1)[order]
    labels = torch.from_numpy(digits.target)[order]
    train, test = (Samples.of(inputs[rows], labels[rows]) for rows in (slice(None, -TEST), slice(-TEST, None)))
    return Split(train, test, tuple("0123456789"))
