"""Data sets, their samples, and the operations on a batch of samples."""
