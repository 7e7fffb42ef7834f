"""What follows a training, from the real command line on one small project: eval, plot, compare, resume, simulate, ui."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from projects import all_runs, client, history, last, new_project, of_session, within
from scipy.stats import norm
from setups import images_in_classes
from sklearn.metrics import precision_recall_fscore_support

from hardbench import tracking
from hardbench.cli import main
from hardbench.stored import STUDY

SMALL = "--epochs 1 --batch-size 13 --val-size 0.2 --width 20 --depth 2 --threads 1 --eval-points 3 --layer-metrics"
GMLP = f"--model gmlp --repeats 2 {SMALL} alignment,participation_ratio".split()
MLP = f"--model mlp --seed 4 {SMALL} participation_ratio".split()
GAUSSIAN = (
    "train",
    "--dataset",
    "gaussian",
    "--model",
    "mlp",
    "--width",
    "8",
    "--epochs",
    "1",
    "--threads",
    "1",
    "--layer-metrics",
    "none",
)
UNLAYERED = {f"{stem}.png" for stem in ("basic_training_curves", "class_hardness", "overlap_scatter")}
CONFUSION = {"confusion_matrix.png", "confusion_matrix_normalized.png"}


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of a project with a run of two gmlp and then one of an mlp, on the same archive of images."""
    with pytest.MonkeyPatch.context() as patch:
        folder = new_project(patch, tmp_path_factory.mktemp("project"))
        for model in (GMLP, MLP):
            assert main(["train", "--dataset", images_in_classes(folder / "images.npz"), *model]) == 0
        yield folder


@pytest.fixture
def gmlp(shared):
    return tracking.find(next(run.id for run in all_runs() if run.params["model"] == "gmlp" and run.params["repeats"] == "2"), ["train"])


@pytest.fixture
def mlp(shared):
    return tracking.find(next(run.id for run in all_runs() if run.params["model"] == "mlp"), ["train"])


def results(run):
    return json.loads(run.file("test_results.json").read_text())


def drawn(capsys, *words):
    """Names of the files that a plot command lists, all of which are there."""
    capsys.readouterr()
    assert main(["plot", *words]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith((".png", ".svg", ".pdf"))]
    assert all(path.stat().st_size for path in paths)
    return {path.name for path in paths}


def refused(capsys, code, *words):
    """The line of a command that is refused with an exit code."""
    capsys.readouterr()
    assert main(list(words)) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hardbench: ")
    return line


# eval


