"""Figures of sweeps: accuracy against the corruption level, and a coloured table over any two settings."""

from typing import Any

KINDS: dict[str, Any] = {}
