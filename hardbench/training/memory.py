"""A check that networks fit into memory, before any is built: estimated from a network on torch's meta device, which holds no numbers."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch

from hardbench.data.batches import batch_length
from hardbench.errors import ConfigError, DataError, HardbenchError, brief
from hardbench.models.networks import Looped
from hardbench.ram import free_memory
from hardbench.registry import MODELS
from hardbench.seeding import networks as streams
from hardbench.settings import ModelSettings, TrainingSettings

DEEP = 32  # layers that are built for an estimate; further ones are like the last
FLOAT, MODULE, NETWORK = 4, 2500, 9000  # bytes of a number, of a module's Python objects, of a network's streams
USUAL = {"epochs": 1000, "batch_size": 128, "depth": 4, "width": 256, "widths": 256, "eval_points": 10, "eval_steps": 10}  # else large
Plain = Callable[[Any], TrainingSettings]
Count = Callable[[Any, int], int]  # of a study's settings and its networks
CPU = torch.device("cpu")


@dataclass(eq=False)
class Estimate:
    """The least bytes that training takes: weights, gradients, optimiser's state, activations of a batch, Python objects.

    `plain` turns a study's settings into those of its training. `copies` more sets of weights are kept, and `rows` bytes of results in the
    machine's memory; activations are held of at most `at_once` networks x samples (None: of all networks on a batch).
    """

    shape: Sequence[int]
    classes: int
    samples: int
    plain: Plain
    copies: int = 0
    rows: Count | None = None
    at_once: Count | None = None
    _built: dict[tuple[Any, ...], tuple[int, int, int, bool]] = field(default_factory=dict, init=False)

    def __call__(self, config: Any, networks: int) -> int:
        """Bytes of that many networks together."""
        return self.training(config, networks) + self.results(config, networks)

    def training(self, config: Any, networks: int) -> int:
        """Bytes on the device that trains."""
        settings = self.plain(config)
        weights, modules, activations, looped = self.network(settings)
        slots = bool(settings.momentum) if settings.optimizer == "sgd" else 2
        batch = batch_length(settings.batch_size, self.samples)
        samples = batch * (1 if looped else networks)  # whose activations are held
        samples = samples if self.at_once is None else min(samples, self.at_once(config, networks))
        one = settings.batch_size == "full" and settings.train_share == 1  # batch for all networks
        of_batch = FLOAT * (samples * activations + batch * prod(self.shape) * (1 if one else networks))
        return networks * (weights * FLOAT * (2 + slots + self.copies) + modules * MODULE + NETWORK) + of_batch

    def results(self, config: Any, networks: int) -> int:
        """Bytes of results, in the machine's memory."""
        return self.rows(config, networks) if self.rows else 0

    def network(self, settings: TrainingSettings) -> tuple[int, int, int, bool]:
        """Counts of one network's parameters, modules and activations, and True if looped; zeros if the meta device cannot build it."""
        layers = len(settings.widths) if settings.widths else settings.depth or 0
        if layers > DEEP:
            shorter, longer = (self.network(_cut(settings, count)) for count in (DEEP - 1, DEEP))
            weights, modules, activations = (b + (layers - DEEP) * (b - a) for a, b in zip(shorter[:3], longer[:3], strict=True))
            return weights, modules, activations, longer[3]
        key = tuple(getattr(settings, name) for name in ModelSettings.__dataclass_fields__)
        if key not in self._built:
            self._built[key] = self._build(settings)
        return self._built[key]

    def _build(self, settings: TrainingSettings) -> tuple[int, int, int, bool]:
        try:
            with torch.device("meta"), torch.inference_mode():
                networks = MODELS[settings.model].call(self.shape, self.classes, settings, streams(0, 0, 1)).eval()
                hidden = networks.activations(torch.empty(1, *self.shape))
        except (NotImplementedError, RuntimeError, TypeError):  # a model that reads numbers while it is built is not estimated
            return 0, 0, 0, True
        parameters, activations = (sum(tensor.numel() for tensor in tensors) for tensors in (networks.parameters(), hidden))
        return parameters, sum(1 for _ in networks.modules()), activations, isinstance(networks, Looped)


def _cut(settings: Any, layers: int) -> Any:
    """The settings with so many layers."""
    return replace(settings, widths=settings.widths[:layers]) if settings.widths else replace(settings, depth=layers)


def check(estimate: Estimate, config: Any, device: torch.device, name: str, multiple: int = 1, others: int = 0) -> None:
    """ConfigError that names the setting to blame and its largest fitting value, if training does not fit into memory.

    DataError if no setting helps. `name` is the setting that counts networks, `multiple` the number of networks that 1 of it stands for;
    `others` networks train beside them.
    """
    parts = {device: estimate.training, CPU: estimate.results} if device.type == "cuda" else {device: estimate}
    for place, part in parts.items():

        def need(settings: Any, part: Count = part) -> int:
            return part(settings, getattr(settings, name) * multiple + others)

        if need(config) > (room := available(place)):
            raise _refusal(estimate, config, name, need, room, place)


def _refusal(estimate: Estimate, config: Any, name: str, need: Callable[[Any], int], room: int, device: torch.device) -> HardbenchError:
    """The error for settings that need more memory than there is."""
    usual = {name: 5} | USUAL
    excess = {setting: _value(config, setting) / common for setting, common in usual.items() if setting != "epochs" or estimate.rows}
    ranked = sorted((setting for setting in excess if _value(config, setting) > 1), key=excess.__getitem__, reverse=True)
    fitting = {setting: most for setting in ranked if (most := _largest(need, config, setting, room))}
    takes = f"{_size(need(config))} and {_size(room)} are free ({device.type})"
    if not fitting and need(functools.reduce(lambda least, setting: _less(least, setting, 1), ranked, config)) > room:
        smaller = f"fewer than {estimate.classes} classes, or inputs smaller than {'x'.join(map(str, estimate.shape))}"
        return DataError(f"dataset: {config.dataset}; {smaller}: it takes {takes}")
    blamed = next(iter(fitting), ranked[0])
    allowed = f"at most about {fitting[blamed]}" if blamed in fitting else "less"
    given = brief(str(getattr(config, blamed)).strip("()").replace(" ", ""))
    return ConfigError(f"{blamed}: {given}; {allowed}{' of them' * (blamed == 'eval_steps')}, as this takes {takes}")


def _value(config: Any, name: str) -> int:
    """The size of a setting as a number: of a list its largest value, of eval_steps their count; 0 where it is not a number."""
    value = getattr(config, name, None)
    if isinstance(value, tuple):
        value = len(value) if name == "eval_steps" else max(value)
    return value if isinstance(value, int) else 0


def _less(config: Any, name: str, count: Any) -> Any:
    """The settings with one of them lowered to `count`; unchanged where another setting does not allow it."""
    old, new = getattr(config, name), count
    if isinstance(old, tuple):
        new = old[:count] if name == "eval_steps" else tuple(min(value, count) for value in old)
    try:
        return replace(config, **{name: new})
    except ConfigError:
        return config


def _largest(need: Callable[[Any], int], config: Any, name: str, room: int) -> int:
    """The largest value of a setting that fits, below its own; 0 if none does."""
    low, high = 0, _value(config, name)
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if need(_less(config, name, middle)) <= room else (low, middle)
    return low


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count < 1e12 else f"{count / 1e12:.1f} TB"


def available(device: torch.device) -> int:
    """Free bytes of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_memory()
