"""A recording of a training: the logits of every sample over training time and what else hardness scores need of it.

A new score then needs no training. The term training dynamics is that of Swayamdipta et al. 2020 (arXiv:2009.10795).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor


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
        own = ("logits", "membership", "feature_norm", "class_cosine", "stragglers")
        values: dict[str, Any] = {name: getattr(self, name) for name in own}
        return replace(self, **{name: None if value is None else value[r : r + 1] for name, value in values.items()})

    @cached_property
    def measured(self) -> Tensor:
        """True where a network was measured, bool [R, T]."""
        return self.logits[:, :, 0, 0].isfinite()

    @property
    def last(self) -> Tensor:
        """Logits [R, N, K] at each network's last measured point, float32."""
        point = self.logits.shape[1] - 1 - self.measured.long().flip(1).argmax(1)
        return self.logits[torch.arange(len(point)), point].float()

    @cached_property
    def margins(self) -> Tensor:
        """Margin [R, T, N]: the label's logit minus the largest other one; positive where the sample is classified right."""
        logits = self.logits.float()
        labels = self.labels.expand(logits.shape[:-1]).unsqueeze(-1)
        others = logits.scatter(-1, labels, -torch.inf).amax(-1)
        return logits.gather(-1, labels).squeeze(-1) - others
