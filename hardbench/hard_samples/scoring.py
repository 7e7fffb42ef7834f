"""Scores of a recording by name: what one lacks, its values, its mean over networks, its error; and which labels are called wrong."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import Array
from hardbench.errors import ConfigError
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.scores.over_repeats import LAWS, by_blocks, out_of_sample
from hardbench.registry import SCORES

Activations = Callable[[int], Iterable[Tensor]]
ROUNDING = 1e-6  # of probabilities that are held against a mean of them
NEEDS: dict[str, tuple[Callable[[Recording], bool], str]] = {
    "membership": (lambda recording: recording.membership is not None and not bool(recording.membership.all()), "needs --train-share"),
    "several": (lambda recording: len(recording.logits) > 1, "needs --repeats 2 or more"),
    "time": (lambda recording: recording.logits.shape[1] > 1, "needs two recorded points or more (--record-points epochs)"),
    "feature_norm": (lambda recording: recording.feature_norm is not None, "needs the array feature_norm"),
    "class_cosine": (lambda recording: recording.class_cosine is not None, "needs the array class_cosine"),
    "stragglers": (lambda recording: recording.stragglers is not None, "needs a run of invert or stragglers"),
}
"""By a word of a score's `reads`: whether a recording has it, and what to say where it has not."""


def lacking(recording: Recording, name: str, activations: Activations | None = None) -> str | None:
    """What a score needs that the recording does not have, as a user reads it ('needs --train-share'); None if it can be computed.

    activations: see `values`.
    """
    reads = SCORES[name].reads
    if "network" in reads and activations is None:
        return "needs the trained networks (--score prediction_depth of a train run)"
    return next((text for word, (met, text) in NEEDS.items() if word in reads and not met(recording)), None)


def values(recording: Recording, names: Sequence[str], activations: Activations | None = None) -> dict[str, Tensor]:
    """The scores by name, float64 [R, N], or [N] for those that read `repeats`; higher is harder, nan where undefined.

    Network by network, so that a network's scores are those of it alone bit for bit, and memory is that of one. activations(r) yields the
    hidden layers of network r, each [N, D], and is asked by prediction_depth alone. ConfigError for a score that lacks something.
    """
    for name in names:
        if missing := lacking(recording, name, activations):
            raise ConfigError(f"score: {name}; {missing}")
    single = [name for name in names if not SCORES[name].reads & {"repeats", "network"}]
    result = {name: torch.empty(recording.logits[:, 0, :, 0].shape, dtype=torch.float64) for name in single}
    for r in range(len(recording.logits) if single else 0):
        one = recording.repeat(r)
        for name in single:
            result[name][r] = SCORES[name].call(one)[0]
    for name in names:
        if name not in result:
            result[name] = SCORES[name].call(recording, *([activations] if "network" in SCORES[name].reads else []))
    return {name: result[name] for name in names}


def ensemble(value: Tensor) -> Tensor:
    """The mean over networks of a score [R, N], those left out for which it is nan; a score [N] as it is. [N].

    Over all networks, also those that did not train on a sample (`--train-share`), of whom a score of the training says something else.
    """
    return value.nanmean(0) if value.ndim > 1 else value


def bootstrap_error(recording: Recording, name: str, rng: np.random.Generator, resamples: int = 200) -> Tensor:
    """Standard error [N] of a score that reads `repeats`, by bootstrap over networks: its standard deviation (ddof 1) over resamples.

    Resamples in which it is undefined, as without a network that did not train on the sample, do not count; nan if all but one are such.
    0 for random, which depends on no network.
    """
    networks = len(recording.logits)
    if name not in LAWS:
        return torch.zeros(len(recording.labels), dtype=torch.float64)
    drawn = rng.multinomial(networks, np.full(networks, 1 / networks), size=resamples)
    return by_blocks(recording, LAWS[name], torch.from_numpy(drawn).double(), _deviation)


def _deviation(resampled: Tensor) -> Tensor:
    """Standard deviation over axis 0 (ddof 1), of the numbers that are not nan; nan for fewer than two."""
    count = resampled.isfinite().sum(0)
    squares = (resampled - resampled.nanmean(0)).square().nansum(0)
    return (squares / (count - 1)).sqrt().masked_fill(count < 2, torch.nan)


def confident_learning(recording: Recording) -> Tensor:
    """True for samples whose label is called wrong, bool [N]: confident learning, pruned by noise rate (Northcutt et al. 2021).

    p: out-of-sample probabilities. As many samples of a label i as the confident joint (see `_joint`) counts for class j, those with the
    largest p_j - p_i, are called wrong, unless i is their most probable class (arXiv:1911.00068, section 3.2). This is the set of
    cleanlab's find_label_issues, but for roundings of equal shares. False for a sample that every network trained on.
    """
    probabilities, labels = (values.numpy() for values in (out_of_sample(recording), recording.labels))
    called = np.zeros(len(labels), dtype=bool)
    judged = np.flatnonzero(np.isfinite(probabilities).all(1))
    p, given = probabilities[judged], labels[judged]
    for i, counts in enumerate(_joint(p, given)):
        rows = np.flatnonzero(given == i)
        for j in np.flatnonzero(counts):
            if j != i:
                margins = p[rows, j] - p[rows, i]
                falling = np.sort(margins)[::-1]
                called[judged[rows[margins > (falling[counts[j]] if counts[j] < len(rows) else -np.inf)]]] = True
    called[judged] &= p.argmax(1) != given
    return torch.from_numpy(called)


def _joint(p: Array, given: Array) -> Array:
    """The confident joint [K, K]: how many samples of label i are of class j, whole numbers whose rows sum to the samples of a label.

    A class is confident in a sample where its p is at least its mean over the samples of that label (arXiv:1911.00068, eq. 2). A sample
    counts for the class that is confident in it, if any is; if several are, for the most probable class (as in cleanlab; in eq. 1 the most
    probable of them). Rows are then scaled to all samples (eq. 3).
    """
    classes = p.shape[1]
    samples = np.bincount(given, minlength=classes)
    thresholds = np.array([p[given == k, k].mean() if samples[k] else np.inf for k in range(classes)])
    confident = p >= np.maximum(thresholds - ROUNDING, ROUNDING)
    counted = confident.any(1)
    likely = np.where(confident.sum(1) > 1, p.argmax(1), confident.argmax(1))
    counts = np.zeros((classes, classes))
    np.add.at(counts, (given[counted], likely[counted]), 1)
    np.fill_diagonal(counts, np.maximum(counts.diagonal(), 1))
    scaled = counts / counts.sum(1, keepdims=True) * samples[:, None]
    joint = np.floor(scaled)
    for i, missing in enumerate((samples - joint.sum(1)).round().astype(int)):
        joint[i, np.argsort(scaled[i] - joint[i], kind="stable")[::-1][:missing]] += 1
    return joint.astype(int)
