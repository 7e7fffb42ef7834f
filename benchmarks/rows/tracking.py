"""The cost of tracking: a real `hardbench train` on MNIST at default settings, in a store of its own.

Timed is what `train` spends in MLflow and on artifacts: opening and ending the run, params, tags, metrics, checkpoints, arrays. Imports
and the store's creation are left out, and the figures. The bound is a share of the training time, which is `fit` without the tracking in
it. The straightforward form logs the same metrics of the same run one by one as they come, and its files by `log_artifact`.
"""

import contextlib
import functools
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import mlflow

from benchmarks import mnist
from benchmarks.row import Clock, DifferentError, Goal, Row, Workload
from hardbench import tracking
from hardbench.lifecycle import launch
from hardbench.studies import train
from hardbench.training import checkpoints, core

T = TypeVar("T")
EXPERIMENT = "one by one"
METHODS = [name for name, value in vars(tracking.Run).items() if callable(value) and not name.startswith("_")]


class Stopwatch:
    """Seconds spent in the functions it wraps; a wrapped function within another counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def read(self) -> float:
        """Seconds so far."""
        return self.seconds

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time the block."""
        began, self._depth = time.perf_counter(), self._depth + 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.perf_counter() - began

    def function(self, timed: Callable[..., T]) -> Callable[..., T]:
        """The function, timed."""

        @functools.wraps(timed)
        def call(*args: Any, **more: Any) -> T:
            with self.running():
                return timed(*args, **more)

        return call

    def context(self, timed: Callable[..., AbstractContextManager[T]]) -> Callable[..., AbstractContextManager[T]]:
        """The context manager with its entry and its end timed, and not its body."""

        @contextmanager
        def call(*args: Any, **more: Any) -> Iterator[T]:
            with ExitStack() as stack:
                with self.running():
                    entered = stack.enter_context(timed(*args, **more))
                yield entered
                with self.running():
                    stack.close()

        return call


WATCH = Stopwatch()
TRACKING = Clock("tracking", WATCH.read)


@dataclass
class Place:
    """A temporary folder with a store, for the runs of one row's side."""

    folder: tempfile.TemporaryDirectory[str]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Work there, in silence."""
        with ExitStack() as stack:
            stack.enter_context(contextlib.chdir(self.folder.name))
            uri = f"sqlite:///{Path(self.folder.name) / 'mlflow.db'}"
            stack.enter_context(mock.patch.dict(os.environ, MLFLOW_TRACKING_URI=uri))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            mlflow.set_tracking_uri(uri)
            yield


def place() -> Place:
    """A fresh folder whose store exists."""
    made = Place(tempfile.TemporaryDirectory(prefix="hardbench-"))
    with made.entered():
        tracking.connect()
    return made


@dataclass
class Tracked:
    """A run as the store has it, and the seconds of its training."""

    metrics: dict[tuple[str, int], float]
    params: dict[str, str]
    files: list[Path]
    training: float = 0.0


def stored(run_id: str) -> Tracked:
    """Every metric point, every param and every file of a run."""
    client = mlflow.MlflowClient(tracking.uri())
    run = client.get_run(run_id)
    points = {(key, point.step): point.value for key in run.data.metrics for point in client.get_metric_history(run_id, key)}
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return Tracked(points, dict(run.data.params), sorted(path for path in folder.rglob("*") if path.is_file()))


def trained(model: str, quick: bool) -> Tracked:
    """A training run, with tracking on the stopwatch."""
    fitting = Stopwatch()
    inside = 0.0

    def fit(*args: Any) -> int:
        nonlocal inside
        before = WATCH.read()
        done = fitting.function(original)(*args)
        inside = WATCH.read() - before
        return done

    original = core.fit
    more: dict[str, Any] = {"epochs": 1, "subset_size": 5_000, "layer_metrics": ("none",)} if quick else {}
    config = train.Config(dataset="mnist", data_dir=str(mnist.folder()), model=model, threads=1, **more)
    with ExitStack() as stack:
        for name in METHODS:
            stack.enter_context(mock.patch.object(tracking.Run, name, WATCH.function(getattr(tracking.Run, name))))
        for name in ("start", "extend"):
            stack.enter_context(mock.patch.object(tracking, name, WATCH.context(getattr(tracking, name))))
        stack.enter_context(mock.patch.object(tracking, "find", WATCH.function(tracking.find)))
        stack.enter_context(mock.patch.object(checkpoints, "save", WATCH.function(checkpoints.save)))
        stack.enter_context(mock.patch.object(core, "fit", fit))
        run = launch(train, config, draw=False)
        assert run is not None
    found = stored(run.id)
    found.training = fitting.read() - inside
    return found


def ours(model: str, quick: bool) -> Workload:
    """Train."""
    where = place()

    def call() -> Tracked:
        with where.entered():
            return trained(model, quick)

    return Workload(call)


def plain(model: str, quick: bool) -> Workload:
    """Log the measurements of a run that was trained before."""
    where = place()
    with where.entered():
        known = trained(model, quick)

    def call() -> Tracked:
        with where.entered():
            mlflow.set_experiment(EXPERIMENT)
            with WATCH.running(), mlflow.start_run() as run:
                mlflow.log_params(known.params)
                for (key, step), value in known.metrics.items():
                    mlflow.log_metric(key, value, step=step)
                for path in known.files:
                    mlflow.log_artifact(str(path))
            return stored(run.info.run_id)

    return Workload(call)


def check(expected: Tracked, found: Tracked) -> str:
    """The same points in both stores (but how fast the run was)."""
    stores = [{point: value for point, value in one.metrics.items() if point[0] != "samples_per_second"} for one in (expected, found)]
    if stores[0] != stores[1]:
        raise DifferentError(f"{len(stores[0].items() ^ stores[1].items())} metric points differ")
    return f"the same {len(stores[0])} metric points in the store"


ROWS = [
    Row(
        f"tracking_{model}",
        f"MNIST, {model} at default settings: tracking of one training run, as a share of its training time",
        "run",
        functools.partial(plain, model),
        functools.partial(ours, model),
        check,
        Goal("share", 0.05),
        TRACKING,
        needs=("mnist",),
        reference=lambda found: found.training,
        warm_up=False,
        memory=False,
        goal_if_quick=False,
    )
    for model in ("mlp", "gmlp")
]
