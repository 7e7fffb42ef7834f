"""Subjects of the study of scores: samples with a recording, the truth that is known of them, and scores from elsewhere."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import Array
from hardbench.errors import ConfigError
from hardbench.hard_samples import scoring
from hardbench.hard_samples.joining import Sets, joined
from hardbench.hard_samples.recording import Recording
from hardbench.registry import SCORES
from hardbench.settings import PLANT_TYPES, STRAGGLERS

ALL = "all"
ONLY_NAMED = ("prediction_depth",)  # it computes activations of the networks again
OF_LOGITS = ("confidence", "energy")  # they read what the softmax takes away
WRONG_LABEL = "wrong_label"  # the type of samples whose label is not the clean one, where nothing was planted
TRUTH = ("index", "labels", "clean", "planted", "fingerprint", "plant_types", "class_names")
Activations = Callable[[int], Iterable[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """N samples that scores are of.

    name: where the recording is from; dataset: its data set's name; truth: arrays by the names of TRUTH, of which index, labels, planted
    [N], plant_types and class_names are always there; further: scores from elsewhere by name, [R, N] or [N], higher is harder; test:
    `test_logits` [R, T, M, K] and `test_labels` [M] where test samples were recorded; probabilities: True if logits are their logarithms.
    """

    name: str
    dataset: str
    recording: Recording
    truth: Mapping[str, Array]
    further: dict[str, Array] = field(default_factory=dict)
    test: Mapping[str, Array] = field(default_factory=dict)
    probabilities: bool = False

    @classmethod
    def of(cls, arrays: Mapping[str, Array], name: str, dataset: str, early: float, seed: int, probabilities: bool = False) -> "Subject":
        """The subject of a recording's arrays. Labels that are not the clean ones are planted hardness where no other is known of."""
        truth = {key: arrays[key] for key in TRUTH if key in arrays}
        truth.setdefault("planted", np.zeros(len(arrays["labels"]), dtype=np.int64))
        truth.setdefault("plant_types", np.array(PLANT_TYPES))
        truth.setdefault("class_names", np.arange(arrays["logits"].shape[-1]).astype(str))
        wrong = truth["labels"] != truth.get("clean", truth["labels"])
        if not truth["planted"].any() and wrong.any():
            truth |= {"planted": wrong.astype(np.int64), "plant_types": np.array([WRONG_LABEL])}
        test = {key: arrays[key] for key in ("test_logits", "test_labels") if key in arrays}
        recording = Recording.of(arrays, early=early, seed=seed)
        return cls(name=name, dataset=dataset, recording=recording, truth=truth, test=test, probabilities=probabilities)

    def __len__(self) -> int:
        return len(self.truth["labels"])

    def lacking(self, name: str, activations: Activations | None = None) -> str | None:
        """What a score of the registry lacks here, as a user reads it; None if it can be computed."""
        if name in OF_LOGITS and self.probabilities:
            return "needs logits, not probabilities"
        return scoring.lacking(self.recording, name, activations)

    def choose(self, words: Sequence[str], activations: Activations | None = None) -> tuple[list[str], dict[str, str]]:
        """Names of the scores that `--score` asks for, those from elsewhere too, and what lacks of the others under `all`, by name.

        ConfigError for one that is asked for by name and lacks something.
        """
        asked = [name for name in (SCORES if ALL in words else words) if name not in self.further]
        names, missing = [], {}
        for name in asked:
            why = None if name in ONLY_NAMED and name not in words else self.lacking(name, activations)
            if why is not None and name in words:
                raise ConfigError(f"score: {name}; one that {self.name} allows, as this one {why}")
            if name in ONLY_NAMED and name not in words:
                continue
            if why is None:
                names.append(name)
            else:
                missing[name] = why
        elsewhere = [name for name in self.further if ALL in words or name in words or name not in SCORES]
        return [*names, *elsewhere], missing

    def values(self, names: Sequence[str], activations: Activations | None = None) -> dict[str, Array]:
        """Scores by name, float64 [R, N], or [N] for those of all networks together; higher is harder, nan where undefined."""
        own = [name for name in names if name not in self.further]
        values = {name: value.numpy() for name, value in scoring.values(self.recording, own, activations).items()}
        return {name: values[name] if name in values else self.further[name] for name in names}

    def needs_all(self, name: str) -> bool:
        """True for a score of all networks together, whose error over networks is had by bootstrap."""
        return name not in self.further and "repeats" in SCORES[name].reads

    def predicted(self) -> Array:
        """The class of the largest mean logit at the end, int64 [N]."""
        return np.asarray(self.recording.last.nanmean(0).argmax(-1).numpy())

    def test_right(self) -> Tensor:
        """True where a network classifies a test sample right at its last measured point, bool [R, M]."""
        logits, labels = (torch.from_numpy(self.test[name]) for name in ("test_logits", "test_labels"))
        recording = replace(self.recording, logits=logits, labels=labels)
        return recording.last.argmax(-1) == labels

    def add(self, name: str, values: Array) -> None:
        """Set a score from elsewhere beside the others, as outside_NAME: no array that a run stores, and no column, has such a name."""
        self.further[f"outside_{name}"] = values

    def join(self, sets: Sequence[Sets]) -> None:
        """Set the stragglers of other runs beside the scores: all their networks are repeats of one score."""
        fingerprint, index, labels = (self.truth[name] for name in ("fingerprint", "index", "labels"))
        planted = None if WRONG_LABEL in self.truth["plant_types"] else self.truth["planted"]  # of other runs, noise is no plant
        if sets:
            self.further[STRAGGLERS] = np.concatenate([joined(found, fingerprint, index, labels, planted) for found in sets])
