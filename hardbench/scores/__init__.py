"""Hardness of single samples, as functions of `Dynamics`: what networks said of every training sample while they were trained."""
