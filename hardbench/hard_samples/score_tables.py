"""Tables of the study of scores, from its arrays (artifacts.AXES): samples, detection, agreement, and what is printed."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hardbench.artifacts import Array
from hardbench.hard_samples.judged import ensemble, ranks
from hardbench.metrics.hardness import mean_stderr, mean_text

if TYPE_CHECKING:
    import pandas

REFERENCE = "mean_loss"  # the score that others are held against where nothing was planted


def planted_names(planted: Array, types: Sequence[str]) -> Array:
    """The type that was planted in every sample as text [N], empty for none."""
    return np.array(["", *types])[planted]


def sample_table(truth: Mapping[str, Array], values: Mapping[str, Array], errors: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per sample: index in the data set, fingerprint, label, clean label, planted type; then by score its value and its rank.

    Values are means over networks, higher is harder; `<score>_error` is the bootstrap error of scores of all networks together;
    `<score>_rank` is 1 for the hardest, and equal scores share the smallest rank. What is undefined is missing.
    """
    import pandas

    known = {"index": "index", "fingerprint": "fingerprint", "labels": "label", "clean": "clean"}
    columns: dict[str, Any] = {column: truth[name] for name, column in known.items() if name in truth}
    columns["planted"] = pandas.Categorical.from_codes(truth["planted"], ["", *map(str, truth["plant_types"])])
    for name, value in values.items():
        mean = ensemble(value)
        columns[name] = mean.astype(np.float32)
        if name in errors:
            columns[f"{name}_error"] = errors[name].astype(np.float32)
        rank = ranks(mean)
        columns[f"{name}_rank"] = pandas.array(np.nan_to_num(rank).astype(np.int64)) if np.isfinite(rank).all() else rank
    return pandas.DataFrame(columns)


def detection_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per score, type and network, and one (repeat `all`) of the mean over networks: how well the score finds the type.

    average_precision and auroc (of a random order: base_rate and .5), precision_at_planted, low and high: ends of the 95 % interval of
    the average precision by bootstrap over samples, auroc_low and auroc_high; stderr: of the precision over networks; n: samples judged.
    """
    import pandas

    rows = []
    numbers = {"average_precision": "ap", "auroc": "auroc", "precision_at_planted": "precision"}
    numbers |= {name: name for name in ("low", "high", "auroc_low", "auroc_high")}
    for s, score in enumerate(arrays["detection_scores"]):
        for p, kind in enumerate(arrays["detection_types"]):
            n = int(arrays["detection_n"][s, p])
            base = {"base_rate": arrays["detection_positives"][s, p] / n if n else np.nan, "n": n}
            single = arrays["detection_ap_repeats"][s, p]
            values = {column: arrays[f"detection_{name}"][s, p] for column, name in numbers.items()}
            rows.append({"score": score, "type": kind, "repeat": "all", **values, "stderr": float(mean_stderr(single)[1]), **base})
            for r in np.flatnonzero(np.isfinite(single)):
                measured = {"average_precision": single[r], "auroc": arrays["detection_auroc_repeats"][s, p, r]}
                rows.append({"score": score, "type": kind, "repeat": r, **measured, **base})
    columns = ["score", "type", "repeat", "average_precision", "auroc", "base_rate", *list(numbers)[2:], "stderr", "n"]
    return pandas.DataFrame(rows, columns=columns)


def agreement_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per pair of scores: spearman over all samples, jaccard of their k hardest. Rows with other = `repeats`: two networks' mean.

    These have z, by how many standard deviations the k hardest samples of two networks overlap more than random sets.
    """
    import pandas

    names, k = arrays["score_names"], int(arrays["hard_count"])
    rows: list[dict[str, Any]] = []
    for s, name in enumerate(names):
        alone = {"spearman": arrays["stability_spearman"][s], "jaccard": np.nan, "z": arrays["stability_z"][s]}
        rows.append({"score": name, "other": "repeats", **alone, "k": k})
        for t in range(s + 1, len(names)):
            pair = {key: arrays[f"agreement_{key}"][s, t] for key in ("spearman", "jaccard")}
            rows.append({"score": name, "other": names[t], **pair, "z": np.nan, "k": k})
    return pandas.DataFrame(rows, columns=["score", "other", "spearman", "jaccard", "z", "k"])


def class_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per class: name, samples, and by score the mean share of all samples that are easier than the class's, in [0, 1]."""
    import pandas

    counts = np.bincount(arrays["labels"], minlength=len(arrays["class_names"]))
    columns = {"class": np.arange(len(counts)), "name": arrays["class_names"], "samples": counts}
    return pandas.DataFrame(columns | {str(name): arrays["class_rank"][s] for s, name in enumerate(arrays["score_names"])})


