"""Detection of samples with a wrong label (or another defect) by a hardness score."""

import numpy as np

from hardbench.artifacts import Array

CHUNK = 50  # resamples at once


def average_precision(score: Array, positive: Array, weights: Array) -> Array:
    """Area under precision against recall as a step function, [B] in [0, 1], where a higher score means positive; nan without positives.

    The samples count weights [B, N] times. Equal scores are one threshold, as in scikit-learn. A random score's expectation is the base
    rate, the share of positives.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # of each group of equal scores
    weights = weights[:, order]
    hits = np.cumsum(weights * positive[order], axis=1)[:, ends]
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
    n = len(score)
    hits, totals = (hard & positive).astype(float), np.stack([positive, hard], 1).astype(float)

    def measure(weights: Array) -> Array:
        """The three numbers [3, B] of samples that count weights [B, N] times."""
        counts = weights @ totals
        shares = np.divide((weights @ hits)[:, None], counts, out=np.full_like(counts, np.nan), where=counts > 0)
        return np.stack([*shares.T, average_precision(score, positive, weights)])

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
