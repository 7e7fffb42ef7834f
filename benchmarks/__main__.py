"""Measure hardbench beside straightforward implementations of the same work, on this machine, in turns.

Rows need MNIST in HARDBENCH_DATA (`hardbench data fetch mnist`). README.md beside this file says what the columns mean.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks import machine, mnist, report, row, rows
from hardbench import console
from hardbench.config import Config as AnyConfig
from hardbench.declaration import setting
from hardbench.errors import ConfigError, HardbenchError
from hardbench.options import SettingsCommand


@dataclass(frozen=True)
class Config(AnyConfig):
    """Settings of the benchmarks."""

    quick: bool = setting(False, "Less work per row: under three minutes, and indicative only.")
    json: str | None = setting(None, "File that gets everything measured.", stored=False)
    only: tuple[str, ...] = setting((), "Rows, by name or by how the name begins; default: all.")
    config: str | None = setting(None, "YAML file whose keys are option names.", stored=False)


def run(config: Config) -> None:
    """Measure row by row, print the table; HardbenchError at the end if a row's forms did not compute the same."""
    chosen, described = rows.chosen(config.only), machine.describe()
    if config.json is not None:
        _write(Path(config.json))
    outcomes = []
    with mnist.unpacked():
        for one in chosen:
            outcomes.append(row.measure(one, config.quick))
            console.say(f"{one.name}: {report.verdict(outcomes[-1])}")
    console.table(
        f"hardbench beside straightforward forms: {report.line(described, config.quick)}", report.COLUMNS, map(report.cells, outcomes)
    )
    if config.json is not None:
        _write(Path(config.json), report.as_json(described, config.quick, outcomes))
        console.say(config.json)
    different = [outcome.name for outcome in outcomes if not (outcome.same or outcome.skipped)]
    if different:
        raise HardbenchError(f"rows: {', '.join(different)}; two forms that compute the same")


def _write(path: Path, text: str = "") -> None:
    """Add the text to the file; without one the file is only opened, so that a bad name is known before any work."""
    try:
        with path.open("w" if text else "a") as file:
            file.write(text)
    except OSError as error:
        raise ConfigError(f"json: {path}; a file that can be written ({error.strerror})") from None


def main() -> int:
    """The exit code."""
    try:
        command = SettingsCommand("benchmarks", sys.modules[__name__], __doc__ or "", run)
        command.main(prog_name="python -m benchmarks", standalone_mode=False)
    except (HardbenchError, click.UsageError) as error:
        click.echo(f"benchmarks: {error}", err=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
