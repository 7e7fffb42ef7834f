"""`hardbench score` on what others have: recordings of plain PyTorch loops, probabilities of cleanlab's users, scores in CSV files."""

import json

import numpy as np
import pandas
import pytest
import torch
from projects import all_runs, last, new_project
from scipy.special import log_softmax

from hardbench.cli import main

N, K, T = 40, 3, 4


@pytest.fixture(scope="module")
def loop():
    """What a plain PyTorch loop has: a list of logits after every epoch, inputs in the order of the data set; ten wrong labels."""
    torch.manual_seed(0)
    labels = torch.arange(N) % K
    inputs = torch.randn(N, 5) + 2 * torch.nn.functional.one_hot(labels, 5)
    given = torch.where(torch.arange(N) < 10, (labels + 1) % K, labels)
    model = torch.nn.Linear(5, K)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    recorded = []
    for _ in range(T):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), given).backward()
        optimizer.step()
        recorded.append(model(inputs).detach().numpy())
    return {"logits": np.stack(recorded), "labels": given.numpy(), "planted": (torch.arange(N) < 10).numpy()}


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


def saved(**arrays):
    np.savez("file.npz", **arrays)
    return "file.npz"


def test_a_plain_loop_is_scored_without_a_run(project, loop):
    """Scores by their formulas, written out here; the type that has no name is a number."""
    assert main(["score", "--recording", saved(**loop)]) == 0
    run = last()
    assert (run.status, run.study, len(all_runs())) == ("FINISHED", "score", 1)
    table = pandas.read_csv(run.file("scores.csv"))
    losses = -log_softmax(loop["logits"].astype(float), -1)[:, np.arange(N), loop["labels"]]
    np.testing.assert_allclose(table.mean_loss, losses.mean(0), rtol=1e-5)
    np.testing.assert_allclose(table.loss, losses[-1], rtol=1e-5)
    others = np.where(np.arange(K) == loop["labels"][:, None], -np.inf, loop["logits"]).max(-1)
    margins = loop["logits"][:, np.arange(N), loop["labels"]] - others
    np.testing.assert_allclose(table.aum, -margins.mean(0), atol=1e-5)
    assert table["index"].tolist() == list(range(N))
    assert set(table.planted.dropna()) == {"planted_1"} and table.planted.notna().sum() == 10
    assert {"index", "label", "planted", "aum", "aum_rank"} <= set(table) and "grand" not in table and "fingerprint" not in table
    missing = dict(zip(run.arrays["missing_scores"], run.arrays["missing_why"], strict=True))
    assert missing["memorization"] == "needs --train-share" and "feature_norm" in missing["grand"]
    found = pandas.read_csv(run.file("detection.csv"))
    assert found[(found.score == "mean_loss") & (found.repeat == "all")].average_precision.item() > 0.4
    assert run.metrics["base_rate/planted_1"] == 0.25


def test_out_of_sample_probabilities_of_cross_validation(project, loop):
    """What cleanlab's users have: pred_probs [N, K], of networks that were not trained on the sample; energy has no meaning there."""
    probabilities = torch.from_numpy(loop["logits"][-1]).double().softmax(-1).numpy()
    membership = np.zeros(N, dtype=bool)
    line = ["score", "--recording", saved(probabilities=probabilities, labels=loop["labels"], membership=membership)]
    assert main([*line, "--score", "self_confidence,normalised_margin,entropy"]) == 0
    arrays = last().arrays
    own = probabilities[np.arange(N), loop["labels"]]
    np.testing.assert_allclose(arrays["self_confidence"], 1 - own, atol=1e-6)
    np.testing.assert_allclose(arrays["entropy"][0], -(probabilities * np.log(probabilities)).sum(1), rtol=1e-5)
    assert "confident_learning" in arrays and "detection_ap" not in arrays
    assert main([*line, "--score", "energy"]) == 2
    assert main(line) == 0
    assert dict(zip(last().arrays["missing_scores"], last().arrays["missing_why"], strict=True))["energy"].startswith("needs logits")


def test_a_score_from_elsewhere_stands_beside_ours(project, loop, capsys):
    """Joined by index, in any order of rows; what is easier is turned round; a missing value is judged on the others."""
    index = np.arange(N) * 7 + 3
    values = np.where(loop["planted"], 0.1, 0.9)  # an oracle whose low values are hard
    rows = np.random.default_rng(0).permutation(N)
    table = pandas.DataFrame({"value": values[rows], "note": "x", "index": index[rows]})
    table.loc[table["index"] == 3, "value"] = np.nan
    table.to_csv("My score-2.csv", index=False)
    path = saved(**loop, index=index, plant_types=np.array(["wrong"]))
    line = ["score", "--recording", path, "--scores-from", "My score-2.csv", "--score", "mean_loss"]
    assert main([*line, "--direction", "easier"]) == 0
    arrays = last().arrays
    assert arrays["score_names"].tolist() == ["mean_loss", "outside_my_score_2"]
    np.testing.assert_allclose(arrays["outside_my_score_2"][1:], -values[1:], rtol=1e-6)
    assert np.isnan(arrays["outside_my_score_2"][0])
    assert arrays["detection_ap"][1, 0] == 1 and arrays["detection_n"].tolist() == [[40], [39]]
    assert "outside_my_score_2 is judged on 39 to 39 samples that have it" in capsys.readouterr().out
    assert main([*line, "--direction", "harder"]) == 0
    assert last().arrays["detection_ap"][1, 0] < 0.25


