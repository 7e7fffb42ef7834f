"""Benchmarks: hardbench beside the straightforward implementation of the same work, in one run."""
