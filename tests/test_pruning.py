"""Training on a part of the samples: which ones are kept, by closed forms and through the real command line."""

import numpy as np
import pytest
import torch
from projects import all_runs, client, last, new_project

from hardbench.cli import main
from hardbench.data.pruning import rows_kept
from hardbench.data.samples import Samples
from hardbench.errors import ConfigError, DataError
from hardbench.hard_samples.recording import Recording
from hardbench.registry import SCORES
from hardbench.studies import train
from hardbench.training.setup import train_setup

NETWORK = ["--width", "16", "--depth", "1", "--lr", "0.02", "--threads", "1", "--layer-metrics", "none"]
NOISE = ["--subset-size", "400", "--noise-ratio", "0.2"]


def samples_of(count):
    return Samples.of(torch.arange(count).view(-1, 1).float(), torch.zeros(count))


def kept(keep, score, hard=None, seed=0):
    """The rows kept of samples with these scores."""
    score = torch.as_tensor(score, dtype=torch.float64)
    hard = torch.zeros(len(score), dtype=torch.bool) if hard is None else torch.as_tensor(hard)
    return rows_kept(keep, samples_of(len(score)), seed, lambda samples: (score, hard)).tolist()


SCORE = [0.5, -1.0, 3.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("keep", "rows"),
    [
        ("easy:0.4", [1, 4]),
        ("hard:0.4", [2, 3]),
        ("easy:0.6", [0, 1, 4]),
        ("hard:0.2", [2]),
        ("easy:1", [0, 1, 2, 3, 4]),
        ("hard:1.0", [0, 1, 2, 3, 4]),
    ],
)
def test_the_easiest_and_the_hardest(keep, rows):
    assert kept(keep, SCORE) == rows


def test_shares_are_rounded_and_larger_ones_contain_smaller_ones():
    score = torch.arange(400) % 3  # many equal scores
    for how in ("easy", "hard", "random"):
        smaller = set()
        for share in (0.1, 0.1037, 0.5, 0.9):
            rows = kept(f"{how}:{share}", score)
            assert len(rows) == round(share * 400)
            assert rows == sorted(rows)
            assert smaller <= set(rows)
            smaller = set(rows)


def test_equal_scores_are_kept_by_chance_and_not_by_their_place():
    """200 of 1000 equal ones: hypergeometric, mean place 499.5, standard error of a mean of 200 places 18.3."""
    rows = kept("easy:0.2", torch.zeros(1000))
    assert abs(np.mean(rows) - 499.5) < 4 * 18.3
    assert rows == kept("easy:0.2", torch.zeros(1000)) != kept("easy:0.2", torch.zeros(1000), seed=1)
    below = torch.zeros(1000)
    below[500:] = 1.0
    assert max(kept("easy:0.5", below)) == 499
    assert min(kept("hard:0.5", below)) == 500


def test_a_random_share_is_independent_of_the_score():
    rows = kept("random:0.3", torch.arange(1000))
    assert rows == kept("random:0.3", -torch.arange(1000)) == rows_kept("random:0.3", samples_of(1000), 0).tolist()
    assert rows != kept("random:0.3", torch.arange(1000), seed=1)
    shared = len(set(rows) & set(kept("easy:0.3", torch.zeros(1000))))  # of another stream: hypergeometric, mean 90, std 7.9
    assert abs(shared - 90) < 4 * 7.9


def test_unsuspected_are_those_that_are_not_hard():
    assert kept("unsuspected", [1.0, np.nan, 3.0], [True, False, False]) == [1, 2]
    with pytest.raises(DataError, match="at least one of the 2 training samples"):
        kept("unsuspected", [1.0, 2.0], [True, True])


def test_what_cannot_be_kept():
    for keep in ("easy:0.5", "hard:0.5"):
        with pytest.raises(DataError, match=r"\(2 of 4 have none\)"):
            kept(keep, [1.0, np.nan, 2.0, np.nan])
    with pytest.raises(DataError, match=r"random:0\.001; at least one of the 5"):
        kept("random:0.001", SCORE)


@pytest.mark.parametrize(
    "word", ["easy", "easy:", "easy:0", "hard:1.1", "random:nan", "random:-0.5", "soft:0.5", "unsuspected:0.5", "random:x", "0.8"]
)
def test_words_that_are_none(word):
    with pytest.raises(ConfigError, match=r"keep: .*; easy:SHARE"):
        train.Config(keep=word, hardness="last")


def test_what_is_easy_needs_a_hardness():
    for word in ("easy:0.5", "hard:0.5", "unsuspected"):
        with pytest.raises(ConfigError, match="with hardness RUN:SCORE"):
            train.Config(keep=word)
    assert train.Config(keep="random:0.5").keep == "random:0.5"


def test_keep_goes_with_everything_that_chooses_samples():
    """The rows kept are those of the samples as they would be without it; the validation split is the same."""
    common = {"subset_size": 300, "val_size": 0.2, "noise_ratio": 0.1, "class_map": {3: 0, 5: 1, 8: 2}, "seed": 3, "width": 8, "depth": 1}
    whole, part = (train_setup(train.Config(**common, keep=keep, layer_metrics=("none",))) for keep in (None, "random:0.5"))
    rows = rows_kept("random:0.5", whole.split.train, 3)
    assert (part.available, len(part.split.train)) == (240, 120)
    for name in ("inputs", "labels", "index", "clean"):
        assert torch.equal(getattr(part.split.train, name), getattr(whole.split.train, name)[rows])
        assert torch.equal(getattr(part.split.val, name), getattr(whole.split.val, name))
    mean = part.split.train.inputs.float().mean()
    assert float(part.standardise.mean) == pytest.approx(
        float(mean) / (255 if part.split.train.inputs.dtype == torch.uint8 else 1), rel=1e-5
    )
    assert part.split.digest != whole.split.digest