def result_rows(arrays: Mapping[str, Array]) -> tuple[str, list[str], list[list[str]]]:
    """Title, columns and rows of the table that is printed: average precision by type, or where nothing was planted stability.

    Scores by their mean over the types, the best first.
    """
    if "detection_ap" not in arrays:
        return _stability_rows(arrays)
    values = arrays["detection_ap"]
    means = mean_stderr(values.T)[0]
    order = np.argsort(-np.nan_to_num(means, nan=-1.0), kind="stable")
    rates = zip(arrays["detection_types"], arrays["detection_base_rate"], strict=True)
    columns = ["score", *(f"{name} ({rate:.3f})" for name, rate in rates), "mean"]
    names = arrays["detection_scores"]
    rows = [[str(names[s]), *(mean_text(value, np.nan, 3) for value in (*values[s], means[s]))] for s in order]
    return "Average precision (base rate)", columns, rows


def _stability_rows(arrays: Mapping[str, Array]) -> tuple[str, list[str], list[list[str]]]:
    names = [str(name) for name in arrays["score_names"]]
    reference = names.index(REFERENCE) if REFERENCE in names else 0
    columns = ["score", "Spearman between networks", "overlap z", f"Spearman with {names[reference]}"]
    numbers = (arrays["stability_spearman"], arrays["stability_z"], arrays["agreement_spearman"][reference])
    rows = [[name, *(mean_text(value[s], np.nan, 3) for value in numbers)] for s, name in enumerate(names)]
    reason = "no sample is clean" if arrays["planted"].any() else "nothing was planted"
    return f"Scores ({reason})", columns, rows


def sentences(arrays: Mapping[str, Array]) -> list[str]:
    """What the tables say in words: the best score of every type, those below the base rate, what is not scored and why."""
    lines = []
    for p, kind in enumerate(arrays.get("detection_types", ())):
        values, names = arrays["detection_ap"][:, p], arrays["detection_scores"]
        if np.isnan(values).all():
            continue
        best = int(np.nanargmax(values))
        rates = arrays["detection_positives"][:, p] / np.maximum(arrays["detection_n"][:, p], 1)  # of the samples that each score has
        interval = f"[{arrays['detection_low'][best, p]:.3f}, {arrays['detection_high'][best, p]:.3f}]"
        below = [str(name) for name, value, rate in zip(names, values, rates, strict=True) if value < rate]
        turned = f"; below the base rate: {', '.join(below)}" if below else ""
        lines.append(f"{kind}: best found by {names[best]}, {values[best]:.3f} {interval} at base rate {rates[best]:.3f}{turned}")
    if "detection_n" in arrays:
        lines += _partly_judged(arrays)
    if "confident_learning" in arrays:
        shares = zip(arrays.get("detection_types", ()), *_set_shares(arrays), strict=True)
        found = "; ".join(f"{kind}: recall {recall:.3f}, precision {precision:.3f}" for kind, recall, precision in shares)
        count, of = int(arrays["confident_learning"].sum()), len(arrays["labels"])
        lines.append(f"confident learning calls {count} of {of} labels wrong" + (f" ({found})" if found else ""))
    reasons: dict[str, list[str]] = {}
    for name, why in zip(arrays.get("missing_scores", ()), arrays.get("missing_why", ()), strict=True):
        reasons.setdefault(str(why), []).append(str(name))
    lines += [f"not scored, {why}: {', '.join(names)}" for why, names in reasons.items()]
    if "friedman_p" in arrays:
        rows = zip(arrays["friedman_types"], arrays["friedman_ranks"], arrays["friedman_p"], strict=True)
        names = arrays["friedman_scores"]
        lowest = "; ".join(f"{kind}: {names[own.argmin()]} {own.min():.2f} (p {p:.2g})" for kind, own, p in rows)
        lines.append(f"lowest mean ranks over {int(arrays['friedman_blocks'])} data sets: {lowest}")
    return lines


def _set_shares(arrays: Mapping[str, Array]) -> tuple[Array, Array]:
    empty = np.empty(0)
    return arrays.get("confident_learning_recall", empty), arrays.get("confident_learning_precision", empty)


def _partly_judged(arrays: Mapping[str, Array]) -> list[str]:
    """The scores that are nan for some samples, with the smallest number that they were judged on."""
    samples = arrays["detection_n"]
    partly = np.flatnonzero((samples < samples.max(0)).any(1))
    return [f"{arrays['detection_scores'][s]} is judged on {samples[s].min()} to {samples[s].max()} samples that have it" for s in partly]
