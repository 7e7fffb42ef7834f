"""The study of hard samples through the real command line: what is counted, cut, trained, stored, resumed, drawn and refused."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pandas
import pytest
import torch
from projects import all_runs, empty_store, last, new_project, started

from hardbench import hardness_runs, tracking
from hardbench.cli import main
from hardbench.config import parse_yaml
from hardbench.data.batches import Batches
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise
from hardbench.hard_samples.cuts import HardEasyOrder
from hardbench.hard_samples.selection import hardest
from hardbench.hard_samples.slices import SliceLearner, segments
from hardbench.inversion.fullbatch import FullBatch
from hardbench.inversion.search import TrainingData, training_settings
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import InversionSettings
from hardbench.studies import stragglers
from hardbench.training.loop import fit

TINY = ["--dataset", "digits", "--subset-size", "400", "--epochs", "40", "--lr", "0.5", "--threads", "1", "--repeats", "2"]
TINY += ["--train-ratios", "0.8,0.5"]
GRID = ["--remaining-train-ratios", "0,0.5,1"]
FIGURES = {
    f"{kind}.png" for kind in ("accuracy_vs_remaining", "strategies", "hard_per_class", "agreement", "agreement_per_class", "gallery")
}


def arrays_of(run, name="hard_samples.npz"):
    with np.load(run.file(name), allow_pickle=False) as found:
        return dict(found)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two sets, three strategies, a tenth of the labels wrong."""
    with pytest.MonkeyPatch.context() as patch:
        new_project(patch, tmp_path_factory.mktemp("project"))
        line = ["stragglers", *TINY, *GRID, "--strategy", "stragglers,softmax-confidence,loss", "--sets", "2", "--noise-ratio", "0.1"]
        assert main([*line, "--level", "class"]) == 0
        yield last()


def test_a_run_is_finished_with_everything_it_promises(run):
    assert (run.status, run.study) == ("FINISHED", "stragglers")
    for name in ("hard_samples.npz", "accuracy.csv", "summary.csv", "classes.csv", "detection.csv", "config.yaml", "metrics.npz"):
        assert run.has(name), name
    assert {path.name for path in run.file("figures").iterdir()} == FIGURES
    table = pandas.read_csv(run.file("accuracy.csv"))
    assert list(table)[:8] == ["strategy", "train_ratio", "remaining", "set", "repeat", "full", "hard", "easy"]
    assert len(table) == 3 * 2 * 3 * 2 * 2
    assert parse_yaml(run.file("config.yaml").read_text(), "")["strategy"] == ["stragglers", "softmax_confidence", "loss"]
    assert not run.has("checkpoints/last.pt")


def test_counts_of_hard_samples_are_exact(run):
    found = arrays_of(run)
    count, classes = len(found["labels"]), 10
    assert (found["labels"] != found["clean"]).sum() == int(0.1 * count) == 40
    np.testing.assert_array_equal(np.sort(found["index"]), np.unique(found["index"]))
    for s in range(2):
        mask = found["hard_stragglers"][s]
        np.testing.assert_array_equal(np.bincount(found["labels"][mask], minlength=classes), found["counts"][s])
        np.testing.assert_array_equal(found["scores_stragglers"][s] > 0, mask)
        for name in ("softmax_confidence", "loss"):
            expected = np.minimum(found["counts"][s] + int(0.1 * count / classes), np.bincount(found["labels"], minlength=classes))
            np.testing.assert_array_equal(np.bincount(found["labels"][found[f"hard_{name}"][s]], minlength=classes), expected)


def test_train_samples_are_cut_as_said(run):
    found, table = arrays_of(run), pandas.read_csv(run.file("accuracy.csv"))
    for row in table.itertuples():
        hard = int(found[f"hard_{row.strategy}"][row.set].sum())
        easy = 400 - hard
        expected = int(hard * row.train_ratio) + int(int(easy * row.train_ratio) * row.remaining)
        assert row.train_samples == expected
        tests = [hard - int(hard * row.train_ratio), easy - int(easy * row.train_ratio)]
        assert row.full * sum(tests) == pytest.approx(row.hard * tests[0] + row.easy * tests[1])
        assert row.hard * tests[0] == pytest.approx(round(row.hard * tests[0]))


