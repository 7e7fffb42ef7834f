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
        self._flying: list[str] = []

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
            baseline = self.plan.cells[index].baseline if index is not None else float(done.tags.get("hardbench.baseline", "nan"))
            self.table.add(key, done, baseline)
        self._tables(now=True)

    def prepare(self, job: Job) -> Job:
        """A job that writes its own run gets one to write to."""
        if job.call == jobs.STACK:
            return job
        index = job.parts[0].cell
        self._opened[index] = self._new(index, "a cell of a sweep").id
        return dataclasses.replace(job, payload={**job.payload, "run": self._opened[index]})

    def _new(self, index: int, note: str) -> tracking.Run:
        cell = self.plan.cells[index]
        tags = {**(getattr(cell.config, "tag", None) or {}), CELL: cell.key, "hardbench.baseline": f"{cell.baseline:.10g}"}
        note = f"{cell.label}\n{note}"
        return tracking.open_cell(self.parent, self.plan.study, cell.config, cell.label, note, tags, self.table.swept)

    # meanwhile

    def started(self, working: Sequence[Job]) -> None:
        """Note which cells are being worked on, for those who ask meanwhile."""
        keys = sorted({self.plan.cells[part.cell].key for job in working for part in job.parts})
        if keys != self._flying:
            self._flying = keys
            self.parent.write_text(IN_FLIGHT, "\n".join(keys))

    def take(self, result: Result) -> list[Job]:
        """Store what a job has made; jobs to run in its place, where a stack failed that can be taken apart."""
        job, index = result.job, result.job.parts[0].cell
        if result.error is not None and len(job.parts) > 1:
            return [jobs.stack_job(self.plan.cells, [part]) for part in job.parts]
        self.networks += job.networks
        if result.error is not None:
            self._fail(index, result.error)
        elif job.call == jobs.STACK:
            for part, trained in zip(job.parts, result.value, strict=True):
                self._add(part, trained)
        else:
            tracking.end_cell(self.parent, self._opened[index])
            self._finished(index, self._opened[index])
        self._tables()
        return []

    def _add(self, part: jobs.Part, result: TrainResult) -> None:
        index = part.cell
        if index in self._failed:
            return
        cell, parts = self.plan.cells[index], self._parts.setdefault(index, {})
        parts[part.first] = result
        ordered = [parts[first] for first in sorted(parts)]
        seconds = np.concatenate([np.full(len(trained.arrays["stopped_step"]), trained.seconds) for trained in ordered])
        if len(seconds) < cell.networks:
            return
        whole = joined(ordered)
        del self._parts[index]
        with signals.held():  # what is finished gets stored whole
            run = self._new(index, f"{cell.networks} networks of a sweep, {whole.train_samples} training samples")
            try:
                with tracking.closing_cell(run):
                    run.write_arrays(SECONDS, {"": seconds})
                    store_cell(run, cast(TrainingSettings, cell.config), whole)
            except TrainingError as error:  # networks diverged: what they measured is kept
                self._note_failure(index, str(error))
                self._replaced(index, run.id)
                return
            self._finished(index, run.id)

    def _finished(self, index: int, run_id: str) -> None:
        cell = self.plan.cells[index]
        self.plan.states[index] = "done"
        self.table.add(cell.key, StoredRun(self.parent.client, self.parent.client.get_run(run_id)), cell.baseline)
        row = self.table.cells[cell.key]
        if "test_accuracy" in row:
            self._last = f"{cell.label}: {np.nanmean(row['test_accuracy']):.4f}"
        self._replaced(index, run_id)

    def _replaced(self, index: int, run_id: str) -> None:
        """Earlier runs of the same cell go: one that failed, one half-written, one that was to be computed again."""
        for run in self.plan.runs.pop(self.plan.cells[index].key, []):
            if run.id != run_id and run.status != "RUNNING":  # another campaign may be at work on one
                self.parent.client.delete_run(run.id)  # moves it to the store's trash

    def _fail(self, index: int, error: str) -> None:
        """A FAILED run with the error."""
        if index in self._failed:
            return
        line = error.partition("\n")[0]
        self._note_failure(index, line)
        with signals.held():  # what is finished gets stored whole
            run_id = self._opened.get(index)
            if run_id is None:
                run = self._new(index, line)
                run.write_text(ERROR, error)
                run_id = run.id
            tracking.end_cell(self.parent, run_id, "FAILED", line)
            self._replaced(index, run_id)

    def _note_failure(self, index: int, line: str) -> None:
        self._failed[index] = f"{self.plan.cells[index].label}: {line}"
        self.plan.states[index] = "failed"
        console.warn(self._failed[index])

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
                tracking.end_cell(self.parent, run_id, "KILLED", "the sweep ended before it")

    def failed(self) -> list[str]:
        """A line per cell that failed, now or before."""
        return [self._failed.get(index) or self._failed_before(index) for index, state in self.plan.states.items() if state == "failed"]

    def _failed_before(self, index: int) -> str:
        cell = self.plan.cells[index]
        runs = self.plan.runs.get(cell.key, [])
        return f"{cell.label}: failed before ({runs[0].tags.get('error', 'without an error') if runs else 'its run is gone'})"
