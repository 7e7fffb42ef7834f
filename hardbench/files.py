"""Files that are there whole or not at all, whatever happens while they are written, and a look at foreign ones before they are opened."""

import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hardbench import locks
from hardbench.errors import TrackingError


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends: written aside, synced, renamed into place; removed if the block fails.

    Folders on the way are made. A kill at any moment leaves the former file or the new one, never a part (perhaps `.NAME.part` beside it,
    which the next writer takes). Several writers of one file wait for each other; where nothing can be locked, each has a part of its own.
    TrackingError where the disk is full or the folder is closed.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _aside(path) as (aside, file):
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                aside.replace(path)
            except BaseException:
                with suppress(OSError):
                    aside.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise TrackingError(f"file: {path}; one that can be written ({error.strerror or error})") from None
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def _aside(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """The path of an empty file beside `path`, and the file, which nobody else writes to within the block."""
    aside = path.with_name(f".{path.name}.part")
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(locks.awaited(aside))
            file = stack.enter_context(os.fdopen(handle, "r+b", closefd=False))
            file.truncate(0)  # not before it is locked
        except OSError:  # a file system without locks, or somebody else's part
            with suppress(OSError):
                aside.unlink()
            aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
            file = stack.enter_context(aside.open("x+b"))
        yield aside, file


def write_text(path: Path, text: str) -> None:
    """A text file (UTF-8) in place of what was there, whole or not at all."""
    with whole(path) as file:
        file.write(text.encode())


def copy(source: Path, target: Path) -> None:
    """A copy of a file in place of what was there, whole or not at all, whoever else writes it."""
    with source.open("rb") as original, whole(target) as file:
        shutil.copyfileobj(original, file)


def expanded(word: str) -> Path:
    """A path with `~` replaced; as it stands where no home folder is known (so does a shell)."""
    with suppress(RuntimeError):
        return Path(word).expanduser()
    return Path(word)


def is_there(path: Path) -> bool:
    """True if there is anything at a path; a path that no system could have is not there."""
    with suppress(OSError, ValueError):
        return path.exists()
    return False


def regular(path: Path, most: int | None = None) -> Path:
    """The path; OSError unless it is a regular file (no folder, pipe or device, which may never end) of at most `most` bytes."""
    try:
        status = path.stat()
    except ValueError as error:  # a zero byte in the name
        raise OSError(str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError("a folder, not a file" if stat.S_ISDIR(status.st_mode) else "a pipe or device, not a file")
    if most is not None and status.st_size > most:
        raise OSError(f"{status.st_size} bytes, at most {most}")
    return path
