"""Runs in the store: opening it, finding them, and telling which of them somebody works on."""

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlflow.entities import Run as MlflowRun

from hardbench import locks, machine, store
from hardbench.artifacts import SETTINGS
from hardbench.errors import TrackingError
from hardbench.store import HEARTBEAT, KIND, PARENT, SWEEP
from hardbench.stored import STUDY, StoredRun, local_path

STALE = 120  # seconds without a sign after which a run is dead whose lock cannot be asked
YOUNG = 600  # seconds within which a run without tags may be one that is being made

_mine: set[str] = set()  # ids of the runs whose locks this process holds


def home_of(run: MlflowRun) -> Path:
    """The folder of a run on this machine: its lock, what could not be delivered, and its artifacts where the store has these here."""
    local = local_path(run.info.artifact_uri)
    return store.user_folder("runs", run.info.run_id) if local is None else local.parent


def lock_of(run: MlflowRun) -> Path:
    """The file that is locked while somebody works on the run."""
    return home_of(run) / "lock"


def mine(run_id: str) -> bool:
    """True if this process works on the run."""
    return run_id in _mine


@contextmanager
def taken(run: MlflowRun, wait: Callable[[], object] | None = None) -> Iterator[None]:
    """Within the block the run is this process's (also if it was before). TrackingError if another one works on it.

    With `wait`, it waits for the other process, and calls `wait` now and then, which may raise.
    """
    run_id = run.info.run_id
    if mine(run_id):
        yield
        return

    def refuse() -> None:
        raise TrackingError(busy(run))

    needed = f"run: {run_id}; its folder {home_of(run)} cannot be written"
    with locks.awaited(lock_of(run), wait or refuse, 0.1, needed):
        _mine.add(run_id)
        try:
            yield
        finally:
            if local_path(run.info.artifact_uri) is None:
                with suppress(OSError):  # beside what could not be delivered the lock stays, and says that nobody works on the run
                    if [path.name for path in home_of(run).iterdir()] == [lock_of(run).name]:
                        lock_of(run).unlink()
                        home_of(run).rmdir()
            _mine.remove(run_id)


def held(run: MlflowRun) -> bool:
    """True if a process holds the run's own lock."""
    return mine(run.info.run_id) or locks.free(lock_of(run)) is False


def busy(run: MlflowRun) -> str:
    """The line for who comes second."""
    process = run.data.tags.get("hardbench.process", "?")
    return f"run: {run.info.run_id}; one that nobody works on, and this one is running (process {process})"


def alive(client: Any, run: MlflowRun, campaigns: dict[str, bool] | None = None) -> bool:
    """True if somebody works on a RUNNING run: who holds its lock (or its campaign's), else who has given a sign of late.

    A lock that is free says that nobody does, if it was made under the kernel that runs here. Runs of versions before have their process.
    `campaigns` remembers the answers for the parents of cells.
    """
    campaigns = {} if campaigns is None else campaigns
    tags = run.data.tags
    if held(run):
        return True
    if HEARTBEAT not in tags:
        return tags.get("hardbench.host") != socket.gethostname() or machine.alive(tags)
    if tags.get(KIND) == "cell" and PARENT in tags:
        with suppress(TrackingError):  # a parent that was deleted
            if tags[PARENT] not in campaigns:
                parent = client.get_run(tags[PARENT])
                campaigns[tags[PARENT]] = parent.info.status == "RUNNING" and alive(client, parent)
            return campaigns[tags[PARENT]]
    free = locks.free(lock_of(run))
    if free and machine.same_kernel(tags):
        return False
    if free is None and machine.same_processes(tags):  # killed before there was a lock
        return machine.alive(tags)
    return time.time() - store.number(tags[HEARTBEAT], 0) < STALE


