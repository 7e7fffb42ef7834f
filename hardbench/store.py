"""The store that MLflow keeps: making and opening it, finding runs in it, telling which of them somebody works on."""

import getpass
import hashlib
import logging
import os
import re
import socket
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, chdir, closing, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before the import: nothing leaves the machine unasked
# a server that is gone is asked again by the run itself, later: no minutes of waiting within a call
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

import mlflow
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from hardbench import files, locks, machine
from hardbench.errors import TrackingError
from hardbench.stored import SETTINGS, STUDY, StoredRun, local_path

DEFAULT_STORE = "sqlite:///mlflow.db"
KIND, SWEEP, PARENT = "hardbench.kind", "hardbench.sweep", "mlflow.parentRunId"
CREATED, HEARTBEAT = "hardbench.created", "hardbench.heartbeat"
"""Tags: when a run was made, in milliseconds, later than every run before it; when its process last gave a sign, in seconds."""
NEWEST = [f"tags.`{CREATED}` DESC", "attributes.start_time DESC"]
STALE = 120  # seconds without a sign after which a run is dead whose lock cannot be asked
YOUNG = 600  # seconds within which a run without tags may be one that is being made
BUSY = 30.0  # seconds that a locked database is waited for

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors are raised; here they become one line


class StoreAway(TrackingError):
    """The store does not answer, now: a server that is gone, a database that is locked."""


class Client:
    """MlflowClient whose errors are TrackingErrors of one line."""

    def __init__(self, address: str):
        self._client = MlflowClient(address)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        return _told(attribute) if callable(attribute) else attribute


def _told(call: Callable[..., Any]) -> Callable[..., Any]:
    def told(*words: Any, **more: Any) -> Any:
        until = time.monotonic() + BUSY
        while True:
            try:
                return call(*words, **more)
            except (MlflowException, OSError) as error:
                if "database is locked" not in str(error) or time.monotonic() > until:
                    raise _error(error) from None
                time.sleep(0.05)

    return told


def _error(error: MlflowException | OSError) -> TrackingError:
    """The line that says what a store refuses; StoreAway where trying again later may help."""
    text = str(error)
    if isinstance(error, MlflowException):
        final = error.get_http_status_code() < 500 or re.search("disk is full|readonly database|disk I/O error", text)
    else:
        final = error.errno is not None  # a file of this machine; what a server has to do with has no number
    text = re.sub(r"\(sqlite3\.\w+\) |\[SQL:.*|\(Background on.*", "", text, flags=re.S)
    return (TrackingError if final else StoreAway)(f"tracking store: {place()}; {_line(text)}")


def _line(text: str) -> str:
    return _masked(" ".join(text.split()))[:200]


