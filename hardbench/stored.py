"""A run as the store has it: what figures, comparisons and other studies read."""

import atexit
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from functools import cache, cached_property
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
    """The folder of a run's artifacts on this machine; None for a remote store.

    What has no scheme is a path as it is, whatever is in it; where MLflow has decoded one (`%20`) and put files there, it is that.
    """
    if artifact_uri.startswith("file:"):
        return Path(unquote(urlparse(artifact_uri).path))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", artifact_uri):
        return None
    path, decoded = Path(artifact_uri), Path(unquote(artifact_uri))
    return decoded if decoded != path and decoded.is_dir() and not path.is_dir() else path


@cache
def scratch() -> Path:
    """A folder for copies of what a remote store has, gone when the process ends."""
    folder = tempfile.mkdtemp(prefix="hardbench-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


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
            path = local / name if local else self._download(name)
            there = path.exists()
        except Exception as error:  # whatever a remote store raises for an artifact it does not have
            if isinstance(error, PermissionError):
                raise TrackingError(f"run: {self.id}; its artifact {name or 'folder'} cannot be read ({error.strerror})") from None
            there = False
        if not there:
            raise TrackingError(f"run: {self.id}; it has no artifact {name}")
        if not os.access(path, os.R_OK):
            raise TrackingError(f"run: {self.id}; its artifact {name or 'folder'} cannot be read (Permission denied)")
        return path

    def _download(self, name: str) -> Path:
        return Path(self.client.download_artifacts(self.id, name, tempfile.mkdtemp(dir=scratch())))
