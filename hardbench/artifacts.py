"""All that a run stores: names of its files; of its arrays, how their names are built and taken apart, and their axes.

Axes are checked when arrays come from the store.
"""

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Files of a run, by their paths in its folder.
SETTINGS, ARRAYS = "config.yaml", "metrics.npz"
CHECKPOINTS = "checkpoints"  # a folder
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"  # in CHECKPOINTS
CLASS_HARDNESS = "class_hardness.csv"
DYNAMICS, DYNAMICS_POINTS = "dynamics.npz", "dynamics"  # the folder has a file per point while the run is on
TEST_RESULTS, CONFUSION, CLASS_REPORT = "test_results.json", "confusion.npy", "class_report.json"  # eval
RADII, STRAGGLERS, STABILITY, PRUNE_CURVE = "radii.npz", "stragglers.npz", "stability.npz", "prune_curve.npz"  # invert
INVERSIONS, INVERSION_WEIGHTS = "inversion.csv", "inversion.pt"
MASKING, FORMER_COUNTS = "masking.npz", "partial.npz"  # mask-mi; counts of an unfinished run of a former version
HARD_SAMPLES, DETECTION = "hard_samples.npz", "detection.csv"  # stragglers
SCORED, SAMPLE_SCORES, AGREEMENT, INFLUENCE = "scores.npz", "scores.csv", "agreement.csv", "influence.npz"  # score
ACCURACY, SUMMARY, CLASSES_TABLE = "accuracy.csv", "summary.csv", "classes.csv"
PER_RUN, PER_CELL, SECONDS = "results_per_run.csv", "results_summary.csv", "seconds.npy"  # sweep
PLAN, IN_FLIGHT, ERROR = "plan.txt", "in_flight.txt", "error.txt"
FILES: dict[str, tuple[str, ...]] = {
    "invert": (RADII, STRAGGLERS, STABILITY, PRUNE_CURVE),
    "mask-mi": (MASKING,),
    "score": (SCORED, INFLUENCE),
}
"""The .npz artifacts that hold a study's arrays, where these are not ARRAYS; the first is always there."""

KINDS = {SCORED: "score"}
"""By the name of an archive: the kind that it is of, where that is the study, since there may be several of them in a run."""


def mask_information(checkpoint: str) -> str:
    """The JSON of the information under masks, by the weights it was measured with: best or last."""
    return f"mi_results_{checkpoint}.json"


# Arrays.
LAYER_PARTS = ("train", "test", "null_mean", "null_std", "published")  # of a layer metric; the held-out samples have no suffix


def layer_key(metric: str, part: str = "val") -> str:
    """The name of a layer metric's array: `layer_<metric>` for the held-out samples (`val`), else `layer_<metric>_<part>`.

    Held out is the validation split, or the test set of a run without one. Parts: `train` samples; `test` samples, at the end alone;
    mean and std under permuted labels; the published estimate on one mini-batch.
    """
    return f"layer_{metric}" + ("" if part == "val" else f"_{part}")


def metric_of(key: str) -> str | None:
    """The metric of an array that `layer_key` has named; None for another array."""
    if not key.startswith("layer_"):
        return None
    metric = key.removeprefix("layer_")
    return next((metric.removesuffix(f"_{part}") for part in LAYER_PARTS if metric.endswith(f"_{part}")), metric)


def masked_key(name: str, layer: int | None) -> str:
    """`<name>_03` for what was measured with channels of layer 3 masked, `<name>_full` (layer None) for the network as it is."""
    return f"{name}_full" if layer is None else f"{name}_{layer:02d}"


def model_key(name: str, model: str, models: int) -> str:
    """The name of a model's array in a mask-mi run: `<model>/<name>` in a run of several models."""
    return name if models == 1 else f"{model}/{name}"


def by_model(arrays: Mapping[str, Array]) -> dict[str, dict[str, Array]]:
    """The arrays of a mask-mi run, model by model, under the names they have in a run of one model."""
    models = [str(model) for model in arrays["models"]]
    starts = {model: model_key("", model, len(models)) for model in models}
    return {m: {key.removeprefix(start): array for key, array in arrays.items() if key.startswith(start)} for m, start in starts.items()}


def setting_key(setting: str) -> str:
    """`setting_<name>`: the values of a setting in the cells of a sweep."""
    return f"setting_{setting}"


