"""The arrays of stored runs: their axes by name, checked when they come from the store."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

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
    "sweep": {"swept": "+!", "setting_*": "C", "baseline": "C", "seconds": "C+", "test_*": "C+"},
    "hard_samples.npz": {
        "strategies": "M!", "index": "N!", "labels": "N!", "fingerprint": "N!", "scores_*": "SN", "hard_*": "SN",
    },
    "stragglers.npz": {"stragglers": "RN!", "index": "N!", "fingerprint": "N!"},
    "dynamics.npz": {"logits": "RTNK!", "labels": "N!", "steps": "T!", "index": "N!", "fingerprint": "N!"},
}  # fmt: skip
OF_LAYERS = ("masks", "kept", "mi", "accuracy", "class_information", "contribution")
WORDS = ("class_names", "strategies", "swept", "setting_*", "layer_names", "models")
# fmt: off
WHOLE = (
    "steps", "log_steps", "epochs", "index", "labels", "fingerprint", "layers", "repeats", "stragglers", "predicted", "gallery", "done",
)
# fmt: on
CLASSES = ("labels", "clean_labels", "predicted", "gallery_labels", "gallery_clean", "gallery_predicted")  # numbers of classes


def check(arrays: Mapping[str, Array], kind: str) -> None:
    """ValueError, naming the array, where one that a kind of archive must have is missing, or is of another type or shape."""
    known = AXES.get(kind, {})
    _present(arrays, [name for name, axes in known.items() if axes.endswith("!") and "*" not in name])
    for model in arrays["models"] if kind == "mask-mi" else ():
        start = f"{model}/" if len(arrays["models"]) > 1 else ""
        _present(arrays, [start + name for name, axes in known.items() if "[" not in name and name != "models"])
        _present(arrays, [f"{start}{name}_{int(layer):02d}" for layer in arrays[f"{start}layers"] for name in OF_LAYERS])
    lengths: dict[tuple[str, str], int] = {}
    for name, array in arrays.items():
        model, _, own = name.rpartition("/")
        if array.dtype.kind not in ("U" if _any(own, WORDS) else "biu" if own in WHOLE else "biuf"):
            raise ValueError(f"{name} is {array.dtype}; {'text' if _any(own, WORDS) else 'numbers'}")
        axes = axes_of(kind, own)
        letters = axes.rstrip("+")
        if array.ndim < len(letters) or (letters == axes and array.ndim > len(letters)):
            raise ValueError(f"{name} has shape {array.shape}; {len(letters)} axes{' or more' if letters != axes else ''}")
        for letter, length in zip(letters, array.shape, strict=False):
            scope = (model, f"{letter} {own.rpartition('_')[2]}" if letter.islower() else letter)
            if letter in "RTK" and not length:
                raise ValueError(f"{name} has shape {array.shape}; no axis of length 0")
            if lengths.setdefault(scope, length) != length:
                raise ValueError(f"{name} has shape {array.shape}, and others have {lengths[scope]} there; one length")
    classes, samples = lengths.get(("", "K")), lengths.get(("", "N"), 0)
    for name in [name for name in (*CLASSES, "gallery") if name in arrays and classes is not None]:
        if (arrays[name] >= (samples if name == "gallery" else classes)).any() or (arrays[name] < -1).any():
            raise ValueError(f"{name} counts up to {arrays[name].max()}; {samples if name == 'gallery' else classes} there are")


def axes_of(kind: str, name: str) -> str:
    """The axes of an array of a kind of archive, a letter each; `+` for one that is not known."""
    return next((axes for pattern, axes in AXES.get(kind, {}).items() if fnmatchcase(name, pattern)), "+").rstrip("!")


def _any(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _present(arrays: Mapping[str, Array], names: Iterable[str]) -> None:
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ValueError(f"no array {missing[0]} in it")
