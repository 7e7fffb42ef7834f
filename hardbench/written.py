"""A run being written: its metrics, files and tags, on their way to a store that may be away for a while."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run as MlflowRun, RunTag

from hardbench import __version__, files, store
from hardbench.artifacts import SETTINGS
from hardbench.config import Config
from hardbench.declaration import shown
from hardbench.errors import TrackingError
from hardbench.metrics.hardness import mean_stderr
from hardbench.store import StoreAway
from hardbench.stored import local_path, scratch
from hardbench.taking import home_of

VERSIONS = {"hardbench.version": __version__, "hardbench.torch": torch.__version__, "hardbench.mlflow": mlflow.__version__}
BATCH = 1000  # metrics MLflow takes in one call
SECONDS = 10.0  # longest a metric waits in the buffer: a call to MLflow costs 20 to 50 ms, however few it carries
PAUSES = (1, 2, 4, 8, 15, 30)  # seconds between the last attempts to deliver what is buffered
UNDELIVERED = "undelivered"  # folder beside a run's artifacts for what the store did not take


class Run:
    """A run being written. Files go into `folder` and are made known by `publish`; metrics are buffered.

    While the store is away both wait, and lie in a folder beside the run's, from where the next to open it delivers them.
    """

    def __init__(self, client: Any, run: MlflowRun, again: bool = False):
        self.client = client
        self.id: str = run.info.run_id
        self.experiment: str = run.info.experiment_id
        self._params = run.data.params
        self._again = again  # a run that has ended, and gets further results
        keys = () if again else run.data.metrics  # a repeated evaluation is a new point
        self._logged = {key: {m.step for m in client.get_metric_history(self.id, key)} for key in keys}
        self._nonfinite = set(filter(None, run.data.tags.get("nonfinite", "").split(",")))
        self._buffer: list[Metric] = []
        self._tags: dict[str, str] = {}
        self._unpublished: list[str] = []
        self._flushed = time.monotonic()
        self._asked_again = 0.0  # when a store that was away is asked next
        self.copy: Run | None = None  # a run that gets the same metrics
        self.published: list[str] = []  # artifacts that this process has written
        local = local_path(run.info.artifact_uri)
        self._remote = local is None
        self.folder = local or scratch() / self.id / "artifacts"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackingError(f"run: {self.id}; its folder {self.folder} cannot be written ({error.strerror})") from None
        self._aside = home_of(run) / UNDELIVERED
        self._collect()

    def describe(self, config: Config, study: str, title: str, note: str, extra: Mapping[str, str], further: Sequence[str] = ()) -> None:
        """Name, tags, params (with those of `further` settings) and config.yaml."""
        tags = {**extra, "mlflow.runName": title, "mlflow.note.content": note, **store.signs(study), **VERSIONS}
        params = {name: shown(value) for name, value in (config.params() | {name: getattr(config, name) for name in further}).items()}
        fresh = [Param(name, value) for name, value in params.items() if name not in self._params]
        self.client.log_batch(self.id, params=fresh, tags=[RunTag(key, value) for key, value in tags.items()])
        self.write_text(SETTINGS, config.to_yaml())

    def data(self, dataset: str, digest: str) -> None:
        """Note the data set and its digest."""
        name = dataset.rpartition("/")[2].partition(":")[0]
        noted = Dataset(name=name, digest=digest, source_type="hardbench", source=dataset)
        self.client.log_inputs(self.id, [DatasetInput(noted, [InputTag("mlflow.data.context", "training")])])
        self.tag("hardbench.data_digest", digest)

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        try:
            self.client.set_tag(self.id, key, value)
            self._tags.pop(key, None)  # an older value that waited
        except StoreAway:
            self._tags[key] = value

    def log(self, values: Mapping[str, np.ndarray | float], step: int = 0) -> None:
        """Buffer metrics: the mean over repeats [R], and `_stderr` beside it where there are several.

        A point that is stored already is not stored again; a value that is not finite goes into the tag `nonfinite`.
        """
        if self.copy is not None:
            self.copy.log(values, step)
        now = int(time.time() * 1000)
        for name, value in values.items():
            row = np.ravel(value)
            points = {name: float(row[0])}
            if len(row) > 1:
                points[name], points[f"{name}_stderr"] = map(float, mean_stderr(row))
            for key, number in points.items():
                if not isfinite(number):
                    if key == name and key not in self._nonfinite:
                        self._nonfinite.add(key)
                        self.tag("nonfinite", ",".join(sorted(self._nonfinite)))
                elif step not in self._logged.get(key, ()):
                    self._buffer.append(Metric(key, number, now, step))
        full = len(self._buffer) >= BATCH and not self._aside.exists()
        if full or time.monotonic() - self._flushed > SECONDS:
            self.close()

    def close(self) -> None:
        """Send what is buffered. What the store does not take now waits, and is kept beside the run meanwhile."""
        self._try(self._send)
        if self._buffer or self._tags or self._unpublished:
            self._keep()
        self._flushed = time.monotonic()

    def _try(self, send: Callable[[], None]) -> bool:
        """True if the store took something; one that was away just now is not asked, as every call waits for its answer."""
        if time.monotonic() < self._asked_again:
            return False
        try:
            send()
        except StoreAway:
            self._asked_again = time.monotonic() + SECONDS
            return False
        return True

    def deliver(self) -> None:
        """Send what is buffered, for a minute if need be; TrackingError that names the command that delivers it later."""
        for pause in (*PAUSES, None):
            try:
                self._send()
                return
            except StoreAway as error:
                self._keep()
                if pause is None:
                    command = f"hardbench {'plot' if self._again else 'resume'} {self.id}"
                    raise TrackingError(f"run: {self.id}; {command} delivers what waits in {self._aside} ({error})") from None
            time.sleep(pause)

    def _send(self) -> None:
        while self._buffer or self._tags:
            tags = [RunTag(key, value) for key, value in self._tags.items()]
            self.client.log_batch(self.id, metrics=self._buffer[:BATCH], tags=tags)
            del self._buffer[:BATCH]
            self._tags = {}
        while self._unpublished:
            self._upload(self._unpublished[0])
            del self._unpublished[0]
        if self._aside.exists():
            shutil.rmtree(self._aside)

    def _keep(self) -> None:
        """Write down what waits; a kill loses nothing then."""
        points = [[metric.key, metric.value, metric.timestamp, metric.step] for metric in self._buffer]
        files.write_text(self._aside / "waiting.json", json.dumps({"metrics": points, "tags": self._tags, "files": self._unpublished}))
        for name in self._unpublished:
            path, kept = self.folder / name, self._aside / "files" / name
            if path.exists() and not (kept.exists() and kept.stat().st_mtime_ns >= path.stat().st_mtime_ns):
                files.copy(path, kept)

    def _collect(self) -> None:
        """Take up what an earlier process could not deliver."""
        path = self._aside / "waiting.json"
        if not path.exists():
            return
        waiting = json.loads(path.read_text())
        self._tags = waiting["tags"]
        for key, value, timestamp, step in waiting["metrics"]:
            if step not in self._logged.setdefault(key, set()):
                self._buffer.append(Metric(key, value, timestamp, step))
                self._logged[key].add(step)
        for name in waiting["files"]:
            kept, path = self._aside / "files" / name, self.folder / name
            if kept.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(kept, path)
                self._unpublished.append(name)
        self.close()

    def write_text(self, name: str, text: str) -> None:
        """A text artifact."""
        files.write_text(self.folder / name, text)
        self.publish(name)

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray], compressed: bool = True) -> None:
        """An .npz artifact, or .npy for a single array named ''; renamed into place when whole."""
        with files.whole(self.folder / name) as file:
            if "" in arrays:
                np.save(file, arrays[""], allow_pickle=False)
            else:
                (np.savez_compressed if compressed else np.savez)(file, **dict(arrays))  # type: ignore[arg-type]
        self.publish(name)

    def publish(self, name: str) -> None:
        """Make an artifact of a file in `folder` (nothing to do where the store keeps files in folders)."""
        self.published.append(name)
        if self._remote and not self._try(lambda: self._upload(name)):
            self._unpublished = [*(waiting for waiting in self._unpublished if waiting != name), name]
            self._keep()

    def _upload(self, name: str) -> None:
        folder = str(Path(name).parent)
        if (self.folder / name).exists():
            self.client.log_artifact(self.id, str(self.folder / name), None if folder == "." else folder)

    def fetch(self, name: str = "") -> Path:
        """A folder of artifacts (or all) in `folder`, with what an earlier process has sent of it to a store elsewhere."""
        for item in self.client.list_artifacts(self.id) if self._remote else ():
            if name in ("", item.path):
                self.client.download_artifacts(self.id, item.path, str(self.folder))
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def remove(self, *names: str) -> None:
        """Delete files of the run, named as in `folder` (what is not there is passed over), and folders that this leaves empty.

        Artifacts on a server stay: MLflow's client does not delete any. TrackingError, and nothing is touched, unless all of them lie in
        this run's own folder, also behind links.
        """
        root = self.folder.resolve()
        paths = [self.folder / name for name in names]
        for path in paths:
            inside = path.parent.resolve().is_relative_to(root) and path.name not in ("", "..") and path != self.folder
            if not inside or root.parts[-2:] != (self.id, "artifacts"):
                raise TrackingError(f"run: {self.id}; a file of its own to remove, and {path} is none")
        for path in paths:
            if path.is_symlink() or not path.is_dir():
                with suppress(NotADirectoryError):  # a file where its folder should be
                    path.unlink(missing_ok=True)
                self._unpublished = [name for name in self._unpublished if self.folder / name != path]
            for folder in (path, *path.parents):
                if folder == self.folder:
                    break
                with suppress(OSError):  # gone, or not empty
                    folder.rmdir()

    def log_model(self, network: torch.nn.Module, example: torch.Tensor) -> None:
        """The network as an MLflow model; once, however often the run goes on."""
        import mlflow.pytorch

        outputs = self.client.get_run(self.id).outputs
        if outputs and outputs.model_outputs:
            return
        models = self.client.search_logged_models([self.experiment], f"source_run_id = '{self.id}'")
        model = models[0] if models else self.client.create_logged_model(self.experiment, name="model", source_run_id=self.id)
        with tempfile.TemporaryDirectory(dir=scratch()) as folder:
            requirements = [f"torch=={torch.__version__}"]
            mlflow.pytorch.save_model(network, f"{folder}/model", input_example=example.numpy(), pip_requirements=requirements)
            self.client.log_model_artifacts(model.model_id, f"{folder}/model")
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(self.id, [LoggedModelOutput(model.model_id, 0)])

    @property
    def link(self) -> str:
        """Address of the run in `hardbench ui`."""
        return f"http://127.0.0.1:5000/#/experiments/{self.experiment}/runs/{self.id}"
