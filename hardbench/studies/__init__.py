"""Studies: each file is a command and an MLproject entry point."""
