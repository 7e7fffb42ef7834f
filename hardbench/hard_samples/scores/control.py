"""The control: a score [N] that knows nothing of the samples."""

import numpy as np
import torch
from torch import Tensor

from hardbench.hard_samples.recording import Recording
from hardbench.registry import SCORES
from hardbench.seeding import Seeds


@SCORES.add("random", reads=("repeats",))
def random(recording: Recording) -> Tensor:
    """Uniform in [0, 1), [N]; a sample's number depends on the recording's seed and the sample's index alone.

    SplitMix64 (Steele et al. 2014) at the place `index` of the seed's sequence.
    """
    start = np.uint64(Seeds(recording.seed).child("random").integer)
    state = start + recording.index.numpy().astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy(((state ^ (state >> np.uint64(31))) >> np.uint64(11)).astype(float) * 2.0**-53)
