"""From words to cells: the points of a grid (or of a union of grids), each a configuration of the swept study."""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hardbench.config import Config, options, rivals
from hardbench.declaration import Option
from hardbench.errors import ConfigError
from hardbench.registry import Registry

POINTS = 100_000
LEFT_OUT = ("device", "threads", "data_dir", "name", "tag", "checkpoint_every")  # numbers do not depend on them


@dataclass(frozen=True)
class Cell:
    """One point: its configuration, the hash that tells whether it has been computed, a short name, and of a training its data."""

    config: Config
    key: str
    label: str
    samples: str  # digest
    baseline: float  # accuracy of the nearest class mean

    @property
    def networks(self) -> int:
        """The number of networks that it trains."""
        return len(self.repeats)

    @property
    def repeats(self) -> range:
        """The numbers of these networks."""
        first = getattr(self.config, "first_repeat", 0)
        return range(first, first + getattr(self.config, "repeats", 1))


Point = dict[str, Any]


def points(
    study: type[Config], given: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any], grids: Sequence[Mapping[str, Sequence[Any]]]
) -> list[Point]:
    """Values by setting for every point, without those that the point's own choices do not read.

    `given` (the command line) comes before `fixed` and before every grid. A setting that is not read is left out where the choice it
    hangs on is itself swept; ConfigError if no point reads it, or for more points than anybody trains.
    """
    beaten = {rival for name in given for rival in rivals(study, name)} | given.keys()
    points: list[Point] = []
    for grid in grids or [{}]:
        axes = {name: [value] for name, value in fixed.items() if name not in beaten and name not in grid}
        axes |= {name: list(values) for name, values in grid.items() if name not in beaten} | {n: list(v) for n, v in given.items()}
        count = len(points) + math.prod(map(len, axes.values()))
        if count > POINTS:  # counted, not built
            longest = max(axes, key=lambda name: len(axes[name]))
            raise ConfigError(f"{longest}: a grid of {count} points; at most {POINTS}")
        points += [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    return list(_read(study, points))


def _read(study: type[Config], points: Sequence[Point]) -> Iterator[Point]:
    known = options(study)
    chosen: dict[str | None, set[Any]] = {
        name: {point.get(name) or option.declared.default for point in points}
        for name, option in known.items()
        if isinstance(option.declared.choices, Registry)
    }
    choosers = {name: str(option.declared.read_by) for name, option in known.items() if len(chosen.get(option.declared.read_by, ())) > 1}
    for name, chooser in choosers.items():  # of the settings whose choice is swept
        values = [point[name] for point in points if point.get(name) is not None]
        if values and not any(name in _reads(known[chooser], word) for word in chosen[chooser]):
            raise known[name].fail(values[0], f"no {chooser} of the sweep reads it")
    for point in points:
        read = {chooser: _reads(known[chooser], point.get(chooser)) for chooser in choosers.values()}
        yield {name: value for name, value in point.items() if name not in choosers or name in read[choosers[name]]}


def _reads(chooser: Option, word: str | None) -> frozenset[str]:
    """The settings that a choice (or the default one) reads."""
    registry = chooser.declared.choices
    return registry[word or chooser.declared.default].reads if isinstance(registry, Registry) else frozenset()


def configurations(study: type[Config], points: Sequence[Point], shared: Mapping[str, Any]) -> list[Config]:
    """The distinct configurations of the points; `shared` are settings that all have and that a point may overrule."""
    distinct: dict[str, Config] = {}
    for point in points:
        config = study(**{**{name: value for name, value in shared.items() if name in options(study)}, **point})
        distinct.setdefault(json.dumps(numbers(config), sort_keys=True, default=str), config)
    return list(distinct.values())


def numbers(config: Config) -> dict[str, Any]:
    """The settings that numbers depend on; one declared `later` than the first stored cells only where it departs from its default."""
    known = {name: option.declared for name, option in options(type(config)).items()}
    absent = {name for name, declared in known.items() if declared.later and getattr(config, name) == declared.default}
    return {name: value for name, value in config.as_dict().items() if name not in LEFT_OUT and name not in absent}


def digest(*parts: Any) -> str:
    """16 hexadecimal digits of anything that is plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def label(config: Config, swept: Sequence[str]) -> str:
    """A cell's swept values in words: mlp relu p0.1."""
    words = []
    for name in sorted(swept, key=lambda name: (FIRST.index(name) if name in FIRST else len(FIRST), name)):
        value = getattr(config, name)
        if value is not None:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)
            if name == "hardness":  # by the run's short id
                run, colon, score = text.partition(":")
                text = run[:8] + colon + score
            words.append(text if name in PLAIN else f"{SHORT.get(name, name)}{text}")
    return " ".join(words) or "cell"


FIRST = ("model", "activation", "corruption_p")
PLAIN = ("model", "activation", "dataset", "plant", "hardness", "keep")  # words that say what they are
SHORT = {"corruption_p": "p", "seed": "s", "noise_ratio": "noise"}
