"""Hostile surroundings for tests: commands in processes of their own, a full disk, a locked store, other namespaces; and what they left.

What was left is read from the files and the database themselves, not through hardbench or MLflow, whose reading is under test, too.
"""

import atexit
import ctypes
import fcntl
import functools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from projects import FORK, empty_store

FORK.set_forkserver_preload(
    [f"hardbench.studies.{name}" for name in ("train", "eval", "simulate", "sweep", "mask_mi", "invert", "stragglers")]
    + [f"hardbench.commands.{name}" for name in ("plot", "compare", "resume")]
    + [f"hardbench.figures.{name}" for name in ("train", "layers", "questions", "sweep", "mask_mi", "invert", "stragglers")]
    + ["hardbench.__main__", "hardbench.cli"]
    + ["mlflow.store.tracking.sqlalchemy_store", "sklearn.datasets", "scipy.stats", "pandas", "torch._dynamo"]
    + ["matplotlib.backends.backend_agg", "surroundings"]
)
ROOT = Path(__file__).parents[1]
NOBODY = 65534  # a user without a name
CAPABILITIES = 0x20080522  # the version of the kernel's structure
NEW_PID, NEW_MOUNT, PRIVATE = 0x20000000, 0x00020000, (1 << 18) | (1 << 14)


def words(line: str) -> list[str]:
    return line.split()


# Small command lines, one per study: digits, a second or two each.
TRAIN = words("train --dataset digits --class-map 0:0,1:1,2:2 --model mlp --width 16 --epochs 3 --repeats 2 --layer-metrics none")
TRAIN += words("--eval-points 5 --threads 1")
LONG = [*TRAIN, *words("--epochs 60 --log-every 1 --checkpoint-every 0.1")]  # long enough to be met at work
SWEEP = words("sweep train --dataset digits --class-map 0:0,1:1,2:2 --normalize none --layer-metrics none --epochs 1 --eval-points 1")
SWEEP += words("--log-every 10 --subset-size 200 --activation relu,tanh --width 8 --workers 1")
MASK = words("mask-mi --model mlp --threads 1 --n-subsets 6 --images 50 --batch-size 60 --pairs 2")
INVERT = words("invert --dataset digits --subset-size 400 --repeats 2 --threads 1 --epochs 30 --lr 0.4 --class-map 0:0,1:1,2:2")
STRAGGLERS = words("stragglers --dataset digits --subset-size 400 --epochs 40 --lr 0.5 --threads 1 --repeats 2 --train-ratios 0.8")
STRAGGLERS += words("--remaining-train-ratios 0,1 --strategy loss")
SIMULATE = ["simulate", *TRAIN[1:]]


# commands in processes of their own


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative for a signal) and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def told(self) -> list[str]:
        """The lines on stderr that are neither progress nor warnings nor MLflow's news."""
        return [line for line in self.err.splitlines() if line.strip() and not _chatter(line)]


def _chatter(line: str) -> bool:
    return line.startswith("warning: ") or line.endswith(" s left") or " INFO " in line


class Command:
    """A command line at work in a folder, forked from a process that has imported everything and computed nothing."""

    def __init__(self, folder: Path, words: Sequence[str], more: Mapping[str, str], powerless: bool, apart: bool):
        self.folder, self.words = folder, list(words)
        self.aside = Path(tempfile.mkdtemp(prefix="hardbench-command-"))
        self.aside.chmod(0o755)
        self.process = FORK.Process(target=_work, args=(str(folder), self.words, dict(more), powerless, apart, str(self.aside)))
        self.process.start()

    @property
    def pid(self) -> int:
        """The process that works, as seen from here (in a PID namespace of its own it is the child's child)."""
        told = self.aside / "pid"
        while not told.exists() and self.process.is_alive():
            time.sleep(0.002)
        return int(told.read_text())

    def alive(self) -> bool:
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> Ended:
        """How it ended; one that does not end is killed and fails the test."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.signal(signal.SIGKILL)
            self.process.join()
            raise AssertionError(f"hardbench {' '.join(self.words)}: still at work after {seconds:g} s\n{self._read('err')}")
        found = Ended(int(self.process.exitcode or 0), self._read("out"), self._read("err"))
        shutil.rmtree(self.aside)
        return found

    def _read(self, name: str) -> str:
        path = self.aside / name
        return path.read_text(errors="replace") if path.exists() else ""


def begin(folder: Path, *words: str, powerless: bool = False, apart: bool = False, **more: str) -> Command:
    """A command line at work, with `more` in the environment: without root's power over permissions, or in a PID namespace of its own."""
    return Command(folder, words, more, powerless, apart)


