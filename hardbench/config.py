"""Declare, check, read and write settings: one declaration is the option, the help, the YAML key, the check and the param."""

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hardbench import files
from hardbench.errors import ConfigError, brief, nearest
from hardbench.registry import Registry
from hardbench.yaml_text import LARGEST, parse_yaml

PRESETS = Path(__file__).parent / "presets"
MOST = 2**64 - 1  # the largest whole number of any setting
SEVERAL = 10_000  # values of one setting in a sweep or a list, characters of a word
TEXT = 20 * SEVERAL  # characters of a list; what YAML may hold (yaml_text) is more than that of all lists together
# Where and how conveniently a run is computed, and what it is called: no result depends on these, so they are no params and no columns of
# a comparison. What device and threads came to is in the run's tags. Precision is none of them: it changes the numbers.
ASIDE = ("device", "threads", "data_dir", "memory", "checkpoint_every", "keep_checkpoints", "log_model", "name", "tag")
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting, without its name and type, which are the dataclass field's."""

    help: str
    default: Any = None
    low: float | None = None  # smallest value allowed
    above: float | None = None  # every value allowed is larger
    high: float | None = None  # largest value allowed
    choices: Iterable[str] | None = None  # a Registry, or words
    words: tuple[str, ...] = ()  # words a number may be replaced by
    also: tuple[str, ...] = ()  # further names that are accepted
    was: tuple[str, ...] = ()  # former names of the original scripts, refused
    read_by: str | None = None  # the setting whose choice decides whether this one is read
    instead_of: tuple[str, ...] = ()  # settings this one replaces
    varies: bool = False  # the default depends on a choice (the model, mostly)
    headline: bool = False  # an MLflow param
    env: str | None = None  # further environment variable
    empty: bool = False  # a list may hold nothing
    position: bool = False  # may be given without its name
    stored: bool = True  # kept in config.yaml
    each: Any = None  # the Option that every one of several values is of: a setting in a sweep
    raw: bool = False  # taken as it comes; the command reads it
    wrong: Callable[[Any], str | None] | None = None  # says what is allowed instead of a value, or None where it fits
    lone: str | None = None  # the value of the option where it stands alone


