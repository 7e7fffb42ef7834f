"""`python -m hardbench`."""

from hardbench.cli import entry

entry()
