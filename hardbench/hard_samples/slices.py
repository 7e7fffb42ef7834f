"""Networks that learn from different slices of one order of samples, trained together.

The order is cut into segments at the ends of all slices. A segment is shared by the networks whose slices contain it, and these are
neighbours in the stack, so that one wide product on a window of the stack serves them all; a network computes nothing for samples it
does not learn from. Measured on one core, 54 networks 784-20-20-10 on slices of 20 000 samples (27 % of them on average), seconds per
epoch: 0.35 in this way; 0.39 with the networks of one slice as one product, slice by slice; 1.54 with weights 0 and 1 on wide
products over all samples.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardbench.data.samples import Split
from hardbench.hard_samples.cuts import TrainSlice
from hardbench.hard_samples.tables import TESTS
from hardbench.inversion.fullbatch import FullBatch, predictions
from hardbench.inversion.search import TrainingData
from hardbench.models.stacked import Stacked
from hardbench.seeding import Seeds
from hardbench.settings import TrainingSettings
from hardbench.training import memory

LARGEST = 1 << 14  # networks x samples of a segment, so that its activations stay in the processor's caches


@dataclass(frozen=True)
class Segment:
    """Samples [start, end) of the order, which the slices [first, last) share."""

    start: int
    end: int
    first: int
    last: int

    def split(self, largest: int) -> list["Segment"]:
        """The segment in parts of about `largest` slices x samples at most."""
        count = max(1, round((self.end - self.start) * (self.last - self.first) / largest))
        ends = [self.start + (self.end - self.start) * i // count for i in range(count + 1)]
        return [Segment(start, end, self.first, self.last) for start, end in itertools.pairwise(ends)]


def segments(slices: Sequence[TrainSlice], largest: int) -> list[Segment]:
    """The segments that the slices consist of, of about `largest` slices x samples at most: every sample of a slice is in one of them."""
    ends = sorted({end for train in slices for end in (train.low, train.high)})
    spans: dict[tuple[int, int], list[list[int]]] = {}  # [start, end) by the slices that share them
    for start, end in itertools.pairwise(ends):
        contains = [train.low <= start and end <= train.high for train in slices]
        for inside, run in itertools.groupby(range(len(slices)), contains.__getitem__):
            places = list(run)
            if not inside:
                continue
            parts = spans.setdefault((places[0], places[-1] + 1), [])
            if parts and parts[-1][1] == start:
                parts[-1][1] = end
            else:
                parts.append([start, end])
    whole = [Segment(start, end, *sharing) for sharing, parts in sorted(spans.items()) for start, end in parts]
    return [part for segment in whole for part in segment.split(largest)]


def window(stack: Stacked, first: int, last: int) -> Stacked:
    """The networks [first, last) of a stack as a stack whose parameters are views of the same memory."""
    views = {id(parameter): nn.Parameter(parameter.detach()[first:last]) for parameter in stack.parameters()}
    part = copy.deepcopy(stack, views)
    part.repeats = last - first
    return part


def estimate(split: Split, plain: memory.Plain) -> memory.Estimate:
    """Estimated memory of networks on slices of a split, which hold the activations of one segment at a time."""
    shape, classes, samples = split.train.shape, split.num_classes, len(split.train)
    return memory.Estimate(shape, classes, samples, plain, at_once=lambda config, networks: max(LARGEST, networks))


class SliceLearner(FullBatch):
    """Backpropagation of the cross entropy, `size` networks on the samples [low, high) of every slice. The only scalar is loss [R].

    Slices are expected by falling `high`, so that the networks of a segment are neighbours.
    """

    def __init__(self, networks: Stacked, settings: TrainingSettings, total_steps: int, slices: Sequence[TrainSlice]):
        super().__init__(networks, settings, total_steps)
        self.slices = list(slices)
        self.size = networks.repeats // len(self.slices)
        self.gradients = [torch.zeros_like(parameter) for parameter in networks.parameters()]
        shared = segments(self.slices, LARGEST // self.size)
        windows = {ends: self._window(*ends) for ends in dict.fromkeys((segment.first, segment.last) for segment in shared)}
        self.parts = [(segment, windows[segment.first, segment.last]) for segment in shared]
        counts = torch.tensor([len(train) for train in self.slices], dtype=torch.float32, device=self.device)
        self.counts = counts.repeat_interleave(self.size)

    def _window(self, first: int, last: int) -> Stacked:
        """The networks of the slices [first, last), whose gradients add up in those of the whole stack."""
        rows = slice(first * self.size, last * self.size)
        part = window(self.stacked, rows.start, rows.stop)
        for parameter, gradient in zip(part.parameters(), self.gradients, strict=True):
            parameter.grad = gradient[rows]
        return part

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients into the parameters; the loss before the update [R]. inputs [N, ...], labels [R, N]."""
        columns = self.columns(inputs)
        for parameter, gradient in zip(self.stacked.parameters(), self.gradients, strict=True):
            parameter.grad = gradient.zero_()
        losses = torch.zeros_like(self.counts)
        for segment, part in self.parts:
            rows, samples = slice(segment.first * self.size, segment.last * self.size), slice(segment.start, segment.end)
            with self.arithmetic():
                logits = part.columns(columns[:, samples])[1]
            sums = functional.cross_entropy(logits.float(), labels[rows, samples], reduction="none").sum(1)
            segment_losses = sums / self.counts[rows]
            segment_losses.sum().backward()
            losses[rows] += segment_losses.detach()
        return {"loss": losses}

    def accuracies(self, inputs: Tensor, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
        """Accuracy [R] on the full, hard and easy test samples of every network's slice, and `per_class` of the full test [R, K].

        From inputs [N, ...] and labels [N]; nan where a test has no sample.
        """
        columns, rows = self.columns(inputs), []
        for i, train in enumerate(self.slices):
            part = window(self.stacked, i * self.size, (i + 1) * self.size)
            sides = (columns[:, : train.hard_end], columns[:, train.easy_start :])
            truth = torch.cat([labels[: train.hard_end], labels[train.easy_start :]])
            with torch.inference_mode(), self.arithmetic():
                predicted = torch.cat([predictions(part.columns(side)[1].float()) for side in sides], 1)
            right = (predicted == truth).double()
            shares = [group.mean(1) for group in (right, right[:, : train.hard_end], right[:, train.hard_end :])]
            onehot = functional.one_hot(truth, num_classes).double()
            rows.append([*shares, right @ onehot / onehot.sum(0)])
        return {name: torch.cat(values) for name, values in zip((*TESTS, "per_class"), zip(*rows, strict=True), strict=True)}


class SliceTraining:
    """Networks on the slices of one order, ready to be trained: one per stream on each slice, from the same initial weights.

    The data's train samples are in the slices' order. `places` [S * size] says where in the learner's stack the networks of the slices are,
    in the order in which the slices were given.
    """

    def __init__(self, data: TrainingData, slices: Sequence[TrainSlice], streams: Sequence[Seeds], settings: TrainingSettings):
        far_first = sorted(range(len(slices)), key=lambda i: (-slices[i].high, slices[i].low))
        all_streams = list(streams) * len(slices)
        self.data, self.batches = data, data.batches(all_streams)
        networks = data.networks(settings, all_streams)
        self.learner = SliceLearner(networks, settings, settings.epochs, [slices[i] for i in far_first])
        self.places = [far_first.index(i) * len(streams) + r for i in range(len(slices)) for r in range(len(streams))]

    def accuracies(self) -> dict[str, Tensor]:
        """`SliceLearner.accuracies` on the labels trained on, by slice in the order given; nan for networks that diverged."""
        accuracies = self.learner.accuracies(self.batches.draw()[0], self.data.train.labels, self.data.num_classes)
        for values in accuracies.values():
            values[list(self.learner.diverged)] = torch.nan
        return {name: values[self.places] for name, values in accuracies.items()}

    def states(self) -> list[dict[str, Tensor]]:
        """state_dict of every network as plain PyTorch, in the same order."""
        return [self.learner.networks.member_state(place) for place in self.places]
