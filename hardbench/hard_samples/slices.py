"""Networks that learn from different slices of one order of samples, trained together.

The order is taken apart at the ends of all slices. A piece is shared by the networks whose slices hold it, and these stand beside
each other in the stack, so that one wide product on a window of it serves them all; a network computes nothing for samples it does
not learn from. Measured on one core, 54 networks 784-20-20-10 on slices of 20 000 samples (27 % of them on average), seconds per
epoch: 0.35 in this way; 0.39 with the networks of one slice as one product, slice by slice; 1.54 with weights 0 and 1 on wide
products over all samples.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardbench.data.batches import Batches
from hardbench.data.samples import Samples, Split
from hardbench.data.transforms import Standardise
from hardbench.hard_samples.cuts import TrainSlice
from hardbench.inversion.fullbatch import FullBatch, predictions
from hardbench.models.stacked import Stacked
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import TrainingSettings
from hardbench.training import memory

GROUPS = ("full", "hard", "easy")
LARGEST = 1 << 14  # networks x samples of a piece, so that what it computes stays near the processor


@dataclass(frozen=True)
class Piece:
    """Samples [start, end) of the order, which the cuts [first, last) share."""

    start: int
    end: int
    first: int
    last: int

    def parts(self, largest: int) -> list["Piece"]:
        """The piece in parts of about `largest` cuts x samples at most."""
        count = max(1, round((self.end - self.start) * (self.last - self.first) / largest))
        ends = [self.start + (self.end - self.start) * i // count for i in range(count + 1)]
        return [Piece(start, end, self.first, self.last) for start, end in itertools.pairwise(ends)]


def pieces(cuts: Sequence[TrainSlice], largest: int) -> list[Piece]:
    """The cuts' slices taken apart: every sample of every cut is in one piece, of about `largest` cuts x samples at most."""
    ends = sorted({end for cut in cuts for end in (cut.low, cut.high)})
    found: list[Piece] = []
    for start, end in itertools.pairwise(ends):
        holds = [cut.low <= start and end <= cut.high for cut in cuts]
        for held, run in itertools.groupby(range(len(cuts)), holds.__getitem__):
            places = list(run)
            if held:
                found.append(Piece(start, end, places[0], places[-1] + 1))
    whole: list[Piece] = []
    for piece in sorted(found, key=lambda one: (one.first, one.last, one.start)):
        before = whole[-1] if whole else None
        if before and (before.first, before.last, before.end) == (piece.first, piece.last, piece.start):
            whole[-1] = Piece(before.start, piece.end, piece.first, piece.last)
        else:
            whole.append(piece)
    return [part for piece in whole for part in piece.parts(largest)]


def window(stack: Stacked, first: int, last: int) -> Stacked:
    """The networks [first, last) of a stack as a stack of their own in the same memory: what one learns the other has learned."""
    memory = {id(own): nn.Parameter(own.detach()[first:last]) for own in stack.parameters()}
    part = copy.deepcopy(stack, memory)
    part.repeats = last - first
    return part


def estimate(split: Split, plain: memory.Plain) -> memory.Estimate:
    """What networks on slices of a split take of a machine: no activations but those of a piece."""

    def at_once(config: Any, networks: int) -> int:
        return max(LARGEST, networks)

    return memory.Estimate(split.train.shape, split.num_classes, len(split.train), plain, at_once=at_once)