def command(folder: Path, *words: str, powerless: bool = False, apart: bool = False, seconds: float = 300, **more: str) -> Ended:
    """How a command line in a folder ended."""
    return begin(folder, *words, powerless=powerless, apart=apart, **more).wait(seconds)


def _work(folder: str, words: list[str], more: dict[str, str], powerless: bool, apart: bool, aside: str) -> None:
    """In the child: streams, folder, environment and powers of the command, then the console script itself."""
    for number, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{aside}/{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.chdir(folder)
    for name in [name for name in os.environ if name.startswith(("HARDBENCH_", "MLFLOW_TRACKING", "MLFLOW_RUN"))]:
        del os.environ[name]
    os.environ |= more
    if apart:
        _leave_namespace(aside)
    else:
        _note_pid(aside, os.getpid())
    if powerless and os.geteuid() == 0:  # as any user: another one's folders are closed, while Python's own files stay readable
        assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()) == 0
    from hardbench.__main__ import entry

    sys.argv = ["hardbench", *words]
    atexit._clear()  # what the parent has registered is the parent's
    try:
        entry()
    finally:
        atexit._run_exitfuncs()  # which a forked child does not do by itself


def _note_pid(aside: str, pid: int) -> None:
    Path(f"{aside}/.pid").write_text(str(pid))
    Path(f"{aside}/.pid").replace(f"{aside}/pid")


def _leave_namespace(aside: str) -> None:
    """Go on as the first process of a new PID namespace with a /proc of its own; this process waits for it and ends as it does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(NEW_PID | NEW_MOUNT):
        os._exit(99)
    child = os.fork()
    if child:
        _note_pid(aside, child)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(code if code >= 0 else 128 - code)
    assert libc.mount(None, b"/", None, PRIVATE, None) == 0
    assert libc.mount(b"proc", b"/proc", b"proc", 0, None) == 0


@functools.cache
def may_mount() -> bool:
    """Whether this process may make namespaces and mount file systems in them."""
    words = "unshare --pid --mount --fork --mount-proc mount -t tmpfs none /mnt"
    return sys.platform == "linux" and subprocess.run(words.split(), check=False, stderr=subprocess.DEVNULL).returncode == 0


mounting = pytest.mark.skipif("not __import__('surroundings').may_mount()", reason="needs the right to mount")


def shell(folder: Path, line: str, **more: str) -> Ended:
    """How a line of bash ended in which `hardbench` is the command, in a fresh process: for redirections and pipes."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HARDBENCH_", "MLFLOW_"))} | more
    clean |= {"PYTHONPATH": str(ROOT), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    whole = f'hardbench() {{ {sys.executable} -m hardbench "$@"; }}\nset -o pipefail\n{line}'
    done = subprocess.run(["bash", "-c", whole], cwd=folder, env=clean, capture_output=True, text=True, check=False, timeout=300)
    return Ended(done.returncode, done.stdout, done.stderr)


# surroundings


def project(folder: Path) -> Path:
    """A new folder with an empty store, made by a copy: MLflow takes seconds to make one."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(empty_store(), folder / "mlflow.db")
    return folder


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system in memory of that size on a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "hardbench-test", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, kibibytes: int) -> Path:
    """A file that leaves so much room on a folder's file system; remove it to have the room back."""
    ballast = folder / "ballast"
    free = os.statvfs(folder)
    size = free.f_bavail * free.f_frsize - kibibytes * 1024
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))
    return ballast


