"""A run of `score` made by hand: what its figures read, of any size."""

from typing import Any

import numpy as np
from made_runs import Run

SCORES = (
    "loss", "mean_loss", "softmax_confidence", "entropy", "margin", "confidence", "energy", "aum", "el2n", "grand", "data_maps_confidence",
    "data_maps_variability", "data_maps_correctness", "aleatoric", "forgetting", "iteration_learned", "prediction_depth", "prototypicality",
    "disagreement", "memorization", "consistency", "self_confidence", "normalised_margin", "stragglers", "wrong_at_end", "random",
)  # fmt: skip
TOGETHER = ("disagreement", "memorization", "consistency", "self_confidence", "normalised_margin")  # need all networks: [N]
TYPES = ("mislabel", "mislabel_pairs", "mislabel_close", "corrupt", "shift", "zoom", "invert", "foreign")


def scored(
    scores: int = 6,
    types: int = 2,
    classes: int = 3,
    samples: int = 60,
    repeats: int = 3,
    shape: tuple[int, ...] = (1, 4, 4),
    seed: int = 0,
) -> Run:
    """Scores that see planted samples more or less well, the first types better; the last score, if there are three, is random."""
    draw = np.random.default_rng(seed)
    names = [*SCORES[: scores - 1][:25], "random"] if scores > 2 else list(SCORES[:scores])
    names += [f"an_outside_score_of_a_rather_long_name_{place}" for place in range(scores - len(names))]
    labels = np.arange(samples) % classes
    planted = np.where(np.arange(samples) < samples // 3, np.arange(samples) % max(types, 1) + 1, 0) if types else np.zeros(samples, int)
    truth = np.where(planted > 0, 2.0 - 0.2 * planted, 0) + draw.normal(0, 0.5, samples)
    arrays: dict[str, np.ndarray] = {}
    for place, name in enumerate(names):
        noise = draw.normal(0, 0.2 + 0.1 * place, (repeats, samples))
        value = (noise + truth * (name != "random")).astype(np.float32)
        arrays[name] = value.mean(0) if name in TOGETHER else value
    share = 1 / (1 + np.exp(2 * truth - 2 + draw.normal(0, 0.3, (repeats, samples))))
    maps = {"confidence": 1 - share, "variability": 0.5 * np.sqrt(share * (1 - share)), "correctness": (share < 0.5) * 1.0}
    arrays |= {f"data_maps_{part}": value for part, value in maps.items()}
    hardness = np.stack([arrays[name].mean(0) if arrays[name].ndim == 2 else arrays[name] for name in names])
    gallery = np.full((len(names), classes, 12), -1)
    for c in range(classes):
        own = np.flatnonzero(labels == c)
        order = own[np.argsort(-hardness[:, own], axis=1)][:, :12]
        gallery[:, c, : order.shape[1]] = order
    rows = np.unique(gallery[gallery >= 0])
    arrays |= {
        "index": np.arange(samples), "labels": labels, "clean": np.where(planted == 1, (labels + 1) % classes, labels), "planted": planted,
        "score_names": np.array(names), "plant_types": np.array(TYPES), "class_names": np.array([f"kind {c}" for c in range(classes)]),
        "predicted": draw.integers(0, classes, samples), "gallery": gallery, "gallery_rows": rows,
        "gallery_inputs": draw.integers(0, 256, (len(rows), *shape), dtype=np.uint8),
    }  # fmt: skip
    return Run("5" * 32, arrays | judged(hardness, names, types, planted, repeats, draw), "mlp mnist s0", "score")


def judged(hardness: np.ndarray, names: list[str], types: int, planted: np.ndarray, repeats: int, draw: Any) -> dict[str, np.ndarray]:
    """Agreement and stability, and detection where anything was planted."""
    known = np.nan_to_num(np.corrcoef(hardness), nan=0)
    alone = np.isin(names, TOGETHER)
    arrays = {
        "agreement_spearman": known, "agreement_jaccard": np.clip(known, 0, 1),
        "stability_z": np.where(alone, np.nan, draw.uniform(-1, 40, len(names))),
        "stability_spearman": np.where(alone, np.nan, draw.uniform(0, 1, len(names))),
    }  # fmt: skip
    if not types:
        return arrays
    rate = np.array([(planted == code).sum() / ((planted == code) | (planted == 0)).sum() for code in range(1, types + 1)])
    value = np.clip(draw.uniform(0, 1, (len(names), 1)) ** 2 * np.linspace(1, 0.2, types), 0.01, 1)
    value[-1] = rate
    spread = 0.05 + 0 * value
    repeats_of = np.clip(value[:, :, None] + draw.normal(-0.03, 0.03, (*value.shape, repeats)), 0, 1)
    repeats_of[alone] = np.nan
    return arrays | {
        "detection_scores": np.array(names), "detection_types": np.array(TYPES[:types]), "detection_base_rate": rate,
        "detection_ap": value, "detection_low": np.clip(value - spread, 0, 1), "detection_high": np.clip(value + spread, 0, 1),
        "detection_ap_repeats": repeats_of, "detection_auroc_repeats": 0.3 + 0.7 * repeats_of,
        "detection_auroc": 0.3 + 0.7 * value, "detection_auroc_low": 0.27 + 0.7 * value,
        "detection_auroc_high": np.clip(0.33 + 0.7 * value, 0, 1),
    }  # fmt: skip


def ranked(scores: int = 6, types: int = 2, blocks: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Mean ranks of scores over data sets, as a score of several runs stores them."""
    draw = np.random.default_rng(seed)
    order = np.argsort(np.argsort(np.arange(scores) + draw.normal(0, scores / 3, (types, blocks, scores)), axis=2), axis=2) + 1
    return {
        "friedman_ranks": order.mean(1), "friedman_critical_difference": np.full(types, 0.3 * scores), "friedman_blocks": np.array(blocks),
        "friedman_p": np.geomspace(1e-5, 0.2, types), "friedman_types": np.array(TYPES[:types]),
        "friedman_scores": np.array([*SCORES, *(f"an_outside_score_of_a_rather_long_name_{place}" for place in range(scores))][:scores]),
    }  # fmt: skip


def supported(run: Run, tests: int = 4, top: int = 10, shape: tuple[int, ...] = (1, 4, 4), seed: int = 0) -> dict[str, np.ndarray]:
    """Influence of the run's samples on test samples, the last of which has two supporters alone."""
    draw = np.random.default_rng(seed)
    samples, classes = len(run.arrays["labels"]), len(run.arrays["class_names"])
    value = -np.sort(-draw.uniform(0, 1, (tests, top)), axis=1)
    rows = draw.integers(0, samples, (tests, top))
    rows[-1, 2:], value[-1, 2:] = -1, np.nan
    return {
        "influence_networks": np.array(40),
        "influence": value, "influence_stderr": np.where(rows < 0, np.nan, 0.1),
        "influence_train": rows,
        "influence_shown": np.arange(tests),
        "influence_inputs": draw.integers(0, 256, (tests, *shape), dtype=np.uint8), "influence_test_labels": np.arange(tests) % classes,
        "influence_supporters": draw.integers(0, 256, (tests, top, *shape), dtype=np.uint8),
    }  # fmt: skip
