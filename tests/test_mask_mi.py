"""hardbench mask-mi through its command line: what a run stores, resumes, draws and refuses."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from projects import all_runs, last, new_project
from setups import images_in_classes
from sklearn.metrics import mutual_info_score

from hardbench import tracking
from hardbench.cli import main
from hardbench.errors import Killed
from hardbench.lifecycle import Stages, launch
from hardbench.masking.information import ESTIMATORS
from hardbench.studies import mask_mi, train

MASK = ["mask-mi", "--threads", "1", "--n-subsets", "12", "--images", "150", "--batch-size", "60"]
REAL = Path(os.environ.get("HARDBENCH_DATA", "")).absolute() / "cifar10-20k.npz"
KINDS = {"mi_per_layer", "delta_mi", "mi_vs_kept", "class_information", "top_channels"}


def train_one(**settings):
    """A trained run without figures, which are not looked at here."""
    config = train.Config(**{"threads": 1, "layer_metrics": ("none",), "eval_points": 1, "epochs": 1} | settings)
    return launch(train, config, draw=False)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a trained cnn of two networks, an mlp, and a run of mask-mi on the cnn."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = new_project(monkeypatch, tmp_path_factory.mktemp("project"))
        train_one(model="cnn", width=8, subset_size=600, repeats=2, lr=0.01)
        train_one(model="mlp", width=10, epochs=4)
        assert main([*MASK, "--model", "cnn", "--pairs", "3", "--out", str(folder / "out")]) == 0
        yield folder


def of(study, model=None):
    """The newest run of a study (and model)."""
    return next(one for one in all_runs() if one.study == study and model in (None, one.params.get("model")))


def test_a_run_of_its_own_tagged_with_the_trained_one(project):
    found, trained = of("mask-mi"), of("train", "cnn")
    assert found.status == "FINISHED" and found.tags["hardbench.source_run"] == trained.id
    assert found.client.get_experiment(found.run.info.experiment_id).name == "hardbench/mask-mi"
    assert {"n_subsets": "12", "mask_mode": "conv_weight", "estimator": "plugin"}.items() <= found.params.items()
    names = ("mask_mi/00", "mask_mi/01", "mask_mi/00_stderr", "delta_mi/01", "mask_mi_full")
    assert all(name in found.metrics for name in names)
    assert trained.file("mi_results_best.json").read_text() == found.file("mi_results_best.json").read_text()
    assert {path.stem for path in found.file("figures").iterdir()} == KINDS
    assert {"masking.npz", "mi_results_best.json", "config.yaml"} <= {path.name for path in (project / "out").iterdir()}
    assert not found.has("checkpoints")


def test_the_json_has_the_published_structure_and_more(project):
    (model, found), *more = json.loads(of("mask-mi").file("mi_results_best.json").read_text()).items()
    assert model == found["model_name"] == "cnn" and not more
    assert found["n_subsets"] == 12 and found["checkpoint_path"].endswith("checkpoints/best.pt")
    assert [(layer["layer_idx"], layer["layer_name"], layer["n_channels"]) for layer in found["layers"]] == [
        (0, "features.0", 8),
        (1, "features.3", 8),
    ]
    for layer in found["layers"]:
        assert layer["mean_mi"] == pytest.approx(np.mean(layer["mi"]))
        assert layer["delta_mi"] == pytest.approx(layer["i_full"] - layer["mean_mi"])
        assert layer["ci95"][0] <= layer["mean_mi"] <= layer["ci95"][1]
        assert len(layer["mi"]) == len(layer["k"]) == len(layer["accuracy"]) == 12
        assert layer["contribution_underdetermined"] is True  # 12 sets of 8 channels
        each = [part["layers"][layer["layer_idx"]] for part in found["per_repeat"]]
        assert layer["mean_mi_stderr"] == pytest.approx(abs(each[0]["mean_mi"] - each[1]["mean_mi"]) / 2)
        strongest = of("mask-mi").arrays[f"contribution_{layer['layer_idx']:02d}"][:, 0].argsort(1)[:, ::-1]
        for own, order in zip(each, strongest, strict=True):  # each network's own channels
            a, b, c = order[:3]
            assert [pair["channels"] for pair in own["pairs"]] == [[a, b], [a, c], [b, c]]
            assert all(pair["ci95"][0] <= pair["synergy"] <= pair["ci95"][1] for pair in own["pairs"])
    assert [part["repeat"] for part in found["per_repeat"]] == [0, 1]
    assert np.mean([part["layers"][1]["mean_mi"] for part in found["per_repeat"]]) == pytest.approx(found["layers"][1]["mean_mi"])


def test_the_arrays_hold_masks_and_confusions(project):
    arrays = of("mask-mi").arrays
    assert arrays["confusion_full"].shape == (2, 10, 10) and arrays["confusion_full"].sum((1, 2)).tolist() == [150, 150]
    for layer in ("00", "01"):
        assert arrays[f"masks_{layer}"].shape == (12, 8) and arrays[f"masks_{layer}"].dtype == bool
        assert np.array_equal(arrays[f"masks_{layer}"].sum(1), arrays[f"kept_{layer}"])
        confusion = arrays[f"confusion_{layer}"]
        assert confusion.shape == (2, 12, 10, 10)
        assert np.array_equal(confusion.sum(3), np.broadcast_to(arrays["confusion_full"].sum(2)[:, None], (2, 12, 10)))
        assert arrays[f"contribution_{layer}"].shape == (2, 3, 8) and arrays[f"class_information_{layer}"].shape == (2, 12, 10)
        assert arrays[f"pairs_{layer}"].shape == (2, 3) and arrays[f"synergy_{layer}"].shape == (2, 3, 3, 3)
        labels, predicted = (np.repeat(np.arange(100), confusion[1, 5].ravel()) // div % 10 for div in (10, 1))
        assert arrays[f"mi_{layer}"][1, 5] == pytest.approx(mutual_info_score(labels, predicted))
        assert arrays[f"accuracy_{layer}"][1, 5] == pytest.approx((labels == predicted).mean())


def test_the_unmasked_network_is_the_trained_one(project):
    """All test images: the accuracy that training measured at its end; some layers: the same masks and numbers as with all."""
    assert main(["mask-mi", "--model", "cnn", "--threads", "1", "--n-subsets", "12", "--layers", "1"]) == 0
    found, before = last(), of("train", "cnn").metrics["final/test_accuracy"]
    assert found.arrays["accuracy_full"].mean() == pytest.approx(before, abs=2e-3)
    assert found.arrays["layers"].tolist() == [1]
    earlier = next(one for one in all_runs() if one.study == "mask-mi" and one.id != found.id)
    assert np.array_equal(found.arrays["masks_01"], earlier.arrays["masks_01"])


def test_a_single_set_has_no_interval(project, capsys):
    """null in the JSON, which knows no nan; and a plug-in estimate from few images is told."""
    assert main(["mask-mi", "--model", "mlp", "--threads", "1", "--n-subsets", "1", "--images", "50", "--pairs", "2"]) == 0
    told, found = capsys.readouterr().err, json.loads(last().file("mi_results_best.json").read_text(), parse_constant=pytest.fail)["mlp"]
    assert "estimator: plugin; too high by up to 0.81 nat for 50 images of 10 classes" in told
    assert all(layer["ci95"] == [None, None] and layer["mean_mi_stderr"] is None for layer in found["layers"])


def test_units_of_an_mlp_and_the_other_settings(project):
    words = ["--mask-mode", "activation_mean", "--estimator", "grassberger", "--checkpoint", "last", "--seed", "4", "--precision", "bf16"]
    assert main([*MASK, *words]) == 0  # the last trained run
    found = last()
    assert found.tags["hardbench.source_run"] == of("train", "mlp").id and found.has("mi_results_last.json")
    assert found.arrays["n_channels"].tolist() == [10, 10]
    expected = ESTIMATORS["grassberger"](torch.from_numpy(found.arrays["confusion_00"]))
    assert found.arrays["mi_00"] == pytest.approx(expected.numpy())


def test_an_interrupted_run_goes_on_at_the_next_layer(project, monkeypatch):
    """Killed behind the fifth of twelve layers (two networks, three batches, two layers); the numbers are those of a run in one go."""
    monkeypatch.setattr(mask_mi, "SAVE_SECONDS", 0.0)
    counted, done = mask_mi.masking.count_confusions, []

    def dies(*given):
        for layer in counted(*given):
            done.append(layer)
            if len(done) == 5:
                raise Killed
            yield layer

    monkeypatch.setattr(mask_mi.masking, "count_confusions", dies)
    assert main([*MASK, "--model", "cnn", "--mask-mode", "activation_zero"]) == 143
    broken = last()
    assert broken.status == "KILLED" and broken.has("checkpoints/last.pt") and not broken.has("masking.npz")
    done.clear()
    monkeypatch.setattr(mask_mi.masking, "count_confusions", lambda *given: (done.append(layer) or layer for layer in counted(*given)))
    assert main(["resume", "last", "--threads", "1"]) == 0
    resumed = last()
    assert resumed.id == broken.id and resumed.status == "FINISHED" and not resumed.has("checkpoints")
    products = [layer for layer in done if layer >= 0]
    assert len(products) == 12 - 3  # what was stored after the fourth step (three layers and a batch's end) is not done again
    assert main([*MASK, "--model", "cnn", "--mask-mode", "activation_zero"]) == 0
    whole = last()
    assert whole.id != resumed.id
    for name, value in whole.arrays.items():
        assert np.array_equal(value, resumed.arrays[name], equal_nan=value.dtype.kind == "f"), name


@pytest.fixture
def killed(monkeypatch, tmp_path):
    """A run of mask-mi on images of an archive, killed behind its second layer, and the archive."""
    new_project(monkeypatch, tmp_path)
    archive = tmp_path / "images.npz"
    train_one(dataset=images_in_classes(archive), model="mlp", width=10)
    monkeypatch.setattr(mask_mi, "SAVE_SECONDS", 0.0)
    counted = mask_mi.masking.count_confusions

    def dies(*given):
        for number, layer in enumerate(counted(*given)):
            if number == 2:
                raise Killed
            yield layer

    monkeypatch.setattr(mask_mi.masking, "count_confusions", dies)
    assert main([*MASK[:-4], "--images", "all", "--batch-size", "10"]) == 143
    monkeypatch.setattr(mask_mi.masking, "count_confusions", counted)
    assert last().has("checkpoints/last.pt")
    return archive


def test_counts_of_two_data_sets_are_never_added_up(killed, capsys):
    broken = last()
    with np.load(killed) as file:
        arrays = dict(file)
    np.savez(killed, **arrays | {"x_test": arrays["x_test"][::-1]})
    capsys.readouterr()
    assert main(["resume", "last"]) == 5
    told = capsys.readouterr().err.splitlines()
    assert told == [f"hardbench: run: {broken.id}; the data set is not the one it was started on"]
    np.savez(killed, **arrays)
    assert main(["resume", "last"]) == 0
    assert (last().id, last().status) == (broken.id, "FINISHED")


def test_a_resumed_run_says_on_what_it_is_computed_now(killed):
    assert last().tags["hardbench.threads"] == "1"
    assert main(["resume", "last", "--threads", "2", "--device", "cpu"]) == 0
    tags = last().tags
    assert [tags[f"hardbench.{name}"] for name in ("threads", "device", "precision")] == ["2", "cpu", "fp32"]
    assert tags["hardbench.data_digest"]


def test_all_takes_the_newest_of_each_vgg(project, monkeypatch):
    """With vgg standing for other models, since a VGG takes a minute: both in one run, each in the JSON of its own."""
    monkeypatch.setattr(mask_mi, "VGGS", ("cnn", "mlp"))
    assert main([*MASK, "--model", "all"]) == 0
    found = last()
    trained = {model: of("train", model) for model in ("cnn", "mlp")}
    assert found.tags["hardbench.source_run"] == ",".join(one.id for one in trained.values())
    results = json.loads(found.file("mi_results_best.json").read_text())
    assert list(results) == ["cnn", "mlp"]
    for model, one in trained.items():
        assert list(json.loads(one.file("mi_results_best.json").read_text())) == [model]
        assert f"{model}/masks_00" in found.arrays and f"mask_mi_{model}/00" in found.metrics
    drawn = {path.stem for path in found.file("figures").iterdir()}
    assert {"mi_per_layer", "delta_mi", "mi_vs_kept_cnn", "mi_vs_kept_mlp", "class_information_mlp", "top_channels_cnn"} <= drawn


def test_runs_are_drawn_together_and_layers_alone(project, capsys):
    ids = [one.id for one in all_runs() if one.study == "mask-mi" and one.status == "FINISHED"]
    assert main(["plot", *ids[-2:], "--kind", "mi-per-layer,delta-mi"]) == 0
    assert main(["plot", ids[-1], "--kind", "mi-vs-kept,top-channels", "--layer", "1"]) == 0
    assert main(["plot", ids[-1], "--kind", "mi-vs-kept", "--layer", "7"]) == 2
    assert "layer: 7; measured are 0, 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told", "code"),
    [
        (["--layers", "0,5"], "layers: 5; from 0 to 1 (mlp)", 2),
        (["--layers", "all,1"], "layers: all,1; all, or numbers", 2),
        (["--images", "100000"], "images: 100000; at most the 360 test images", 2),
        (["--model", "vgg16"], "model: vgg16; a finished run of vgg16 with its weights, and there is none", 5),
        (["--model", "vg16"], "model: vg16; nearest: vgg16", 2),
        (["last", "--model", "cnn"], "model: cnn; either model or run, not both", 2),
        (["--mask-mode", "zero"], "mask_mode: zero", 2),
        (["--pairs", "1"], "pairs: 1; 0 for none", 2),
    ],
)
def test_what_does_not_fit_is_told_before_a_run_exists(project, capsys, words, told, code):
    count = len(all_runs())
    assert main(["mask-mi", "--threads", "1", *words]) == code
    assert told in capsys.readouterr().err
    assert len(all_runs()) == count


def test_a_model_is_found_among_the_cells_of_a_sweep_but_not_without_weights(project):
    """As `sweep train` leaves them; `last` never means a cell."""
    config = train.Config(model="cnn", width=8, epochs=1, subset_size=200, eval_points=1, threads=1)
    with tracking.start("train", config, "cell", "note", kind="cell") as run:
        train.compute(train.prepare(config), run, Stages(run, resumed=False))
    cell = last()
    train_one(model="cnn", width=8, subset_size=200, keep_checkpoints=False)
    assert mask_mi.named_sources(mask_mi.Config(model="cnn"))[0].id == cell.id
    assert mask_mi.named_sources(mask_mi.Config())[0].id == of("train").id != cell.id


def test_networks_that_are_no_sequence_are_told(monkeypatch, tmp_path, capsys):
    new_project(monkeypatch, tmp_path)
    train_one(model="gmlp", width=16, depth=2, subset_size=100)
    assert main(["mask-mi", "last", "--threads", "1"]) == 2
    assert "model: gmlp; one whose layers run in sequence (vgg11 to vgg19, cnn, simple_cnn, mlp)" in capsys.readouterr().err
    assert [one.study for one in tracking.runs()] == ["train"]


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(not REAL.is_file(), reason="no cifar10-20k.npz in HARDBENCH_DATA")
def test_early_layers_of_vgg11_lose_more_than_late_ones(monkeypatch, tmp_path):
    """On 10 000 real images for up to 30 epochs (half an hour on a core), then 20 sets per layer on 2 000 test images."""
    new_project(monkeypatch, tmp_path)
    recipe = ["--config", "vgg11_cifar10", "--dataset", f"npz:{REAL}", "--subset-size", "10000", "--epochs", "30", "--stop-at-target"]
    assert main(["train", *recipe, "--precision", "bf16", "--eval-points", "3"]) == 0
    assert last().metrics["final/test_accuracy"] > 0.74
    assert main(["mask-mi", "--model", "vgg11", "--n-subsets", "20", "--images", "2000"]) == 0
    lost = [last().metrics[f"delta_mi/{layer:02d}"] for layer in range(8)]
    assert np.mean(lost[:3]) > np.mean(lost[-3:])
