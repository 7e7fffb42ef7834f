"""Project folders for tests: a store of their own in each, commands in this process or in one that may die."""

import functools
import multiprocessing
import os
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from words import no_surroundings

from hardbench import tracking
from hardbench.cli import main
from hardbench.stored import StoredRun
from hardbench.studies import train

for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:  # a shell has put the tests in the background: it would reach nothing they start
        signal.signal(_number, _handler)
FORK = multiprocessing.get_context("forkserver")  # one process imports everything, and is forked before it has computed anything
FORK.set_forkserver_preload(["hardbench.studies.train", "hardbench.figures.train"])


@functools.cache
def empty_store() -> Path:
    """A database as MLflow makes it, made once."""
    path = Path(tempfile.mkdtemp(prefix="hardbench-tests-")) / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


def new_project(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """An empty folder with a store, and this process at work in it."""
    folder.mkdir(exist_ok=True)
    no_surroundings(monkeypatch, folder)
    shutil.copy(empty_store(), folder / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")  # by its full path: MLflow keeps a connection per address
    return folder


def client() -> MlflowClient:
    return MlflowClient(os.environ["MLFLOW_TRACKING_URI"])


def all_runs() -> list[StoredRun]:
    """Every run of the store, whoever made it, newest first."""
    store = client()
    return [StoredRun(store, run) for run in store.search_runs([found.experiment_id for found in store.search_experiments()])]


def last() -> StoredRun:
    return all_runs()[0]


def history(run: StoredRun) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every point of every metric, as stored."""
    store = client()
    return {key: sorted((point.step, point.value) for point in store.get_metric_history(run.id, key)) for key in run.metrics}


def _work(folder: str, words: Sequence[str]) -> None:
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("HARDBENCH_", "MLFLOW_TRACKING", "MLFLOW_RUN"))]:
        del os.environ[name]
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        if words:
            sys.exit(main(list(words)))
        with tracking.start("train", train.Config(), "title", "note") as run:
            run.log({"loss": 1.0})


def started(folder: Path, *words: str) -> BaseProcess:
    """A process of its own that runs a command line in a folder, on the default store there (without words: an empty run)."""
    process = FORK.Process(target=_work, args=(str(folder), words))
    process.start()
    return process


def wait_for_step(folder: Path, step: int, process: BaseProcess) -> None:
    """Until a checkpoint of that step or later lies in a folder's only run."""
    while process.is_alive():
        for path in folder.glob("mlruns/*/*/artifacts/checkpoints/last.pt"):
            try:
                if torch.load(path, weights_only=True)["steps"] >= step:
                    return
            except (OSError, RuntimeError):  # being renamed
                pass
        time.sleep(0.01)
    raise AssertionError(f"the process ended with {process.exitcode} before step {step}")


def with_one_run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> tuple[StoredRun, Path]:
    """A new project with one finished training, and a copy of the files it left."""
    kept = new_project(monkeypatch, folder).with_name(f"{folder.name}-kept")
    assert main(["train", *words]) == 0
    (run,) = all_runs()
    shutil.copytree(run.file("."), kept)
    return run, kept


def of_session(number: int) -> list[int]:
    """Ids of the living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(session) == number and state != "Z":
            found.append(int(path.parent.name))
    return found


def within(seconds: float, condition: Callable[[], object]) -> object:
    """What a condition comes to by then: the first answer that is true, else the last."""
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met
