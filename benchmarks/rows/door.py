"""The start of `hardbench --help`, against a Python that does nothing."""

import subprocess
import sys
from pathlib import Path

from benchmarks.row import WALL, DifferentError, Goal, Row, Workload
from hardbench.cli import commands


def plain(quick: bool) -> Workload:
    """`python -c pass`."""
    return Workload(lambda: _output([sys.executable, "-c", "pass"]))


def ours(quick: bool) -> Workload:
    """The console script, or the module where it is not installed."""
    script = Path(sys.executable).with_name("hardbench")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "hardbench"]
    return Workload(lambda: _output([*words, "--help"]))


def _output(words: list[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


def check(expected: str, found: str) -> str:
    """Every command is named."""
    missing = [name for name in commands() if name not in found]
    if missing:
        raise DifferentError(f"{', '.join(missing)} not named")
    return f"names all {len(commands())} commands"


ROWS = [Row("help", "hardbench --help, against python -c pass", "call", plain, ours, check, Goal("seconds", 0.5), WALL, memory=False)]
