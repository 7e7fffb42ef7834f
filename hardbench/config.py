"""Declare, check, read and write settings: one declaration is the option, the help, the YAML key, the check and the param."""

import dataclasses
import functools
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hardbench import files
from hardbench.declaration import Option, plain
from hardbench.errors import ConfigError, nearest
from hardbench.registry import Registry
from hardbench.yaml_text import LARGEST, parse_yaml

PRESETS = Path(__file__).parent / "presets"
# Where and how conveniently a run is computed, and what it is called: no result depends on these, so they are no params and no columns of
# a comparison. What device and threads came to is in the run's tags. Precision is none of them: it changes the numbers.
ASIDE = ("device", "threads", "data_dir", "memory", "checkpoint_every", "keep_checkpoints", "log_model", "name", "tag")


def options(cls: type["Config"]) -> dict[str, Option]:
    """The settings of a Config class by name, in the order of declaration."""
    return _declared(cls)  # type: ignore[arg-type]  # mypy takes a class of frozen instances for one that has no hash


@functools.cache
def _declared(cls: type["Config"]) -> dict[str, Option]:
    hints = typing.get_type_hints(cls)
    group = {name: klass.__name__ for klass in cls.__mro__ for name in vars(klass).get("__annotations__", {})}
    fields = {field.name: field.metadata["setting"] for field in dataclasses.fields(cls)}
    return {name: Option(name, hints[name], declared, group[name]) for name, declared in fields.items()}


def named(cls: type["Config"], word: str, value: Any = None) -> Option:
    """The setting a word names (`--batch-size` and `batch_size` are the same); ConfigError for a former or unknown name, or a section."""
    known, name = options(cls), word.lstrip("-").replace("-", "_")
    for option in known.values():
        if name == option.name or name in option.declared.also:
            return option
        if name in option.declared.was:
            raise ConfigError(f"{name}: a former name; it is {option.name} now")
    if isinstance(value, dict):
        raise ConfigError(f"{name}: a section; keys stand at top level")
    raise ConfigError(f"{name}: no such setting; {nearest(name, known)}")


