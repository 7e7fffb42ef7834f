"""Recordings and scores that others have made: an .npz of logits or probabilities, a CSV of one value per sample."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hardbench import archives, files
from hardbench.artifacts import Array
from hardbench.errors import DataError, brief

LEAST = 1e-30  # a probability below it counts as this
LARGEST = 1 << 30  # bytes of a CSV
TYPES = 1000  # of planted hardness
TIMED = ("feature_norm", "class_cosine")
SAMPLES = ("labels", "clean", "index", "planted", "fingerprint")
MORE = ("logits", "probabilities", *TIMED, *SAMPLES, "membership", "steps", "epochs", "plant_types", "class_names")


def read_recording(word: str) -> tuple[dict[str, Array], bool]:
    """The arrays of a recording, as a run stores one, from an .npz: `logits` (or `probabilities`, whose logarithms stand in) and `labels`.

    True beside them if it was probabilities.

    logits: [R, T, N, K], [T, N, K] of one network, or [N, K] of its end; labels: integers [N] from 0 to K - 1. What else there may be:
    `feature_norm`, `class_cosine` (as the logits, without K), `membership` [R, N], `index`, `clean`, `planted`, `fingerprint` [N],
    `steps`, `epochs` [T], `plant_types`, `class_names`. DataError, one line, for anything that does not fit; nothing is unpickled.
    """
    path = files.expanded(word)
    try:
        if not files.is_there(path):
            raise ValueError(f"no such file (looked for {path.absolute()})")
        arrays = archives.read(path, ("labels",), MORE)
        return _recording(arrays), "probabilities" in arrays
    except ValueError as error:
        raise DataError(f"recording: {brief(word)}; {error}") from None


def _recording(arrays: Mapping[str, Array]) -> dict[str, Array]:
    logits = _logits(arrays)
    repeats, points, count, classes = logits.shape
    result = {"logits": logits, **_of_samples(arrays, count, classes)}
    result["steps"] = _times(arrays.get("steps", np.arange(1, points + 1)), "steps", points)
    result["epochs"] = _times(arrays.get("epochs", result["steps"]), "epochs", points).astype(float)
    for name in [name for name in TIMED if name in arrays]:
        array = arrays[name].reshape((1,) * (3 - arrays[name].ndim) + arrays[name].shape)
        if array.shape != (repeats, points, count) or array.dtype.kind != "f" or np.isinf(array).any():
            raise ValueError(f"{name}: {_described(arrays[name])}; finite numbers (or nan) [{repeats}, {points}, {count}], as the logits")
        result[name] = array
    if "membership" in arrays:
        array = np.atleast_2d(arrays["membership"])
        if array.shape != (repeats, count) or array.dtype.kind not in "bui" or not np.isin(array, (0, 1)).all():
            raise ValueError(f"membership: {_described(array)}; true or false, [{repeats}, {count}]")
        result["membership"] = array.astype(bool)
    types = int(result["planted"].max(initial=0)) if "planted" in result else 0
    result["plant_types"] = _words(arrays, "plant_types", types, "planted")
    result["class_names"] = _words(arrays, "class_names", classes, "")
    return result


def _logits(arrays: Mapping[str, Array]) -> Array:
    """Logits [R, T, N, K]; all of a point are nan where its network was no longer trained."""
    given = [name for name in ("logits", "probabilities") if name in arrays]
    if len(given) != 1:
        raise ValueError(f"{' and '.join(given) or 'neither'} in it; logits or probabilities")
    name, values = given[0], arrays[given[0]]
    if values.ndim not in (2, 3, 4) or 0 in values.shape or values.shape[-1] < 2 or values.dtype.kind != "f":
        raise ValueError(f"{name}: {_described(values)}; numbers [R, T, N, K], [T, N, K] or [N, K], K of two classes or more")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf
        values = values.reshape((1,) * (4 - values.ndim) + values.shape).astype(np.float32, copy=False)
    if wrong := int((~np.isfinite(values))[~_ended(values) if name == "logits" else ...].sum()):
        raise ValueError(f"{name}: {wrong} values are nan or infinite; finite numbers")
    if name == "logits":
        return values
    if values.min() < 0 or np.abs(values.sum(-1) - 1).max() > 1e-3:
        raise ValueError("probabilities: rows that do not add up to 1, or values below 0; probabilities (or give them as logits)")
    return np.log(np.maximum(values, np.float32(LEAST)))


def _ended(values: Array) -> Array:
    """True for the points [R, T] that are nan as a whole, of networks that have other points too."""
    absent = np.asarray(np.isnan(values).all(axis=(2, 3)))
    return np.asarray(absent & ~absent.all(axis=1, keepdims=True))


def _of_samples(arrays: Mapping[str, Array], count: int, classes: int) -> dict[str, Array]:
    """labels, index and what there is of clean, planted and fingerprint, int64 [N]."""
    result = {}
    for name in [name for name in SAMPLES if name in arrays]:
        array = arrays[name]
        if array.shape != (count,) or array.dtype.kind not in "biu":
            raise ValueError(f"{name}: {_described(array)}; whole numbers [{count}], as many as the logits have samples")
        result[name] = array.astype(np.int64)
    for name in [name for name in ("labels", "clean") if name in result]:
        low, high = result[name].min(), result[name].max()
        if low < 0 or high >= classes:
            raise ValueError(f"{name}: from {low} to {high}; from 0 to {classes - 1}, as the logits have {classes} classes")
    if "planted" in result and result["planted"].min() < 0:
        raise ValueError(f"planted: {result['planted'].min()}; 0 for none, else the number of its type from 1 on")
    if "planted" in result and result["planted"].max() > TYPES:
        raise ValueError(f"planted: up to {result['planted'].max()}; the number of its type, {TYPES} at most")
    result.setdefault("index", np.arange(count))
    distinct, times = np.unique(result["index"], return_counts=True)
    if len(distinct) < count:
        raise ValueError(f"index: {distinct[times.argmax()]} is there {times.max()} times; every sample once")
    return result


def _times(array: Array, name: str, points: int) -> Array:
    if array.shape != (points,) or array.dtype.kind not in "iuf" or not (np.diff(array) > 0).all() or not (array >= 0).all():
        raise ValueError(f"{name}: {_described(array)}; {points} rising numbers, one for each point")
    return array


def _words(arrays: Mapping[str, Array], name: str, count: int, stem: str) -> Array:
    """The names of `count` things, those of the archive or their numbers."""
    if name not in arrays:
        return np.array([f"{stem}_{number + 1}" if stem else str(number) for number in range(count)], dtype=str)
    words = arrays[name]
    if words.dtype.kind != "U" or words.ndim != 1 or len(words) < count or any(not str(word).isprintable() for word in words):
        raise ValueError(f"{name}: {_described(words)}; {count} strings of one line")
    return words


def _described(array: Array) -> str:
    return f"{array.dtype} {list(array.shape)}"


def read_values(word: str, index: Array, direction: str) -> tuple[str, Array]:
    """The name (that of the file) and the values float64 [N] of an outside score, higher is harder, for samples of this index [N].

    The CSV has columns `index` and `value`, a row for every sample, in any order; an empty value is nan. Where its direction is `easier`
    (its high values are easy samples) it is turned round. DataError, one line, for anything else.
    """
    path = files.expanded(word)
    try:
        with files.regular(path, LARGEST).open(newline="", encoding="utf-8-sig") as file:
            values = _values(file, index)
    except (OSError, ValueError, csv.Error) as error:
        reason = f"a CSV file that can be read ({error.strerror or error})" if isinstance(error, OSError) else error
        raise DataError(f"scores_from: {brief(word)}; {reason}") from None
    return _name(path), values if direction == "harder" else -values


def _values(lines: Iterable[str], index: Array) -> Array:
    table = csv.DictReader(lines)
    missing = [name for name in ("index", "value") if name not in (table.fieldnames or ())]
    if missing:
        raise ValueError(f"no column {' and '.join(missing)}; columns index and value")
    places = {int(number): place for place, number in enumerate(index)}
    values, seen = np.full(len(index), np.nan), np.zeros(len(index), dtype=bool)
    rows = 0
    for rows, row in enumerate(table, start=1):
        if rows > len(index):
            continue
        place = places.get(int(_number(row["index"], int, rows, "index")))
        if place is None:
            raise ValueError(f"row {rows}: no sample has index {row['index']}; the index of each in the data set")
        if seen[place]:
            raise ValueError(f"row {rows}: index {row['index']} is there twice; every sample once")
        seen[place], values[place] = True, _number(row["value"], float, rows, "value") if row["value"] else np.nan
    if rows != len(index):
        raise ValueError(f"{rows} rows; {len(index)}, one for every sample")
    if np.isinf(values).any() or np.isnan(values).all():
        raise ValueError("infinite values, or none at all; numbers")
    return values


def _number(word: str | None, kind: type[int] | type[float], row: int, column: str) -> float:
    try:
        return kind(word or "")
    except ValueError:
        raise ValueError(f"row {row}: {column} {brief(word, 40)!r}; a{' whole' if kind is int else ''} number") from None


def _name(path: Path) -> str:
    """A file's name as the name of a score: letters, digits and _ alone."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in path.stem.lower())[:60] or "outside"
