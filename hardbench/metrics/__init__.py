"""Metrics: pure functions of tensors and arrays."""
