"""Run a study over a grid of settings: planned, in parallel, resumable.

`sweep STUDY` takes every setting of the study with commas between several values (`;` where commas stand inside a value), or YAML with
`fixed:` and `grid:`. Each point of the grid is one run under one parent. The same command goes on where a campaign ended, however it did.
"""

import dataclasses
import functools
import importlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hardbench import console, tracking
from hardbench.campaign import grid, jobs, plan
from hardbench.campaign.conduct import Campaign
from hardbench.campaign.executors import Executor, Local, Ray
from hardbench.campaign.grid import Cell
from hardbench.campaign.jobs import Job
from hardbench.campaign.plan import Plan
from hardbench.campaign.results import counts
from hardbench.config import Config as AnyConfig
from hardbench.config import named, options, parse_yaml, read_file, setting
from hardbench.errors import ConfigError, HardbenchError, TrackingError, TrainingError, nearest
from hardbench.figures import draw
from hardbench.settings import MachineSettings, PlaceSettings, wrong_name, wrong_tags
from hardbench.stored import StoredRun
from hardbench.studies import train

STUDIES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py") if path.stem != "sweep")


@dataclass(frozen=True)
class CampaignSettings(MachineSettings, PlaceSettings):
    """How a sweep is run."""

    study: str = setting("train", "Study to sweep.", choices=STUDIES, position=True)
    out: str = setting("results", "Folder that gets the tables and figures.", stored=False)
    threads: int = setting(0, "CPU threads of a job; 0 for one.", low=0, high=1024)
    name: str | None = setting(
        None, "Name of the campaign, which then goes on whatever its settings; default: by the settings.", wrong=wrong_name
    )
    tag: dict[str, str] | None = setting(None, "Tags for the runs, k=v,k2=v2.", wrong=wrong_tags)
    fixed: str | None = setting(None, "In YAML: settings that all cells share.", raw=True)
    grid: str | None = setting(None, "In YAML: values of the swept settings, or a list of such grids, whose union is swept.", raw=True)
    executor: str = setting("local", "Processes on this machine, or tasks on a Ray cluster.", choices=("local", "ray"), stored=False)
    workers: int = setting(0, "Worker processes; 0 for one per core, or per GPU.", low=0, was=("max_workers",), stored=False)
    ray_address: str = setting("auto", "Ray cluster as HOST:PORT, or auto.", stored=False)
    cpus_per_job: float = setting(1.0, "CPUs that Ray keeps for a job.", above=0, stored=False)
    gpus_per_job: float | None = setting(
        None, "GPUs, or a share of one, for a job; default: one where device is a GPU.", low=0, stored=False
    )
    tries: int = setting(4, "Times a job is begun where its worker or node dies.", low=1, stored=False)
    dry_run: bool = setting(False, "Show the plan with the time it needs, and do nothing.", stored=False)
    rerun: bool = setting(False, "Compute finished and failed cells again.", stored=False)
    retry_failed: bool = setting(False, "Compute failed cells again.", stored=False)

    def headline(self) -> dict[str, Any]:
        """What was given, in words."""
        points = cells_of(self)[0]
        found = {}
        for name, option in options(config_class(self.study)).items():
            if option.declared.headline:
                several = list(dict.fromkeys(str(getattr(config, name)) for config in points))
                found[name] = ",".join(several) if len(several) <= 20 else f"{len(several)} values"
        return found


def config_class(study: str) -> type[AnyConfig]:
    """The settings of a study."""
    cls: type[AnyConfig] = importlib.import_module(f"hardbench.studies.{study}").Config
    return cls


@functools.cache
def sweep_class(study: str) -> type[CampaignSettings]:
    """The settings of a sweep over a study: its own, and the study's with several values each."""
    own = options(CampaignSettings)
    fields = []
    for name, option in options(config_class(study)).items():
        if name not in own and option.declared.stored:
            declared = {"also": option.declared.also, "was": option.declared.was, "each": option, "headline": option.declared.headline}
            fields.append((name, tuple[Any, ...] | None, setting(None, option.declared.help, **declared)))
    return dataclasses.make_dataclass("SweptSettings", fields, bases=(CampaignSettings,), frozen=True)


Config = sweep_class("train")


def config_for(words: Sequence[str]) -> type[CampaignSettings]:
    """The settings that a command line means: its study is the first word, or that of the environment or the file."""
    found = words[0] if words and not words[0].startswith("-") else _after(words, "study") or os.environ.get("HARDBENCH_STUDY")
    file = _after(words, "config") or os.environ.get("HARDBENCH_CONFIG")
    if found is None and file is not None:
        found = str(read_file(file).get("study", "train"))
    name = (found or "train").replace("-", "_")
    if name not in STUDIES:
        raise ConfigError(f"study: {found}; {nearest(name, STUDIES)}")
    return sweep_class(name)


