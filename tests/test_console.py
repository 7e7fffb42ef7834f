"""What a person sees is text: names from outside are never markup, emoji codes, control characters or a reason to stop."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from projects import last, new_project

from hardbench import console
from hardbench.cli import main
from hardbench.errors import printable

WORDS = "--epochs 1 --width 8 --depth 1 --threads 1 --eval-points 2 --layer-metrics none --keep-checkpoints true"
QUICK = WORDS.split()
INVERT = "--subset-size all --epochs 45 --repeats 1 --width 5 --depth 1 --threads 1"
ODD = ["[/b]", "[bold]x[/bold]", ":warning:", "a[red]b", "100%"]


@pytest.fixture
def project(monkeypatch, tmp_path):
    return new_project(monkeypatch, tmp_path)


def archive(path, names):
    """Images of as many classes as there are names, which can be told apart."""
    generator = np.random.default_rng(0)
    labels = np.arange(40) % len(names)
    inputs = (generator.random((40, 8, 8, 1)) * 40 + 40 * labels[:, None, None, None]).astype(np.uint8)
    np.savez(path, x_train=inputs, y_train=labels, x_test=inputs[:20], y_test=labels[:20], class_names=np.array(names))
    return f"npz:{path}"


@pytest.mark.parametrize("name", ["[/b]", " ".join(ODD[1:])])
def test_a_name_is_shown_as_it_is(project, capsys, name):
    assert main(["train", "--name", name, *QUICK]) == 0
    capsys.readouterr()
    assert main(["compare", "--csv", "table.csv"]) == 0
    assert name in capsys.readouterr().out
    assert next(csv.DictReader((project / "table.csv").open()))["name"] == name


def test_class_names_are_shown_as_they_are(project, capsys):
    dataset = archive(project / "odd.npz", ODD[:4])
    for words in (
        ["data", "--name", dataset],
        ["train", "--dataset", dataset, *QUICK],
        ["invert", "--dataset", dataset, *INVERT.split()],
    ):
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert [name for name in ODD[:4] if name not in shown] == [], words[0]
    assert last().status == "FINISHED"


def test_controls_are_shown_escaped(project, capsys):
    console.table("odd\x1b[31m", ["name"], [["\x1b[31mred"], ["two\nlines"], ["\u202eback"], ["plain"]])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\u202e" not in shown
    assert all(word in shown for word in ("odd\\x1b[31m", "\\x1b[31mred", "two\\nlines", "\\u202eback", "plain"))


def test_an_error_is_one_line_without_controls(project, capsys):
    assert main(["train", "--model", "\x1b[31m\nm"]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1 and "\x1b" not in shown and "\\x1b[31m" in shown
    assert main(["train", "-\x1b"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_printable():
    assert printable("plain, ä, 漢 [b]") == "plain, ä, 漢 [b]"
    assert printable("a\tb\x00\x7f\ud800") == "a\\tb\\x00\\x7f\\ud800"
    assert printable("ä漢", "ascii") == "\\xe4\\u6f22"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_encoding_without_the_letters_is_no_reason_to_stop(stream):
    call = {"stdout": "console.table('ü[/b]', ['ü'], [['漢[/x]']])", "stderr": "console.warn('漢[/x]')"}[stream]
    code = f"from hardbench import console; {call}"
    surroundings = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=surroundings)
    assert "\\u6f22[/x]" in getattr(done, stream)


PROGRESS = """
import sys
from rich.console import Console
from hardbench import console
console._err = Console(file=sys.stdout, force_terminal=True, width=100, markup=False, emoji=False, highlight=False)
with console.progress("[/b] :warning:", 2) as show:
    show(1, "[/i]")
"""


def test_progress_takes_any_text():
    done = subprocess.run([sys.executable, "-c", PROGRESS], capture_output=True, text=True, check=True)
    assert "[/b] :warning:" in done.stdout and "[/i]" in done.stdout
