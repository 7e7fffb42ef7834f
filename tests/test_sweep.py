"""Sweeps through the command line: every cell a run with the numbers of a run of its own, whatever happens on the way."""

import csv
import json
import os
import random
import signal
from pathlib import Path

import campaigns
import numpy as np
import pytest
from projects import all_runs, new_project, started
from setups import images_in_classes

from hardbench.cli import main
from hardbench.training import core

REAL = os.environ.get("HARDBENCH_DATA", "")  # tests start without it

SMALL = [
    "--normalize",
    "none",
    "--layer-metrics",
    "none",
    "--epochs",
    "1",
    "--eval-points",
    "3",
    "--log-every",
    "10",
    "--width",
    "8",
    "--depth",
    "1",
    "--workers",
    "1",
    "--dataset",
    "npz:set.npz",
]
GRID = ["sweep", "train", *SMALL, "--corruption-p", "0,0.5", "--noise-ratio", "0,0.2", "--repeats", "2", "--keep-checkpoints"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a finished sweep: corruption levels 0 and 0.5, label noise 0 and 0.2, two networks each, all in one stack."""
    with pytest.MonkeyPatch.context() as patch:
        folder = new_project(patch, tmp_path_factory.mktemp("sweep"))
        images_in_classes(Path("set.npz"))  # quicker to load than the digits
        assert main(GRID) == 0
        yield folder


def of_kind(kind):
    return [run for run in all_runs() if run.tags.get("hardbench.kind") == kind]


def table(path):
    with Path(path).open() as file:
        return list(csv.DictReader(file))


def test_one_run_per_cell_under_one_parent(project):
    (parent,) = of_kind("sweep")
    found = of_kind("cell")
    assert (parent.status, parent.study, parent.tags["hardbench.cells"]) == ("FINISHED", "sweep", "4 done")
    assert [(cell.status, cell.study, cell.tags["mlflow.parentRunId"]) for cell in found] == [("FINISHED", "train", parent.id)] * 4
    assert {cell.run.info.experiment_id for cell in found} == {parent.run.info.experiment_id}
    assert sorted(cell.name for cell in found) == ["p0 noise0", "p0 noise0.2", "p0.5 noise0", "p0.5 noise0.2"]
    assert parent.file("plan.txt").read_text().count("job") == 1


def test_a_cell_is_the_run_that_train_would_have_made(project):
    """All arrays and metrics, bit for bit, though four cells of three kinds were one stack."""
    cell = next(cell for cell in of_kind("cell") if cell.name == "p0.5 noise0.2")
    line = ["train", *SMALL[: SMALL.index("--workers")], "--dataset", "npz:set.npz", "--corruption-p", "0.5"]
    line += ["--noise-ratio", "0.2", "--repeats", "2", "--threads", "1"]
    assert main(line) == 0
    (alone,) = of_kind("run")
    assert campaigns.same({"": cell.arrays}, {"": alone.arrays}) == []
    assert cell.metrics == {name: value for name, value in alone.metrics.items() if name != "samples_per_second"}
    assert cell.config == alone.config
    assert cell.tags["hardbench.data_digest"] == alone.tags["hardbench.data_digest"]


def test_tables(project):
    rows, summary = table("results/results_per_run.csv"), table("results/results_summary.csv")
    assert list(rows[0]) == [
        "activation",
        "model_type",
        "p",
        "noise_ratio",
        "seed",
        "repeat",
        "test_accuracy",
        "test_loss",
        "seconds",
        "run",
    ]
    assert [(row["p"], row["noise_ratio"], row["repeat"]) for row in rows] == [
        (p, noise, repeat) for p in ("0.0", "0.5") for noise in ("0.0", "0.2") for repeat in ("0", "1")
    ]
    names = ["repeats", "mean_test_accuracy", "std_test_accuracy", "pstd_test_accuracy", "stderr_test_accuracy"]
    assert list(summary[0]) == ["activation", "model_type", "p", "noise_ratio", *names]
    values = np.array([float(row["test_accuracy"]) for row in rows[:2]])
    expected = [2, values.mean(), values.std(ddof=1), values.std(), values.std(ddof=1) / 2**0.5]
    np.testing.assert_allclose([float(summary[0][name]) for name in names], expected, rtol=1e-12)
    (parent,) = of_kind("sweep")
    assert parent.file("results_per_run.csv").read_text() == Path("results/results_per_run.csv").read_text()
    assert {float(row["test_accuracy"]) for row in rows} == {x for cell in of_kind("cell") for x in cell.arrays["accuracy"][:, -1]}


def test_a_cell_can_be_evaluated(project):
    cell = next(cell for cell in of_kind("cell") if cell.name == "p0.5 noise0")
    assert main(["eval", cell.id, "--threads", "1"]) == 0
    values = json.loads(cell.file("test_results.json").read_text())["levels"][0]["accuracy"]["values"]
    np.testing.assert_array_equal(values, cell.arrays["accuracy"][:, -1])


def test_figures_are_drawn_from_the_store(project):
    (parent,) = of_kind("sweep")
    assert {path.name for path in Path("results/figures").iterdir()} == {"accuracy_vs_p_mlp.png", "grid_noise_ratio_corruption_p.png"}
    assert main(["plot", parent.id, "--kind", "grid", "--by", "noise-ratio,corruption-p", "--out", "drawn"]) == 0
    assert Path("drawn/grid_corruption_p_noise_ratio.png").stat().st_size > 10_000
    assert main(["plot", parent.id, "--kind", "grid", "--by", "noise-ratio"]) == 2
    assert main(["plot", parent.id, "--kind", "grid", "--metric", "speed"]) == 2


def test_the_plan_is_shown_and_nothing_done(project, capsys):
    def plan(*words):
        assert main([*words, "--dry-run"]) == 0
        return " ".join(capsys.readouterr().out.replace("│", " ").split())

    before = len(all_runs())
    shown = plan(*GRID)
    for words in ("done 4", "running 0", "failed 0", "to do 0"):
        assert words in shown
    assert "estimated time" not in shown
    shown = plan(*(word.replace("0,0.5", "0,0.5,1") for word in GRID))
    for words in ("done 4", "running 0", "failed 0", "to do 2", "networks to train 4", "estimated time", "MiB"):
        assert words in shown
    assert len(all_runs()) == before


def test_finished_cells_are_not_run_again_and_more_values_go_on(project):
    before = {cell.id for cell in of_kind("cell")}
    assert main(GRID) == 0
    assert {cell.id for cell in of_kind("cell")} == before
    assert main([word.replace("0,0.5", "0,1") for word in GRID]) == 0
    found = of_kind("cell")
    assert len(found) == 6 and before < {cell.id for cell in found} and len(of_kind("sweep")) == 1
    assert len(table("results/results_per_run.csv")) == 12  # with the earlier ones of the same campaign
    by_key = {cell.tags["hardbench.cell"]: cell for cell in found}
    assert main([*(word.replace("0,0.5", "1") for word in GRID), "--name", "again", "--rerun"]) == 0
    again = [cell for cell in of_kind("cell") if cell.id not in {old.id for old in found}]
    assert len(again) == 2 and len(of_kind("cell")) == 6  # those they replace are gone
    for cell in again:
        assert campaigns.same({"": by_key[cell.tags["hardbench.cell"]].arrays}, {"": cell.arrays}) == []


def test_a_cell_that_fails_fails_alone(monkeypatch, tmp_path, capsys):
    """In one stack: inputs that are no pixels cannot be corrupted, and the clean cell is trained. In the other: networks diverge."""
    new_project(monkeypatch, tmp_path)
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(40, 5)).astype(np.float32) for name in ("x_train", "x_test")}
    np.savez("set.npz", **arrays, y_train=np.arange(40) % 2, y_test=np.arange(40) % 2)
    line = ["sweep", "train", *SMALL, "--optimizer", "sgd", "--lr", "0.01,1e30", "--corruption-p", "0,0.5", "--batch-size", "8"]
    assert main(line) == 4
    assert "3 of 4 cells failed" in capsys.readouterr().err
    first = {cell.name: cell for cell in of_kind("cell")}
    assert {name: cell.status for name, cell in first.items()} == {
        "p0 lr0.01": "FINISHED", "p0 lr1e+30": "FAILED", "p0.5 lr0.01": "FAILED", "p0.5 lr1e+30": "FAILED",
    }  # fmt: skip
    assert "DataError: corruption_p: inputs outside [0, 1]" in first["p0.5 lr0.01"].tags["error"]
    assert "not finite" in first["p0 lr1e+30"].tags["error"] and "accuracy" in first["p0 lr1e+30"].arrays
    assert [(row["p"], row["lr"]) for row in table("results/results_per_run.csv")] == [("0.0", "0.01")]
    assert main(line) == 4 and {cell.id for cell in of_kind("cell")} == {cell.id for cell in first.values()}  # not tried again unasked
    assert "failed before (TrainingError: loss: not finite" in capsys.readouterr().err
    assert main([*line, "--retry-failed"]) == 4
    again = {cell.name: cell for cell in of_kind("cell")}
    assert len(of_kind("cell")) == 4 and [name for name in first if first[name].id == again[name].id] == ["p0 lr0.01"]


def test_another_study(monkeypatch, tmp_path):
    """A study that makes runs of its own: each cell is such a run."""
    new_project(monkeypatch, tmp_path)
    images_in_classes(Path("set.npz"))
    assert main(["sweep", "simulate", *SMALL, "--seed", "1"]) == 0
    (parent,) = of_kind("sweep")
    (cell,) = of_kind("cell")
    assert (cell.status, cell.tags["mlflow.parentRunId"], cell.config["seed"]) == ("FINISHED", parent.id, 1)
    assert cell.metrics["eval/accuracy"] == cell.arrays["accuracy"][0, -1]
    assert [row["seed"] for row in table("results/results_per_run.csv")] == ["1"]
    assert main(["sweep", "simulate", *SMALL, "--seed", "1"]) == 0 and len(of_kind("cell")) == 1


@pytest.mark.slow
def test_a_study_that_writes_into_the_run_it_reads(project):
    """Each cell has the numbers that it found itself, though several evaluate one run at a time; that run is named in them."""
    cell = next(cell for cell in of_kind("cell") if cell.name == "p0 noise0")
    assert main(["sweep", "eval", "--run", cell.id, "--corruption-p", "0;0.5;1", "--workers", "3"]) == 0
    found = {run.name: run for run in of_kind("cell") if "hardbench.source_run" in run.tags}
    assert {run.tags["hardbench.source_run"] for run in found.values()} == {cell.id} and len(found) == 3
    assert all(run.status == "FINISHED" for run in found.values())
    assert {name for name in found["p0.0"].metrics if not name.endswith("_stderr")} == {"eval/accuracy", "eval/loss"}
    for p in ("0.5", "1.0"):
        names = {name for name in found[f"p{p}"].metrics if not name.endswith("_stderr")}
        assert names == {"eval/corrupted_accuracy", "eval/corrupted_loss"}
        assert main(["eval", cell.id, "--corruption-p", p, "--threads", "1"]) == 0
        (level,) = json.loads(cell.file("test_results.json").read_text())["levels"]
        assert found[f"p{p}"].metrics["eval/corrupted_loss"] == pytest.approx(level["loss"]["mean"], rel=1e-6)
    assert len(table("results/results_per_run.csv")) == 3


@pytest.mark.parametrize("settings", [
    {"model": "mlp", "widths": (9, 5), "precision": "bf16"}, {"model": "simple_cnn", "batch_size": 500},
    {"model": "mlp", "batch_size": "full"},
])  # fmt: skip
def test_a_stack_is_its_members_alone(settings):
    """Seeds, levels and label noise of their own; also where clean networks take the full batch as it is."""
    shared = {"threads": 1, "device": "cpu", "layer_metrics": ("none",), "epochs": 1, "eval_points": 2, "log_every": 3, **settings}
    shared |= {"subset_size": 301, "subset_from": "first", "normalize": "none"}
    own = [{"seed": 0, "repeats": 2}, {"seed": 1, "corruption_p": 0.4}, {"seed": 1, "noise_ratio": 0.3, "corruption_p": 0.001}]
    members = [{**shared, **one} for one in own]
    together = core.train_stack(members)
    for member, found in zip(members, together, strict=True):
        (alone,) = core.train_stack([member])
        assert campaigns.same({"": alone.arrays}, {"": found.arrays}) == []
        assert [(sorted(row), step) for row, step in alone.journal] == [(sorted(row), step) for row, step in found.journal]


def test_parts_of_a_cell_are_the_cell():
    shared = {
        "threads": 1,
        "device": "cpu",
        "layer_metrics": ("none",),
        "epochs": 1,
        "eval_points": 3,
        "log_every": 3,
        "width": 6,
        "depth": 1,
    }
    shared |= {"subset_size": 200, "keep_checkpoints": True, "val_size": 50, "optimizer": "sgd", "lr": 1e5}
    (whole,) = core.train_stack([{**shared, "repeats": 3}])
    parts = [core.train_stack([{**shared, "first_repeat": first, "repeats": count}])[0] for first, count in ((0, 1), (1, 2))]
    joined = core.joined(parts)
    assert campaigns.same({"": whole.arrays}, {"": joined.arrays}) == []
    assert (whole.diverged, whole.train_samples, whole.digest) == (joined.diverged, joined.train_samples, joined.digest)
    assert [len(joined.checkpoints[name]["networks"]) for name in ("last", "best")] == [3, 3]


def test_killed_and_taken_up_again(monkeypatch, tmp_path):
    """A worker and then the parent by SIGKILL: each cell is finished once, with the numbers of an undisturbed training."""
    words = ["sweep", "train", *SMALL[: SMALL.index("--workers")], "--dataset", f"npz:{tmp_path}/set.npz", "--activation", "relu,tanh"]
    words += ["--corruption-p", "0,0.25,0.5,0.75"]
    images_in_classes(tmp_path / "set.npz")
    wild = new_project(monkeypatch, tmp_path / "wild")
    process = started(wild, *words, "--workers", "2")
    campaigns.wait_for_cells(wild, 1, process)
    assert process.pid is not None
    for pid in campaigns.workers(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.kill()
    process.join()
    assert main([*words, "--workers", "1"]) == 0
    assert sorted(campaigns.finished(wild).values()) == [1] * 8
    for cell in campaigns.cells(wild):
        if cell.status == "FINISHED":
            (undisturbed,) = core.train_stack([cell.config])
            assert campaigns.same({"": undisturbed.arrays}, {"": cell.arrays}) == []


@pytest.mark.slow
def test_two_hundred_cells_disturbed_ten_times(tmp_path):
    """kill -9 of a worker, of the parent, and Ctrl-C, in turns, at random moments."""
    levels = ",".join(str(round(i / 50, 4)) for i in range(50))
    words = [*campaigns.TINY, "--width", "16", "--depth", "1", "--corruption-p", levels, "--seed", "0,1", "--activation", "relu,tanh"]
    calm, wild, rng = tmp_path / "calm", tmp_path / "wild", random.Random(1)
    calm.mkdir()
    wild.mkdir()
    assert campaigns.end(calm, [*words, "--repeats", "2", "--workers", "1"]) == 0
    for kill in range(10):
        how = ("worker", "parent", "interrupt")[kill % 3]
        code = campaigns.disturb(wild, [*words, "--repeats", "2", "--workers", "2"], how, rng)
        assert code == {"worker": 143, "parent": -9, "interrupt": 130}[how]
    assert campaigns.end(wild, [*words, "--repeats", "2", "--workers", "2"]) == 0
    assert sorted(campaigns.finished(wild).values()) == [1] * 200
    assert campaigns.same(campaigns.arrays(calm), campaigns.arrays(wild)) == []
    assert campaigns.metrics(calm) == campaigns.metrics(wild)
    assert campaigns.rows(calm / "results/results_per_run.csv") == campaigns.rows(wild / "results/results_per_run.csv")


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not REAL, reason="needs HARDBENCH_DATA")
def test_published_accuracies(monkeypatch, tmp_path):
    """MLP 256-128 after 20 epochs at p 0, .5, 1: within three published deviations of two networks' mean; the share of digit 1 at p = 1."""
    new_project(monkeypatch, tmp_path)
    words = [
        "--dataset",
        "mnist",
        "--widths",
        "256,128",
        "--normalize",
        "none",
        "--val-size",
        "0",
        "--batch-size",
        "128",
        "--epochs",
        "20",
        "--repeats",
        "2",
        "--eval-points",
        "1",
    ]
    more = ["--data-dir", REAL, "--layer-metrics", "none", "--log-every", "100", "--corruption-p", "0,0.5,1"]
    assert main(["sweep", "train", *words, *more]) == 0
    summary = {row["p"]: float(row["mean_test_accuracy"]) for row in table("results/results_summary.csv")}
    for p, mean, std in (("0.0", 0.9798, 0.0017), ("0.5", 0.9723, 0.0018)):
        assert abs(summary[p] - mean) < 3 * std / 2**0.5 + 0.001
    assert [row["test_accuracy"] for row in table("results/results_per_run.csv") if row["p"] == "1.0"] == ["0.1135"] * 2
