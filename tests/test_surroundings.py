"""Full disks, closed folders, locked stores, servers that die, closed outputs, signals at any moment: one line, and nothing lost."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from surroundings import (
    INVERT,
    LONG,
    MASK,
    ROOT,
    SIMULATE,
    STRAGGLERS,
    SWEEP,
    TRAIN,
    Ended,
    attempt,
    attempts,
    begin,
    check_told,
    command,
    differing,
    fill,
    kept,
    left,
    locked,
    mounting,
    only,
    project,
    shell,
    small_disk,
    unwritable,
    wait_for,
    words,
)

pytestmark = pytest.mark.reliability

EVAL, PLOT = ["eval", "last", "--threads", "1"], ["plot", "last"]
DYNAMICS = [*TRAIN, "--record-dynamics"]
ON_A_RUN = {"eval": EVAL, "plot": PLOT, "mask-mi": MASK}  # these need a finished training
COMMANDS = {
    "train": TRAIN,
    "dynamics": DYNAMICS,
    "invert": INVERT,
    "stragglers": STRAGGLERS,
    "sweep": SWEEP,
    "simulate": SIMULATE,
} | ON_A_RUN


def ready(folder: Path, name: str) -> Path:
    """A project in which a command can be given."""
    project(folder)
    if name in ON_A_RUN:
        assert command(folder, *TRAIN).code == 0
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder in which a command has been given and nothing has gone wrong, made once for each."""
    made: dict[tuple[str, ...], Path] = {}

    def of(name: str, line: Sequence[str]) -> Path:
        if tuple(line) not in made:
            made[tuple(line)] = ready(tmp_path_factory.mktemp("undisturbed") / "project", name)
            assert command(made[tuple(line)], *line).code == 0
        return made[tuple(line)]

    return of


def gone_on(folder: Path, line: Sequence[str]) -> None:
    """Resume what is unfinished, or give the command again where nothing is or where it is no run of its own."""
    ended = command(folder, "resume", "last")
    if ended.code:
        check_told(ended, [5])
        ended = command(folder, *line)
    assert ended.code == 0, ended.err


def same_as(folder: Path, whole: Path) -> None:
    """The finished runs of a folder are those of another; one that failed before it had begun may lie beside them."""
    mine = [run for run in left(folder) if run.status == "FINISHED"]
    others = left(whole)
    assert sorted(map(_what, mine)) == sorted(map(_what, others))
    for run in mine:
        (other,) = (one for one in others if _what(one) == _what(run))
        wrong = [one for one in differing(run, other) if not one.startswith("metric eval")]
        assert not wrong, f"{_what(run)}: {wrong}"


def _what(run) -> str:
    return f"{run.study} {run.tags.get('hardbench.kind')} {run.tags.get('hardbench.cell', '')}"


# a disk that is full


def _full_disk(undisturbed, tmp_path: Path, name: str, rooms: Sequence[int]) -> None:
    """With so many KiB left a command works or tells it in one line; with room again it ends as on any disk."""
    line = COMMANDS[name]
    whole = undisturbed(name, line)
    with small_disk(tmp_path / "disk", 48) as disk:
        folder = ready(disk / "project", name)
        with kept(folder) as put_back:

            def once(number: int) -> None:
                put_back()
                ballast = fill(disk, rooms[number])
                ended = command(folder, *line)
                assert ended.code == 0 or check_told(ended, [1, 2, 3, 4, 5])
                ballast.unlink()
                assert not list(folder.rglob(".*.part")) or ended.code
                if ended.code:
                    gone_on(folder, line)
                same_as(folder, whole)

            attempts(f"disk full, {name}", rooms, once)


@mounting
@pytest.mark.parametrize(("name", "room"), [("train", 24), ("eval", 0)])
def test_a_full_disk(undisturbed, tmp_path, name, room):
    _full_disk(undisturbed, tmp_path, name, [room])


@pytest.mark.slow
@mounting
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_at_every_kind_of_write(undisturbed, tmp_path, name):
    _full_disk(
        undisturbed, tmp_path, name, [0, 4, 12, 24, 40, 60, 90, 130, 180, 250, 330, 420, 550, 700, 900, 1200, 1600, 2200, 3000, 4500]
    )


