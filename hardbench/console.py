"""Output in the terminal: progress with time left, tables, lines. Plain lines where there is no terminal.

Names and messages come from outside: nothing in them is read as markup, emoji codes or control characters.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from hardbench.errors import printable

PLAIN_SECONDS = 10.0
WIDE = 1000  # columns of a table that goes into a file or pipe
_out = Console(width=None if sys.stdout.isatty() else WIDE, markup=False, emoji=False, highlight=False)
_err = Console(stderr=True, markup=False, emoji=False, highlight=False)


def say(line: str) -> None:
    """One line of result."""
    _out.print(_text(line, _out), soft_wrap=True)


def warn(line: str) -> None:
    """One line of warning, on stderr."""
    _err.print(_text(f"warning: {line}", _err), style="yellow", soft_wrap=True)


def _text(words: object, console: Console) -> str:
    return printable(str(words), console.encoding)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table; columns of numbers are aligned to the right."""
    grid = Table(title=_text(title, _out), title_justify="left", title_style="bold")
    cells = [[_text(cell, _out) for cell in row] for row in rows]
    for i, column in enumerate(columns):
        numbers = all(row[i][:1] in "0123456789.-+" for row in cells)
        grid.add_column(_text(column, _out), justify="right" if numbers else "left", overflow="fold")
    for row in cells:
        grid.add_row(*row)
    _out.print(grid)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A function of (steps done, a short text) that updates a bar with the time left; without a terminal it prints a line now and then."""
    if not _err.is_terminal:
        yield _plain(title, total)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task(_text(title, _err), total=total, text="")
        yield lambda done, text: bar.update(task, completed=done, text=_text(text, _err))


def _plain(title: str, total: int) -> Callable[[int, str], None]:
    began = shown = time.monotonic()
    first: int | None = None

    def show(done: int, text: str) -> None:
        nonlocal shown, first
        now = time.monotonic()
        first = done if first is None else first
        if now - shown >= PLAIN_SECONDS and done > first:
            shown = now
            left = (now - began) / (done - first) * (total - done)
            _err.print(_text(f"{title} {done}/{total} {text} {left:.0f} s left", _err), soft_wrap=True)

    return show
