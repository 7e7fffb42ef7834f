"""The rows: every module here has `ROWS`. A new one is found by existing."""

import importlib
import pkgutil
from collections.abc import Sequence

from benchmarks.row import Row
from hardbench.errors import ConfigError, nearest


def everything() -> list[Row]:
    """All rows, module by module."""
    modules = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [row for module in modules for row in module.ROWS]


def chosen(words: Sequence[str]) -> list[Row]:
    """The rows of these names, or whose names begin with one; all if there are none."""
    rows = everything()
    starts = tuple(word.replace("-", "_") for word in words)
    for start in starts:
        if not any(row.name.startswith(start) for row in rows):
            raise ConfigError(f"only: {start}; {nearest(start, [row.name for row in rows])}")
    return [row for row in rows if not starts or row.name.startswith(starts)]