class Sliced(FullBatch):
    """Backpropagation of the cross entropy, `size` networks on the samples [low, high) of every cut. The only scalar is loss [R].

    Cuts of far ends come first, so that a piece's networks are neighbours.
    """

    def __init__(self, networks: Stacked, settings: TrainingSettings, total_steps: int, cuts: Sequence[TrainSlice]):
        super().__init__(networks, settings, total_steps)
        self.cuts = list(cuts)
        self.size = networks.repeats // len(self.cuts)
        self.gradients = [torch.zeros_like(own) for own in networks.parameters()]
        taken = pieces(self.cuts, LARGEST // self.size)
        windows = {ends: self._window(*ends) for ends in dict.fromkeys((piece.first, piece.last) for piece in taken)}
        self.parts = [(piece, windows[piece.first, piece.last]) for piece in taken]
        counts = torch.tensor([len(cut) for cut in self.cuts], dtype=torch.float32, device=self.device)
        self.counts = counts.repeat_interleave(self.size)

    def _window(self, first: int, last: int) -> Stacked:
        """A window on the networks of the cuts [first, last), whose gradients add up in those of all."""
        rows = slice(first * self.size, last * self.size)
        part = window(self.stacked, rows.start, rows.stop)
        for own, gradient in zip(part.parameters(), self.gradients, strict=True):
            own.grad = gradient[rows]
        return part

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients into the parameters; the loss before the update [R]. inputs [N, ...], labels [R, N]."""
        columns = self.columns(inputs)
        for own, gradient in zip(self.stacked.parameters(), self.gradients, strict=True):
            own.grad = gradient.zero_()
        losses = torch.zeros_like(self.counts)
        for piece, part in self.parts:
            rows = slice(piece.first * self.size, piece.last * self.size)
            with self.arithmetic():
                logits = part.columns(columns[:, piece.start : piece.end])[1]
            each = functional.cross_entropy(logits.float(), labels[rows, piece.start : piece.end], reduction="none")
            own_losses = each.sum(1) / self.counts[rows]
            own_losses.sum().backward()
            losses[rows] += own_losses.detach()
        return {"loss": losses}

    def judge(self, inputs: Tensor, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
        """Accuracy [R] on the full, the hard and the easy test samples of every network's cut, and per class of the full ones [R, K].

        labels [N]; nan where a test has no sample.
        """
        columns, found = self.columns(inputs), []
        for i, cut in enumerate(self.cuts):
            part = window(self.stacked, i * self.size, (i + 1) * self.size)
            sides = (columns[:, : cut.hard_end], columns[:, cut.easy_start :])
            truth = torch.cat([labels[: cut.hard_end], labels[cut.easy_start :]])
            with torch.inference_mode(), self.arithmetic():
                predicted = torch.cat([predictions(part.columns(side)[1].float()) for side in sides], 1)
            right = (predicted == truth).double()
            shares = [one.mean(1) for one in (right, right[:, : cut.hard_end], right[:, cut.hard_end :])]
            onehot = functional.one_hot(truth, num_classes).double()
            found.append([*shares, right @ onehot / onehot.sum(0)])
        named = dict(zip((*GROUPS, "per_class"), zip(*found, strict=True), strict=True))
        return {name: torch.cat(values) for name, values in named.items()}


@dataclass
class SliceTraining:
    """Networks on the cuts of one order, ready to be trained: as many on each as there are streams, from the same initial weights.

    `places` [C * size] is where in the learner the networks of the cuts stand, in the order in which the cuts were given.
    """

    learner: Sliced
    batches: Batches
    samples: Samples
    num_classes: int
    places: list[int]

    @classmethod
    def of(
        cls,
        samples: Samples,
        standardise: Standardise,
        num_classes: int,
        cuts: Sequence[TrainSlice],
        streams: Sequence[Seeds],
        settings: TrainingSettings,
    ) -> "SliceTraining":
        """A training on samples in the cuts' order, on their device."""
        far_first = sorted(range(len(cuts)), key=lambda i: (-cuts[i].high, cuts[i].low))
        everyone = list(streams) * len(cuts)
        networks = MODELS[settings.model].call(samples.shape, num_classes, settings, everyone).to(samples.labels.device)
        batches = Batches(samples, standardise, "full", everyone, [0.0] * len(everyone))
        learner = Sliced(networks, settings, settings.epochs, [cuts[i] for i in far_first])
        places = [far_first.index(i) * len(streams) + r for i in range(len(cuts)) for r in range(len(streams))]
        return cls(learner, batches, samples, num_classes, places)

    def judge(self) -> dict[str, Tensor]:
        """What `Sliced.judge` says of the networks as they are, against the labels trained on; nan for those that diverged."""
        found = self.learner.judge(self.batches.draw()[0], self.samples.labels, self.num_classes)
        for values in found.values():
            values[list(self.learner.diverged)] = torch.nan
        return {name: values[self.places] for name, values in found.items()}

    def states(self) -> list[dict[str, Tensor]]:
        """state_dict of every network as plain PyTorch."""
        return [self.learner.networks.member_state(place) for place in self.places]
