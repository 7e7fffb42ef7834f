"""Which samples are hard: scores of recorded dynamics, sets of hard samples, and what removing some from training does."""
