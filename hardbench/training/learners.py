"""Learners: backpropagation and greedy layer-wise training behind two verbs, update and predict."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf, log
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from hardbench.models.gmlp import GreedyStack
from hardbench.models.layers import Networks
from hardbench.products import row_means
from hardbench.registry import OPTIMIZERS, SCHEDULERS
from hardbench.settings import TrainingSettings


class Learner:
    """R networks in training: backpropagation of the cross entropy. Scalars per repeat are [R]; a frozen repeat's are nan."""

    def __init__(self, networks: Networks, settings: TrainingSettings, total_steps: int):
        self.networks = networks
        self.settings = settings
        self.total_steps = total_steps
        self.steps = 0  # updates made
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
        """Which repeats still learn."""
        return [r not in self.frozen for r in range(self.networks.repeats)]

    @property
    def lr(self) -> float:
        """Learning rate of the coming update."""
        return self.settings.lr * self.factor(self.steps, self.total_steps, self.settings)

    def arithmetic(self) -> AbstractContextManager[Any]:
        """Autocast to bf16 where the settings ask for it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16")

    def update(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One optimiser step on inputs [R, B, ...] and labels [R, B]; loss and accuracy [R] of the batch before it."""
        if not self.networks.training:
            self.networks.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.zero_grad()
        scalars = self.backward(inputs, labels)
        self.optimizer.step()
        self.steps += 1
        return scalars

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients into the parameters; loss and accuracy [R]."""
        repeats = self.networks.repeats
        loss, accuracy = torch.full((2, repeats), torch.nan, device=self.device)
        for rows, logits_of in self.networks.parts(self.active):
            with self.arithmetic():
                logits = logits_of(inputs)
            own = row_means(cross_entropy(logits, labels[rows]))
            own.sum().backward()
            loss[rows], accuracy[rows] = own.detach(), hits(logits, labels[rows])
        return {"loss": loss, "accuracy": accuracy}

    def look(self, inputs: Tensor) -> list[Tensor]:
        """Activations of every hidden layer [R, B, D], in eval mode without gradients."""
        if self.networks.training:
            self.networks.eval()
        with torch.inference_mode(), self.arithmetic():
            return self.networks.activations(inputs)

    def glance(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Activations of the last hidden layer [R, B, D] and logits [R, B, K], in eval mode without gradients."""
        if self.networks.training:
            self.networks.eval()
        with torch.inference_mode(), self.arithmetic():
            features = self.networks.features(inputs)
            return features, self.networks.logits(features)

    def predict(self, inputs: Tensor) -> Tensor:
        """Logits [R, B, K] in eval mode."""
        return self.glance(inputs)[1]

    def freeze(self, r: int, step: int) -> None:
        """Repeat r learns no more; its weights stay what they are now."""
        self.frozen[r] = self.networks.member_state(r)
        self.stopped[r] = step

    def measured_until(self, r: int) -> float:
        """The last step at which repeat r has numbers."""
        return self.diverged[r] - 1 if r in self.diverged else self.stopped.get(r, inf)

    def settle(self) -> None:
        """Give frozen repeats their weights back (a stacked optimiser moves all members)."""
        for r, state in self.frozen.items():
            self.networks.load_member(r, state)

    def state(self) -> dict[str, Any]:
        """Parameters, optimiser, position and frozen repeats."""
        self.settle()
        return {
            "networks": self.networks.states(),
            "streams": self.networks.streams(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "frozen": self.frozen,
            "stopped": self.stopped,
            "reached": self.reached,
            "diverged": self.diverged,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.networks.load_states(state["networks"])
        self.networks.load_streams(state["streams"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.frozen = state["steps"], state["frozen"]
        self.stopped, self.diverged, self.reached = state["stopped"], state["diverged"], state["reached"]


class Greedy(Learner):
    """Greedy training of a chain of metric predictors: every layer descends its own loss.

    One backward pass over the sum of the local losses is all: each layer's input is detached, so that L_i reaches layer i
    alone. Adam works element by element, so that one optimiser over all layers is one per layer. And one forward pass is
    enough: q_{i+1}, the next layer BEFORE its update on the detached h_i, is what that layer computes in this very pass.
    """

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients of the local losses; the last layer's cross entropy and accuracy [R], and per layer [R, L]."""
        networks = cast(GreedyStack, self.networks)
        with self.arithmetic():
            activations = networks.detached_activations(inputs)
            logits = torch.stack(networks.layer_logits(activations)).float()  # [L, R, B, K]
        layers = len(logits)
        log_q = functional.log_softmax(logits, -1)
        entropies = -row_means(log_q.gather(-1, labels.expand(layers, -1, -1).unsqueeze(-1)).flatten(0, 1).squeeze(-1)).view(layers, -1)
        losses = entropies
        if self.settings.lambda_ace and layers > 1:
            apart = row_means(ACE[self.settings.ace_variant](log_q[:-1], log_q[1:].detach()).flatten(0, 1)).view(layers - 1, -1)
            losses = entropies - self.settings.lambda_ace * functional.pad(apart, (0, 0, 0, 1))
        losses.sum().backward()
        with torch.no_grad():
            right = row_means((logits.argmax(-1) == labels).float().flatten(0, 1)).view(layers, -1).t()
        return {"loss": entropies[-1].detach(), "accuracy": right[:, -1], "layer_loss": losses.detach().t(), "layer_accuracy": right}


def learner(networks: Networks, settings: TrainingSettings, total_steps: int) -> Learner:
    """The learner of these networks."""
    return (Greedy if isinstance(networks, GreedyStack) else Learner)(networks, settings, total_steps)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-ln softmax(logits)[label] per sample, [r, B] in nats, from logits [r, B, K]."""
    flat = functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    return flat.view(labels.shape)


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose largest logit is the label's, [r]."""
    return row_means((logits.detach().argmax(-1) == labels).float())


def _entropy(log_a: Tensor, log_b: Tensor) -> Tensor:
    """H(a, b) = -sum_c a_c ln b_c over classes, b clamped at 1e-12."""
    return -(log_a.exp() * log_b.clamp_min(log(1e-12))).sum(-1)


def _js(log_q: Tensor, log_after: Tensor) -> Tensor:
    middle = ((log_q.exp() + log_after.exp()) / 2).log()
    return _entropy(middle, middle) - (_entropy(log_q, log_q) + _entropy(log_after, log_after)) / 2


ACE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce_i_next": lambda q, after: _entropy(q, after),
    "ce_next_i": lambda q, after: _entropy(after, q),
    "js": _js,
    "sym_kl": lambda q, after: _entropy(q, after) - _entropy(q, q) + _entropy(after, q) - _entropy(after, after),
}
"""Distance of q_i from the constant q_{i+1}, both given by their logarithms [..., B, K], per sample [..., B]: cross entropies,
Jensen-Shannon, symmetric KL."""
