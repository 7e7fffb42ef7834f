"""A warm process whose forks run command lines, and die at an event of our choice.

`python tests/victim.py` reads jobs as JSON lines and answers each with an exit status. It computes nothing itself, opens no
store and starts no thread: what a fork needs has been imported, so that a kill costs its run and not its imports.

An event is a moment at which something outside the process is about to change: a file opened for writing (`open`, and `opened` just after),
os.rename, os.remove, os.mkdir, os.rmdir, os.fsync, an SQL statement that writes, its commit, a request to a server, and where asked for
a step of the optimizer. Between two of them nothing changes that a kill could leave behind, but for the content of a file being written.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
VERBS = ("INSERT", "UPDATE", "DELETE", "CREATE", "ALTER", "DROP")
FILES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "sqlite3.connect")
NEAR = 20  # events
WORKER = "VICTIM_WORKER"  # environment variable: the worker processes of a sweep count, and the first to come so far dies


class Counter:
    """Counts events below a folder into a journal; at event number `at` the process is killed (0: never, all are written down).

    With a `moment` it is killed at the first event of that kind and place from a little before `at` on: clocks shift the numbers a little.
    """

    def __init__(self, journal: str, at: int, folders: list[str], moment: tuple[str, str] | None = None):
        self.moment = moment
        self.journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.at, self.folders, self.count, self.pid, self.busy = at, tuple(folders), 0, os.getpid(), False

    def __call__(self, kind: str, what: str) -> None:
        """One event."""
        if self.pid != os.getpid() or threading.current_thread().name.endswith("(beat)"):  # signs of life come by the clock
            return
        self.count += 1
        now = self._now(kind, what)
        if now or not self.at:
            os.write(self.journal, f"{kind}\t{what}\n".encode())
        if now:
            os.kill(self.pid, signal.SIGKILL)

    def _now(self, kind: str, what: str) -> bool:
        if self.moment is None:
            return self.count == self.at
        return self.count >= self.at - NEAR and kind == self.moment[0] and self.moment[1] in what

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        """For sys.addaudithook."""
        if self.busy or not (event in FILES or event in ("open", "http.client.send")):
            return
        if event == "http.client.send":
            line = bytes(args[1][:60]).partition(b"\r")[0] if isinstance(args[1], bytes) else b""
            self("send", line.decode() if line.isascii() and line[:3].isupper() else "what was announced")
            return
        if not isinstance(args[0], str | bytes | os.PathLike):
            return
        path = os.fsdecode(args[0])
        if not os.path.abspath(path).startswith(self.folders):  # noqa: PTH100
            return
        if event != "open":
            self(event.rpartition(".")[2], path)
        elif args[2] & WRITING:
            self("open", path)
            self.count += 1
            next_one = self._now("opened", path)
            self.count -= 1
            if next_one:  # a file that is there and empty: nothing tells us when a call has been made
                self.busy = True
                with suppress(OSError):
                    os.close(os.open(path, args[2]))
            self("opened", path)

    def install(self, steps: bool) -> None:
        """From now on."""
        from sqlalchemy import Engine, event

        @event.listens_for(Engine, "before_cursor_execute")
        def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
            if statement.lstrip().upper().startswith(VERBS):
                connection.info["written"] = True
                self("sql", " ".join(statement.split()[:3]))

        @event.listens_for(Engine, "commit")
        def commit(connection: Any) -> None:
            if connection.info.pop("written", False):
                self("commit", "")

        real = os.fsync

        def fsync(file: Any) -> None:
            number = file if isinstance(file, int) else file.fileno()
            self("fsync", str(Path(f"/proc/self/fd/{number}").readlink()))
            real(file)

        os.fsync = fsync
        if steps:
            from torch.optim.optimizer import register_optimizer_step_pre_hook

            register_optimizer_step_pre_hook(lambda *rest: self("step", ""))
        sys.addaudithook(self.hook)


def _enter(job: dict[str, Any]) -> None:
    os.setpgid(0, 0)  # whoever ends this fork for taking too long ends its workers, too
    os.chdir(job["folder"])
    for name in [name for name in os.environ if name.startswith(("HARDBENCH_", "MLFLOW_", WORKER))]:
        del os.environ[name]
    os.environ.update(job.get("env", {}))
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0), os.dup2(log, 1), os.dup2(log, 2)


def command(job: dict[str, Any]) -> int:
    """In a fork: run a command line, counting its events if there is a journal."""
    from hardbench.cli import main

    print("$", *job["words"], "; killed at", job.get("at", 0), flush=True)
    if job.get("often"):
        module, _, name = job["often"].partition(":")
        setattr(importlib.import_module(module), name, 0.0)
    if job.get("blank"):
        _draw_nothing()
    if "journal" in job:
        Counter(job["journal"], job["at"], job["watch"], job.get("moment")).install(job["steps"])
    return main(job["words"])


def _draw_nothing() -> None:
    """Figures are made as ever, and written where they belong, but for what is in them."""
    from matplotlib.figure import Figure

    Figure.savefig = lambda figure, file, **more: file.write(b"a figure") and None


def look(job: dict[str, Any]) -> int:
    """In a fork: write down all that is in a project."""
    from ledger import project

    Path(job["result"]).write_text(json.dumps(project(Path(job["folder"]), job.get("clean", False))))
    return 0


@functools.cache
def _migrations() -> None:
    """Every store that is opened reads all migrations of MLflow's database: read them once."""
    import mlflow
    from alembic.util import pyfiles

    real, there = pyfiles.load_module_py, (Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions").glob("*.py")
    known = {path: real(path.stem, path) for path in there}
    pyfiles.load_module_py = lambda name, path: known.get(Path(path)) or real(name, path)


def warm(job: dict[str, Any]) -> None:
    """In this process: import what a command took."""
    _migrations()
    for name in json.loads(Path(job["modules"]).read_text()):
        if name.partition(".")[0] not in ("__main__", "__mp_main__", "ray", "IPython"):
            with suppress(Exception):  # some modules of libraries exist for their libraries alone
                importlib.import_module(name)
    gc.collect()
    gc.freeze()  # what is shared with the forks stays shared


def _leave(code: int) -> None:
    """The end of a process, without taking all modules apart: that costs more than most commands."""
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _fork(work: Callable[[dict[str, Any]], int], job: dict[str, Any]) -> dict[str, Any]:
    """The exit status of a fork, -9 where it was killed, and the CPU time it took with its children."""
    pid = os.fork()
    if pid == 0:
        _enter(job)
        code = work(job)
        if "modules" in job:
            Path(job["modules"]).write_text(json.dumps(sorted(sys.modules)))
        _leave(code)
    handle = os.pidfd_open(pid)
    if not select.select([handle], [], [], job.get("seconds", 300))[0]:
        os.killpg(pid, signal.SIGKILL)
    os.close(handle)
    _, status, used = os.wait4(pid, 0)
    return {"status": os.waitstatus_to_exitcode(status), "cpu": used.ru_utime + used.ru_stime}


def serve() -> None:
    """Jobs from stdin until there are no more."""
    for line in sys.stdin:
        job, answer = json.loads(line), {"status": 0, "cpu": 0.0}
        if job["do"] == "warm":
            warm(job)
        else:
            answer = _fork({"command": command, "look": look}[job["do"]], job)
        print(json.dumps(answer), flush=True)


if __name__ == "__mp_main__" and WORKER in os.environ:
    _order = json.loads(os.environ[WORKER])
    if not _order["at"] or not Path(_order["journal"]).exists():
        Counter(_order["journal"], _order["at"], _order["watch"]).install(False)

if __name__ == "__main__":
    serve()
