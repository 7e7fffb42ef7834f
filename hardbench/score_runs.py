"""The runs that `hardbench score` reads: trainings with a recording, and searches for stragglers among the same samples."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench import console, tracking
from hardbench.artifacts import CHECKPOINTS, DYNAMICS, DYNAMICS_POINTS, HARD_SAMPLES, LAST, STRAGGLERS, Array
from hardbench.data.samples import Samples, Split
from hardbench.data.transforms import Standardise
from hardbench.errors import ConfigError, DataError, TrackingError
from hardbench.hard_samples import recorder
from hardbench.hard_samples.joining import Sets, matches
from hardbench.hard_samples.subjects import Subject
from hardbench.models.layers import Chain
from hardbench.settings import TrainingSettings
from hardbench.stored import StoredRun
from hardbench.trained import place, restore
from hardbench.training.evaluation import batches
from hardbench.training.setup import split_of

COUNTED = ("invert", "stragglers")
PER_NETWORK = ("logits", "feature_norm", "class_cosine", "membership", "test_logits", "test_feature_norm", "test_class_cosine")
ENDS = ("steps", "epochs")
UNLIKE = ("repeats", "first_repeat", "name", "tag", "device", "threads", "data_dir", "checkpoint_every", "keep_checkpoints", "log_model")
"""Settings of trainings that may differ where their networks are repeats of one recording."""


def find(words: Sequence[str]) -> list[StoredRun]:
    """The runs of ids or prefixes of them, finished or not; of `last` the newest finished training with a recording."""
    found = [_last() if word == "last" else tracking.find(word, ["train", *COUNTED], finished=None) for word in words]
    runs = list({run.id: run for run in found}.values())
    if all(run.study in COUNTED for run in runs):
        raise ConfigError(f"runs: {','.join(words)}; a run of train --record-dynamics among them")
    return runs


def _last() -> StoredRun:
    for stored in tracking.runs("train"):
        if stored.status == "FINISHED" and stored.has(DYNAMICS):
            return stored
    raise TrackingError(f"runs: last; there is no finished run of train --record-dynamics in {tracking.place()}")


@dataclass(frozen=True)
class Recorded:
    """The recording of one training, or of several whose networks are repeats of each other: settings and samples are the same.

    networks: the run and the repeat there of every network of the arrays.
    """

    networks: tuple[tuple[StoredRun, int], ...]
    arrays: dict[str, Array]

    @property
    def runs(self) -> list[StoredRun]:
        """The trainings."""
        return list({run.id: run for run, _ in self.networks}.values())

    @property
    def name(self) -> str:
        """The short id of the first, and how many more there are."""
        runs = self.runs
        return runs[0].id[:8] + (f"+{len(runs) - 1}" if len(runs) > 1 else "")

    @property
    def dataset(self) -> str:
        """The data set, as the trainings were told."""
        return str(self.networks[0][0].config["dataset"])


def recorded(runs: Sequence[StoredRun]) -> list[Recorded]:
    """The recordings of the trainings among the runs, in their order; ConfigError for a training without any.

    One that was killed, or is on, is read as far as it goes, which is said.
    """
    groups: list[Recorded] = []
    for run in (run for run in runs if run.study == "train"):
        found = _read(run)
        for number, other in enumerate(groups):
            if _same(other, found):
                arrays = {name: _together(name, other.arrays[name], array) for name, array in found.arrays.items()}
                groups[number] = Recorded((*other.networks, *found.networks), arrays)
                break
        else:
            groups.append(found)
    return groups


def _read(run: StoredRun) -> Recorded:
    whole = run.has(DYNAMICS)
    if not whole and not run.has(DYNAMICS_POINTS):
        raise ConfigError(f"runs: {run.id}; a run of train --record-dynamics, and this one has no recording")
    file = DYNAMICS if whole else DYNAMICS_POINTS
    try:
        arrays = recorder.read(run.file(file))
    except ValueError as error:
        raise TrackingError(f"run: {run.id}; {file}: {error}") from None
    measured = np.flatnonzero(np.isfinite(arrays["logits"][:, :, 0, 0]).any(1))
    if (lost := len(arrays["logits"]) - len(measured)) > 0:
        console.warn(f"runs: {run.id}; {lost} of {len(arrays['logits'])} networks were never measured, and are left out")
        if not len(measured):
            raise TrackingError(f"run: {run.id}; a training that did not diverge at once, and its recording has nothing but nan")
        arrays = {name: array[measured] if name in PER_NETWORK else array for name, array in arrays.items()}
    if run.status != "FINISHED":
        reached = arrays.get("epochs", arrays["steps"])[-1]
        console.warn(f"runs: {run.id} is {run.status}; scored as far as it goes, epoch {reached:g} of {run.config['epochs']}")
    return Recorded(tuple((run, int(r)) for r in measured), arrays)


def _same(group: Recorded, other: Recorded) -> bool:
    """True if a training's networks are repeats of those of a group: no network is in both."""
    settings = [{name: value for name, value in found.runs[0].config.items() if name not in UNLIKE} for found in (group, other)]
    if settings[0] != settings[1] or group.arrays.keys() != other.arrays.keys():
        return False
    numbers = [{int(run.config["first_repeat"]) + r for run, r in found.networks} for found in (group, other)]
    at_end = settings[0].get("record_points") == "last"  # networks that reach a target end at steps of their own
    apart = PER_NETWORK + (ENDS if at_end else ())
    shared = [name for name in other.arrays if name not in apart]
    return not numbers[0] & numbers[1] and all(np.array_equal(group.arrays[name], other.arrays[name]) for name in shared)