def test_eval_of_the_last_weights_is_the_end_of_the_curve(gmlp, capsys):
    assert main(["eval", gmlp.id, "--checkpoint", "last", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert gmlp.id in shown and "hardbench ui shows it at " in shown
    arrays, (level,) = gmlp.arrays, results(gmlp)["levels"]
    assert level["corruption_p"] == 0
    for name in ("accuracy", "loss"):
        np.testing.assert_allclose(level[name]["values"], arrays[name][:, -1], rtol=1e-6)
        assert level[name]["mean"] == pytest.approx(arrays[name][:, -1].mean())
        assert level[name]["stderr"] == pytest.approx(arrays[name][:, -1].std(ddof=1) / np.sqrt(2))
    assert np.array(level["layer_accuracy"]["values"]).shape == (2, 2)
    np.testing.assert_array_equal(np.load(gmlp.file("confusion.npy")), arrays["confusion"][:, -1])
    stored = tracking.find(gmlp.id, ["train"])
    assert stored.status == "FINISHED"
    assert stored.metrics["eval/accuracy"] == pytest.approx(stored.metrics["test/accuracy"])
    assert stored.metrics["eval/loss_stderr"] == pytest.approx(level["loss"]["stderr"])
    assert {path.name for path in gmlp.file("figures").iterdir()} >= CONFUSION


def test_eval_takes_the_weights_that_validated_best(gmlp):
    assert main(["eval", gmlp.id[:12], "--threads", "1"]) == 0
    best, found = torch.load(gmlp.file("checkpoints/best.pt"), weights_only=True), results(gmlp)
    assert (found["checkpoint"], found["dataset"]) == ("best", "own")
    columns = [gmlp.arrays["steps"].tolist().index(int(step)) for step in best["step"]]
    np.testing.assert_allclose(found["levels"][0]["accuracy"]["values"], gmlp.arrays["accuracy"][[0, 1], columns])


def test_the_class_report_is_that_of_scikit_learn(gmlp):
    assert main(["eval", "--run", gmlp.id, "--checkpoint", "last", "--threads", "1"]) == 0
    confusion = np.load(gmlp.file("confusion.npy"))
    assert confusion.shape == (2, 3, 3)
    report = json.loads(gmlp.file("class_report.json").read_text())
    assert list(report) == ["0", "1", "2"]
    for r in range(2):
        true, predicted = (np.repeat(places.ravel(), confusion[r].ravel()) for places in np.indices((3, 3)))
        expected = precision_recall_fscore_support(true, predicted, labels=[0, 1, 2], zero_division=np.nan)
        for name, values in zip(("precision", "recall", "f1"), expected[:3], strict=True):
            found = np.array([report[c][name]["values"][r] for c in report], dtype=float)  # null is nan
            np.testing.assert_allclose(found, values)


def test_eval_under_corruption(gmlp):
    words = ["eval", gmlp.id, "--corruption-p", "0,0.5,1", "--checkpoint", "last", "--threads", "1"]
    assert main(words) == 0
    first = results(gmlp)
    assert [level["corruption_p"] for level in first["levels"]] == [0, 0.5, 1]
    assert first["levels"][0]["accuracy"]["values"] == pytest.approx(gmlp.arrays["accuracy"][:, -1])
    assert len({level["loss"]["mean"] for level in first["levels"]}) == 3
    stored = tracking.find(gmlp.id, ["train"])
    points = [point for name, curve in history(stored).items() if name.startswith("eval") and name.endswith("loss") for point in curve]
    assert {(round(1_000_000 * level["corruption_p"]), level["loss"]["mean"]) for level in first["levels"]} <= set(points)
    np.testing.assert_array_equal(np.load(gmlp.file("confusion.npy")), gmlp.arrays["confusion"][:, -1])  # of the first level
    assert main(words) == 0
    assert results(gmlp) == first


def test_eval_on_another_data_set(shared, gmlp, capsys):
    with np.load(shared / "images.npz") as found:
        arrays = dict(found)
    np.savez(shared / "fewer.npz", **arrays | {"x_test": arrays["x_test"][:20], "y_test": arrays["y_test"][:20]})
    np.savez(shared / "small.npz", **arrays | {name: arrays[name][:, :5] for name in ("x_train", "x_test")})
    words = ["eval", gmlp.id, "--checkpoint", "last", "--threads", "1", "--dataset"]
    assert main([*words, f"npz:{shared}/fewer.npz"]) == 0
    assert results(gmlp)["dataset"].endswith("fewer.npz")
    assert np.load(gmlp.file("confusion.npy")).sum(axis=(1, 2)).tolist() == [20, 20]
    metrics = tracking.find(gmlp.id, ["train"]).metrics
    assert metrics["eval_fewer_npz/accuracy"] == pytest.approx(results(gmlp)["levels"][0]["accuracy"]["mean"])
    before = results(gmlp)
    line = refused(capsys, 3, *words, f"npz:{shared}/small.npz")
    assert line.startswith("hardbench: dataset: ") and "the run has (1, 7, 9), 3 classes" in line
    assert refused(capsys, 3, *words, "digits").startswith("hardbench: dataset: digits of shape (1, 8, 8), 10 classes")
    assert results(gmlp) == before
    assert tracking.find(gmlp.id, ["train"]).status == "FINISHED"


def test_eval_out_copies(shared, mlp, capsys):
    assert main(["eval", "--run", mlp.id, "--threads", "1", "--out", "evaluated"]) == 0
    assert "files evaluated" in capsys.readouterr().out
    made = {str(path.relative_to("evaluated")) for path in Path("evaluated").rglob("*.*") if path.is_file()}
    assert {"test_results.json", "confusion.npy", "class_report.json", *(f"figures/{name}" for name in CONFUSION)} <= made


# plot


def test_plot_draws_all_that_apply(shared, mlp, capsys):
    names = drawn(capsys, mlp.id, "--out", "plots")
    layered = {"heatmap_participation_ratio_val.png", "timeline_participation_ratio.png", "research_questions.png"}
    assert names >= UNLAYERED | CONFUSION | layered
    assert not any(name.startswith(("multi_run", "architecture_comparison")) for name in names)  # these take several runs
    assert names == {path.name for path in Path("plots").iterdir()}
    assert names <= {path.name for path in mlp.file("figures").iterdir()}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--kind class-hardness", {"class_hardness.png"}),
        ("--kind class_hardness,overlap-scatter", {"class_hardness.png", "overlap_scatter.png"}),
        ("--kind confusion-matrix", CONFUSION),
        ("--kind heatmap --metric alignment --phase train", {"heatmap_alignment_train.png"}),
        ("--kind timeline --metric alignment --layer 1", {"timeline_alignment_1.png"}),
        ("--kind basic-training-curves --metric loss --phase val --format png,svg", {f"basic_training_curves.{e}" for e in ("png", "svg")}),
    ],
)
def test_plot_draws_what_is_asked_for(gmlp, capsys, words, expected):
    assert drawn(capsys, gmlp.id, *words.split()) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--kind class-hardnes", "kind: class_hardnes; nearest: class_hardness"),
        ("--kind heatmap --metric linear_cka", "linear_cka"),
        ("--kind timeline --metric alignment --layer 7", "layer"),
        ("--kind confusion-matrix --phase train", "phase: train"),
        ("--kind multi-run", "two or more"),
        ("--format gif", "format: gif"),
        ("--phase dev", "phase: dev"),
        ("--out /dev/null/x", "out: /dev/null/x"),
    ],
)
def test_plot_says_what_it_cannot_draw(gmlp, capsys, words, said):
    assert said in refused(capsys, 2, "plot", gmlp.id, *words.split())


