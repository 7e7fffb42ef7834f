"""Hardness scores judged: which planted hardness each finds, and whether scores, and networks, agree on what is hard."""

from collections.abc import Mapping, Sequence

import numpy as np

from hardbench.artifacts import Array
from hardbench.hard_samples.detection import Ranking, found, intervals, measures
from hardbench.inversion.agreement import jaccard_matrix, mean_overlap_z, spearman_matrix
from hardbench.metrics.hardness import mean_stderr

SHARE = 0.05  # of the samples that are called hard where nothing was planted
GALLERY, IMAGES = 12, 240  # hardest samples that are kept of a class, and of all classes together, by every score
PAIRED = 10  # networks that are compared with each other, the first ones


def ensemble(values: Array) -> Array:
    """The mean over networks [N] of a score [R, N], those that are nan left out; a score of all networks [N] as it is."""
    return mean_stderr(values)[0] if values.ndim == 2 else np.asarray(values, dtype=float)


def kinds(planted: Array, types: Sequence[str]) -> tuple[list[str], Array]:
    """The types that were planted, and the samples of each, bool [P, N], from codes [N] that count the types from 1."""
    codes = [code for code in range(1, len(types) + 1) if (planted == code).any()]
    return [types[code - 1] for code in codes], np.array([planted == code for code in codes], dtype=bool).reshape(len(codes), len(planted))


def hard_count(planted: Array) -> int:
    """The number of samples that are called hard: as many as were planted, or where nothing was 5 % of all, at least one."""
    return int((planted > 0).sum()) or max(1, round(SHARE * len(planted)))


def hardest(values: Array, count: int, rng: np.random.Generator) -> Array:
    """The `count` samples of the highest score, bool [..., N], of equal ones a random draw; none without a score."""
    ties = rng.permuted(np.broadcast_to(np.arange(values.shape[-1]), values.shape), axis=-1)
    order = np.lexsort((ties, -np.nan_to_num(values, nan=-np.inf)), axis=-1)
    mask = np.zeros(values.shape, dtype=bool)
    np.put_along_axis(mask, order[..., :count], True, axis=-1)
    return mask & ~np.isnan(values)


