"""Networks that learn from different slices of one order of samples, trained together: one pass over the order, network by network no more.

Measured on one core, 54 networks 784-20-20-10 on slices of 20 000 samples (27 % of them on average), seconds per epoch: 0.41 with the
networks of one slice as one product on a view of the data; 1.96 with weights 0 and 1 on wide products over all samples; 0.42 with wide
products over the pieces between two ends of slices, whose parameters have to be gathered and scattered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import ModuleList, functional

from hardbench.data.batches import Batches
from hardbench.data.imbalance import Cut
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise
from hardbench.models.layers import Networks, Stacked
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import TrainingSettings
from hardbench.training.fullbatch import FullBatch, predictions

GROUPS = ("full", "hard", "easy")


class Bundle(Networks):
    """Stacks of equal size one after the other: network r is number r % size of stack r // size."""

    def __init__(self, stacks: Sequence[Stacked]):
        torch.nn.Module.__init__(self)
        self.stacks = ModuleList(stacks)
        self.size = stacks[0].repeats
        self.repeats = self.size * len(stacks)

    def each(self) -> Iterator[tuple[slice, Stacked]]:
        """The networks' places and the stack that holds them."""
        for i, stack in enumerate(self.stacks):
            assert isinstance(stack, Stacked)
            yield slice(i * self.size, (i + 1) * self.size), stack

    def _place(self, r: int) -> tuple[Stacked, int]:
        stack = self.stacks[r // self.size]
        assert isinstance(stack, Stacked)
        return stack, r % self.size

    def member_state(self, r: int) -> dict[str, Tensor]:
        """state_dict of network r as plain PyTorch."""
        stack, place = self._place(r)
        return stack.member_state(place)

    def load_member(self, r: int, state: dict[str, Tensor]) -> None:
        """Put a plain network's state_dict into place r."""
        stack, place = self._place(r)
        stack.load_member(place, state)


class Sliced(FullBatch):
    """Backpropagation of the cross entropy, the networks of stack i on the samples [low, high) of cut i. The only scalar is loss [R]."""

    def __init__(self, networks: Bundle, settings: TrainingSettings, total_steps: int, cuts: Sequence[Cut]):
        super().__init__(networks, settings, total_steps)  # type: ignore[arg-type]  # its own backward and judge use `bundle`
        self.bundle = networks
        self.cuts = list(cuts)

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients into the parameters; the loss before the update [R]. inputs [N, ...], labels [R, N]."""
        columns = self.columns(inputs)
        losses = torch.empty(self.bundle.repeats, device=self.device)
        for (rows, stack), cut in zip(self.bundle.each(), self.cuts, strict=True):
            with self.arithmetic():
                logits = stack.columns(columns[:, cut.low : cut.high])[1]
            own = functional.cross_entropy(logits.float(), labels[rows, cut.low : cut.high], reduction="none").mean(1)
            own.sum().backward()
            losses[rows] = own.detach()
        return {"loss": losses}

    def judge(self, inputs: Tensor, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
        """Accuracy [R] on the full, the hard and the easy test samples of every network's cut, and per class of the full ones [R, K].

        labels [N]; nan where a test has no sample.
        """
        columns, found = self.columns(inputs), []
        for (_, stack), cut in zip(self.bundle.each(), self.cuts, strict=True):
            parts = (columns[:, : cut.hard_end], columns[:, cut.easy_start :])
            truth = torch.cat([labels[: cut.hard_end], labels[cut.easy_start :]])
            with torch.inference_mode(), self.arithmetic():
                predicted = torch.cat([predictions(stack.columns(part)[1].float()) for part in parts], 1)
            right = (predicted == truth).double()
            shares = [part.mean(1) for part in (right, right[:, : cut.hard_end], right[:, cut.hard_end :])]
            onehot = functional.one_hot(truth, num_classes).double()
            found.append([*shares, right @ onehot / onehot.sum(0)])
        named = dict(zip((*GROUPS, "per_class"), zip(*found, strict=True), strict=True))
        return {name: torch.cat(values) for name, values in named.items()}


@dataclass
class Course:
    """Networks on the cuts of one order, ready to be trained: `size` per cut, of the same initial weights on each."""

    learner: Sliced
    batches: Batches
    samples: Samples
    num_classes: int

    @classmethod
    def of(
        cls,
        samples: Samples,
        standardise: Standardise,
        num_classes: int,
        cuts: Sequence[Cut],
        streams: Sequence[Seeds],
        settings: TrainingSettings,
    ) -> "Course":
        """A course on samples in the cuts' order, on their device."""
        device = samples.labels.device
        build = MODELS[settings.model].call
        bundle = Bundle([build(samples.shape, num_classes, settings, streams) for _ in cuts]).to(device)
        batches = Batches(samples, standardise, "full", list(streams) * len(cuts), [0.0] * bundle.repeats)
        return cls(Sliced(bundle, settings, settings.epochs, cuts), batches, samples, num_classes)

    def judge(self) -> dict[str, Tensor]:
        """What `Sliced.judge` says of the networks as they are, against the labels trained on."""
        return self.learner.judge(self.batches.draw()[0], self.samples.labels, self.num_classes)
