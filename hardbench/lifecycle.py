"""A study's life in its run: compute, report, close, and only then FINISHED."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from hardbench import console, tracking
from hardbench.errors import TrainingError
from hardbench.figures import draw
from hardbench.stored import StoredRun
from hardbench.training import checkpoints

Step = Callable[[tracking.Run], None]


def complete(opening: AbstractContextManager[tracking.Run], compute: Step, report: Step, close: Step, last: Step) -> StoredRun:
    """Do a study's steps within a run, which is FINISHED when all of them are done, and not before; the stored run.

    What a kill leaves undone a resumed run does: every step may be done again. `close` removes what only resuming needs: the last thing
    before FINISHED. `last` comes after it: a copy that finds no room undoes no run. A TrainingError whose study has `measured` all it could
    is raised after all of them; after any other error nothing is removed.
    """
    with opening as run:
        try:
            compute(run)
        except TrainingError as error:
            if error.measured:
                report(run)
                close(run)
                last(run)
            raise
        report(run)
        close(run)
    last(run)
    return so_far(run)


def so_far(run: tracking.Run) -> StoredRun:
    """An open run as the store has it so far."""
    run.deliver()
    return StoredRun(run.client, run.client.get_run(run.id))


def check_data(stored: StoredRun, digest: str) -> None:
    """TrainingError if a run that goes on was started on other data."""
    if stored.tags.get("hardbench.data_digest", digest) != digest:
        raise TrainingError(f"run: {stored.id}; the data set is not the one it was started on")


def newest_state(stored: StoredRun, wanted: Mapping[str, Any] = checkpoints.TRAINING) -> dict[str, Any] | None:
    """The newest state to go on from that has what is wanted, None where there is none; a warning if it is not the last that was stored."""
    state, note = checkpoints.newest(stored.file("checkpoints"), wanted) if stored.has("checkpoints") else (None, "")
    if note or state is None:
        console.warn(note or f"run {stored.id} had no checkpoint yet: it starts again from step 0")
    return state


def describe(run: tracking.Run, device: torch.device, precision: str, dataset: str, digest: str) -> None:
    """What a run is computed on, at its start and again when it goes on: tags of device, precision and threads, and the data set."""
    run.data(dataset.rpartition("/")[2], digest, dataset)
    for key, value in (("device", device), ("precision", precision), ("threads", torch.get_num_threads())):
        run.tag(f"hardbench.{key}", str(value))


def draw_into(run: tracking.Run, kinds: Sequence[str] | None) -> StoredRun:
    """Draw the kinds of figures that apply (None: all there are) into an open run; the run as stored so far."""
    stored = so_far(run)
    for name in draw([stored], run.folder / "figures", kinds, strict=False):
        run.publish(f"figures/{name}")
    return stored
