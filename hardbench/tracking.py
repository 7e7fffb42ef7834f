"""Everything that knows MLflow: the store, a run being written, runs that are stored."""

import fcntl
import os
import signal
import socket
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from math import isfinite
from pathlib import Path
from types import FrameType

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import: nothing leaves the machine unasked

import mlflow
import numpy as np
import torch
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hardbench import __version__
from hardbench.config import Config
from hardbench.errors import Killed, TrackingError
from hardbench.metrics.hardness import mean_stderr
from hardbench.stored import SETTINGS, STUDY, StoredRun, local_path
from hardbench.training import machine

DEFAULT_STORE = "sqlite:///mlflow.db"
KIND, SWEEP, PARENT = "hardbench.kind", "hardbench.sweep", "mlflow.parentRunId"
_VERSIONS = {"hardbench.version": __version__, "hardbench.torch": torch.__version__, "hardbench.mlflow": mlflow.__version__}
BATCH = 1000  # metrics MLflow takes in one call
SECONDS = 10.0  # longest a metric waits in the buffer: a call to MLflow costs 20 to 50 ms, however few it carries


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Killed


def uri() -> str:
    """The tracking store: MLFLOW_TRACKING_URI, else MLflow's own default in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def connect() -> MlflowClient:
    """A client of the store, which is made first if need be: under a lock, since creation by several processes fails."""
    path = _sqlite_path()
    try:
        if path is None:
            client = MlflowClient(uri())
            client.search_experiments(max_results=1)
        else:
            with Path(f"{path}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                client = MlflowClient(uri())
                client.search_experiments(max_results=1)
                with sqlite3.connect(path) as database:
                    database.execute("PRAGMA journal_mode=WAL")
                database.close()
    except Exception as error:  # whatever a store that is none does to its readers
        raise TrackingError(f"tracking store: {uri()}; cannot be opened ({' '.join(str(error).split())[:200]})") from None
    mlflow.set_tracking_uri(uri())
    mark_dead(client)
    return client


def _sqlite_path() -> Path | None:
    return Path(uri().removeprefix("sqlite:///").partition("?")[0]) if uri().startswith("sqlite:///") else None


def mark_dead(client: MlflowClient) -> None:
    """End as KILLED the runs of this host whose process is gone (SIGKILL leaves them RUNNING for ever)."""
    for run in _search(client, f"attributes.status = 'RUNNING' and tags.`hardbench.host` = '{socket.gethostname()}'"):
        if not machine.alive(run.data.tags):
            client.set_tag(run.info.run_id, "error", "the process ended without a word")
            client.set_terminated(run.info.run_id, "KILLED")


def check_idle(stored: StoredRun) -> None:
    """TrackingError if another process is at work on the run (one of another host counts as at work while it is RUNNING)."""
    here = stored.tags.get("hardbench.host") == socket.gethostname()
    if stored.status == "RUNNING" and (not here or machine.alive(stored.tags)):
        raise TrackingError(
            f"run: {stored.id}; one that nobody works on, and this one is running (process {stored.tags.get('hardbench.process')})"
        )


def _search(client: MlflowClient, words: str, experiments: Sequence[str] = ()) -> Iterator[MlflowRun]:
    """Runs of these experiments (or of all) that fit a filter, newest first."""
    experiments = list(experiments) or [experiment.experiment_id for experiment in client.search_experiments()]
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiments, words, max_results=1000, order_by=["attributes.start_time DESC"], page_token=token or None)
        yield from page
        token = page.token or None


class Run:
    """A run being written. Files go into `folder` and are made known by `publish`; metrics are buffered."""

    def __init__(self, client: MlflowClient, run: MlflowRun, again: bool = False):
        self.client = client
        self.id: str = run.info.run_id
        self.experiment: str = run.info.experiment_id
        self._there = run.data.params
        keys = () if again else run.data.metrics  # a repeated evaluation is a new point
        self._logged = {key: {m.step for m in client.get_metric_history(self.id, key)} for key in keys}
        self._nonfinite = set(filter(None, run.data.tags.get("nonfinite", "").split(",")))
        self._buffer: list[Metric] = []
        self._flushed = time.monotonic()
        self.copy: Run | None = None  # a run that gets the same metrics
        local = local_path(run.info.artifact_uri)
        self._remote = local is None
        self.folder = local or Path(tempfile.mkdtemp(prefix="hardbench-"))
        self.folder.mkdir(parents=True, exist_ok=True)

    def describe(self, config: Config, study: str, title: str, note: str, extra: Mapping[str, str], further: Sequence[str] = ()) -> None:
        """Name, tags, headline params (and those of `further` settings) and config.yaml."""
        tags = {**extra, "mlflow.runName": title, "mlflow.note.content": note, STUDY: study, **machine.identity(), **_VERSIONS}
        headline = config.headline() | {name: getattr(config, name) for name in further}
        params = {name: "-" if value is None else str(value) for name, value in headline.items()}
        fresh = [Param(name, value) for name, value in params.items() if name not in self._there]
        self.client.log_batch(self.id, params=fresh, tags=[RunTag(key, value) for key, value in tags.items()])
        self.write_text(SETTINGS, config.to_yaml())

    def data(self, name: str, digest: str, source: str) -> None:
        """Note the data set and its digest."""
        dataset = Dataset(name=name.partition(":")[0], digest=digest, source_type="hardbench", source=source)
        self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
        self.tag("hardbench.data_digest", digest)

    def tag(self, key: str, value: str) -> None:
        """Set a tag."""
        self.client.set_tag(self.id, key, value)

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
        if len(self._buffer) >= BATCH or time.monotonic() - self._flushed > SECONDS:
            self.close()

    def close(self) -> None:
        """Send what is buffered."""
        while self._buffer:
            self.client.log_batch(self.id, metrics=self._buffer[:BATCH])
            del self._buffer[:BATCH]
        self._flushed = time.monotonic()

    def write_text(self, name: str, text: str) -> Path:
        """A text artifact."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return self.publish(name)

    def write_arrays(self, name: str, arrays: Mapping[str, np.ndarray], compressed: bool = True) -> Path:
        """An .npz artifact, or .npy for a single array named ''; renamed into place when whole."""
        path = self.folder / name
        aside = path.with_name(f".{path.name}.part")
        with aside.open("wb") as file:
            if "" in arrays:
                np.save(file, arrays[""], allow_pickle=False)
            else:
                (np.savez_compressed if compressed else np.savez)(file, **dict(arrays))  # type: ignore[arg-type]
        aside.replace(path)
        return self.publish(name)

    def publish(self, name: str) -> Path:
        """Make an artifact of a file in `folder` (nothing to do where the store keeps files in folders); its path."""
        path = self.folder / name
        if self._remote:
            folder = str(Path(name).parent)
            self.client.log_artifact(self.id, str(path), None if folder == "." else folder)
        return path

    def remove(self, *names: str) -> None:
        """Remove files of the run that it has written, where they are, and the folders that are empty then."""
        for path in [self.folder / name for name in names]:
            with suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
            with suppress(OSError):  # not empty, or not there
                path.parent.rmdir()

    def fetch(self, name: str) -> Path:
        """A folder of artifacts in `folder`, with what the store has of it (a run that goes on may have left it there)."""
        path = self.folder / name
        if self._remote and any(item.path == name for item in self.client.list_artifacts(self.id)):
            self.client.download_artifacts(self.id, name, str(self.folder))
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log_model(self, network: torch.nn.Module, example: torch.Tensor) -> None:
        """The network as an MLflow model."""
        import mlflow.pytorch

        with mlflow.start_run(run_id=self.id):
            requirements = [f"torch=={torch.__version__}"]
            mlflow.pytorch.log_model(network, name="model", input_example=example.numpy(), pip_requirements=requirements)

    @property
    def link(self) -> str:
        """Address of the run in `hardbench ui`."""
        return f"http://127.0.0.1:5000/#/experiments/{self.experiment}/runs/{self.id}"


