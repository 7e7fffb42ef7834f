"""Learners: backpropagation and greedy layer-wise training behind two verbs, update and predict."""

import functools
from contextlib import AbstractContextManager
from math import inf
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from hardbench.errors import TrainingError
from hardbench.models.gmlp import GreedyStack
from hardbench.models.layers import Networks, StackedLinear
from hardbench.products import row_means
from hardbench.registry import OPTIMIZERS, SCHEDULERS
from hardbench.settings import TrainingSettings
from hardbench.training.ace import local_losses, log_softmax
from hardbench.training.local import Local
from hardbench.training.optimizers import PromptAdam


class Learner:
    """R networks in training: backpropagation of the cross entropy. Scalars per repeat are [R]; a frozen repeat's are nan."""

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
        scalars = self.move(inputs, labels)
        self.steps += 1
        return scalars

    def move(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients and the optimiser's step by them; the scalars of `backward`."""
        self.optimizer.zero_grad()
        scalars = self.backward(inputs, labels)
        self.optimizer.step()
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
        """Go on where `state` was taken; TrainingError if it is not of these networks."""
        try:
            self._take(state)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # what torch says of other shapes
            raise TrainingError(
                f"checkpoint: {' '.join(str(error).split())[:200]}; a state of these {self.networks.repeats} networks"
            ) from None

    def _take(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])
        if not 0 <= self.steps <= self.total_steps:
            raise TrainingError(f"checkpoint: step {self.steps}; from 0 to {self.total_steps}")
        self.frozen, self.stopped, self.diverged, self.reached = (dict(state[key]) for key in ("frozen", "stopped", "diverged", "reached"))
        self.networks.load_states(state["networks"])  # maybe not finite: the next loss tells
        for frozen in self.frozen.values():
            self.networks.check(frozen)
        self.networks.load_streams(state["streams"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, known in self.optimizer.state.items():
            for name, value in known.items():
                if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                    raise TrainingError(f"checkpoint: {name} {list(value.shape)} of the optimiser; {list(parameter.shape)}")
        self.resumed = True


class Greedy(Learner):
    """Greedy training of a chain of metric predictors: every layer descends its own loss.

    One backward pass for all local losses is enough: each layer's input is detached, so that L_i reaches layer i alone. Adam works
    element by element, so that one optimiser over all layers is one per layer. And one forward pass is enough: q_{i+1}, the next
    layer BEFORE its update on the detached h_i, is what that layer computes in this very pass.
    """

    def __init__(self, networks: Networks, settings: TrainingSettings, total_steps: int):
        super().__init__(networks, settings, total_steps)
        self.layers = [module for module in networks.modules() if isinstance(module, StackedLinear)]
        self.lambdas = torch.full((len(self.layers), 1), float(settings.lambda_ace), device=self.device)
        self.lambdas[-1] = 0  # the last layer has no next one

    @functools.cached_property
    def local(self) -> Local:
        """The layers in training (a learner that only looks has no buffers)."""
        return Local(self.layers, torch.bfloat16 if self.settings.precision == "bf16" else torch.float32)

    def move(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Every layer moves as soon as its gradient is there; SGD, whose step reads less, goes by `Optimizer.step`."""
        if not isinstance(self.optimizer, PromptAdam):
            return super().move(inputs, labels)
        scalars = self.losses(inputs, labels)
        for parameters, gradients in self.local.gradients():
            self.optimizer.step_some(parameters, gradients)
        return scalars

    def backward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Gradients of the local losses into the parameters; the same scalars as `losses`."""
        scalars = self.losses(inputs, labels)
        for parameters, gradients in self.local.gradients():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
        return scalars

    def losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The local losses, and their gradients at the layers' products.

        Cross entropy and accuracy of the last layer [R], loss and accuracy of every layer [R, L].
        """
        networks = cast(GreedyStack, self.networks)
        with self.local.recording():
            activations = networks.detached_activations(inputs)
            logits = networks.layer_logits(activations).float()  # [R, L, B, K]
            with torch.no_grad():
                log_q = log_softmax(logits.permute(0, 3, 1, 2))
                log_after = torch.cat([log_q[:, :, 1:], log_q[:, :, -1:]], 2)  # of the last layer anything
                each, slopes = local_losses(log_q, log_after, labels, self.lambdas, self.settings.ace_variant)
                losses = row_means(each.flatten(0, 1)).view(each.shape[:-1])
                accuracies = hits(logits.flatten(0, 1), labels.repeat_interleave(len(self.layers), 0)).view(losses.shape)
            logits.backward(slopes.div_(labels.shape[1]).permute(0, 2, 3, 1))
        return {"loss": losses[:, -1], "accuracy": accuracies[:, -1], "layer_loss": losses, "layer_accuracy": accuracies}


def learner(networks: Networks, settings: TrainingSettings, total_steps: int) -> Learner:
    """The learner of these networks."""
    return (Greedy if isinstance(networks, GreedyStack) else Learner)(networks, settings, total_steps)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-ln softmax(logits)[label] per sample, [r, B] in nats, from logits [r, B, K]."""
    columns = logits.float().transpose(1, 2)  # torch's softmax over a short last axis takes ten times as long
    return functional.cross_entropy(columns, labels, reduction="none")


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of samples whose largest logit is the label's, [r]."""
    return row_means((logits.detach().argmax(-1) == labels).float())
