"""Command lines for tests: the settings they end in, with nothing in the environment that could add to them."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hardbench.config import Config
from hardbench.options import SettingsCommand
from hardbench.registry import DATASETS, MODELS, OPTIMIZERS, SCHEDULERS
from hardbench.studies import train

REGISTRIES = {"dataset": DATASETS, "model": MODELS, "optimizer": OPTIMIZERS, "scheduler": SCHEDULERS}


def no_surroundings(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An empty folder to work in, and no settings in the environment."""
    for name in [name for name in os.environ if name.startswith(("HARDBENCH_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(folder)


def given(*words: str, config: type[Config] = train.Config) -> Any:
    """The settings that a command line ends in, by way of the real options: a command whose work is to hand its settings back."""
    seen: list[Config] = []
    SettingsCommand("train", SimpleNamespace(Config=config), "A command.", seen.append).main(list(words), standalone_mode=False)
    return seen[0]
