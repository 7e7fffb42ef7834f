"""Signals that end a command, as exceptions: one is enough, and a run's last words are not interrupted by more of them."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hardbench.errors import Killed

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
SWALLOWED = 0.01  # seconds after which a signal comes again whose exception came up where Python drops it

_held: list[list[int]] = []  # signals that wait, a list per `held` block
_leaving = False
_unraisable = sys.unraisablehook


def _end(number: int, frame: FrameType | None) -> None:
    """Raise what the signal means, unless its like is being cleared away after, or something holds it."""
    if _held:
        _held[-1].append(number)
    elif not _leaving and not _going():
        raise KeyboardInterrupt if number == signal.SIGINT else Killed(number)


def _going() -> bool:
    """True if what runs now is an `except`, `finally` or `__exit__` that a signal has led to: it is left alone."""
    error = sys.exception()
    while error is not None and not isinstance(error, (KeyboardInterrupt, Killed)):
        error = error.__context__
    return error is not None


def _dropped(unraisable: Any) -> None:
    """Send a signal again whose exception came up in a `__del__` or a weak reference's callback, where it leads nowhere."""
    error = unraisable.exc_value
    if isinstance(error, (KeyboardInterrupt, Killed)):
        number = error.number if isinstance(error, Killed) else signal.SIGINT
        threading.Timer(SWALLOWED, os.kill, (os.getpid(), number)).start()
    else:
        _unraisable(unraisable)


def catch() -> dict[int, Any]:
    """From now on Ctrl-C is KeyboardInterrupt, and SIGTERM, SIGHUP and SIGQUIT are Killed; the handlers there were.

    What is ignored stays ignored (nohup).
    """
    global _unraisable
    caught = [number for number in ENDING if signal.getsignal(number) not in (signal.SIG_IGN, None, _end)]
    before = {int(number): signal.signal(number, _end) for number in caught}
    if before and sys.unraisablehook is not _dropped:
        _unraisable, sys.unraisablehook = sys.unraisablehook, _dropped
    return before


def leave() -> None:
    """A signal has ended the work: what remains to be done is done whatever more of them come, until the block or the program ends."""
    global _leaving
    _leaving = True


def ignore() -> None:
    """The program is over: a signal would but spoil its exit code."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def ending() -> Iterator[None]:
    """Within the block signals are as `catch` has them."""
    global _leaving
    hook, before = sys.unraisablehook, catch()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)
        _leaving = _leaving and not before


@contextmanager
def held() -> Iterator[None]:
    """Within the block signals wait; the first of them comes after it, unless the block is left by one that came before.

    They come in the main thread alone: in another one the block holds nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held.append([])
    going = _going()
    try:
        yield
    finally:
        waiting = _held.pop()
        if waiting and not going:
            signal.raise_signal(waiting[0])
