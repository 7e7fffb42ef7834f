"""Folders of any name: every study runs in them, and nothing beside the project changes."""

from pathlib import Path

import pytest
from surroundings import (
    INVERT,
    LONG,
    MASK,
    SIMULATE,
    STRAGGLERS,
    SWEEP,
    TRAIN,
    attempt,
    command,
    differing,
    kill_at_work,
    left,
    only,
    project,
    tree,
)

pytestmark = pytest.mark.reliability

NAMES = (
    "proj#2",
    "a?b",
    "a%20b",
    "a%ceb",
    "it's",
    'say "so"',
    "a\tb",
    "a\nb",
    "b c",
    "äöü ß",
    "-n",
    "%2e%2e",
    "a;b&c",
    "a\\b",
    "[b]",
    "file:x",
    "~",
)
MIXED = 'it\'s "50%" #1?%20%ce;ü\t\n'
CONFUSED = ("proj", "a", "a b", "ab", "it", "a\ufffdb", "x", "checkpoints", "figures")  # where a name might lead that is read as an address


def _sentinels(base: Path) -> None:
    """Files that a run has names for, in the folder above the project and in the folders beside it."""
    for folder in (base, *(base / name for name in CONFUSED)):
        for name in ("checkpoints/thesis", "checkpoints/last.pt", "config.yaml", "metrics.npz", "figures/mine.png", "dynamics/a.npy"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("mine")


def _changed(before: dict[str, tuple[int, int, bytes]], base: Path, folder: Path) -> list[str]:
    after = tree(base, folder)
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A training in a folder of a plain name."""
    folder = project(tmp_path_factory.mktemp("plain") / "project")
    assert command(folder, *TRAIN, "--keep-checkpoints", "false").code == 0
    return only(folder)


@pytest.mark.parametrize("name", ["proj#2", MIXED], ids=["proj#2", "mixed"])
def test_a_training_in_a_folder_of_any_name(plain, tmp_path, name):
    """Also its checkpoints are its own: they are removed at the end, and those of others are not."""
    _sentinels(tmp_path)
    folder = project(tmp_path / name)
    before = tree(tmp_path, folder)
    with attempt("folder names", f"{name!r}, train"):
        ended = command(folder, *TRAIN, "--keep-checkpoints", "false")
        assert ended.code == 0, ended.err
        assert _changed(before, tmp_path, folder) == []
        run = only(folder)
        assert differing(run, plain) == []
        assert not any(file.startswith("checkpoints") for file in run.files)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, MIXED, f"{MIXED}/{MIXED}"])
def test_every_study_in_a_folder_of_any_name(plain, tmp_path, name):
    """From the creation of the store on: train, eval, sweep, mask-mi, invert, stragglers, simulate, plot, compare, resume."""
    _sentinels(tmp_path)
    folder, top = tmp_path / name, tmp_path / Path(name).parts[0]
    folder.mkdir(parents=True)
    before = tree(tmp_path, top)

    def check(*given: str, made: str = "") -> None:
        with attempt("folder names", f"{name!r}, {given[0]}"):
            ended = command(folder, *given)
            assert ended.code == 0, f"{given}: exit {ended.code}\n{ended.err[-2000:]}"
            assert _changed(before, tmp_path, top) == [], given
            assert {run.status for run in left(folder)} == {"FINISHED"}
            assert not made or made in left(folder)[-1].files

    check(*TRAIN, "--keep-checkpoints", "false", "--out", "out #?%20")
    assert differing(only(folder), plain) == []
    check(*TRAIN, "--record-dynamics", made="checkpoints/last.pt")
    check("eval", "last", "--threads", "1")
    check(*SWEEP)
    check(*MASK, made="masking.npz")
    check(*INVERT, made="radii.npz")
    check(*STRAGGLERS, made="metrics.npz")
    check(*SIMULATE, made="metrics.npz")
    check("plot", "last")
    check("compare", "--csv", "runs ?#%20.csv")
    assert (folder / "runs ?#%20.csv").exists()
    kill_at_work(folder, *LONG)
    check("resume", "last", made="metrics.npz")
