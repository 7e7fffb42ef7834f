"""A terminal that is closed, full or gone never ends a command, nor leaves a traceback; the run is complete."""

import subprocess
import sys

import pytest
from projects import all_runs, new_project

pytestmark = pytest.mark.reliability

TRAIN = "train --threads 1 --epochs 1 --subset-size 100 --eval-points 2 --width 8 --depth 1"


SELDOM = [pytest.param(after, marks=pytest.mark.slow) for after in (">&- 2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "2>&1 | true")]
CASES = [">&-", ">/dev/full", "| head -1", *SELDOM]


@pytest.mark.parametrize("after", CASES)
def test_output_that_is_closed_or_full(tmp_path, monkeypatch, after):
    new_project(monkeypatch, tmp_path)
    line = f"set -o pipefail; {sys.executable} -m hardbench {TRAIN} {after}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert ("hardbench: output: No space left on device" in done.stderr) == (after == ">/dev/full")
    (run,) = all_runs()
    assert run.status == "FINISHED"
    assert run.has("metrics.npz")
    assert run.has("figures")


@pytest.mark.parametrize("words", ["--help", "train --epochs x", "compare"])
def test_short_commands_with_output_that_is_full(tmp_path, monkeypatch, words):
    new_project(monkeypatch, tmp_path)
    plain = subprocess.run([sys.executable, "-m", "hardbench", *words.split()], capture_output=True, check=False)
    full = subprocess.run(["bash", "-c", f"{sys.executable} -m hardbench {words} >/dev/full"], capture_output=True, text=True, check=False)
    assert full.returncode == plain.returncode
    assert full.stderr.count("\n") == 1
