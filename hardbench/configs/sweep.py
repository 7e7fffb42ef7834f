"""Settings of `hardbench sweep`: its own, and those of the study it runs, with several values each."""

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from hardbench.campaign import grid
from hardbench.config import Config as AnyConfig, named, options, parse_yaml, read_file
from hardbench.declaration import Option, setting
from hardbench.errors import ConfigError, nearest
from hardbench.registry import studies
from hardbench.settings import MachineSettings, PlaceSettings, wrong_name, wrong_tags

STUDIES = sorted(path.stem for name, path in studies().items() if name != "sweep")


@dataclass(frozen=True)
class CampaignSettings(MachineSettings, PlaceSettings):
    """Settings of the sweep itself."""

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
        """The settings that were given, as text."""
        points = points_of(self)
        headline = {}
        for name, option in options(config_class(self.study)).items():
            if option.declared.headline:
                several = list(dict.fromkeys(str(getattr(config, name)) for config in points))
                headline[name] = ",".join(several) if len(several) <= 20 else f"{len(several)} values"
        return headline


def config_class(study: str) -> type[AnyConfig]:
    """The settings of a study."""
    cls: type[AnyConfig] = importlib.import_module(f"hardbench.configs.{study}").Config
    return cls


@functools.cache
def sweep_class(study: str) -> type[CampaignSettings]:
    """The settings of a sweep over a study: its own, and the study's with several values each."""
    of_the_sweep = options(CampaignSettings)
    fields = []
    for name, option in options(config_class(study)).items():
        if name not in of_the_sweep and option.declared.stored:
            declared = {"also": option.declared.also, "was": option.declared.was, "each": option, "headline": option.declared.headline}
            fields.append((name, tuple[Any, ...] | None, setting(None, option.declared.help, **declared)))
    return dataclasses.make_dataclass("SweptSettings", fields, bases=(CampaignSettings,), frozen=True)


Config = sweep_class("train")


def config_for(words: Sequence[str]) -> type[CampaignSettings]:
    """The settings that a command line means: its study is the first word, or that of the environment or the file."""
    study = words[0] if words and not words[0].startswith("-") else _after(words, "study") or os.environ.get("HARDBENCH_STUDY")
    file = _after(words, "config") or os.environ.get("HARDBENCH_CONFIG")
    if study is None and file is not None:
        study = str(read_file(file).get("study", "train"))
    name = (study or "train").replace("-", "_")
    if name not in STUDIES:
        raise ConfigError(f"study: {study}; {nearest(name, STUDIES)}")
    return sweep_class(name)


def _after(words: Sequence[str], name: str) -> str | None:
    for word, following in zip_longest(words, words[1:]):
        option, sign, value = word.partition("=")
        if option == f"--{name}" and (sign or following is not None):
            return value if sign else str(following)
    return None


@dataclass(frozen=True)
class Words:
    """The study's settings as a sweep has them: given ones (one value or several), fixed ones, grids."""

    given: dict[str, tuple[Any, ...]]
    fixed: dict[str, Any]
    grids: list[dict[str, tuple[Any, ...]]]

    @property
    def swept(self) -> list[str]:
        """Names of the settings in grids or with several values."""
        names = {name for axes in self.grids for name in axes if name not in self.given}
        return sorted(names | {name for name, values in self.given.items() if len(values) > 1})

    @property
    def shared(self) -> dict[str, Any]:
        """The settings that are not swept."""
        return {**self.fixed, **{name: values[0] for name, values in self.given.items() if len(values) == 1}}


def words_of(config: CampaignSettings) -> Words:
    """The settings of the study, from options and from `fixed:` and `grid:`."""
    cells = {name: getattr(config, name) for name, option in options(type(config)).items() if option.declared.each}
    fixed = _section(config, "fixed", _parsed("fixed", config.fixed) or {})
    grids = _parsed("grid", config.grid) or []
    return Words(
        {name: _distinct(values) for name, values in cells.items() if values is not None},
        {option.name: option.declared.each.accept(value) for option, value in fixed},
        [
            {option.name: _distinct(option.accept(values) or (None,)) for option, values in _section(config, "grid", section)}
            for section in (grids if isinstance(grids, list) else [grids])
        ],
    )


def _parsed(name: str, section: Any) -> Any:
    """A section of a file, or one given as YAML text."""
    return parse_yaml(section, name) if isinstance(section, str) else section


def _distinct(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(value for place, value in enumerate(values) if value not in values[:place])


def _section(config: CampaignSettings, name: str, section: Any) -> Iterator[tuple[Option, Any]]:
    """The settings of the swept study in a mapping, as `fixed` and the members of `grid` are, with their values."""
    if not isinstance(section, Mapping):
        raise ConfigError(f"{name}: {section}; settings with their values, in YAML")
    for word, value in section.items():
        option = named(type(config), str(word))
        if option.declared.each is None:
            raise ConfigError(f"{option.name}: of the sweep itself; at top level, not in fixed or grid")
        yield option, value


def _read(point: grid.Point) -> grid.Point:
    """A point without the hardness that a random share does not read, so that it is one cell whatever the scores beside it."""
    return {name: value for name, value in point.items() if name != "hardness" or not str(point.get("keep")).startswith("random")}


def points_of(
    config: CampaignSettings, pinned: Callable[[type[AnyConfig], grid.Point], grid.Point] = lambda _, point: point
) -> list[AnyConfig]:
    """The configurations of all cells; `pinned` says what a point reads where that is not settled by its words."""
    study, words = config_class(config.study), words_of(config)
    points = [pinned(study, _read(point)) for point in grid.points(study, words.given, words.fixed, words.grids)]
    shared: dict[str, Any] = {"data_dir": config.data_dir, "device": config.device, "threads": config.threads or 1, "tag": config.tag}
    shared |= {"keep_checkpoints": False} if config.study == "train" else {}  # others may read their own
    return grid.configurations(study, points, shared)
