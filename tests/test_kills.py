"""A command that was killed at any of its events goes on to what an undisturbed one leaves: every run, point, array and file, once.

The plain run kills every study three times, first at moments at which something was once lost. `-m slow` kills every case of kills.CASES
HARDBENCH_KILLS times (200); with HARDBENCH_KILLS_FOLDER set it adds to the kills of that folder (see reliability.py) and can so be done
in parts.
"""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from kills import CASES, DATABASE, Bench, Case, Warm, between_checkpoints, moments, spread
from ledger import lost
from reliability import campaign, page, read

pytestmark = pytest.mark.reliability

SHORT: tuple[dict[str, int], ...] = (  # for two processes at once
    {"train": 3, "train, default checkpoints": 1, "train --record-dynamics": 1, "mask-mi": 3, "sweep train": 3},
    {"simulate": 3, "invert": 3, "stragglers": 3, "eval": 3, "train --log-model": 1},
)
KILLS = int(os.environ.get("HARDBENCH_KILLS", "200"))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three kills of every study, and one at each further moment that is known."""
    folder = tmp_path_factory.mktemp("kills")
    with ThreadPoolExecutor(len(SHORT)) as both:
        list(both.map(lambda wanted: campaign(folder, wanted), SHORT))
    return read(folder)


def told(lines):
    """The kills that lost something."""
    return [
        f"event {one['n']}, {one['kind']} {one['where']}, {one['how']}: {'; '.join(one['problems'])}\n{one['log']}"
        for one in lines
        if one["problems"]
    ]


@pytest.mark.parametrize(("name", "count"), [item for wanted in SHORT for item in wanted.items()])
def test_few_kills(few, name, count):
    own = [line for line in few if line["case"] == name]
    assert len(own) == count
    for (kind, part), line in zip(CASES[name].known, own, strict=False):
        assert (line["kind"], part in line["where"], line["how"] != "undisturbed") == (kind, True, True)
    assert not told(own), "\n".join(told(own))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_kills(tmp_path, name):
    folder = Path(os.environ.get("HARDBENCH_KILLS_FOLDER", tmp_path))
    campaign(folder, {name: KILLS})
    own = [line for line in read(folder) if line["case"] == name]
    assert len(own) >= min(KILLS, own[0]["of"]) if CASES[name].among is not between_checkpoints else own
    assert not told(own), "\n".join(told(own))


# the harness itself


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    with Warm(folder / "warm") as warm, Bench("eval", folder / "bench", warm) as made:
        yield made


def test_events_are_all_seen(bench):
    kinds = {kind for kind, _ in bench.events}
    assert {"open", "opened", "rename", "mkdir", "connect", "sql", "commit"} <= kinds
    for name in ("test_results.json", "confusion.npy", "class_report.json", "confusion_matrix"):
        assert any(kind == "opened" and name in what for kind, what in bench.events), name
    assert sum(what.startswith("INSERT INTO metrics") for kind, what in bench.events if kind == "sql") >= 1


def test_death_comes_at_the_event_asked_for(bench):
    n = next(n for n, (kind, what) in enumerate(bench.events, start=1) if kind == "opened" and "class_report" in what)
    bench._put_back()
    assert bench.run(bench.case.words, bench.folder / "event.txt", n) == -9
    assert (bench.folder / "event.txt").read_text().split("\t")[0] == "opened"
    (file,) = bench.project.rglob("*class_report*")
    assert file.stat().st_size == 0
    found = bench.look()
    assert any("class_report.json missing" in line for line in lost(found, bench.whole))
    assert not any("test_results.json" in line for line in lost(found, bench.whole))


def test_an_event_too_far_is_no_kill(bench):
    line = bench.kill(len(bench.events) + 1000)
    assert (line["how"], line["problems"]) == ("undisturbed", [])


def test_events_are_spread():
    events = [("open", ""), ("sql", ""), ("commit", "")] * 100
    chosen = spread(events, range(1, 301), 60)
    assert len(set(chosen)) == 60
    assert sum(events[n - 1][0] in DATABASE for n in chosen) == 30
    for group in (True, False):
        own = [n for n in chosen if (events[n - 1][0] in DATABASE) == group]
        assert max(np.diff([0, *own, 300])) <= 20
    assert spread(events, range(1, 301), 300) == list(range(1, 301))
    assert spread(events, range(1, 301), 60) == chosen != spread(events, range(1, 301), 60, seed=1)
    case = Case("train", known=(("commit", ""), ("open", "x")))
    assert moments([*events, ("open", "x")], case, 2) == {3: ("commit", ""), 301: ("open", "x")}
    assert sorted(moments([*events, ("open", "x")], case, 400)) == list(range(1, 302))
    marks = [("rename", "a/.last.pt.part"), ("sql", ""), ("fsync", ""), ("rename", "a/.last.pt.part"), ("sql", "")]
    assert list(between_checkpoints(marks)) == [2, 3]


RUN = {"params": {"lr": "1"}, "tags": {"a": "b"}, "points": {"loss": [[0, "1.0"], [5, "0.5"]]}, "inputs": ["d"], "models": 0}
WHOLE = {
    "runs": {"train 0": RUN},
    "left": [],
    "files": {"metrics.npz": {"loss": "float64 (2,) aa"}, "figure.png": None, "x.csv": [{"a": "1"}]},
}


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("runs", "train 0", "points", "loss"), [[0, "1.0"], [0, "1.0"], [5, "0.5"]], "train 0: metric loss: steps twice"),
        (("runs", "train 0", "points", "loss"), [[0, "1.0"]], "train 0: metric loss: 1 points"),
        (("runs", "train 0", "points", "loss"), [[0, "1.0"], [5, "0.25"]], "train 0: metric loss: 2 points"),
        (("runs", "train 0", "points"), {}, "train 0: metric loss missing"),
        (("runs", "train 0", "params", "lr"), "2", "train 0: params lr differs"),
        (("runs", "train 0", "tags", "error"), "Killed", "train 0: tags error in excess"),
        (("runs", "train 0", "models"), 2, "train 0: models 2, not 0"),
        (("runs", "train 1"), RUN, "run train 1 in excess"),
        (("runs",), {}, "run train 0 missing"),
        (("files", "metrics.npz", "loss"), "float64 (2,) ab", "file metrics.npz: loss differs"),
        (("files", "x.csv"), [], "file x.csv differs"),
        (("files", ".figure.png.part"), None, "file .figure.png.part in excess"),
        (("left",), [{"status": "RUNNING", "study": "train", "error": "", "points": 0, "files": []}], "a run of train left RUNNING"),
        (("left",), [{"status": "KILLED", "study": "train", "error": "", "points": 3, "files": []}], "a run of train left KILLED"),
    ],
)
def test_every_difference_is_told(path, value, line):
    found = copy.deepcopy(WHOLE)
    assert lost(found, WHOLE) == []
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    assert lost(found, WHOLE)[0].startswith(line)


def test_a_run_that_never_began_is_no_loss():
    left = [{"status": "KILLED", "study": "train", "error": "", "points": 0, "files": []}]
    assert lost(WHOLE | {"left": left}, WHOLE) == []


def test_contents_are_compared_by_every_bit(tmp_path):
    from ledger import _content

    for name, make in (
        ("a.npz", lambda path, value: np.savez(path, x=np.array([0.0, value]))),
        ("a.npy", lambda path, value: np.save(path, np.array([0.0, value]))),
        ("a.pt", lambda path, value: torch.save({"w": [torch.tensor([1.0, value])], "n": 3}, path)),
        ("a.csv", lambda path, value: path.write_text(f"a,seconds\n{value},{value}\n")),
    ):
        found = []
        for value in (1.0, 1.0, np.nextafter(np.float32(1), np.float32(2))):
            make(tmp_path / name, value)
            found.append(_content(tmp_path / name, {}))
        assert found[0] == found[1] != found[2], name


def test_the_page_counts(tmp_path):
    line = {
        "case": "train",
        "n": 1,
        "of": 9,
        "kind": "sql",
        "where": "INSERT",
        "how": "resumed",
        "problems": [],
        "seconds": 2.0,
        "second": "",
    }
    line |= {"date": "2026-01-02", "versions": "torch 1", "log": ""}
    text = page([line, line | {"n": 2, "second": "sql\tINSERT", "kind": "open", "where": "a", "problems": ["file a missing"]}])
    assert "**1 of 2 lost something;** 1 of them were killed twice." in text
    assert "Not tried in this campaign: train, default checkpoints, " in text
    assert "- train, event 2 (open a): file a missing" in text
    assert "| train | `train " in text and "| 9 | 2 | 2 | 0 | 0 | 1 | 2.0 |" in text
