"""How well a hardness score finds the samples that something is wrong with: those of wrong label, say."""

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
CHUNK = 50  # resamples at once


def recall_precision(found: Array, positive: Array) -> tuple[float, float]:
    """Shares in [0, 1] of the positives that were found, and of what was found that is positive, from masks [N]; nan where undefined."""
    hits = float((found & positive).sum())
    return tuple(hits / count if count else float("nan") for count in (positive.sum(), found.sum()))  # type: ignore[return-value]


def average_precision(score: Array, positive: Array) -> float:
    """Area under precision against recall as a step function, in [0, 1], where a higher score means positive; nan without positives.

    Equal scores are one threshold, as in scikit-learn. A random score's expectation is the base rate, the share of positives.
    """
    return float(_weighted(*_sorted(score, positive), np.ones((1, len(score))))[0])


def _sorted(score: Array, positive: Array) -> tuple[Array, Array, Array]:
    """Positives in the order of falling score, where each group of equal scores ends, and the order."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    return positive[order].astype(float), ends, order


def _weighted(positive: Array, ends: Array, order: Array, weights: Array) -> Array:
    """Average precision [B] of samples that count weights [B, N] times."""
    weights = weights[:, order]
    found = np.cumsum(weights * positive, axis=1)[:, ends]
    taken = np.cumsum(weights, axis=1)[:, ends]
    steps = np.diff(found, axis=1, prepend=0.0)
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    total = found[:, -1]
    return np.divide((steps * precision).sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def detection(score: Array, found: Array, positive: Array, rng: np.random.Generator, resamples: int = 1000) -> dict[str, float]:
    """recall, precision and average_precision of a score [N] and of the samples it calls hard [N], all in [0, 1], and the base_rate.

    `<name>_low` and `<name>_high` bound the 95 % percentile interval of a bootstrap over samples: how much another draw of the data would
    move the number, not another training.
    """
    recall, precision = recall_precision(found, positive)
    values = {"recall": recall, "precision": precision, "average_precision": average_precision(score, positive)}
    drawn: dict[str, list[Array]] = {name: [] for name in values}
    sorted_once, n = _sorted(score, positive), len(score)
    both, either = (found & positive).astype(float), np.stack([positive, found]).astype(float)
    for start in range(0, resamples, CHUNK):
        rows = min(CHUNK, resamples - start)
        weights = np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(rows)]).astype(float)
        hits, totals = weights @ both, weights @ either.T
        shares = np.divide(hits[:, None], totals, out=np.full_like(totals, np.nan), where=totals > 0)
        for name, row in zip(values, (*shares.T, _weighted(*sorted_once, weights)), strict=True):
            drawn[name].append(row)
    result = {"base_rate": float(positive.mean())}
    for name, value in values.items():
        rows_of = np.concatenate(drawn[name])
        known = rows_of[np.isfinite(rows_of)]
        low, high = np.quantile(known, (0.025, 0.975)) if len(known) else (np.nan, np.nan)
        result |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
    return result
