"""Layer metrics during training, on fixed samples of every phase (validation, train, test)."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import layer_key
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise, unit_of
from hardbench.metrics.published import PUBLISHED
from hardbench.metrics.view import LayerView
from hardbench.models.anchors import similarity_scores
from hardbench.models.gmlp import GreedyStack
from hardbench.registry import LAYER_METRICS
from hardbench.seeding import Seeds
from hardbench.training.evaluation import batches
from hardbench.training.learners import Learner

MOST = 5000  # samples of a phase, and samples that probes are fitted on
BYTES = 1 << 30  # of activations held at a time; with more, the repeats are measured in groups


@dataclass(frozen=True)
class LayerMetrics:
    """The layer metrics of a run, with the fixed samples that they are measured on; `draw_samples` draws these."""

    names: Sequence[str]
    phases: dict[str, Samples]  # val, train and test
    fit: Samples  # probes are fitted on them
    standardise: Standardise
    num_classes: int
    seeds: Seeds
    null_repeats: int = 0
    published_batch: int = 0  # samples of the training mini-batch of the published estimators; 0 for none

    def measure(self, learner: Learner, phase: str) -> dict[str, Tensor]:
        """layer_<metric> of a phase [R, L] on the CPU; for val also mean and std under permuted labels of the metrics that read labels."""
        groups = [self._measure(learner, phase, repeats) for repeats in self._groups(learner)]
        return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}

    def _groups(self, learner: Learner) -> list[range]:
        repeats = learner.networks.repeats
        widths = [h.shape[-1] for h in learner.activations(self._inputs(self.fit, slice(0, 1)))]
        per_repeat = 4 * sum(widths) * (len(self.fit) + len(self.phases["val"]))
        size = max(1, min(repeats, BYTES // per_repeat))
        return [range(start, min(start + size, repeats)) for start in range(0, repeats, size)]

    def _inputs(self, samples: Samples, rows: slice) -> Tensor:
        return self.standardise(samples.inputs[rows], unit_of(samples.inputs))

    def _activations(self, learner: Learner, samples: Samples, repeats: range) -> list[Tensor]:
        """Per layer [r, N, D] float32 of some repeats."""
        parts = [
            [hidden[repeats.start : repeats.stop].float() for hidden in learner.activations(inputs)]
            for inputs, _ in batches(samples, self.standardise)
        ]
        return [torch.cat(layer, 1) for layer in zip(*parts, strict=True)]

    def _measure(self, learner: Learner, phase: str, repeats: range) -> dict[str, Tensor]:
        samples = self.phases[phase]
        views = self._views(learner, samples, repeats)
        values = {layer_key(name, phase): _over_layers(views, name) for name in self.names}
        if phase != "val":
            return values
        for name, band in self._null(views).items():
            values |= {layer_key(name, "null_mean"): band.mean(0), layer_key(name, "null_std"): band.std(0, correction=1)}
        if self.published_batch:
            batch = self.phases["train"].pick(torch.arange(min(self.published_batch, len(samples)), device=samples.labels.device))
            batch_views = self._views(learner, batch, repeats)
            for name in [name for name in self.names if name in PUBLISHED]:
                values[layer_key(name, "published")] = torch.stack([PUBLISHED[name](view) for view in batch_views], -1)
        return values

    def _null(self, views: Sequence[LayerView]) -> dict[str, Tensor]:
        """The metrics that read labels, under permuted labels [M, R, L]."""
        bands: dict[str, list[Tensor]] = {name: [] for name in self.names if "labels" in LAYER_METRICS[name].reads}
        for m in range(self.null_repeats):
            generator = self.seeds.child("null", m).generator()
            both = (views[0].labels, views[0].fit_labels)
            labels, fit_labels = (old[torch.randperm(len(old), generator=generator).to(old.device)] for old in both)
            permuted = [view.with_labels(labels, fit_labels) for view in views]
            for name, band in bands.items():
                band.append(_over_layers(permuted, name))
        return {name: torch.stack(band) for name, band in bands.items() if band}

    def _views(self, learner: Learner, samples: Samples, repeats: range) -> list[LayerView]:
        """One view per layer; neighbours share tensors."""
        held, fit = (self._activations(learner, part, repeats) for part in (samples, self.fit))
        inputs = self._inputs(samples, slice(None)).flatten(1).unsqueeze(0)
        views = [
            LayerView(hidden, before, inputs, samples.labels, self.num_classes, fitted, self.fit.labels, seeds=self.seeds)
            for hidden, before, fitted in zip(held, [inputs, *held], fit, strict=False)
        ]
        if isinstance(learner.networks, GreedyStack):
            head = learner.networks.head
            anchors = head.vectors[repeats.start : repeats.stop]
            scores = [similarity_scores(hidden, anchors, head.similarity) for hidden in held]
            views = [replace(view, scores=score, anchors=anchors, tau=head.tau) for view, score in zip(views, scores, strict=True)]
        linked = (
            replace(view, after=following.activations, fit_after=following.fit_activations, next_scores=following.scores)
            for view, following in itertools.pairwise(views)
        )
        return [*linked, views[-1]]


def draw_samples(train: Samples, held: Samples, test: Samples, seeds: Seeds) -> tuple[dict[str, Samples], Samples]:
    """Equally many samples of the phases val (`held`: the validation split, or the test set), train and test; others of train to fit on."""
    count = sample_count(train, held, test)
    generator = seeds.generator()
    of_train, of_held, of_test = (torch.randperm(len(part), generator=generator).to(train.labels.device) for part in (train, held, test))
    phases = {"val": held.pick(of_held[:count]), "train": train.pick(of_train[:count]), "test": test.pick(of_test[:count])}
    return phases, train.pick(of_train[count : count + MOST])


def sample_count(train: Samples, held: Samples, test: Samples) -> int:
    """The number of samples of each phase on which layers are measured."""
    return min(MOST, len(held), len(test), max(1, len(train) // 2))


def _over_layers(views: Sequence[LayerView], name: str) -> Tensor:
    """A metric of every layer [R, L]."""
    return torch.stack([LAYER_METRICS[name].call(view).cpu() for view in views], -1)


def defined(name: str, values: np.ndarray) -> np.ndarray:
    """The values of the layers for which a metric is defined: without the last one, [R, L - 1], for a metric that reads the next layer."""
    return values[:, :-1] if "after" in LAYER_METRICS[name].reads else values