def test_summary_and_metrics_are_means_of_the_networks(run):
    table, summary = (pandas.read_csv(run.file(name)) for name in ("accuracy.csv", "summary.csv"))
    for row in summary.itertuples():
        own = table[(table.strategy == row.strategy) & (table.train_ratio == row.train_ratio) & (table.remaining == row.remaining)]
        means = own.groupby("set").hard.mean()
        assert row.mean_hard == pytest.approx(own.hard.mean())
        assert row.std_hard == pytest.approx(own.hard.std())
        assert row.stderr_hard == pytest.approx(means.std() / np.sqrt(2))
        assert row.mean_gap == pytest.approx((own.easy - own.hard).mean())
        if row.train_ratio == 0.8:
            points = {point.step: point.value for point in run.client.get_metric_history(run.id, f"accuracy_hard/{row.strategy}")}
            assert points[round(100 * row.remaining)] == pytest.approx(row.mean_hard)
    assert run.metrics["accuracy_gap/loss_stderr"] >= 0


def test_wrong_labels_are_found(run):
    """Loss knows the label, and a network that has not learned the wrong ones by heart finds them; the columns say what chance would."""
    table = pandas.read_csv(run.file("detection.csv"))
    assert len(table) == 6
    assert table.base_rate.unique().tolist() == [0.1]
    found = table.groupby("strategy").mean()
    assert found.average_precision["loss"] > 0.6
    assert found.average_precision_low["loss"] > 0.5  # by chance it would be the base rate
    assert found.recall["stragglers"] > 0.9
    assert (table.average_precision_low <= table.average_precision).all() and (
        table.average_precision <= table.average_precision_high
    ).all()
    assert run.metrics["noise_recall/stragglers"] == pytest.approx(found.recall["stragglers"])
    assert run.metrics["noise_base_rate"] == 0.1


def test_strategies_are_compared(run):
    found = run.arrays
    assert found["jaccard"].shape == found["spearman"].shape == (2, 3, 3)
    assert found["jaccard_per_class"].shape == (2, 10, 3, 3)
    np.testing.assert_allclose(np.diagonal(found["jaccard"], axis1=1, axis2=2), 1)
    assert (found["stability"] > 3).all()
    assert run.metrics["stability_z/loss"] == pytest.approx(found["stability"][2])
    assert found["hard_per_class"].shape == (3, 2, 10)
    classes = pandas.read_csv(run.file("classes.csv"))
    one = classes[classes.strategy == "loss"]
    assert one.pearson.iloc[0] == pytest.approx(np.corrcoef(one.hard / one.samples, one.error)[0, 1])


def test_strategies_share_their_sets(run):
    """A strategy alone gives what it gives beside others: same data, same stragglers, same splits, same networks."""
    line = ["stragglers", *TINY, *GRID, "--strategy", "loss", "--sets", "2", "--noise-ratio", "0.1", "--level", "class"]
    assert main(line) == 0
    alone, beside = (pandas.read_csv(one.file("accuracy.csv")) for one in (last(), run))
    beside = beside[beside.strategy == "loss"].reset_index(drop=True)
    pandas.testing.assert_frame_equal(alone, beside)


