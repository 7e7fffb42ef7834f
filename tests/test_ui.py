"""`hardbench ui`: nothing is said of a port that is somebody else's, and nothing listens on when the command is gone."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from projects import new_project, of_session, within

from hardbench.cli import main


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


def test_a_port_that_is_taken_is_one_line(project, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["ui", "--port", str(port)]) == 5
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [f"hardbench: port: {port}; one that is free (Address already in use)"]


def _listens(port):
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.ui
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGKILL, signal.SIGTERM])
def test_nothing_listens_when_the_command_is_gone(project, number):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "hardbench", "ui", "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        assert within(120, lambda: _listens(port))
        assert len(of_session(process.pid)) > 2
        process.send_signal(number)
        process.wait(30)
        assert within(30, lambda: not _listens(port)), "the server goes on listening"
        assert within(30, lambda: not of_session(process.pid)), "children are left"
    finally:
        for one in of_session(process.pid):
            os.kill(one, signal.SIGKILL)
        process.wait()


@pytest.mark.ui
def test_a_server_that_ends_by_itself_is_an_error(project):
    """Killed from outside, say: whatever its code, the command had not been asked to end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", "hardbench", "ui", "--port", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert within(120, lambda: _listens(port))
        server = next(one for one in of_session(process.pid) if b"mlflow\0server" in Path(f"/proc/{one}/cmdline").read_bytes())
        os.kill(server, signal.SIGTERM)
        assert process.wait(60) == 5
        assert "hardbench: ui: the server ended by itself" in process.stderr.read()
        assert within(30, lambda: not of_session(process.pid)), "children are left"
    finally:
        for one in of_session(process.pid):
            os.kill(one, signal.SIGKILL)
        process.wait()
