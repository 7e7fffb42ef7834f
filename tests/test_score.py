"""`hardbench score` through the real command line: scores, judgement, joins, influence, comparisons, what is refused and what goes on."""

import hashlib
import os
import signal

import numpy as np
import pandas
import pytest
import torch
from projects import all_runs, last, new_project, started, wait_for_step
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from hardbench import score_runs, tracking
from hardbench.cli import main
from hardbench.hard_samples import scoring
from hardbench.hard_samples.recording import Recording
from hardbench.studies import train
from hardbench.training.setup import split_of

PLANT = ["--plant", "mislabel:0.1,corrupt:0.1"]
DATA = ["--dataset", "digits", "--subset-size", "300", "--threads", "1"]
TRAIN = ["train", *DATA, "--width", "16", "--layer-metrics", "none", "--record-dynamics"]
SEARCH = ["invert", *DATA, "--epochs", "30", "--lr", "0.5", "--pool", "train"]


def arrays_of(run, name):
    with np.load(run.file(name), allow_pickle=False) as found:
        return dict(found)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three networks on shares of planted digits, two searches for stragglers on the same samples, and their scores."""
    with pytest.MonkeyPatch.context() as patch:
        new_project(patch, tmp_path_factory.mktemp("project"))
        assert main([*TRAIN, *PLANT, "--epochs", "3", "--repeats", "3", "--train-share", "0.6", "--record-test"]) == 0
        trained = last()
        assert main([*SEARCH, *PLANT, "--repeats", "2"]) == 0
        inverted = last()
        assert main(["score", trained.id, inverted.id[:8], "--out", "copy"]) == 0
        yield trained, inverted, last()


def test_a_run_is_finished_with_everything_it_promises(runs):
    trained, inverted, run = runs
    assert (run.status, run.study) == ("FINISHED", "score")
    assert run.tags["hardbench.source_run"] == f"{trained.id},{inverted.id}"
    for name in ("scores.npz", "scores.csv", "detection.csv", "agreement.csv", "classes.csv", "influence.npz", "config.yaml"):
        assert run.has(name), name
    figures = {path.name for path in run.file("figures").iterdir()}
    assert {"data_map.png", "detection_by_type.png", "agreement_of_scores.png", "score_stability.png", "hardest.png"} <= figures
    assert not run.has("checkpoints")
    assert (run.file("..") / ".." / ".." / ".." / "copy" / "scores.csv").resolve().is_file()
    missing = dict(zip(run.arrays["missing_scores"], run.arrays["missing_why"], strict=True))
    assert missing == {}  # everything was recorded, and prediction depth is only for those who name it
    assert "prediction_depth" not in run.arrays["score_names"]


def test_scores_are_those_of_the_recording(runs):
    trained, inverted, run = runs
    recording, arrays = Recording.of(arrays_of(trained, "dynamics.npz")), run.arrays
    names = [str(name) for name in arrays["score_names"] if name != "stragglers"]
    for name, value in scoring.values(recording, names).items():
        np.testing.assert_allclose(arrays[name], value.numpy().astype(np.float32), err_msg=name)
    table = pandas.read_csv(run.file("scores.csv"))
    assert len(table) == 300
    np.testing.assert_array_equal(table["index"], recording.index)
    mean = scoring.values(recording, ["aum"])["aum"].mean(0).numpy()
    np.testing.assert_allclose(table.aum, mean, rtol=1e-6)
    np.testing.assert_array_equal(table.aum_rank, rankdata(-mean, "min"))
    np.testing.assert_array_equal(table.memorization.isna(), np.isnan(arrays["memorization"]))
    assert (table.memorization_rank.isna() == table.memorization.isna()).all()
    assert {"mislabel", "corrupt"} == set(table.planted.dropna())
    assert ((table.label != table.clean) == (table.planted == "mislabel")).all()
    searched = arrays_of(inverted, "stragglers.npz")
    places = {index: place for place, index in enumerate(searched["index"])}
    np.testing.assert_array_equal(arrays["stragglers"], searched["stragglers"][:, [places[i] for i in recording.index.tolist()]])


def test_detection_is_judged_with_the_planted_type_as_positives(runs):
    run = runs[2]
    arrays, table = run.arrays, pandas.read_csv(run.file("detection.csv"))
    assert arrays["detection_types"].tolist() == ["mislabel", "corrupt"]
    np.testing.assert_allclose(arrays["detection_base_rate"], 30 / 270)
    for kind, code in (("mislabel", 1), ("corrupt", 4)):
        rows = np.isin(arrays["planted"], (0, code))
        losses = arrays["mean_loss"].astype(float)
        found = table[(table.score == "mean_loss") & (table.type == kind)].set_index("repeat")
        expected = average_precision_score(arrays["planted"][rows] == code, losses.mean(0)[rows])
        assert found.average_precision["all"] == pytest.approx(expected, rel=1e-5)
        assert found.average_precision["2"] == pytest.approx(average_precision_score(arrays["planted"][rows] == code, losses[2][rows]))
        assert found.low["all"] < found.average_precision["all"] < found.high["all"]
        assert found.stderr["all"] == pytest.approx(found.average_precision[["0", "1", "2"]].std() / np.sqrt(3), rel=1e-5)
        assert run.metrics[f"average_precision/{kind}/mean_loss"] == pytest.approx(expected, rel=1e-5)
        assert run.metrics[f"average_precision/{kind}/stragglers_stderr"] > 0
    assert run.metrics["base_rate/corrupt"] == pytest.approx(30 / 270)
    assert (table[table.score == "consistency"].n < 270).all()  # nan for samples that every network trained on
    assert set(table[table.score == "memorization"].repeat) == {"all"}
    assert {"confident_learning", "confident_learning_recall"} <= arrays.keys()


def test_influence_is_that_of_the_memberships(runs):
    trained, _, run = runs
    recorded, found = arrays_of(trained, "dynamics.npz"), arrays_of(run, "influence.npz")
    right = recorded["test_logits"][:, -1].argmax(-1) == recorded["test_labels"]
    j, i = 5, int(found["influence_train"][5, 0])
    inside = recorded["membership"][:, i]
    assert found["influence"][j, 0] == pytest.approx(right[inside, j].mean() - right[~inside, j].mean())
    np.testing.assert_array_equal(found["influence_test_labels"], recorded["test_labels"])


def test_the_gallery_has_the_inputs_of_the_samples(runs):
    trained, _, run = runs
    arrays = run.arrays
    rows = arrays["gallery"][list(arrays["score_names"]).index("mean_loss")]
    assert rows.shape == (10, 12)
    means = arrays["mean_loss"].mean(0)
    for c in range(10):
        own = np.flatnonzero(arrays["labels"] == c)
        assert set(rows[c]) == set(own[np.argsort(-means[own])[:12]])
    assert arrays["gallery_inputs"].shape == (len(arrays["gallery_rows"]), 1, 8, 8)
    logits = arrays_of(trained, "dynamics.npz")["logits"]
    np.testing.assert_array_equal(arrays["predicted"], logits[:, -1].mean(0).argmax(-1))


def test_named_scores_and_what_they_lack(runs, capsys):
    """A run without shares of the samples has no memorization; the newest recording is `last`."""
    before = len(all_runs())
    assert main([*TRAIN, "--epochs", "1", "--record-points", "last", "--noise-ratio", "0.1"]) == 0
    trained = last()
    capsys.readouterr()
    for name, why in (
        ("memorization", "needs --train-share"),
        ("forgetting", "needs two recorded points"),
        ("disagreement", "needs --repeats 2"),
    ):
        assert main(["score", trained.id, "--score", f"loss,{name}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"hardbench: score: {name}; one that {trained.id[:8]} allows, as this one {why}") and error.count("\n") == 1
    assert len(all_runs()) == before + 1
    assert main(["score", "--score", "loss,prediction_depth"]) == 0
    arrays = last().arrays
    assert set(arrays["prediction_depth"].flat) <= {0, 1, 2} and arrays["prediction_depth"].shape == (1, 300)
    assert arrays["detection_types"].tolist() == ["wrong_label"]  # of noise_ratio
    assert main(["score", "--score", "nonsense"]) == 2
    assert capsys.readouterr().err.startswith("hardbench: score: nonsense; ")


def test_a_part_of_the_samples_has_its_inputs_too(runs, monkeypatch):
    """`--keep` records the samples kept alone. The data are read once for all networks, two in a run, and for the galleries."""
    assert main([*TRAIN, *PLANT, "--epochs", "1", "--repeats", "2", "--keep", "random:0.5"]) == 0
    trained, read = last(), []
    monkeypatch.setattr(score_runs, "split_of", lambda *settings: read.append(settings) or split_of(*settings))
    assert main(["score", trained.id, "--score", "loss,prediction_depth"]) == 0
    arrays = last().arrays
    assert arrays["prediction_depth"].shape == (2, 150) and len(read) == 1
    inputs = torch.from_numpy(arrays["gallery_inputs"])
    digests = [hashlib.blake2b(each.numpy().tobytes(), digest_size=8).digest() for each in inputs]
    np.testing.assert_array_equal(np.frombuffer(b"".join(digests), np.int64), arrays["fingerprint"][arrays["gallery_rows"]])


def test_runs_on_other_samples_are_refused(runs, capsys):
    trained, inverted, _ = runs
    assert main([*SEARCH, *PLANT, "--repeats", "1", "--seed", "1"]) == 0
    other = last()
    assert main([*TRAIN, "--epochs", "1"]) == 0
    clean, before = last(), len(all_runs())
    capsys.readouterr()
    for words, code, said in (
        ([trained.id, other.id], 3, "runs: "),
        ([clean.id, inverted.id], 3, f"runs: {inverted.id}; a run on the same samples, and "),
        ([inverted.id], 2, f"runs: {inverted.id}; a run of train --record-dynamics among them"),
        (["nonsense"], 5, "run: nonsense; a run id"),
        ([trained.id, trained.id], 2, "runs: "),
    ):
        assert main(["score", *words]) == code
        error = capsys.readouterr().err
        assert error.startswith(f"hardbench: {said}") and error.count("\n") == 1, error
    assert len(all_runs()) == before


# recordings made by hand, in projects of their own


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


def made(dataset="npz:nowhere.npz", draw=0, networks=slice(0, 1), ended=None, **more):
    """A finished training with the recording of some of four networks of a data set that is not there, in which twelve labels are wrong.

    `ended`: the step at which the last of them reached its target, the one that is recorded.
    """
    rng = np.random.default_rng(draw)
    labels, planted = rng.integers(0, 3, 60), (np.arange(60) < 12).astype(np.int64)
    logits = rng.normal(size=(4, 3, 60, 3)).astype(np.float32)
    logits[..., np.arange(60), labels] += 1.5 * (1 - planted)
    arrays = {"logits": logits[networks], "membership": (rng.random((4, 60)) < 0.5)[networks], "labels": labels, "planted": planted}
    arrays |= {"clean": np.where(planted, (labels + 1) % 3, labels), "index": np.arange(60), "fingerprint": rng.integers(0, 2**62, 60)}
    arrays |= {"steps": np.array([2, 4, 6]), "epochs": np.arange(1.0, 4), "class_names": np.array(["a", "b", "c"])}
    settings = {"dataset": dataset, "record_dynamics": True, "repeats": len(logits[networks]), "first_repeat": networks.start}
    if ended is not None:
        arrays |= {"logits": logits[networks, -1:], "steps": np.array([ended]), "epochs": np.array([ended / 2])}
        settings |= {"record_points": "last"}
    with tracking.start("train", train.Config(**settings, **more), "title", "note") as run:
        run.write_arrays("dynamics.npz", arrays, compressed=False)
    return run.id


def test_networks_of_several_runs_are_repeats_of_one_recording(project):
    """The first two networks, and the last two by themselves: the same scores as of all four in one run."""
    parts = [made(networks=slice(0, 2)), made(networks=slice(2, 4), name="another name")]
    assert main(["score", *parts, "--score", "aum,memorization,random"]) == 0
    arrays = last().arrays
    assert arrays["recordings"].tolist() == [f"{parts[0][:8]}+1"]
    whole = made(networks=slice(0, 4))
    assert main(["score", whole, "--score", "aum,memorization,random"]) == 0
    for name in ("aum", "memorization", "random"):
        np.testing.assert_array_equal(arrays[name], last().arrays[name])
    assert main(["score", parts[0], whole, "--score", "aum"]) == 0  # network 0 is in both: two recordings of one data set
    assert last().has(f"{whole[:8]}/scores.csv")


def test_networks_that_ended_at_other_steps_are_repeats_too(project):
    parts = [made(networks=slice(0, 2), ended=4), made(networks=slice(2, 4), ended=6)]
    assert main(["score", *parts, "--score", "memorization,loss"]) == 0
    assert last().arrays["recordings"].tolist() == [f"{parts[0][:8]}+1"]
    assert last().arrays["loss"].shape == (4, 60)


def test_networks_that_are_gone_are_refused_before_there_is_a_run(project, capsys):
    """Neither data nor checkpoints; then checkpoints, of which data are asked next."""
    trained = made()
    words = ["score", trained, "--score", "loss,prediction_depth"]
    assert main(words) == 2
    assert capsys.readouterr().err == f"hardbench: score: prediction_depth; a run that has kept its checkpoints, unlike {trained}\n"
    folder = last().file("dynamics.npz").parent / "checkpoints"
    folder.mkdir()
    (folder / "last.pt").touch()
    assert main(words) == 3
    error = capsys.readouterr().err
    assert "nowhere.npz" in error and error.count("\n") == 1
    assert len(all_runs()) == 1


def test_a_run_that_failed_goes_on(project, monkeypatch):
    words = ["score", made(networks=slice(0, 3)), "--score", "aum,loss,memorization", "--format", "csv,jsonl"]
    assert main(words) == 0
    expected, write = last(), tracking.Run.write_text

    def full(self, name, text):
        if name == "agreement.csv":
            raise OSError(28, "No space left on device")
        write(self, name, text)

    with monkeypatch.context() as patch:
        patch.setattr(tracking.Run, "write_text", full)
        assert main(words) == 5
    assert (last().status, last().has("detection.csv")) == ("FAILED", False)
    assert main(["resume", last().id]) == 0
    run = last()
    assert run.status == "FINISHED" and not run.has("checkpoints")
    for name in ("detection.csv", "scores.csv", "agreement.csv", "training_dynamics/dynamics_epoch_2.jsonl"):
        assert run.file(name).read_bytes() == expected.file(name).read_bytes()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(run.arrays[name], array, err_msg=name)


def test_five_data_sets_are_compared(project, capsys):
    ids = [made(f"npz:{number}.npz", draw) for draw, number in enumerate((0, 1, 2, 3, 4, 0))]
    assert main(["score", *ids, "--score", "mean_loss,aum,random"]) == 0
    arrays = last().arrays
    assert int(arrays["friedman_blocks"]) == 5 and arrays["friedman_ranks"].shape == (1, 3)
    assert arrays["friedman_ranks"].sum() == pytest.approx(6)
    both = [arrays, last().archive(f"{ids[5][:8]}/scores.npz")]
    np.testing.assert_allclose(arrays["friedman_ap"][0, 0], np.mean([part["detection_ap"][:, 0] for part in both], axis=0))
    assert "lowest mean ranks over 5 data sets: mislabel: " in capsys.readouterr().out
    assert last().has("figures/critical_difference.png")


def test_fewer_data_sets_have_tables_of_their_own(project, capsys):
    ids = [made("npz:0.npz", 0), made("npz:1.npz", 1)]
    assert main(["score", *ids, "--score", "mean_loss,random"]) == 0
    said = capsys.readouterr()
    assert "mean ranks are compared over 5 data sets or more, and there are 2; every recording has its own tables" in said.err
    assert "no gallery of inputs" in said.err
    assert f", {ids[1][:8]}" in said.out and "friedman_p" not in last().arrays
    assert main(["score", *ids, "--score", "aum", "--scores-from", "x.csv", "--direction", "harder"]) == 2
    assert main(["sweep", "score", "--runs", f"{ids[0][:9]};{ids[1]}", "--score", "aum", "--workers", "1"]) == 0
    cells = [run for run in all_runs() if run.tags.get("hardbench.kind") == "cell"]
    assert sorted(run.tags["hardbench.source_run"] for run in cells) == sorted(ids)


def test_a_killed_training_is_scored_as_far_as_it_came(project, monkeypatch, capsys):
    folder = project
    words = [*TRAIN, *PLANT, "--epochs", "4000", "--checkpoint-every", "1"]
    process = started(folder, *words)
    wait_for_step(folder, 10, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    (trained,) = all_runs()
    assert main(["score", trained.id, "--score", "mean_loss,random"]) == 0
    said = capsys.readouterr().err
    assert "scored as far as it goes, epoch " in said and " of 4000" in said
    points = sorted(path.name for path in trained.file("dynamics").glob("[0-9]*.npy"))
    assert last().arrays["mean_loss"].shape == (1, 300) and len(points) >= 1
