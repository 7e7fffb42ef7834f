"""Threads that spin briefly and then sleep, as the command line has them, against OpenMP's own way: alone, and beside six busy processes.

Each form is a process of its own, since OpenMP reads its variables once: it trains three perceptrons on MNIST with two threads, ready
before anything is timed, as many steps at every call.
"""

import functools
import os
import subprocess
import sys
from contextlib import ExitStack

from benchmarks import mnist
from benchmarks.row import WALL, DifferentError, Goal, Piece, Row
from hardbench.openmp import PREFIXES, WAITING

BUSY, THREADS = 6, 2


def serve(steps: int) -> None:
    """Train that many steps for every line that comes in, and answer with the mean loss of the last."""
    from dataclasses import replace

    from hardbench.studies import train

    course = train.set_up(replace(mnist.config(20_000, repeats=3, epochs=100), threads=THREADS))
    for _ in sys.stdin:
        for _ in range(steps):
            scalars = course.learner.update(*course.batches.draw())
        sys.stdout.write(f"{scalars['loss'].mean().item()}\n")
        sys.stdout.flush()


def trained(policy: dict[str, str], busy: int, quick: bool) -> Piece:
    """Training under a policy, beside so many busy processes: few steps there, as OpenMP's own way may take seconds for one."""
    steps = (2 if quick else 10) if busy else (20 if quick else 150)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(PREFIXES)} | policy
    code = f"from benchmarks.rows.waiting import serve; serve({steps})"
    server = subprocess.Popen([sys.executable, "-c", code], env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def call() -> float:
        with ExitStack() as stack:
            for _ in range(busy):
                other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
                stack.callback(other.kill)
            assert server.stdin is not None and server.stdout is not None
            server.stdin.write("\n")
            server.stdin.flush()
            return float(server.stdout.readline())

    def close() -> None:
        with server:  # waits for its end, which the end of its input is
            pass

    return Piece(call, units=steps, close=close)


def same(expected: float, found: float) -> str:
    """The numbers do not hang on how threads wait."""
    if expected != found:
        raise DifferentError(f"losses {expected:.9g} and {found:.9g}")
    return f"loss {found:.6f} in both"


def _row(name: str, work: str, busy: int, goal: Goal) -> Row:
    plain, ours = (functools.partial(trained, policy, busy) for policy in ({}, WAITING))
    words = f"three perceptrons, {THREADS} threads, {work}; waiting as the command line has it, against OpenMP's own way"
    return Row(name, words, "step", plain, ours, same, goal, WALL, THREADS, needs=("mnist",), memory=False, goal_if_quick=False, rounds=3)


ROWS = [
    _row("waiting_idle", "alone", 0, Goal("share", 1.03)),
    _row("waiting_busy", f"beside {BUSY} busy processes", BUSY, Goal("faster", 3)),
]
