"""A recording of a training: the logits of every sample over training time and what else hardness scores need of it.

A new score then needs no training. The term training dynamics is that of Swayamdipta et al. 2020 (arXiv:2009.10795).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Traces(NamedTuple):
    """What became of every sample's label over time, each [R, T, N]; nan, or not right, where a network was not measured.

    margins: the label's logit minus the largest other one; log_odds: ln(p_y / (1 - p_y)) of the label's probability, from which p_y,
    1 - p_y and the loss follow without loss of digits at either end; right: bool, the label is predicted, of equal logits the first class.
    """

    margins: Tensor
    log_odds: Tensor
    right: Tensor


@dataclass(frozen=True)
class Recording:
    """Logits of N samples at T points of the training of R networks, step 0 aside, with what else is known of the samples.

    logits: [R, T, N, K], nan where a network was no longer trained; labels: int64 [N], those trained on; epochs: float64 [T], when the
    points were recorded; index: int64 [N], the samples' positions in the data set's own order; membership: bool [R, N], the samples each
    network trained on (None: all on all); feature_norm, class_cosine: [R, T, N], length of the last hidden activations and their cosine to
    the mean of the own class (None: not recorded); planted: int64 [N], the kind of planted hardness, 0 for none (None: nothing is known);
    stragglers: bool [R, N], misclassified at the inversion point of their class (None where no inversion was searched for); early: the
    share of the epochs at which early scores look; seed: of the control `random`.
    """

    logits: Tensor
    labels: Tensor
    epochs: Tensor
    index: Tensor
    membership: Tensor | None = None
    feature_norm: Tensor | None = None
    class_cosine: Tensor | None = None
    planted: Tensor | None = None
    stragglers: Tensor | None = None
    early: float = 0.1
    seed: int = 0

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray[Any, Any]], **more: Any) -> "Recording":
        """The recording from the arrays that a run stored (dynamics.npz); step 0, if it was recorded, is left out."""
        epochs = arrays["epochs"] if "epochs" in arrays else arrays["steps"]  # of a run before epochs were stored
        trained = np.flatnonzero(arrays["steps"] > 0) if len(arrays["steps"]) > 1 else np.arange(len(arrays["steps"]))
        values: dict[str, Any] = {"epochs": epochs[trained].astype(float), "labels": arrays["labels"], "index": arrays["index"]}
        values |= {name: arrays[name] for name in ("membership", "planted") if name in arrays}
        if "membership" in values and values["membership"].all():
            del values["membership"]
        timed = ("logits", "feature_norm", "class_cosine")
        whole = len(trained) == len(arrays["steps"])
        values |= {name: arrays[name] if whole else arrays[name][:, trained] for name in timed if name in arrays}
        tensors: dict[str, Any] = {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}
        return cls(**tensors, **more)

    def repeat(self, r: int) -> "Recording":
        """The recording of network r alone, with R = 1."""
        return self.networks(slice(r, r + 1))

    def networks(self, chosen: slice | Tensor) -> "Recording":
        """The recording of some of the networks, a slice or a mask [R]."""
        own = ("logits", "membership", "feature_norm", "class_cosine", "stragglers")
        return replace(self, **{name: value[chosen] for name in own if (value := getattr(self, name)) is not None})

    def samples(self, rows: slice) -> "Recording":
        """The recording of some of the samples."""
        axes = {"logits": 2, "feature_norm": 2, "class_cosine": 2, "membership": 1, "stragglers": 1, "labels": 0, "index": 0, "planted": 0}
        known = {name: value for name in axes if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value[(slice(None),) * axes[name] + (rows,)] for name, value in known.items()})

    @cached_property
    def measured(self) -> Tensor:
        """True where a network was measured, bool [R, T]."""
        return self.logits[:, :, 0, 0].isfinite()

    def at_end(self, values: Tensor) -> Tensor:
        """Values [R, T, ...] at each network's last measured point, [R, ...]; nan (False) for a network that was never measured."""
        point = self.logits.shape[1] - 1 - self.measured.long().flip(1).argmax(1)
        return values[torch.arange(len(point)), point]

    @cached_property
    def last(self) -> Tensor:
        """Logits [R, N, K] at each network's last measured point, float32."""
        return self.at_end(self.logits).float()

    @cached_property
    def probabilities(self) -> Tensor:
        """Probabilities [R, N, K] at each network's last measured point, float64."""
        return self.at_end(self.logits).double().softmax(-1)

    @cached_property
    def early_point(self) -> int:
        """The point of the early scores: the nearest to the share `early` of the last point's epoch, of two the earlier."""
        return int((self.epochs - self.early * self.epochs[-1]).abs().argmin())

    @cached_property
    def traces(self) -> Traces:
        """Margin and log-odds (float64), and whether right, of every sample at every point; made point by point, to keep memory small."""
        shape = self.logits.shape[:3]
        margins, log_odds = (torch.empty(shape, dtype=torch.float64) for _ in range(2))
        right = torch.empty(shape, dtype=torch.bool)
        labels = self.labels.expand(shape[0], -1).unsqueeze(-1)  # [R, N, 1]
        for t in range(shape[1]):
            logits = self.logits[:, t].double()
            right[:, t] = (logits.argmax(-1) == self.labels) & self.measured[:, t, None]
            own = logits.gather(-1, labels).squeeze(-1)
            others = logits.scatter(-1, labels, -torch.inf)
            margins[:, t] = own - others.amax(-1)
            log_odds[:, t] = own - others.logsumexp(-1)
        return Traces(margins, log_odds, right)