def test_a_score_from_elsewhere_replaces_nothing_of_ours(project, loop):
    """Whatever its file is called: each of these is an array, a column or the start of one."""
    line = ["score", "--recording", saved(**loop), "--score", "aum", "--direction", "harder", "--format", "csv"]
    assert main(line[:5]) == 0
    plain = last().arrays
    for name in ("label", "predicted", "score_names"):
        pandas.DataFrame({"index": np.arange(N), "value": np.arange(N) / N}).to_csv(f"{name}.csv", index=False)
        assert main([*line, "--scores-from", f"{name}.csv"]) == 0, name
        arrays, table = last().arrays, pandas.read_csv(last().file("scores.csv"))
        assert arrays["score_names"].tolist() == ["aum", f"outside_{name}"]
        assert set(arrays) - set(plain) == {f"outside_{name}"}
        np.testing.assert_array_equal(arrays["predicted"], plain["predicted"])
        np.testing.assert_array_equal(table.label, loop["labels"])


def test_training_dynamics_of_data_maps(project, loop):
    assert main(["score", "--recording", saved(**loop), "--score", "aum", "--format", "jsonl"]) == 0
    run = last()
    assert not run.has("scores.csv") and not run.has("scores.parquet")
    for t in range(T):
        lines = [json.loads(line) for line in run.file(f"training_dynamics/dynamics_epoch_{t}.jsonl").read_text().splitlines()]
        assert [line["guid"] for line in lines] == list(range(N)) and [line["gold"] for line in lines] == loop["labels"].tolist()
        np.testing.assert_array_equal(np.array([line[f"logits_epoch_{t}"] for line in lines], dtype=np.float32), loop["logits"][t])


def test_parquet_has_what_the_csv_has(project, loop):
    pytest.importorskip("pyarrow")
    assert main(["score", "--recording", saved(**loop), "--score", "aum,random", "--format", "csv,parquet"]) == 0
    table, text = pandas.read_parquet(last().file("scores.parquet")), pandas.read_csv(last().file("scores.csv"))
    assert list(table) == list(text)
    np.testing.assert_allclose(table.aum, text.aum, rtol=1e-6)


def test_a_network_that_stopped_is_scored_as_far_as_it_came(project, loop):
    """A recording of ours has nan from there on, and for the cosines of dead activations: one that took the first three points says it."""
    logits, norms = np.stack([loop["logits"], loop["logits"][::-1]]), np.ones((2, T, N))
    cosines = norms.copy()
    logits[1, 3], norms[1, 3], cosines[1, 3], cosines[0, :, 0] = np.nan, np.nan, np.nan, np.nan
    more = {"feature_norm": norms, "class_cosine": cosines, "labels": loop["labels"]}
    assert main(["score", "--recording", saved(logits=logits, **more), "--score", "mean_loss,loss,grand"]) == 0
    both = last().arrays
    assert main(["score", "--recording", saved(logits=loop["logits"][::-1][:3], labels=loop["labels"]), "--score", "mean_loss,loss"]) == 0
    for name in ("mean_loss", "loss"):
        np.testing.assert_allclose(both[name][1], last().arrays[name][0], rtol=1e-6)
    assert np.isfinite(both["grand"]).all()


