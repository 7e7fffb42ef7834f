"""Checkpoints that survive a kill at any state: written aside, synced, renamed; the one before is kept as previous.pt."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from hardbench import files
from hardbench.errors import Killed, TrainingError, brief

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"


def save(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; an older last.pt becomes previous.pt."""
    if name == LAST and (folder / LAST).exists():
        (folder / PREVIOUS).unlink(missing_ok=True)
        with suppress(OSError):  # a file system without links does without the older one
            (folder / PREVIOUS).hardlink_to(folder / LAST)
    with files.whole(folder / name) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, Killed | KeyboardInterrupt | OSError):  # the archive's end fails after it, and hides it
                raise error.__context__ from None
            raise


def spare(keep: bool) -> list[str]:
    """Names of the checkpoint files that a run which has ended does without."""
    names = [PREVIOUS] if keep else [LAST, PREVIOUS, BEST]
    return [*names, *(f".{name}.part" for name in (LAST, PREVIOUS, BEST))]


# What a checkpoint must have, by use: names with their types, or with what they hold in turn; a list holds what its first item says.
WEIGHTS: dict[str, Any] = {"networks": [{}], "standardise": {"mean": Tensor, "std": Tensor, "shift": (int, float)}}
POSITION: dict[str, Any] = {
    "steps": int, "streams": Any, "optimizer": {"state": dict, "param_groups": list},
    **dict.fromkeys(("frozen", "stopped", "reached", "diverged"), dict),
    "batches": {"position": int, "order": Tensor, "augment": Tensor, "corruption": Any},
}  # fmt: skip
TRAINING = WEIGHTS | POSITION | {
    "records": {"steps": {"steps": [int], "log_steps": [int]}, "rows": dict},
    "best": {"networks": [dict], "accuracy": [(int, float)], "step": [int]},
}  # fmt: skip
SEARCH = WEIGHTS | {"name": str}


def load(path: Path, wanted: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """A checkpoint: tensors on the CPU, nothing unpickled but data; TrainingError if it cannot be read or lacks what is wanted."""
    try:
        with ZipFile(files.regular(path)) as archive:  # torch does not look at the checksums
            if any(member.compress_type != ZIP_STORED for member in archive.infolist()):
                raise BadZipFile
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size or archive.testzip() is not None:
                raise BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file does to the reader
        told = f"{error}" if isinstance(error, OSError) else type(error).__name__
        raise TrainingError(f"checkpoint: {path}; cannot be read ({told})") from None
    if not isinstance(state, dict) or "networks" not in state:
        raise TrainingError(f"checkpoint: {path}; not a checkpoint of this program")
    if wrong := _unlike(state, dict(wanted), "") or (_late(state) if "records" in wanted else ""):
        raise TrainingError(f"checkpoint: {path}; {wrong}")
    return state


def _late(state: Mapping[str, Any]) -> str:
    """What a training state knows of steps it has not made, in words; empty if all of it is of its own step."""
    steps, known, drawn = state["steps"], state["records"]["steps"], state["batches"]["position"]
    if drawn != steps or any(made != sorted(set(made)) or made[-1:] > [steps] for made in known.values()):
        return f"it is at step {steps}, drew {drawn} batches and measured until {max(max(made, default=0) for made in known.values())}"
    best = state["best"]
    if {len(best[name]) for name in ("networks", "accuracy", "step")} != {len(state["networks"])} or max(best["step"], default=0) > steps:
        return f"best of {len(best['networks'])} networks at steps {best['step']}, and it has {len(state['networks'])} at step {steps}"
    return ""


def _unlike(found: Any, wanted: Any, where: str) -> str:
    """How content departs from what is wanted of it, in words; empty if it does not."""
    kind = type(wanted) if isinstance(wanted, dict | list) else wanted
    if kind is not Any and (not isinstance(found, kind) or (isinstance(found, bool) and kind is int)):
        return f"{where} is {type(found).__name__}, and no {getattr(kind, '__name__', 'number')}"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(wanted, dict):
        if missing := [name for name in wanted if name not in found]:
            return f"no {where}{'.' * bool(where)}{missing[0]} in it"
        parts = wanted.items()
    elif isinstance(wanted, list):
        found = {str(place): item for place, item in enumerate(found)}
        parts = dict.fromkeys(found, wanted[0]).items()
    return next(filter(None, (_unlike(found[name], inner, f"{where}.{name}".lstrip(".")) for name, inner in parts)), "")


@contextmanager
def restoring(where: object, steps: Any, total: int) -> Iterator[None]:
    """Within the block a state is taken up: one that does not fit, or is beyond the run's last step, is a TrainingError that names it."""
    if not isinstance(steps, int) or not 0 <= steps <= total:
        raise TrainingError(f"checkpoint: {where}; it is at step {steps}, and the run has {total}")
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"checkpoint: {where}; {str(error).removeprefix('checkpoint: ')}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # what torch says of another's state
        told = " ".join(str(error).split())
        raise TrainingError(f"checkpoint: {where}; not of this run ({type(error).__name__}: {brief(told)})") from None


def newest(folder: Path, wanted: Mapping[str, Any] = MappingProxyType({})) -> tuple[dict[str, Any] | None, str]:
    """The newest readable state to resume from (None if there is none) and a line about a damaged one, if one was passed over."""
    if files.is_there(folder) and not folder.is_dir():
        raise TrainingError(f"checkpoint: {folder}; a folder of checkpoints")
    damaged: list[str] = []
    for name in (LAST, PREVIOUS):
        if files.is_there(folder / name):
            try:
                return load(folder / name, wanted), f"{damaged[0]}; using {PREVIOUS}" if damaged else ""
            except TrainingError as error:
                damaged.append(str(error))
    if damaged:
        raise TrainingError("; ".join([*damaged, f"nor is there a {PREVIOUS} that can"][:2]))
    return None, ""
