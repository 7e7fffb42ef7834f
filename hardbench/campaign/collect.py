"""Conduct a campaign: results become runs as they come, by one writer; what failed is known by its run."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np

from hardbench import console, files, signals, tracking
from hardbench.artifacts import ARRAYS, ERROR, IN_FLIGHT, PER_CELL, PER_RUN, SECONDS
from hardbench.campaign import jobs, results
from hardbench.campaign.executors import Result
from hardbench.campaign.jobs import Job
from hardbench.campaign.plan import CELL, Plan
from hardbench.campaign.results import Table
from hardbench.errors import TrainingError
from hardbench.settings import TrainingSettings
from hardbench.stored import StoredRun
from hardbench.trained import store_cell
from hardbench.training.core import TrainResult, joined

EVERY = 2.0  # seconds between two writings of the tables
ALSO = "hardbench.also"  # tag of a cell that a further sweep counts as its own, with that sweep's id


class Campaign:
    """The parent's side: `take` a result, and its cells become runs when all their parts are there."""

    def __init__(self, parent: tracking.Run, plan: Plan, swept: Sequence[str], out: Path):
        self.parent, self.plan, self.out = parent, plan, out
        self.table = Table(swept)
        self.networks = 0  # trained by this command
        self._parts: dict[int, dict[int, TrainResult]] = {}
        self._failed: dict[int, str] = {}
        self._opened: dict[int, str] = {}
        self._began = time.monotonic()
        self._written = 0.0
        self._last = ""
        self._flying = ""

    # before

    def known(self, todo: Sequence[int]) -> None:
        """Take the finished cells of this campaign into the table: of this plan, and of earlier ones of the same parent."""
        here = {cell.key: index for index, cell in enumerate(self.plan.cells)}
        for key, runs in self.plan.runs.items():
            index = here.get(key)
            mine = [run for run in runs if run.tags.get(tracking.PARENT) == self.parent.id or self.parent.id in run.tags.get(ALSO, "")]
            done = next((run for run in (runs if index is not None else mine) if run.status == "FINISHED"), None)
            if done is None or index in todo:
                continue
            if done not in mine:
                self.parent.client.set_tag(done.id, ALSO, f"{done.tags.get(ALSO, '')} {self.parent.id}".strip())
            self.table.add(key, done, self._baseline(done, index))
        self._tables(now=True)

    def _baseline(self, run: StoredRun, index: int | None) -> float:
        return self.plan.baselines[index] if index is not None else float(run.tags.get("hardbench.baseline", "nan"))

    def prepare(self, job: Job) -> Job:
        """A job that writes its own run gets one to write to."""
        if job.call == jobs.STACK:
            return job
        return dataclasses.replace(job, payload={**job.payload, "run": self._open(job.parts[0].cell)})

    def _open(self, index: int) -> str:
        if index not in self._opened:
            self._opened[index] = self._new(index, "a cell of a sweep").id
        return self._opened[index]

    def _new(self, index: int, note: str) -> tracking.Run:
        cell = self.plan.cells[index]
        note = f"{cell.label}\n{note}"
        return tracking.open_cell(self.parent, self.plan.study, cell.config, cell.label, note, self._tags(index), self.table.swept)

    def _tags(self, index: int) -> dict[str, str]:
        tags = dict(getattr(self.plan.cells[index].config, "tag", None) or {})
        return {**tags, CELL: self.plan.cells[index].key, "hardbench.baseline": f"{self.plan.baselines[index]:.10g}"}

    # meanwhile

    def started(self, working: Sequence[Job]) -> None:
        """Note which cells are being worked on, for those who ask meanwhile."""
        keys = sorted({self.plan.cells[part.cell].key for job in working for part in job.parts})
        text = "\n".join(keys)
        if text != self._flying:
            self._flying = text
            self.parent.write_text(IN_FLIGHT, text)

    def take(self, result: Result) -> list[Job]:
        """Store what a job has made; jobs to run in its place, where a stack failed that can be taken apart."""
        job = result.job
        if result.error is not None and len(job.parts) > 1:
            return list(jobs.split(self.plan.cells, job))
        self.networks += job.networks
        if result.error is not None:
            self._fail(job.parts[0].cell, result.error)
        elif job.call == jobs.STACK:
            for part, own in zip(job.parts, result.value, strict=True):
                self._add(part, own)
        else:
            self._end(job.parts[0].cell, None)
        self._tables()
        return []

    def _add(self, part: jobs.Part, result: TrainResult) -> None:
        index = part.cell
        if index in self._failed:
            return
        cell, parts = self.plan.cells[index], self._parts.setdefault(index, {})
        parts[part.first] = result
        if sum(len(one.arrays["stopped_step"]) for one in parts.values()) < cell.networks:
            return
        ordered = [parts[first] for first in sorted(parts)]
        seconds = np.concatenate([np.full(len(one.arrays["stopped_step"]), one.seconds) for one in ordered])
        whole = joined(ordered)
        del self._parts[index]
        with signals.held():  # what is finished gets stored whole
            run = self._new(index, f"{cell.networks} networks of a sweep, {whole.train_samples} training samples")
            try:
                with tracking.closing_cell(run):
                    run.write_arrays(SECONDS, {"": seconds})
                    store_cell(run, cast(TrainingSettings, cell.config), whole)
            except TrainingError as error:  # networks diverged: what they measured is kept
                self._failed[index] = f"{cell.label}: {error}"
                self.plan.states[index] = "failed"
                console.warn(self._failed[index])
                self._replaced(index, run.id)
                return
            self._finished(index, run.id)

    def _finished(self, index: int, run_id: str) -> None:
        cell = self.plan.cells[index]
        self.plan.states[index] = "done"
        stored = StoredRun(self.parent.client, self.parent.client.get_run(run_id))
        self.table.add(cell.key, stored, self.plan.baselines[index])
        row = self.table.cells[cell.key]
        if "test_accuracy" in row:
            self._last = f"{cell.label}: {np.nanmean(row['test_accuracy']):.4f}"
        self._replaced(index, run_id)

    def _replaced(self, index: int, run_id: str) -> None:
        """Earlier runs of the same cell go: one that failed, one half-written, one that was to be computed again."""
        there = self.plan.runs.get(self.plan.cells[index].key, [])
        earlier = [run.id for run in there if run.id != run_id and run.status != "RUNNING"]  # another campaign may be at work on one
        tracking.discard(self.parent, earlier)
        self.plan.runs[self.plan.cells[index].key] = []

    def _fail(self, index: int, error: str) -> None:
        """A FAILED run with the error."""
        if index in self._failed:
            return
        cell, line = self.plan.cells[index], error.partition("\n")[0]
        self._failed[index], self.plan.states[index] = f"{cell.label}: {line}", "failed"
        console.warn(self._failed[index])
        if index in self._opened:
            self._end(index, error)
            return
        with signals.held():  # what is finished gets stored whole
            run = self._new(index, line)
            run.write_text(ERROR, error)
            tracking.end_cell(self.parent, run.id, line)
            self._replaced(index, run.id)

    def _end(self, index: int, error: str | None) -> None:
        run_id = self._opened[index]
        tracking.end_cell(self.parent, run_id, None if error is None else error.partition("\n")[0])
        if error is None:
            self._finished(index, run_id)
        else:
            self._replaced(index, run_id)

    def status(self) -> str:
        """A line on how it goes."""
        done = sum(1 for state in self.plan.states.values() if state in ("done", "failed"))
        rate = 60 * self.networks / max(1e-9, time.monotonic() - self._began)
        return f"{done}/{len(self.plan.cells)} cells, {rate:.3g} networks/min {self._last}"

    def _tables(self, now: bool = False) -> None:
        if now or time.monotonic() - self._written > EVERY:
            for name, table in ((PER_RUN, self.table.per_run()), (PER_CELL, self.table.summary())):
                results.write(self.parent.folder / name, table)
                files.copy(self.parent.folder / name, self.out / name)
            self._written = time.monotonic()

    # at the end

    def close(self) -> None:
        """Write the tables and the arrays of the figures, and end cells that are still open."""
        self._tables(now=True)
        self.parent.write_arrays(ARRAYS, self.table.arrays())
        for name in (PER_RUN, PER_CELL):
            self.parent.publish(name)
        self.parent.remove(IN_FLIGHT)
        for index, run_id in self._opened.items():
            if self.plan.states[index] not in ("done", "failed"):
                tracking.end_cell(self.parent, run_id, "the sweep ended before it", killed=True)

    def failed(self) -> list[str]:
        """A line per cell that failed, now or before."""
        return [
            self._failed.get(index, f"{self.plan.cells[index].label}: {self._before(index)}")
            for index, state in self.plan.states.items()
            if state == "failed"
        ]

    def _before(self, index: int) -> str:
        """The error of a cell that failed under an earlier command."""
        runs = self.plan.runs.get(self.plan.cells[index].key, [])
        return f"failed before ({runs[0].tags.get('error', 'without an error') if runs else 'its run is gone'})"
