"""Stored runs made by hand, for tests of figures: arrays without a store."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Run:
    """What figures read of hardbench.stored.StoredRun."""

    id: str
    arrays: dict[str, np.ndarray]
    name: str = "mlp mnist s0"
    study: str = "train"
    params: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
