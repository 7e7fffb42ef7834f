"""Figures of the study of hard samples."""

KINDS: dict = {}
