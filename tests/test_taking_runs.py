"""Two processes on one run or one campaign: one works, one is told; what signals leave; who lives, told across containers."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from projects import FORK, all_runs, client, history, last, new_project

from hardbench import locks, signals, store, taking, tracking
from hardbench.errors import Killed, TrackingError
from hardbench.stored import StoredRun
from hardbench.studies import train

pytestmark = pytest.mark.reliability

WORDS = ("train", "--dataset", "gaussian", "--model", "mlp", "--width", "8", "--threads", "1", "--layer-metrics", "none", "--repeats", "1")


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


def _killed_run():
    """A run that was killed after it had settings."""
    with pytest.raises(Killed), tracking.start("train", train.Config(), "title", "note") as run:
        raise Killed
    assert (last().id, last().status) == (run.id, "KILLED")
    return last()


def _hold(folder: str, how: str, run_id: str, ready, go) -> None:
    """In a process of its own: go on with a run, or add to it, until told to stop; exit code 5 if it is refused."""
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    taking = {"reopen": tracking.reopen, "extend": tracking.extend}[how]
    ready.wait()
    try:
        with taking(StoredRun(tracking.connect(), client().get_run(run_id))) as run:
            run.log({"taken": 1.0}, os.getpid())
            go.wait()
    except TrackingError as error:
        sys.exit(5 if "one that nobody works on" in str(error) or "is FINISHED" in str(error) else 1)


def _together(project, run_id, *hows):
    """Exit codes of processes that take a run at the same moment; the first to be refused lets the others end."""
    ready, go = FORK.Event(), FORK.Event()
    processes = [FORK.Process(target=_hold, args=(str(project), how, run_id, ready, go)) for how in hows]
    for process in processes:
        process.start()
    ready.set()
    while sum(process.is_alive() for process in processes) > 1:
        time.sleep(0.05)
    go.set()
    for process in processes:
        process.join()
    return sorted(process.exitcode for process in processes)


@pytest.mark.parametrize("tries", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_one_goes_on_and_the_others_are_told(project, tries):
    """Resume three times at once: nothing twice."""
    for _ in range(tries):
        run = _killed_run()
        assert _together(project, run.id, "reopen", "reopen", "reopen") == [0, 5, 5]
        found = last()
        assert (found.id, found.status, len(history(found)["taken"])) == (run.id, "FINISHED", 1)


def test_nothing_is_added_to_a_run_that_is_worked_on(project):
    with tracking.start("train", train.Config(), "title", "note") as run:
        own = StoredRun(run.client, run.client.get_run(run.id))
        with tracking.extend(own) as again:  # one's own can be added to
            again.log({"mine": 1.0})
        assert _together(project, run.id, "extend", "reopen") == [5, 5]
        assert last().status == "RUNNING"
    assert set(history(last())) == {"mine"}


def test_additions_to_a_finished_run_wait_for_each_other(project):
    with tracking.start("train", train.Config(), "title", "note") as run:
        pass
    ready, go = FORK.Event(), FORK.Event()
    ready.set()
    go.set()
    processes = [FORK.Process(target=_hold, args=(str(project), "extend", run.id, ready, go)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (last().status, len(history(last())["taken"])) == ("FINISHED", 3)


def test_the_command_line_says_whose_run_it_is(project, capsys):
    from hardbench.cli import main

    with tracking.start("train", train.Config(), "title", "note") as run:
        for words in (["resume", run.id], ["eval", run.id], ["plot", run.id]):
            done = FORK.Process(target=_command, args=(str(project), words))
            done.start()
            done.join()
            assert done.exitcode == 5, words
        assert main(["resume", "last"]) == 5
    shown = capsys.readouterr().err.splitlines()
    assert shown == [
        f"hardbench: run: {run.id}; one that nobody works on, and this one is running (process {last().tags['hardbench.process']})"
    ]


def _command(folder: str, words: list[str]) -> None:
    from hardbench.cli import main

    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    sys.exit(main(words))


def _start_campaign(folder: str, ready) -> None:
    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    ready.wait()
    try:
        with tracking.sweep("train", "a key", train.Config(), "title", "note", {}):
            time.sleep(1)
    except TrackingError:
        sys.exit(5)


@pytest.mark.parametrize("tries", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_campaign_has_one_parent(project, tries):
    """Started three times at once: whoever comes second is told, or goes on after it."""
    for attempt in range(tries):
        ready = FORK.Event()
        processes = [FORK.Process(target=_start_campaign, args=(str(project), ready)) for _ in range(3)]
        for process in processes:
            process.start()
        ready.set()
        for process in processes:
            process.join()
        codes = [process.exitcode for process in processes]
        assert set(codes) <= {0, 5} and 0 in codes
        parents = [run for run in all_runs() if run.tags.get("hardbench.sweep")]
        assert [run.status for run in parents] == ["FINISHED"], attempt


# who lives


def test_a_run_is_dead_when_its_lock_is_free(project):
    """Whatever the process number says: here it is this process's own, which lives."""
    with tracking.start("train", train.Config(), "title", "note") as run:
        tracking.connect()
        assert last().status == "RUNNING"
    client().update_run(run.id, status="RUNNING")
    tracking.connect()
    assert last().status == "KILLED"


def test_cells_live_as_long_as_their_campaign(project):
    with tracking.start("sweep", train.Config(), "title", "note", "sweep", home="train") as parent:
        cell = tracking.open_cell(parent, "train", train.Config(), "cell", "note\n", {}, [])
        tracking.connect()
        assert client().get_run(cell.id).info.status == "RUNNING"
    tracking.connect()
    assert client().get_run(cell.id).info.status == "KILLED"


