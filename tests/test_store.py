"""The store: folders of any name, nothing touched beside a run's own, errors in one line, and what a kill or a server's absence leaves."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from projects import FORK, all_runs, client, history, last, new_project
from words import no_surroundings

from hardbench import locks, store, tracking
from hardbench.cli import main
from hardbench.errors import TrackingError
from hardbench.stored import StoredRun, local_path
from hardbench.studies import train

pytestmark = pytest.mark.reliability

SMALL = ("train", "--dataset", "gaussian", "--model", "mlp", "--width", "8", "--threads", "1", "--layer-metrics", "none", "--epochs", "1")
ODD = ("proj#2", "a%20b", 'it\'s "a":b\\\t\n? ü')
MORE = ("a?b", "%ce", "a\tb", "a\nb", "it's", 'so "called"', "'\"", "a:b", "back\\slash", " ümlaut ", "-x", "100%")


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# paths


def test_only_addresses_are_decoded(tmp_path):
    for name in (*ODD, *MORE):
        assert local_path(f"/x/{name}/1/artifacts") == Path(f"/x/{name}/1/artifacts")
        assert local_path(Path(f"/x/{name}/1").as_uri()) == Path(f"/x/{name}/1")
    assert local_path("mlruns/1/2/artifacts") == Path("mlruns/1/2/artifacts")
    assert local_path("file:mlruns/1") == Path("mlruns/1")
    for address in ("s3://bucket/a", "mlflow-artifacts:/1/2/artifacts", "https://host/x"):
        assert local_path(address) is None
    former = tmp_path / "a b" / "run"  # where MLflow, and versions before, have put what is filed under a%20b
    former.mkdir(parents=True)
    assert local_path(f"{tmp_path}/a%20b/run") == former


def _use_store(name: str) -> None:
    folder = Path(name)
    os.chdir(folder)
    for word in [word for word in os.environ if word.startswith(("HARDBENCH_", "MLFLOW_TRACKING", "MLFLOW_RUN"))]:
        del os.environ[word]
    with tracking.start("train", train.Config(), "title", "note") as run:
        run.write_text("checkpoints/last.pt", "weights")
        run.remove("checkpoints/last.pt")
        run.write_text("notes/a.txt", "text")
        run.log({"loss": 1.0})
    stored = tracking.find("last", ["train"])
    assert stored.file("notes/a.txt").is_relative_to(folder / "mlruns"), stored.file("notes/a.txt")
    assert {item.path for item in stored.client.list_artifacts(run.id)} == {"config.yaml", "notes"}
    assert Path(stored.client.download_artifacts(run.id, "notes/a.txt")).read_text() == "text"
    assert local_path(stored.client.get_experiment("0").artifact_location) == folder / "mlruns" / "0"


@pytest.mark.parametrize("name", [*ODD, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)])
def test_a_project_in_a_folder_of_any_name(tmp_path, name):
    """Everything is in the project, for MLflow as for us; nothing beside it has changed."""
    beside = (name.partition("#")[0].partition("?")[0], "a b", name.replace("\n", ""), "x")
    for other in set(beside) - {name, ""}:
        for file in ("checkpoints/thesis", "config.yaml", "mlruns/0/x"):
            path = tmp_path / other / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"mine {other}")
    before = tree(tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    process = FORK.Process(target=_use_store, args=(str(folder),))  # of its own: MLflow keeps a connection per address
    process.start()
    process.join()
    assert process.exitcode == 0
    inside = [path for path in tree(tmp_path) if not path.startswith(f"{name}/")]
    assert {path: text for path, text in before.items() if path in inside} == before
    assert len(inside) == len(before)


def test_old_addresses_are_read(project):
    """Runs whose folder is recorded as an address or as a relative path."""
    for location in ((project / "by address").as_uri(), str(project / "plain")):
        home = client().create_experiment(location, location)
        run = client().create_run(home, tags={"hardbench.study": "train", "hardbench.kind": "run"})
        client().log_text(run.info.run_id, "text", "a.txt")
        client().set_terminated(run.info.run_id)
        assert tracking.find(run.info.run_id, ["train"]).file("a.txt").read_text() == "text"


def test_remove_touches_the_run_s_own_files_alone(project):
    (project / "thesis").mkdir()
    (project / "thesis" / "text").write_text("mine")
    with tracking.start("train", train.Config(), "title", "note") as run:
        for name in ("checkpoints/last.pt", "checkpoints/deep/best.pt", "keep/a"):
            run.write_text(name, "x")
        (run.folder / "link").symlink_to(project / "thesis")
        for name in ("../x", "link/text", str(project / "thesis/text"), ".", "", "checkpoints/../../lock", ".."):
            with pytest.raises(TrackingError, match="a file of its own to remove"):
                run.remove("checkpoints/last.pt", name)
        assert (run.folder / "checkpoints/last.pt").exists()  # none is removed where one must not be
        run.remove("checkpoints/last.pt", "checkpoints/deep/best.pt", "checkpoints/none.pt", "keep", "link")
        assert not (run.folder / "checkpoints").exists()
        assert (run.folder / "keep" / "a").exists()
    assert tree(project / "thesis") == {"text": b"mine"}


def test_remove_needs_a_folder_of_the_run(project):
    """A store where several runs share a folder, as one in proj#2 once had."""
    home = client().create_experiment("shared", str(project / "shared"))
    opened = client().create_run(home, tags={"hardbench.study": "train"})
    run = tracking.Run(client(), opened)
    run.folder = project / "shared"
    (project / "shared" / "a").write_text("x")
    with pytest.raises(TrackingError, match="a file of its own"):
        run.remove("a")
    assert (project / "shared" / "a").exists()


