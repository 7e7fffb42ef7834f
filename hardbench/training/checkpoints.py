"""Checkpoints that survive a kill at any moment: written aside, synced, renamed; the one before is kept as previous.pt."""

from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from hardbench import files
from hardbench.errors import Killed, TrainingError

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
            if isinstance(error.__context__, Killed | KeyboardInterrupt):  # the archive's end fails after a signal, and hides it
                raise error.__context__ from None
            raise


def spare(keep: bool) -> list[str]:
    """Names of the checkpoint files that a run which has ended does without."""
    names = [PREVIOUS] if keep else [LAST, PREVIOUS, BEST]
    return [*names, *(f".{name}.part" for name in (LAST, PREVIOUS, BEST))]


def load(path: Path) -> dict[str, Any]:
    """A checkpoint's content, tensors on the CPU, nothing unpickled but data; TrainingError if it cannot be read."""
    try:
        with ZipFile(path) as archive:  # torch does not look at the checksums
            if archive.testzip() is not None:
                raise BadZipFile
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file does to the reader
        raise TrainingError(f"checkpoint: {path}; cannot be read ({type(error).__name__})") from None
    if not isinstance(state, dict) or "networks" not in state:
        raise TrainingError(f"checkpoint: {path}; not a checkpoint of this program")
    return state


def newest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest readable state to resume from (None if there is none) and a line about a damaged one, if one was passed over."""
    damaged: list[str] = []
    for name in (LAST, PREVIOUS):
        if (folder / name).exists():
            try:
                return load(folder / name), f"{damaged[0]}; using {PREVIOUS}" if damaged else ""
            except TrainingError as error:
                damaged.append(str(error))
    if damaged:
        raise TrainingError("; ".join([*damaged, f"nor is there a {PREVIOUS} that can"][:2]))
    return None, ""
