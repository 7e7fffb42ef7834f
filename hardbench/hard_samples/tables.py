"""Tables of the study of hard samples, from its arrays [M, P, Q, S, R]: strategies, train ratios, shares remaining, sets, repeats."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from hardbench.artifacts import Array
from hardbench.inversion import agreement
from hardbench.metrics.hardness import correlation, mean_stderr, mean_text

if TYPE_CHECKING:
    import pandas

TESTS = ("full", "hard", "easy")


def independent(values: Array) -> Array:
    """Independent values [..., I] of values [..., S, R]: the means of the sets where there are several, else the repeats.

    Standard errors are taken over these: networks of one set share their hard samples and are not independent.
    """
    return mean_stderr(np.moveaxis(values, -1, 0))[0] if values.shape[-2] > 1 else values[..., 0, :]


def agreement_arrays(masks: Array, scores: Array, labels: Array, classes: int) -> dict[str, Array]:
    """Counts and agreement of hard samples, from masks and scores [S, M, N] and labels [N].

    hard_per_class [M, S, K], samples_per_class [K]; jaccard [S, M, M], jaccard_per_class [S, K, M, M] and spearman [S, M, M] between the
    strategies of a set; stability [M] of a strategy across the sets (z against chance, nan for a single set).
    """
    by_strategy = masks.swapaxes(0, 1)
    return {
        "hard_per_class": np.array([[np.bincount(labels[mask], minlength=classes) for mask in sets] for sets in by_strategy]),
        "samples_per_class": np.bincount(labels, minlength=classes),
        "jaccard": np.stack([agreement.jaccard_matrix(sets) for sets in masks]),
        "jaccard_per_class": np.stack([agreement.jaccard_per_class(sets, labels, classes) for sets in masks]),
        "spearman": np.stack([agreement.spearman_matrix(rows) for rows in scores]),
        "stability": np.array([agreement.mean_overlap_z(sets) for sets in by_strategy]),
    }


def summary_rows(arrays: Mapping[str, Array]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table that is printed: accuracies as mean +- stderr."""
    rows = []
    for row in summary_table(arrays).to_dict("records"):
        accuracies = [mean_text(row[f"mean_{test}"], row[f"stderr_{test}"]) for test in TESTS]
        ratios = [f"{row[key]:g}" for key in ("train_ratio", "remaining")]
        rows.append([str(row["strategy"]), *ratios, f"{row['train_samples']:.0f}", *accuracies])
    return ["strategy", "train ratio", "remaining", "trained on", *TESTS], rows


def network_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per network: strategy, train_ratio, remaining, set, repeat; accuracy (in [0, 1]) on the full, hard and easy test samples.

    nan where a test has no sample or nothing was left to train on; rows of groups not trained yet are missing.
    """
    import pandas

    done = arrays["done"][:, None, None, :, None] & np.ones(arrays["accuracy_full"].shape, dtype=bool)
    places = np.argwhere(done)
    names = ("strategies", "train_ratios", "remaining", "sets", "repeats")
    keys = ("strategy", "train_ratio", "remaining", "set", "repeat")
    columns: dict[str, Any] = {key: arrays[name][places[:, i]] for i, (key, name) in enumerate(zip(keys, names, strict=True))}
    columns |= {test: arrays[f"accuracy_{test}"][done] for test in TESTS}
    columns["train_samples"] = arrays["train_samples"][tuple(places[:, :4].T)]
    return pandas.DataFrame(columns)


def summary_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per strategy, train ratio and share remaining: mean, std (ddof 1, over all networks) and stderr of each accuracy and the gap.

    gap: easy - hard. stderr: see `independent`. train_samples: the mean over the sets.
    """
    import pandas

    gap = arrays["accuracy_easy"] - arrays["accuracy_hard"]
    values = {test: arrays[f"accuracy_{test}"] for test in TESTS} | {"gap": gap}
    rows = []
    for m, p, q in np.ndindex(gap.shape[:3]):
        row: dict[str, Any] = {"strategy": arrays["strategies"][m], "train_ratio": arrays["train_ratios"][p]}
        row |= {"remaining": arrays["remaining"][q], "train_samples": float(np.mean(arrays["train_samples"][m, p, q]))}
        row |= {"sets": gap.shape[3], "repeats": gap.shape[4]}
        for name, value in values.items():
            networks = value[m, p, q][np.isfinite(value[m, p, q])]
            row[f"mean_{name}"] = float(networks.mean()) if len(networks) else np.nan
            row[f"std_{name}"] = float(networks.std(ddof=1)) if len(networks) > 1 else np.nan
            row[f"stderr_{name}"] = float(mean_stderr(independent(value[m, p, q]))[1])
        rows.append(row)
    return pandas.DataFrame(rows)


def class_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per strategy and class: hard samples and samples of the class (means over the sets), the class's test error (in [0, 1]).

    The error is that of the networks from which least was removed (first train ratio, largest share remaining); pearson: r of error and
    hard share over the classes, the same in every row of a strategy.
    """
    import pandas

    rows = []
    for m, strategy in enumerate(arrays["strategies"]):
        hard, error = arrays["hard_per_class"][m].mean(0), class_error(arrays, m)
        r = correlation(hard / arrays["samples_per_class"], error)
        for c, name in enumerate(arrays["class_names"]):
            count = int(arrays["samples_per_class"][c])
            row = {"strategy": strategy, "class": c, "name": name, "samples": count, "hard": hard[c], "error": error[c], "pearson": r}
            rows.append(row)
    return pandas.DataFrame(rows)


def class_error(arrays: Mapping[str, Array], strategy: int) -> Array:
    """Test error of every class [K] of the networks from which least was removed, mean over sets and repeats; nan without test samples."""
    most = int(np.argmax(arrays["remaining"]))
    accuracy = arrays["accuracy_per_class"][strategy, 0, most]
    return np.asarray(1 - mean_stderr(accuracy.reshape(-1, accuracy.shape[-1]))[0])
