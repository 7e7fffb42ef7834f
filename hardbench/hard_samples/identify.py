"""The hard samples by every strategy in every one of S sets: from a search for stragglers and S newly trained networks.

After Pukowski & Lu 2024 (arXiv:2409.14401): stragglers say how many samples of a class are hard, a score says which ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hardbench.data.samples import Samples
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.scoring import values
from hardbench.hard_samples.selection import hardest_at_level
from hardbench.inversion.fullbatch import FullBatch
from hardbench.inversion.search import Inversions, Search, TrainingData
from hardbench.seeding import Seeds
from hardbench.settings import STRAGGLERS, TrainingSettings
from hardbench.training import callbacks
from hardbench.training.learners import cross_entropy
from hardbench.training.loop import Callback, TrainState, at, evaluation_steps, fit

GALLERY = 24  # hardest samples kept per strategy
POINTS = 10  # steps at which the logits of fresh networks are recorded, evenly spaced in their logarithm


@dataclass(frozen=True)
class HardSamples:
    """The samples by one strategy: score [S, N], higher is harder; hard [S, N], bool."""

    score: Tensor
    hard: Tensor


def search_until_inverted(search: Search, show: Callback) -> Inversions:
    """Train a search's networks until every class of each has inverted, or to the end."""

    def stop(state: TrainState) -> None:
        if np.isfinite(search.recorder.inversion_epoch).all():
            for r in range(state.learner.networks.repeats):
                state.learner.freeze(r, state.step)

    return search.run([stop, show])


def fresh_logits(data: TrainingData, settings: TrainingSettings, streams: Sequence[Seeds], show: Callback) -> tuple[Tensor, Tensor]:
    """Logits [S, T, N, K] of one newly trained network per stream, on all samples, and the steps [T] they were recorded at."""
    learner = FullBatch(data.networks(settings, streams), settings, settings.epochs)
    steps: list[int] = []
    points: list[Tensor] = []

    def record(state: TrainState) -> None:
        steps.append(state.step)
        points.append(learner.forward_all(state.batches.draw()[0]).logits.transpose(1, 2).float().cpu())

    recording = at(evaluation_steps(POINTS, None, settings.epochs), record)
    fit(learner, data.batches(streams), settings.epochs, [callbacks.divergence(), recording, show])
    return torch.stack(points, 1), torch.tensor(steps)


def straggler_counts(inversions: Inversions, labels: Tensor, classes: int) -> Tensor:
    """Stragglers per class in every set, n_c, int64 [S, K]."""
    return torch.stack([torch.bincount(labels[mask], minlength=classes) for mask in inversions.stragglers])


def identify(
    strategies: Sequence[str], inversions: Inversions, logits: tuple[Tensor, Tensor] | None, samples: Samples, counts: Tensor, level: str
) -> dict[str, HardSamples]:
    """Scores and hard samples by strategy. The hard samples of stragglers are the stragglers, of any other score the counts [S, K] hardest.

    `logits` are those of `fresh_logits`; the strategy stragglers does without them (None).
    """
    labels, index = samples.labels, samples.index
    result = {}
    for name in strategies:
        if name == STRAGGLERS:
            at_end = inversions.logits.unsqueeze(1)
            recording = Recording(at_end, labels, torch.zeros(1, dtype=torch.long), index, stragglers=inversions.stragglers)
            result[name] = HardSamples(values(recording, [name])[name], inversions.stragglers)
        else:
            assert logits is not None
            trained = logits[1] > 0
            score = values(Recording(logits[0][:, trained], labels, logits[1][trained], index), [name])[name]
            masks = [hardest_at_level(row, labels, count, level) for row, count in zip(score, counts, strict=True)]
            result[name] = HardSamples(score, torch.stack(masks))
    return result


def gallery(samples: Samples, inversions: Inversions, hard: Sequence[HardSamples]) -> dict[str, Tensor]:
    """The hardest images of every strategy [M, G, ...] with labels, clean, index and predicted [M, G]; empty for vectors.

    The hardest by mean score over the sets, of equal ones those with the largest mean loss of the straggler networks at their end;
    `predicted` is by the mean logits of these networks.
    """
    if len(samples.shape) != 3:
        return {}
    labels = samples.labels.expand(len(inversions.logits), -1)
    losses = cross_entropy(inversions.logits, labels).mean(0)
    orders = [np.lexsort((-losses.numpy(), -strategy.score.double().mean(0).numpy())) for strategy in hard]
    rows = torch.from_numpy(np.stack(orders)[:, :GALLERY])
    predicted = inversions.logits.mean(0).argmax(-1)
    values = {"images": samples.inputs, "labels": samples.labels, "clean": samples.clean, "index": samples.index, "predicted": predicted}
    return {f"gallery_{name}": value[rows] for name, value in values.items()}
