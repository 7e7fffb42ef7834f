"""Inversion points of class manifolds and stragglers (Ciceri et al. 2024, arXiv:2303.05161): data, training, radii, search, experiments."""
