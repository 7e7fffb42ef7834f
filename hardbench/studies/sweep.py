"""Run a study over a grid of settings: planned, in parallel, resumable.

`sweep STUDY` takes every setting of the study with commas between several values (`;` where commas stand inside a value), or YAML with
`fixed:` and `grid:`. Each point of the grid is one run under one parent. The same command goes on where a campaign ended, however it did.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hardbench import console, score_runs, tracking
from hardbench.artifacts import IN_FLIGHT, PER_CELL, PER_RUN, PLAN
from hardbench.campaign import grid, jobs, plan
from hardbench.campaign.collect import Campaign
from hardbench.campaign.executors import Executor, Local, Ray
from hardbench.campaign.jobs import Job
from hardbench.campaign.plan import Plan
from hardbench.config import Config as AnyConfig, options
from hardbench.configs.sweep import CampaignSettings, Config as Config, points_of, words_of
from hardbench.errors import HardbenchError, TrainingError
from hardbench.hardness_runs import pinned_hardness
from hardbench.lifecycle import Prepared, Stages, launch
from hardbench.stored import StoredRun

STUDY = "sweep"
FIGURES = None


def cells_of(config: CampaignSettings) -> tuple[list[AnyConfig], list[str]]:
    """The configurations of all cells, and the names of the swept settings."""
    return points_of(config, _pinned), words_of(config).swept


def _pinned(study: type[AnyConfig], point: grid.Point) -> grid.Point:
    """A point with the runs that it reads by their ids: `last` is another one tomorrow."""
    pinned = dict(point)
    if "run" in options(study) and point.get("model") is None:  # a model chooses its run itself
        pinned["run"] = tracking.find(point.get("run") or "last", ["train"]).id
    if "runs" in options(study) and point.get("recording") is None:
        pinned["runs"] = tuple(run.id for run in score_runs.find(point.get("runs") or ("last",)))
    if point.get("hardness") is not None:
        pinned["hardness"] = pinned_hardness(point["hardness"])
    return pinned


@dataclass(frozen=True, kw_only=True)
class PreparedCampaign(Prepared):
    """A campaign that is planned; its run is the parent of those of its cells."""

    key: str  # what it is known by
    plan: Plan
    swept: list[str]
    executor: Executor | None  # none where only the plan is shown

    def preview(self) -> bool:
        """Show the plan where `dry_run` asks for it."""
        if self.executor is None:
            todo = self.plan.todo(self.config.retry_failed, self.config.rerun)
            _show(self.config, self.plan, _jobs(self.config, self.plan, todo))
        return self.executor is None

    def opening(self, study: str, stored: StoredRun | None) -> AbstractContextManager[tracking.Run]:
        """The campaign's run: a new one, or the one of the same key, however it ended."""
        return tracking.sweep(self.config.study, self.key, self.config, self.title, self.note, self.config.tag or {})

    def copied(self, run: tracking.Run) -> Sequence[str]:
        """The tables and figures."""
        return [PER_RUN, PER_CELL, *(name for name in dict.fromkeys(run.published) if name.startswith("figures/"))]


def prepare(config: CampaignSettings, stored: StoredRun | None = None) -> PreparedCampaign:
    """Plan the cells, and what is to be done of them."""
    configs, swept = cells_of(config)
    study = importlib.import_module(f"hardbench.studies.{config.study}")
    torch.set_num_threads(1)
    planned = plan.make(config.study, getattr(study, "NUMBERS", 1), configs, swept)
    key = _key(config, swept)
    parent = tracking.parent_of(config.study, key)
    if parent is not None and parent.status == "RUNNING" and parent.has(IN_FLIGHT):
        plan.refresh(planned, parent.file(IN_FLIGHT).read_text().split())
    work = _jobs(config, planned, planned.todo(config.retry_failed, config.rerun))
    note = f"{len(planned.cells)} cells, {sum(cell.networks for cell in planned.cells)} networks\nswept: {', '.join(swept) or 'nothing'}"
    title = config.name or f"sweep {config.study} {' x '.join(swept) or 'of one cell'}"
    executor = None if config.dry_run else _executor(config, work)
    return PreparedCampaign(config=config, title=title, note=note, key=key, plan=planned, swept=swept, executor=executor)


def compute(prepared: PreparedCampaign, run: tracking.Run, stages: Stages) -> None:
    """Run the cells that are not finished, store each as a run; TrainingError at the end if any failed."""
    config, planned = prepared.config, prepared.plan
    assert prepared.executor is not None
    plan.refresh(planned, ())  # anew, now that nobody else works on the campaign
    todo = planned.todo(config.retry_failed, config.rerun)
    work = _jobs(config, planned, todo)
    campaign = Campaign(run, planned, prepared.swept, Path(config.out))
    run.write_text(PLAN, _lines(work))
    campaign.known(todo)
    try:
        _run_jobs(campaign, prepared.executor, work)
    finally:
        campaign.close()
    states = planned.counts()
    run.tag("hardbench.cells", ", ".join(f"{count} {state}" for state, count in states.items() if count))
    console.say(f"cells: {', '.join(f'{count} {state}' for state, count in states.items())}")
    if failed := campaign.failed():
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        line = f"sweep: {len(failed)} of {len(planned.cells)} cells failed: {failed[0]}{more}; --retry-failed tries them again"
        raise TrainingError(line, measured=True, finished=True)


