"""A run as the store has it: what figures, comparisons and other studies read."""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlparse

import numpy as np

from hardbench import archives, artifacts, files
from hardbench.artifacts import ARRAYS, FILES, KINDS, SETTINGS
from hardbench.config import Config
from hardbench.declaration import shown
from hardbench.errors import ConfigError, TrackingError, brief
from hardbench.yaml_text import LARGEST, parse_yaml

STUDY = "hardbench.study"
SOURCE_RUN = "hardbench.source_run"  # tag: ids of the runs that a run is about
KEPT = "hardbench.kept"  # tag: how many of the training samples a run with `keep` trains on, `800 of 1000`
SIMULATION = "hardbench.simulate"  # tag of a training that is a simulation, with what else it does, for a resumed one

Settings = TypeVar("Settings", bound=Config)


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


def _same(param: str, value: Any) -> bool:
    """True if a param, as the store has it (it cuts long ones, `mlflow run` takes any letters' case), stands for a setting's value."""
    text, param = shown(value).casefold(), param.casefold()
    if text == param or (len(param) >= 250 and text.startswith(param)):
        return True
    try:
        return float(param) == float(text)
    except ValueError:
        return False


class StoredRun:
    """A run as the store has it: what figures, comparisons and other studies read."""

    def __init__(self, client: Any, run: Any):
        self.client, self.run = client, run  # MlflowClient, mlflow.entities.Run
        self.id, self.name = str(run.info.run_id), str(run.info.run_name)
        self.status = str(run.info.status)  # RUNNING, FINISHED, FAILED or KILLED
        self.tags: dict[str, str] = dict(run.data.tags)
        self.study = self.tags.get(STUDY, "")  # the one that made the run
        self.params: dict[str, str] = dict(run.data.params)  # headline settings as text
        self.metrics: dict[str, float] = dict(run.data.metrics)  # the last value of every metric

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        try:
            settings = parse_yaml(files.regular(self.file(SETTINGS), 4 * LARGEST).read_text("utf-8"), SETTINGS)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            raise TrackingError(f"run: {self.id}; its {SETTINGS} cannot be read ({error})") from None
        if not settings:
            raise TrackingError(f"run: {self.id}; its {SETTINGS} is empty")
        unlike = self.study == "sweep" or "mlflow.project.entryPoint" in self.tags  # params of several values, or as `mlflow run` took them
        for name, param in {} if unlike else self.params.items():
            if name in settings and not _same(param, settings[name]):
                difference = f"its {SETTINGS} has {name} {brief(settings[name])}, its params {brief(param)}"
                raise TrackingError(f"run: {self.id}; {difference}: it is another run's")
        return settings

    def settings(self, cls: type[Settings], *changed: Mapping[str, Any]) -> Settings:
        """The settings as a Config of the study, those of `changed` first; TrackingError if what is stored is none."""
        try:
            cls.read(self.config)
        except ConfigError as error:
            raise TrackingError(f"run: {self.id}; its {SETTINGS} is of no {self.study} of this version ({error})") from None
        return cls.read(*changed, self.config)

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """metrics.npz, or what the study has in its place, all files as one."""
        first, *more = FILES.get(self.study, (ARRAYS,))
        arrays = {name: array for file in [first, *filter(self.has, more)] for name, array in self.archive(file).items()}
        return self._checked(lambda: arrays, self.study, first)

    def archive(self, file: str) -> dict[str, np.ndarray]:
        """The arrays of an .npz artifact; TrackingError for one that is damaged, or is not what runs have under that name."""
        return self._checked(lambda: archives.read(self.file(file)), KINDS.get(Path(file).name, file), file)

    def _checked(self, read: Callable[[], dict[str, np.ndarray]], kind: str, file: str) -> dict[str, np.ndarray]:
        """The arrays that `read` returns, of a kind that artifacts.AXES knows; TrackingError, naming the file, for a ValueError."""
        try:
            arrays = read()
            artifacts.check(arrays, kind)
        except ValueError as error:
            raise TrackingError(f"run: {self.id}; {file}: {error}") from None
        return arrays

    def has(self, name: str) -> bool:
        """True if the run has an artifact of that name."""
        try:
            return self.file(name).exists()
        except TrackingError:
            return False

    def file(self, name: str) -> Path:
        """Local path of an artifact; TrackingError if the run has none of that name."""
        local = local_path(self.run.info.artifact_uri)
        try:
            path = local / name if local else Path(self.client.download_artifacts(self.id, name, tempfile.mkdtemp(dir=scratch())))
            exists = path.exists()
        except Exception as error:  # whatever a remote store raises for an artifact it does not have
            if isinstance(error, PermissionError):
                raise TrackingError(f"run: {self.id}; its artifact {name or 'folder'} cannot be read ({error.strerror})") from None
            exists = False
        if not exists:
            raise TrackingError(f"run: {self.id}; it has no artifact {name}")
        if not os.access(path, os.R_OK):
            raise TrackingError(f"run: {self.id}; its artifact {name or 'folder'} cannot be read (Permission denied)")
        return path
