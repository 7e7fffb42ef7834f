"""Recorded dynamics and the hardness they hand on: through the real command line, bit for bit under resume, refused on other data."""

import os
import shutil
import signal

import numpy as np
import pytest
import torch
from projects import empty_store, last, new_project, started, wait_for_step
from setups import TEST, TRAIN, images_in_classes

from hardbench import artifacts, hardness_runs, tracking
from hardbench.cli import main
from hardbench.data.samples import Samples
from hardbench.errors import ConfigError, DataError
from hardbench.hard_samples import recorder, sample_hardness, scoring
from hardbench.hard_samples.recording import Recording
from hardbench.hard_samples.scoring import lacking, values
from hardbench.hard_samples.selection import hardest
from hardbench.registry import SCORES
from hardbench.studies import sweep, train

SMALL = ["--batch-size", "13", "--width", "20", "--depth", "1", "--threads", "1", "--layer-metrics", "none"]


def _images(folder):
    """Images with every seventh label wrong, so that some samples stay hard."""
    path = folder / "images.npz"
    images_in_classes(path)
    arrays = dict(np.load(path, allow_pickle=False))
    arrays["y_train"] = np.where(np.arange(TRAIN) % 7 == 0, (arrays["y_train"] + 1) % 3, arrays["y_train"])
    arrays["y_test"] = np.where(np.arange(TEST) % 7 == 0, (arrays["y_test"] + 1) % 3, arrays["y_test"])
    np.savez(path, **arrays)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = new_project(patch, tmp_path_factory.mktemp("project"))
        line = ["train", "--dataset", _images(folder), *SMALL, "--epochs", "4", "--repeats", "2", "--val-size", "0.2", "--record-dynamics"]
        assert main([*line, "--noise-ratio", "0.1"]) == 0
        yield last()


def _arrays(run, name="dynamics.npz"):
    with np.load(run.file(name), allow_pickle=False) as found:
        return dict(found)


def test_dynamics_are_the_logits_of_the_training_set(recorded):
    found, held = _arrays(recorded), round(0.2 * TRAIN - 0.5)
    count = TRAIN - held
    assert found["logits"].shape == (2, 4, count, 3)
    assert found["logits"].dtype == np.float32
    assert found["epochs"].tolist() == [1, 2, 3, 4]
    assert found["steps"][-1] == recorded.arrays["steps"][-1]
    assert len(set(found["index"])) == count
    assert (found["labels"] != found["clean"]).sum() == int(0.1 * count)
    config = train.Config.read({}, recorded.config)
    split = train.prepare(config).setup.split
    np.testing.assert_array_equal(found["index"], split.train.index)
    state = torch.load(recorded.file("checkpoints/last.pt"), weights_only=True)
    setup = train.prepare(config).setup
    setup.learner.networks.load_states(state["networks"])
    logits = setup.learner.predict(setup.standardise(split.train.inputs, 255.0))
    np.testing.assert_allclose(found["logits"][:, -1], logits, rtol=1e-4, atol=1e-5)


def test_every_score_of_logits_reads_the_recording(recorded):
    dynamics = Recording.of(_arrays(recorded))
    names = [name for name in SCORES if lacking(dynamics, name) is None]
    assert {"loss", "aum", "forgetting", "el2n", "disagreement", "random"} <= set(names)
    for name, score in values(dynamics, names).items():
        assert score.shape == (2, len(dynamics.labels))[2 - score.ndim :], name
        assert score.isfinite().all(), name
    wrong = dynamics.logits[:, -1].argmax(-1) != dynamics.labels
    assert torch.equal(SCORES["wrong_at_end"].call(dynamics), wrong.double())


