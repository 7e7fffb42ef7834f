"""Registries: what can be chosen by name, which settings each choice reads, and its own defaults."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from hardbench.errors import ConfigError, nearest

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry:
    """One registered choice: its name, the callable, the settings it alone reads and the defaults it brings."""

    name: str
    call: Callable[..., Any]
    reads: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variants: bool = False  # whether `name:more` means something

    @property
    def summary(self) -> str:
        """First line of the callable's docstring."""
        return (self.call.__doc__ or "").strip().partition("\n")[0]


class Registry:
    """Names to entries. The modules that register are imported at the first look-up, so that declaring a choice costs nothing."""

    def __init__(self, noun: str, home: str, instead: Mapping[str, str] | None = None):
        self.noun = noun
        self.instead = instead or {}  # words that are no entries, and what to say of them
        self._home = home
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def add(self, *names: str, reads: tuple[str, ...] = (), variants: bool = False, **defaults: Any) -> Callable[[F], F]:
        """Decorator: register a callable under each name, with the settings it reads and its own defaults for settings."""

        def register(call: F) -> F:
            for name in names:
                self._entries[name] = Entry(name, call, frozenset(reads), defaults, variants)
            return call

        return register

    def _load(self) -> dict[str, Entry]:
        if not self._loaded:
            home = importlib.import_module(self._home)
            for module in pkgutil.iter_modules(getattr(home, "__path__", [])):
                importlib.import_module(f"{self._home}.{module.name}")
            self._loaded = True
        return self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def __getitem__(self, word: str) -> Entry:
        """The entry of a name in any case; of `emnist:letters` or `npz:PATH` the part before the colon counts."""
        name, colon, _ = word.lower().partition(":")
        if name in self.instead:
            raise ConfigError(f"{self.noun}: {word}; {self.instead[name]}")
        if name not in self._load():
            raise ConfigError(f"{self.noun}: {word}; {nearest(name, self)}")
        entry = self._entries[name]
        if colon and not entry.variants:
            raise ConfigError(f"{self.noun}: {word}; {name} alone, nothing after it")
        return entry

    def readers(self, setting: str) -> list[str]:
        """Names of the entries that read a setting."""
        return [name for name in self if setting in self._entries[name].reads]


DATASETS = Registry("dataset", "hardbench.data")
_ALL = "one model; hardbench sweep train --model vgg11,vgg13,vgg16,vgg19 trains all"
MODELS = Registry("model", "hardbench.models", {"all": _ALL})
OPTIMIZERS = Registry("optimizer", "hardbench.training.optimizers")
SCHEDULERS = Registry("scheduler", "hardbench.training.optimizers")
LAYER_METRICS = Registry("layer_metrics", "hardbench.metrics")
SCORES = Registry("strategy", "hardbench.scores")
TASKS = Registry("task", "hardbench.data.pool")
DETECTORS = Registry("detector", "hardbench.metrics.inversion")