def settings_of(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The settings of a sweep's cells as words [C], by the setting's name, in the order they were stored."""
    return {key.removeprefix("setting_"): values for key, values in arrays.items() if key.startswith("setting_")}


def json_numbers(values: Array) -> Any:
    """The values as a list for JSON, which has no nan: None for those that are not finite."""
    numbers = np.asarray(values, dtype=object)
    numbers[~np.isfinite(values)] = None
    return numbers.tolist()


# By kind of archive: names (the first pattern that fits counts) with their axes. Axes of one letter are of one length in all arrays of a
# model, small letters in all arrays of one layer (`_00` at the end); `+` stands for any further axes, `!` for an array that must be there.
AXES: dict[str, dict[str, str]] = {
    "train": {
        "steps": "T!", "log_steps": "S!", "class_names": "K", "stopped_step": "R", "measured_samples": "R", "overlap_static*": "KK",
        "layer_*_test": "RL+", "train_layer_*": "RSL", "train_loss": "RS!", "train_accuracy": "RS!", "layer_*": "RTL+",
        "loss_per_class": "RTK!", "accuracy_per_class": "RTK!", "confusion": "RTKK!", "overlap_dynamic*": "RTKK", "*_per_class_*": "RTK",
        "confusion_*": "RTKK", "loss": "RT!", "accuracy": "RT!", "val_*": "RT", "loss_*": "RT", "accuracy_*": "RT",
    },
    "invert": {
        "epochs": "T!", "radii": "RTK!", "distances": "RTKK!", "error": "RT!", "loss": "RT!", "inversion_epoch": "RK!", "class_names": "K!",
        "repeats": "R!", "retrained_radii": "RTK", "retrained_error": "RT", "retrained_inversion_epoch": "RK", "stragglers": "RN!",
        "predicted": "RN!", "index": "N!", "labels": "N!", "clean_labels": "N", "fingerprint": "N!", "judged_epoch": "RK!", "gallery": "G!",
        "gallery_inputs": "G+!", "stability_epochs": "E", "stability_z": "PE", "straggler_z": "P", "misclassified": "RE",
        "prune_epochs": "F", "prune_removed": "RF", "test_noise": "Z", "prune_error": "RZF", "prune_baseline": "RZ",
    },
    "mask-mi": {
        "models": "+!", "layers": "L", "layer_names": "L", "n_channels": "L", "class_names": "K", "confusion_full": "RKK", "mi_full": "R",
        "accuracy_full": "R", "class_information_full": "RK", "masks_[0-9][0-9]": "sc", "kept_[0-9][0-9]": "s", "mi_[0-9][0-9]": "Rs",
        "confusion_[0-9][0-9]": "RsKK", "accuracy_[0-9][0-9]": "Rs", "class_information_[0-9][0-9]": "RsK",
        "contribution_[0-9][0-9]": "R+",
    },
    "stragglers": {
        "accuracy_per_class": "MPQSRK!", "accuracy_*": "MPQSR!", "train_samples": "MPQS!", "done": "MS!", "strategies": "M!",
        "train_ratios": "P!", "repeats": "R!", "remaining": "Q!", "sets": "S!", "hard_per_class": "MSK!", "samples_per_class": "K!",
        "class_names": "K!", "stability": "M!", "gallery_images": "MG+!", "gallery_*": "MG",
    },
    "score": {
        "index": "N!", "labels": "N!", "clean": "N", "planted": "N!", "fingerprint": "N", "predicted": "N!", "score_names": "S!",
        "plant_types": "Y!", "class_names": "K!", "missing_scores": "E", "missing_why": "E", "recordings": "D!", "detection_scores": "S",
        "detection_types": "P", "detection_base_rate": "P", "detection_*_repeats": "SPQ", "detection_*": "SP", "agreement_*": "SS",
        "stability_*": "S", "class_rank": "SK", "gallery": "SKG", "gallery_rows": "V", "gallery_inputs": "V+", "confident_learning": "N",
        "confident_learning_*": "P", "friedman_scores": "F", "friedman_datasets": "B", "friedman_ap": "CBF", "friedman_ranks": "CF",
        "friedman_types": "C", "friedman_statistic": "C", "friedman_p": "C", "friedman_critical_difference": "C",
        "influence": "MI", "influence_stderr": "MI", "influence_train": "MI",
    },
    "sweep": {"swept": "+!", "setting_*": "C", "baseline": "C", "kept": "C", "seconds": "C+", "test_*": "C+"},
    HARD_SAMPLES: {
        "strategies": "M!", "index": "N!", "labels": "N!", "fingerprint": "N!", "scores_*": "SN", "hard_*": "SN",
    },
    STRAGGLERS: {"stragglers": "RN!", "index": "N!", "fingerprint": "N!"},
    DYNAMICS: {
        "logits": "RTNK!", "feature_norm": "RTN", "class_cosine": "RTN", "membership": "RN", "steps": "T!", "epochs": "T", "labels": "N!",
        "clean": "N", "index": "N!", "fingerprint": "N!", "planted": "N", "plant_types": "P", "class_names": "K", "test_logits": "RTMK",
        "test_feature_norm": "RTM", "test_class_cosine": "RTM", "test_labels": "M", "test_index": "M", "test_fingerprint": "M",
    },
}  # fmt: skip
OF_MASKED_LAYERS = ("masks", "kept", "mi", "accuracy", "class_information", "contribution")
TEXT = (
    "score_names",
    "missing_*",
    "recordings",
    "detection_scores",
    "detection_types",
    "friedman_scores",
    "friedman_types",
    "friedman_datasets",
    "class_names",
    "plant_types",
    "strategies",
    "swept",
    "setting_*",
    "layer_names",
    "models",
)
# fmt: off
INTEGERS = (
    "steps", "log_steps", "epochs", "index", "labels", "fingerprint", "layers", "repeats", "stragglers", "predicted", "gallery", "done",
    "clean", "membership", "planted", "test_labels", "test_index", "test_fingerprint",
)
# fmt: on
FRACTIONS = {DYNAMICS: ("epochs",), "score": (STRAGGLERS.removesuffix(".npz"),)}
"""By kind of archive: arrays of these names that are no whole numbers there (points within an epoch; means over networks)."""
CLASS_NUMBERS = ("labels", "clean", "test_labels", "clean_labels", "predicted", "gallery_labels", "gallery_clean", "gallery_predicted")


def axes_of(kind: str, name: str) -> str:
    """The axes of an array of a kind of archive, a letter each; `+` for one that is not known."""
    return next((axes for pattern, axes in AXES.get(kind, {}).items() if fnmatchcase(name, pattern)), "+").rstrip("!")


def check(arrays: Mapping[str, Array], kind: str) -> None:
    """ValueError, naming the array, where one that a kind of archive must have is missing, or is of another type or shape."""
    needed = [name for name, axes in AXES.get(kind, {}).items() if axes.endswith("!") and "*" not in name]
    for name in chain(needed, _masking_keys(arrays) if kind == "mask-mi" else ()):
        if name not in arrays:
            raise ValueError(f"no array {name} in it")
    lengths: dict[tuple[str, str], int] = {}
    for name, array in arrays.items():
        model, _, key = name.rpartition("/")
        whole = key in INTEGERS and key not in FRACTIONS.get(kind, ())
        if array.dtype.kind not in ("U" if _fits(key, TEXT) else "biu" if whole else "biuf"):
            raise ValueError(f"{name} is {array.dtype}; {'text' if _fits(key, TEXT) else 'numbers'}")
        axes = axes_of(kind, key)
        letters = axes.rstrip("+")
        if array.ndim < len(letters) or (letters == axes and array.ndim > len(letters)):
            raise ValueError(f"{name} has shape {array.shape}; {len(letters)} axes{' or more' if letters != axes else ''}")
        for letter, length in zip(letters, array.shape, strict=False):
            scope = (model, f"{letter} {key.rpartition('_')[2]}" if letter.islower() else letter)
            if letter in "RTK" and not length:
                raise ValueError(f"{name} has shape {array.shape}; no axis of length 0")
            if lengths.setdefault(scope, length) != length:
                raise ValueError(f"{name} has shape {array.shape}, and others have {lengths[scope]} there; one length")
    _check_numbers(arrays, lengths.get(("", "K")), lengths.get(("", "N"), 0))


def _check_numbers(arrays: Mapping[str, Array], classes: int | None, samples: int) -> None:
    """ValueError for the number of a class, or the place of a sample, that there is not; -1 is allowed."""
    for name in [name for name in (*CLASS_NUMBERS, "gallery") if name in arrays and classes is not None]:
        count = samples if name == "gallery" else classes
        if (arrays[name] >= count).any() or (arrays[name] < -1).any():
            raise ValueError(f"{name} counts up to {arrays[name].max()}; {count} there are")


def _masking_keys(arrays: Mapping[str, Array]) -> Iterator[str]:
    """The arrays that a mask-mi run must have of every model, and of its layers."""
    models = arrays["models"]
    for model in models:
        yield from (model_key(name, model, len(models)) for name in AXES["mask-mi"] if "[" not in name and name != "models")
        for layer in arrays[model_key("layers", model, len(models))]:
            yield from (model_key(masked_key(name, int(layer)), model, len(models)) for name in OF_MASKED_LAYERS)


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
