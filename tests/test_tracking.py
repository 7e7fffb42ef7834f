"""What a run leaves in the store, from the real command line: params, tags, metrics, artifacts, arrays, and how it ended."""

import csv

import numpy as np
import pytest
import torch
import yaml
from projects import all_runs, client, history, last, new_project, started
from setups import images_in_classes

from hardbench import tracking
from hardbench.cli import main
from hardbench.config import options
from hardbench.errors import TrackingError
from hardbench.registry import MODELS
from hardbench.studies import train

GAUSSIAN = ("train", "--dataset", "gaussian", "--model", "mlp", "--width", "8", "--threads", "1", "--layer-metrics", "none")


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of two networks with a validation split, in a store of its own."""
    with pytest.MonkeyPatch.context() as patch:
        folder = new_project(patch, tmp_path_factory.mktemp("project"))
        dataset = images_in_classes(folder / "images.npz")
        words = f"train --dataset {dataset} --model gmlp --depth 2 --width 20 --repeats 2 --epochs 2 --batch-size 13 --val-size 0.2"
        more = "--threads 1 --tag group=a,note=b=c --log-every 2 --augment --out copy --layer-metrics alignment,ridge_r2"
        assert main([*words.split(), *more.split()]) == 0
        yield last()


def test_a_run_ends_finished(finished):
    assert finished.status == "FINISHED"
    assert (finished.name, finished.study) == ("gmlp images.npz s0", "train")
    assert finished.client.get_experiment(finished.run.info.experiment_id).name == "hardbench/train"


def test_params_are_the_headline_for_every_model_and_what_departs_from_its_default(finished):
    expected = {name for name, option in options(train.Config).items() if option.declared.headline}
    assert finished.params.keys() == expected | {"val_size", "layer_metrics", "log_every", "augment"}
    assert len(expected) < 15
    assert all(train.Config(model=name).headline().keys() == expected for name in MODELS)
    shown = {"model": "gmlp", "repeats": "2", "depth": "2", "lr": "0.001", "batch_size": "13", "optimizer": "adam", "widths": "-"}
    assert shown.items() <= finished.params.items()


def test_tags(finished):
    tags = finished.tags
    expected = {"hardbench.kind": "run", "hardbench.study": "train", "hardbench.device": "cpu", "hardbench.precision": "fp32"}
    assert (
        expected | {"hardbench.threads": "1", "group": "a", "note": "b=c", "hardbench.torch": torch.__version__}
    ).items() <= tags.items()
    for name in ("version", "mlflow", "python", "host", "process", "boot", "data_digest"):
        assert tags[f"hardbench.{name}"]
    assert len(tags["mlflow.note.content"].splitlines()) == 2
    assert "error" not in tags
    assert "nonfinite" not in tags


def test_the_data_set_is_an_input(finished):
    (entry,) = finished.run.inputs.dataset_inputs
    assert (entry.dataset.name, entry.dataset.digest) == ("images.npz", finished.tags["hardbench.data_digest"])


def test_arrays(finished):
    """metrics.npz of a small run: 83 samples less 16 for validation in batches of 13, so 6 steps an epoch."""
    arrays = finished.arrays
    steps, logged = arrays["steps"], arrays["log_steps"]
    assert (steps[0], steps[-1], logged.tolist()) == (0, 12, [2, 4, 6, 8, 10, 12])
    r, t, s, k = 2, len(steps), len(logged), 3
    shapes = dict.fromkeys(("loss", "accuracy", "val_loss", "val_accuracy"), (r, t))
    shapes |= dict.fromkeys(("loss_per_class", "accuracy_per_class"), (r, t, k))
    shapes |= dict.fromkeys(("confusion", "overlap_dynamic", "overlap_dynamic_centred"), (r, t, k, k))
    shapes |= dict.fromkeys(("overlap_static", "overlap_static_centred"), (k, k))
    shapes |= dict.fromkeys(("train_loss", "train_accuracy"), (r, s))
    shapes |= dict.fromkeys(("layer_alignment", "layer_alignment_train", "layer_ridge_r2", "layer_ridge_r2_train"), (r, t, 2))
    shapes |= dict.fromkeys(("layer_alignment_test", "layer_ridge_r2_test"), (r, 2))
    shapes |= {"steps": (t,), "log_steps": (s,), "stopped_step": (r,), "measured_samples": (r,), "class_names": (k,)}
    assert {name: arrays[name].shape for name in shapes} == shapes
    extra = arrays.keys() - shapes.keys()
    assert extra <= {"train_layer_loss", "train_layer_accuracy"}  # gmlp's own curves
    for name in shapes.keys() - {"class_names", "layer_ridge_r2", "layer_ridge_r2_train", "layer_ridge_r2_test"}:
        assert np.isfinite(arrays[name]).all(), name
    assert arrays["stopped_step"].tolist() == [-1, -1]
    assert arrays["measured_samples"].tolist() == [16, 16]
    assert not np.array_equal(arrays["loss"][0], arrays["loss"][1])


def test_metrics_are_means_with_standard_errors(finished):
    arrays, points = finished.arrays, history(finished)
    names = {"test/loss": "loss", "test/accuracy": "accuracy", "val/loss": "val_loss", "val/accuracy": "val_accuracy"}
    for metric, name in names.items():
        assert [step for step, _ in points[metric]] == arrays["steps"].tolist()
        np.testing.assert_allclose([value for _, value in points[metric]], arrays[name].mean(0))
        np.testing.assert_allclose([value for _, value in points[f"{metric}_stderr"]], arrays[name].std(0, ddof=1) / np.sqrt(2), atol=1e-12)
    for metric, name in {"train/loss": "train_loss", "train/accuracy": "train_accuracy"}.items():
        assert [step for step, _ in points[metric]] == arrays["log_steps"].tolist()
        np.testing.assert_allclose([value for _, value in points[metric]], arrays[name].mean(0))
    for c in range(3):
        for name in ("accuracy", "loss"):
            np.testing.assert_allclose([value for _, value in points[f"class_{name}/{c:02d}"]], arrays[f"{name}_per_class"].mean(0)[:, c])
    for layer in range(2):
        np.testing.assert_allclose(
            [value for _, value in points[f"layer_alignment/{layer:02d}"]], arrays["layer_alignment"].mean(0)[:, layer]
        )
    assert "layer_ridge_r2/00" in points
    assert "layer_ridge_r2/01" not in points  # the last layer has no next one
    for metric, name in {"test_loss": "loss", "test_accuracy": "accuracy", "val_accuracy": "val_accuracy"}.items():
        assert points[f"final/{metric}"] == [(12, pytest.approx(arrays[name][:, -1].mean()))]
    assert len(points["samples_per_second"]) == 1
    rates = dict(points["train/lr"])
    assert list(rates) == [2, 4, 6, 8, 10, 12]
    assert rates[2] > rates[12] > 0  # warm-up is over within the first step


def test_artifacts(finished):
    folder = finished.file("")
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = {"config.yaml", "metrics.npz", "class_hardness.csv", "checkpoints/last.pt", "checkpoints/best.pt"}
    assert expected <= there
    assert any(name.startswith("figures/") and name.endswith(".png") for name in there)
    assert not any(name.endswith(".part") for name in there)
    copied = {str(path.relative_to(folder.parents[3] / "copy")) for path in (folder.parents[3] / "copy").rglob("*") if path.is_file()}
    assert copied == there
    with finished.file("class_hardness.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


def test_config_yaml_is_the_resolved_settings(finished):
    stored = yaml.safe_load(finished.file("config.yaml").read_text())
    assert train.Config.read(stored).as_dict() == stored
    assert (stored["weight_decay"], stored["scheduler"], stored["activation"], stored["val_size"]) == (1e-4, "warmup_cosine", None, 0.2)


def test_checkpoints_hold_plain_networks(finished):
    state = torch.load(finished.file("checkpoints/last.pt"), weights_only=True)
    best = torch.load(finished.file("checkpoints/best.pt"), weights_only=True)
    config = train.Config.read(finished.config)
    member = train.prepare(config).setup.learner.networks.member(0)
    for found in (state, best):
        assert len(found["networks"]) == 2
        member.load_state_dict(found["networks"][0])
    accuracy, steps = finished.arrays["val_accuracy"], finished.arrays["steps"].tolist()
    for r in range(2):
        assert best["accuracy"][r] == pytest.approx(accuracy[r].max())
        assert best["step"][r] == steps[int(accuracy[r].argmax())]
    assert state["steps"] == 12


# variations


def test_one_network_without_validation(project):
    assert main([*GAUSSIAN, "--epochs", "1", "--name", "mine", "--seed", "3"]) == 0
    run = last()
    assert run.name == "mine"
    assert not any(name.endswith("_stderr") or name.startswith("val/") or "val_" in name for name in run.metrics)
    assert np.isnan(run.arrays["val_loss"]).all() and np.isnan(run.arrays["val_accuracy"]).all()
    best, state = (torch.load(run.file(f"checkpoints/{name}.pt"), weights_only=True) for name in ("best", "last"))
    assert all(torch.equal(best["networks"][0][name], value) for name, value in state["networks"][0].items())
    assert "last" in run.tags["hardbench.best"]
    assert main([*GAUSSIAN, "--epochs", "1", "--name", "again", "--seed", "3", "--keep-checkpoints", "false"]) == 0
    again = last()
    assert again.id != run.id
    assert not again.file("").joinpath("checkpoints").exists()
    np.testing.assert_equal(again.arrays, run.arrays)


def test_stopping_at_the_target_is_stored(project):
    more = "--gaussian-mode overlap --gaussian-cosine -0.5 --gaussian-separation 20 --lr 0.01 --epochs 30 --stop-at-target --repeats 2"
    assert main([*GAUSSIAN, *more.split()]) == 0
    arrays = last().arrays
    stopped = arrays["stopped_step"]
    assert (stopped > 0).all()
    assert arrays["steps"][-1] == stopped.max() < 30
    for r in range(2):
        np.testing.assert_array_equal(np.isfinite(arrays["loss"][r]), arrays["steps"] <= stopped[r])
    assert last().metrics["bayes_accuracy"] > 0.999


def test_divergence_fails_and_keeps_what_was_measured(project, capsys):
    wild = "--optimizer sgd --lr 1e30 --repeats 2 --first-repeat 4 --epochs 3 --eval-points 4 --log-every 1"
    assert main([*GAUSSIAN, *wild.split()]) == 4
    shown = capsys.readouterr().err
    run = last()
    assert run.status == "FAILED"
    assert run.tags["error"].startswith("TrainingError: loss: not finite at step ")
    assert "of repeat 4" in shown and "of repeat 5" in shown and run.id in shown
    assert np.isfinite(run.arrays["loss"][:, 0]).all()
    for r, step in enumerate(run.arrays["stopped_step"]):
        assert f"step {step} of repeat {4 + r}" in shown
    assert "train/loss" in run.tags["nonfinite"].split(",")
    assert all(np.isfinite(value) for points in history(run).values() for _, value in points)


def test_an_exception_is_a_failed_run(project):
    with pytest.raises(ZeroDivisionError), tracking.start("train", train.Config(), "title", "note") as run:
        run.log({"a": 1.0}, 3)
        _ = 1 / 0
    assert (last().status, last().tags["error"]) == ("FAILED", "ZeroDivisionError: division by zero")
    assert history(last()) == {"a": [(3, 1.0)]}  # what was buffered is not lost


def test_bad_input_leaves_no_run(project):
    for words in (
        "--model cnn --depth 9",
        "--dataset npz:none.npz",
        "--lr 0",
        "--class-map 0:0,7:1",
        "--optimizer adm",
        "--out /dev/null/x",
    ):
        assert main([*GAUSSIAN, *words.split()]) in (2, 3)
    assert all_runs() == []
    assert not (project / "mlruns").exists()


def test_joining_the_run_of_mlflow(project, monkeypatch):
    """`mlflow run` has opened a run with params of its own spelling: it is this one, and its params stay."""
    store = client()
    opened = store.create_run(store.create_experiment("elsewhere")).info.run_id
    for name, value in (("lr", "0.10"), ("model", "MLP"), ("other", "x")):
        store.log_param(opened, name, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", opened)
    assert main([*GAUSSIAN, "--lr", "0.1", "--epochs", "1"]) == 0
    (run,) = all_runs()
    assert (run.id, run.status, run.study) == (opened, "FINISHED", "train")
    assert {"lr": "0.10", "model": "MLP", "other": "x", "epochs": "1"}.items() <= run.params.items()
    assert "loss" in run.arrays
    assert {found.name for found in store.search_experiments()} == {"Default", "elsewhere"}


# finding


def _bare_run(store, study="train", status="FINISHED", kind="run"):
    """The id of a run made a second after the one before."""
    names = {found.name: found.experiment_id for found in store.search_experiments()}
    home = names.get("x") or store.create_experiment("x")
    run = store.create_run(home, start_time=1000 * (1 + len(all_runs())), tags={"hardbench.study": study, "hardbench.kind": kind})
    store.set_terminated(run.info.run_id, status)
    return run.info.run_id


def test_finding_runs(project):
    store = client()
    with pytest.raises(TrackingError, match="run: last; there is no finished run of train in sqlite"):
        tracking.find("last", ["train"])
    ids = [_bare_run(store) for _ in range(17)]  # two of them share their first digit
    for word in (ids[3], ids[3][:20]):
        assert tracking.find(word, ["train"]).id == ids[3]
    shared = next(word for word in "0123456789abcdef" if sum(found.startswith(word) for found in ids) > 1)
    with pytest.raises(TrackingError, match=f"^run: {shared}; more of the id: it fits "):
        tracking.find(shared, ["train"])
    for word in ("zzz", "", "%", "a' or '1'='1", "_" * 32, ids[3] + "0", "FINISHED"):
        with pytest.raises(TrackingError, match="; a run id, a unique prefix of one, or last"):
            tracking.find(word, ["train"])
    other, broken, cell = _bare_run(store, "eval"), _bare_run(store, status="FAILED"), _bare_run(store, kind="cell")
    store.log_text(broken, "model: mlp\n", "config.yaml")
    assert tracking.find("last", ["train"]).id == ids[-1]
    assert tracking.find("last", ["train"], finished=False).id == broken
    assert tracking.find("last", ["train"], finished=None).id == broken
    assert tracking.find("last", ["train", "eval"]).id == other
    assert tracking.find(cell, ["train"]).id == cell  # by its name a cell is found
    with pytest.raises(TrackingError, match="a run of train, and this one is of eval"):
        tracking.find(other, ["train"])
    with pytest.raises(TrackingError, match="an unfinished run, and this one is FINISHED"):
        tracking.find(ids[0], ["train"], finished=False)
    with pytest.raises(TrackingError, match="a finished run, and this one is FAILED"):
        tracking.find(broken, ["train"])
    assert {run.id for run in tracking.runs("train")} == {*ids, broken}
    with pytest.raises(TrackingError, match="it has no artifact metrics"):
        _ = tracking.find(ids[0], ["train"]).arrays


def test_a_run_at_work_is_let_alone(project):
    with tracking.start("train", train.Config(), "title", "note") as run:
        stored = tracking.find(run.id, ["train"], finished=False)
        assert stored.status == "RUNNING"  # and not marked dead
        with pytest.raises(TrackingError, match="running"):
            tracking.check_idle(stored)


def test_a_store_that_cannot_be_opened(project, monkeypatch, capsys):
    (project / "broken.db").write_text("no database " * 1000)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/broken.db")
    assert main([*GAUSSIAN, "--epochs", "1"]) == 5
    assert "hardbench: tracking store: " in capsys.readouterr().err


def test_four_processes_make_the_store_at_once(monkeypatch, tmp_path):
    """None loses: one store, one experiment, four finished runs, in the default place."""
    workers = [started(tmp_path) for _ in range(4)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    runs = all_runs()
    assert [(run.status, run.metrics, run.study) for run in runs] == [("FINISHED", {"loss": 1.0}, "train")] * 4
    assert {run.client.get_experiment(run.run.info.experiment_id).name for run in runs} == {"hardbench/train"}
    assert all(run.file("config.yaml").is_relative_to(tmp_path / "mlruns") for run in runs)


@pytest.mark.slow
def test_the_model_of_mlflow(project):
    import mlflow

    assert main([*GAUSSIAN, "--epochs", "1", "--log-model"]) == 0
    run = last()
    (model,) = run.run.outputs.model_outputs
    loaded = mlflow.pytorch.load_model(f"models:/{model.model_id}")
    state = torch.load(run.file("checkpoints/last.pt"), weights_only=True)["networks"][0]
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in state.items())