@contextmanager
def unwritable(folder: Path) -> Iterator[Path]:
    """Within the block a folder and all in it belong to somebody else, and may be read."""
    there = [folder, *folder.rglob("*")]
    for path in there:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        yield folder
    finally:
        for path in filter(Path.exists, there):
            if os.geteuid() == 0:
                os.chown(path, 0, 0)
            path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Another process holds the store for itself (here a connection of this one: SQLite's locks are per connection)."""
    with closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None, timeout=60)) as database:
        database.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            database.execute("ROLLBACK")


@contextmanager
def stopped(work: Command) -> Iterator[None]:
    """Within the block a command at work stands still, at a moment when it holds no lock on the store: it lives, however long one looks."""
    for turn in range(1000):
        work.signal(signal.SIGSTOP)
        if _free(work.folder):
            break
        work.signal(signal.SIGCONT)
        time.sleep(0.001 * (turn + 1))
    else:
        raise AssertionError("it holds the store all the time")
    try:
        yield
    finally:
        work.signal(signal.SIGCONT)


def _free(folder: Path) -> bool:
    time.sleep(0.01)
    with (
        closing(sqlite3.connect(folder / "mlflow.db", isolation_level=None, timeout=0)) as database,
        (folder / "mlflow.db.lock").open() as lock,
    ):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            database.execute("BEGIN EXCLUSIVE")
            database.execute("ROLLBACK")
        except (sqlite3.OperationalError, BlockingIOError):
            return False
    return True


@contextmanager
def kept(folder: Path) -> Iterator[Callable[[], None]]:
    """A function that puts a folder back to what it is now (in place, since the store knows its artifacts by their full paths)."""
    with tempfile.TemporaryDirectory(prefix="hardbench-kept-") as aside:
        shutil.copytree(folder, Path(aside) / "kept")

        def put_back() -> None:
            shutil.rmtree(folder)
            shutil.copytree(Path(aside) / "kept", folder)

        yield put_back


def kill_at_work(folder: Path, *given: str) -> None:
    """Start a command and kill it when it has something to go on from."""
    work = begin(folder, *given)
    wait_for(lambda: at_work(folder), work)
    work.signal(signal.SIGKILL)
    assert work.wait().code == -signal.SIGKILL, "it was done before it could be killed"


# what is left


@dataclass(frozen=True)
class Left:
    """A run as the database and the disk have it."""

    id: str
    status: str
    study: str
    tags: dict[str, str]
    params: dict[str, str]
    points: dict[str, list[tuple[int, float]]]  # (step, value) of every point of every metric
    folder: Path

    @property
    def files(self) -> set[str]:
        return {str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()}

    @property
    def twice(self) -> list[str]:
        """Metrics with more than one point at a step."""
        return sorted(key for key, points in self.points.items() if max(Counter(step for step, _ in points).values()) > 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays of the run's .npz files, by file and key."""
        found = {}
        for path in sorted(self.folder.glob("*.npz")):
            with np.load(path, allow_pickle=False) as file:
                found |= {f"{path.name}/{key}": file[key] for key in file.files}
        return found


def left(folder: Path, store: Path | None = None) -> list[Left]:
    """All runs of a folder's store that are not in its trash, oldest first."""
    with closing(sqlite3.connect(store or folder / "mlflow.db", timeout=60)) as database:
        ask = database.execute
        rows = ask("SELECT run_uuid, status FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time").fetchall()
        found = []
        for run, status in rows:
            tags = dict(ask("SELECT key, value FROM tags WHERE run_uuid = ?", (run,)))
            params = dict(ask("SELECT key, value FROM params WHERE run_uuid = ?", (run,)))
            points: dict[str, list[tuple[int, float]]] = {}
            for key, step, value in ask("SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY key, step", (run,)):
                points.setdefault(key, []).append((step, value))
            home = next(iter(folder.glob(f"mlruns/*/{run}/artifacts")), folder / "mlruns" / "nowhere")
            found.append(Left(run, status, tags.get("hardbench.study", ""), tags, params, points, home))
    return found


def only(folder: Path) -> Left:
    """The one run of a folder's store."""
    (run,) = left(folder)
    return run


VARIES = {"samples_per_second", "seconds"}  # numbers of the clock


def differing(one: Left, two: Left) -> list[str]:
    """In words what a run differs in from another of the same settings: state, params, points, arrays bit for bit, files."""
    wrong = [f"{one.status} and {two.status}"] if one.status != two.status else []
    wrong += [f"{key} twice at a step" for key in one.twice]
    wrong += [f"param {key}" for key in _unlike(one.params, two.params)]
    wrong += [f"metric {key}" for key in _unlike(one.points, two.points) if not VARIES & set(key.split("/"))]
    wrong += [f"file {name}" for name in sorted(one.files ^ two.files) if not name.endswith("previous.pt")]
    mine, others = one.arrays(), two.arrays()
    wrong += [f"array {key}" for key in sorted(mine.keys() ^ others.keys())]
    for key in mine.keys() & others.keys():
        if "seconds" not in key and not np.array_equal(mine[key], others[key], equal_nan=mine[key].dtype.kind == "f"):
            wrong.append(f"array {key}")
    return wrong


def _unlike(one: Mapping[str, object], two: Mapping[str, object]) -> list[str]:
    return sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))