def test_the_lock_is_no_link_and_truncates_nothing(project, capsys):
    (project / "thesis").write_text("mine")
    (project / "mlflow.db.lock").symlink_to(project / "thesis")
    assert main(["compare"]) == 5
    assert "mlflow.db.lock; a file of its own, and this is a link" in capsys.readouterr().err
    assert (project / "thesis").read_text() == "mine"
    (project / "mlflow.db.lock").unlink()
    (project / "mlflow.db.lock").write_text("mine")
    assert main(["compare"]) == 5  # no runs
    assert "there is no finished run" in capsys.readouterr().err
    assert (project / "mlflow.db.lock").read_text() == "mine"


# making it


@pytest.mark.slow
def test_a_kill_while_the_store_is_made_leaves_none(tmp_path, monkeypatch):
    """At any moment: what is there afterwards is no database, or a whole one."""
    code = "import sys, os; from hardbench import files, store, taking\n"
    code += "from contextlib import contextmanager\n"
    code += "import threading, time\n"
    code += "threading.Thread(target=lambda: (time.sleep(float(sys.argv[1])), os._exit(9)), daemon=True).start()\n"
    code += "taking.connect(); os._exit(0)"
    ended = set()
    for delay in (0.05, 0.4, 1.0, 60):
        folder = tmp_path / str(delay)
        folder.mkdir()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
        done = subprocess.run([sys.executable, "-c", code, str(delay)], cwd=folder, env=environment, check=False, capture_output=True)
        ended.add(done.returncode)
        if (folder / "mlflow.db").exists():
            with sqlite3.connect(folder / "mlflow.db") as database:
                assert database.execute("SELECT count(*) FROM experiments").fetchone() == (1,)
        no_surroundings(monkeypatch, folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        assert tracking.runs() == []
    assert ended == {0, 9}


@pytest.mark.parametrize("content", [b"", b"no database " * 1000, None])
def test_what_is_no_database_is_told_at_once(project, monkeypatch, capsys, content):
    path = project / "other.db"
    path.mkdir() if content is None else path.write_bytes(content)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    attempts = []
    monkeypatch.setattr(time, "sleep", attempts.append)
    assert main(["compare"]) == 5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("hardbench: "), lines
    assert attempts == []  # MLflow would try ten times
    if content == b"":
        assert "there is no finished run" in lines[0]  # an empty file is where a store is to be


def test_a_half_made_store_is_told_in_one_line(project, monkeypatch, capsys):
    """As a version before left it that was killed while MLflow made the tables."""
    path = project / "half.db"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("INSERT INTO alembic_version VALUES ('no such revision')")
        database.execute("CREATE TABLE experiments (x)")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")
    assert main(["compare"]) == 5
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("hardbench: ")]
    assert len(lines) == 1
    assert "cannot be opened" in lines[0]