@pytest.mark.slow
@mounting
@pytest.mark.parametrize("name", ["train", "simulate", "invert", "sweep", "eval", "plot"])
def test_a_full_disk_at_out(undisturbed, tmp_path, name):
    """The run is whole, whatever becomes of the copy."""
    line = COMMANDS[name]
    whole, folder = undisturbed(name, line), ready(tmp_path / "project", name)
    rooms = [0, 4, 16, 40, 90, 200]
    with small_disk(tmp_path / "disk", 8) as disk, kept(folder) as put_back:

        def once(number: int) -> None:
            put_back()
            ballast = fill(disk, rooms[number])
            ended = command(folder, *line, "--out", str(disk / "copy"))
            assert ended.code == 0 or check_told(ended, [2, 5], str(disk))
            ballast.unlink()
            shutil.rmtree(disk / "copy", ignore_errors=True)
            if name == "sweep" and ended.code:
                gone_on(folder, line)
            same_as(folder, whole)

        attempts(f"disk full at --out, {name}", rooms, once)


# folders of others


CLOSED = {  # what is somebody else's, and what is asked for there
    "project-train": (".", TRAIN),
    "project-sweep": (".", SWEEP),
    "project-eval": (".", EVAL),
    "project-plot": (".", PLOT),
    "project-compare": (".", ["compare"]),
    "mlruns-train": ("mlruns", TRAIN),
    "mlruns-invert": ("mlruns", INVERT),
    "mlruns-sweep": ("mlruns", SWEEP),
    "mlruns-eval": ("mlruns", EVAL),
    "mlruns-plot": ("mlruns", PLOT),
    "mlruns-mask-mi": ("mlruns", MASK),
    "store-train": ("mlflow.db", TRAIN),
    "store-compare": ("mlflow.db", ["compare"]),
    "out-train": ("out", [*TRAIN, "--out", "out"]),
    "out-inside": ("out", [*TRAIN, "--out", "out/in/it"]),
    "out-plot": ("out", [*PLOT, "--out", "out"]),
    "out-sweep": ("out", [*SWEEP, "--out", "out"]),
    "csv": ("out", ["compare", "--csv", "out/x.csv"]),
    "data-fetch": ("out", ["data", "fetch", "mnist", "--data-dir", "out"]),
    "data-train": ("out", [*TRAIN, "--dataset", "mnist", "--data-dir", "out"]),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished training and an `out`, and a function that puts it back."""
    folder = ready(tmp_path_factory.mktemp("closed") / "project", "eval")
    (folder / "out").mkdir()
    with kept(folder) as put_back:
        yield folder, put_back


def _closed(trained, name: str) -> None:
    folder, put_back = trained
    put_back()
    what, line = CLOSED[name]
    before = only(folder)
    with attempt("folders of others", name):
        with unwritable(folder / what):
            ended = command(folder, *line, powerless=True, HARDBENCH_DATA=str(folder))
        readable = line == ["compare"] and ended.code == 0
        assert readable or check_told(ended, [2, 3, 5] if name.startswith("data") else [2, 5])
        (first, *others) = left(folder)
        assert differing(first, before) == []
        assert all(run.status in ("FAILED", "KILLED") for run in others)
        assert command(folder, "compare").code == 0


@pytest.mark.parametrize("name", ["mlruns-train", "mlruns-eval", "out-train"])
def test_a_folder_of_somebody_else(trained, name):
    _closed(trained, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLOSED)
def test_every_folder_of_somebody_else(trained, name):
    _closed(trained, name)


@pytest.mark.parametrize(
    "line",
    [TRAIN, *(pytest.param(line, marks=pytest.mark.slow) for line in (SWEEP, ["compare"], ["resume"], PLOT))],
    ids=lambda line: line[0],
)
def test_an_empty_folder_of_somebody_else(tmp_path, line):
    """No store can be made there."""
    folder = tmp_path / "empty"
    folder.mkdir()
    with unwritable(folder), attempt("folders of others", f"empty, {line[0]}"):
        check_told(command(folder, *line, powerless=True), [2, 5])
    assert list(folder.iterdir()) == []


# a store that is locked


def _locked(undisturbed, tmp_path: Path, name: str, seconds: float, begun: bool) -> None:
    """Another process has the store for itself; the command waits, or ends in one line and can go on."""
    line = [*LONG, "--epochs", "100"] if begun else COMMANDS.get(name, [name])
    whole, folder = undisturbed(name, line), ready(tmp_path / "project", name)
    with attempt("store locked", f"{name}, {seconds:g} s, {'at work' if begun else 'at the start'}"):
        work = begin(folder, *line) if begun else None
        if work is not None:
            wait_for(lambda: left(folder) and left(folder)[0].points, work)
        with locked(folder):
            work = work or begin(folder, *line)
            work.process.join(seconds)
        ended = work.wait()
        if ended.code:
            check_told(ended, [5], "store", "locked")
            gone_on(folder, line)
        same_as(folder, whole)


@pytest.mark.slow
def test_a_store_that_is_locked_for_a_while(undisturbed, tmp_path):
    """For longer than SQLite waits by itself."""
    _locked(undisturbed, tmp_path, "train", 7, begun=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "invert", "sweep", "eval", "mask-mi"])
@pytest.mark.parametrize("seconds", [30, 90])
def test_a_store_that_is_locked_from_the_start(undisturbed, tmp_path, name, seconds):
    _locked(undisturbed, tmp_path, name, seconds, begun=False)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [30, 90])
def test_a_store_that_is_locked_at_work(undisturbed, tmp_path, seconds):
    _locked(undisturbed, tmp_path, "train", seconds, begun=True)


# a server that dies


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        tried.settimeout(1)
        return tried.connect_ex(("127.0.0.1", port)) == 0


def _until(what: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, f"not in {seconds:g} s"
        time.sleep(0.1)


class Server:
    """MLflow's own, on loopback, which keeps the artifacts itself."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, _free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.up()

    def up(self) -> None:
        given = words(f"--backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port {self.port} --workers 1")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        with (self.folder / "server.log").open("ab") as log:
            line = [sys.executable, "-m", "mlflow", "server", *given, "--artifacts-destination", str(self.folder / "files")]
            env = clean | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            self.process = subprocess.Popen(line, cwd=self.folder, stdout=log, stderr=log, start_new_session=True, env=env)
        _until(lambda: _listens(self.port))
        time.sleep(1)

    def down(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _until(lambda: not _listens(self.port))


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    server = Server(project(folder))
    try:
        yield server
    finally:
        server.down()


def _points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    (run,) = (run for run in left(folder) if run.status == "FINISHED")
    assert run.twice == []
    return {key: points for key, points in run.points.items() if key != "samples_per_second"}


@pytest.mark.slow
@pytest.mark.parametrize("dead", [1, 20, 90, None], ids=["1s", "20s", "90s", "until-the-end"])
def test_a_server_that_dies_while_a_run_logs(tmp_path, dead):
    """All points are there once: delivered when it is back, or by the command that the one line names."""
    line = [*TRAIN, *words("--epochs 300 --log-every 1 --checkpoint-every 0.5")]
    whole, home = project(tmp_path / "whole"), tmp_path / "home"
    home.mkdir()
    assert command(whole, *line).code == 0
    with attempt("server killed", f"{dead or 'until the end'} s"), served(tmp_path / "server") as server:
        at = {"MLFLOW_TRACKING_URI": server.uri}
        work = begin(home, *line, **at)
        wait_for(lambda: left(server.folder) and left(server.folder)[0].points, work)
        server.down()
        if dead is not None:
            work.process.join(dead)
        else:
            ended = work.wait(600)
        server.up()
        ended = work.wait(600) if dead is not None else ended
        if ended.code:
            named = re.search(r"hardbench (resume[^;`']*)", check_told(ended, [5]))
            assert named, ended.err
            ended = command(home, *named[1].split()[:2], **at)
            assert ended.code == 0, ended.err
        assert _points(server.folder) == _points(whole)
        assert not list(Path(tempfile.gettempdir()).glob(f"hardbench-*/{left(server.folder)[0].id}*"))


# outputs that are closed or full


OUTPUTS = {
    "stdout closed": "hardbench {} >&-",
    "stderr closed": "hardbench {} 2>&-",
    "both closed": "hardbench {} >&- 2>&-",
    "all closed": "hardbench {} <&- >&- 2>&-",
    "stdout full": "hardbench {} >/dev/full",
    "stderr full": "hardbench {} 2>/dev/full",
    "both full": "hardbench {} >/dev/full 2>&1",
    "head": "hardbench {} | head -1",
    "head of nothing": "hardbench {} | true",
}


def _shown_nowhere(folder: Path, line: Sequence[str], case: str) -> None:
    with attempt("output closed or full", f"{case}, {line[0]}"):
        ended = shell(folder, OUTPUTS[case].format(" ".join(line)))
        assert "Traceback" not in ended.out + ended.err, ended.err
        assert "Exception ignored" not in ended.err, ended.err
        assert len(ended.told) <= 1, ended.err
        assert ended.code in (0, 5, 141), ended


def _whole_without_a_reader(undisturbed, tmp_path: Path, case: str) -> None:
    """The run is whole: what is lost is what was printed."""
    whole, folder = undisturbed("train", TRAIN), project(tmp_path / "project")
    _shown_nowhere(folder, TRAIN, case)
    assert differing(only(folder), only(whole)) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", OUTPUTS)
def test_an_output_that_is_closed_or_full(undisturbed, tmp_path, case):
    _whole_without_a_reader(undisturbed, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", OUTPUTS)
def test_commands_that_only_print(trained, case):
    for line in (["compare"], ["data"], ["--help"], ["train", "--help"], ["compare", "--study", "nosuch"]):
        with attempt("output closed or full", f"{case}, {' '.join(line)}"):
            ended = shell(trained[0], OUTPUTS[case].format(" ".join(line)))
            assert "Traceback" not in ended.out + ended.err, ended.err
            assert "Exception ignored" not in ended.err, ended.err


# signals


SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGQUIT: 131}
STOPPED = {"train": [*LONG, "--epochs", "100"], "invert": [*INVERT, *words("--epochs 3000 --checkpoint-every 0.1")]}
STOPPED |= {"stragglers": [*STRAGGLERS, *words("--epochs 1500 --sets 3 --checkpoint-every 0.1")], "simulate": ["simulate", *LONG[1:]]}
STOPPED |= {"sweep": [*SWEEP, *words("--epochs 20 --width 8,16,24")]}


def ended_by(ended: Ended, number: int) -> str:
    """The command to go on with, named in the one line that a signal ends a command with."""
    assert ended.code == SIGNALS[number], f"exit {ended.code}\n{ended.err}"
    assert "Traceback" not in ended.err, ended.err
    assert len(ended.told) == 1, ended.err
    named = re.search(r"hardbench (resume \S+)", ended.told[0])
    assert named, ended.told[0]
    return named[1].rstrip(";.,`'")


def _stopped(undisturbed, tmp_path: Path, name: str, number: int, times: int, tries: Sequence[float]) -> None:
    """By so many signals in a row, some seconds after the run was made: KILLED at once, and it goes on by the command that is named."""
    line = STOPPED[name]
    whole, folder = undisturbed(name, line), project(tmp_path / "stopped")
    with kept(folder) as put_back:

        def once(turn: int) -> None:
            put_back()
            work = begin(folder, *line)
            wait_for(lambda: any(run.status == "RUNNING" for run in left(folder)), work)
            work.process.join(tries[turn])
            for _ in range(times):
                work.signal(number)
                time.sleep(0.02)
            ended = work.wait()
            assert not [run.status for run in left(folder) if run.status == "RUNNING"]
            again = ended_by(ended, number)
            assert left(folder)[0].status == "KILLED"
            ended = command(folder, *again.split())
            assert ended.code == 0, ended.err
            same_as(folder, whole)

        attempts(f"{signal.Signals(number).name} x{times}, {name}", tries, once)


def test_six_interrupts_in_a_row(undisturbed, tmp_path):
    _stopped(undisturbed, tmp_path, "train", signal.SIGINT, 6, [0.3])


@pytest.mark.slow
def test_a_terminal_that_goes_away(undisturbed, tmp_path):
    _stopped(undisturbed, tmp_path, "train", signal.SIGHUP, 1, [0.0])


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 6])
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: signal.Signals(number).name)
@pytest.mark.parametrize("name", STOPPED)
def test_every_signal_at_many_moments(undisturbed, tmp_path, name, number, times):
    _stopped(undisturbed, tmp_path, name, number, times, [0, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0])


