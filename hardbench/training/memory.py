"""Whether networks fit the machine: estimated before any is built, from one of torch's meta device, which has shapes and no memory."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch

from hardbench.errors import ConfigError
from hardbench.models.layers import Looped
from hardbench.registry import MODELS
from hardbench.seeding import networks as streams
from hardbench.settings import ModelSettings, TrainingSettings

DEEP = 32  # layers that are built for an estimate; further ones are like the last
FLOAT, MODULE, NETWORK = 4, 2500, 9000  # bytes of a number, of a module's Python objects, of a network's streams
USUAL = {"epochs": 1000, "batch_size": 128, "depth": 4, "width": 256, "widths": 256}  # beside these a setting is large
Plain = Callable[[Any], TrainingSettings]


class Estimate:
    """Bytes that training takes at least: weights, gradients, optimiser's state, activations of a batch, Python objects.

    `plain` turns a study's settings into those of its training; `copies` sets of weights and `more` bytes are kept beside.
    """

    def __init__(
        self, shape: Sequence[int], classes: int, samples: int, plain: Plain, copies: int = 0, more: Callable[[Any], int] | None = None
    ):
        self.shape, self.classes, self.samples = tuple(shape), classes, samples
        self.plain, self.copies, self.more = plain, copies, more or (lambda config: 0)
        self._known: dict[tuple[Any, ...], tuple[int, int, int, bool]] = {}

    def __call__(self, config: Any, networks: int) -> int:
        """Of that many networks together."""
        settings = self.plain(config)
        weights, modules, activations, looped = self.network(settings)
        slots = bool(settings.momentum) if settings.optimizer == "sgd" else 2
        full = settings.batch_size == "full"
        batch = self.samples if full else min(int(settings.batch_size), self.samples)
        seen = FLOAT * batch * (activations * (1 if looped else networks) + prod(self.shape) * (1 if full else networks))
        return networks * (weights * FLOAT * (2 + slots + self.copies) + modules * MODULE + NETWORK) + seen + self.more(config)

    def network(self, settings: TrainingSettings) -> tuple[int, int, int, bool]:
        """Parameters, modules and activations of one network, and whether it is looped; zeros of one that the meta device cannot build."""
        layers = len(settings.widths) if settings.widths else settings.depth or 0
        if layers > DEEP:
            two, one = (self.network(_cut(settings, count)) for count in (DEEP - 1, DEEP))
            grown = [b + (layers - DEEP) * (b - a) for a, b in zip(two[:3], one[:3], strict=True)]
            return grown[0], grown[1], grown[2], one[3]
        key = tuple(getattr(settings, name) for name in ModelSettings.__dataclass_fields__)
        if key not in self._known:
            self._known[key] = self._built(settings)
        return self._known[key]

    def _built(self, settings: TrainingSettings) -> tuple[int, int, int, bool]:
        try:
            with torch.device("meta"), torch.inference_mode():
                networks = MODELS[settings.model].call(self.shape, self.classes, settings, streams(0, 0, 1)).eval()
                hidden = networks.activations(torch.empty(1, *self.shape))
        except (NotImplementedError, RuntimeError, TypeError):  # a model that looks at numbers while it is built: it is not estimated
            return 0, 0, 0, True
        parameters = sum(own.numel() for own in networks.parameters())
        return parameters, sum(1 for _ in networks.modules()), sum(one.numel() for one in hidden), isinstance(networks, Looped)


def _cut(settings: Any, layers: int) -> Any:
    """The settings with so many layers."""
    return replace(settings, widths=settings.widths[:layers]) if settings.widths else replace(settings, depth=layers)


def check(estimate: Estimate, config: Any, device: torch.device, networks: Mapping[str, int], others: int = 0) -> None:
    """ConfigError that names the setting to blame, and what of it would fit, if training does not fit the machine.

    `networks` are settings that count networks, each with the networks it stands for one by one; `others` train beside them.
    """
    room = available(device)
    for name, each in networks.items():

        def need(settings: Any, name: str = name, each: int = each) -> int:
            return estimate(settings, getattr(settings, name) * each + others)

        needed = need(config)
        if needed <= room:
            continue
        usual = {name: 5} | USUAL
        large = {one: _value(config, one) for one in usual if one != "epochs" or estimate.more(config)}
        ranked = sorted((one for one in large if large[one] > 1), key=lambda one: large[one] / usual[one], reverse=True)
        fitting = {one: most for one in ranked if (most := _largest(need, config, one, large[one], room))}
        blamed = next(iter(fitting), ranked[0] if ranked else name)
        allowed = f"at most about {fitting[blamed]}" if blamed in fitting else "less"
        came = str(getattr(config, blamed)).strip("()").replace(" ", "")
        raise ConfigError(f"{blamed}: {came}; {allowed}, as this takes {_size(needed)} and {_size(room)} are free ({device.type})")


def _value(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    value = max(value) if isinstance(value, tuple) else value
    return value if isinstance(value, int) else 0


def _largest(need: Callable[[Any], int], config: Any, name: str, value: int, room: int) -> int:
    """The largest value of a setting that fits, below its own; 0 if none does."""

    def fits(count: int) -> bool:
        old = getattr(config, name)
        try:
            return need(replace(config, **{name: tuple(min(one, count) for one in old) if isinstance(old, tuple) else count})) <= room
        except ConfigError:  # too small for another setting
            return False

    low, high = 0, value
    while high - low > max(1, low // 50):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count < 1e12 else f"{count / 1e12:.1f} TB"


def available(device: torch.device) -> int:
    """Bytes that can still be had: of a GPU; of the machine within its control groups."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_machine(), *_groups())


def _machine() -> int:
    with Path("/proc/meminfo").open() as file:
        found = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in file}
    return found["MemAvailable"] + found.get("SwapFree", 0)


def _groups() -> Iterator[int]:
    """What is left to the control groups this process is in, of either version; a lot where there are none."""
    yield 1 << 62
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kind, path = line.split(":", 2)
        top = Path("/sys/fs/cgroup") / kind
        names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}.get(kind)
        for folder in [top / path.strip("/"), *(top / path.strip("/")).parents] if names else []:
            limit, used = (folder / name for name in names or ())
            if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdecimal():
                yield int(most) - int(used.read_text()) + _cached(folder / "memory.stat")


def _cached(stat: Path) -> int:
    """Bytes of files that a group gives back when it needs them."""
    words = dict(line.split()[:2] for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return int(words.get("total_inactive_file", words.get("inactive_file", 0)))