def uri() -> str:
    """The tracking store: MLFLOW_TRACKING_URI, else MLflow's own default in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_STORE


def place() -> str:
    """The tracking store as it is shown, without its password."""
    return _masked(uri())


def _masked(text: str) -> str:
    text = re.sub(r"(://[^:/@\s]*):\S*@", r"\1:***@", text)
    return re.sub(r"((?:password|passwd|token|secret)=)[^&\s]*", r"\1***", text, flags=re.I)


def _database() -> Path | None:
    """The file of an SQLite store."""
    name = uri().removeprefix("sqlite:///").partition("?")[0] if uri().startswith("sqlite:///") else ""
    return Path(name) if name and name != ":memory:" else None


def own(*names: str) -> Path:
    """A place of this user on this machine, for what belongs into no project."""
    with suppress(RuntimeError):  # no home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("hardbench", *names)
    return Path(tempfile.gettempdir()).joinpath(f"hardbench-of-{os.getuid()}", *names)


def locked() -> AbstractContextManager[None]:
    """A block in which no other process makes the store, takes a run or judges whether one is worked on."""
    path = _database()
    if path is None:
        return locks.waited(own("stores", hashlib.sha256(uri().encode()).hexdigest()[:32]))
    path = Path(os.path.abspath(path))  # noqa: PTH100 (links in it stay)
    there = path.exists() and not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}.lock").exists()
    return nullcontext() if there else locks.waited(path.with_name(f"{path.name}.lock"))


def connect() -> Any:
    """A client of the store, which is made first if need be; runs whose process is gone are ended."""
    path = _database()
    try:
        with locked():
            if path is not None:
                _prepare(path)
            client = Client(uri())
            client.search_experiments(max_results=1)
            if path is not None:
                _many_readers(path)
            mlflow.set_tracking_uri(uri())
            with suppress(TrackingError):  # a store that can only be read
                mark_dead(client)
    except TrackingError:
        raise
    except Exception as error:  # whatever a store that is none does to its readers
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TrackingError(f"tracking store: {place()}; cannot be opened ({_line(reason)})") from None
    return client


def _prepare(path: Path) -> None:
    """Make the database if there is none; else see at once whether it is one: MLflow itself tries for a minute and more."""
    if not path.exists() or not path.stat().st_size:
        _make(path)
    if path.is_dir():
        raise TrackingError(f"tracking store: {place()}; a file, and this is a folder")
    with closing(sqlite3.connect(path, timeout=BUSY)) as database:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()


def _many_readers(path: Path) -> None:
    """Let readers and a writer work side by side, from now on."""
    with closing(sqlite3.connect(path, timeout=BUSY)) as database:
        if database.execute("PRAGMA journal_mode").fetchone() != ("wal",):
            database.execute("PRAGMA journal_mode=WAL")


def _make(path: Path) -> None:
    """A database as MLflow makes it, made elsewhere and put into place whole: a kill leaves none rather than a half-made one."""
    home = Path.cwd()
    odd = not str(home).isprintable() or any(letter in "'\":\\%" for letter in str(home))  # MLflow writes these into SQL, or decodes them
    with tempfile.TemporaryDirectory(prefix="hardbench-") as folder:
        aside = Path(folder).resolve() / "mlflow.db"
        with chdir(folder) if odd else nullcontext():
            Client(f"sqlite:///{aside}").search_experiments(max_results=1)
        with closing(sqlite3.connect(aside)) as database, database:
            if odd:
                database.execute("UPDATE experiments SET artifact_location = ?", [f"{home.as_uri()}/mlruns/0"])
        with files.whole(path) as file:
            file.write(aside.read_bytes())


def experiment(client: Any, name: str) -> str:
    """The id of an experiment, made if need be."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    home, where = Path.cwd(), None
    if _database() is not None and unquote(str(home)) != str(home):  # MLflow decodes paths, but not those it is given as addresses
        where = f"{home.as_uri()}/mlruns/{name.replace('/', '-')}"
    try:
        return str(client.create_experiment(name, where))
    except TrackingError:  # another process was first
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def create(client: Any, place: str, study: str, tags: dict[str, str], title: str) -> MlflowRun:
    """A new run in the experiment `place`, which says from its first state whose it is; it is later than all others by any clock."""
    with locked():
        everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
        newest = client.search_runs(everywhere, max_results=1, order_by=NEWEST)
        latest = max((number(run.data.tags.get(CREATED), run.info.start_time or 0) for run in newest), default=0)
        order = {CREATED: str(max(int(time.time() * 1000), latest + 1)), "mlflow.user": _user()}
        created: MlflowRun = client.create_run(place, tags=signs(study) | order | tags, run_name=title)
    return created


def signs(study: str) -> dict[str, str]:
    """Tags that say what a run is of and who works on it, now."""
    return {STUDY: study, HEARTBEAT: str(int(time.time())), **machine.identity()}


def number(text: str | None, otherwise: int) -> int:
    """A tag's whole number; `otherwise` if it is none."""
    return int(text) if text is not None and text.isdecimal() else otherwise


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a number without a name
        return str(os.getuid())


def search(client: Any, words: str = "", experiments: Sequence[str] = ()) -> Iterator[MlflowRun]:
    """Runs of these experiments (or of all) that fit a filter, newest first."""
    experiments = list(experiments) or [experiment.experiment_id for experiment in client.search_experiments()]
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiments, words, max_results=1000, order_by=NEWEST, page_token=token or None)
        yield from page
        token = page.token or None


# who works on a run

_mine: dict[str, int] = {}  # handles of the locks that this process holds, by run


def home_of(run: MlflowRun) -> Path:
    """The folder of a run on this machine: its lock, what could not be delivered, and its artifacts where the store has these here."""
    local = local_path(run.info.artifact_uri)
    return own("runs", run.info.run_id) if local is None else local.parent


def lock_of(run: MlflowRun) -> Path:
    """The file that is locked while somebody works on the run."""
    return home_of(run) / "lock"