def test_a_cell_keeps_its_name_when_its_study_takes_it(project, monkeypatch):
    """It is FINISHED by the study, in a worker: a sweep that is killed then must not have to name it yet."""
    with tracking.start("sweep", train.Config(), "title", "note", "sweep", home="train") as parent:
        cell = tracking.open_cell(parent, "train", train.Config(), "lr0.5", "note\n", {}, [])
        monkeypatch.setenv("MLFLOW_RUN_ID", cell.id)
        with tracking.start("train", train.Config(), "mlp digits s0", "note"):
            pass
    found = client().get_run(cell.id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "lr0.5")


def test_without_a_lock_signs_of_life_count(project):
    """Of another host, or of a container that sees other folders: late signs mean death, recent ones life."""
    home = client().create_experiment("hardbench/train")
    tags = {"hardbench.study": "train", "hardbench.kind": "run", "hardbench.host": "elsewhere", "hardbench.boot": "another"}
    late, recent = (str(int(time.time()) - ago) for ago in (2 * taking.STALE, taking.STALE // 2))
    dead = client().create_run(home, tags=tags | {"hardbench.heartbeat": late}).info.run_id
    live = client().create_run(home, tags=tags | {"hardbench.heartbeat": recent}).info.run_id
    former = client().create_run(home, tags=tags).info.run_id  # of a version without signs, on another host: nobody knows
    tracking.connect()
    assert {run.id: run.status for run in all_runs()} == {dead: "KILLED", live: "RUNNING", former: "RUNNING"}


def test_signs_of_life_are_given(project, monkeypatch):
    monkeypatch.setattr(tracking, "BEAT", 0.05)
    with tracking.start("train", train.Config(), "title", "note") as run:
        run.tag(store.HEARTBEAT, "0")
        for _ in range(200):
            if last().tags[store.HEARTBEAT] != "0":
                break
            time.sleep(0.05)
        assert abs(int(last().tags[store.HEARTBEAT]) - time.time()) < 60


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]


@pytest.mark.parametrize("tries", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_live_run_is_left_alone_from_another_namespace(project, tries):
    """Containers count processes of their own: a run there or here is alive as long as its lock is held."""
    if shutil.which("unshare") is None or subprocess.run([*NAMESPACE, "true"], check=False, capture_output=True).returncode:
        pytest.skip("PID namespaces need more rights")
    for _ in range(tries):
        with tracking.start("train", train.Config(), "title", "note") as run:
            words = [*NAMESPACE, sys.executable, "-m", "hardbench", "resume", run.id]
            done = subprocess.run(words, check=False, capture_output=True, text=True)
            assert (done.returncode, "and this one is running" in done.stderr) == (5, True), done.stderr
            assert last().status == "RUNNING"
        assert last().status == "FINISHED"


# signals


def _entry(folder: str, words: list[str]) -> None:
    from hardbench.__main__ import entry

    os.chdir(folder)
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    sys.argv = ["hardbench", *words]
    with Path(folder, "shown").open("w", buffering=1) as shown:
        sys.stdout = sys.stderr = shown
        entry()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 129), (signal.SIGQUIT, 131), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_a_killed_run_and_names_what_goes_on(monkeypatch, tmp_path, number, code):
    """Six in a row, as impatient people send them: no traceback, and the line names the command."""
    new_project(monkeypatch, tmp_path)
    process = FORK.Process(target=_entry, args=(str(tmp_path), [*WORDS, "--epochs", "100000", "--checkpoint-every", "0"]))
    process.start()
    while process.is_alive() and not list(tmp_path.glob("mlruns/*/*/artifacts/checkpoints/last.pt")):
        time.sleep(0.05)
    for _ in range(6):
        if process.is_alive():
            os.kill(process.pid, number)
            time.sleep(0.05)
    process.join()
    shown = (tmp_path / "shown").read_text()
    assert process.exitcode == code, shown
    assert "Traceback" not in shown
    run = last()
    how = "interrupted" if number == signal.SIGINT else "terminated"
    assert shown.splitlines()[-1] == f"hardbench: {how}; hardbench resume {run.id[:8]} goes on"
    assert (run.status, "KeyboardInterrupt" in run.tags["error"] or number.name in run.tags["error"]) == ("KILLED", True)


def test_ignored_signals_stay_ignored():
    """As nohup has it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.ending():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(Killed, match="SIGQUIT"):
                os.kill(os.getpid(), signal.SIGQUIT)
                time.sleep(1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_held_signals_come_later_and_once():
    done = []
    with signals.ending(), pytest.raises(KeyboardInterrupt):
        with signals.held():
            for _ in range(6):
                os.kill(os.getpid(), signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]


def test_the_command_named_is_one_there_is():
    assert all(hasattr(importlib.import_module(f"hardbench.studies.{name.replace('-', '_')}"), "compute") for name in tracking.RESUMED)


def _refuse():
    raise TimeoutError


def test_a_lock_that_is_held_is_seen_and_a_removed_one_is_none(tmp_path):
    path = tmp_path / "deep" / "lock"
    assert locks.free(path) is None
    with locks.awaited(path):
        assert locks.free(path) is False
        with pytest.raises(TimeoutError), locks.awaited(path, _refuse):
            pass
    assert locks.free(path) is True
    with locks.waited(path), locks.waited(path):  # its own is no obstacle
        assert locks.free(path) is False
    assert locks.free(path) is True