# words from outside


@pytest.mark.parametrize(
    "address", ["http://me:s3cr3t@127.0.0.1:1", "postgresql://me:s3/cr3t@127.0.0.1:1/x", "http://127.0.0.1:1/?token=s3cr3t"]
)
def test_a_password_is_never_printed(project, monkeypatch, capsys, address):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("XDG_CACHE_HOME", str(project / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert main(["compare"]) == 5
    shown = capsys.readouterr()
    assert "s3" not in shown.err + shown.out
    assert "***" in shown.err


def test_quotes_reach_no_filter(project, capsys):
    with tracking.start("train", train.Config(), "title", "note"):
        pass
    assert main(["compare", "--study", "x'y"]) == 2
    assert "study: x'y; " in capsys.readouterr().err
    assert tracking.runs("x'y") == []


@pytest.mark.parametrize("word", ["garbage", "0" * 32, "a'b", "x" * 300])
def test_a_run_of_mlflow_that_is_none(project, monkeypatch, capsys, word):
    monkeypatch.setenv("MLFLOW_RUN_ID", word)
    assert main([*SMALL]) == 5
    assert f"hardbench: MLFLOW_RUN_ID: {word}; the id of a run in" in capsys.readouterr().err
    assert all_runs() == []


def test_tags_and_times_that_are_none(project, capsys):
    """Somebody's own tags, a clock before 1970: no command stumbles over them."""
    home = client().create_experiment("hardbench/train")
    for process in ("garbage", "", "-1:x", "99999999999999999999:1"):
        tags = {"hardbench.study": "train", "hardbench.kind": "run", "hardbench.host": socket.gethostname(), "hardbench.process": process}
        client().create_run(home, tags=tags | {"hardbench.created": "soon"})
    client().create_run(home, start_time=-5, tags={"hardbench.study": "train", "hardbench.kind": "run", "hardbench.heartbeat": "now"})
    assert main(["compare"]) == 5
    assert "there is no finished run" in capsys.readouterr().err
    assert {run.status for run in all_runs()} == {"KILLED"}
    assert main([*SMALL]) == 0


def test_a_locked_store_is_waited_for_then_told(project, monkeypatch, capsys):
    monkeypatch.setattr(store, "BUSY", 0.5)
    tracking.connect()
    with sqlite3.connect(project / "mlflow.db") as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match=r"^tracking store: .*database is locked"):
            client_of_ours = store.Client(os.environ["MLFLOW_TRACKING_URI"])
            client_of_ours.create_experiment("other")
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line(project, capsys):
    """The error of the disk becomes one of tracking, whoever meets it; the run is FAILED with it."""
    for number in (28, 30, 122):
        with (
            pytest.raises(TrackingError, match="its files cannot be written"),
            tracking.start("train", train.Config(), "title", "note") as run,
        ):
            raise OSError(number, os.strerror(number))
        assert (last().id, last().status) == (run.id, "FAILED")
        assert "cannot be written" in last().tags["error"]


# what comes last


def test_the_last_run_is_the_one_made_last_whatever_the_clock_says(project, monkeypatch):
    made = []
    for now in (2e9, 1e9, 1e9, 1.5e9):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=now: now)
            with tracking.start("train", train.Config(), "title", "note") as run:
                made.append(run.id)
        assert tracking.find("last", ["train"]).id == run.id
    assert [run.id for run in tracking.runs()] == made[::-1]


def test_a_run_without_settings_is_not_resumed(project, capsys):
    """Killed right after its creation: `last` is one that can go on, and the other says why it cannot."""
    with pytest.raises(KeyboardInterrupt), tracking.start("train", train.Config(), "title", "note") as run:
        raise KeyboardInterrupt
    tags = {"hardbench.study": "train", "hardbench.kind": "run"}
    bare = client().create_run(run.experiment, tags=tags | {"hardbench.created": "9" * 15}).info.run_id
    client().set_terminated(bare, "KILLED")
    assert tracking.find("last", ["train"], finished=False).id == run.id
    with pytest.raises(TrackingError, match=f"^run: {bare}; one with settings to go on with"):
        tracking.find(bare, ["train"], finished=False)


