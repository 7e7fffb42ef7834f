"""Batches: every network's own order, augmentation and corruption, from its own streams, at a position that can be stored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from hardbench.data.corruption import Corruption
from hardbench.data.samples import Samples
from hardbench.data.share import membership_of
from hardbench.data.transforms import Standardise, crop_and_flip, unit_of
from hardbench.seeding import Seeds


class Batches:
    """Training batches of R networks without end: inputs float32 [R, B, ...] ([B, ...] where all share the full batch), labels [R, B].

    The last batch of an epoch holds the remaining samples. `labels` [R, N] are the networks' own, where they differ from the samples';
    `rows` [R, n] the samples that each network trains on, where these are not all. `state` and `load` continue a sequence of batches bit
    for bit.
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
        rows: Tensor | None = None,
    ):
        device = train.inputs.device
        self.train = train
        self.standardise = standardise
        self.repeats = len(streams)
        self.own = rows
        self.membership = None if rows is None else membership_of(rows, len(train))  # [R, N]
        self.count = len(train) if rows is None else rows.shape[1]  # samples that a network trains on
        self.size = batch_length(batch_size, self.count)
        self.per_epoch = -(-self.count // self.size)
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
        self._always = self._full_batch() if all(self._in_order) else None

    def _full_batch(self) -> tuple[Tensor, Tensor]:
        """The only batch of networks that all see theirs in order, unchanged."""
        if self.own is not None:
            raw, labels = self._at(self.own)
        else:
            raw, labels = self.train.inputs, self.train.labels.expand(self.repeats, -1) if self.labels is None else self.labels
        return self.standardise(raw, self.unit), labels

    def _at(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs as they are stored and labels of the samples at rows [R, B]."""
        flat = rows.flatten()
        raw = self.train.inputs.index_select(0, flat).view(*rows.shape, *self.train.shape)
        return raw, self.train.labels.index_select(0, flat).view(rows.shape) if self.labels is None else self.labels.gather(1, rows)

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next batch of every network."""
        if self._always is not None:
            self.position += 1
            return self._always
        within = self.position % self.per_epoch
        if within == 0:
            self._shuffle()
        raw, labels = self._at(self._rows[:, within * self.size : (within + 1) * self.size])
        self.position += 1
        if self.augment:
            raw = crop_and_flip(raw, self.augmentation)
        if any(self.corruption.p):
            raw = self.corruption(raw, self.unit)
        return self.standardise(raw, self.unit), labels

    def _shuffle(self) -> None:
        self._before = _states(self.order)
        orders = (
            torch.arange(self.count) if in_order else torch.randperm(self.count, generator=generator)
            for generator, in_order in zip(self.order, self._in_order, strict=True)
        )
        places = torch.stack(list(orders)).to(self.train.labels.device)
        self._rows = places if self.own is None else self.own.gather(1, places)

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
        if self.position % self.per_epoch and self._always is None:
            self._shuffle()


def batch_length(batch_size: int | str, samples: int) -> int:
    """The number of samples in a batch, by the setting: a number, or `full`."""
    return samples if batch_size == "full" else min(int(batch_size), samples)


def _states(generators: Sequence[Generator]) -> Tensor:
    return torch.stack([generator.get_state() for generator in generators])
