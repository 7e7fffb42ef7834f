"""Tables, summaries and reports: numbers that say what they are, through the real command line."""

import csv
import json

import numpy as np
import pytest
from makers import archive, cycle, images
from projects import history, last, new_project

from hardbench.cli import main
from hardbench.data.samples import distinct
from hardbench.inversion.experiments import class_rows, inversion_table
from hardbench.inversion.radii import PASSED, passed
from hardbench.metrics.hardness import mean_at_end

FAST = ["--threads", "1", "--epochs", "2", "--batch-size", "4", "--width", "8", "--depth", "1", "--layer-metrics", "none"]


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


def test_the_mean_at_the_end_is_over_each_repeats_last_steps():
    steps, values = np.array([5, 10, 15, 20]), np.array([[1.0, 2, 3, 6], [1, 5, np.nan, np.nan], [np.nan] * 4])
    np.testing.assert_array_equal(mean_at_end(steps, values, 10), [4.5, 3, np.nan])  # steps 11 to 20, and 1 to 10
    np.testing.assert_array_equal(mean_at_end(steps, values, 1), [6, 5, np.nan])
    assert np.isnan(mean_at_end(np.array([]), np.empty((2, 0)), 5)).all()


def test_the_final_training_accuracy_is_that_of_the_last_epoch(project):
    assert main(["train", "--repeats", "2", "--log-every", "10", "--threads", "1", "--epochs", "2", "--layer-metrics", "none"]) == 0
    run = last()
    late = run.arrays["log_steps"] > 23  # 1 437 digits in batches of 64: 23 steps an epoch
    assert late.sum() == 3  # steps 30, 40 and 46
    for name in ("loss", "accuracy"):
        assert run.metrics[f"final/train_{name}_last_epoch"] == pytest.approx(run.arrays[f"train_{name}"][:, late].mean())
        assert f"final/train_{name}" not in run.metrics


def test_the_class_table_says_how_many_never_stay_at_90_percent(project, capsys):
    assert main(["train", "--epochs", "2", "--repeats", "2", "--threads", "1", "--layer-metrics", "none"]) == 0
    run = last()
    shown = capsys.readouterr().out
    with run.file("class_hardness.csv").open() as file:
        rows = list(csv.DictReader(file))
    ends = run.arrays["accuracy_per_class"][:, -1]
    for row, own in zip(rows, ends.T, strict=True):
        below = int((own < 0.9).sum())
        assert int(row["step_90_never"]) == below
        assert (row["step_90"] == "") == (below > 0)
        assert f"{below} of 2 never" in shown or not below
    assert (ends < 0.9).any()


def curves() -> dict[str, np.ndarray]:
    """Two networks, three classes, 61 epochs: class 0 turns at 30 and is passed by the second, class 1 turns once, class 2 never."""
    x = np.arange(61.0)
    turning = 0.5 + 0.01 * np.abs(x - 30)
    radii = np.stack([np.stack([turning, turning, 1 - x / 100], 1)] * 2)
    radii[1, 55:, 0] = 0.5 * (1 - PASSED) - 1e-3
    radii[1, 55:, 1] = 0.5 * (1 - PASSED) + 1e-3
    return {
        "radii": radii, "error": np.full((2, 61), 0.2), "inversion_epoch": np.array([[30, 30, np.nan]] * 2), "repeats": np.arange(2),
        "class_names": np.array(["a", "b", "c"]), "stragglers": np.zeros((2, 3), dtype=bool), "labels": np.arange(3),
        "judged_epoch": np.array([[30.0, 30, 60]] * 2),
    }  # fmt: skip


def test_an_inversion_is_passed_by_a_radius_over_one_percent_smaller_after_it():
    arrays = curves()
    assert PASSED == 0.01
    assert passed(arrays["radii"], arrays["inversion_epoch"]).tolist() == [[False, False, False], [True, False, False]]
    arrays["radii"][0, :20] = 0.1  # before the inversion
    assert not passed(arrays["radii"], arrays["inversion_epoch"])[0].any()
    table = inversion_table(curves())
    assert table["passed_later"].tolist() == [False, True, False, False, None, None]
    columns, rows = class_rows(curves())
    assert [columns[at] for at in (3, 4, 5)] == ["radius there", "smallest radius", "passed later"]
    assert rows[0][3:6] == ["0.500 +- 0.000", "0.497 +- 0.003", "1 of 2"]
    assert [row[5] for row in rows] == ["1 of 2", "0 of 2", "-"]


