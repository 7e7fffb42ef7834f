"""The training loop, its learners, callbacks, evaluation and checkpoints."""
