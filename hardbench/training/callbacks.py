"""Callbacks of the training loop: what is recorded, when a network stops, when a checkpoint is written.

Those with a state of their own are made by a function; the others are functions whose last argument is the `TrainState`.
"""

import itertools
import time
from collections.abc import Callable, Container, Mapping
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench.artifacts import layer_key
from hardbench.data.samples import Samples
from hardbench.errors import TrainingError
from hardbench.training.evaluation import evaluate, reaches
from hardbench.training.layer_metrics import LayerMetrics, defined
from hardbench.training.loop import Callback, TrainState

Sink = Callable[[Mapping[str, np.ndarray], int], None]
"""Takes metrics by name, each [R] (or one number for all networks), and their step, as they are measured."""


class Records:
    """Arrays that grow along a step axis: `steps` for evaluation points, `log_steps` for the training curves; `end` for none."""

    def __init__(self) -> None:
        self._steps: dict[str, list[int]] = {"steps": [], "log_steps": []}
        self._rows: dict[str, tuple[str, list[Tensor]]] = {}

    def add(self, axis: str, state: TrainState, values: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        """Append one point of every array, each [R, ...]; repeats without numbers at this step become nan. Returns what was appended.

        Several calls at one step fill the same point; along `end` an array has one point and no step axis. ValueError for a step that
        is not after the last one, and for an array that has this point or lacks an earlier one: a row never stands without its step.
        """
        steps = [] if axis == "end" else self._steps[axis]
        if steps and state.step < steps[-1]:
            raise ValueError(f"{axis}: step {state.step} after step {steps[-1]}")
        if state.step not in steps[-1:]:
            steps.append(state.step)
        shown, ended = {}, state.ended
        for name, value in values.items():
            row = value.detach().to("cpu", torch.float64)
            if ended:
                row[ended] = torch.nan
            rows = self._rows.setdefault(name, (axis, []))[1]
            if len(rows) != len(steps) - 1:
                raise ValueError(f"{name}: {len(rows)} rows before point {len(steps)} of {axis}")
            rows.append(row)
            shown[name] = row.numpy()
        return shown

    def arrays(self) -> dict[str, np.ndarray]:
        """`steps` [T], `log_steps` [S] and every array as [R, T, ...] or [R, S, ...]; ValueError for an array that lacks a point."""
        arrays = {axis: np.array(steps, dtype=np.int64) for axis, steps in self._steps.items()}
        if unequal := self._unequal():
            raise ValueError(unequal)
        for name, (axis, rows) in self._rows.items():
            arrays[name] = (rows[-1] if axis == "end" else torch.stack(rows, 1)).numpy()
        return arrays

    def state(self) -> dict[str, Any]:
        """The arrays so far, as a checkpoint keeps them."""
        rows = {name: [axis, torch.stack(column)] for name, (axis, column) in self._rows.items()}
        return {"steps": {axis: list(steps) for axis, steps in self._steps.items()}, "rows": rows}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; TrainingError where its arrays and steps do not agree."""
        self._steps = {axis: list(steps) for axis, steps in state["steps"].items() if axis != "end"}
        self._rows = {name: (axis, list(column.unbind(0))) for name, (axis, column) in state["rows"].items()}
        if unequal := self._unequal():
            raise TrainingError(f"checkpoint: {unequal}; a row for every step")

    def _unequal(self) -> str:
        """The first array that has more or fewer rows than its axis has steps, in words; empty if there is none."""
        for name, (axis, rows) in self._rows.items():
            if len(rows) != (wanted := 1 if axis == "end" else len(self._steps[axis])):
                return f"{name} has {len(rows)} rows for {wanted} points of {axis}"
        return ""


def divergence() -> Callback:
    """Freezes repeats whose training loss is not finite: on a CPU at once, on a GPU (where reading a loss costs a wait) every 50 steps."""
    losses: list[Tensor] = []

    def freeze_diverged(state: TrainState) -> None:
        if state.step == 0:
            return
        losses.append(state.scalars["loss"])
        if state.learner.device.type != "cpu" and len(losses) < 50 and not state.last:
            return
        recent = torch.stack(losses)
        first = state.step - len(losses) + 1
        losses.clear()
        if isfinite(recent.sum().item()):
            return
        bad = ~recent.isfinite().cpu()
        for r in bad.any(0).nonzero().flatten().tolist():
            if r not in state.learner.stopped:
                state.learner.diverged[r] = first + int(bad[:, r].int().argmax())
                state.learner.freeze(r, state.learner.diverged[r])

    return freeze_diverged


def curves(records: Records, sink: Sink, state: TrainState) -> None:
    """Training scalars of the step just made, which it has anyway, and the learning rate."""
    shown = records.add("log_steps", state, {f"train_{name}": value for name, value in state.scalars.items()})
    metrics = {}
    for name, value in shown.items():
        phase, _, metric = name.partition("_")
        if value.ndim == 1:
            metrics[f"{phase}/{metric}"] = value
        else:
            metrics |= {f"{phase}_{metric}/{layer:02d}": row for layer, row in enumerate(value.T)}
    sink(metrics | {"train/lr": np.array(state.learner.lr_at(state.step - 1))}, state.step)


class Best:
    """The weights with the best validation accuracy of every repeat; the earlier of equals."""

    def __init__(self, repeats: int):
        self.accuracy = [-1.0] * repeats
        self.step = [0] * repeats
        self.networks: list[dict[str, Tensor]] = [{} for _ in range(repeats)]

    def keep(self, state: TrainState, accuracy: Tensor) -> None:
        """Take the weights of the repeats whose validation accuracy [R] has improved."""
        for r, now in enumerate(accuracy.tolist()):
            if now > self.accuracy[r] and r not in state.ended:
                self.accuracy[r], self.step[r] = now, state.step
                self.networks[r] = state.learner.networks.member_state(r)

    def state(self) -> dict[str, Any]:
        """Weights, accuracy and step per repeat."""
        return {"networks": self.networks, "accuracy": self.accuracy, "step": self.step}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.networks, self.accuracy, self.step = state["networks"], state["accuracy"], state["step"]


def measure(state: TrainState, samples: Samples) -> dict[str, Tensor]:
    """Everything one pass over the samples gives."""
    return evaluate(state.learner, samples, state.batches.standardise)


def evaluation(records: Records, sink: Sink, best: Best, test: Samples, val: Samples | None, state: TrainState) -> None:
    """Everything measured of the test set; loss and accuracy of the validation set (nan without one), which decide what is best."""
    measured = measure(state, test)
    held_out = {name: torch.full_like(measured[name], torch.nan) for name in ("loss", "accuracy")}
    if val is not None:
        held_out = measure(state, val)
        best.keep(state, held_out["accuracy"])
    shown = records.add("steps", state, measured | {f"val_{name}": held_out[name] for name in ("loss", "accuracy")})
    metrics = {f"test/{name}": shown[name] for name in ("loss", "accuracy")}
    if val is not None:
        metrics |= {f"val/{name}": shown[f"val_{name}"] for name in ("loss", "accuracy")}
    for name in ("accuracy", "loss"):
        metrics |= {f"class_{name}/{c:02d}": values for c, values in enumerate(shown[f"{name}_per_class"].T)}
    sink(metrics, state.step)


def layers(records: Records, sink: Sink, layer_metrics: LayerMetrics, state: TrainState) -> None:
    """The layer metrics of the held-out and the training samples; at the last step of the test samples, too."""
    rows = records.add("steps", state, layer_metrics.measure(state.learner, "val") | layer_metrics.measure(state.learner, "train"))
    if state.last:
        rows |= records.add("end", state, layer_metrics.measure(state.learner, "test"))
    metrics: dict[str, np.ndarray] = {}
    for phase, name in itertools.product(("val", "train", "test"), layer_metrics.names):
        if (key := layer_key(name, phase)) in rows:
            metrics |= {f"{key}/{layer:02d}": values for layer, values in enumerate(defined(name, rows[key]).T)}
    sink(metrics, state.step)


def groups(records: Records, sink: Sink, samples_of: Mapping[tuple[str, str], Samples], state: TrainState) -> None:
    """Everything measured of groups of samples, by (phase, group), such as the hard ones among the test samples."""
    metrics: dict[str, np.ndarray] = {}
    for (phase, group), samples in samples_of.items():
        shown = records.add("steps", state, {f"{name}_{phase}_{group}": value for name, value in measure(state, samples).items()})
        for name in ("loss", "accuracy"):
            metrics[f"{phase}/{name}_{group}"] = shown[f"{name}_{phase}_{group}"]
            per_class = shown[f"{name}_per_class_{phase}_{group}"]
            metrics |= {f"class_{name}_{phase}_{group}/{c:02d}": per_class[:, c] for c in samples.labels.unique().tolist()}
    sink(metrics, state.step)


def validation(best: Best, val: Samples, evaluated: Container[int], state: TrainState) -> None:
    """Compares the weights with the best ones at the end of every epoch, but for the steps that are `evaluated` anyway."""
    if state.epoch_ends and state.step not in evaluated:
        best.keep(state, measure(state, val)["accuracy"])


def target(accuracy: float, stop: bool, state: TrainState) -> None:
    """At the end of an epoch: notes whose accuracy on the clean samples it trains on has first reached the target; `stop` freezes these."""
    learner, batches = state.learner, state.batches
    waiting = [r for r in range(learner.networks.repeats) if r not in learner.reached and r not in learner.stopped]
    if state.epoch_ends and waiting:
        met = reaches(learner, batches, accuracy)
        for r in [r for r in waiting if met[r]]:
            learner.reached[r] = state.step
            if stop:
                learner.freeze(r, state.step)


def checkpoint(seconds: float, write: Callable[[TrainState], None]) -> Callback:
    """Writes at step 0, at the end and whenever `seconds` have passed."""
    written = time.monotonic()

    def save(state: TrainState) -> None:
        nonlocal written
        if state.step == 0 or state.last or time.monotonic() - written >= seconds:
            write(state)
            written = time.monotonic()

    return save


def progress(show: Callable[[int, str], None]) -> Callback:
    """A callback that shows loss and accuracy of the last step, at most five times a second."""
    shown = 0.0

    def show_scalars(state: TrainState) -> None:
        nonlocal shown
        now = time.monotonic()
        if state.scalars and (now - shown > 0.2 or state.last):
            shown = now
            loss, accuracy = (state.scalars[name].nanmean().item() for name in ("loss", "accuracy"))
            show(state.step, f"loss {loss:.4f} accuracy {accuracy:.4f}")

    return show_scalars
