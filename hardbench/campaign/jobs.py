"""From cells to jobs: networks that can share a stack, cut into chunks that fit the machine."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, cast

from hardbench.campaign.grid import Cell, digest, numbers
from hardbench.config import Config
from hardbench.registry import MODELS
from hardbench.settings import TrainingSettings

OWN = ("seed", "corruption_p", "noise_ratio", "repeats", "first_repeat")  # what a network of a stack may have of its own
CHUNKS = ((256, 20), (512, 10))  # widest layer up to -> networks in a stack that still fits a core's cache
WIDE, LOOPED, GPU = 2, 5, 400  # wider layers; networks that do not stack; stacks on a GPU


@dataclass(frozen=True)
class Part:
    """Some networks of a cell."""

    cell: int
    first: int
    count: int


@dataclass(frozen=True)
class Job:
    """Work for one worker: a function (`module:name`) of plain data."""

    parts: tuple[Part, ...]
    call: str
    payload: Any = field(repr=False)

    @property
    def networks(self) -> int:
        """The number of networks that it trains."""
        return sum(part.count for part in self.parts)


STACK = "hardbench.training.core:train_stack"


def stackable(config: Config) -> bool:
    """True if networks of a training can come from a stack: all but those that need a run of their own while they train."""
    return isinstance(config, TrainingSettings) and not config.log_model and not config.record_dynamics and config.hardness is None


def stack_key(config: TrainingSettings, data: str) -> str:
    """Configurations with the same key train in one stack; `data` names the samples."""
    individual = [name for name in OWN if not config.stop_at_target or name == "repeats"]  # a target adds evaluation points
    if config.layer_metrics != ("none",) or config.keep is not None:
        individual = [name for name in individual if name not in ("seed", "noise_ratio")]  # they fix which samples are measured, or kept
    return digest({name: value for name, value in numbers(config).items() if name not in individual}, data)


def chunk(config: TrainingSettings, cuda: bool) -> int:
    """Networks in one stack."""
    if config.model not in ("mlp", "gmlp"):
        return LOOPED
    if cuda:
        return GPU
    widest = max(config.widths or (config.width or MODELS[config.model].defaults["width"],))
    return next((count for width, count in CHUNKS if widest <= width), WIDE)


def stacks(cells: Sequence[Cell], todo: Sequence[int], cuda: bool, workers: int) -> list[Job]:
    """The jobs of the stackable cells among `todo`: their networks, in order, in chunks of a size fixed by the plan."""
    configs = {index: cast(TrainingSettings, cells[index].config) for index in todo}
    groups: dict[str, list[int]] = {}
    for index, config in configs.items():
        groups.setdefault(stack_key(config, cells[index].samples) + (str(index) if config.stop_at_target else ""), []).append(index)
    jobs = []
    for group in groups.values():
        config = configs[group[0]]
        networks = [(index, r) for index in group for r in cells[index].repeats]
        size = len(networks) if config.stop_at_target else min(chunk(config, cuda), max(1, -(-len(networks) // workers)))
        for start in range(0, len(networks), size):
            piece = networks[start : start + size]
            repeats = {index: [r for _, r in pairs] for index, pairs in groupby(piece, key=lambda pair: pair[0])}
            jobs.append(stack_job(cells, [Part(index, rows[0], len(rows)) for index, rows in repeats.items()]))
    return jobs


def stack_job(cells: Sequence[Cell], parts: Sequence[Part]) -> Job:
    """The job that trains these parts in one stack."""
    configs = [replace(cells[part.cell].config, first_repeat=part.first, repeats=part.count) for part in parts]  # type: ignore[call-arg]
    return Job(tuple(parts), STACK, [config.as_dict() for config in configs])
