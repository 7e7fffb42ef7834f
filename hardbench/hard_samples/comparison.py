"""Scores compared over data sets: mean ranks with Friedman's test and the critical difference of Nemenyi's (Demsar 2006, JMLR 7)."""

from collections.abc import Mapping, Sequence

import numpy as np

from hardbench.artifacts import Array
from hardbench.metrics.hardness import mean_stderr

BLOCKS = 5  # data sets from which on ranks are compared


def row_ranks(values: Array) -> Array:
    """Rank of every value within its row [n, k], 1 for the largest, equal ones sharing their mean rank."""
    larger = (values[:, None, :] > values[:, :, None]).sum(2)
    same = (values[:, None, :] == values[:, :, None]).sum(2)
    return np.asarray(larger + (same + 1) / 2)


def friedman(values: Array) -> tuple[Array, float, float]:
    """Mean ranks [k] of k treatments over n blocks, values [n, k], 1 for the largest; Friedman's statistic, and its p (chi2, k - 1).

    chi2 = 12 n / (k (k + 1)) sum_j (R_j - (k + 1)/2)^2, over 1 - sum(t^3 - t) / (n (k^3 - k)) for ties of t values in a block (Demsar
    2006, sec. 3.2.2). nan where all values of every block are equal.
    """
    from scipy.stats import chi2

    n, k = values.shape
    ranks = row_ranks(values)
    ties = sum(float((t**3 - t).sum()) for t in (np.unique(row, return_counts=True)[1] for row in values))
    correction = 1 - ties / (n * (k**3 - k))
    means = ranks.mean(0)
    statistic = 12 * n / (k * (k + 1)) * ((means - (k + 1) / 2) ** 2).sum() / correction if correction > 0 else float("nan")
    return means, float(statistic), float(chi2.sf(statistic, k - 1))


def critical_difference(k: int, n: int, alpha: float = 0.05) -> float:
    """The difference of mean ranks over n blocks from which on two of k treatments differ: q sqrt(k (k + 1) / (6 n)) (Nemenyi 1963).

    q is the upper quantile of the studentised range of k means over sqrt(2) (Demsar 2006, table 5: 2.569 for k = 4).
    """
    from scipy.stats import studentized_range

    q = float(studentized_range.ppf(1 - alpha, k, np.inf)) / np.sqrt(2)
    return float(q * np.sqrt(k * (k + 1) / (6 * n)))


def blocks(datasets: Sequence[str]) -> list[str]:
    """The data sets, each once, in their order."""
    return list(dict.fromkeys(datasets))


def friedman_arrays(judged: Sequence[Mapping[str, Array]], datasets: Sequence[str]) -> dict[str, Array]:
    """The scores and types that all runs have, compared over data sets by average precision, after the mean over the runs on each.

    From the arrays of `detection_arrays` of every run. `friedman_scores` [S], `friedman_types` [P], `friedman_datasets` [n],
    `friedman_blocks` n, `friedman_ap` [P, n, S], `friedman_ranks` [P, S] (1 the best), `friedman_statistic`, `friedman_p`,
    `friedman_critical_difference` [P]. Empty for fewer than five data sets, two scores or one type.
    """
    names = blocks(datasets)
    types = _shared(judged, "detection_types")
    scores = _shared(judged, "detection_scores")
    if len(names) < BLOCKS or not types:
        return {}
    runs = np.array([_chosen(run, scores, types) for run in judged])  # [runs, S, P]
    means = np.stack([mean_stderr(runs[[place for place, name in enumerate(datasets) if name == own]])[0] for own in names])
    whole = np.isfinite(means).all((0, 2))
    if whole.sum() < 2:
        return {}
    values = np.moveaxis(means[:, whole], 2, 0)  # [P, n, S]
    found = [friedman(value) for value in values]
    return {
        "friedman_scores": np.array(scores)[whole], "friedman_types": np.array(types), "friedman_datasets": np.array(names),
        "friedman_blocks": np.array(len(names)), "friedman_ap": values, "friedman_ranks": np.stack([means for means, _, _ in found]),
        "friedman_statistic": np.array([statistic for _, statistic, _ in found]), "friedman_p": np.array([p for _, _, p in found]),
        "friedman_critical_difference": np.full(len(types), critical_difference(int(whole.sum()), len(names))),
    }  # fmt: skip


def _shared(judged: Sequence[Mapping[str, Array]], key: str) -> list[str]:
    """The words that an array has in all runs, in the order of the first."""
    lists = [[str(word) for word in run.get(key, ())] for run in judged]
    return [word for word in lists[0] if all(word in others for others in lists)]


def _chosen(run: Mapping[str, Array], scores: Sequence[str], types: Sequence[str]) -> Array:
    """Average precision [S, P] of these scores and types."""
    rows, columns = (
        [list(map(str, run[f"detection_{part}"])).index(word) for word in words] for part, words in (("scores", scores), ("types", types))
    )
    return np.asarray(run["detection_ap"][np.ix_(rows, columns)])
