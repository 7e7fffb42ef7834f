"""Hard samples: scores of recorded training dynamics, sets of hard samples, and training with some of them removed."""