def check_told(ended: Ended, codes: Sequence[int], *names: str) -> str:
    """The one line that a command ended with, of the table's exit codes and no traceback, naming one of `names`."""
    shown = f"exit {ended.code}\n{ended.err}"
    assert "Traceback" not in ended.err, shown
    assert ended.code in codes, shown
    assert len(ended.told) == 1, shown
    assert ended.told[0].startswith("hardbench: "), shown
    assert not names or any(name in ended.told[0] for name in names), shown
    return ended.told[0]


def tree(folder: Path, but: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time and content of everything in a folder (of a link, where it leads), but for what lies in `but`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if but in (path, *path.parents):
            continue
        state = path.lstat()
        content = os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (state.st_mode, 0 if path.is_dir() else state.st_mtime_ns, content)
    return found


def wait_for(what: Callable[[], object], work: Command, seconds: float = 120) -> None:
    """Until something holds, or the command has ended."""
    until = time.monotonic() + seconds
    while not what() and work.alive():
        assert time.monotonic() < until, f"hardbench {' '.join(work.words)}: not in {seconds:g} s"
        time.sleep(0.01)


def at_work(folder: Path) -> bool:
    """Whether a run that is not over has a checkpoint or a partial result."""
    running = [run.folder for run in left(folder) if run.status == "RUNNING"]
    return any(path.suffix in (".pt", ".npz", ".npy") for home in running for path in home.rglob("[a-z]*"))


# the report


def noted(case: str, detail: str, outcome: str) -> None:
    """A line of JSON per try in the file that HARDBENCH_RELIABILITY names, from which docs/reliability.md is made."""
    path = os.environ.get("HARDBENCH_RELIABILITY")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps({"case": case, "detail": detail, "outcome": outcome}) + "\n")


@contextmanager
def attempt(case: str, detail: object = "") -> Iterator[None]:
    """A try of a case, noted with how it came out."""
    try:
        yield
    except BaseException as error:
        noted(case, str(detail), f"failed: {' '.join(str(error).split())[:300]}")
        raise
    noted(case, str(detail), "held")


def attempts(case: str, tries: Sequence[object], once: Callable[[int], None]) -> None:
    """Try them all (at most as many as HARDBENCH_TRIES says), then fail with every one that did not hold."""
    failures = []
    for number, detail in enumerate(tries[: int(os.environ.get("HARDBENCH_TRIES", len(tries)))]):
        try:
            with attempt(case, detail):
                once(number)
        except AssertionError as error:
            failures.append(f"--- {case} {detail}: {error}")
    assert not failures, f"{len(failures)} of {len(tries)}\n" + "\n".join(failures)
