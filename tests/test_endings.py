"""What ends a command ends it once and wholly: signals that Python drops, states that cannot be read, copies that find no room."""

import os
import signal
import sqlite3
import time
from contextlib import closing

import pytest
from projects import client, last, new_project
from sqlalchemy import event
from sqlalchemy.engine import Engine

from hardbench import signals, tracking
from hardbench.cli import main
from hardbench.errors import Killed
from hardbench.studies import train

TRAIN = ["train", "--threads", "1", "--epochs", "1", "--subset-size", "100", "--eval-points", "2", "--width", "8", "--depth", "1"]


class Falling:
    """An object in whose `__del__` a signal comes: an exception raised there leads nowhere."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


def _wait():
    for _ in range(1000):
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Killed), (signal.SIGHUP, Killed)])
def test_a_signal_whose_exception_is_dropped_comes_again(capsys, number, kind):
    done = []
    with signals.ending(), pytest.raises(kind):
        falling = Falling(number)
        del falling
        done.append("it was dropped")
        _wait()
    assert done == ["it was dropped"]
    assert capsys.readouterr().err == ""


def test_what_a_signal_has_led_to_is_not_interrupted():
    done = []
    with signals.ending(), pytest.raises(Killed, match="SIGTERM"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            _wait()
        finally:
            for number in signals.ENDING:
                os.kill(os.getpid(), number)
                time.sleep(0.01)
            done.append("cleared away")
    assert done == ["cleared away"]


def test_a_signal_in_the_middle_of_a_transaction_leaves_no_locked_database(monkeypatch, tmp_path):
    """The statement under way is finished first; the run is then KILLED at once, which a locked database would not take."""
    project = new_project(monkeypatch, tmp_path / "project")

    def struck(rows):
        for row in rows:
            yield row
            os.kill(os.getpid(), signal.SIGTERM)

    @event.listens_for(Engine, "before_cursor_execute", retval=True)
    def interrupt(connection, cursor, statement, rows, context, many):
        if many and statement.startswith("INSERT INTO metrics") and not interrupted:
            interrupted.append(statement)
            return statement, struck(rows)
        return statement, rows

    interrupted: list[str] = []
    try:
        with signals.ending(), pytest.raises(Killed, match="SIGTERM"), tracking.start("train", train.Config(), "title", "note") as run:
            run.log({"accuracy": 0.5, "loss": 1.0})
            try:
                run.close()
            except Killed:
                with closing(sqlite3.connect(project / "mlflow.db", timeout=0)) as database:
                    database.execute("BEGIN IMMEDIATE")
                raise
    finally:
        event.remove(Engine, "before_cursor_execute", interrupt)
    assert len(interrupted) == 1
    assert (last().status, last().tags["error"], last().metrics) == ("KILLED", "Killed: SIGTERM", {"accuracy": 0.5, "loss": 1.0})


def test_a_signal_that_somebody_has_caught_does_not_hide_the_next():
    with signals.ending():
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
                _wait()


def test_a_state_that_cannot_be_read_removes_nothing(tmp_path, monkeypatch, capsys):
    """Also in a run whose results are there: the next try may have a better copy."""
    new_project(monkeypatch, tmp_path)
    assert main(TRAIN) == 0
    run = last()
    folder = run.file("checkpoints")
    for name in ("last.pt", "previous.pt"):
        (folder / name).write_bytes(b"damaged")
    client().update_run(run.id, status="KILLED")
    capsys.readouterr()
    assert main(["resume", run.id]) == 4
    assert capsys.readouterr().err.startswith("hardbench: checkpoint: ")
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "last.pt", "previous.pt"]
    assert last().status == "FAILED"
