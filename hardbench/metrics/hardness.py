"""Class hardness: the table of a run, its correlation with the geometry of the inputs, and the statistics that tables and figures share.

Everything here reads arrays as a run stores them (`metrics.npz`): axis 0 is the repeat, axis 1 the evaluation point.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas

Array = np.ndarray[Any, Any]
LEVELS = (50, 80, 90)  # percent
ROUNDING = 1e-6  # accuracies are stored in single precision, where .9 is below .9


def mean_stderr(values: Array) -> tuple[Array, Array]:
    """Mean and standard error (ddof 1 / sqrt R) over axis 0, each [...]; entries that are nan do not count.

    The mean is nan where nothing was measured, the standard error where fewer than two were; it is 0 where all are the same number.
    """
    values = np.asarray(values, dtype=float)
    defined = np.isfinite(values)
    count = defined.sum(axis=0)
    mean = np.where(defined, values, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan)
    low, high = (edge.reduce(np.where(defined, values, mean), axis=0, initial=np.nan) for edge in (np.fmin, np.fmax))
    differ = high - low > 8 * np.finfo(float).eps * np.abs(mean)  # equal numbers and their mean may be a rounding apart
    squares = np.where(defined & differ, values - mean, 0.0) ** 2
    return mean, np.sqrt(squares.sum(axis=0) / np.where(count > 1, (count - 1.0) * count, np.nan))


def mean_text(mean: float | Array, stderr: float | Array, digits: int = 4) -> str:
    """A mean and its standard error as a person reads them, "0.9312 +- 0.0021"; "-" without a mean, the mean alone without an error."""
    return (f"{mean:.{digits}f}" if np.isfinite(mean) else "-") + (f" +- {stderr:.{digits}f}" if np.isfinite(stderr) else "")


def final(arrays: Mapping[str, Array], name: str, by: str = "accuracy") -> Array:
    """A stored [R, T, ...] at each repeat's last evaluation point with a number in the array `by` [R, T]; [R, ...].

    A stopped repeat ends early; nan for a repeat without a number.
    """
    measured = np.isfinite(arrays[by])
    last = measured.shape[1] - 1 - measured[:, ::-1].argmax(axis=1)
    values = np.array(arrays[name][np.arange(len(last)), last], dtype=float)
    values[~measured.any(axis=1)] = np.nan
    return values


def mean_at_end(steps: Array, values: Array, count: int) -> Array:
    """Mean of each repeat's values [R, S] over the last `count` optimiser steps up to its last measured one [R], of those in `steps` [S].

    With the steps of an epoch: the mean over the last epoch's logged mini-batches. nan for a repeat without a value.
    """
    defined = np.isfinite(values)
    last = np.where(defined, steps, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    return mean_stderr(np.where(defined & (steps > last - count), values, np.nan).T)[0]


def row_shares(confusion: Array) -> Array:
    """Confusion counts [..., K, K] (rows true) as P(true i predicted j) in [0, 1]; nan rows where a class has no samples."""
    total = confusion.sum(axis=-1, keepdims=True)
    return confusion / np.where(total > 0, total, np.nan)


def mean_with_others(overlap: Array) -> Array:
    """Mean overlap of each class with the other classes [..., K] from overlaps [..., K, K], in [-1, 1]; nan where there is none."""
    others = np.where(np.eye(overlap.shape[-1], dtype=bool), np.nan, overlap)
    return mean_stderr(np.moveaxis(others, -1, 0))[0]


def correlation(x: Array, y: Array, ranks: bool = False) -> float:
    """Pearson's r of two vectors, or Spearman's with `ranks` (ties share their mean rank), in [-1, 1].

    Pairs with a nan do not count; nan for fewer than three pairs or where x or y is constant.
    """
    defined = np.isfinite(x) & np.isfinite(y)
    return float(np.clip(directions(x[defined], ranks) @ directions(y[defined], ranks), -1, 1))


def directions(values: Array, ranks: bool = False) -> Array:
    """A vector (or its ranks, ties sharing their mean rank) less its mean, scaled to length 1: the product of two is their correlation.

    nan for fewer than three numbers, and where all are the same.
    """
    if len(values) < 3 or np.ptp(values) <= 1e-12:
        return np.full(len(values), np.nan) if len(values) else np.full(1, np.nan)
    values = _ranks(values) if ranks else np.asarray(values, dtype=float)
    centred = values - values.mean()
    return np.asarray(centred / np.sqrt(centred @ centred))


def _ranks(values: Array) -> Array:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def overlap_hardness_spearman(arrays: Mapping[str, Array]) -> Array:
    """Spearman's rank correlation of static overlap with final class hardness, per repeat [R], in [-1, 1].

    1: the classes whose training inputs overlap most with the others' are the hardest. Overlap is a class's mean with the others,
    hardness 1 - its test accuracy at the repeat's last evaluation point. nan for K < 3 or where either is the same for all classes.
    """
    overlap = mean_with_others(arrays["overlap_static"])
    return np.array([correlation(overlap, 1 - accuracy, ranks=True) for accuracy in final(arrays, "accuracy_per_class")])


def lasting_steps(steps: Array, accuracy: Array, level: float) -> Array:
    """Step of the first evaluation point from which on an accuracy stays at `level` or above to the end [R, K], from accuracies [R, T, K].

    The end is the last point measured. nan where the accuracy ends below, or was not measured; 0, the initialisation, only where it never
    falls below the level.
    """
    falls = np.logical_or.accumulate((accuracy < level - ROUNDING)[:, ::-1], axis=1)[:, ::-1]  # here or later
    stays = np.isfinite(accuracy) & ~falls
    return np.where(stays.any(axis=1), np.asarray(steps, dtype=float)[stays.argmax(axis=1)], np.nan)


def hardness_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per class, by class number: how hard it ended up, when it was learned and with what it is confused.

    class (the label trained on), name (the original class), test_samples, repeats (how many measured it); then as mean and `_stderr`:
    hardness = 1 - accuracy, accuracy, loss (nats), all of the class's test samples at each repeat's last evaluation point;
    step_50, _80, _90: first evaluation point from which on the accuracy stays at that many percent or above to the end; nan where some of
    the repeats end below, whose number is step_50_never, _80_never, _90_never;
    confused_share: P(predicted confused_with | this class), for the wrong class with the largest mean share (confused_with is missing
    where nothing was confused); overlap: mean last-layer overlap with the other classes; overlap_static: that of the training inputs.
    What was not measured, or has no test sample, is nan.
    """
    import pandas

    accuracy = final(arrays, "accuracy_per_class")  # [R, K]
    classes = accuracy.shape[1]
    names = [str(name) for name in arrays.get("class_names", np.arange(classes))]
    unmeasured = np.full((len(accuracy), classes, classes), np.nan)
    counts, overlap = (final(arrays, name) if name in arrays else unmeasured for name in ("confusion", "overlap_dynamic"))
    columns: dict[str, Any] = {"class": np.arange(classes), "name": names, "test_samples": mean_stderr(counts.sum(axis=2))[0]}
    columns["repeats"] = np.isfinite(accuracy).sum(axis=0)
    columns |= _spread("hardness", 1 - accuracy) | _spread("accuracy", accuracy) | _spread("loss", final(arrays, "loss_per_class"))
    for level in LEVELS:
        step = lasting_steps(arrays["steps"], arrays["accuracy_per_class"], level / 100)
        never = (np.isfinite(accuracy) & np.isnan(step)).sum(axis=0)
        columns |= _spread(f"step_{level}", np.where(never > 0, np.nan, step)) | {f"step_{level}_never": never}
    columns |= _confusions(row_shares(counts), names) | _spread("overlap", mean_with_others(overlap))
    columns["overlap_static"] = mean_with_others(arrays.get("overlap_static", unmeasured[0]))
    return pandas.DataFrame(columns)


def _spread(name: str, values: Array) -> dict[str, Array]:
    return dict(zip((name, f"{name}_stderr"), mean_stderr(values), strict=True))


def _confusions(shares: Array, names: list[str]) -> dict[str, Any]:
    """The columns of the wrong class predicted most often, from shares [R, K, K]."""
    mean, stderr = mean_stderr(shares)
    wrong = np.where(np.eye(len(names), dtype=bool) | np.isnan(mean), -1.0, mean)
    rows, worst = np.arange(len(names)), wrong.argmax(axis=1)
    confused_with = [names[other] if wrong[row, other] > 0 else None for row, other in zip(rows, worst, strict=True)]
    return {"confused_with": confused_with, "confused_share": mean[rows, worst], "confused_share_stderr": stderr[rows, worst]}
