"""One setting: its declaration, and how a value is read and checked."""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from hardbench.errors import ConfigError, brief, nearest
from hardbench.registry import Registry

MOST = 2**64 - 1  # the largest whole number of any setting
SEVERAL = 10_000  # values of one setting in a sweep or a list, characters of a word
TEXT = 20 * SEVERAL  # characters of a list; what YAML may hold (yaml_text) is more than that of all lists together
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclass(frozen=True)
class Setting:
    """The declaration of a setting, without its name and type, which are the dataclass field's."""

    help: str
    default: Any = None
    low: float | None = None  # smallest value allowed
    above: float | None = None  # every value allowed is larger
    high: float | None = None  # largest value allowed
    choices: Registry | Collection[str] | None = None  # a Registry, or words
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
    canonical: Callable[[str], str | None] | None = None  # brings `NAME:VALUE,...`, given as text or as a map, into the form that is kept
    later: bool = False  # came when cells of sweeps had been stored: at its default it is not in what a cell is recognised by


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
        kind = next((part for part in self._parts if part not in (str, types.NoneType)), str)
        return typing.get_origin(kind) or kind

    @property
    def items(self) -> tuple[Any, ...]:
        """Types of the members of a list or map."""
        inner = next((part for part in self._parts if typing.get_origin(part) in (tuple, dict)), None)
        return tuple(item for item in typing.get_args(inner) if item is not Ellipsis)

    @property
    def _parts(self) -> tuple[Any, ...]:
        return typing.get_args(self.hint) if isinstance(self.hint, types.UnionType) else (self.hint,)

    def fail(self, value: Any, allowed: str) -> ConfigError:
        """The error line of this setting."""
        return ConfigError(f"{self.name}: {brief(value)}; {allowed}")

    def accept(self, value: Any) -> Any:
        """The value as the declared type, checked; None stays None. Text and native YAML values go through the same parser."""
        if value is None or self.declared.raw:
            return value
        if self.declared.canonical is not None and isinstance(value, dict):
            value = ",".join(f"{key}:{item}" for key, item in value.items())
        parsed = self._parsed(value)
        if self.declared.canonical is not None:
            parsed = self.declared.canonical(parsed)
        allowed = self.declared.wrong(parsed) if self.declared.wrong else None
        if allowed is not None:
            raise self.fail(value, allowed)
        return parsed

    def _parsed(self, value: Any) -> Any:
        if self.declared.each is not None:
            words = self._several(value)
            self._check_length(words)
            return tuple(self.declared.each.accept(part) for part in words)
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
        pairs = self.declared.each.declared.canonical is not None
        inside = pairs or self.declared.each.kind in (tuple, dict)
        if isinstance(value, str):
            return [part.strip() for part in value.split(";" if inside else ",") if part.strip()] or [value]
        if not isinstance(value, list | tuple) or not value:
            return [value]
        several = pairs or any(isinstance(part, list | tuple | dict) or part is None or "," in str(part) for part in value)
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
        choices, word = self.declared.choices, text.replace("-", "_")
        if isinstance(choices, Registry):
            return choices.named(word, self.name).name if self.kind is tuple else text
        if choices is not None and word not in choices:
            raise self.fail(value, nearest(text, choices))
        return text if choices is None else word

    def _number(self, kind: Any, value: Any, text: str) -> int | float:
        declared, whole = self.declared, kind is int
        try:
            number: int | float = int(text) if whole and text.removeprefix("-").isdecimal() else float(text)
        except ValueError:
            number = math.nan
        if isinstance(value, bool) or (isinstance(number, float) and (not math.isfinite(number) or (whole and number != int(number)))):
            words = "".join(f", or {word}" for word in declared.words)
            raise self.fail(value, ("a whole number" if whole else "a number") + words)
        if whole and abs(number) > MOST:
            raise self.fail(value, f"at most {MOST}")
        if declared.high == 1 and not whole and not 0 <= number <= 1:
            raise self.fail(value, "a share from 0 to 1 (0.95, not 95 %)")
        if declared.low is not None and number < declared.low:
            raise self.fail(value, f"at least {declared.low}")
        if declared.above is not None and number <= declared.above:
            raise self.fail(value, f"above {declared.above}")
        if declared.high is not None and number > declared.high:
            raise self.fail(value, f"at most {declared.high}")
        return int(number) if whole else number


def plain(value: Any) -> Any:
    """A value as YAML has it: tuples as lists."""
    return [plain(part) for part in value] if isinstance(value, tuple) else value


def shown(value: Any) -> str:
    """A setting's value as MLflow gets it and tables show it: `-` for none; lists from YAML read like those of a Config."""
    return "-" if value is None else str(tuple(value) if isinstance(value, list) else value)


def _split(value: Any) -> list[str]:
    return [part.strip() for part in str(value).split(",") if part.strip()]
