"""The door: commands are the files of studies/ and commands/; here alone errors become exit codes."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from hardbench import signals, streams
from hardbench.config import former_names
from hardbench.errors import ConfigError, HardbenchError, Killed, nearest, printable
from hardbench.options import Commands, command

INTERRUPTED = 130
ORDER = ("train", "eval", "simulate", "sweep", "mask-mi", "invert", "stragglers", "plot", "compare", "resume", "data", "ui")


def commands() -> dict[str, tuple[str, str]]:
    """(module, first docstring line) by command name, read from the files without importing them."""
    found = {}
    for folder in ("studies", "commands"):
        for path in (Path(__file__).parent / folder).glob("[a-z]*.py"):
            with path.open() as file:
                summary = file.readline().strip().strip('"').rstrip(".")
            found[path.stem.replace("_", "-")] = (f"hardbench.{folder}.{path.stem}", summary)
    return dict(sorted(found.items(), key=lambda item: (ORDER.index(item[0]) if item[0] in ORDER else 3.5, item[0])))


def _load(name: str) -> click.Command:
    return command(name, importlib.import_module(commands()[name][0]))


def group() -> Commands:
    """The root command."""
    summaries = {name: summary for name, (_, summary) in commands().items()}
    text = "Which classes and samples are hard, when that shows, and which layers know: tracked, comparable, resumable runs."
    return Commands(_load, summaries, name="hardbench", help=text, no_args_is_help=True)


def coming_from() -> str:
    """README's table of former names, as Markdown."""
    classes = [(name, importlib.import_module(module).Config) for name, (module, _) in commands().items()]
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
    """What ended the command, and the command that goes on with its run, where there is one."""
    notes = [note for one in (error, error.__cause__) for note in getattr(one, "__notes__", ())]  # Click wraps Ctrl-C
    return "; ".join([f"hardbench: {how}", *notes])


def entry() -> None:
    """The console script."""
    signals.catch()
    streams.guard()
    code = main()
    streams.report()
    signals.ignore()
    sys.exit(code)
