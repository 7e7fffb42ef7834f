"""The life of a run in the store: opened, taken, gone on with, added to and ended."""

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from errno import EACCES, EDQUOT, EIO, ENOSPC, EROFS
from typing import Any

from mlflow.entities import Run as MlflowRun, RunTag

from hardbench import registry, signals, store, taking
from hardbench.config import Config
from hardbench.errors import TrackingError
from hardbench.store import KIND, PARENT, SWEEP, StoreAway, place, uri
from hardbench.stored import SOURCE_RUN, StoredRun
from hardbench.taking import check_idle, connect, find, parent_of, runs
from hardbench.written import VERSIONS, Run

__all__ = ["KIND", "PARENT", "SWEEP", "Run", "check_idle", "connect", "find", "parent_of", "place", "runs", "uri"]
STUDIES = [name for name in registry.studies() if name not in ("eval", "simulate")]
"""The studies whose runs are filed under their own names: an evaluation adds to a training, a simulation is one."""
BEAT = 15.0  # seconds between two signs of life in the store
FULL = (ENOSPC, EDQUOT, EROFS, EIO, EACCES)  # what is wrong with the disk, not with the program


def _joined(client: Any, other: str | None = None) -> MlflowRun | None:
    """The run that `mlflow run` or a sweep has opened for this command, tagged with the `other` run that it works on instead."""
    word = os.environ.get("MLFLOW_RUN_ID")
    if not word or word == other:
        return None
    try:
        joined: MlflowRun = client.get_run(word)
    except StoreAway:
        raise
    except TrackingError:
        raise TrackingError(f"MLFLOW_RUN_ID: {word}; the id of a run in {place()}, or nothing") from None
    if other is not None:
        client.set_tag(word, SOURCE_RUN, other)
    return joined


def _untaken(client: Any, stored: StoredRun) -> MlflowRun:
    """A stored run as it is now; TrackingError if another process works on it."""
    current: MlflowRun = client.get_run(stored.id)
    if current.info.status == "RUNNING" and not taking.mine(stored.id):
        raise TrackingError(taking.busy(current))
    return current


@contextmanager
def start(
    study: str, config: Config, title: str, note: str, kind: str = "run", tags: Mapping[str, str] | None = None, home: str | None = None
) -> Iterator[Run]:
    """A new run of a study (or the one `mlflow run` has opened), ended by what leaves the block.

    FINISHED, FAILED with the tag `error` after an exception, KILLED after Ctrl-C or a signal. It is filed under the study `home`, if given.
    """
    with signals.ending(), ExitStack() as stack:
        with store.locked():
            client = connect()
            stored = _joined(client)
            cell = stored is not None and stored.data.tags.get(KIND) == "cell"  # a sweep has opened it
            tags = {**(tags or {}), **({} if cell else {KIND: kind})}
            where = None if stored else store.experiment(client, f"hardbench/{home or study}")
            with signals.held():  # until it has all that going on with it takes
                fresh = stored or store.create(client, str(where), study, tags, title)
                run = _enter(stack, client, fresh, study, new=stored is None)
                run.describe(config, study, str(fresh.info.run_name) if cell else title, note, tags)  # a cell has its name
        yield run


@contextmanager
def reopen(stored: StoredRun) -> Iterator[Run]:
    """An unfinished run, to go on in; TrackingError if another process has taken it, or has finished it meanwhile."""
    with signals.ending(), ExitStack() as stack:
        with store.locked():
            client = connect()
            current = _untaken(client, stored)
            if current.info.status == "FINISHED" != stored.status:
                raise TrackingError(f"run: {stored.id}; an unfinished run, and this one is FINISHED")
            with signals.held():
                run = _enter(stack, client, current, stored.study)
        yield run


def _enter(stack: ExitStack, client: Any, run: MlflowRun, study: str, new: bool = False) -> Run:
    """A run to write, taken until the stack ends, with an end (a new one also if it cannot be taken) and signs of life until then.

    One that is not new is at work again: the store gets whose it is, its state, and nothing of how it ended before.
    """
    run_id = run.info.run_id
    with _failing(client, run_id) if new else nullcontext():
        stack.enter_context(taking.taken(run))
    stack.enter_context(_closing(client, run_id))
    stack.enter_context(_beating(client, run_id))
    if not new:
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in (store.signs(study) | VERSIONS).items()])
        client.update_run(run_id, status="RUNNING")
        if "error" in run.data.tags:
            client.delete_tag(run_id, "error")
    opened = Run(client, run if new else client.get_run(run_id))
    stack.enter_context(_delivered(opened, study))
    return opened


