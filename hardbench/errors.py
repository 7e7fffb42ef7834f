"""The whole error vocabulary: one line each, `setting: what came; what is allowed`, and the exit code that it becomes."""

import difflib
import signal
from collections.abc import Iterable


class HardbenchError(Exception):
    """Anything a user can mend; every other exception is a bug and keeps its traceback. Its text is one line, whatever went into it."""

    exit_code = 1

    def __init__(self, text: str):
        super().__init__(brief(text, 2000))


class ConfigError(HardbenchError):
    """A setting that is unknown, malformed, out of range or not read."""

    exit_code = 2


class DataError(HardbenchError):
    """A data set that is missing, damaged or does not fit the settings."""

    exit_code = 3


class TrainingError(HardbenchError):
    """A training that cannot go on: a loss that is not finite, a checkpoint that cannot be read.

    `measured`: the study has stored all that it measured before it came to this. `finished`: its run is FINISHED all the same.
    """

    exit_code = 4

    def __init__(self, line: str, measured: bool = False, finished: bool = False):
        super().__init__(line)
        self.measured, self.finished = measured, finished


class TrackingError(HardbenchError):
    """A run that is unknown, ambiguous or in the wrong state, or a store that cannot be used."""

    exit_code = 5


class Killed(BaseException):
    """SIGTERM, SIGHUP or SIGQUIT, as an exception, so that a run ends as KILLED and the program with exit code 128 + `number`."""

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(number)  # what an exception is made of again where it is unpickled
        self.number = number

    def __str__(self) -> str:
        return signal.Signals(self.number).name


def brief(value: object, most: int = 200) -> str:
    """A value in one line that a terminal shows as it is: unprintable characters escaped, the middle left out where it is long."""
    try:
        text = str(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        text = "a number of thousands of digits"
    if len(text) > most:
        text = f"{text[: most // 2]} ... {text[-(most // 2) :]}"
    return printable(text)


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word most like `word` as `nearest: x`, else all of them as `one of a, b, c`."""
    known = list(known)
    folded = {name.lower().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(word.lower().replace("-", "_"), folded, n=1, cutoff=0.6)
    return f"nearest: {folded[close[0]]}" if close else f"one of {', '.join(known)}"


def printable(text: str, encoding: str = "utf-8") -> str:
    """The text as one line that shows what it holds: what an encoding lacks, controls and marks of direction as backslash escapes."""
    shown = "".join(c if c.isprintable() or c in "\u200c\u200d" else c.encode("unicode_escape").decode() for c in text)
    return shown.encode(encoding, "backslashreplace").decode(encoding)
