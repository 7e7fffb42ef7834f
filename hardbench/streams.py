"""Standard output and error that may be closed or full: nobody's lost terminal ends a training."""

import errno
import os
import sys
from typing import Any, TextIO


class Lenient:
    """A text stream whose writes never fail: what cannot be written is dropped, and so is all that comes after it."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """Write, as far as that goes."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, as far as that goes."""
        self._try(self._stream.flush)

    def _try(self, act: Any) -> None:
        try:
            act()
        except OSError as error:
            self.lost = self.lost or error
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())  # what is in the buffer goes there at exit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def guard() -> None:
    """Make both streams lenient; a closed one is /dev/null (or the next file opened, the store perhaps, would take its number)."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115
    sys.stdout, sys.stderr = Lenient(sys.stdout), Lenient(sys.stderr)


def report() -> None:
    """One line on standard error where output was lost, but for a reader that has gone (`| head`)."""
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if lost is not None and lost.errno != errno.EPIPE:
        sys.stderr.write(f"hardbench: output: {lost.strerror}; what was to be shown is in the store\n")
    sys.stderr.flush()
