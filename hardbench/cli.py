"""The command line: commands are the files of studies/ and commands/; here alone errors become exit codes."""

import ast
import functools
import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

import click

from hardbench import __version__
from hardbench.config import Config
from hardbench.errors import ConfigError, HardbenchError, Killed, nearest, printable
from hardbench.options import SettingsCommand
from hardbench.registry import commands

INTERRUPTED = 130


def settings_of(name: str) -> ModuleType:
    """The module of a command's settings."""
    return importlib.import_module(f"hardbench.configs.{name.replace('-', '_')}")


def _work(name: str, config: Config) -> None:
    folder = commands()[name].parent.name
    module = importlib.import_module(f"hardbench.{folder}.{commands()[name].stem}")
    if folder == "studies":
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
        text = ast.get_docstring(ast.parse(commands()[name].read_text()))
        return SettingsCommand(name, settings_of(name), text or "", functools.partial(_work, name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Names and the first lines of their docstrings, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, path.read_text().partition("\n")[0].strip('".')) for name, path in commands().items()])


def group() -> click.Group:
    """The root command."""
    text = "Which classes and samples are hard, when that shows, and which layers know: tracked, comparable, resumable runs."
    version = click.version_option(__version__, prog_name="hardbench", message="%(prog)s %(version)s", help="Print the version.")
    return version(Commands(name="hardbench", help=text, no_args_is_help=True))


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
