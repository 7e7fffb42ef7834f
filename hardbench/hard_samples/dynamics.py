"""Training dynamics: the logits of every sample over training time, all that a hardness score needs, so that a new score needs no training.

The term is that of Swayamdipta et al. 2020 (arXiv:2009.10795).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

FIELDS = ("logits", "labels", "steps", "index")


@dataclass(frozen=True)
class Dynamics:
    """Logits of every sample over training time.

    logits: float32 [R, T, N, K], nan where a network was no longer trained; labels: int64 [N], those trained on; steps: int64 [T];
    index: int64 [N], the samples' positions in the data set's own order; stragglers: bool [R, N], misclassified at the inversion point of
    their class (None where no inversion was searched for).
    """

    logits: Tensor
    labels: Tensor
    steps: Tensor
    index: Tensor
    stragglers: Tensor | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray[Any, Any]]) -> "Dynamics":
        """The dynamics from the arrays that a run stored (dynamics.npz)."""
        return cls(*(torch.from_numpy(np.asarray(arrays[name])) for name in FIELDS))

    @property
    def last(self) -> Tensor:
        """Logits [R, N, K] at each network's last measured point."""
        measured = self.logits[:, :, 0, 0].isfinite().long()  # [R, T]
        point = self.logits.shape[1] - 1 - measured.flip(1).argmax(1)
        return self.logits[torch.arange(len(point)), point]

    @property
    def margins(self) -> Tensor:
        """Margin [R, T, N]: the label's logit minus the largest other one; positive where the sample is classified right."""
        labels = self.labels.expand(self.logits.shape[:-1]).unsqueeze(-1)
        others = self.logits.scatter(-1, labels, -torch.inf).amax(-1)
        return self.logits.gather(-1, labels).squeeze(-1) - others
