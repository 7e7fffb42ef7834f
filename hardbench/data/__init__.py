"""Data sets, the samples they hold, and what is done to a batch of them."""
