"""Settings as click options: every option takes a value, booleans also stand alone, `_` and `-` are the same."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from hardbench.config import Config, environment, named, options, read_file
from hardbench.declaration import FALSE, TRUE, Option
from hardbench.errors import ConfigError
from hardbench.registry import Registry


def _default(option: Option) -> str:
    declared = option.declared
    if declared.varies or (declared.read_by and declared.default is None):
        return f"by {declared.read_by or 'model'}" + (f", else {declared.default}" if declared.default is not None else "")
    if isinstance(declared.default, tuple):
        return ",".join(map(str, declared.default))
    return str(declared.default).lower() if isinstance(declared.default, bool) else str(declared.default)


def _help(option: Option, known: Mapping[str, Option]) -> str:
    """The help of one of the `known` settings of a command."""
    option = option.declared.each or option
    declared = option.declared
    choices = ", ".join(declared.choices) if declared.choices is not None else ""
    signs = ((">=", declared.low), (">", declared.above), ("<=", declared.high))
    bounds = [f"{sign} {bound}" for sign, bound in signs if bound is not None]
    default = _default(option)
    notes = [choices, " and ".join(bounds), f"default {default}" if default != "None" else ""]
    if declared.read_by:
        chooser = known[declared.read_by].declared
        registry = chooser.each.declared.choices if chooser.each else chooser.choices
        assert isinstance(registry, Registry)
        notes.append(f"read by {', '.join(registry.readers(option.name))}")
    inside = "; ".join(note for note in notes if note)
    return f"{declared.help} [{inside}]" if inside else declared.help


_METAVAR = {bool: "[true|false]", int: "N", float: "X", str: "WORD", tuple: "A,B,...", dict: "K:V,..."}


def _positional(cls: type[Config], positions: Sequence[Option], words: Sequence[str], given: dict[str, str | None]) -> dict[str, Any]:
    """Words without an option name, in the order of the settings that may stand so; a list takes the rest."""
    by_name: dict[str, Any] = {}
    rest = list(words)
    for option in positions:
        if rest and given.get(option.name) is None:
            by_name[option.name] = list(rest) if option.kind is tuple else rest[0]
            rest = [] if option.kind is tuple else rest[1:]
    if rest:
        lists = [o for o in options(cls).values() if o.kind is tuple and given.get(o.name) is not None]
        example = f"{given[lists[0].name]},{rest[0]}" if lists else "0.1,0.2"
        raise ConfigError(f"{lists[0].name if lists else 'arguments'}: stray {rest[0]!r}; lists take commas: {example}")
    return by_name


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _names_one(word: str, known: Mapping[str, Option]) -> bool:
    """True if a word is an option of these, and so no value of the one before it."""
    return word.startswith("--") and word[2:].partition("=")[0].replace("-", "_") in {*known, "help"}


class SettingsCommand(click.Command):
    """The command of a module of settings: its `Config` gives the options, the text is the help, and `work` takes an instance.

    Its words are brought into one form before click reads them, and its help is grouped by kind of setting.
    """

    def __init__(self, name: str, settings: Any, text: str, work: Callable[[Any], None]):
        super().__init__(name, callback=self._call, help=text)
        self.settings, self.work = settings, work
        self._take(settings.Config)

    def _take(self, cls: type[Config]) -> None:
        """The options of a class of settings."""
        self.cls = cls
        self.positions = [option for option in options(cls).values() if option.declared.position]
        usage = " ".join(option.name.upper() + ("..." if option.kind is tuple else "") for option in self.positions)
        self.params = [click.Option([_flag(name), name], metavar=_METAVAR[option.kind], type=str) for name, option in options(cls).items()]
        self.params += [click.Argument(["words"], nargs=-1, required=False, metavar=f"[{usage}]" if usage else "")]

    def _call(self, words: tuple[str, ...], **given: str | None) -> None:
        cls = self.cls
        line = {key: value for key, value in given.items() if value is not None} | _positional(cls, self.positions, words, given)
        variables = environment(cls)
        file = line.get("config") or variables.get("config")
        self.work(cls.read(line, variables, read_file(str(file)) if file else {}))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Former and unknown names are refused here, `--batch_size` becomes `--batch-size`, a lone boolean gets its `true`.

        A module whose settings depend on the words themselves has a `config_for(words)`.
        """
        if hasattr(self.settings, "config_for"):
            self._take(self.settings.config_for(args))
        known = options(self.cls)
        ready: list[str] = []
        takes_value = False
        for position, word in enumerate(args):
            if takes_value or not word.startswith("--") or word in ("--", "--help"):
                ready.append(word)
                takes_value = False
                continue
            head, sign, value = word.partition("=")
            name = named(self.cls, head).name
            ready.append(f"{_flag(name)}{sign}{value}")
            if sign:
                continue
            following = args[position + 1] if position + 1 < len(args) else None
            option = known[name].declared.each or known[name]
            booleans = TRUE + FALSE + option.declared.words
            if option.kind is bool and not all(part.lower() in booleans for part in (following or "").split(",")):
                ready.append("true")
            elif following is None or _names_one(following, known):
                if option.declared.lone is None:
                    raise ConfigError(f"{name}: no value; {known[name].declared.help}")
                ready.append(option.declared.lone)
            else:
                takes_value = True
        return super().parse_args(ctx, ready)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section per group of settings."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for option in options(self.cls).values():
            title = option.group.removesuffix("Settings").replace("Config", "Command")
            line = f"{_flag(option.name)} {_METAVAR[option.kind]}"
            groups.setdefault(title, []).append((line, _help(option, options(self.cls))))
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows, col_max=34)