def test_plot_of_two_runs(gmlp, mlp, capsys):
    kinds = "basic-training-curves,class-hardness,multi-run,architecture-comparison"
    names = drawn(capsys, gmlp.id, mlp.id, "--kind", kinds)
    layered = {"multi_run_participation_ratio_val.png", "architecture_comparison_participation_ratio.png"}
    assert names == {"basic_training_curves.png", "class_hardness.png"} | layered
    assert drawn(capsys, "--runs", f"{gmlp.id[:10]},{mlp.id[:10]}", "--kind", "class-hardness") == {"class_hardness.png"}


def test_plot_reads_only_the_store(shared, mlp, capsys):
    """Without checkpoints and without the data set, of the newest run."""
    assert last().id == mlp.id
    aside = [(path, path.with_name(path.name + "_aside")) for path in (mlp.file("checkpoints"), shared / "images.npz")]
    for path, away in aside:
        path.rename(away)
    try:
        assert drawn(capsys, "--run", "last", "--kind", "class-hardness,confusion-matrix") == {"class_hardness.png"} | CONFUSION
    finally:
        for path, away in aside:
            away.rename(path)


# compare


def compared(*words):
    assert main(["compare", "--csv", "table.csv", *words]) == 0
    with Path("table.csv").open() as file:
        return list(csv.DictReader(file))


def test_compare_shows_what_differs(gmlp, mlp, capsys):
    rows = compared(gmlp.id, mlp.id[:10])
    assert [row["run"] for row in rows] == [gmlp.id, mlp.id]
    assert {row["status"] for row in rows} == {"FINISHED"}
    by_model = {"weight_decay", "scheduler"}  # the models' own defaults
    differing = {"model", "repeats", "seed", "activation", "layer_metrics"} | by_model
    metrics = {name for name in rows[0] if "/" in name}
    assert rows[0].keys() - metrics == {"run", "name", "status"} | differing
    for row, run in zip(rows, (gmlp, mlp), strict=True):
        known = {name: "-" if value is None else str(value) for name, value in run.config.items()} | run.params
        assert {name: row[name] for name in differing} == {name: known[name] for name in differing}
        expected = {name: run.metrics[name] for name in metrics if name in run.metrics}
        assert {name: float(row[name]) for name in metrics if row[name]} == expected
    assert rows[0]["final/test_accuracy_stderr"] and not rows[1]["final/test_accuracy_stderr"]
    shown = capsys.readouterr().out
    assert gmlp.id[:8] in shown and "table.csv" in shown
    assert f"{gmlp.metrics['final/test_accuracy']:.4f} +- {gmlp.metrics['final/test_accuracy_stderr']:.4f}" in shown


