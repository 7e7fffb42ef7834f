"""A learner: R networks in training by backpropagation, with two main methods, update and predict; greedy.py has the greedy learner."""

from contextlib import AbstractContextManager
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from hardbench.errors import TrainingError
from hardbench.models.networks import Networks
from hardbench.products import row_means
from hardbench.registry import OPTIMIZERS, SCHEDULERS
from hardbench.settings import TrainingSettings


class Learner:
    """R networks in training by backpropagation of the cross entropy.

    Scalars are [R], one number per repeat; those of a repeat that no longer learns have no meaning (nan where networks are looped).
    """

    def __init__(self, networks: Networks, settings: TrainingSettings, total_steps: int):
        self.networks = networks
        self.settings = settings
        self.total_steps = total_steps
        self.steps = 0  # updates made
        self.resumed = False  # whether it goes on from a stored state
        parameters = list(networks.parameters())
        self.device = parameters[0].device
        self.optimizer = OPTIMIZERS[settings.optimizer].call(parameters, settings)
        self.factor = SCHEDULERS[settings.scheduler].call
        self.frozen: dict[int, dict[str, Tensor]] = {}
        self.stopped: dict[int, int] = {}  # repeat -> the step it stopped at
        self.reached: dict[int, int] = {}  # repeat -> the step, the end of an epoch, at which it first met the target accuracy
        self.diverged: dict[int, int] = {}  # repeat -> the step whose loss was not finite

    @property
    def active(self) -> list[bool]:
        """Per repeat, True while it still learns [R]."""
        return [r not in self.frozen for r in range(self.networks.repeats)]

    def lr_at(self, step: int) -> float:
        """Learning rate of the update that follows `step` updates."""
        return self.settings.lr * self.factor(step, self.total_steps, self.settings)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the settings ask for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def update(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One optimiser step on inputs [R, B, ...] and labels [R, B]; loss and accuracy [R] of the batch before it."""
        if not self.networks.training:
            self.networks.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr_at(self.steps)
        self.optimizer.zero_grad()
        scalars = self.backward(inputs, labels)
        self.optimizer.step()
        self.steps += 1
        return scalars

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Put the gradients into the parameters; loss and accuracy [R] of the batch."""
        repeats = self.networks.repeats
        loss, accuracy = torch.full((2, repeats), torch.nan, device=self.device)
        for rows, logits_of in self.networks.parts(self.active):
            with self.arithmetic():
                logits = logits_of(inputs)
            losses = row_means(cross_entropy(logits, labels[rows]))
            losses.sum().backward()
            loss[rows], accuracy[rows] = losses.detach(), hits(logits, labels[rows])
        return {"loss": loss, "accuracy": accuracy}

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Activations of every hidden layer [R, B, D], in eval mode without gradients."""
        if self.networks.training:
            self.networks.eval()
        with torch.inference_mode(), self.arithmetic():
            return self.networks.activations(inputs)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Activations of the last hidden layer [R, B, D] and logits [R, B, K], in eval mode without gradients."""
        if self.networks.training:
            self.networks.eval()
        with torch.inference_mode(), self.arithmetic():
            features = self.networks.features(inputs)
            return features, self.networks.logits(features)

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits [R, B, K] in eval mode."""
        return self.forward(inputs)[1]

    def freeze(self, r: int, step: int) -> None:
        """End the training of repeat r: its weights stay what they are now."""
        self.frozen[r] = self.networks.member_state(r)
        self.stopped[r] = step

    def measured_until(self, r: int) -> float:
        """The last step at which repeat r has finite numbers; inf while it learns."""
        return self.diverged[r] - 1 if r in self.diverged else self.stopped.get(r, inf)

    def settle(self) -> None:
        """Put the frozen networks back to the weights that they ended with (the optimiser of a stack moves all members)."""
        for r, state in self.frozen.items():
            self.networks.load_member(r, state)

    def settled_states(self) -> list[dict[str, Tensor]]:
        """state_dict of every network, the frozen ones settled."""
        self.settle()
        return self.networks.states()

    def state(self) -> dict[str, Any]:
        """Everything that `load` needs to go on: weights, random streams, optimiser, steps made and the repeats that have stopped."""
        return {
            "networks": self.settled_states(),
            "streams": self.networks.streams(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "frozen": self.frozen,
            "stopped": self.stopped,
            "reached": self.reached,
            "diverged": self.diverged,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the step at which `state` was taken; TrainingError if it is not of these networks."""
        try:
            self.steps = int(state["steps"])
            if not 0 <= self.steps <= self.total_steps:
                raise TrainingError(f"checkpoint: step {self.steps}; from 0 to {self.total_steps}")
            self.frozen, self.stopped = dict(state["frozen"]), dict(state["stopped"])
            self.diverged, self.reached = dict(state["diverged"]), dict(state["reached"])
            self.networks.load_states(state["networks"])  # may not be finite: the next loss shows it
            for frozen in self.frozen.values():
                self.networks.check(frozen)
            self.networks.load_streams(state["streams"])
            self.optimizer.load_state_dict(state["optimizer"])
            for parameter, buffers in self.optimizer.state.items():
                for name, value in buffers.items():
                    if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                        raise TrainingError(f"checkpoint: {name} {list(value.shape)} of the optimiser; {list(parameter.shape)}")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # torch's errors for other shapes
            reason = " ".join(str(error).split())[:200]
            raise TrainingError(f"checkpoint: {reason}; a state of these {self.networks.repeats} networks") from None
        self.resumed = True


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-ln softmax(logits)[label] per sample, [r, B] in nats, from logits [r, B, K]."""
    columns = logits.float().transpose(1, 2)  # torch's softmax over a short last axis is ten times slower
    return functional.cross_entropy(columns, labels, reduction="none")


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose largest logit is the label's, [r]."""
    return row_means((logits.detach().argmax(-1) == labels).float())
