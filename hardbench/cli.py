"""The door: commands are the files of studies/ and commands/; here alone errors become exit codes."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import click

from hardbench import __version__
from hardbench.config import Config, former_names
from hardbench.errors import ConfigError, HardbenchError, Killed, nearest, printable
from hardbench.options import Commands, command

INTERRUPTED = 130
ORDER = ("train", "eval", "simulate", "sweep", "mask-mi", "invert", "stragglers", "plot", "compare", "resume", "data", "ui")


def commands() -> dict[str, tuple[str, str]]:
    """(module, first docstring line) by command name, read from the files without importing them."""
    found = {}
    for path in _files().values():
        with path.open() as file:
            summary = file.readline().strip().strip('"').rstrip(".")
        found[path.stem.replace("_", "-")] = (f"hardbench.{path.parent.name}.{path.stem}", summary)
    return dict(sorted(found.items(), key=lambda item: (ORDER.index(item[0]) if item[0] in ORDER else 3.5, item[0])))


def _files() -> dict[str, Path]:
    """The files of the commands by module name."""
    found = [path for folder in ("studies", "commands") for path in (Path(__file__).parent / folder).glob("[a-z]*.py")]
    return {path.stem: path for path in found}


def settings_of(name: str) -> ModuleType:
    """The module of a command's settings."""
    return importlib.import_module(f"hardbench.configs.{name.replace('-', '_')}")


def _load(name: str) -> click.Command:
    def work(config: Config) -> None:
        module = importlib.import_module(commands()[name][0])
        if hasattr(module, "run"):
            module.run(config)
        else:
            importlib.import_module("hardbench.lifecycle").launch(module, config)

    text = ast.get_docstring(ast.parse(_files()[name.replace("-", "_")].read_text()))
    return command(name, settings_of(name), text or "", work)


def group() -> Commands:
    """The root command."""
    summaries = {name: summary for name, (_, summary) in commands().items()}
    text = "Which classes and samples are hard, when that shows, and which layers know: tracked, comparable, resumable runs."
    version = click.version_option(__version__, prog_name="hardbench", message="%(prog)s %(version)s", help="Print the version.")
    return version(Commands(_load, summaries, name="hardbench", help=text, no_args_is_help=True))


def coming_from() -> str:
    """README's table of former names, as Markdown."""
    classes = [(name, settings_of(name).Config) for name in commands()]
    rows = [f"| `{old}` | `--{new.replace('_', '-')}` | {where} |" for old, new, where in former_names(classes)]
    return "\n".join(["| original | hardbench | commands |", "|---|---|---|", *rows])


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
    except (KeyboardInterrupt, click.Abort) as error:
        click.echo(_last_words("interrupted", error), err=True)
        return INTERRUPTED
    except Killed as error:
        click.echo(_last_words("terminated", error), err=True)
        return 128 + error.number
    return 0


def _last_words(how: str, error: BaseException) -> str:
    """The reason why the command ended, and the command that goes on with its run, where there is one."""
    notes = [note for one in (error, error.__cause__) for note in getattr(one, "__notes__", ())]  # Click wraps Ctrl-C
    return "; ".join([f"hardbench: {how}", *notes])
