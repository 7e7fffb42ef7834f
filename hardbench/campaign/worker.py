"""A worker process: takes jobs from a pipe, one after the other, and ends with its parent, however that ends."""

import importlib
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PINNED = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1")


def attempt(call: str, payload: Any) -> tuple[Any, str | None]:
    """The value of a function (`module:name`) for its payload, or None and the error as text, the line first and its traceback after."""
    module, _, name = call.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(payload), None
    except Exception as error:  # whatever a job does, the campaign goes on
        return None, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"


def serve(pipe: Connection) -> None:
    """Jobs until the pipe ends or the parent is gone. Ctrl-C is the parent's; what jobs print goes nowhere."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    sys.stdout = sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
    with suppress(EOFError):
        while True:
            pipe.send(attempt(*pipe.recv()))


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