def setting(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field that is a setting. Where the default varies, the field stays None until the choice is known."""
    declared = Setting(help, default, **more)
    late = declared.read_by is not None or declared.varies
    return dataclasses.field(default=None if late else default, metadata={"setting": declared})


@dataclass(frozen=True)
class Option:
    """A setting with its name, type and the class that declares it, as options, tables and parsers want it."""

    name: str
    hint: Any
    declared: Setting
    group: str

    @property
    def kind(self) -> Any:
        """The type without None: bool, int, float, str, tuple or dict."""
        parts = [part for part in typing.get_args(self.hint) if part is not types.NoneType]
        union = isinstance(self.hint, types.UnionType)
        kind = next((part for part in parts if part is not str), str) if union else self.hint
        return typing.get_origin(kind) or kind

    @property
    def items(self) -> tuple[Any, ...]:
        """Types of the members of a list or map."""
        parts = typing.get_args(self.hint) if isinstance(self.hint, types.UnionType) else (self.hint,)
        inner = next((part for part in parts if typing.get_origin(part) in (tuple, dict)), None)
        return tuple(item for item in typing.get_args(inner) if item is not Ellipsis)

    def fail(self, value: Any, allowed: str) -> ConfigError:
        """The error line of this setting."""
        return ConfigError(f"{self.name}: {brief(value)}; {allowed}")

    def accept(self, value: Any) -> Any:
        """The value as the declared type, checked. Text and native YAML values go through the same parser."""
        found = self._parsed(value)
        allowed = self.declared.wrong(found) if self.declared.wrong else None
        if allowed is not None:
            raise self.fail(value, allowed)
        return found

    def _parsed(self, value: Any) -> Any:
        if self.declared.raw:
            return value
        if self.declared.each is not None:
            words = self._several(value)
            self._check_length(words)
            return tuple(None if part is None else self.declared.each.accept(part) for part in words)
        if self.kind is dict:
            return self._map(value)
        if isinstance(value, dict):
            raise self.fail(value, "not a section; keys stand at top level")
        if self.kind is tuple:
            parts = value if isinstance(value, list | tuple) else _split(value)
            allowed = self.declared.empty or value == self.declared.default
            if (not parts and not allowed) or any(isinstance(part, list | tuple | dict) for part in parts):
                raise self.fail(value, "at least one word, with commas between several")
            self._check_length(parts, TEXT)
            return tuple(self._one(self.items[0], part) for part in parts)
        if isinstance(value, list | tuple):
            raise self.fail(value, "a single value")
        return self._one(self.kind, value)

    def _check_length(self, parts: Sequence[Any], most: float = math.inf) -> None:
        if len(parts) > SEVERAL:
            raise self.fail(f"{len(parts)} values", f"at most {SEVERAL}")
        if (letters := sum(len(str(part)) for part in parts)) > most:
            raise self.fail(f"{letters} characters", f"at most {most}")

    def _several(self, value: Any) -> list[Any]:
        """The values of a sweep: commas part them, `;` where commas stand inside a value; in YAML a list (of lists)."""
        inside = self.declared.each.kind in (tuple, dict)
        if isinstance(value, str):
            return [part.strip() for part in value.split(";" if inside else ",") if part.strip()] or [value]
        if not isinstance(value, list | tuple) or not value:
            return [value]
        several = any(isinstance(part, list | tuple | dict) or part is None or "," in str(part) for part in value)
        return list(value) if several or not inside else [value]

    def _map(self, value: Any) -> dict[Any, Any]:
        sign = "=" if self.items[0] is str else ":"
        example = "k=v,k2=v2" if sign == "=" else "0:0,2:1"
        if not isinstance(value, dict):
            pairs = [part.partition(sign) for part in _split(value)]
            if isinstance(value, int | float) or not all(middle for _, middle, _ in pairs):
                hint = " (YAML reads 1:0 as the number 60: write {1: 0})" if isinstance(value, int) else ""
                raise self.fail(value, f"pairs such as {example}{hint}")
            if len({key.strip() for key, _, _ in pairs}) < len(pairs):
                raise self.fail(value, "each key once")
            value = {key.strip(): item.strip() for key, _, item in pairs}
        self._check_length([f"{key} {item}" for key, item in value.items()], TEXT)
        return {self._one(self.items[0], key): self._one(self.items[1], item) for key, item in value.items()}

    def _one(self, kind: Any, value: Any) -> Any:
        text = str(value).strip()
        if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
            raise self.fail(value, "text in UTF-8, without zero bytes")
        if len(text) > SEVERAL:
            raise self.fail(f"{len(text)} characters", f"at most {SEVERAL}")
        if text.lower() in self.declared.words:
            return text.lower()
        if kind is bool:
            if text.lower() not in TRUE + FALSE:
                raise self.fail(value, " or ".join(("true", "false", *self.declared.words)))
            return text.lower() in TRUE
        if kind in (int, float):
            return self._number(kind, value, text)
        choices = self.declared.choices
        if isinstance(choices, Registry) and self.kind is tuple:
            return choices[text.replace("-", "_")].name
        if choices is None or isinstance(choices, Registry):
            return text
        names = list(choices)
        word = text.replace("-", "_")
        if word not in names:
            raise self.fail(value, nearest(text, names))
        return word

    def _number(self, kind: Any, value: Any, text: str) -> int | float:
        declared, whole = self.declared, kind is int
        number: int | float
        try:
            number = int(text) if whole and text.removeprefix("-").isdecimal() else float(text)
        except ValueError:
            number = math.nan
        if isinstance(value, bool) or (isinstance(number, float) and (not math.isfinite(number) or (whole and number != int(number)))):
            words = "".join(f", or {word}" for word in declared.words)
            raise self.fail(value, ("a whole number" if whole else "a number") + words)
        if whole and abs(number) > MOST:
            raise self.fail(value, f"at most {MOST}")
        if declared.high == 1 and not whole and not 0 <= number <= 1:
            raise self.fail(value, "a share from 0 to 1 (0.95, not 95 %)")
        for bound, wrong, text in (
            (declared.low, lambda b: number < b, "at least"),
            (declared.above, lambda b: number <= b, "above"),
            (declared.high, lambda b: number > b, "at most"),
        ):
            if bound is not None and wrong(bound):
                raise self.fail(value, f"{text} {bound}")
        return int(number) if whole else number


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    """A setting's value as MLflow gets it and tables show it: `-` for none; lists from YAML read like those of a Config."""
    return "-" if value is None else str(tuple(value) if isinstance(value, list) else value)


def _split(value: Any) -> list[str]:
    return [part.strip() for part in str(value).split(",") if part.strip()]


def options(cls: type["Config"]) -> dict[str, Option]:
    """The settings of a Config class by name, in the order of declaration."""
    known = vars(cls).get("_options")
    if known is None:
        known = _declared(cls)
        cls._options = known  # type: ignore[attr-defined]
    found: dict[str, Option] = known
    return found


def _declared(cls: type["Config"]) -> dict[str, Option]:
    hints = typing.get_type_hints(cls)
    group = {name: klass.__name__ for klass in cls.__mro__ for name in vars(klass).get("__annotations__", {})}
    found = {}
    for field in dataclasses.fields(cls):
        found[field.name] = Option(field.name, hints[field.name], field.metadata["setting"], group[field.name])
    return found


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
        values = {}
        for name, option in options(type(self)).items():
            value = getattr(self, name)
            values[name] = None if value is None else option.accept(value)
        self._resolve(values)
        for name, value in values.items():
            object.__setattr__(self, name, value)
        for klass in reversed(type(self).__mro__):
            if klass is not Config and "check" in vars(klass):
                vars(klass)["check"](self)

    def _resolve(self, values: dict[str, Any]) -> None:
        known = options(type(self))
        given = {name for name, value in values.items() if value is not None}
        skip: set[str] = set()
        for name, option in known.items():
            if values[name] is not None and option.declared.instead_of:
                skip.update(option.declared.instead_of)
                for other in option.declared.instead_of:
                    if values[other] is not None:
                        raise option.fail(values[name], f"either {name} or {other}, not both")
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
        entry = registry[values[chooser]]
        known = options(type(self))
        undeclared = sorted(entry.reads - known.keys())
        if undeclared and any(option.declared.read_by == chooser for option in known.values()):  # a class that holds all that is read
            raise ConfigError(
                f'{chooser}: {entry.name} reads {", ".join(undeclared)}; declared in settings.py, setting(..., read_by="{chooser}")'
            )
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
        kept = {name: getattr(self, name) for name, option in options(type(self)).items() if option.declared.stored}
        return {name: _plain(value) for name, value in kept.items()}

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
            replaced = value is None and any(getattr(self, other) is not None for other in _rivals(type(self), name))
            kept = declared.stored and name not in ASIDE and not (declared.each or declared.raw or replaced)
            if kept and value != (by_default if name in chosen else by_choice)[name]:
                departing[name] = value
        return self.headline() | {name: value for name, value in departing.items() if name not in self.headline()}

    def _defaults(self, chosen: Iterable[str]) -> dict[str, Any]:
        """The value of every setting if only these were given."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        values = {name: None if fields[name] is None else option.accept(fields[name]) for name, option in options(type(self)).items()}
        values |= {name: getattr(self, name) for name in chosen}
        self._resolve(values)
        return values

    @classmethod
    def read(cls, *sources: Mapping[str, Any]) -> Self:
        """A Config from mappings of words, the first source that names a setting winning. None counts as not given."""
        given: dict[str, Any] = {}
        for source in sources:
            fresh = {named(cls, word, value).name: value for word, value in source.items()}
            beaten = {name for name in fresh if _rivals(cls, name) & given.keys()}  # widths on the command line, depth in the file
            given |= {name: value for name, value in fresh.items() if value is not None and name not in given.keys() | beaten}
        return cls(**given)


def _rivals(cls: type[Config], name: str) -> set[str]:
    """The settings that stand instead of one, or that it stands instead of."""
    return set(options(cls)[name].declared.instead_of) | {other for other, o in options(cls).items() if name in o.declared.instead_of}


def environment(cls: type[Config]) -> dict[str, str]:
    """Settings given as HARDBENCH_<NAME> (or the further variable a setting declares)."""
    found: dict[str, str] = {}
    for name, option in options(cls).items():
        for variable in (f"HARDBENCH_{name.upper()}", option.declared.env):
            if variable and os.environ.get(variable):
                found.setdefault(name, os.environ[variable])
    return found


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


def former_names(classes: Iterable[tuple[str, type[Config]]]) -> Iterator[tuple[str, str, str]]:
    """(former name, setting, commands) for every `was=` declared, sorted."""
    rows: dict[tuple[str, str], list[str]] = {}
    for command, cls in classes:
        for name, option in options(cls).items():
            for old in option.declared.was:
                rows.setdefault((old, name), []).append(command)
    for (old, name), commands in sorted(rows.items(), key=lambda item: item[0][0].lower()):
        yield old, name, ", ".join(commands)