def test_invert_tells_what_its_detector_promises_and_what_is_passed(project, capsys):
    for words in (["invert", "--help"], ["stragglers", "--help"]):
        main(words)
        assert "confirmed by `patience`" in " ".join(capsys.readouterr().out.split())
    words = "invert --dataset digits --subset-size 400 --repeats 3 --threads 1 --epochs 150 --lr 0.4 --window 3 --patience 3"
    assert main(words.split()) == 0
    run = last()
    radii, epochs = run.arrays["radii"], run.arrays["inversion_epoch"]
    smaller = 0
    with run.file("inversion.csv").open() as file:
        for row in csv.DictReader(file):
            curve, epoch = radii[int(row["repeat"]), :, int(row["class"])], epochs[int(row["repeat"]), int(row["class"])]
            assert (row["passed_later"] == "") == np.isnan(epoch)
            if np.isfinite(epoch):
                beyond = curve[int(epoch) + 1 :].min() < 0.99 * curve[int(epoch)]
                assert row["passed_later"] == str(beyond)
                smaller += beyond
    assert smaller > 0  # or the run shows nothing
    assert f"{smaller} of them passed later (a radius over 1% smaller)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["a", "b", "c"], ("a", "b", "c")),
        (["a", "b", "c", "a"], ("a (0)", "b", "c", "a (3)")),
        (["a", "a", "a (1)"], ("a (0)", "a (1) (1)", "a (1) (2)")),
        (["", ""], (" (0)", " (1)")),
    ],
)
def test_equal_class_names_are_told_apart(names, told):
    assert distinct(names) == told


def test_classes_of_equal_names_all_stand_in_the_report_and_the_tables(project, capsys):
    many = {"x_train": images(16)[:, :8, :8], "x_test": images(12, seed=1)[:, :8, :8], "y_train": cycle(16, 4), "y_test": cycle(12, 4)}
    data = archive(project / "data.npz", **many, class_names=np.array(["a", "b", "c", "a"]))
    assert main(["train", "--dataset", data, *FAST]) == 0
    assert main(["eval"]) == 0
    run = last()
    report = json.loads(run.file("class_report.json").read_text())
    assert list(report) == ["a (0)", "b", "c", "a (3)"]
    right = run.arrays["confusion"][0, -1].diagonal() / 3
    np.testing.assert_allclose([entry["recall"]["mean"] for entry in report.values()], right)
    with run.file("class_hardness.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == list(report)
    assert "a (3)" in capsys.readouterr().out


def test_corruption_levels_of_an_evaluation_are_steps_of_their_own(project, capsys):
    assert main(["train", *FAST]) == 0
    assert main(["eval", "--corruption-p", "0,0.001,0.004,0.1,0.5,1"]) == 0
    run = last()
    levels = [level["accuracy"]["mean"] for level in json.loads(run.file("test_results.json").read_text())["levels"]]
    steps = [1000, 4000, 100_000, 500_000, 1_000_000]
    assert history(run)["eval/corrupted_accuracy"] == [(step, pytest.approx(level)) for step, level in zip(steps, levels[1:], strict=True)]
    assert main(["eval", "--corruption-p", "0.1,0.10000001"]) == 2
    assert "corruption_p: 0.1,0.10000001; levels at least a millionth apart" in capsys.readouterr().err


def test_a_run_stores_how_many_samples_its_layers_were_measured_on(project):
    words = "train --model gmlp --epochs 1 --repeats 2 --threads 1 --width 16 --depth 2 --layer-metrics participation_ratio"
    assert main(words.split()) == 0
    assert last().arrays["measured_samples"].tolist() == [143, 143]  # a tenth of 1 437
