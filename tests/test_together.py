"""Two processes on one run, one campaign or one store at once: one works, one is told, and nothing is there twice."""

import signal
import time
from collections.abc import Sequence
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
    Ended,
    at_work,
    attempts,
    begin,
    check_told,
    command,
    differing,
    kept,
    kill_at_work,
    left,
    mounting,
    noted,
    only,
    project,
    stopped,
    wait_for,
    words,
)

pytestmark = pytest.mark.reliability

STUDIES = {
    "train": LONG,
    "dynamics": [*LONG, "--record-dynamics"],
    "simulate": ["simulate", *LONG[1:]],
    "mask-mi": [*MASK, "--images", "100", "--n-subsets", "60"],
    "invert": [*INVERT, *words("--epochs 300 --checkpoint-every 0.1 --stability --prune-curve --prune-points 2")],
    "stragglers": [*STRAGGLERS, *words("--epochs 200 --checkpoint-every 0.1 --sets 3")],
    "sweep": [*SWEEP, *words("--epochs 6 --width 8,16,24 --workers 2")],
}


def at_once(folder: Path, lines: Sequence[Sequence[str]], gap: float = 0, apart: bool = False) -> list[Ended]:
    """How commands started at once (or `gap` seconds apart) ended; `apart`: each in a PID namespace of its own."""
    works = []
    for line in lines:
        works.append(begin(folder, *line, apart=apart))
        time.sleep(gap)
    return [work.wait() for work in works]


def _one_works(ended: Sequence[Ended]) -> None:
    """Exactly one has worked, the others have been told in one line."""
    shown = "\n".join(f"exit {one.code}: {one.err[-1500:]}" for one in ended)
    assert sum(one.code == 0 for one in ended) == 1, shown
    for one in ended:
        if one.code:
            check_told(one, [5])


def _resumed(tmp_path: Path, study: str, processes: int, tries: Sequence[object], apart: bool = False) -> None:
    """A killed run is resumed by several at once, and ends as the undisturbed one did."""
    whole, folder = project(tmp_path / "whole"), project(tmp_path / "killed")
    for home in (whole, folder):
        assert study != "mask-mi" or command(home, *TRAIN).code == 0
    assert command(whole, *STUDIES[study]).code == 0
    kill_at_work(folder, *STUDIES[study])
    with kept(folder) as put_back:

        def once(number: int) -> None:
            put_back()
            _one_works(at_once(folder, [["resume", "last"]] * processes, 0.05 * (number % 4), apart))
            _same_runs(folder, whole)

        attempts(f"resume {study}, {processes} at once{' from other PID namespaces' if apart else ''}", tries, once)


def _same_runs(folder: Path, whole: Path) -> None:
    """All runs of a folder are those of another, sweeps' cells by what they are of."""
    mine, others = ({_what(run): run for run in left(home)} for home in (folder, whole))
    assert len(left(folder)) == len(left(whole))
    assert mine.keys() == others.keys()
    wrong = {what: found for what, run in mine.items() if (found := differing(run, others[what]))}
    assert not wrong, wrong


def _what(run) -> str:
    return f"{run.study} {run.tags.get('hardbench.kind')} {run.tags.get('hardbench.cell', '')}"


# two of any command on one run or one campaign


def test_three_resume_one_run(tmp_path):
    _resumed(tmp_path, "train", 3, ["once"])


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("study", STUDIES)
def test_resumed_by_several(tmp_path, study, processes):
    _resumed(tmp_path, study, processes, range(20))


@pytest.mark.slow
@mounting
@pytest.mark.parametrize("study", STUDIES)
def test_resumed_from_two_namespaces(tmp_path, study):
    """Containers with one host name: a process number tells nothing there."""
    _resumed(tmp_path, study, 2, range(20), apart=True)


def _same_sweep(tmp_path: Path, tries: Sequence[object], apart: bool = False) -> None:
    folder = project(tmp_path / "twice")
    with kept(folder) as put_back:

        def once(number: int) -> None:
            put_back()
            _one_works(at_once(folder, [SWEEP, SWEEP], 0.1 * (number % 5), apart))
            found = sorted((_what(run).rpartition(" ")[0], run.status) for run in left(folder))
            assert found == [("sweep sweep", "FINISHED"), *[("train cell", "FINISHED")] * 2]
            assert [run.twice for run in left(folder)] == [[]] * 3
            assert len({_what(run) for run in left(folder)}) == 3

        attempts(f"one sweep started twice{' from two PID namespaces' if apart else ''}", tries, once)


@pytest.mark.slow
def test_one_sweep_started_twice(tmp_path):
    _same_sweep(tmp_path, ["once"])


@pytest.mark.slow
def test_one_sweep_started_twice_again_and_again(tmp_path):
    _same_sweep(tmp_path, range(20))


@pytest.mark.slow
@mounting
def test_one_sweep_started_in_two_namespaces(tmp_path):
    _same_sweep(tmp_path, range(20), apart=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with one finished training, and a function that puts it back."""
    folder = project(tmp_path_factory.mktemp("finished") / "project")
    assert command(folder, *TRAIN, *words("--epochs 30")).code == 0
    with kept(folder) as put_back:
        yield folder, put_back


def _both_right(finished, lines: Sequence[Sequence[str]], tries: Sequence[object], apart: bool = False) -> None:
    """On a finished run all may work, one after the other; then its points are those of one after the other, too."""
    folder, put_back = finished
    put_back()
    before = only(folder)
    for line in lines:
        assert command(folder, *line).code == 0
    alone = only(folder)

    def once(number: int) -> None:
        put_back()
        for one in at_once(folder, lines, 0.1 * (number % 3), apart):
            assert one.code == 0 or check_told(one, [5])
        run = only(folder)
        assert run.status == "FINISHED"
        assert (run.files, run.params) == (alone.files, alone.params)
        assert not any(name.endswith(".part") for name in run.files)
        for key, points in run.points.items():  # a repeated evaluation is a new point, of the same value
            assert set(points) == set(alone.points[key]), key
            assert key not in before.points or points == before.points[key], key

    attempts(f"{' and '.join(line[0] for line in lines)} at once on a finished run{', two PID namespaces' if apart else ''}", tries, once)


TWO = {
    "eval": [["eval", "last", "--threads", "1"]] * 2,
    "plot": [["plot", "last"]] * 2,
    "eval-plot": [["eval", "last", "--threads", "1"], ["plot", "last"]],
    "compare": [["compare"]] * 2,
    "eval-compare-plot": [["eval", "last", "--threads", "1"], ["compare"], ["plot", "last"]],
}


@pytest.mark.slow
def test_two_evaluations_of_one_run(finished):
    _both_right(finished, TWO["eval"], ["once"])


@pytest.mark.slow
@pytest.mark.parametrize("lines", TWO.values(), ids=TWO)
@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=mounting)], ids=["here", "apart"])
def test_two_on_a_finished_run(finished, lines, apart):
    _both_right(finished, lines, range(20), apart)


@pytest.mark.slow
@pytest.mark.parametrize("line", [["eval", "last", "--threads", "1"], ["plot", "last"], ["compare"]], ids=lambda line: line[0])
def test_another_command_beside_a_resume(tmp_path, line):
    """What reads the run while it goes on says so or reads what is there; the run ends as if it had been alone."""
    whole, folder = project(tmp_path / "whole"), project(tmp_path / "killed")
    assert command(whole, *LONG).code == 0
    kill_at_work(folder, *LONG)
    with kept(folder) as put_back:

        def once(number: int) -> None:
            put_back()
            ours = only(folder)
            resumed, other = at_once(
                folder, [["resume", "last"], [line[0], *([ours.id] if len(line) > 1 else []), *line[2:]]], 0.1 * (number % 8)
            )
            assert resumed.code == 0, resumed.err
            assert other.code == 0 or check_told(other, [5])
            wrong = differing(only(folder), only(whole))
            assert [one for one in wrong if "eval" not in one and not one.startswith("file ")] == []

        attempts(f"{line[0]} beside a resume", range(20), once)


@pytest.mark.slow
def test_two_simulations_at_once(tmp_path):
    """They are two runs: both work, in a store that they make at the same moment."""

    def once(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        for one in at_once(folder, [SIMULATE, SIMULATE]):
            assert one.code == 0, one.err
        first, second = left(folder)
        assert differing(first, second) == []

    attempts("two simulations at once", range(20), once)


# a run at work, seen from elsewhere


def _live(tmp_path: Path, here: bool, there: bool) -> None:
    """A training at work in one PID namespace is looked at from another, and ends as it would have."""
    whole, folder = project(tmp_path / "whole"), project(tmp_path / "live")
    work = begin(folder, *LONG, apart=here)
    wait_for(lambda: at_work(folder), work)
    with stopped(work):
        _looked_at(folder, only(folder).id, there)
    ended = work.wait()
    assert ended.code == 0, ended.err
    assert command(whole, *LONG).code == 0
    assert differing(only(folder), only(whole)) == []


def _looked_at(folder: Path, run: str, apart: bool) -> None:
    for line in (["compare", run], ["resume", run], ["resume", "last"]):
        ended = command(folder, *line, apart=apart)
        noted("a live run seen from elsewhere", " ".join(line[:1]), f"exit {ended.code}")
        assert left(folder)[0].status == "RUNNING", f"{line} has ended it: {ended.err}"
        assert line[0] == "compare" or check_told(ended, [5])


@pytest.mark.slow
@mounting
def test_a_live_run_is_left_alone_from_another_namespace(tmp_path):
    """A process number that is free there (or another's) is no death."""
    _live(tmp_path, here=True, there=True)


@pytest.mark.slow
@mounting
def test_a_live_run_in_a_namespace_is_left_alone_from_the_host(tmp_path):
    _live(tmp_path, here=True, there=False)


@pytest.mark.slow
@mounting
def test_a_live_run_of_the_host_is_left_alone_from_a_namespace(tmp_path):
    _live(tmp_path, here=False, there=True)


@pytest.mark.slow
@mounting
@pytest.mark.parametrize("study", ["train", "invert", "sweep"])
def test_a_dead_run_of_another_namespace_can_go_on(tmp_path, study):
    """Killed there, it is known to be dead here: with no waiting for a process that has this number, too."""
    whole, folder = project(tmp_path / "whole"), project(tmp_path / "dead")
    assert command(whole, *STUDIES[study]).code == 0
    work = begin(folder, *STUDIES[study], apart=True)
    wait_for(lambda: at_work(folder), work)
    work.signal(signal.SIGKILL)
    work.wait()
    ended = command(folder, "resume", "last")
    assert ended.code == 0, ended.err
    _same_runs(folder, whole)


# the store


def _created(folder: Path, processes: int, line: Sequence[str]) -> None:
    for one in at_once(folder, [line] * processes):
        assert one.code == 0, one.err
        assert one.told == []
    runs = left(folder)
    assert len(runs) == processes
    for run in runs[1:]:
        assert differing(run, runs[0]) == []
    assert len({run.folder.parent.parent for run in runs}) == 1, "more than one experiment"


@pytest.mark.slow
def test_two_commands_make_the_store_at_once(tmp_path):
    _created(tmp_path, 2, TRAIN)


@pytest.mark.slow
def test_four_commands_make_the_store_at_once(tmp_path):
    def once(number: int) -> None:
        (tmp_path / str(number)).mkdir()
        _created(tmp_path / str(number), 4, [INVERT, TRAIN][number % 2])

    attempts("four commands make the store at once", range(20), once)


@pytest.mark.slow
def test_eight_write_at_once(tmp_path):
    """Every point of every metric of eight trainings that log at every step is there once."""
    line = [*TRAIN, *words("--epochs 30 --log-every 1")]
    whole = project(tmp_path / "whole")
    assert command(whole, *line).code == 0

    def once(number: int) -> None:
        folder = project(tmp_path / str(number))
        for one in at_once(folder, [line] * 8):
            assert one.code == 0, one.err
        assert len(left(folder)) == 8
        for run in left(folder):
            assert differing(run, only(whole)) == []

    attempts("eight write at once", range(5), once)
