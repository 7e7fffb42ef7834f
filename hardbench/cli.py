"""The door: commands are the files of studies/ and commands/; here alone errors become exit codes."""

import ast
import functools
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import click

from hardbench import __version__
from hardbench.config import Config, options
from hardbench.errors import ConfigError, HardbenchError, Killed, nearest, printable
from hardbench.options import SettingsCommand

INTERRUPTED = 130
ORDER = ("train", "eval", "simulate", "sweep", "mask-mi", "invert", "stragglers", "plot", "compare", "resume", "data", "ui")


@functools.cache
def commands() -> dict[str, tuple[str, str]]:
    """(module, first docstring line) by command name, read from the files without importing them."""
    first_lines = {name: path.read_text().partition("\n")[0] for name, path in _files().items()}
    return {name: (f"hardbench.{path.parent.name}.{path.stem}", first_lines[name].strip('".')) for name, path in _files().items()}


def _files() -> dict[str, Path]:
    """The files of the commands by their names, in the order of the help."""
    paths = [path for folder in ("studies", "commands") for path in (Path(__file__).parent / folder).glob("[a-z]*.py")]
    files = {path.stem.replace("_", "-"): path for path in paths}
    return {name: files[name] for name in sorted(files, key=lambda name: (ORDER.index(name) if name in ORDER else 3.5, name))}


def settings_of(name: str) -> ModuleType:
    """The module of a command's settings."""
    return importlib.import_module(f"hardbench.configs.{name.replace('-', '_')}")


def _work(name: str, config: Config) -> None:
    path = commands()[name][0]
    module = importlib.import_module(path)
    if path.startswith("hardbench.studies."):
        importlib.import_module("hardbench.lifecycle").launch(module, config)
    else:
        module.run(config)


class Commands(click.Group):
    """A group whose commands are files: nothing of a command is imported before it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(commands())

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command; `_` and `-` are the same."""
        name = name.replace("_", "-")
        if name not in commands():
            return None
        text = ast.get_docstring(ast.parse(_files()[name].read_text()))
        return SettingsCommand(name, settings_of(name), text or "", functools.partial(_work, name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and the first lines of their docstrings, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in commands().items()])


def group() -> click.Group:
    """The root command."""
    text = "Which classes and samples are hard, when that shows, and which layers know: tracked, comparable, resumable runs."
    version = click.version_option(__version__, prog_name="hardbench", message="%(prog)s %(version)s", help="Print the version.")
    return version(Commands(name="hardbench", help=text, no_args_is_help=True))


def coming_from() -> str:
    """README's table of former names, as Markdown."""
    rows: dict[tuple[str, str], list[str]] = {}
    for command in commands():
        for option in options(settings_of(command).Config).values():
            for old in option.declared.was:
                rows.setdefault((old, option.name), []).append(command)
    ordered = sorted(rows.items(), key=lambda row: row[0][0].lower())
    lines = [f"| `{old}` | `--{new.replace('_', '-')}` | {', '.join(where)} |" for (old, new), where in ordered]
    return "\n".join(["| original | hardbench | commands |", "|---|---|---|", *lines])


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code. A HardbenchError is one line on stderr, anything else a bug with its traceback."""
    try:
        group().main(args=None if args is None else list(args), prog_name="hardbench", standalone_mode=False)
    except HardbenchError as error:
        click.echo(f"hardbench: {printable(str(error))}", err=True)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return 0
    except click.UsageError as error:
        words = list(sys.argv[1:] if args is None else args)
        unknown = next((word for word in words if not word.startswith("-")), "")
        line = f"command: {unknown}; {nearest(unknown, commands())}" if unknown and unknown not in commands() else error.format_message()
        click.echo(f"hardbench: {printable(line)}", err=True)
        return ConfigError.exit_code
    except (KeyboardInterrupt, click.Abort, Killed) as error:
        how, code = ("terminated", 128 + error.number) if isinstance(error, Killed) else ("interrupted", INTERRUPTED)
        notes = [note for raised in (error, error.__cause__) for note in getattr(raised, "__notes__", ())]  # Click wraps Ctrl-C
        click.echo("; ".join([f"hardbench: {how}", *notes]), err=True)  # a note is the command that goes on with the run
        return code
    return 0
