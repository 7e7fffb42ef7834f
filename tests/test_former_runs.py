"""Runs made by a former version: resumed, evaluated, plotted, and counted as done in a sweep."""

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from projects import all_runs, new_project

from hardbench.cli import main

STORES = sorted((Path(__file__).parent / "stores").glob("*.tar.xz"))
MADE = "/project"  # the folder they were made in, in the words of their stores
TRAIN = "train --dataset digits --class-map 0:0,1:1,2:2 --model mlp --width 8 --repeats 2 --layer-metrics probe_accuracy --threads 1"
SWEEP = "sweep train --dataset digits --class-map 0:0,1:1,2:2 --normalize none --layer-metrics none --epochs 1 --eval-points 1"
SWEEP += " --log-every 10 --subset-size 200 --activation relu,tanh --width 8 --workers 1"
UNFINISHED = {
    "train": f"{TRAIN} --epochs 60 --eval-points 5 --log-every 20 --record-dynamics",
    "invert": "invert --dataset digits --subset-size 300 --repeats 2 --threads 1 --epochs 120 --lr 0.4 --class-map 0:0,1:1,2:2"
    " --prune-curve --prune-points 2",
    "stragglers": "stragglers --dataset digits --subset-size 300 --epochs 60 --lr 0.5 --threads 1 --repeats 2 --train-ratios 0.8"
    " --remaining-train-ratios 0,1 --strategy loss --class-map 0:0,1:1,2:2",
}


@pytest.fixture(scope="module", params=STORES, ids=lambda path: path.name.removesuffix(".tar.xz"))
def former(request, tmp_path_factory):
    """A project that a former version has left: a finished training and sweep, and three runs that were killed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = new_project(monkeypatch, tmp_path_factory.mktemp("former"))
        with tarfile.open(request.param) as archive:
            archive.extractall(folder, filter="data")
        with closing(sqlite3.connect(folder / "mlflow.db")) as database:
            for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
                database.execute(f"UPDATE {table} SET {column} = replace({column}, '{MADE}', '{folder}')")
            database.commit()
        yield folder


@pytest.mark.parametrize("study", UNFINISHED)
def test_a_killed_run_goes_on(former, study):
    """It ends with the numbers of one that was never killed."""
    killed = next(run for run in all_runs() if run.study == study and run.status != "FINISHED")
    assert main(["resume", killed.id]) == 0
    ended = next(run for run in all_runs() if run.id == killed.id)
    assert ended.status == "FINISHED"
    assert main(UNFINISHED[study].split()) == 0
    whole = next(run for run in all_runs() if run.study == study and run.id != killed.id and run.status == "FINISHED")
    assert ended.arrays.keys() == whole.arrays.keys()
    for name, array in whole.arrays.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(ended.arrays[name], array, rtol=1e-3, atol=1e-4, err_msg=name)
        else:
            np.testing.assert_array_equal(ended.arrays[name], array, err_msg=name)
    assert {path.name for path in ended.file("").rglob("*")} == {path.name for path in whole.file("").rglob("*")}


def test_a_finished_run_is_evaluated_and_drawn(former):
    run = next(run for run in all_runs() if run.study == "train" and run.config["epochs"] == 2)
    assert main(["eval", run.id, "--threads", "1"]) == 0
    assert main(["plot", run.id, "--out", str(former / "drawn")]) == 0
    again = next(one for one in all_runs() if one.id == run.id)
    assert again.metrics["eval/accuracy"] == pytest.approx(again.metrics["final/test_accuracy"])
    assert (former / "drawn" / "class_hardness.png").stat().st_size > 1000


def test_finished_cells_of_a_sweep_are_not_trained_again(former, capsys):
    before = {run.id for run in all_runs()}
    capsys.readouterr()
    assert main([*SWEEP.split(), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert [line.split("│")[2].strip() for line in shown.splitlines() if "│ done" in line or "│ to do" in line] == ["2", "0"], shown
    assert {run.id for run in all_runs()} == before