def mark_dead(client: Any) -> None:
    """End as KILLED the runs whose process is gone (SIGKILL leaves them RUNNING for ever)."""
    experiments = {experiment.experiment_id: experiment.name for experiment in client.search_experiments()}
    campaigns: dict[str, bool] = {}
    for run in list(store.search(client, "attributes.status = 'RUNNING'", list(experiments))):
        tags = run.data.tags
        if STUDY in tags or "hardbench.host" in tags:
            dead = not alive(client, run, campaigns)
        else:  # of versions before: killed between its creation and its tags
            bare = set(tags) <= {"mlflow.runName", "mlflow.user"} and run.info.user_id in ("unknown", store.user())
            old = time.time() - (run.info.start_time or 0) / 1000 > YOUNG
            dead = bare and old and experiments[run.info.experiment_id].startswith("hardbench/") and not held(run)
        if dead:
            client.set_tag(run.info.run_id, "error", "the process was killed")
            client.set_terminated(run.info.run_id, "KILLED")


def connect() -> Any:
    """A client of the store, which is made first if need be; runs whose process is gone are ended."""
    client = store.opened()
    with store.locked(), suppress(TrackingError):  # a store that can only be read
        mark_dead(client)
    return client


def check_idle(stored: StoredRun) -> None:
    """TrackingError if another process is at work on the run (one of another host counts as at work while it is RUNNING)."""
    with store.locked():
        if stored.status == "RUNNING" and alive(stored.client, stored.run):
            raise TrackingError(busy(stored.run))


def find(word: str, studies: Sequence[str], finished: bool | None = True) -> StoredRun:
    """The run of an id, a unique prefix of one, or `last` (the newest of these studies, finished or not as asked, no sweep cell).

    TrackingError for a run that is unknown, ambiguous, of another study or in another state; for an unfinished one also if it was killed
    before it had settings to go on with.
    """
    client = connect()
    if word == "last":
        for run in store.search(client, f"tags.`{KIND}` != 'cell'"):
            stored = StoredRun(client, run)
            wanted = stored.study in studies and finished in (None, stored.status == "FINISHED")
            if wanted and (finished is not False or stored.has(SETTINGS)):
                return stored
        state = {True: "finished ", False: "unfinished ", None: ""}[finished]
        raise TrackingError(f"run: last; there is no {state}run of {' or '.join(studies)} in {store.place()}")
    matches = [run for run in store.search(client, f"attributes.run_id LIKE '{word}%'") if STUDY in run.data.tags] if word.isalnum() else []
    if not matches:
        raise TrackingError(f"run: {word}; a run id, a unique prefix of one, or last (hardbench compare lists the runs of {store.place()})")
    if len(matches) > 1:
        raise TrackingError(f"run: {word}; more of the id: it fits {', '.join(run.info.run_id[:12] for run in matches[:5])}")
    stored = StoredRun(client, matches[0])
    if stored.study not in studies:
        raise TrackingError(f"run: {word}; a run of {' or '.join(studies)}, and this one is of {stored.study}")
    if finished is not None and finished != (stored.status == "FINISHED"):
        raise TrackingError(f"run: {word}; {'a finished' if finished else 'an unfinished'} run, and this one is {stored.status}")
    if finished is False and stored.status != "RUNNING" and not stored.has(SETTINGS):
        raise TrackingError(f"run: {word}; one with settings to go on with, and this one was killed before it had any ({SETTINGS})")
    return stored


def runs(study: str | None = None, cells: bool = False) -> list[StoredRun]:
    """All runs of a study (or of any), newest first; sweep cells only if asked for."""
    client = connect()
    stored_runs = [StoredRun(client, run) for run in store.search(client, f"tags.`{KIND}` != '{'-' if cells else 'cell'}'")]
    return [stored for stored in stored_runs if study is None or stored.study == study]


def parent_of(study: str, key: str) -> StoredRun | None:
    """The newest parent run of a sweep's key."""
    client = connect()
    home = client.get_experiment_by_name(f"hardbench/{study}")
    words = f"tags.`{KIND}` = 'sweep' and tags.`{SWEEP}` = '{key}'"
    matching = store.search(client, words, [home.experiment_id]) if home is not None else iter(())
    return next((StoredRun(client, run) for run in matching), None)