def _bad(loop):
    """Changes of a recording, and what is said of each."""
    nan = loop["logits"].copy()
    nan[1, 2, 0] = np.nan
    stopped = np.full((T, N, K), 1 / K)
    stopped[-1] = np.nan
    return {
        "no labels": ({"labels": None}, "no labels in it; it takes labels"),
        "no logits": ({"logits": None}, "neither in it; logits or probabilities"),
        "two of them": ({"probabilities": loop["logits"]}, "logits and probabilities in it; logits or probabilities"),
        "nan": ({"logits": nan}, "logits: 1 values are nan or infinite; finite numbers"),
        "nan alone": ({"logits": np.full((T, N, K), np.nan)}, "logits: 480 values are nan or infinite; finite numbers"),
        "no probability": ({"logits": None, "probabilities": stopped}, "probabilities: 120 values are nan or infinite; finite numbers"),
        "infinite norms": ({"feature_norm": np.full((T, N), np.inf)}, "feature_norm: float64 [4, 40]; finite numbers (or nan) [1, 4, 40]"),
        "one axis": ({"logits": loop["logits"][0, :, 0]}, "logits: float32 [40]; numbers [R, T, N, K], [T, N, K] or [N, K]"),
        "whole numbers": ({"logits": np.ones((T, N, K), int)}, "logits: int64 [4, 40, 3]; numbers"),
        "one class": ({"logits": loop["logits"][:, :, :1]}, "logits: float32 [4, 40, 1]; numbers"),
        "a label too large": ({"labels": loop["labels"] + 1}, "labels: from 1 to 3; from 0 to 2"),
        "a label below 0": ({"labels": loop["labels"] - 1}, "labels: from -1 to 1; from 0 to 2"),
        "too few labels": ({"labels": loop["labels"][1:]}, "labels: int64 [39]; whole numbers [40]"),
        "labels of other numbers": ({"labels": loop["labels"] / 1}, "labels: float64 [40]; whole numbers [40]"),
        "an index twice": ({"index": np.arange(N) // 2 * 2}, "index: 0 is there 2 times; every sample once"),
        "no probabilities": ({"logits": None, "probabilities": loop["logits"]}, "probabilities: rows that do not add up to 1"),
        "membership of another shape": ({"membership": np.ones((2, N), bool)}, "membership: bool [2, 40]; true or false, [1, 40]"),
        "norms of another shape": (
            {"feature_norm": np.ones((T, N + 1))},
            "feature_norm: float64 [4, 41]; finite numbers (or nan) [1, ",
        ),
        "planted below 0": ({"planted": -np.ones(N, int)}, "planted: -1; 0 for none"),
        "planted of a million types": ({"planted": np.arange(N) * 10**5}, "planted: up to 3900000; the number of its type, 1000 at most"),
        "times that fall": ({"epochs": np.arange(T)[::-1]}, "epochs: int64 [4]; 4 rising numbers"),
        "too few names": ({"class_names": np.array(["a", "b"])}, "class_names: <U1 [2]; 3 strings"),
        "a pickle": ({"logits": np.array([[1], [2, 3]], dtype=object)}, "logits holds Python objects (a pickle); plain arrays"),
    }


def test_bad_recordings_are_one_line_and_leave_nothing(project, loop, capsys):
    for name, (changed, said) in _bad(loop).items():
        saved(**{key: array for key, array in (loop | changed).items() if array is not None})
        assert main(["score", "--recording", "file.npz"]) == 3, name
        error = capsys.readouterr().err
        assert error.startswith(f"hardbench: recording: file.npz; {said}") and error.count("\n") == 1, (name, error)
    (project / "text.npz").write_text("no archive")
    for path in ("text.npz", "none.npz", "."):
        assert main(["score", "--recording", path]) == 3
        assert capsys.readouterr().err.count("\n") == 1
    assert all_runs() == []


def test_bad_scores_are_one_line_and_leave_nothing(project, loop, capsys):
    whole = [f"{i},0.5" for i in range(N)]
    files = {
        "no column value": (["index,score", *whole], "no column value; columns index and value"),
        "nothing": ([], "no column index and value; columns index and value"),
        "39 rows; 40": (["index,value", *whole[1:]], "39 rows; 40, one for every sample"),
        "41 rows; 40": (["index,value", *whole, "40,1"], "41 rows; 40, one for every sample"),
        "twice": (["index,value", *whole[1:], "1,0.5"], "row 40: index 1 is there twice; every sample once"),
        "unknown": (["index,value", *whole[1:], "99,0.5"], "row 40: no sample has index 99; the index of each in the data set"),
        "word": (["index,value", "0,high", *whole[1:]], "row 1: value 'high'; a number"),
        "half": (["index,value", "0.5,1", *whole[1:]], "row 1: index '0.5'; a whole number"),
        "infinite": (["index,value", "0,inf", *whole[1:]], "infinite values, or none at all; numbers"),
        "short row": (["index,value", "0", *whole[1:-1], "39,"], None),
        "of Windows": (["\ufeffindex,value", *whole], None),
    }
    line = ["score", "--recording", saved(**loop), "--score", "aum", "--scores-from", "values.csv"]
    for name, (lines, said) in files.items():
        (project / "values.csv").write_text("\n".join(lines), encoding="utf-8")
        code = main([*line, "--direction", "harder"])
        error = capsys.readouterr().err
        if said is None:
            assert code == 0, (name, error)
            continue
        assert code == 3 and error.startswith(f"hardbench: scores_from: values.csv; {said}") and error.count("\n") == 1, (name, error)
    (project / "values.csv").write_bytes(b"index,value\n\xff\xfe")
    assert main([*line, "--direction", "harder"]) == 3
    assert main(line) == 2
    assert "direction: none; harder or easier with scores_from" in capsys.readouterr().err
    assert main([*line[:-2], "--direction", "harder"]) == 2
    assert main([*line, "last", "--direction", "harder"]) == 2
    assert "either recording or runs, not both" in capsys.readouterr().err
    assert len(all_runs()) == sum(said is None for _, said in files.values())
