"""Which samples are hard, by every strategy, in every one of S sets: from a search for stragglers and S fresh networks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hardbench.data.batches import Batches
from hardbench.data.samples import Samples
from hardbench.hard_samples.dynamics import Dynamics
from hardbench.hard_samples.selection import select
from hardbench.inversion.fullbatch import FullBatch
from hardbench.inversion.search import Data, Inversions, Search
from hardbench.registry import MODELS, SCORES
from hardbench.seeding import Seeds
from hardbench.settings import STRAGGLERS, TrainingSettings
from hardbench.training import callbacks
from hardbench.training.learners import cross_entropy
from hardbench.training.loop import Callback, TrainState, at, evaluation_steps, fit

GALLERY = 24  # hardest samples kept per strategy
POINTS = 10  # at which fresh networks are looked at, spaced evenly in the logarithm of the step
Show = Callable[[int, str], None]


@dataclass(frozen=True)
class Hard:
    """What one strategy says: score [S, N], higher is harder; hard [S, N], bool."""

    score: Tensor
    hard: Tensor


def search(ready: Search, show: Callback) -> Inversions:
    """Train a search's networks until every class of each has inverted, or to the end."""

    def stop(state: TrainState) -> None:
        if np.isfinite(ready.watch.epochs).all():
            for r in range(state.learner.networks.repeats):
                state.learner.freeze(r, state.step)

    return ready.run([stop, show])


def fresh_logits(data: Data, settings: TrainingSettings, streams: Sequence[Seeds], show: Callback) -> tuple[Tensor, Tensor]:
    """Logits [S, T, N, K] of one fresh network per stream, trained on all samples together, and the steps [T] they were taken at."""
    networks = MODELS[settings.model].call(data.train.shape, data.num_classes, settings, streams).to(data.train.labels.device)
    batches = Batches(data.train, data.standardise, "full", streams, [0.0] * len(streams))
    learner = FullBatch(networks, settings, settings.epochs)
    steps: list[int] = []
    points: list[Tensor] = []

    def look(state: TrainState) -> None:
        steps.append(state.step)
        points.append(learner.forward_all(state.batches.draw()[0]).logits.transpose(1, 2).float().cpu())

    watching = [callbacks.divergence(), at(evaluation_steps(POINTS, None, settings.epochs), look), show]
    fit(learner, batches, settings.epochs, watching)
    return torch.stack(points, 1), torch.tensor(steps)


def straggler_counts(found: Inversions, labels: Tensor, classes: int) -> Tensor:
    """Stragglers per class in every set, n_c, int64 [S, K]."""
    return torch.stack([torch.bincount(labels[mask], minlength=classes) for mask in found.stragglers])


def identify(
    strategies: Sequence[str],
    found: Inversions,
    logits: tuple[Tensor, Tensor] | None,
    labels: Tensor,
    index: Tensor,
    counts: Tensor,
    level: str,
) -> dict[str, Hard]:
    """Scores and hard samples by strategy. Stragglers are what they are; of any other score the counts [S, K] hardest are hard.

    `logits` are those of `fresh_logits`; without them only stragglers can be told.
    """
    result = {}
    for name in strategies:
        if name == STRAGGLERS:
            ends = found.logits.unsqueeze(1)
            own = Dynamics(ends, labels, torch.zeros(1, dtype=torch.long), index, found.stragglers)
            result[name] = Hard(SCORES[name].call(own), found.stragglers)
        else:
            assert logits is not None
            score = SCORES[name].call(Dynamics(logits[0], labels, logits[1], index))
            chosen = [select(row, labels, count, level) for row, count in zip(score, counts, strict=True)]
            result[name] = Hard(score, torch.stack(chosen))
    return result


def gallery(samples: Samples, found: Inversions, hard: Sequence[Hard]) -> dict[str, Tensor]:
    """The hardest images of every strategy [M, G, ...] with labels, clean, index and predicted [M, G]; empty for vectors.

    By mean score over the sets, equal ones by the mean loss of the straggler networks at their end; predicted is by their mean logits.
    """
    if len(samples.shape) != 3:
        return {}
    truth = samples.labels.expand(len(found.logits), -1)
    losses = cross_entropy(found.logits, truth).mean(0)
    places = [np.lexsort((-losses.numpy(), -one.score.double().mean(0).numpy()))[:GALLERY] for one in hard]
    rows = torch.from_numpy(np.stack(places))
    predicted = found.logits.mean(0).argmax(-1)
    parts = {"images": samples.inputs, "labels": samples.labels, "clean": samples.clean, "index": samples.index, "predicted": predicted}
    return {f"gallery_{name}": value[rows] for name, value in parts.items()}
