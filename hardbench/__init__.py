"""Hard classes, hard samples and what layers do with them, as tracked, comparable, resumable runs."""

__version__ = "0.1.0"