@contextmanager
def start(
    study: str, config: Config, title: str, note: str, kind: str = "run", tags: Mapping[str, str] | None = None, home: str | None = None
) -> Iterator[Run]:
    """A new run of a study (or the one `mlflow run` has opened), ended by what leaves the block.

    FINISHED, FAILED with the tag `error` after an exception, KILLED after Ctrl-C or SIGTERM. It is filed under the study `home`, if given.
    """
    client = connect()
    joined = os.environ.get("MLFLOW_RUN_ID")
    stored = client.get_run(joined) if joined else client.create_run(_experiment(client, f"hardbench/{home or study}"))
    cell = stored.data.tags.get(KIND) == "cell"  # a sweep has opened it
    with _ending(client, stored.info.run_id):
        run = Run(client, stored)
        run.describe(config, study, title, note, {**(tags or {}), **({} if cell else {KIND: kind})})
        with closing(run):
            yield run


def _experiment(client: MlflowClient, name: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    try:
        return client.create_experiment(name)
    except MlflowException:  # another process was first
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


@contextmanager
def reopen(stored: StoredRun) -> Iterator[Run]:
    """An unfinished run, to go on in."""
    client = connect()
    client.update_run(stored.id, status="RUNNING")
    with _ending(client, stored.id):
        run = Run(client, client.get_run(stored.id))
        for key, value in (machine.identity() | _VERSIONS).items():
            run.tag(key, value)
        if "error" in stored.tags:
            client.delete_tag(stored.id, "error")
        with closing(run):
            yield run


@contextmanager
def extend(stored: StoredRun) -> Iterator[Run]:
    """A run that has ended, to add results to, one process at a time; its status stays.

    Under `mlflow run` the run that it opened is tagged with it; a cell of a sweep gets the metrics, too.
    """
    client = connect()
    run = Run(client, client.get_run(stored.id), again=True)
    joined = os.environ.get("MLFLOW_RUN_ID")
    if joined and joined != stored.id:
        client.set_tag(joined, "hardbench.source_run", stored.id)
        other = client.get_run(joined)
        run.copy = Run(client, other) if other.data.tags.get(KIND) == "cell" else None
    with ExitStack() as held, closing(run), closing(run.copy or run):
        handle = os.open(run.folder, os.O_RDONLY)
        held.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield run


@contextmanager
def terminable() -> Iterator[None]:
    """Within the block SIGTERM is the exception Killed."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _ending(client: MlflowClient, run_id: str) -> Iterator[None]:
    with terminable(), _closing(client, run_id):
        yield


@contextmanager
def _closing(client: MlflowClient, run_id: str) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        killed = not isinstance(error, Exception)
        client.set_tag(run_id, "error", f"{type(error).__name__}: {error}"[:500])
        client.set_terminated(run_id, "KILLED" if killed else "FAILED")
        raise
    client.set_terminated(run_id, "FINISHED")


@contextmanager
def sweep(study: str, key: str, config: Config, title: str, note: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """The parent run of a sweep over a study: a new one, or the one of the same key, to go on in."""
    client = connect()
    there = parent_of(study, key)
    if there is None:
        with start("sweep", config, title, note, "sweep", {**tags, SWEEP: key}, home=study) as run:
            yield run
        return
    check_idle(there)
    joined = os.environ.get("MLFLOW_RUN_ID")
    if joined and joined != there.id:
        client.set_tag(joined, "hardbench.source_run", there.id)
    with reopen(there) as run:
        run.describe(config, "sweep", title, note, tags)
        yield run


def parent_of(study: str, key: str) -> StoredRun | None:
    """The newest parent run of a sweep's key."""
    client = connect()
    found = _search(client, f"tags.`{KIND}` = 'sweep' and tags.`{SWEEP}` = '{key}'", [_experiment(client, f"hardbench/{study}")])
    return next((StoredRun(client, run) for run in found), None)


def open_cell(parent: Run, study: str, config: Config, title: str, note: str, tags: Mapping[str, str], swept: Sequence[str]) -> Run:
    """A new run for a cell, beside its parent."""
    own = {STUDY: study, KIND: "cell", PARENT: parent.id, **machine.identity(), **tags}
    run = Run(parent.client, parent.client.create_run(parent.experiment, tags=own, run_name=title))
    run.describe(config, study, title, note, tags, swept)
    return run


@contextmanager
def closing_cell(run: Run) -> Iterator[Run]:
    """A cell's run, written at one go and ended by what leaves the block."""
    with _closing(run.client, run.id), closing(run):
        yield run


def end_cell(parent: Run, run_id: str, error: str | None, killed: bool = False) -> None:
    """End a cell that its study has left open; FAILED (or KILLED) with the tag `error` if there is one."""
    if error is not None:
        parent.client.set_tag(run_id, "error", error[:500])
    if error is not None or parent.client.get_run(run_id).info.status == "RUNNING":
        parent.client.set_terminated(run_id, "KILLED" if killed else "FAILED" if error is not None else "FINISHED")


def discard(parent: Run, run_ids: Sequence[str]) -> None:
    """Move runs that a newer one has replaced to the store's trash."""
    for run_id in run_ids:
        parent.client.delete_run(run_id)


def find(word: str, studies: Sequence[str], finished: bool | None = True) -> StoredRun:
    """The run of an id, a unique prefix of one, or `last` (the newest of these studies, finished or not as asked, no sweep cell).

    TrackingError for a run that is unknown, ambiguous, of another study or in another state.
    """
    client = connect()
    if word == "last":
        for run in _search(client, f"tags.`{KIND}` != 'cell'"):
            stored = StoredRun(client, run)
            if stored.study in studies and finished in (None, stored.status == "FINISHED"):
                return stored
        state = {True: "finished ", False: "unfinished ", None: ""}[finished]
        raise TrackingError(f"run: last; there is no {state}run of {' or '.join(studies)} in {uri()}")
    matches = [run for run in _search(client, f"attributes.run_id LIKE '{word}%'") if STUDY in run.data.tags] if word.isalnum() else []
    if not matches:
        raise TrackingError(f"run: {word}; a run id, a unique prefix of one, or last (hardbench compare lists the runs of {uri()})")
    if len(matches) > 1:
        raise TrackingError(f"run: {word}; more of the id: it fits {', '.join(run.info.run_id[:12] for run in matches[:5])}")
    stored = StoredRun(client, matches[0])
    if stored.study not in studies:
        raise TrackingError(f"run: {word}; a run of {' or '.join(studies)}, and this one is of {stored.study}")
    if finished is not None and finished != (stored.status == "FINISHED"):
        raise TrackingError(f"run: {word}; {'a finished' if finished else 'an unfinished'} run, and this one is {stored.status}")
    return stored


def runs(study: str | None = None, cells: bool = False) -> list[StoredRun]:
    """All runs of a study (or of any), newest first; sweep cells only if asked for."""
    client = connect()
    words = f"tags.`{KIND}` != '{'-' if cells else 'cell'}'" + (f" and tags.`{STUDY}` = '{study}'" if study else "")
    return [StoredRun(client, run) for run in _search(client, words)]
