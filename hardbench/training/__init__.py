"""The training loop, its learners, observers, evaluation and checkpoints."""