def test_a_recording_goes_on_after_a_kill(monkeypatch, tmp_path):
    folder = new_project(monkeypatch, tmp_path / "project")
    line = ["train", "--dataset", _images(folder), *SMALL, "--epochs", "30", "--repeats", "2", "--record-dynamics"]
    line += ["--train-share", "0.8", "--record-test"]
    assert main(line) == 0
    whole = last()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(empty_store(), other / "mlflow.db")
    process = started(other, *line, "--checkpoint-every", "0")
    wait_for_step(other, 30, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{other}/mlflow.db")
    tracking.connect()
    assert last().status == "KILLED"
    expected, found = _arrays(whole), recorder.read(last().file("dynamics"))
    count = len(found["steps"])
    assert 0 < count <= 30
    for name, array in found.items():
        axis = artifacts.axes_of("dynamics.npz", name).find("T")
        np.testing.assert_array_equal(array, expected[name] if axis < 0 else expected[name].take(range(count), axis), err_msg=name)
    assert main(["resume", "last"]) == 0
    assert last().file("dynamics.npz").read_bytes() == whole.file("dynamics.npz").read_bytes()
    assert not last().has("dynamics")


# the hand-over


def test_train_splits_its_metrics(recorded):
    noisy = ["--val-size", "0.2", "--noise-ratio", "0.1"]
    line = ["train", "--dataset", recorded.config["dataset"], *SMALL, "--epochs", "2", "--repeats", "2"]
    assert main([*line, *noisy, "--hardness", f"{recorded.id[:8]}:loss"]) == 0
    run = last()
    assert run.tags["hardbench.source_run"] == recorded.id
    assert run.config["hardness"] == f"{recorded.id}:loss"
    known = hardness_runs.read_hardness(f"{recorded.id}:loss")
    hard, easy = known.hard.sum(), (~known.hard).sum()
    counts = {group: run.arrays[f"confusion_train_{group}"][0, 0].sum() for group in ("hard", "easy")}
    assert counts == {"hard": hard, "easy": easy}
    whole = run.arrays["confusion_train_hard"] + run.arrays["confusion_train_easy"]
    both = (hard * run.arrays["accuracy_train_hard"] + easy * run.arrays["accuracy_train_easy"]) / (hard + easy)
    np.testing.assert_allclose(both, whole.trace(axis1=-2, axis2=-1) / (hard + easy))
    assert run.metrics["train/loss_hard"] > run.metrics["train/loss_easy"]
    assert run.metrics["final/train_accuracy_easy"] == pytest.approx(run.arrays["accuracy_train_easy"][:, -1].mean())
    assert "class_accuracy_train_easy/01" in run.metrics
    assert "test/accuracy_hard" not in run.metrics  # the recording knows no test sample
    assert main([*line, *noisy, "--hardness", "last"]) == 0  # the newest run that has a recording
    assert last().config["hardness"] == recorded.id
    np.testing.assert_array_equal(run.arrays["accuracy"], last().arrays["accuracy"])


def test_a_sweep_means_the_run_that_is_last_now(recorded):
    """By its id, so that the cells' hashes do not name another run tomorrow."""
    words = {"dataset": ("digits",), "lr": (0.1, 0.01), "hardness": ("last:loss",)}
    cells, swept = sweep.cells_of(sweep.Config(**words))
    assert [config.hardness for config in cells] == [hardness_runs.pinned_hardness("last:loss")] * 2
    assert "last" not in cells[0].hardness
    assert swept == ["lr"]


def test_metrics_are_split_on_a_subset_by_original_index(recorded):
    """Another subset, without validation: the samples that both know are split, each as the recording has it."""
    line = ["train", "--dataset", recorded.config["dataset"], *SMALL, "--epochs", "1", "--subset-size", "40", "--seed", "3"]
    assert main([*line, "--hardness", recorded.id]) == 0
    known = hardness_runs.read_hardness(recorded.id)
    here = train.prepare(train.Config.read({}, last().config)).setup.split.train.index.numpy()
    hard = set(known.index[known.hard]) & set(here)
    easy = set(known.index[~known.hard]) & set(here)
    assert 0 < len(hard) + len(easy) < 40
    for group, expected in (("hard", hard), ("easy", easy)):
        if expected:
            assert last().arrays[f"confusion_train_{group}"][0, 0].sum() == len(expected)


def _refused(capsys, code, *words):
    capsys.readouterr()
    assert main(list(words)) == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_what_cannot_be_split_is_one_line(recorded, capsys, tmp_path):
    line = ["train", *SMALL, "--epochs", "1", "--dataset", recorded.config["dataset"]]
    images = dict(np.load(recorded.config["dataset"].removeprefix("npz:"), allow_pickle=False))
    images["x_train"] = images["x_train"][::-1]
    np.savez(tmp_path / "other.npz", **images)
    before = last().id
    assert "others)" in _refused(capsys, 3, *line[:-1], f"npz:{tmp_path / 'other.npz'}", "--hardness", recorded.id)
    assert "others)" in _refused(capsys, 3, *line[:-1], "digits", "--hardness", recorded.id)
    assert "nearest: energy" in _refused(capsys, 2, *line, "--hardness", f"{recorded.id}:enrgy")
    assert "a run id" in _refused(capsys, 5, *line, "--hardness", "zzz")
    assert last().id == before
    assert main(line) == 0
    assert "--record-dynamics" in _refused(capsys, 2, *line, "--hardness", last().id)


def test_test_samples_count_after_train_samples():
    samples = Samples.of(torch.arange(12).view(6, 2).float(), torch.zeros(6))
    prints = samples.fingerprints.numpy()
    known = sample_hardness.Hardness("run", np.array([7, 2, 3]), np.array([True, False, True]), np.zeros(3), prints[[3, 2, 3]])
    rows, hard = known.match(samples, 4)
    assert (rows.tolist(), hard.tolist()) == ([3], [True])
    rows, hard = known.match(samples.pick(torch.tensor([3, 0, 2])))
    assert (rows.tolist(), hard.tolist()) == ([0, 2], [True, False])
    with pytest.raises(DataError, match="of 2 samples 2 are others"):
        known.match(Samples.of(samples.inputs.flip(0), samples.labels).pick(torch.tensor([2, 3, 5])))


def recording(**more):
    """Two networks at one point, five samples of three classes; wrong: 2 and 4 of the first network, 1, 2 and 4 of the second."""
    predicted = torch.tensor([[0, 1, 0, 0, 0], [0, 2, 1, 0, 2]])
    sure = torch.tensor([[1.0, 5.0, 2.0, 3.0, 4.0], [2.0, 1.0, 6.0, 5.0, 3.0]])
    logits = (torch.nn.functional.one_hot(predicted, 3) * sure[:, :, None])[:, None].float().numpy()
    arrays = {"logits": logits, "labels": np.array([0, 1, 2, 0, 1]), "steps": np.array([7]), "index": np.arange(5)}
    return arrays | {"fingerprint": np.arange(5)} | more


def hard_by(score, study="train", **more):
    known = sample_hardness.read(study, "a" * 32, recording(**more), score)
    return known.hard.nonzero()[0].tolist(), known.score


def test_as_many_are_hard_as_are_misclassified():
    """By confidence (minus the largest logit) the networks call {0, 2} and {1, 0, 4} hard; both call 0, and half is enough."""
    assert hard_by(None)[0] == hard_by("wrong_at_end")[0] == [1, 2, 4]
    hard, score = hard_by("confidence")
    np.testing.assert_allclose(score, [-1.5, -3, -4, -4, -3.5])
    assert hard == [0, 1, 2, 4]
    hard, score = hard_by("random")  # of all networks together: the mean number, 2.5, rounded to 2
    assert hard == sorted(np.argsort(-score)[:2].tolist())


def test_confident_learning_says_what_is_hard_by_its_scores():
    membership = np.array([[True, False, False, True, False], [False, True, True, True, False]])
    expected = scoring.confident_learning(Recording.of(recording(membership=membership))).nonzero().flatten().tolist()
    assert expected
    for name in ("self_confidence", "normalised_margin"):
        hard, score = hard_by(name, membership=membership)
        assert hard == expected
        assert np.isnan(score).tolist() == [False, False, False, True, False]  # every network trained on sample 3


@pytest.mark.parametrize(
    ("score", "text"),
    [("stragglers", "wrong_at_end of this run"), ("memorization", "needs --train-share"), ("prediction_depth", "score prediction_depth")],
)
def test_scores_that_a_recording_cannot_give(score, text):
    with pytest.raises(ConfigError, match=text):
        hard_by(score)


def test_the_scores_of_a_score_run():
    """Prediction depth is read from one; without wrong_at_end the predictions of all networks together say how many are hard."""
    depth = np.array([[0.0, 2, 1, 0, 3], [0, 1, 2, 3, 0]])
    stored = {"score_names": np.array(["prediction_depth", "self_confidence"]), "prediction_depth": depth}
    stored |= {"self_confidence": np.array([0.1, 0.2, np.nan, 0.4, 0.9]), "confident_learning": np.array([0, 0, 0, 1, 0], dtype=bool)}
    stored["predicted"] = np.array([0, 2, 1, 0, 1])  # two are wrong
    hard, score = hard_by("prediction_depth", "score", **stored)
    assert hard == [1, 2, 3, 4]
    np.testing.assert_array_equal(score, depth.mean(0))
    assert hard_by("self_confidence", "score", **stored)[0] == [3]
    wrong = np.array([[0.0, 0, 0, 0, 1], [0, 0, 0, 1, 0]])
    named = {"score_names": np.array(["prediction_depth", "wrong_at_end"]), "wrong_at_end": wrong}
    assert hard_by("prediction_depth", "score", **stored | named)[0] == [3, 4]
    assert hard_by(None, "score", **stored | named)[0] == [3, 4]
    with pytest.raises(ConfigError, match="one of its scores: prediction_depth, self_confidence"):
        hard_by("aum", "score", **stored)
    elsewhere = {name: array for name, array in (recording() | stored).items() if name != "fingerprint"}
    with pytest.raises(ConfigError, match="recording from elsewhere"):
        sample_hardness.read("score", "a" * 32, elsewhere, "self_confidence")


def test_stragglers_of_a_score_run_are_those_of_half_of_its_networks():
    """Of three networks of a search, beside two of the training: their number says nothing of which network is which."""
    found = np.array([[1.0, 0, 1, 0, 0], [1, 0, 0, 0, 1], [0, 0, 1, 0, np.nan]])
    wrong = np.array([[0.0, 0, 0, 0, 1], [0, 0, 0, 1, 0]])
    stored = {"score_names": np.array(["stragglers", "wrong_at_end"]), "stragglers": found, "wrong_at_end": wrong}
    hard, score = hard_by("stragglers", "score", **stored)
    assert hard == [0, 2, 4]
    np.testing.assert_allclose(score, [2 / 3, 0, 2 / 3, 0, 0.5])


def test_samples_without_a_score_are_never_hard():
    score = torch.tensor([torch.nan, 1.0, 3.0, torch.nan])
    assert hardest(score, 1).tolist() == [False, False, True, False]
    assert hardest(score, 4).tolist() == [False, True, True, False]
