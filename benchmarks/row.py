"""The frame of a row: the same work in two forms, timed in turns, checked to compute the same."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from statistics import median
from typing import Any

import torch

from benchmarks import machine

ROUNDS = 5


class DifferentError(Exception):
    """The two forms did not compute the same."""


@dataclass(frozen=True)
class Clock:
    """A clock for timing: `read` gives seconds from a fixed moment on."""

    name: str
    read: Callable[[], float]


CPU = Clock("CPU", time.process_time)
WALL = Clock("wall", time.perf_counter)


@dataclass(frozen=True)
class Workload:
    """Work that is ready to be timed: a function that is called again and again, and the units of work in one call.

    `flops` are those of the matrix products that a unit needs, however many an implementation makes; `close` releases what the setup took.
    """

    call: Callable[[], Any]
    units: int = 1
    flops: float = 0.0
    close: Callable[[], None] = lambda: None


Setup = Callable[[bool], Workload]
"""Makes a workload, a smaller one if quick. It must survive pickle: a function of a module, or a partial of one."""


@dataclass(frozen=True)
class Goal:
    """The bound that a row has to reach: `faster` (plain / hardbench) at least, `share` (hardbench / plain) or `seconds` at most."""

    kind: str
    bound: float

    def met(self, value: float) -> bool:
        """True if a measured value reaches the bound."""
        return value >= self.bound if self.kind == "faster" else value <= self.bound


@dataclass(frozen=True)
class Row:
    """One line of the table. `check` takes the results of both forms and gives a sentence, or raises DifferentError.

    A `share` is of the plain form's seconds, or of those that `reference` computes from hardbench's result.
    """

    name: str
    work: str
    unit: str
    plain: Setup
    ours: Setup
    check: Callable[[Any, Any], str]
    goal: Goal | None = None
    clock: Clock = CPU
    threads: int = 1
    precision: str = "fp32"  # of hardbench's products; the plain form is always fp32
    needs: tuple[str, ...] = ()  # words of machine.NEEDS
    reference: Callable[[Any], float] | None = None
    warm_up: bool = True  # run both once before anything is timed
    memory: bool = True  # whether the work is done in this process, where its memory can be measured
    goal_if_quick: bool = True  # whether the goal is for less work, too
    rounds: int = ROUNDS


@dataclass
class Outcome:
    """The measurements of a row: plain data, as in the JSON file. Seconds are per unit, rates in FLOP/s, memory in MiB."""

    name: str
    work: str
    unit: str
    clock: str
    threads: int
    precision: str
    skipped: str = ""
    plain: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    flops: float = 0.0
    plain_rates: list[float] = field(default_factory=list)
    ours_rates: list[float] = field(default_factory=list)
    plain_memory: float | None = None
    ours_memory: float | None = None
    same: bool = False
    check: str = ""
    goal: dict[str, Any] | None = None

    @property
    def faster(self) -> float:
        """Median of plain / median of hardbench."""
        return median(self.plain) / (median(self.ours) or inf)

    @property
    def shares(self) -> list[float]:
        """Shares of the machine's rate of matrix products that the plain form and hardbench reach; empty where no products are counted."""
        sides = ((self.plain, self.plain_rates), (self.ours, self.ours_rates))
        return [self.flops / median(seconds) / median(rates) for seconds, rates in sides if rates]

    @property
    def value(self) -> float:
        """The number that the goal bounds; without a goal how many times faster hardbench is."""
        kind = (self.goal or {}).get("kind", "faster")
        if kind == "share":
            return median(self.ours) / median(self.reference or self.plain)
        return median(self.ours) if kind == "seconds" else self.faster

    @property
    def met(self) -> bool | None:
        """True if the goal is reached; None without one."""
        return None if self.goal is None else Goal(**self.goal).met(self.value)


def measure(row: Row, quick: bool) -> Outcome:
    """Time both forms in turns, then the memory of each in a process of its own."""
    outcome = Outcome(row.name, row.work, row.unit, row.clock.name, row.threads, row.precision)
    outcome.skipped = next(filter(None, (machine.NEEDS[word]() for word in row.needs)), "")
    if outcome.skipped:
        return outcome
    if row.goal is not None and (row.goal_if_quick or not quick):
        outcome.goal = {"kind": row.goal.kind, "bound": row.goal.bound}
    torch.set_num_threads(row.threads)
    with ExitStack() as opened:
        workloads = [opened.enter_context(_closed(setup(quick))) for setup in (row.plain, row.ours)]
        _time(row, outcome, *workloads)
    if row.memory:
        works = (functools.partial(_run_once, setup, quick) for setup in (row.plain, row.ours))
        outcome.plain_memory, outcome.ours_memory = (machine.peak_memory(work, row.threads) for work in works)
    return outcome


def _run_once(setup: Setup, quick: bool) -> None:
    setup(quick).call()


@contextmanager
def _closed(workload: Workload) -> Iterator[Workload]:
    try:
        yield workload
    finally:
        workload.close()


def _time(row: Row, outcome: Outcome, plain: Workload, ours: Workload) -> None:
    outcome.flops = ours.flops
    first = (plain.call(), ours.call()) if row.warm_up else None
    for _ in range(row.rounds):
        expected, seconds = _timed(row.clock, plain)
        outcome.plain.append(seconds)
        found, seconds = _timed(row.clock, ours)
        outcome.ours.append(seconds)
        first = first or (expected, found)
        if row.reference is not None:
            outcome.reference.append(row.reference(found))
        if ours.flops:
            outcome.plain_rates.append(machine.matrix_rate("fp32", row.clock.read))
            outcome.ours_rates.append(machine.matrix_rate(row.precision, row.clock.read))
    assert first is not None
    try:
        outcome.check, outcome.same = row.check(*first), True
    except DifferentError as error:
        outcome.check = str(error)


def _timed(clock: Clock, workload: Workload) -> tuple[Any, float]:
    """The result of a workload's call, and the seconds of one unit."""
    began = clock.read()
    computed = workload.call()
    return computed, (clock.read() - began) / workload.units
