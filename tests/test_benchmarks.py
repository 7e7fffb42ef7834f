"""The frame of the benchmarks, on toy rows: what is measured, checked, printed and written. No time is asserted."""

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as door, machine, report, rows
from benchmarks.row import ROUNDS, WALL, DifferentError, Goal, Outcome, Row, Setup, Workload, measure
from benchmarks.rows import waiting
from hardbench.errors import ConfigError, HardbenchError

SIDE = 64


def product(quick: bool) -> Workload:
    matrix = torch.eye(SIDE)
    return Workload(lambda: float((matrix @ matrix).sum()), units=2, flops=2.0 * SIDE**3)


def total(quick: bool) -> Workload:
    return Workload(lambda: float(SIDE if quick else -1))


def hungry(quick: bool) -> Workload:
    return Workload(lambda: float(torch.ones(64 * 2**20 // 4).sum()))  # 64 MiB


def call_once(setup: Setup) -> None:
    setup(True).call()


def equal(expected: float, found: float) -> str:
    if expected != found:
        raise DifferentError(f"{expected:g} and {found:g}")
    return f"both {found:g}"


TOY = Row("toy", "the sum of a unit matrix", "sum", total, product, equal, Goal("seconds", 60), WALL)


@pytest.fixture(autouse=True)
def _small_and_tidy(monkeypatch):
    monkeypatch.setattr(machine, "SIDE", SIDE)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_both_forms_are_measured_in_turns_and_compared():
    outcome = measure(replace(TOY, memory=False), quick=True)
    assert len(outcome.plain) == len(outcome.ours) == len(outcome.ours_rates) == ROUNDS
    assert (outcome.same, outcome.check, outcome.met) == (True, "both 64", True)
    assert len(outcome.shares) == 2 and outcome.flops == 2 * SIDE**3


def test_what_was_begun_for_a_workload_is_ended():
    """Whether it could be timed or not, and the first where the second cannot be begun."""
    ended = []

    def setup(name, fails, quick):
        if fails == "begin":
            raise ValueError(name)
        return Workload({"call": lambda: 1 / 0, "": lambda: 64}[fails], close=lambda: ended.append(name))

    plain, ours = functools.partial(setup, "plain", ""), functools.partial(setup, "ours", "")
    measure(replace(TOY, memory=False, plain=plain, ours=ours), quick=True)
    assert ended == ["ours", "plain"]
    for fails, error, more in (("call", ZeroDivisionError, ["ours", "plain"]), ("begin", ValueError, ["plain"])):
        ended.clear()
        with pytest.raises(error):
            measure(replace(TOY, memory=False, plain=plain, ours=functools.partial(setup, "ours", fails)), quick=True)
        assert ended == more


def _children():
    """Ids of the living processes that this one has started."""
    found = set()
    for path in Path("/proc/self/task").glob("*/children"):
        found |= set(path.read_text().split())
    return found


@pytest.mark.real
def test_no_server_outlives_its_row():
    before = _children()
    workload = waiting.trained({}, 0, True)
    assert len(_children() - before) == 1
    assert workload.call() > 0
    workload.close()
    assert _children() <= before


def test_a_difference_is_told():
    outcome = measure(replace(TOY, memory=False), quick=False)
    assert not outcome.same and outcome.check == "-1 and 64"
    assert "DIFFERENT: -1 and 64" in report.verdict(outcome)


def test_units_divide_the_seconds_and_a_reference_is_what_a_share_is_of():
    ticks = iter(range(10_000))
    clock = replace(WALL, read=lambda: float(next(ticks)))  # one second between any two looks
    row = replace(TOY, clock=clock, memory=False, goal=Goal("share", 0.2), reference=lambda found: found)
    outcome = measure(row, quick=True)
    assert (outcome.plain, outcome.ours) == ([1.0] * ROUNDS, [0.5] * ROUNDS)
    assert outcome.faster == 2 and outcome.value == 0.5 / SIDE and outcome.met


@pytest.mark.parametrize(
    ("kind", "value", "met"), [("faster", 2.5, True), ("faster", 1.9, False), ("share", 1.9, True), ("seconds", 2.1, False)]
)
def test_goals_point_the_right_way(kind, value, met):
    assert Goal(kind, 2.0).met(value) is met


@pytest.mark.skipif(not machine.CLEAR.exists(), reason="needs Linux' /proc")
def test_memory_is_that_of_the_work_alone():
    grown = machine.peak_memory(functools.partial(call_once, hungry), 1)
    assert 60 <= grown < 96  # the kernel counts pages in batches


def test_a_row_that_lacks_something_is_skipped_with_the_reason(monkeypatch):
    monkeypatch.setattr(machine, "has_bf16", lambda: False)
    outcome = measure(replace(TOY, needs=("avx512_bf16",)), quick=True)
    assert outcome.skipped == "no avx512_bf16" and not outcome.plain
    assert report.cells(outcome)[-1] == "skipped: no avx512_bf16"
    assert report.cells(outcome)[0] == "toy" and len(report.cells(outcome)) == len(report.COLUMNS)


def test_the_table_and_the_file_hold_every_row(monkeypatch, tmp_path, capsys):
    different = replace(TOY, name="other", plain=hungry, goal=None)
    monkeypatch.setattr(rows, "everything", lambda: [replace(row, memory=False) for row in (TOY, different)])
    path = tmp_path / "results.json"
    with pytest.raises(HardbenchError, match="rows: other"):
        door.run(door.Config(quick=True, json=str(path)))
    assert "<= 60 s met" in capsys.readouterr().out
    found = json.loads(path.read_text())
    assert [row["name"] for row in found["rows"]] == ["toy", "other"] and found["quick"] is True
    assert {"cpu", "cores", "avx512_bf16", "torch", "date"} <= set(found["machine"])
    lines = report.markdown(path.read_text()).splitlines()
    assert lines[2].startswith("| row |") and lines[4].startswith("| toy |") and lines[5].startswith("| other |")
    assert len({line.count("|") for line in lines[2:]}) == 1


def test_rows_are_chosen_by_how_their_names_begin():
    names = [row.name for row in rows.chosen(["mnist-mlp", "help"])]
    assert "help" in names and "mnist_mlp_r5_bf16" in names and "gmlp_step_fp32" not in names
    with pytest.raises(ConfigError, match="only: hepl; nearest: help"):
        rows.chosen(["hepl"])


def test_every_row_has_a_name_of_its_own_and_knows_what_it_needs():
    everything = rows.everything()
    assert len({row.name for row in everything}) == len(everything)
    for row in everything:
        assert set(row.needs) <= set(machine.NEEDS)
        assert row.precision == "fp32" or "avx512_bf16" in row.needs
        assert row.work and row.unit


def test_a_file_that_cannot_be_written_is_known_before_any_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--json", str(tmp_path / "nowhere" / "x.json")])
    assert door.main() == 2
    assert "json: " in capsys.readouterr().err


def test_an_outcome_survives_the_file():
    outcome = measure(replace(TOY, memory=False), quick=True)
    row = json.loads(report.as_json(machine.describe(), True, [outcome]))["rows"][0]
    row.pop("derived")
    assert Outcome(**row) == outcome
