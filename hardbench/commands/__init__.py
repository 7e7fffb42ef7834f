"""Commands that are no study."""
