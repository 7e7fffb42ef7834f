"""A run as the store has it: what figures, comparisons and other studies read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from hardbench.config import parse_yaml
from hardbench.errors import TrackingError

STUDY, ARRAYS, SETTINGS = "hardbench.study", "metrics.npz", "config.yaml"
INVERSION = ("radii.npz", "stragglers.npz", "stability.npz", "prune_curve.npz")  # what there is of them
FILES: dict[str, tuple[str, ...]] = {"invert": INVERSION, "mask-mi": ("masking.npz",)}
"""The .npz artifacts of a study's runs, where these are not ARRAYS."""


def local_path(artifact_uri: str) -> Path | None:
    """The folder of a run's artifacts on this machine; None for a remote store."""
    parsed = urlparse(artifact_uri)
    return Path(unquote(parsed.path)) if parsed.scheme in ("", "file") else None


@dataclass(frozen=True)
class StoredRun:
    """A run as the store has it: what figures, comparisons and other studies read."""

    client: Any  # MlflowClient
    run: Any  # mlflow.entities.Run

    @property
    def id(self) -> str:
        """Run id."""
        return str(self.run.info.run_id)

    @property
    def name(self) -> str:
        """Run name."""
        return str(self.run.info.run_name)

    @property
    def status(self) -> str:
        """RUNNING, FINISHED, FAILED or KILLED."""
        return str(self.run.info.status)

    @property
    def tags(self) -> dict[str, str]:
        """Tags."""
        return dict(self.run.data.tags)

    @property
    def study(self) -> str:
        """The study that made the run."""
        return self.tags.get(STUDY, "")

    @property
    def params(self) -> dict[str, str]:
        """Headline settings as text."""
        return dict(self.run.data.params)

    @property
    def metrics(self) -> dict[str, float]:
        """Last value of every metric."""
        return dict(self.run.data.metrics)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        return parse_yaml(self.file(SETTINGS).read_text(), SETTINGS)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """metrics.npz, or what the study has in its place, all files as one."""
        first, *more = FILES.get(self.study, (ARRAYS,))
        arrays: dict[str, np.ndarray] = {}
        for file in [first, *filter(self.has, more)]:
            with np.load(self.file(file), allow_pickle=False) as found:
                arrays |= {name: found[name] for name in found.files}
        return arrays

    def has(self, name: str) -> bool:
        """Whether the run has an artifact of that name."""
        try:
            return self.file(name).exists()
        except TrackingError:
            return False

    def file(self, name: str) -> Path:
        """Local path of an artifact; TrackingError if the run has none of that name."""
        local = local_path(self.run.info.artifact_uri)
        try:
            path = local / name if local else Path(self.client.download_artifacts(self.id, name))
        except Exception:  # whatever a remote store raises for an artifact it does not have
            path = Path()
        if path == Path() or not path.exists():
            raise TrackingError(f"run: {self.id}; it has no artifact {name}")
        return path
