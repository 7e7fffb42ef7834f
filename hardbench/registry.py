"""Registries: what can be chosen by name, which settings each choice reads, and its own defaults.

What `add` is told at a function is read from the source, and the module is imported when the function is first wanted: help and checks
need the names, not torch. So what stands there are literals.
"""

import ast
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hardbench.errors import ConfigError, nearest

F = TypeVar("F", bound=Callable[..., Any])
ORDER = ("train", "eval", "simulate", "sweep", "mask-mi", "invert", "stragglers", "score", "plot", "compare", "resume", "data", "ui")


@functools.cache
def commands() -> dict[str, Path]:
    """The files of the commands, in studies/ and commands/, by their names, in the order of the help."""
    paths = [path for folder in ("studies", "commands") for path in (Path(__file__).parent / folder).glob("[a-z]*.py")]
    files = {path.stem.replace("_", "-"): path for path in paths}
    return {name: files[name] for name in sorted(files, key=lambda name: (ORDER.index(name) if name in ORDER else 6.5, name))}


def studies() -> dict[str, Path]:
    """Those of the commands that are studies."""
    return {name: path for name, path in commands().items() if path.parent.name == "studies"}


@dataclass(frozen=True)
class Entry:
    """One registered choice: its name, where its callable is, the settings it alone reads and the defaults it brings."""

    name: str
    find: Callable[[], Callable[..., Any]]
    reads: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    variants: bool = False  # whether `name:more` means something

    @property
    def call(self) -> Callable[..., Any]:
        """The callable; its module is imported by now."""
        return self.find()


class Registry:
    """Names to entries. The files of `home` (a module, or all of a package) are read at the first look-up, not imported."""

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
                self._entries[name] = Entry(name, lambda: call, frozenset(reads), defaults, variants)
            return call

        return register

    def _load(self) -> dict[str, Entry]:
        if not self._loaded:
            self._loaded = True
            for module, path in _files(self._home):
                functions = [node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)]
                for function, call in ((node, decorator) for node in functions for decorator in node.decorator_list):
                    if isinstance(call, ast.Call) and globals().get(ast.unparse(call.func).removesuffix(".add")) is self:
                        self._declare(module, function, call)
        return self._entries

    def _declare(self, module: str, function: ast.FunctionDef, call: ast.Call) -> None:
        """Take what `@REGISTRY.add(...)` says of a function."""
        more = {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
        reads, variants = frozenset(more.pop("reads", ())), more.pop("variants", False)
        for name in map(ast.literal_eval, call.args):
            entry = Entry(name, lambda: getattr(importlib.import_module(module), function.name), reads, more, variants)
            self._entries.setdefault(name, entry)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._load()))

    def __contains__(self, name: object) -> bool:
        return name in self._load()

    def __getitem__(self, word: str) -> Entry:
        """The entry of a name in any case; of `emnist:letters` or `npz:PATH` the part before the colon counts."""
        return self.named(word, self.noun)

    def named(self, word: str, setting: str) -> Entry:
        """The entry of a name, as above; ConfigError with the name of the setting that it was given to."""
        name, colon, _ = word.lower().partition(":")
        if name in self.instead:
            raise ConfigError(f"{setting}: {word}; {self.instead[name]}")
        if name not in self._load():
            raise ConfigError(f"{setting}: {word}; {nearest(name, self)}")
        entry = self._entries[name]
        if colon and not entry.variants:
            raise ConfigError(f"{setting}: {word}; {name} alone, nothing after it")
        return entry

    def readers(self, setting: str) -> list[str]:
        """Names of the entries that read a setting."""
        return [name for name in self if setting in self._entries[name].reads]


def _files(home: str) -> Iterator[tuple[str, Path]]:
    """(module, its file) of a module, or of those in a package."""
    spec = importlib.util.find_spec(home)
    assert spec is not None and spec.origin is not None, home
    if spec.submodule_search_locations is None:
        yield home, Path(spec.origin)
        return
    for path in sorted(Path(spec.origin).parent.glob("[a-z]*.py")):
        yield f"{home}.{path.stem}", path


DATASETS = Registry("dataset", "hardbench.data")
_ALL = "one model; hardbench sweep train --model vgg11,vgg13,vgg16,vgg19 trains all"
MODELS = Registry("model", "hardbench.models", {"all": _ALL})
OPTIMIZERS = Registry("optimizer", "hardbench.training.optimizers")
SCHEDULERS = Registry("scheduler", "hardbench.training.optimizers")
LAYER_METRICS = Registry("layer_metrics", "hardbench.metrics")
SCORES = Registry("strategy", "hardbench.hard_samples.scores")
TASKS = Registry("task", "hardbench.inversion.pool")
DETECTORS = Registry("detector", "hardbench.inversion.radii")
