"""Locks of files: held by one process, free when it ends, however it ends, and seen from every container on the machine."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hardbench.errors import TrackingError

WAIT = 60.0  # seconds that a lock on a store is waited for: making a store takes ten


@contextmanager
def awaited(path: Path, refuse: Callable[[], object] = lambda: None, pause: float = 0.02, needed: str = "") -> Iterator[int]:
    """Within the block this process has the lock, by the handle that comes. Folders on the way are made, no link is followed.

    While another one has it, `refuse` is called before every pause (seconds), and may end the waiting. Where nothing can be locked:
    TrackingError of the line `needed`, with the reason, or without one the OSError.
    """
    while True:
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                handle = _open(path, os.O_RDWR | os.O_CREAT)
                stack.callback(os.close, handle)
                locked = _locked(handle, path)
            except OSError as error:
                if not needed:
                    raise
                raise TrackingError(f"{needed} ({error.strerror})") from None
            if locked:
                yield handle
                return
        refuse()
        time.sleep(pause)


def _locked(handle: int, path: Path) -> bool:
    with suppress(BlockingIOError, FileNotFoundError):  # held, or removed by who held it
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


def free(path: Path) -> bool | None:
    """True if nobody holds the lock; None if there is none, or none that can be asked."""
    with ExitStack() as stack, suppress(OSError, TrackingError):
        handle = _open(path, os.O_RDWR)
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
    return None


def _open(path: Path, how: int) -> int:
    if path.is_symlink():
        raise TrackingError(f"lock: {path}; a file of its own, and this is a link")
    try:
        return os.open(path, how | os.O_NOFOLLOW, 0o666)
    except PermissionError:  # somebody else's, which can be locked all the same
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)


_held: set[Path] = set()  # locks that a `waited` of this process has


@contextmanager
def waited(path: Path) -> Iterator[None]:
    """Within the block this process has the lock, also if it had it before; TrackingError if it is not to be had within a minute."""
    if path in _held:
        yield
        return
    until = time.monotonic() + WAIT

    def refuse() -> None:
        if time.monotonic() > until:
            raise TrackingError(f"lock: {path}; another command has held it for {WAIT:.0f} s")

    with awaited(path, refuse, needed=f"lock: {path}; a file that can be made and locked"):
        _held.add(path)
        try:
            yield
        finally:
            _held.remove(path)
