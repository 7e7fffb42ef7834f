"""Detection of samples with a wrong label (or another defect) by a hardness score."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CHUNK = 50  # resamples at once


def average_precision(score: Array, positive: Array) -> float:
    """Area under precision against recall as a step function, in [0, 1], where a higher score means positive; nan without positives.

    Equal scores are one threshold, as in scikit-learn. A random score's expectation is the base rate, the share of positives.
    """
    return float(_weighted_precision(*_sorted(score, positive), np.ones((1, len(score))))[0])


def _sorted(score: Array, positive: Array) -> tuple[Array, Array, Array]:
    """Positives in the order of falling score, where each group of equal scores ends, and the order."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    return positive[order].astype(float), ends, order


def _weighted_precision(positive: Array, ends: Array, order: Array, weights: Array) -> Array:
    """Average precision [B] of samples that count weights [B, N] times."""
    weights = weights[:, order]
    hits = np.cumsum(weights * positive, axis=1)[:, ends]
    taken = np.cumsum(weights, axis=1)[:, ends]
    steps = np.diff(hits, axis=1, prepend=0.0)
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    total = hits[:, -1]
    return np.divide((steps * precision).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def detection(score: Array, hard: Array, positive: Array, rng: np.random.Generator, resamples: int = 1000) -> dict[str, float]:
    """recall, precision and average_precision of a score [N] and of the samples it calls hard [N], all in [0, 1], and the base_rate.

    `<name>_low` and `<name>_high` bound the 95 % percentile interval of a bootstrap over samples: how much another draw of the data would
    move the number, not another training. nan where a number is undefined: recall without positives, precision without hard samples.
    """
    by_score, n = _sorted(score, positive), len(score)
    hits, totals = (hard & positive).astype(float), np.stack([positive, hard], 1).astype(float)

    def measure(weights: Array) -> Array:
        """The three numbers [3, B] of samples that count weights [B, N] times."""
        counts = weights @ totals
        shares = np.divide((weights @ hits)[:, None], counts, out=np.full_like(counts, np.nan), where=counts > 0)
        return np.stack([*shares.T, _weighted_precision(*by_score, weights)])

    drawn = []
    for start in range(0, resamples, CHUNK):
        draws = [rng.integers(0, n, n) for _ in range(min(CHUNK, resamples - start))]
        drawn.append(measure(np.stack([np.bincount(rows, minlength=n) for rows in draws]).astype(float)))
    values, resampled = measure(np.ones((1, n)))[:, 0], np.concatenate(drawn, axis=1)
    result = {"base_rate": float(positive.mean())}
    for name, value, row in zip(("recall", "precision", "average_precision"), values, resampled, strict=True):
        defined = row[np.isfinite(row)]
        low, high = np.quantile(defined, (0.025, 0.975)) if len(defined) else (np.nan, np.nan)
        result |= {name: float(value), f"{name}_low": float(low), f"{name}_high": float(high)}
    return result