def report(stored: StoredRun) -> None:
    """Nothing more: the cells by state stand above."""


def _key(config: CampaignSettings, swept: Sequence[str]) -> str:
    """The key of a campaign: a digest of its name, or else of the study, the fixed settings and the names of the swept ones."""
    if config.name:
        return grid.digest(config.study, config.name)
    words = words_of(config)
    return grid.digest(config.study, {name: value for name, value in words.shared.items() if name not in words.swept}, words.swept)


def _cuda(config: CampaignSettings) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()


def _workers(config: CampaignSettings) -> int:
    if config.workers:
        return config.workers
    share = config.gpus_per_job or 1.0
    return max(1, int(torch.cuda.device_count() / share)) if _cuda(config) else len(os.sched_getaffinity(0))


def _jobs(config: CampaignSettings, planned: Plan, todo: Sequence[int]) -> list[Job]:
    """Stacks of what can be stacked, one job per cell of the rest."""
    stacked = [index for index in todo if config.study == "train" and jobs.stackable(planned.cells[index].config)]
    work = jobs.stacks(planned.cells, stacked, _cuda(config), _workers(config))
    place = {"study": config.study, "store": os.path.abspath("."), "uri": tracking.uri()}  # noqa: PTH100
    for index in todo:
        if index not in stacked:
            cell = planned.cells[index]
            payload = {**place, "settings": cell.config.as_dict()}
            work.append(Job((jobs.Part(index, 0, cell.networks),), f"{__name__}:run_cell", payload))
    return work


def _executor(config: CampaignSettings, work: Sequence[Job]) -> Executor:
    if config.executor == "ray" and work:
        gpus = config.gpus_per_job if config.gpus_per_job is not None else float(_cuda(config))
        return Ray(config.ray_address, config.tries, config.cpus_per_job, gpus)
    return Local(_workers(config), config.tries, torch.cuda.device_count() if _cuda(config) else 0)


def _run_jobs(campaign: Campaign, executor: Executor, work: Sequence[Job]) -> None:
    """Run the jobs and hand every result to the campaign, with the progress shown."""
    prepared = [campaign.prepare(job) for job in work]
    with console.progress("sweep", sum(job.networks for job in work)) as show, closing(executor.run(prepared, campaign.started)) as results:
        more: Sequence[Job] | None = None
        show(0, f"0/{len(campaign.plan.cells)} cells")
        while True:
            try:
                result = results.send(more)
            except StopIteration:
                return
            more = campaign.take(result)
            show(campaign.networks, campaign.status())


def run_cell(payload: Mapping[str, Any]) -> str:
    """In a worker: run a study in the run that was opened for it; that run's id."""
    os.chdir(payload["store"])
    os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_RUN_ID"] = payload["uri"], payload["run"]
    study = importlib.import_module(f"hardbench.studies.{payload['study']}")
    launch(study, study.Config(**payload["settings"]))
    return str(payload["run"])


def _lines(work: Sequence[Job]) -> str:
    """The plan as it is stored: a line per job, with the networks that share its stack."""
    rows = (" ".join(f"cell {part.cell} networks {part.first}-{part.first + part.count - 1}" for part in job.parts) for job in work)
    return "".join(f"job {number}: {row}\n" for number, row in enumerate(rows))


def _show(config: CampaignSettings, planned: Plan, work: Sequence[Job]) -> None:
    """The plan as a table: cells by state, networks, time and memory."""
    workers = min(_workers(config), max(1, len(work)))
    rows: list[tuple[str, object]] = [*planned.counts().items(), ("networks to train", sum(job.networks for job in work))]
    rows += [("jobs", len(work)), ("workers", workers)]
    seconds, memory = _estimate(planned, work)
    if seconds:
        rows += [("estimated time", _duration(seconds / workers)), ("memory", f"{memory * workers:.0f} MiB ({memory:.0f} per worker)")]
    if any(job.call != jobs.STACK for job in work):
        rows.append(("estimated time of other jobs", "unknown"))
    console.table(f"sweep {config.study}: {len(planned.cells)} cells", ["", "count"], rows)


def _estimate(planned: Plan, work: Sequence[Job]) -> tuple[float, float]:
    """Seconds of all stacked jobs one after the other, and the MiB one worker needs; from a probe of each kind of stack."""
    asked = plan.probes(planned.cells, work)
    seconds = memory = 0.0
    with closing(Local(1, 2).run([job for job, _ in asked], lambda running: None)) as results:
        for result in results:
            same = next(same for job, same in asked if job is result.job)
            if result.error is not None:
                raise HardbenchError(result.error.partition("\n")[0])
            seconds += sum(result.value["training"] * job.networks / same[0].networks for job in same)
            seconds += result.value["set_up"]
            memory = max(memory, result.value["memory"])
    return seconds, memory


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