def test_plot_draws_again_without_training(run, capsys):
    capsys.readouterr()
    assert main(["plot", run.id, "--kind", "agreement,gallery", "--format", "svg"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}.svg" in shown for name in ("agreement", "agreement_per_class", "gallery"))


def test_hardness_goes_on_to_train_and_eval_sets(run):
    line = ["train", "--dataset", "digits", "--epochs", "1", "--width", "16", "--threads", "1", "--layer-metrics", "none"]
    assert main([*line, "--hardness", f"{run.id}:loss"]) == 0
    known, split = hardness_runs.read_hardness(f"{run.id}:loss"), last()
    both = {phase: sum(split.arrays[f"confusion_{phase}_{group}"][0, 0].sum() for group in ("hard", "easy")) for phase in ("train", "test")}
    assert both == {"train": (known.index < 1437).sum(), "test": (known.index >= 1437).sum()}
    assert split.metrics["test/loss_hard"] > split.metrics["test/loss_easy"]


def test_mask_mi_measures_hard_images_apart(run):
    """The parts add up to the whole, and hard images have less to tell."""
    assert main(["train", "--dataset", "digits", "--epochs", "5", "--width", "16", "--threads", "1", "--layer-metrics", "none"]) == 0
    assert main(["mask-mi", last().id, "--n-subsets", "5", "--threads", "1", "--hardness", f"{run.id}:loss"]) == 0
    found = last()
    assert (found.study, found.config["hardness"]) == ("mask-mi", f"{run.id}:loss")
    known = hardness_runs.read_hardness(f"{run.id}:loss")
    here = known.hard[known.index >= 1437]
    rows = found.arrays
    assert rows["mi_hard_full"].shape == (1,) and rows["mi_easy_00"].shape == (1, 5)
    parts = {"unknown": 360 - len(here), "easy": (~here).sum(), "hard": here.sum()}
    assert {group: rows[f"images_{group}"].item() for group in parts} == parts
    both = sum(parts[group] * rows[f"accuracy_{group}_00"] for group in parts)
    np.testing.assert_allclose(both / 360, rows["accuracy_00"])
    assert rows["accuracy_hard_full"] < rows["accuracy_easy_full"]
    results = json.loads(found.file("mi_results_best.json").read_text())["mlp"]
    assert (results["n_images_hard"], results["i_full_hard"]) == (here.sum(), rows["mi_hard_full"].mean())


def test_a_stopped_study_goes_on_at_the_next_group(run, monkeypatch, tmp_path):
    """Killed in the grid: what was done is not trained again, what is under way goes on, the numbers are those of an undisturbed run."""
    new_project(monkeypatch, tmp_path / "project")
    line = ["stragglers", *TINY, *GRID, "--strategy", "stragglers,loss", "--sets", "2"]
    assert main(line) == 0
    whole = last()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(empty_store(), other / "mlflow.db")
    process = started(other, *line, "--checkpoint-every", "0.05")
    while process.is_alive() and not list(other.glob("mlruns/*/*/artifacts/checkpoints/grid_stragglers_0.pt")):
        time.sleep(0.01)
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}/mlflow.db")
    tracking.connect()
    assert last().status == "KILLED"
    done = {path: path.stat().st_mtime_ns for path in last().file("checkpoints").glob("[gs]*.pt")}
    assert len(done) >= 3
    assert main(["resume", "last"]) == 0
    assert (last().status, len(all_runs())) == ("FINISHED", 1)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    np.testing.assert_equal(last().arrays, whole.arrays)
    assert last().file("accuracy.csv").read_text() == whole.file("accuracy.csv").read_text()
    assert len(list(last().file("checkpoints").glob("[gs]*.pt"))) == 6  # the search, the scores, two strategies in two sets


# networks on slices


@pytest.mark.parametrize("reduce_hard", [False, True])
def test_segments_are_the_slices_taken_apart(reduce_hard):
    order = HardEasyOrder.of(torch.arange(500) % 9 == 0, Seeds(0))
    cuts = [order.train_slice(ratio, share, reduce_hard) for ratio in (0.9, 0.5, 0.7) for share in (1, 0.2, 0, 0.75)]
    for largest in (10**6, 300):
        seen = np.zeros((len(cuts), 500), dtype=int)
        for segment in segments(cuts, largest):
            seen[segment.first : segment.last, segment.start : segment.end] += 1
            assert (segment.end - segment.start) * (segment.last - segment.first) < 1.6 * largest
        for row, cut in zip(seen, cuts, strict=True):
            assert row.tolist() == [int(cut.low <= place < cut.high) for place in range(500)]


def _samples(count=90):
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    inputs = torch.randn(count, 12, generator=generator) + torch.eye(12)[labels] * 2
    return Samples.of(inputs, labels)


