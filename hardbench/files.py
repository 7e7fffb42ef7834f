"""Files that are there whole or not at all, whatever happens while they are written."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hardbench.errors import TrackingError


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends: written aside, synced, renamed into place; removed if the block fails.

    Folders on the way are made. A kill at any moment leaves the former file or the new one, never a part (perhaps `.NAME.part` beside it).
    TrackingError where the disk is full or the folder is closed.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise TrackingError(f"file: {path}; one that can be written ({error.strerror or error})") from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """A text file (UTF-8) in place of what was there, whole or not at all."""
    with whole(path) as file:
        file.write(text.encode())
