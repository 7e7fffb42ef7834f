"""Signals that end a command, as exceptions: one is enough, and a run's last words are not interrupted by more of them."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hardbench.errors import Killed

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
GRACE = 5.0  # seconds in which further signals are the same wish: what the first one has begun to clear away is left alone

_held: list[list[int]] = []  # signals that wait, a list per `held` block
_raised = float("-inf")
_leaving = False


def _end(number: int, frame: FrameType | None) -> None:
    """Raise what the signal means, unless its like was raised just before or something holds it."""
    global _raised
    if _held:
        _held[-1].append(number)
    elif not _leaving and time.monotonic() - _raised > GRACE:
        _raised = time.monotonic()
        raise KeyboardInterrupt if number == signal.SIGINT else Killed(number)


def catch() -> dict[int, Any]:
    """From now on Ctrl-C is KeyboardInterrupt, and SIGTERM, SIGHUP and SIGQUIT are Killed; the handlers there were.

    What is ignored stays ignored (nohup).
    """
    global _raised
    there = {number: signal.getsignal(number) for number in ENDING}
    before: dict[int, Any] = {number: handler for number, handler in there.items() if handler not in (signal.SIG_IGN, None, _end)}
    for number in before:
        signal.signal(number, _end)
    _raised = float("-inf") if before else _raised
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
    before = catch()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _leaving = _leaving and not before


@contextmanager
def held() -> Iterator[None]:
    """Within the block signals wait; the first of them comes after it, unless the block is left by one that came before."""
    _held.append([])
    going = isinstance(sys.exception(), (KeyboardInterrupt, Killed))
    try:
        yield
    finally:
        waiting = _held.pop()
        if waiting and not going:
            signal.raise_signal(waiting[0])