# through the command line


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        new_project(patch, tmp_path_factory.mktemp("project"))
        assert main(["train", *NETWORK, *NOISE, "--epochs", "3", "--repeats", "2", "--val-size", "0.1", "--record-dynamics"]) == 0
        yield last()


def recording_of(run):
    with np.load(run.file("dynamics.npz"), allow_pickle=False) as found:
        return dict(found)


def test_the_easiest_half_is_trained_on_and_goes_on(recorded, capsys):
    """The samples are those that the recording says, the run tells how many, and a run that failed goes on with the same."""
    line = ["train", *NETWORK, *NOISE, "--val-size", "0.1", "--epochs", "2", "--record-dynamics"]
    assert main([*line, "--hardness", f"{recorded.id[:8]}:aum", "--keep", "easy:0.5"]) == 0
    run = last()
    assert "trained on 180 of 360 training samples (easy:0.5 by aum of run " in capsys.readouterr().out
    known = recording_of(recorded)
    score = SCORES["aum"].call(Recording.of(known)).mean(0).numpy()
    assert len(set(score)) == len(score)
    easiest = np.sort(known["index"][np.argsort(score)[:180]])
    before = recording_of(run)
    np.testing.assert_array_equal(before["index"], easiest)
    assert (run.tags["hardbench.kept"], run.tags["hardbench.source_run"]) == ("180 of 360", recorded.id)
    assert "kept 180 of 360 training samples: easy:0.5 by aum of run" in run.tags["mlflow.note.content"]
    assert (run.config["keep"], run.params["keep"]) == ("easy:0.5", "easy:0.5")
    assert run.arrays["confusion_train_easy"][0, 0].sum() + run.arrays.get("confusion_train_hard", np.zeros((1, 1)))[0, 0].sum() == 180
    client().set_terminated(run.id, "FAILED")
    assert main(["resume", run.id[:8]]) == 0
    np.testing.assert_equal(recording_of(last()), before)
    assert main(["eval", run.id, "--threads", "1"]) == 0
    assert main(["mask-mi", run.id, "--threads", "1", "--n-subsets", "4", "--images", "50"]) == 0


def test_unsuspected_does_not_look_at_the_truth(recorded):
    line = ["train", *NETWORK, *NOISE, "--val-size", "0.1", "--epochs", "1", "--hardness", recorded.id, "--keep", "unsuspected"]
    assert main(line) == 0
    known = recording_of(recorded)
    wrong = (known["logits"][:, -1].argmax(-1) != known["labels"]).mean(0) >= 0.5
    assert last().tags["hardbench.kept"] == f"{(~wrong).sum()} of 360"
    assert "confusion_train_hard" not in last().arrays


def test_samples_that_the_run_does_not_know_are_refused(recorded, capsys):
    before = last().id
    assert main(["train", *NETWORK, "--hardness", f"{recorded.id}:aum", "--keep", "easy:0.5"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "1077 of 1437 it does not" in line
    assert last().id == before


def test_other_labels_are_told(recorded, capsys):
    line = ["train", *NETWORK, "--subset-size", "400", "--val-size", "0.1", "--epochs", "1"]
    assert main([*line, "--hardness", f"{recorded.id}:aum", "--keep", "hard:1"]) == 0
    assert "72 of the 360 samples kept have other labels in run" in capsys.readouterr().err


def test_a_sweep_over_keep(recorded):
    """A random share is one cell whatever the scores beside it, and its networks from a stack are those of a run of their own."""
    line = ["train", *NETWORK, *NOISE, "--val-size", "0.1", "--epochs", "1", "--repeats", "2", "--eval-points", "1"]
    scores = f"{recorded.id[:8]}:aum,{recorded.id[:8]}:loss"
    words = ["--hardness", scores, "--keep", "easy:0.2,random:0.5"]
    assert main(["sweep", *line, *words, "--workers", "1"]) == 0
    cells = {run.name: run for run in all_runs() if "hardbench.cell" in run.tags}
    assert len(cells) == 3
    assert cells["random:0.5"].tags["hardbench.kept"] == "180 of 360"
    assert cells["random:0.5"].config["hardness"] is None
    assert {cells[f"{recorded.id[:8]}:{score} easy:0.2"].tags["hardbench.kept"] for score in ("aum", "loss")} == {"72 of 360"}
    parent = next(run for run in all_runs() if run.study == "sweep")
    assert parent.has("figures/accuracy_vs_kept.png")
    shares = dict(zip(parent.arrays["setting_keep"], parent.arrays["kept"], strict=True))
    assert (shares["easy:0.2"], shares["random:0.5"]) == (0.2, 0.5)
    assert main([*line, "--keep", "random:0.5"]) == 0
    alone, cell = last(), cells["random:0.5"]
    assert alone.tags["hardbench.data_digest"] == cell.tags["hardbench.data_digest"]
    np.testing.assert_array_equal(alone.arrays["accuracy"], cell.arrays["accuracy"])