def test_a_network_on_a_slice_is_the_network_on_those_samples_alone():
    samples, settings = _samples(), training_settings(InversionSettings(dataset="digits", epochs=50, lr=0.2))
    identity = Standardise(torch.zeros(1), torch.ones(1))
    order = HardEasyOrder.of(hardest(torch.rand(90, generator=torch.Generator().manual_seed(0)), 30), Seeds(0))
    cuts = [order.train_slice(0.8, share) for share in (0, 0.3, 1)]
    streams = [Seeds(3).child("repeat", r) for r in range(2)]
    learner = SliceLearner(TrainingData(samples.pick(order.rows), identity, 3), cuts, streams, settings)
    fit(learner, learner.batches, settings.epochs)
    accuracies = learner.accuracies()
    for i, cut in enumerate(cuts):
        own = samples.pick(order.rows[cut.low : cut.high])
        networks = MODELS["mlp"].call((12,), 3, settings, streams)
        alone = FullBatch(networks, settings, settings.epochs)
        fit(alone, Batches(own, identity, "full", streams, [0.0, 0.0]), settings.epochs)
        tests = {"hard": order.rows[: cut.hard_end], "easy": order.rows[cut.easy_start :]}
        tests["full"] = torch.cat(list(tests.values()))
        for r in range(2):
            trained = learner.networks.member_state(learner.places[2 * i + r])
            for name, value in networks.member_state(r).items():
                torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)
        for name, rows in tests.items():
            right = (alone.predict(samples.inputs[rows]).argmax(-1) == samples.labels[rows]).double().mean(1)
            torch.testing.assert_close(accuracies[name][2 * i : 2 * i + 2], right)


# what is refused, and what is a fact


def _refused(capsys, code, *words):
    capsys.readouterr()
    assert main(["stragglers", *words]) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("hardbench: ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--train-ratios 1.2", "train_ratios: 1.2; a share from 0 to 1"),
        ("--train-ratios 0.5,0", "train_ratios: 0; between 0 and 1, as it leaves no training sample"),
        ("--train-ratios 1", "train_ratios: 1; between 0 and 1, as it leaves no test sample"),
        ("--train-ratios 0.001", "train_ratios: 0.001; more, as it leaves no training sample of 400"),
        ("--remaining-train-ratios 0,-0.5", "remaining_train_ratios: -0.5; a share from 0 to 1"),
        ("--remaining-train-ratios 0.1,0.1000001", "remaining_train_ratios: 0.1,0.1000001; at least a millionth apart"),
        ("--noise-ratio 2", "noise_ratio: 2; a share from 0 to 1"),
        ("--strategy enrgy", "strategy: enrgy; nearest: energy"),
        ("--strategy loss,loss", "strategy: loss,loss; each once"),
        ("--subset-size 5", "subset_size: 5; samples of every class"),
        ("--subset-size 99999", "subset_size: 99999; at most the 1797 samples"),
        ("--level sample", "level: sample; one of dataset, class"),
    ],
)
def test_settings_that_leave_nothing_are_refused_before_a_run(run, capsys, words, line):
    before = len(all_runs())
    assert _refused(capsys, 2 if "99999" not in words else 3, *TINY, *words.split()).startswith(line)
    assert len(all_runs()) == before


def test_no_complete_network_is_an_error(run, capsys):
    """Three epochs have no inversion: ten networks per set are drawn, and the run fails with one line."""
    few = ["--epochs", "3", "--if-no-inversion", "retry", "--sets", "2"]
    capsys.readouterr()
    assert main(["stragglers", *TINY, *few]) == 4
    assert "none of 20 networks has an inversion of every class in 3 epochs" in capsys.readouterr().err
    assert last().status == "FAILED"


def test_a_search_that_diverges_is_an_error(run, capsys):
    """Not a set without hard samples."""
    capsys.readouterr()
    assert main(["stragglers", *TINY, "--lr", "1e20", "--activation", "relu"]) == 4
    assert "lr: 1e+20; a smaller one" in capsys.readouterr().err
    assert last().status == "FAILED"