@pytest.mark.parametrize("name", ["test_loss", "final/test_loss", "seed", "model"])
def test_compare_sorts_both_ways(gmlp, mlp, name):
    forth, back = ([row["run"] for row in compared(gmlp.id, mlp.id, "--sort", f"{sign}{name}")] for sign in ("", "-"))
    assert forth == back[::-1]
    found = {run.id: run for run in (gmlp, mlp)}
    if name in gmlp.params:
        assert [found[one].params[name] for one in forth] == {"seed": ["4", "0"], "model": ["mlp", "gmlp"]}[name]
    else:
        losses = [found[one].metrics["final/test_loss"] for one in forth]
        assert losses == sorted(losses, reverse=True)


def test_compare_shows_the_clean_evaluation(mlp):
    """Also after one under corruption, whose points are at later steps."""
    assert main(["eval", mlp.id, "--checkpoint", "last", "--corruption-p", "0,1", "--threads", "1"]) == 0
    clean, corrupted = (level["loss"]["mean"] for level in results(mlp)["levels"])
    assert clean != corrupted
    (row,) = compared(mlp.id, "--metric", "eval/loss")
    assert float(row["eval/loss"]) == clean


def test_compare_takes_all_finished_runs_of_a_study(shared):
    rows = compared("--study", "train", "--metric", "class_accuracy/00")
    assert {row["run"] for row in rows} >= {run.id for run in all_runs() if run.study == "train" and run.status == "FINISHED"}
    assert {name for name in rows[0] if "/" in name} == {"class_accuracy/00", "class_accuracy/00_stderr"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("--study trian", 2, "study: trian; nearest: train"),
        ("--metric final/test_acuracy", 2, "metric: final/test_acuracy; nearest: final/test_accuracy"),
        ("--sort final/test_acuracy", 2, "sort: final/test_acuracy; nearest: final/test_accuracy"),
        ("--csv /dev/null/x.csv", 2, "csv: /dev/null/x.csv"),
        ("zzzz", 5, "run: zzzz"),
    ],
)
def test_compare_refuses(shared, capsys, words, code, said):
    assert said in refused(capsys, code, "compare", *words.split())


# finding


def test_runs_that_cannot_be_used(gmlp, capsys):
    assert "an unfinished run, and this one is FINISHED" in refused(capsys, 5, "resume", gmlp.id)
    for command in ("eval", "plot", "resume", "compare"):
        assert "run: zzzz; a run id, a unique prefix of one, or last" in refused(capsys, 5, command, "zzzz")


def test_a_store_without_runs(project, capsys):
    for command in ("eval", "plot", "resume"):
        assert "run: last; there is no " in refused(capsys, 5, command)
    assert "there is no finished run" in refused(capsys, 5, "compare")
    assert not (project / "mlruns").exists()


def test_a_prefix_of_several_runs(project, capsys):
    store, tags = client(), {STUDY: "train", tracking.KIND: "run"}
    digits = [store.create_run("0", tags=tags).info.run_id[0] for _ in range(17)]  # two of them are the same
    prefix = max(digits, key=digits.count)
    for command in ("eval", "plot", "resume", "compare"):
        assert f"run: {prefix}; more of the id: it fits " in refused(capsys, 5, command, prefix)


# simulate