def _together(name: str, first: Array, second: Array) -> Array:
    if name in PER_NETWORK:
        return np.concatenate([first, second])
    return np.maximum(first, second) if name in ENDS else first


def join(sets: Sequence[Sets], subjects: Sequence[Subject]) -> None:
    """Set the stragglers of other runs beside the scores of the subjects with which they share most samples; DataError for none."""
    counts = [[found.shared(subject.truth["fingerprint"], subject.truth["index"]) for subject in subjects] for found in sets]
    for number, subject in enumerate(subjects):
        subject.join([found for found, count in zip(sets, counts, strict=True) if count[number] == max(count)])


def straggler_sets(run: StoredRun) -> Sets:
    """The stragglers that a run of invert or stragglers found; ConfigError for one that has none."""
    file = STRAGGLERS if run.study == "invert" else HARD_SAMPLES
    if not run.has(file):
        raise ConfigError(f"runs: {run.id}; a run of {run.study} that has stored its stragglers, and this one is {run.status}")
    arrays = run.archive(file)
    if run.study == "stragglers" and "scores_stragglers" not in arrays:
        raise ConfigError(f"runs: {run.id}; a run of stragglers with the strategy stragglers, and this one has others alone")
    values = arrays["stragglers" if run.study == "invert" else "scores_stragglers"].astype(np.float32)
    judged = arrays["judged_epoch"] if run.study == "invert" else arrays["inversion_epoch"]
    if run.study == "invert" or run.config["if_no_inversion"] == "exclude":
        values[~np.isfinite(judged)[:, arrays["labels"]]] = np.nan  # classes that were left out
    return Sets(run.id, values, arrays["fingerprint"], arrays["index"], arrays["labels"], arrays.get("planted"))


@dataclass(frozen=True)
class Networks:
    """The inputs of a recording's samples, and of its test samples, from the data set; its trained networks, from their runs."""

    networks: tuple[tuple[StoredRun, int], ...]
    fingerprint: Array
    index: Array
    config: Any  # of the study of scores: where to compute and to read data

    def samples(self) -> tuple[Samples, Samples]:
        """Training and test samples; DataError if the data set is not there, or holds others now."""
        return self._split.train, self._split.test

    def check(self) -> None:
        """ConfigError for a run without the networks of its end; DataError as for `samples`."""
        for run in {run.id: run for run, _ in self.networks}.values():
            if not run.has(f"{CHECKPOINTS}/{LAST}"):
                raise ConfigError(f"score: prediction_depth; a run that has kept its checkpoints, unlike {run.id}")
        self.samples()

    @cached_property
    def _split(self) -> Split:
        """The split of all runs, read and planted once; of its training samples those recorded, which `keep` may have made a part."""
        run = self.networks[0][0]
        trained = run.settings(TrainingSettings, place(self.config))
        split = split_of(replace(trained, noise_ratio=0.0), trained.seed)  # as a training loads it
        rows = matches(self.fingerprint, self.index, split.train.fingerprints.numpy(), split.train.index.numpy())
        if (rows < 0).any():
            raise DataError(f"dataset: {trained.dataset}; the one that run {run.id} was trained on")
        return replace(split, train=split.train.pick(torch.from_numpy(rows)))

    def activations(self, r: int) -> Iterator[Tensor]:
        """The hidden layers [N, D] of network r at the end of its training, on the training samples in their order.

        Each is had by a pass of its own over the samples, so that no two layers are in memory at once.
        """
        run, own = self.networks[r]
        trained, split = run.settings(TrainingSettings, place(self.config)), self._split
        learner, standardise = restore(run, trained, split, "last")
        chain = learner.networks.member(own).to(learner.device).eval()
        train, standardise = split.train.to(learner.device), standardise.to(learner.device)
        for depth in range(len(chain.blocks)):
            yield _layer(chain, depth, train, standardise)


def _layer(chain: Chain, depth: int, samples: Samples, standardise: Standardise) -> Tensor:
    """A hidden layer [N, D], without gradients; the mode ends here, as it would go on where a generator is asked from."""
    with torch.inference_mode():
        return torch.cat([chain.blocks[: depth + 1](inputs).flatten(1) for inputs, _ in batches(samples, standardise)])