def hardest_of_classes(values: Mapping[str, Array], labels: Array, classes: int) -> Array:
    """Rows of the hardest samples of every class by every score, int64 [S, K, G], -1 where there are no more; G is 12 or less."""
    count = max(1, min(GALLERY, IMAGES // classes))
    rows = np.full((len(values), classes, count), -1, dtype=np.int64)
    members = [np.flatnonzero(labels == c) for c in range(classes)]
    for s, value in enumerate(values.values()):
        mean = ensemble(value)
        for c, own in enumerate(members):
            known = own[np.isfinite(mean[own])]
            chosen = known[np.argsort(-mean[known], kind="stable")[:count]]
            rows[s, c, : len(chosen)] = chosen
    return rows


def ranks(values: Array) -> Array:
    """Rank of every sample [N], 1 for the highest score, equal ones sharing the smallest; nan without a score."""
    falling = np.sort(-values)
    return np.where(np.isnan(values), np.nan, np.searchsorted(falling, -values) + 1.0)


def detection_arrays(values: Mapping[str, Array], planted: Array, types: Sequence[str], rng: np.random.Generator) -> dict[str, Array]:
    """How well S scores ([R, N] or [N] by name) find P planted types, each among the clean samples; empty where nothing was planted.

    `detection_scores` [S], `detection_types` [P], `detection_base_rate` [P]; of the ensemble values `detection_ap`, `detection_auroc`,
    `detection_precision` (among as many of the hardest as were planted) [S, P], 95 % intervals by bootstrap over samples
    `detection_low`, `detection_high`, `detection_auroc_low`, `detection_auroc_high` [S, P], `detection_n`, the samples judged, [S, P],
    of which `detection_positives` have the type; `detection_ap_repeats`, `detection_auroc_repeats` [S, P, R] of single networks, nan for
    scores of all networks together. Shares in [0, 1].
    """
    names, positives = kinds(planted, types)
    clean = planted == 0
    if not names or not values or not clean.any():
        return {}
    rankings = [Ranking(ensemble(value), positives, clean) for value in values.values()]
    whole = np.stack([ranking.measure(np.ones((len(planted), 1), dtype=np.uint8))[:, :, 0] for ranking in rankings], axis=1)
    low, high = intervals(rankings, len(planted), rng)
    networks = max((len(value) for value in values.values() if value.ndim == 2), default=1)
    single = np.full((2, len(values), len(names), networks), np.nan)
    for s, value in enumerate(values.values()):
        for r, row in enumerate(value if value.ndim == 2 else ()):
            single[:, s, :, r] = measures(row, positives, clean)
    return {
        "detection_scores": np.array(list(values)), "detection_types": np.array(names),
        "detection_base_rate": positives.sum(1) / (positives.sum(1) + clean.sum()), "detection_ap": whole[0], "detection_auroc": whole[1],
        "detection_precision": np.stack([ranking.precision_at_count() for ranking in rankings]),
        "detection_low": low[0], "detection_high": high[0], "detection_auroc_low": low[1], "detection_auroc_high": high[1],
        "detection_n": np.stack([ranking.samples for ranking in rankings]),
        "detection_positives": np.stack([[len(kind.rows) for kind in ranking.blocks] for ranking in rankings]),
        "detection_ap_repeats": single[0], "detection_auroc_repeats": single[1],
    }  # fmt: skip


def set_arrays(name: str, called: Array, planted: Array, types: Sequence[str]) -> dict[str, Array]:
    """Recall and precision [P] of the samples that a detector calls wrong, bool [N], for every planted type among the clean samples."""
    names, positives = kinds(planted, types)
    clean, once = planted == 0, np.ones((len(planted), 1))
    shares = [found(called, positive, once * (positive | clean)[:, None]) for positive in positives]
    parts = {part: np.array([pair[place].item() for pair in shares]) for place, part in enumerate(("recall", "precision"))}
    return {name: called} | ({f"{name}_{part}": values for part, values in parts.items()} if names else {})


def agreement_arrays(values: Mapping[str, Array], labels: Array, classes: int, count: int, rng: np.random.Generator) -> dict[str, Array]:
    """Agreement of S scores ([R, N] or [N] by name), and of networks, on the order of samples and on which `count` are the hardest.

    `agreement_spearman` and `agreement_jaccard` [S, S] of the ensemble values; `stability_spearman` and `stability_z` [S]: means over the
    pairs of networks (the first ten) of Spearman's correlation, and of the overlap of the hardest beside random sets, in standard
    deviations (nan for scores of all networks together); `class_rank` [S, K]: the mean share of all samples that are easier than those
    of a class (ties one half), in [0, 1]; `hard_count`: that number.
    """
    means = np.stack([ensemble(value) for value in values.values()])
    several = [value[:PAIRED] if value.ndim == 2 and len(value) > 1 else None for value in values.values()]
    pairs = [None if value is None else spearman_matrix(value)[np.triu_indices(len(value), 1)] for value in several]
    return {
        "agreement_spearman": spearman_matrix(means), "agreement_jaccard": jaccard_matrix(hardest(means, count, rng)),
        "stability_spearman": np.array([np.nan if rows is None else mean_stderr(rows)[0] for rows in pairs]),
        "stability_z": np.array([np.nan if rows is None else mean_overlap_z(hardest(rows, count, rng)) for rows in several]),
        "class_rank": np.stack([_class_ranks(row, labels, classes) for row in means]), "hard_count": np.array(count),
    }  # fmt: skip


def _class_ranks(values: Array, labels: Array, classes: int) -> Array:
    """The mean share of the samples with a score that are easier than those of a class, ties one half, [K]; nan for a class without any."""
    rows = np.flatnonzero(np.isfinite(values))
    rising = np.sort(values[rows])
    easier = sum(np.searchsorted(rising, values[rows], side) for side in ("left", "right")) / max(2 * len(rows), 1)
    counts = np.bincount(labels[rows], minlength=classes)
    return np.bincount(labels[rows], weights=easier, minlength=classes) / np.where(counts > 0, counts, np.nan)
