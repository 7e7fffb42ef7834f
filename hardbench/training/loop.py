"""The one training loop. Studies differ in what they look at: callbacks are plain functions called after every step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hardbench.data.batches import Batches
from hardbench.training.learners import Learner


@dataclass
class TrainState:
    """What an callback sees: the learner after `step` updates, and the scalars [R] of the last one (none at step 0)."""

    step: int
    total: int
    learner: Learner
    batches: Batches
    scalars: dict[str, Tensor]

    @property
    def epoch_ends(self) -> bool:
        """Whether this step completes a pass over the training set."""
        return self.step > 0 and self.step % self.batches.per_epoch == 0

    @property
    def stops(self) -> bool:
        """Whether a repeat reached its target at this very step."""
        return any(step == self.step and r not in self.learner.diverged for r, step in self.learner.stopped.items())

    @property
    def last(self) -> bool:
        """Whether training ends here: by its length, or because no repeat learns any more."""
        return self.step == self.total or not any(self.learner.active)


Callback = Callable[[TrainState], None]


def fit(learner: Learner, batches: Batches, total: int, callbacks: Sequence[Callback] = ()) -> int:
    """Train from the learner's position to step `total`, or until every repeat is frozen; the step reached.

    Callbacks run in order after every step, and at step 0 before the first; a learner that goes on from a stored state has shown
    them the step it was stored at.
    """
    state = TrainState(learner.steps, total, learner, batches, {})
    if state.step == 0 and not learner.resumed:
        _show(callbacks, state)
    while not state.last:
        state.scalars = learner.update(*batches.draw())
        state.step = learner.steps
        _show(callbacks, state)
    return state.step


def _show(callbacks: Sequence[Callback], state: TrainState) -> None:
    for callback in callbacks:
        callback(state)


def every(steps: int, callback: Callback) -> Callback:
    """The callback, called at multiples of `steps` from the first on, and at the last step."""

    def at_multiples(state: TrainState) -> None:
        if state.step and (state.step % steps == 0 or state.last):
            callback(state)

    return at_multiples


def at(steps: Iterable[int], callback: Callback) -> Callback:
    """The callback, called at the given steps, where a repeat reaches its target, and at the last step."""
    chosen = frozenset(steps)

    def at_chosen(state: TrainState) -> None:
        if state.step in chosen or state.stops or state.last:
            callback(state)

    return at_chosen


def evaluation_steps(points: int, explicit: Sequence[int] | None, total: int) -> list[int]:
    """Sorted steps to evaluate at: the explicit ones, or `points` log-spaced; step 0 and the last are always among them."""
    chosen = list(explicit) if explicit is not None else np.logspace(0, np.log10(total), points).astype(int).tolist()
    return sorted({0, total, *(step for step in chosen if step <= total)})
