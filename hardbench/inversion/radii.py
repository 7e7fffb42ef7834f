"""Radii and distances of class manifolds, and the inversion: the epoch at which a radius stops shrinking.

Ciceri et al. 2024 (arXiv:2303.05161), of two classes; Pukowski & Lu 2024 (arXiv:2409.14401), of many.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from hardbench.artifacts import Array
from hardbench.registry import DETECTORS
from hardbench.settings import InversionSettings

RISE = 1e-5  # growth of a smoothed radius up to which it counts as rounding of a flat curve
EXACT = 1e-6  # squared radii below this are rounding and set to 0: a class of one sample has radius 0
PASSED = 0.01  # an inversion is passed if the radius is later smaller than at the inversion by more than this share
PUBLISHED_EVERY, PUBLISHED_AFTER = 5, 20  # epochs of the published rules


def class_means(activations: Tensor, onehot: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean m_c [R, K, D] of the activations scaled to length 1, and the mean of their squared lengths [R, K] (1, or less where some are 0).

    From activations [R, D, N] (samples as columns), the labels as onehot [K, N], and 0-1 weights [R, N] that say which samples count
    (None: all). In single precision, whatever the activations are in; nan for a class without samples.
    """
    columns = activations.float()
    lengths = columns.square().sum(1)
    scale = lengths.clamp_min(1e-30).rsqrt()
    if weights is None:
        counts = onehot.sum(1).expand(len(columns), -1)
    else:
        scale, counts = scale * weights, weights @ onehot.t()
    unit = (columns * scale.unsqueeze(1)).flatten(0, 1)
    sums = (onehot @ unit.t()).unflatten(1, (len(columns), -1)).transpose(0, 1)
    squares = (lengths * scale.square()) @ onehot.t()
    return sums / counts.unsqueeze(2), squares / counts


def radii(means: Tensor, squares: Tensor | float = 1.0) -> Tensor:
    """R_c = sqrt(mean |u - m_c|^2) = sqrt(mean |u|^2 - |m_c|^2), [R, K] in [0, 1], of class means [R, K, D] of unit vectors u."""
    variance = squares - means.square().sum(-1)
    return torch.where(variance < EXACT, 0, variance).sqrt()


def distances(means: Tensor) -> Tensor:
    """|m_c - m_d| for every pair of class means [R, K, D]: [R, K, K] in [0, 2], symmetric, 0 on the diagonal."""
    return torch.linalg.vector_norm(means.unsqueeze(2) - means.unsqueeze(1), dim=-1)


@DETECTORS.add("smooth", reads=("window", "patience", "guard"))
def smooth(curves: Array, window: int = 11, patience: int = 20, guard: int = 20) -> Array:
    """Epoch of the first minimum of the smoothed radius below all of the `patience` epochs after it; nan where there is none.

    It is a local minimum: the radius may shrink below it after these epochs, which `passed` reports.
    curves [T] or [T, ...] with T = epochs from 0 (initialisation) on; the result is [] or [...], float. The curve is smoothed by a centred
    mean over `window` epochs (even windows lose one); minima before `guard` do not count. The epoch returned is that of the smallest
    radius itself within half a window of the smoothed minimum, from `guard` on. Later epochs never change it.
    """
    half = window // 2
    curves = np.asarray(curves, dtype=float)
    if len(curves) < 2 * half + patience + 2:
        return np.full(curves.shape[1:], np.nan)
    windows = sliding_window_view(curves, 2 * half + 1, axis=0)  # [T - 2 half, ..., window]
    means = windows.mean(-1)  # of epochs half, half + 1, ...
    ahead = sliding_window_view(means[2:], patience, axis=0)
    low = means[1 : 1 + len(ahead)]
    confirmed = (low < means[: len(low)]) & (low < ahead.min(-1)) & (ahead[..., -1] - low > RISE)
    epochs = np.arange(len(low)).reshape(-1, *[1] * (curves.ndim - 1)) + half + 1
    confirmed &= epochs >= guard
    middle = confirmed.argmax(0) + half + 1
    near = np.take_along_axis(windows, (middle - half)[None, ..., None], axis=0)[0]
    near = np.where((middle - half)[..., None] + np.arange(2 * half + 1) < guard, np.inf, near)
    return np.where(confirmed.any(0), middle - half + near.argmin(-1), np.nan)


@DETECTORS.add("published")
def published(curves: Array) -> Array:
    """The first epoch t > 20 divisible by 5 whose radius is above that of t - 5 (Pukowski & Lu); nan where there is none.

    curves [T] or [T, ...] from epoch 0 on, result [] or [...].
    """
    radius = np.asarray(curves, dtype=float)[::PUBLISHED_EVERY]
    return _first(radius[1:] > radius[:-1], PUBLISHED_EVERY * np.arange(1, len(radius)), PUBLISHED_AFTER + 1)


def published_parity(curves: Array) -> Array:
    """The first epoch t >= 20 whose radius is not below that of t - 1 (Ciceri et al.); nan where there is none. Shapes as `published`."""
    radius = np.asarray(curves, dtype=float)
    return _first(radius[1:] >= radius[:-1], np.arange(1, len(radius)), PUBLISHED_AFTER)


def _first(rises: Array, epochs: Array, earliest: int) -> Array:
    """The first epoch from `earliest` on at which a radius rises [T - 1, ...]; nan where none does."""
    rises = rises & (epochs >= earliest).reshape(-1, *[1] * (rises.ndim - 1))
    if not len(rises):
        return np.full(rises.shape[1:], np.nan)
    return np.where(rises.any(0), epochs[rises.argmax(0)], np.nan)


def inversion_epochs(curves: Array, settings: InversionSettings) -> Array:
    """Inversion epochs [R, K] (nan: none) of radii [T, R, K] by the detector and the task of the settings.

    For parity the published rule is applied to class 0, and its epoch is that of both classes.
    """
    if settings.detector == "smooth":
        return smooth(curves, settings.window, settings.patience, settings.guard)
    if settings.task == "parity":
        return np.repeat(published_parity(curves[..., :1]), curves.shape[-1], axis=-1)
    return published(curves)


def passed(radii: Array, epochs: Array) -> Array:
    """True where the radius is later over 1 % (PASSED) smaller than at the inversion, [R, K], from radii [R, T, K] and epochs [R, K].

    False where there is no inversion.
    """
    inversion = np.where(np.isfinite(epochs), epochs, 0).astype(int)[:, None]
    radius = np.take_along_axis(radii, inversion, axis=1)
    later = np.arange(radii.shape[1])[:, None] > inversion
    return np.asarray(np.isfinite(epochs) & (later & (radii < (1 - PASSED) * radius)).any(axis=1))


def shortest(settings: InversionSettings) -> int:
    """The number of epochs below which the detector cannot find an inversion."""
    if settings.detector == "smooth":
        half = settings.window // 2
        return max(settings.guard, half + 1) + half + settings.patience
    return PUBLISHED_AFTER + (PUBLISHED_EVERY if settings.task == "classes" else 0)


def lag(settings: InversionSettings) -> int:
    """The number of epochs from an inversion until the detector can confirm it."""
    return settings.window + settings.patience if settings.detector == "smooth" else 0
