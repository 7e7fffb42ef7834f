"""Threads that wait as the command line has them, against OpenMP's own way: alone, and beside six busy processes.

Each form is a process of its own, since OpenMP reads its variables once, and starts beside the busy ones: it trains three perceptrons on
MNIST with two threads, ready before anything is timed, as many steps at every call.
"""

import functools
import os
import signal
import subprocess
import sys
import time
from typing import Any

from benchmarks import mnist
from benchmarks.row import WALL, DifferentError, Goal, Row, Workload
from hardbench.openmp import PREFIXES

BUSY, THREADS = 6, 2


def serve(steps: int) -> None:
    """Train that many steps for every line that comes in, and answer with the mean loss of the last; the first answer says it is ready."""
    from dataclasses import replace

    from hardbench.training.setup import train_setup

    setup = train_setup(replace(mnist.config(20_000, repeats=3, epochs=100), threads=THREADS))
    sys.stdout.write("\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        for _ in range(steps):
            scalars = setup.learner.update(*setup.batches.draw())
        sys.stdout.write(f"{scalars['loss'].mean().item()}\n")
        sys.stdout.flush()


def trained(briefly: bool, busy: int, quick: bool) -> Workload:
    """Training under the command line's policy or OpenMP's own, beside so many busy processes: fewer steps there, which take longer."""
    steps = (5 if quick else 40) if busy else (20 if quick else 200)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)}
    policy = "from hardbench.openmp import set_policy; set_policy(); " if briefly else ""
    code = f"{policy}from benchmarks.rows.waiting import serve; serve({steps})"
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    if busy:
        time.sleep(1)  # until they are at it
    server = subprocess.Popen([sys.executable, "-c", code], env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(number: signal.Signals) -> None:
        for other in others:
            other.send_signal(number)

    def call() -> float:
        assert server.stdin is not None and server.stdout is not None
        tell(signal.SIGCONT)
        server.stdin.write("\n")
        server.stdin.flush()
        loss = float(server.stdout.readline())
        tell(signal.SIGSTOP)
        return loss

    def close() -> None:
        tell(signal.SIGKILL)
        processes: list[subprocess.Popen[Any]] = [server, *others]
        for process in processes:
            with process:  # waits for its end, which for the server is the end of its input
                pass

    assert server.stdout is not None
    server.stdout.readline()
    tell(signal.SIGSTOP)
    return Workload(call, units=steps, close=close)


def same(expected: float, found: float) -> str:
    """The numbers do not hang on how threads wait."""
    if expected != found:
        raise DifferentError(f"losses {expected:.9g} and {found:.9g}")
    return f"loss {found:.6f} in both"


def _row(name: str, work: str, busy: int, goal: Goal, rounds: int) -> Row:
    plain, ours = (functools.partial(trained, briefly, busy) for briefly in (False, True))
    words = f"three perceptrons, {THREADS} threads, {work}; waiting as the command line has it, against OpenMP's own way"
    return Row(
        name, words, "step", plain, ours, same, goal, WALL, THREADS, needs=("mnist",), memory=False, goal_if_quick=False, rounds=rounds
    )


ROWS = [
    _row("waiting_idle", "alone", 0, Goal("share", 1.03), rounds=41),
    _row("waiting_busy", f"beside {BUSY} busy processes", BUSY, Goal("faster", 3), rounds=7),
]
