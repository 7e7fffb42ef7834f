"""README tells the truth: its table is that of the settings, its command lines are accepted, nothing that exists is left out."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
import yaml
from words import given, no_surroundings

from hardbench.cli import commands, settings_of
from hardbench.config import named, options, presets
from hardbench.errors import ConfigError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = [line for block in re.findall(r"^```\w*\n(.*?)^```", README, re.M | re.S) for line in block.splitlines()]
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", README, flags=re.M | re.S))
CONFIGS = {name: settings_of(name).Config for name in commands()}


def _lines(program: str) -> list[str]:
    """Command lines of a program that README shows, in blocks and within the text, without the program's name and comments."""
    parts = [part.strip() for line in [*BLOCKS, *INLINE] for part in line.partition("#")[0].split("&&")]
    return list(dict.fromkeys(part.removeprefix(program).strip() for part in parts if part.startswith(f"{program} ")))


def test_the_table_of_former_names_is_that_of_the_settings():
    """Every `was=` of a setting has a row in README; a failure shows the rows as they should be."""
    rows: dict[tuple[str, str], list[str]] = {}
    for command, config in CONFIGS.items():
        for option in options(config).values():
            for old in option.declared.was:
                rows.setdefault((old, option.name), []).append(command)
    ordered = sorted(rows.items(), key=lambda row: row[0][0].lower())
    lines = [f"| `{old}` | `--{new.replace('_', '-')}` | {', '.join(where)} |" for (old, new), where in ordered]
    assert "\n".join(["| original | hardbench | commands |", "|---|---|---|", *lines]) in README


def test_every_command_is_named():
    assert [name for name in commands() if f"`hardbench {name}" not in README] == []


def test_every_preset_is_named():
    assert [name for name in presets() if f"`{name}`" not in README] == []


@pytest.mark.parametrize("line", _lines("hardbench"))
def test_command_lines_are_accepted(line, monkeypatch, tmp_path):
    """By the real options. RUN and RUN1 are words for a run, [RUN...] may be left out, NAME is a data set."""
    no_surroundings(monkeypatch, tmp_path)
    name, *words = [{"NAME": "mnist", "STUDY": "train"}.get(word, word) for word in shlex.split(line) if not word.startswith("[")]
    if name.startswith("--"):
        pytest.skip("of the program, not of a command")
    config = given(*words, config=CONFIGS[name])
    for word in words:
        if word.startswith("--"):
            assert hasattr(config, named(CONFIGS[name], word).name)


def test_links_lead_somewhere():
    """Links to files, and to headings of README itself."""
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    assert links
    headings = {"#" + re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in re.findall(r"^#+ (.*)$", README, re.M)}
    own = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in own if not (link in headings if link.startswith("#") else (ROOT / link.partition("#")[0]).exists())] == []


@pytest.mark.parametrize("line", [line for line in INLINE if line.startswith("--")])
def test_options_in_the_text_exist(line):
    words = [
        word for word in line.split() if word.startswith("--") and word not in ("--help", "--experiment-name")
    ]  # the latter is MLflow's
    for word in words:
        assert any(_has(config, word) for config in CONFIGS.values()), word


def _has(config, word):
    try:
        return bool(named(config, word))
    except ConfigError:
        return False


@pytest.mark.parametrize("line", _lines("mlflow run"))
def test_lines_of_mlflow_run_name_entry_points_and_settings(line):
    if "-P" not in line:
        return
    words, entries = shlex.split(line), yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    entry = words[words.index("-e") + 1] if "-e" in words else "main"
    command = entries[entry]["command"].split()[-1]
    for option, word in itertools.pairwise(words):
        if option == "-P":
            assert named(CONFIGS[command], word.partition("=")[0])
