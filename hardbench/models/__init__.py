"""Networks: R of one shape at a time."""