def test_an_old_run_without_a_word_is_ended(project):
    """Versions before made a run first and gave it its tags later."""
    home = client().create_experiment("hardbench/train")
    old = client().create_run(home, start_time=int(1000 * (time.time() - 3600))).info.run_id
    young = client().create_run(home).info.run_id
    foreign = client().create_run("0", start_time=1).info.run_id
    named = client().create_run(home, start_time=1, tags={"mlflow.source.type": "PROJECT"}).info.run_id
    tracking.connect()
    statuses = {run.id: run.status for run in all_runs()}
    assert statuses == {old: "KILLED", young: "RUNNING", foreign: "RUNNING", named: "RUNNING"}


# models


@pytest.mark.slow
def test_a_model_is_logged_once_and_the_run_goes_on(project):
    network = torch.nn.Linear(3, 2)
    with tracking.start("train", train.Config(), "title", "note") as run:
        run.log_model(network, torch.zeros(2, 3))
        assert client().get_run(run.id).info.status == "RUNNING"
        run.log_model(network, torch.zeros(2, 3))
        again = tracking.Run(run.client, client().get_run(run.id))
        again.log_model(network, torch.zeros(2, 3))
        assert len(client().get_run(run.id).outputs.model_outputs) == 1
    assert last().status == "FINISHED"


# a server that is away


def _server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """An MLflow server with its store and artifacts in a folder, when it answers."""
    words = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "kept")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *words, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        process_group=0,
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return process
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def _stop(process: "subprocess.Popen[bytes]") -> None:
    os.killpg(process.pid, 9)
    process.wait()


@pytest.mark.slow
def test_a_server_that_goes_and_comes_back_loses_nothing(tmp_path, monkeypatch):
    no_surroundings(monkeypatch, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = _server(tmp_path, port)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        with tracking.start("train", train.Config(), "title", "note") as run:
            assert run.folder.is_dir()
            run.log({"loss": 1.0}, 1)
            run.close()
            _stop(server)
            run.log({"loss": 2.0}, 2)
            run.close()
            run.write_text("a.txt", "while it was away")
            run.tag("mine", "x")
            server = _server(tmp_path, port)
        stored = tracking.find(run.id, ["train"])
        assert history(stored) == {"loss": [(1, 1.0), (2, 2.0)]}
        assert (stored.tags["mine"], stored.file("a.txt").read_text()) == ("x", "while it was away")

        monkeypatch.setattr("hardbench.written.PAUSES", ())  # gone to the end: kept, and named
        told = pytest.raises(TrackingError, match=r"hardbench resume [0-9a-f]{32} delivers what waits in ")
        with told, tracking.start("train", train.Config(), "title", "note") as run:
            _stop(server)
            run.log({"loss": 3.0}, 3)
            run.write_text("b.txt", "kept")
        server = _server(tmp_path, port)
        stored = tracking.find(run.id, ["train"], finished=False)
        assert stored.status == "KILLED"
        with tracking.reopen(stored) as again:
            again.log({"loss": 3.0}, 3)
        stored = tracking.find(run.id, ["train"])
        assert history(stored) == {"loss": [(3, 3.0)]}
        assert stored.file("b.txt").read_text() == "kept"
        assert [
            path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.name != "lock" and "stores" not in path.parts
        ] == []
    finally:
        _stop(server)


def test_what_waits_is_written_down_at_once(project):
    """A kill while the store is away loses nothing: the next to open the run finds it."""
    with tracking.start("train", train.Config(), "title", "note") as run:
        run.log({"loss": 1.0}, 1)
        run._keep()
        kept = json.loads((run.folder.parent / "undelivered" / "waiting.json").read_text())
        assert [point[0] for point in kept["metrics"]] == ["loss"]
        shutil.copytree(run.folder.parent / "undelivered", project / "copy")
    assert not (run.folder.parent / "undelivered").exists()
    client().set_terminated(run.id, "KILLED")
    shutil.copytree(project / "copy", run.folder.parent / "undelivered")
    with tracking.reopen(StoredRun(client(), client().get_run(run.id))):
        pass
    assert history(last()) == {"loss": [(1, 1.0)]}


def test_locks_are_given_back(project):
    with tracking.start("train", train.Config(), "title", "note") as run:
        lock = run.folder.parent / "lock"
        assert locks.free(lock) is False
    assert locks.free(lock) is True
