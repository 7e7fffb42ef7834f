"""Corrupted pixels: each replaced with probability p by U(0, 1), with a random stream for every network.

One whole number per value decides both: of the 2^b equally likely draws the lowest T = round(p 2^b) replace the value, and their place
among those, (u + 1/2) / T, is what it is replaced by. So p is met to 2^-(b + 1) and the new values have mean 1/2 exactly and variance
(1 - T^-2) / 12: b is 16 from p = 1/64 on (p to 8e-6, 1024 levels or more), else 32.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from hardbench.seeding import Seeds

FINE = 1 / 64  # below this p a draw has 32 bits
WORD = np.iinfo(np.uint64).max


class Corruption:
    """Corruption of the inputs of R networks, each with its probability and its stream: NumPy's SFC64 on a CPU, torch's on a GPU."""

    def __init__(self, streams: Sequence[Seeds], p: Sequence[float], device: torch.device):
        self.p = list(p)
        seeds = [stream.child("corruption") for stream in streams]
        self._cpu = [np.random.Generator(np.random.SFC64(seed.integer)) for seed in seeds] if device.type == "cpu" else []
        self._gpu: list[Generator] = [] if device.type == "cpu" else [seed.generator(device) for seed in seeds]

    def __call__(self, raw: Tensor, unit: float) -> Tensor:
        """float32 [R, B, ...] in the units of `raw`, each value of network r replaced by U(0, unit) with probability p[r]."""
        values = raw.to(torch.float32, copy=True)
        for r, share in enumerate(self.p):
            if share > 0 and self._cpu:
                _corrupt(self._cpu[r], values[r], share, unit)
            elif share > 0:
                draws = torch.rand(values[r].shape, generator=self._gpu[r], device=values.device)
                values[r] = torch.where(draws < share, draws * (unit / share), values[r])
        return values

    def state(self) -> Tensor:
        """The states of all streams, [R, ...]."""
        if self._gpu:
            return torch.stack([generator.get_state() for generator in self._gpu])
        states = [generator.bit_generator.state["state"]["state"] for generator in self._cpu]
        return torch.from_numpy(np.stack(states).view(np.int64))

    def load(self, state: Tensor) -> None:
        """Continue from where `state` was taken."""
        for generator, saved in zip(self._gpu, state, strict=False):
            generator.set_state(saved.clone())  # torch crashes on a row of a larger tensor
        for numpy, saved in zip(self._cpu, state, strict=False):
            words = saved.numpy().view(np.uint64).copy()
            numpy.bit_generator.state = {"bit_generator": "SFC64", "state": {"state": words}, "has_uint32": 0, "uinteger": 0}


def _corrupt(generator: np.random.Generator, values: Tensor, p: float, unit: float) -> None:
    """Corrupt the values of one network in place, without comparison and selection, which torch does one element at a time."""
    kind, bits = (np.int16, 16) if p >= FINE else (np.int32, 32)
    lowest = -(2 ** (bits - 1))  # the draws are read as signed numbers
    count = max(1, round(p * 2**bits))
    words = generator.integers(0, WORD, -(-values.numel() * bits // 64), np.uint64, endpoint=True)
    draws = torch.from_numpy(words.view(kind)[: values.numel()]).view(values.shape)
    if bits == 16:
        places = draws.float()
        kept = (places - (lowest + count - 1)).clamp_(0, 1)  # 1 from the first draw on that replaces nothing, else 0
        places.sub_(lowest)
    else:
        kept = draws.clamp(lowest + count - 1, lowest + count).sub_(lowest + count - 1).float()
        places = draws.bitwise_xor(lowest).float()
    torch.lerp(places.add_(0.5).mul_(unit / count), values, kept, out=values)