def _after(words: Sequence[str], name: str) -> str | None:
    for place, word in enumerate(words):
        if word == f"--{name}" and place + 1 < len(words):
            return words[place + 1]
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return None


@dataclass(frozen=True)
class Words:
    """What a sweep was told of the study's settings: given ones (one value or several), fixed ones, grids."""

    given: dict[str, tuple[Any, ...]]
    fixed: dict[str, Any]
    grids: list[dict[str, tuple[Any, ...]]]

    @property
    def swept(self) -> list[str]:
        """Names of the settings in grids or with several values."""
        names = {name for one in self.grids for name in one if name not in self.given}
        return sorted(names | {name for name, values in self.given.items() if len(values) > 1})

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that are not swept."""
        return {**self.fixed, **{name: values[0] for name, values in self.given.items() if len(values) == 1}}


def words_of(config: CampaignSettings) -> Words:
    """The settings of the study, from options and from `fixed:` and `grid:`."""
    known = options(type(config))
    given = {
        name: tuple(value for place, value in enumerate(values) if value not in values[:place])
        for name, option in known.items()
        if option.declared.each and (values := getattr(config, name)) is not None
    }
    raw: list[Any] = [config.fixed, config.grid]  # sections of a file, or YAML text
    sections = [parse_yaml(found, name) if isinstance(found, str) else found for found, name in zip(raw, ("fixed", "grid"), strict=True)]
    fixed = grid.check_section("fixed", sections[0] or {})
    axes = sections[1] if isinstance(sections[1], list) else [sections[1]] if sections[1] else []
    return Words(
        given,
        {_named(config, word).name: grid.one(_named(config, word), value) for word, value in fixed.items()},
        [{_named(config, w).name: grid.several(_named(config, w), v) for w, v in grid.check_section("grid", one).items()} for one in axes],
    )


def cells_of(config: CampaignSettings) -> tuple[list[AnyConfig], list[str]]:
    """The configurations of all cells, and the names of the swept settings."""
    study, words = config_class(config.study), words_of(config)
    found = grid.points(study, words.given, words.fixed, words.grids)
    found = [_pinned(study, point) for point in found]
    shared: dict[str, Any] = {"data_dir": config.data_dir, "device": config.device, "threads": config.threads or 1, "tag": config.tag}
    shared |= {"keep_checkpoints": False} if config.study == "train" else {}  # others may read their own
    return grid.configurations(study, found, shared), words.swept


def _pinned(study: type[AnyConfig], point: grid.Point) -> grid.Point:
    """A point with the runs that it reads by their ids: `last` is another one tomorrow."""
    found = dict(point)
    if "run" in options(study) and point.get("model") is None:  # a model chooses its run itself
        found["run"] = tracking.find(point.get("run") or "last", ["train"]).id
    if point.get("hardness") is not None:
        found["hardness"] = train.named(point["hardness"])
    return found


def _named(config: CampaignSettings, word: str) -> Any:
    option = named(type(config), word)
    if option.declared.each is None:
        raise ConfigError(f"{option.name}: of the sweep itself; at top level, not in fixed or grid")
    return option


def run(config: CampaignSettings) -> None:
    """Plan the cells, run those that are not finished, store each as a run; TrainingError at the end if any failed."""
    configs, swept = cells_of(config)
    module = importlib.import_module(f"hardbench.studies.{config.study}")
    torch.set_num_threads(1)
    made = plan.make(config.study, getattr(module, "NUMBERS", 1), configs, swept)
    key = _key(config, swept)
    parent = tracking.parent_of(config.study, key)
    if parent is not None and parent.status == "RUNNING" and parent.has(plan.IN_FLIGHT):
        plan.look(made, parent.file(plan.IN_FLIGHT).read_text().split())
    todo = made.todo(config.retry_failed, config.rerun)
    work = _jobs(config, made, todo)
    if config.dry_run:
        _show(config, made, work)
        return
    target = train.out_folder(config.out)
    assert target is not None
    title = config.name or f"sweep {config.study} {' x '.join(swept) or 'of one cell'}"
    note = f"{len(made.cells)} cells, {sum(cell.networks for cell in made.cells)} networks\nswept: {', '.join(swept) or 'nothing'}"
    with tracking.sweep(config.study, key, config, title, note, config.tag or {}) as parent_run:
        plan.look(made, ())  # anew, now that nobody else works on the campaign
        todo = made.todo(config.retry_failed, config.rerun)
        work = _jobs(config, made, todo)
        executor = _executor(config, work)
        campaign = Campaign(parent_run, made, swept, target, train.write_cell)
        parent_run.write_text("plan.txt", _lines(work))
        campaign.known(todo)
        try:
            _conduct(campaign, executor, work, made)
        finally:
            made_files = campaign.close()
        made_files += _draw(campaign, parent_run)
        failed = campaign.failed()
        parent_run.tag("hardbench.cells", ", ".join(f"{count} {state}" for state, count in counts(made.states).items() if count))
        console.say(f"cells: {', '.join(f'{count} {state}' for state, count in counts(made.states).items())}")
        train.finish(parent_run, target, made_files)
    if failed:
        more = f" and {len(failed) - 1} more" if len(failed) > 1 else ""
        raise TrainingError(f"sweep: {len(failed)} of {len(made.cells)} cells failed: {failed[0]}{more}; --retry-failed tries them again")


def _key(config: CampaignSettings, swept: Sequence[str]) -> str:
    """What a campaign is known by: its name, else the study, the fixed settings and the names of the swept ones."""
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


def _jobs(config: CampaignSettings, made: Plan, todo: Sequence[int]) -> list[Job]:
    """Stacks of what can be stacked, one job per cell of the rest."""
    stacked = [index for index in todo if jobs.stackable(made.cells[index].config)]
    found = jobs.stacks(made.cells, stacked, made.data, _cuda(config), _workers(config))
    for index in todo:
        if index not in stacked:
            cell = made.cells[index]
            payload = {"study": config.study, "settings": _given(cell), "store": os.path.abspath("."), "uri": tracking.uri()}  # noqa: PTH100
            found.append(Job((jobs.Part(index, 0, cell.networks),), f"{__name__}:run_cell", payload))
    return found


def _given(cell: Cell) -> dict[str, Any]:
    return {name: getattr(cell.config, name) for name in cell.config.as_dict()}


def _executor(config: CampaignSettings, work: Sequence[Job]) -> Executor:
    if config.executor == "ray" and work:
        gpus = config.gpus_per_job if config.gpus_per_job is not None else float(_cuda(config))
        return Ray(config.ray_address, config.tries, config.cpus_per_job, gpus)
    return Local(_workers(config), config.tries, torch.cuda.device_count() if _cuda(config) else 0)


def _conduct(campaign: Campaign, executor: Executor, work: Sequence[Job], made: Plan) -> None:
    """Run the jobs and hand every result to the campaign, with the progress shown."""
    total = sum(job.networks for job in work)
    prepared = [campaign.prepare(job) for job in work]
    with console.progress("sweep", total) as show, closing(executor.run(prepared, campaign.started)) as results:
        more: Sequence[Job] | None = None
        show(0, f"0/{len(made.cells)} cells")
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
    study = payload["study"]
    module = importlib.import_module(f"hardbench.studies.{study}")
    module.run(module.Config(**payload["settings"]))
    return str(payload["run"])


def resume(stored: StoredRun, changed: Mapping[str, Any], out: str | None = None) -> None:
    """Go on with a campaign from what its run has stored, on this machine."""
    if stored.config.get("study") not in STUDIES:
        raise TrackingError(f"run: {stored.id}; its config.yaml names no study")
    run(stored.settings(sweep_class(stored.config["study"]), {**changed, "out": out}))


def _draw(campaign: Campaign, parent: tracking.Run) -> list[str]:
    """The figures that apply to what was swept."""
    try:
        names = draw([campaign.stored()], parent.folder / "figures", strict=False)
    except ConfigError:  # none does
        return []
    return [str(parent.publish(f"figures/{name}").relative_to(parent.folder)) for name in names]


def _lines(work: Sequence[Job]) -> str:
    """The plan as it is stored: a line per job, with the networks that share its stack."""
    rows = (" ".join(f"cell {part.cell} networks {part.first}-{part.first + part.count - 1}" for part in job.parts) for job in work)
    return "".join(f"job {number}: {row}\n" for number, row in enumerate(rows))


def _show(config: CampaignSettings, made: Plan, work: Sequence[Job]) -> None:
    """The plan as a table: cells by state, networks, time and memory."""
    number = counts(made.states)
    todo = sum(job.networks for job in work)
    rows = [[state, count] for state, count in number.items()] + [["networks to train", todo], ["jobs", len(work)]]
    workers = min(_workers(config), max(1, len(work)))
    seconds, memory = _estimate(config, made, work)
    rows += [["workers", workers]]
    if seconds:
        rows += [["estimated time", _duration(seconds / workers)], ["memory", f"{memory * workers:.0f} MiB ({memory:.0f} per worker)"]]
    rows += [["estimated time of other jobs", "unknown"]] * any(job.call != jobs.STACK for job in work)
    console.table(f"sweep {config.study}: {len(made.cells)} cells", ["", "count"], rows)


def _estimate(config: CampaignSettings, made: Plan, work: Sequence[Job]) -> tuple[float, float]:
    """Seconds of all stacked jobs one after the other, and the MiB one worker needs; from a probe of each kind of stack."""
    asked = plan.probes(made.cells, work)
    seconds = memory = 0.0
    local = Local(1, 2)
    with closing(local.run([job for job, _ in asked], lambda running: None)) as results:
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
