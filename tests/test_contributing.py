"""CONTRIBUTING's example is a study that works: its two files, put into a copy of the package, need nothing else."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from projects import last, new_project

from hardbench.configs.train import Config
from hardbench.data.samples import prepare
from hardbench.trained import restore

ROOT = Path(__file__).parents[1]
EXAMPLE = re.findall(r"`(hardbench/\w+/idle_units\.py)`[^`]*```python\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S)


@pytest.fixture
def hardbench(monkeypatch, tmp_path):
    """Run a command of a copy of the package that has the example, in a project of its own; the printed text."""
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "hardbench", copy / "hardbench", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in EXAMPLE:
        (copy / name).write_text(text)
    project = new_project(monkeypatch, tmp_path / "project")

    def call(*words: str) -> str:
        line = [sys.executable, "-m", "hardbench", *words]
        done = subprocess.run(line, cwd=project, env={**os.environ, "PYTHONPATH": str(copy)}, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def test_the_example_is_a_study(hardbench):
    """Its shares are those that plain arithmetic gives, and a run of it that has failed goes on."""
    assert [name for name, _ in EXAMPLE] == ["hardbench/configs/idle_units.py", "hardbench/studies/idle_units.py"]
    hardbench("train", "--width", "16", "--epochs", "2", "--repeats", "2", "--threads", "1")
    trained = last()
    printed = hardbench("idle-units", "--share", "0.2", "--threads", "1")
    run = last()
    config = trained.settings(Config)
    split = prepare(config, config.seed)
    learner, standardise = restore(trained, config, split, "best")
    shares = [(layer > 0).double().mean(1) for layer in learner.activations(standardise(split.test.inputs))]
    expected = np.stack([(share < 0.2).double().mean(1) for share in shares], axis=1)
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(run.arrays["idle_units"], expected)
    assert f"{expected[:, 0].mean():.3f}" in printed
    assert (run.status, run.tags["hardbench.source_run"]) == ("FINISHED", trained.id)
    run.client.set_terminated(run.id, "FAILED")
    hardbench("resume", run.id[:8])
    assert last().status == "FINISHED"


def test_the_example_is_formatted():
    """By ruff, under the rules of this code."""
    for name, text in EXAMPLE:
        for command in (("check",), ("format", "--check")):
            line = [sys.executable, "-m", "ruff", *command, "--stdin-filename", name, "-"]
            done = subprocess.run(line, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout
