"""Files that are whole or not there, whoever writes them, and nothing beside them."""

import errno
import fcntl
import multiprocessing
import os
import signal

import numpy as np
import pytest

from hardbench import files

FORK = multiprocessing.get_context("fork")


def _copy_again_and_again(source, target):
    for _ in range(200):
        files.copy(source, target)


def test_writers_of_one_file_wait_for_each_other(tmp_path):
    """Whatever is there at any time is one of theirs, whole; nothing is left beside it."""
    sources = [tmp_path / name for name in "abc"]
    for number, source in enumerate(sources):
        source.write_bytes(bytes([number]) * (100_000 + number))
    contents, target = {source.read_bytes() for source in sources}, tmp_path / "results" / "table.csv"
    writers = [FORK.Process(target=_copy_again_and_again, args=(source, target)) for source in sources]
    for writer in writers:
        writer.start()
    seen = 0
    while any(writer.is_alive() for writer in writers):
        if target.exists():
            assert target.read_bytes() in contents
            seen += 1
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert seen
    assert target.read_bytes() in contents
    assert list(target.parent.iterdir()) == [target]


def test_writers_share_no_part_where_nothing_can_be_locked(tmp_path, monkeypatch):
    """As on some network file systems: each writes a part of its own, and the last to end wins."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    target = tmp_path / "table.csv"
    with files.whole(target) as first:
        first.write(b"first, which is longer")
        with files.whole(target) as second:
            second.write(b"second")
        assert target.read_text() == "second"
    assert target.read_text() == "first, which is longer"
    with pytest.raises(ValueError, match="of the block"), files.whole(target):
        raise ValueError("of the block")
    assert list(tmp_path.iterdir()) == [target]


def test_who_is_interrupted_in_a_file_can_write_it_at_once(tmp_path):
    """As a run does that keeps what waits on its way out: its lock is free before the exception has been dealt with."""
    target = tmp_path / "waiting.json"
    try:
        with files.whole(target) as file:
            file.write(b"half")
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        files.write_text(target, "whole")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def _die_within(target):
    with files.whole(target) as file:
        file.write(b"x" * 1000)
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_kill_leaves_the_next_writer_takes(tmp_path):
    target = tmp_path / "table.csv"
    files.write_text(target, "before")
    killed = FORK.Process(target=_die_within, args=(target,))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert target.read_text() == "before"
    assert (tmp_path / ".table.csv.part").exists()
    files.copy(target, tmp_path / "other.csv")
    files.write_text(target, "after")
    assert target.read_text() == "after"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.csv", "table.csv"]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_archives_are_written_as_they_are(tmp_path, save):
    """They go back to write sizes; an appending file would not."""
    with files.whole(tmp_path / "arrays.npz") as file:
        save(file, a=np.arange(1000), b=np.ones((3, 4)))
    with np.load(tmp_path / "arrays.npz") as found:
        assert found["a"].tolist() == list(range(1000))
        assert found["b"].sum() == 12