def _at_the_start(folder: Path, tries: Sequence[float]) -> None:
    """In the first two seconds of a fresh process: no traceback of ours, and no run that is RUNNING for ever."""

    def once(turn: int) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HARDBENCH_", "MLFLOW_"))}
        given = [sys.executable, "-m", "hardbench", *TRAIN]
        work = subprocess.Popen(given, cwd=folder, env=clean | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        time.sleep(tries[turn])
        work.send_signal(signal.SIGINT)
        err = work.communicate(timeout=120)[1].decode()
        assert work.returncode in (130, -signal.SIGINT), f"exit {work.returncode}\n{err}"
        assert not re.search(r"hardbench/\S+\.py", err), err  # Python's own start is Python's
        assert not [run.status for run in left(folder) if run.status == "RUNNING"]

    attempts("Ctrl-C in the first seconds", tries, once)


def test_ctrl_c_at_the_start(tmp_path):
    _at_the_start(project(tmp_path / "project"), [0.2, 0.9])


@pytest.mark.slow
def test_ctrl_c_at_many_moments_of_the_start(tmp_path):
    _at_the_start(project(tmp_path / "project"), [0.05 * turn for turn in range(1, 41)])


# the user interface


@pytest.mark.ui
@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT], ids=lambda number: signal.Signals(number).name
)
def test_nothing_listens_when_the_ui_is_gone(trained, number):
    port = _free_port()
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HARDBENCH_", "MLFLOW_"))}
    given = [sys.executable, "-m", "hardbench", "ui", "--port", str(port)]
    with attempt("ui", signal.Signals(number).name):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        work = subprocess.Popen(given, cwd=trained[0], env=clean | {"PYTHONPATH": str(ROOT)}, start_new_session=True, **quiet)
        _until(lambda: _listens(port), 120)
        work.send_signal(number)
        work.wait(60)
        _until(lambda: not _listens(port), 20)
