"""Detection of samples with a known defect (wrong labels, or another planted hardness) by a hardness score.

Positives are the samples with one kind of defect, negatives the clean ones; samples of other kinds are left out. A score that sorts the
wrong way round is below the base rate, and is shown so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hardbench.artifacts import Array

CHUNK = 64  # resamples at once
MEASURES = ("average_precision", "auroc")


@dataclass(frozen=True)
class Blocks:
    """Positives in blocks of equal score, the highest first.

    rows: [P], in that order; starts: [G], each block's first place among them; before, upto: [G], the number of negatives that score
    higher than the block, and at least as high.
    """

    rows: Array
    starts: Array
    before: Array
    upto: Array


class Ranking:
    """The order in which one score [N] puts T kinds of positives, masks [T, N], each among the same negatives, mask [N].

    A higher score comes first, equal ones in any order: a measure is its expectation over the random orders of those that are equal, not
    that of the order in the file. Samples whose score is nan are left out.
    """

    def __init__(self, score: Array, positives: Array, negative: Array):
        score = np.asarray(score, dtype=float)
        defined = np.isfinite(score)
        rows = np.flatnonzero(negative & defined)
        self.negative = rows[np.argsort(-score[rows])]
        falling = -score[self.negative]
        self.blocks = []
        for positive in positives:
            rows = np.flatnonzero(positive & defined)
            rows = rows[np.argsort(-score[rows])]
            values = -score[rows]
            starts = np.flatnonzero(np.diff(values, prepend=-np.inf)) if len(rows) else np.empty(0, dtype=int)
            before, upto = (np.searchsorted(falling, values[starts], side) for side in ("left", "right"))
            self.blocks.append(Blocks(rows, starts, before, upto))

    @property
    def samples(self) -> Array:
        """Positives and negatives that have a score, of every kind [T]."""
        return np.array([len(kind.rows) for kind in self.blocks]) + len(self.negative)

    def measure(self, weights: Array) -> Array:
        """MEASURES [2, T, B] in [0, 1], the samples counting weights [N, B] times, whole numbers; nan without positives or negatives.

        Average precision: the mean over the positives of the precision at each one's place. AUROC: the probability that a positive scores
        higher than a negative, ties one half (Mann-Whitney).
        """
        counts = np.zeros((len(self.negative) + 1, weights.shape[1]), dtype=np.int32)
        np.cumsum(weights[self.negative], axis=0, dtype=np.int32, out=counts[1:])
        most = int(weights.sum(0, dtype=np.int64).max(initial=0))
        harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1.0, most + 1))])
        return np.stack([_measured(kind, weights[kind.rows], counts, harmonic) for kind in self.blocks], axis=1)

    def precision_at_count(self) -> Array:
        """Precision [T] among as many samples of the highest score as there are positives, in [0, 1]; nan without positives."""
        shares = []
        for kind in self.blocks:
            ends = np.append(kind.starts, len(kind.rows))
            first, total = ends[:-1] + kind.before, len(kind.rows)
            hits, size = np.diff(ends), np.diff(ends) + kind.upto - kind.before
            shares.append((hits * np.clip((total - first) / size, 0, 1)).sum() / total if total else np.nan)
        return np.array(shares)


def _measured(kind: Blocks, weights: Array, counts: Array, harmonic: Array) -> Array:
    """MEASURES [2, B] of positives that count weights [P, B] times; counts [M + 1, B]: those of the negatives, added up from the highest.

    Of a block of m samples with p positives, behind A samples with h positives, the place A + j holds a positive with probability p / m,
    and then has precision (h + 1 + (j - 1)(p - 1)/(m - 1)) / (A + j) on average. Summed over j = 1..m, with c = (p - 1)/(m - 1) and the
    harmonic numbers H: p/m (m c + (h + 1 - c (A + 1)) (H_{A+m} - H_A)); without negatives in the block p - (A - h) (H_{A+p} - H_A).
    """
    if not len(kind.rows):
        return np.full((len(MEASURES), weights.shape[1]), np.nan)
    weights = weights.astype(np.int32)
    p = weights if len(kind.starts) == len(kind.rows) else np.add.reduceat(weights, kind.starts, axis=0)
    found = np.cumsum(p, axis=0, dtype=np.int32)
    total, negatives, before = found[-1], counts[-1], counts[kind.before]
    first = found - p + before
    lost = (before * (harmonic[found + before] - harmonic[first])).sum(0)  # by 1 - average precision, and by 1 - AUROC
    behind = (p * before).sum(0, dtype=float)
    tied = np.flatnonzero(kind.before < kind.upto)
    if len(tied):
        p, first, before, others = p[tied], first[tied], before[tied], counts[kind.upto[tied]] - before[tied]
        h, m = first - before, p + others
        c = (p - 1) / np.maximum(m - 1, 1)
        spread = p / np.maximum(m, 1) * (m * c + (h + 1 - c * (first + 1)) * (harmonic[first + m] - harmonic[first]))
        alone = p - before * (harmonic[first + p] - harmonic[first])
        lost += (alone - spread).sum(0)
        behind += 0.5 * (p * others).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - np.where((total > 0) & (negatives > 0), np.stack([lost, behind / negatives]) / total, np.nan)


def measures(score: Array, positives: Array, negative: Array) -> Array:
    """MEASURES [2, T] of a score [N] for positives [T, N] among negatives [N]; see `Ranking`."""
    return Ranking(score, positives, negative).measure(np.ones((len(negative), 1), dtype=np.uint8))[:, :, 0]


def intervals(rankings: Sequence[Ranking], samples: int, rng: np.random.Generator, resamples: int = 500) -> Array:
    """Low and high ends of 95 % percentile intervals of MEASURES, [2, 2, S, T], of S rankings of N samples.

    A bootstrap over samples: how much another draw of the data would move a number, not another training. Every sample counts as often as
    a Poisson variable of mean 1 says (Hanley & MacGibbon 2006, doi:10.1016/j.cmpb.2006.04.006), the same in all rankings of a resample.
    """
    drawn = []
    for start in range(0, resamples, CHUNK):
        weights = rng.poisson(1.0, (samples, min(CHUNK, resamples - start))).astype(np.uint8)
        drawn.append(np.stack([ranking.measure(weights) for ranking in rankings], axis=1))
    return _ends(np.concatenate(drawn, axis=-1))


def _ends(drawn: Array) -> Array:
    """The 2.5 and 97.5 percentiles [2, ...] of resamples [..., B], those that are nan left out."""
    ends = np.quantile(drawn, (0.025, 0.975), axis=-1)
    for place in zip(*np.nonzero(np.isnan(ends[0])), strict=True):
        defined = drawn[place][np.isfinite(drawn[place])]
        ends[(slice(None), *place)] = np.quantile(defined, (0.025, 0.975)) if len(defined) else np.nan
    return ends


def found(hard: Array, positive: Array, weights: Array) -> tuple[Array, Array]:
    """Recall and precision [B] of the samples called hard [N] for positives [N], in [0, 1], the samples counting weights [N, B] times.

    nan where undefined: recall without positives, precision without hard samples.
    """
    hits, positives, called = ((weights * mask[:, None]).sum(0, dtype=float) for mask in (hard & positive, positive, hard))
    with np.errstate(invalid="ignore"):
        return hits / positives, hits / called


def detection(score: Array, hard: Array, positive: Array, rng: np.random.Generator, resamples: int = 1000) -> dict[str, float]:
    """recall, precision and average_precision of a score [N] and of the samples it calls hard [N], all in [0, 1], and the base_rate.

    `<name>_low` and `<name>_high` bound the 95 % interval of a bootstrap over samples, as that of `intervals`. nan where a number is
    undefined: recall without positives, precision without hard samples.
    """
    ranking, n = Ranking(score, positive[None], ~positive), len(score)

    def measure(weights: Array) -> Array:
        """The three numbers [3, B] of samples that count weights [N, B] times."""
        return np.stack([*found(hard, positive, weights), ranking.measure(weights)[0, 0]])

    batches = [min(CHUNK, resamples - start) for start in range(0, resamples, CHUNK)]
    drawn = np.concatenate([measure(rng.poisson(1.0, (n, batch)).astype(np.uint8)) for batch in batches], axis=1)
    values, (low, high) = measure(np.ones((n, 1), dtype=np.uint8))[:, 0], _ends(drawn)
    result = {"base_rate": float(positive.mean())}
    for place, name in enumerate(("recall", "precision", "average_precision")):
        result |= {name: float(values[place]), f"{name}_low": float(low[place]), f"{name}_high": float(high[place])}
    return result
