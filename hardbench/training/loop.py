"""The only training loop. Studies differ in what they measure: callbacks are functions of a TrainState, called after every step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hardbench.data.batches import Batches
from hardbench.training.learners import Learner


@dataclass
class TrainState:
    """The state of training that a callback gets: the learner after `step` updates, and the scalars [R] of the last (none at step 0)."""

    step: int
    total: int
    learner: Learner
    batches: Batches
    scalars: dict[str, Tensor]

    @property
    def epoch_ends(self) -> bool:
        """True if this step completes a pass over the training set."""
        return self.step > 0 and self.step % self.batches.per_epoch == 0

    @property
    def stops(self) -> bool:
        """True if a repeat reached its target at this very step."""
        return any(step == self.step and r not in self.learner.diverged for r, step in self.learner.stopped.items())

    @property
    def ended(self) -> list[int]:
        """The repeats without numbers at this step, which have stopped before it or diverged."""
        return [r for r in self.learner.stopped if self.step > self.learner.measured_until(r)]

    @property
    def last(self) -> bool:
        """True if training ends here: by its length, or because no repeat learns any more."""
        return self.step == self.total or not any(self.learner.active)


Callback = Callable[[TrainState], None]


def fit(learner: Learner, batches: Batches, total: int, callbacks: Sequence[Callback] = ()) -> int:
    """Train from the learner's step to step `total`, or until every repeat is frozen; returns the step reached.

    Callbacks run in order after every step, and at step 0 before the first update. For a learner that continues from a stored state they
    begin with the step after it.
    """
    state = TrainState(learner.steps, total, learner, batches, {})
    if state.step == 0 and not learner.resumed:
        _call(callbacks, state)
    while not state.last:
        state.scalars = learner.update(*batches.draw())
        state.step = learner.steps
        _call(callbacks, state)
    return state.step


def _call(callbacks: Sequence[Callback], state: TrainState) -> None:
    for callback in callbacks:
        callback(state)


def every(steps: int, callback: Callback) -> Callback:
    """A callback that calls this one at multiples of `steps`, beginning with the first, and at the last step."""

    def at_multiples(state: TrainState) -> None:
        if state.step and (state.step % steps == 0 or state.last):
            callback(state)

    return at_multiples


def at(steps: Iterable[int], callback: Callback) -> Callback:
    """A callback that calls this one at the given steps, when a repeat reaches its target, and at the last step."""
    chosen = frozenset(steps)

    def at_chosen(state: TrainState) -> None:
        if state.step in chosen or state.stops or state.last:
            callback(state)

    return at_chosen


def evaluation_steps(points: int, explicit: Sequence[int] | None, total: int) -> list[int]:
    """Sorted steps to evaluate at: the explicit ones, or `points` log-spaced; step 0 and the last are always among them."""
    chosen = list(explicit) if explicit is not None else np.logspace(0, np.log10(total), points).astype(int).tolist()
    return sorted({0, total, *(step for step in chosen if step <= total)})
