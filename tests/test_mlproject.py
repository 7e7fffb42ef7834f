"""hardbench as an MLflow project: entry points that are its commands, and runs that join MLflow's."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from projects import all_runs
from words import no_surroundings

from hardbench.cli import commands

ROOT = Path(__file__).parents[1]
ENTRIES = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
NO_ENTRIES = {"compare", "resume", "data", "ui"}
LEFT_OUT = shutil.ignore_patterns(".git", "mlruns", "*.db*", "__pycache__", ".*_cache", "*.egg-info", "build", "dist", ".venv")


def test_entry_points_are_commands():
    called = {name: entry["command"].split() for name, entry in ENTRIES.items()}
    assert called.pop("main") == ["python", "-m", "hardbench", "simulate"]
    assert called == {name: ["python", "-m", "hardbench", name] for name in commands() if name not in NO_ENTRIES}
    assert {"train", "eval", "simulate", "plot"} <= called.keys()


def test_the_environment_is_there():
    project = yaml.safe_load((ROOT / "MLproject").read_text())
    assert project["name"] == "hardbench"
    assert "dependencies" in yaml.safe_load((ROOT / project["conda_env"]).read_text())


@pytest.mark.slow
def test_mlflow_run_joins(monkeypatch, tmp_path):
    """As README shows it, in a copy of the repository: train, then eval of that run."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
    no_surroundings(monkeypatch, copy)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")

    def mlflow_run(*words):
        line = [sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local", *words]
        ended = subprocess.run(line, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/mlflow.db")
        found = all_runs()
        monkeypatch.delenv("MLFLOW_TRACKING_URI")
        return found

    small = ["-P", "epochs=1", "-P", "threads=1", "-P", "model=mlp"]
    (trained,) = mlflow_run("--experiment-name", "hardbench/train", "-e", "train", *small)
    assert (trained.status, trained.study, trained.tags["hardbench.kind"]) == ("FINISHED", "train", "run")
    assert trained.client.get_experiment(trained.run.info.experiment_id).name == "hardbench/train"
    assert {"model": "mlp", "epochs": "1"}.items() <= trained.params.items()
    assert trained.tags["mlflow.project.entryPoint"] == "train"
    assert "final/test_accuracy" in trained.metrics and "eval/accuracy" not in trained.metrics

    joined, again = mlflow_run("-e", "eval", "-P", "run=last", "-P", "threads=1")
    assert again.id == trained.id
    assert again.metrics["eval/accuracy"] == pytest.approx(trained.metrics["final/test_accuracy"])
    assert again.file("test_results.json").is_file()
    assert (joined.status, joined.tags["hardbench.source_run"]) == ("FINISHED", trained.id)
    assert joined.study == ""  # so that `last` goes on to mean the trained one

    inverted, *_ = mlflow_run("-e", "invert", "-P", "dataset=digits", "-P", "subset_size=400", "-P", "epochs=5", "-P", "threads=1")
    assert (inverted.status, inverted.study) == ("FINISHED", "invert")
    assert inverted.file("radii.npz").is_file()

    swept = mlflow_run("--experiment-name", "hardbench/train", "-e", "sweep", *small, "-P", "corruption_p=0,1", "-P", "layer_metrics=none")
    parent = next(run for run in swept if run.tags.get("hardbench.kind") == "sweep")
    cells = [run for run in swept if run.tags.get("hardbench.kind") == "cell"]
    assert (parent.status, parent.tags["mlflow.project.entryPoint"]) == ("FINISHED", "sweep")
    assert [(cell.status, cell.tags["mlflow.parentRunId"]) for cell in cells] == [("FINISHED", parent.id)] * 2