@dataclass(frozen=True)
class Config:
    """Settings of a command. An instance that exists is valid: types, ranges, choices, defaults of the chosen model, and `check`."""

    def __new__(cls, *args: Any, **given: Any) -> Self:
        """An empty instance; ConfigError for a word that is no setting, as on the command line."""
        for word in given.keys() - options(cls).keys():
            raise ConfigError(f"{word}: another name of {named(cls, word).name}; that one")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        values = {name: option.accept(getattr(self, name)) for name, option in options(type(self)).items()}
        self._resolve(values)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for klass in reversed(type(self).__mro__):
            if "check" in vars(klass):
                vars(klass)["check"](self)

    def _resolve(self, values: dict[str, Any]) -> None:
        known = options(type(self))
        given = {name for name, value in values.items() if value is not None}
        skip: set[str] = set()
        for name, option in known.items():
            for other in option.declared.instead_of if values[name] is not None else ():
                if values[other] is not None:
                    raise option.fail(values[name], f"either {name} or {other}, not both")
                skip.add(other)
        for name, option in known.items():
            if isinstance(option.declared.choices, Registry) and option.kind is not tuple:
                if values[name] is None:
                    values[name] = option.declared.default
                if values[name] is not None:
                    self._choose(name, option.declared.choices, values, given, skip)
        for name, option in known.items():
            if option.declared.varies and values[name] is None and name not in skip:
                values[name] = option.declared.default

    def _choose(self, chooser: str, registry: Registry, values: dict[str, Any], given: set[str], skip: set[str]) -> None:
        """Apply the defaults of a choice, clear what it does not read, refuse what was given and is not read."""
        entry = registry.named(values[chooser], chooser)
        known = options(type(self))
        lacking = ", ".join(sorted(entry.reads - known.keys()))
        if lacking and any(option.declared.read_by == chooser for option in known.values()):  # a class that holds all that is read
            raise ConfigError(f'{chooser}: {entry.name} reads {lacking}; declared in settings.py, setting(..., read_by="{chooser}")')
        _, colon, rest = values[chooser].partition(":")
        values[chooser] = entry.name + colon + rest
        for name, default in entry.defaults.items():
            if name in values and values[name] is None and name not in skip:
                values[name] = default
        for name, option in known.items():
            if option.declared.read_by != chooser:
                continue
            if name not in entry.reads:
                if name in given:
                    readers = ", ".join(registry.readers(name)) or "none"
                    raise option.fail(values[name], f"{chooser} {entry.name} does not read it (read by {readers})")
                values[name] = None
            elif values[name] is None and name not in skip:
                values[name] = option.declared.default

    def as_dict(self) -> dict[str, Any]:
        """Settings that are kept, as plain YAML values; what is not read is None."""
        return {name: plain(getattr(self, name)) for name, option in options(type(self)).items() if option.declared.stored}

    def to_yaml(self) -> str:
        """The resolved settings as YAML that is itself a valid `--config`."""
        import yaml

        return yaml.safe_dump(self.as_dict(), sort_keys=False)

    def headline(self) -> dict[str, Any]:
        """The settings declared `headline`: the same keys for every model."""
        return {name: getattr(self, name) for name, option in options(type(self)).items() if option.declared.headline}

    def params(self) -> dict[str, Any]:
        """The MLflow params: headline settings, and others that are no default of the choices made; none of ASIDE or of a sweep's study."""
        known = options(type(self))
        chosen = [name for name, option in known.items() if isinstance(option.declared.choices, Registry) and option.kind is not tuple]
        fixed = [name for name in chosen if not known[name].declared.varies]
        by_choice, by_default = self._defaults(chosen), self._defaults(fixed)  # a choice may itself vary with another: scheduler by model
        departing = {}
        for name, option in known.items():
            declared, value = option.declared, getattr(self, name)
            replaced = value is None and any(getattr(self, other) is not None for other in rivals(type(self), name))
            kept = declared.stored and name not in ASIDE and not (declared.each or declared.raw or replaced)
            if kept and value != (by_default if name in chosen else by_choice)[name]:
                departing[name] = value
        return self.headline() | departing

    def _defaults(self, chosen: Iterable[str]) -> dict[str, Any]:
        """The value of every setting if only these were given."""
        known = options(type(self))
        values = {field.name: known[field.name].accept(field.default) for field in dataclasses.fields(self)}
        values |= {name: getattr(self, name) for name in chosen}
        self._resolve(values)
        return values

    @classmethod
    def read(cls, *sources: Mapping[str, Any]) -> Self:
        """A Config from mappings of words, the first source that names a setting winning. None counts as not given."""
        given: dict[str, Any] = {}
        for source in sources:
            fresh = {named(cls, word, value).name: value for word, value in source.items()}
            beaten = {name for name in fresh if rivals(cls, name) & given.keys()}  # widths on the command line, depth in the file
            given |= {name: value for name, value in fresh.items() if value is not None and name not in given.keys() | beaten}
        return cls(**given)


def rivals(cls: type[Config], name: str) -> set[str]:
    """The settings that stand instead of one, or that it stands instead of."""
    return set(options(cls)[name].declared.instead_of) | {other for other, o in options(cls).items() if name in o.declared.instead_of}


def environment(cls: type[Config]) -> dict[str, str]:
    """Settings given as HARDBENCH_<NAME> (or the further variable a setting declares)."""
    variables = {name: (f"HARDBENCH_{name.upper()}", option.declared.env or "") for name, option in options(cls).items()}
    values = {name: os.environ.get(usual) or os.environ.get(further) for name, (usual, further) in variables.items()}
    return {name: value for name, value in values.items() if value}


def presets() -> dict[str, Path]:
    """The shipped configurations by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def read_file(word: str) -> dict[str, Any]:
    """The keys of a YAML file or preset as given; ConfigError if it is missing, malformed or repeats a key."""
    path = presets().get(word, files.expanded(word))
    if not files.is_there(path):
        raise ConfigError(f"config: {word}; a YAML file or a preset, {nearest(word, presets())}")
    try:
        return parse_yaml(files.regular(path, 4 * LARGEST).read_text("utf-8"), word)
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"config: {word}; a text file that can be read ({error})") from None
