"""Figures, drawn from what a run stored."""