def test_simulate_makes_everything(project, capsys):
    """The preset gaussian end to end: two of three classes, no signal."""
    assert main(["simulate", "--config", "gaussian", "--threads", "1", "--layer-metrics", "participation_ratio", "--eval-points", "3"]) == 0
    run, shown = last(), capsys.readouterr().out
    assert (run.status, run.study, run.arrays["class_names"].tolist()) == ("FINISHED", "train", ["0", "2"])
    made = {str(path.relative_to(run.file(""))) for path in run.file("").rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.npz", "test_results.json", "class_report.json", "confusion.npy", "checkpoints/last.pt"} <= made
    assert {"figures/class_hardness.png", "figures/confusion_matrix.png", "figures/heatmap_participation_ratio_test.png"} <= made
    assert all(name in shown for name in made)
    assert run.metrics["eval/accuracy"] == pytest.approx(run.metrics["test/accuracy"])
    assert run.metrics["bayes_accuracy"] == pytest.approx(0.5)
    before = run.metrics
    assert "corruption_p" in refused(capsys, 3, "eval", "last", "--corruption-p", "0.5", "--threads", "1")  # not pixels
    assert last().metrics == before


def test_simulate_with_other_runs_and_research_only(shared, mlp, gmlp, capsys):
    base = ["simulate", "--dataset", f"npz:{shared}/images.npz", *GMLP, "--name", "simulated"]
    count = len(all_runs())
    assert "run: zzzz" in refused(capsys, 5, *base, "--compare-runs", "zzzz")
    assert len(all_runs()) == count
    assert main([*base, "--research-only", "--compare-runs", mlp.id[:10], "--out", "simulated"]) == 0
    run = last()
    figures = {path.name for path in run.file("figures").iterdir()}
    compared = {"multi_run_participation_ratio_val.png", "architecture_comparison_participation_ratio.png"}
    assert figures - UNLAYERED - CONFUSION == {"research_questions.png"} | compared
    made = {str(path.relative_to(run.file(""))) for path in run.file("").rglob("*") if path.is_file()}
    assert made == {str(path.relative_to("simulated")) for path in Path("simulated").rglob("*") if path.is_file()}
    shown = capsys.readouterr().out
    assert all(name in shown for name in made)


def test_simulate_beside_a_run_of_the_same_model(shared, gmlp):
    """Models that are no mlp and gmlp make no architecture_comparison, and that is no error after the training."""
    words = ["simulate", "--dataset", f"npz:{shared}/images.npz", *GMLP, "--seed", "9", "--research-only"]
    assert main([*words, "--compare-runs", gmlp.id]) == 0
    names = {path.name for path in last().file("figures").iterdir()}
    assert any(name.startswith("multi_run") for name in names)
    assert not any(name.startswith("architecture_comparison") for name in names)


def test_bayes_accuracy_of_overlapping_gaussians(project):
    words = "--gaussian-mode overlap --gaussian-classes 2 --gaussian-cosine 0.5 --gaussian-separation 3 --gaussian-std 2"
    assert main([*GAUSSIAN, *words.split()]) == 0
    apart = 3 * np.sqrt(2 * (1 - 0.5))  # between the means
    assert last().metrics["bayes_accuracy"] == pytest.approx(norm.cdf(apart / 2 / 2))


# ui


def _answers(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.ui
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ui_serves_with_deep_links_and_ends(project, number):
    for seed in (0, 1):
        assert main([*GAUSSIAN, "--seed", str(seed)]) == 0
    ids = [run.id for run in all_runs()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (project / "shown.txt").open("w") as shown:
        words = [sys.executable, "-m", "hardbench", "ui", "--port", str(port)]
        process = subprocess.Popen(words, stdout=shown, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        assert within(60, lambda: _answers(port)), (project / "shown.txt").read_text()
        text = (project / "shown.txt").read_text()
        links = re.findall(rf"http://127\.0\.0\.1:{port}/#/\S+", text)
        assert any(f"/experiments/{last().run.info.experiment_id}/runs" in link for link in links)
        assert any("/compare-runs?" in link and all(one in link for one in ids) for link in links)
        process.send_signal(number)
        assert process.wait(30) == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        assert within(15, lambda: not of_session(process.pid)), "children are left"
    finally:
        for one in of_session(process.pid):
            os.kill(one, signal.SIGKILL)
        process.wait()
