"""Checkpoints that survive a kill at any moment: written aside, synced, renamed; the one before is kept as previous.pt."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from hardbench import files
from hardbench.artifacts import BEST, LAST, PREVIOUS
from hardbench.errors import Killed, TrainingError, brief


def save(folder: Path, name: str, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically; an older last.pt becomes previous.pt."""
    if name == LAST and (folder / LAST).exists():
        (folder / PREVIOUS).unlink(missing_ok=True)
        with suppress(OSError):  # a file system without links keeps no older one
            (folder / PREVIOUS).hardlink_to(folder / LAST)
    with files.whole(folder / name) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, Killed | KeyboardInterrupt | OSError):  # the archive's end fails after it, and hides it
                raise error.__context__ from None
            raise


def spare(keep: bool) -> list[str]:
    """Names of the checkpoint files that a finished run no longer needs."""
    names = [PREVIOUS] if keep else [LAST, PREVIOUS, BEST]
    return [*names, *(f".{name}.part" for name in (LAST, PREVIOUS, BEST))]


# The required content of a checkpoint, by use: names with their types, or with their own content; the first item of a list says for all.
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
    """Read a checkpoint, tensors on the CPU, data only; TrainingError if it cannot be read or lacks something of `wanted`."""
    try:
        with ZipFile(files.regular(path)) as archive:  # torch does not check the checksums
            members = archive.infolist()
            stored = all(member.compress_type == ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > path.stat().st_size or archive.testzip() is not None:
                raise BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = f"{error}" if isinstance(error, OSError) else type(error).__name__
        raise TrainingError(f"checkpoint: {path}; cannot be read ({reason})") from None
    if not isinstance(state, dict) or "networks" not in state:
        raise TrainingError(f"checkpoint: {path}; not a checkpoint of this program")
    if wrong := _unlike(state, dict(wanted), "") or (_late(state) if "records" in wanted else ""):
        raise TrainingError(f"checkpoint: {path}; {wrong}")
    return state


def _late(state: Mapping[str, Any]) -> str:
    """The fault of a training state whose parts are not of the same step, in words; empty if they are."""
    steps, measured, drawn = state["steps"], state["records"]["steps"].values(), state["batches"]["position"]
    if drawn != steps or any(points != sorted(set(points)) or points[-1:] > [steps] for points in measured):
        return f"it is at step {steps}, drew {drawn} batches and measured until {max(max(points, default=0) for points in measured)}"
    best = state["best"]
    if {len(best[name]) for name in ("networks", "accuracy", "step")} != {len(state["networks"])} or max(best["step"], default=0) > steps:
        return f"best of {len(best['networks'])} networks at steps {best['step']}, and it has {len(state['networks'])} at step {steps}"
    return ""


def _unlike(content: Any, wanted: Any, where: str) -> str:
    """The first difference of content from the wanted one, in words; empty if there is none."""
    kind = type(wanted) if isinstance(wanted, dict | list) else wanted
    if kind is not Any and (not isinstance(content, kind) or (isinstance(content, bool) and kind is int)):
        return f"{where} is {type(content).__name__}, and no {getattr(kind, '__name__', 'number')}"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(wanted, dict):
        if missing := [name for name in wanted if name not in content]:
            return f"no {where}{'.' * bool(where)}{missing[0]} in it"
        parts = wanted.items()
    elif isinstance(wanted, list):
        content = {str(place): item for place, item in enumerate(content)}
        parts = dict.fromkeys(content, wanted[0]).items()
    return next(filter(None, (_unlike(content[name], inner, f"{where}.{name}".lstrip(".")) for name, inner in parts)), "")


@contextmanager
def restoring(where: object, steps: Any, total: int) -> Iterator[None]:
    """A block in which a state is loaded: TrainingError that names it if it does not fit, or is beyond the run's last step."""
    if not isinstance(steps, int) or not 0 <= steps <= total:
        raise TrainingError(f"checkpoint: {where}; it is at step {steps}, and the run has {total}")
    try:
        yield
    except TrainingError as error:
        raise TrainingError(f"checkpoint: {where}; {str(error).removeprefix('checkpoint: ')}") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # torch's errors for another's state
        reason = " ".join(str(error).split())
        raise TrainingError(f"checkpoint: {where}; not of this run ({type(error).__name__}: {brief(reason)})") from None


def newest(folder: Path, wanted: Mapping[str, Any] = MappingProxyType({})) -> tuple[dict[str, Any] | None, str]:
    """The newest readable state to resume from (None if there is none), and a line about a newer one that is damaged."""
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