@contextmanager
def extend(stored: StoredRun) -> Iterator[Run]:
    """A run that has ended, to add results to, one process at a time (or one that this process works on); its status stays.

    Under `mlflow run` the run that it opened is tagged with it; a cell of a sweep gets the metrics, too.
    """
    client = connect()
    with taking.taken(_untaken(client, stored), lambda: _untaken(client, stored)):
        run = Run(client, _untaken(client, stored), again=True)
        joined = _joined(client, stored.id)
        if joined is not None:
            run.copy = Run(client, joined) if joined.data.tags.get(KIND) == "cell" else None
        with _delivered(run), _delivered(run.copy or run):
            yield run


@contextmanager
def _delivered(run: Run, study: str = "") -> Iterator[None]:
    """Send what is buffered at the block's end (or have a later command do it); who interrupts it hears of the command that goes on."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception):
            signals.leave()
            if study and os.environ.get("MLFLOW_RUN_ID") is None:
                error.add_note(f"hardbench resume {run.id[:8]} goes on")
        with suppress(TrackingError, OSError):  # the error that came first is told
            run.close()
        raise
    run.deliver()


@contextmanager
def _failing(client: Any, run_id: str) -> Iterator[None]:
    """End the run as FAILED or KILLED if an error leaves the block."""
    try:
        yield
    except BaseException as error:
        raised = error
        if isinstance(error, OSError) and error.errno in FULL:
            file = f": {error.filename}" if error.filename else ""
            raised = TrackingError(f"run: {run_id}; its files cannot be written ({error.strerror}{file})")
        # where the store takes nothing any more, the next command finds out that nobody works on the run
        with signals.held(), suppress(TrackingError):
            client.set_tag(run_id, "error", f"{type(raised).__name__}: {raised}"[:500])
            client.set_terminated(run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        if raised is not error:
            raise raised from None
        raise


@contextmanager
def _closing(client: Any, run_id: str) -> Iterator[None]:
    with _failing(client, run_id):
        yield
    with signals.held():
        client.set_terminated(run_id, "FINISHED")


@contextmanager
def _beating(client: Any, run_id: str) -> Iterator[None]:
    """Signs of life in the store, for those who cannot ask for the lock."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with suppress(TrackingError):
                client.set_tag(run_id, store.HEARTBEAT, str(int(time.time())))

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextmanager
def sweep(study: str, key: str, config: Config, title: str, note: str, tags: Mapping[str, str]) -> Iterator[Run]:
    """The parent run of a sweep over a study: a new one, or the one of the same key, to go on in.

    TrackingError if another process is at work on it. Cells that a killed one has left open are ended.
    """
    with signals.ending(), ExitStack() as stack:
        with store.locked():
            parent = parent_of(study, key)
            if parent is None:
                run = stack.enter_context(start("sweep", config, title, note, "sweep", {**tags, SWEEP: key}, home=study))
            else:
                run = stack.enter_context(reopen(parent))
                _joined(run.client, parent.id)
                run.describe(config, "sweep", title, note, tags)
                for cell in list(store.search(run.client, f"attributes.status = 'RUNNING' and tags.`{PARENT}` = '{parent.id}'")):
                    if not taking.held(cell):
                        run.client.set_terminated(cell.info.run_id, "KILLED")
        yield run


def open_cell(parent: Run, study: str, config: Config, title: str, note: str, tags: Mapping[str, str], swept: Sequence[str]) -> Run:
    """A new run for a cell, beside its parent."""
    run = Run(parent.client, store.create(parent.client, parent.experiment, study, {KIND: "cell", PARENT: parent.id, **tags}, title))
    run.describe(config, study, title, note, tags, swept)
    return run


@contextmanager
def closing_cell(run: Run) -> Iterator[Run]:
    """A cell's run, written at one go and ended by what leaves the block."""
    with _closing(run.client, run.id), _delivered(run):
        yield run


def end_cell(parent: Run, run_id: str, status: str = "FINISHED", error: str | None = None) -> None:
    """End a cell that its study has left open, with the tag `error` if there is one; then also a cell that has ended."""
    if error is not None:
        parent.client.set_tag(run_id, "error", error[:500])
    if error is not None or parent.client.get_run(run_id).info.status == "RUNNING":
        parent.client.set_terminated(run_id, status)
