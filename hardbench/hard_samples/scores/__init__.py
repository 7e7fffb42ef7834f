"""Hardness scores: functions of a Recording, higher is harder, nan where undefined.

[R, N] for every network by itself, or [N] for those that read `repeats`. What else `reads` can name: NEEDS in scoring.py.
"""
