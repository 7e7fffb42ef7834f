"""Batches: every network's own order, augmentation and corruption, from its own streams, at a position that can be stored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from hardbench.data.corruption import Corruption
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise, crop_and_flip, unit_of
from hardbench.seeding import Seeds


class Batches:
    """Training batches of R networks without end: inputs float32 [R, B, ...] ([B, ...] where all share the full batch), labels [R, B].

    The last batch of an epoch holds the remaining samples. `labels` [R, N] are the networks' own, where they differ from the samples'.
    `state` and `load` continue a sequence of batches bit for bit.
    """

    def __init__(
        self,
        train: Samples,
        standardise: Standardise,
        batch_size: int | str,
        streams: Sequence[Seeds],
        corruption_p: Sequence[float],
        augment: bool = False,
        labels: Tensor | None = None,
    ):
        device = train.inputs.device
        self.train = train
        self.standardise = standardise
        self.repeats = len(streams)
        self.size = batch_length(batch_size, len(train))
        self.per_epoch = -(-len(train) // self.size)
        self.position = 0  # batches drawn
        self.augment = augment
        self.labels = labels
        self.unit = unit_of(train.inputs)
        self.order: list[Generator] = [seeds.child("order").generator() for seeds in streams]
        self.augmentation: list[Generator] = [seeds.child("augment").generator(device) for seeds in streams]
        self.corruption = Corruption(streams, corruption_p, device)
        self._rows = torch.empty(0)
        self._before: Tensor | None = None
        self._in_order = [self.per_epoch == 1 and not augment and not p for p in corruption_p]  # the full batch, unchanged
        self._shared = standardise(train.inputs, self.unit) if all(self._in_order) else None

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next batch of every network."""
        if self._shared is not None:
            self.position += 1
            return self._shared, self.train.labels.expand(self.repeats, -1) if self.labels is None else self.labels
        within = self.position % self.per_epoch
        if within == 0:
            self._shuffle()
        rows = self._rows[:, within * self.size : (within + 1) * self.size]
        self.position += 1
        flat = rows.flatten()
        raw = self.train.inputs.index_select(0, flat).view(*rows.shape, *self.train.shape)
        labels = self.train.labels.index_select(0, flat).view(rows.shape) if self.labels is None else self.labels.gather(1, rows)
        if self.augment:
            raw = crop_and_flip(raw, self.augmentation)
        if any(self.corruption.p):
            raw = self.corruption(raw, self.unit)
        return self.standardise(raw, self.unit), labels

    def _shuffle(self) -> None:
        self._before = _states(self.order)
        count = len(self.train)
        orders = (
            torch.arange(count) if in_order else torch.randperm(count, generator=generator)
            for generator, in_order in zip(self.order, self._in_order, strict=True)
        )
        self._rows = torch.stack(list(orders)).to(self.train.labels.device)

    def state(self) -> dict[str, Any]:
        """The position in the sequence of batches, and the states of the random streams."""
        inside = self.position % self.per_epoch != 0 and self._before is not None
        return {
            "position": self.position,
            "order": self._before if inside else _states(self.order),
            "augment": _states(self.augmentation),
            "corruption": self.corruption.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from where `state` was taken."""
        self.position = state["position"]
        self.corruption.load(state["corruption"])
        for generators, name in ((self.order, "order"), (self.augmentation, "augment")):
            for generator, saved in zip(generators, state[name], strict=True):
                generator.set_state(saved.clone())  # torch crashes on a row of a larger tensor
        if self.position % self.per_epoch and self._shared is None:
            self._shuffle()


def batch_length(batch_size: int | str, samples: int) -> int:
    """The number of samples in a batch, by the setting: a number, or `full`."""
    return samples if batch_size == "full" else min(int(batch_size), samples)


def _states(generators: Sequence[Generator]) -> Tensor:
    return torch.stack([generator.get_state() for generator in generators])