def test_a_data_set_that_is_hard_as_a_whole(run):
    """All labels wrong: every sample is hard for a score, and the easy test that is missing a fact."""
    words = ["--noise-ratio", "1", "--strategy", "aum", "--remaining-train-ratios", "1", "--repeats", "1"]
    assert main(["stragglers", *TINY, *words]) == 0
    table = pandas.read_csv(last().file("accuracy.csv"))
    assert table.easy.isna().all()
    assert (table.full == table.hard).all()
    assert "no easy test sample of aum, set 0" in last().tags["hardbench.facts"]


def test_what_a_set_lacks_is_a_recorded_fact(run, capsys):
    """Classes that do not invert are left out: they have no stragglers; where nothing is left to train on the accuracy is nan."""
    capsys.readouterr()
    words = ["--epochs", "30", "--if-no-inversion", "exclude", "--remaining-train-ratios", "0,1"]
    assert main(["stragglers", *TINY, *words]) == 0
    shown, facts = capsys.readouterr().err, last().tags["hardbench.facts"]
    table = pandas.read_csv(last().file("accuracy.csv"))
    assert "class inversions were not found" in facts
    assert "no hard sample of class" in facts
    assert facts.split(";")[0] in shown
    empty = table[table.train_samples == 0]
    assert empty.full.isna().all()
    assert table[table.train_samples > 0].full.notna().all()


def test_nothing_hard_at_all(run):
    """All classes left out: no hard sample, hard accuracies nan, easy ones are those of the full test."""
    words = ["--epochs", "3", "--if-no-inversion", "exclude", "--remaining-train-ratios", "0,1"]
    assert main(["stragglers", *TINY, *words]) == 0
    table = pandas.read_csv(last().file("accuracy.csv"))
    assert table.hard.isna().all()
    assert table[table.remaining == 0].full.isna().all()
    whole = table[table.remaining == 1]
    assert (whole.full == whole.easy).all()
    assert "no training sample is left" in last().tags["hardbench.facts"]


def test_networks_beyond_the_first_sets_are_drawn_until_all_are_complete(run):
    """With retry the sets are the first complete networks in the order drawn, whose indices are stored."""
    words = ["--epochs", "200", "--detector", "published", "--if-no-inversion", "retry", "--sets", "2", "--remaining-train-ratios", "1"]
    assert main(["stragglers", *TINY, *words]) == 0
    found = arrays_of(last())
    assert len(found["networks"]) == 2
    assert np.isfinite(found["inversion_epoch"]).all()


def test_the_defaults_are_those_of_the_contract():
    config = stragglers.Config()
    assert (config.dataset, config.strategy, config.train_ratios) == ("mnist", ("stragglers",), (0.9, 0.5))
    assert config.remaining_train_ratios == (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1)
    assert (config.reduce_hard, config.level, config.noise_ratio, config.subset_size) == (False, "dataset", 0, 20000)
    assert (config.sets, config.repeats, config.epochs, config.detector, config.snapshot) == (1, 3, 500, "smooth", "per_class")
    assert config.if_no_inversion == "end"


@pytest.mark.parametrize(
    ("shares", "steps"), [("0,0.05,0.125,1", [0, 5, 12, 100]), ("0,0.001,0.004,1", [0, 1, 4, 1000]), ("0.00001,0", [1, 0])]
)
def test_every_share_that_remains_has_a_step_of_its_own(shares, steps):
    """Its percent, as long as no two have the same."""
    assert stragglers.Config(remaining_train_ratios=tuple(map(float, shares.split(",")))).steps == steps


def test_shares_within_a_percent_keep_their_points(run):
    """`run` has made the project; 0.101 and 0.104 of what is left are other numbers of samples."""
    assert main(["stragglers", *TINY, "--epochs", "60", "--remaining-train-ratios", "0.101,0.104,1"]) == 0
    found = last()
    points = found.client.get_metric_history(found.id, "accuracy_full/stragglers")
    assert [point.step for point in points] == [101, 104, 1000]
