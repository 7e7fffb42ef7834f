"""The plan of a campaign: cells that are finished, running, failed or to do, and the time and memory that the rest needs."""

import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hardbench import tracking
from hardbench.campaign import jobs
from hardbench.campaign.grid import Cell, digest, label, numbers
from hardbench.campaign.jobs import Job
from hardbench.config import Config
from hardbench.metrics.classification import nearest_mean_accuracy
from hardbench.settings import TrainingSettings
from hardbench.stored import StoredRun
from hardbench.training.loop import fit
from hardbench.training.setup import data_key, remembered, train_setup

CELL = "hardbench.cell"
PROBE_SECONDS = 1.0


@dataclass
class Plan:
    """The cells of a sweep, in order, with what the store knows of each."""

    study: str
    cells: list[Cell]
    runs: dict[str, list[StoredRun]] = field(default_factory=dict)  # of a cell's hash, newest first
    states: dict[int, str] = field(default_factory=dict)  # done, running, failed, to do

    def todo(self, retry_failed: bool, rerun: bool) -> list[int]:
        """The cells to compute now."""
        wanted = {"to do", "running"} | ({"failed"} if retry_failed or rerun else set()) | ({"done"} if rerun else set())
        return [index for index, state in self.states.items() if state in wanted]


def make(study: str, version: int, configs: Sequence[Config], swept: Sequence[str]) -> Plan:
    """The plan for these configurations; `version` is raised when the study's numbers change. DataError if samples cannot be read."""
    known: dict[str, tuple[str, float]] = {}
    plan = Plan(study, [])
    for config in configs:
        samples, baseline = "", float("nan")
        if isinstance(config, TrainingSettings):
            data = data_key(config)
            samples, baseline = known[data] = known.get(data) or _samples(config)
        key = digest(study, version, numbers(config), samples)
        plan.cells.append(Cell(config, key, label(config, swept), samples, baseline))
    refresh(plan, ())
    return plan


def _samples(config: TrainingSettings) -> tuple[str, float]:
    """Digest, and accuracy of the nearest class mean."""
    split = remembered(replace(config, noise_ratio=0.0), config.seed)
    sets = (split.train.inputs, split.train.labels, split.test.inputs, split.test.labels)
    return split.digest, nearest_mean_accuracy(*sets, split.num_classes)


def refresh(plan: Plan, in_flight: Sequence[str]) -> None:
    """Ask the store for the runs of the cells; `in_flight` are hashes that a living sweep works on."""
    plan.runs = {}
    for stored in tracking.runs(cells=True):
        if CELL in stored.tags:
            plan.runs.setdefault(stored.tags[CELL], []).append(stored)
    for index, cell in enumerate(plan.cells):
        statuses = [run.status for run in plan.runs.get(cell.key, [])]
        running = cell.key in in_flight
        state = "running" if running else "done" if "FINISHED" in statuses else "failed" if "FAILED" in statuses[:1] else "to do"
        plan.states[index] = state


def probe(settings: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that a stack of `settings` takes to set up and to train, from a second of training, and the memory in MiB it needs."""
    began = time.monotonic()
    config = TrainingSettings(**settings)
    setup = train_setup(config, load=remembered)
    ready = time.monotonic()
    fit(setup.learner, setup.batches, 1)
    started, until = time.monotonic(), 1
    while time.monotonic() - started < PROBE_SECONDS and until < setup.total:
        until += 1
        fit(setup.learner, setup.batches, until)
    step = (time.monotonic() - started) / max(1, until - 1) if until > 1 else started - ready
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"set_up": ready - began, "training": step * setup.total, "memory": peak}


def probes(cells: Sequence[Cell], todo: Sequence[Job]) -> list[tuple[Job, list[Job]]]:
    """One probe per kind of stack, and the jobs it stands for; activations cost much the same."""
    kinds: dict[str, list[Job]] = {}
    for job in todo:
        if job.call == jobs.STACK:
            config = cells[job.parts[0].cell].config
            unlike = (*jobs.OWN, "activation", "init", "lr")
            key = digest({name: value for name, value in numbers(config).items() if name not in unlike}, job.networks)
            kinds.setdefault(key, []).append(job)
    settings = [{**same[0].payload[0], "repeats": same[0].networks} for same in kinds.values()]
    return [(Job(same[0].parts, f"{__name__}:probe", asked), same) for same, asked in zip(kinds.values(), settings, strict=True)]