def mine(run_id: str) -> bool:
    """Whether this process works on the run."""
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
    try:
        while (handle := locks.take(lock_of(run))) is None:
            if wait is None:
                raise TrackingError(busy(run))
            wait()
            time.sleep(0.1)
    except OSError as error:
        raise TrackingError(f"run: {run_id}; its folder {home_of(run)} cannot be written ({error.strerror})") from None
    _mine[run_id] = handle
    try:
        yield
    finally:
        if local_path(run.info.artifact_uri) is None:
            with suppress(OSError):  # beside what could not be delivered the lock stays, and says that nobody works on the run
                if [path.name for path in home_of(run).iterdir()] == [lock_of(run).name]:
                    lock_of(run).unlink()
                    home_of(run).rmdir()
        os.close(_mine.pop(run_id))


def held(run: MlflowRun) -> bool:
    """Whether a process holds the run's own lock."""
    return mine(run.info.run_id) or locks.free(lock_of(run)) is False


def busy(run: MlflowRun) -> str:
    """The line for who comes second."""
    process = run.data.tags.get("hardbench.process", "?")
    return f"run: {run.info.run_id}; one that nobody works on, and this one is running (process {process})"


def alive(client: Any, run: MlflowRun, campaigns: dict[str, bool] | None = None) -> bool:
    """Whether somebody works on a RUNNING run: who holds its lock (or its campaign's), else who has given a sign of late.

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
    return time.time() - number(tags[HEARTBEAT], 0) < STALE


def mark_dead(client: Any) -> None:
    """End as KILLED the runs whose process is gone (SIGKILL leaves them RUNNING for ever)."""
    experiments = {experiment.experiment_id: experiment.name for experiment in client.search_experiments()}
    campaigns: dict[str, bool] = {}
    for run in list(search(client, "attributes.status = 'RUNNING'", list(experiments))):
        tags = run.data.tags
        if STUDY in tags or "hardbench.host" in tags:
            dead = not alive(client, run, campaigns)
        else:  # of versions before: killed between its creation and its tags
            bare = set(tags) <= {"mlflow.runName", "mlflow.user"} and run.info.user_id in ("unknown", _user())
            old = time.time() - (run.info.start_time or 0) / 1000 > YOUNG
            dead = bare and old and experiments[run.info.experiment_id].startswith("hardbench/") and not held(run)
        if dead:
            client.set_tag(run.info.run_id, "error", "the process was killed")
            client.set_terminated(run.info.run_id, "KILLED")


def check_idle(stored: StoredRun) -> None:
    """TrackingError if another process is at work on the run (one of another host counts as at work while it is RUNNING)."""
    with locked():
        if stored.status == "RUNNING" and alive(stored.client, stored.run):
            raise TrackingError(busy(stored.run))


# finding runs


def find(word: str, studies: Sequence[str], finished: bool | None = True) -> StoredRun:
    """The run of an id, a unique prefix of one, or `last` (the newest of these studies, finished or not as asked, no sweep cell).

    TrackingError for a run that is unknown, ambiguous, of another study or in another state; for an unfinished one also if it was killed
    before it had settings to go on with.
    """
    client = connect()
    if word == "last":
        for run in search(client, f"tags.`{KIND}` != 'cell'"):
            stored = StoredRun(client, run)
            wanted = stored.study in studies and finished in (None, stored.status == "FINISHED")
            if wanted and (finished is not False or stored.has(SETTINGS)):
                return stored
        state = {True: "finished ", False: "unfinished ", None: ""}[finished]
        raise TrackingError(f"run: last; there is no {state}run of {' or '.join(studies)} in {place()}")
    matches = [run for run in search(client, f"attributes.run_id LIKE '{word}%'") if STUDY in run.data.tags] if word.isalnum() else []
    if not matches:
        raise TrackingError(f"run: {word}; a run id, a unique prefix of one, or last (hardbench compare lists the runs of {place()})")
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
    stored_runs = [StoredRun(client, run) for run in search(client, f"tags.`{KIND}` != '{'-' if cells else 'cell'}'")]
    return [stored for stored in stored_runs if study is None or stored.study == study]


def parent_of(study: str, key: str) -> StoredRun | None:
    """The newest parent run of a sweep's key."""
    client = connect()
    home = client.get_experiment_by_name(f"hardbench/{study}")
    words = f"tags.`{KIND}` = 'sweep' and tags.`{SWEEP}` = '{key}'"
    matching = search(client, words, [home.experiment_id]) if home is not None else iter(())
    return next((StoredRun(client, run) for run in matching), None)
