"""Imports everything that a row uses, so that a process forked from the one that has done so starts with it."""

from benchmarks import rows

rows.everything()
