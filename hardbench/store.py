"""The store that MLflow keeps: making and opening it, experiments and runs in it."""

import getpass
import hashlib
import logging
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, chdir, closing, nullcontext, suppress
from functools import partial
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

from hardbench import files, locks, machine, signals
from hardbench.errors import TrackingError
from hardbench.stored import STUDY

DEFAULT_STORE = "sqlite:///mlflow.db"
KIND, SWEEP, PARENT = "hardbench.kind", "hardbench.sweep", "mlflow.parentRunId"
CREATED, HEARTBEAT = "hardbench.created", "hardbench.heartbeat"
"""Tags: when a run was made, in milliseconds, later than every run before it; when its process last gave a sign, in seconds."""
NEWEST = [f"tags.`{CREATED}` DESC", "attributes.start_time DESC"]
BUSY = 30.0  # seconds that a locked database is waited for

logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # its errors are raised; here they become one line


class StoreAway(TrackingError):
    """The store does not answer, now: a server that is gone, a database that is locked."""


class Client:
    """MlflowClient whose errors are TrackingErrors of one line, and whose work on a database no signal interrupts."""

    def __init__(self, address: str):
        self._client = MlflowClient(address)
        self._whole = nullcontext if address.startswith("http") else signals.held

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._client, name)
        return partial(_patient, attribute, self._whole) if callable(attribute) else attribute


def _patient(call: Callable[..., Any], whole: Callable[[], AbstractContextManager[None]], *words: Any, **more: Any) -> Any:
    """The result of a call to MLflow, asked again while the database is locked.

    A signal waits until a call to a database is over (`whole`): a transaction left in the middle stays open, and locks the database, for as
    long as the error's traceback has its frames.
    """
    until = time.monotonic() + BUSY
    while True:
        try:
            with whole():
                return call(*words, **more)
        except (MlflowException, OSError) as error:
            if "database is locked" not in str(error) or time.monotonic() > until:
                raise _error(error) from None
            time.sleep(0.05)


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


def user_folder(*names: str) -> Path:
    """A place of this user on this machine, for what belongs into no project."""
    with suppress(RuntimeError):  # no home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").joinpath("hardbench", *names)
    return Path(tempfile.gettempdir()).joinpath(f"hardbench-of-{os.getuid()}", *names)


def locked() -> AbstractContextManager[None]:
    """A block in which no other process makes the store, takes a run or judges whether one is worked on."""
    database = _database()
    if database is None:
        return locks.waited(user_folder("stores", hashlib.sha256(uri().encode()).hexdigest()[:32]))
    lock = Path(os.path.abspath(f"{database}.lock"))  # noqa: PTH100 (links in it stay)
    only_read = database.exists() and not os.access(lock.parent, os.W_OK) and not lock.exists()
    return nullcontext() if only_read else locks.waited(lock)


def opened() -> Any:
    """A client of the store, which is made first if need be."""
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
    existing = client.get_experiment_by_name(name)
    if existing is None:
        home, where = Path.cwd(), None
        if _database() is not None and unquote(str(home)) != str(home):  # MLflow decodes paths, but not those it is given as addresses
            where = f"{home.as_uri()}/mlruns/{name.replace('/', '-')}"
        try:
            return str(client.create_experiment(name, where))
        except TrackingError:  # another process was first
            existing = client.get_experiment_by_name(name)
            if existing is None:
                raise
    return str(existing.experiment_id)


def create(client: Any, place: str, study: str, tags: dict[str, str], title: str) -> MlflowRun:
    """A new run in the experiment `place`, which says from its first moment whose it is; it is later than all others by any clock."""
    with locked():
        everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
        newest = client.search_runs(everywhere, max_results=1, order_by=NEWEST)
        latest = max((number(run.data.tags.get(CREATED), run.info.start_time or 0) for run in newest), default=0)
        order = {CREATED: str(max(int(time.time() * 1000), latest + 1)), "mlflow.user": user()}
        created: MlflowRun = client.create_run(place, tags=signs(study) | order | tags, run_name=title)
    return created


def signs(study: str) -> dict[str, str]:
    """Tags that say what a run is of and who works on it, now."""
    return {STUDY: study, HEARTBEAT: str(int(time.time())), **machine.identity()}


def number(text: str | None, otherwise: int) -> int:
    """A tag's whole number; `otherwise` if it is none."""
    return int(text) if text is not None and text.isdecimal() else otherwise


def user() -> str:
    """The name of the user, or the number of one without a name."""
    with suppress(KeyError, OSError, ImportError):
        return getpass.getuser()
    return str(os.getuid())


def search(client: Any, words: str = "", experiments: Sequence[str] = ()) -> Iterator[MlflowRun]:
    """Runs of these experiments (or of all) that fit a filter, newest first."""
    experiments = list(experiments) or [experiment.experiment_id for experiment in client.search_experiments()]
    token: str | None = ""
    while token is not None:
        page = client.search_runs(experiments, words, max_results=1000, order_by=NEWEST, page_token=token or None)
        yield from page
        token = page.token or None
