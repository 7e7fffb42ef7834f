"""Optimisers and courses of the learning rate, by name."""

from collections.abc import Iterable, Sequence
from math import cos, pi

import torch
from torch import Tensor
from torch.optim import SGD, Adam, Optimizer

from hardbench.registry import OPTIMIZERS, SCHEDULERS
from hardbench.settings import TrainSettings


@OPTIMIZERS.add("sgd", reads=("momentum",))
def sgd(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """torch.optim.SGD."""
    return SGD(parameters, lr=settings.lr, momentum=settings.momentum or 0.0, weight_decay=settings.weight_decay, fused=True)


class PromptAdam(Adam):
    """torch's fused Adam of one parameter group, which can also move some parameters at a time.

    `step` has torch's bookkeeping (groups, hooks, profiling) around every call: 0.1 to 0.2 ms, where a large layer's update takes 0.5.
    """

    @torch.no_grad()
    def step_some(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """What `step` does to these parameters, bit for bit."""
        group, states = self.param_groups[0], [self.state[parameter] for parameter in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        (torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_)(
            list(parameters),
            list(gradients),
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )


@OPTIMIZERS.add("adam")
def adam(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """torch.optim.Adam."""
    return PromptAdam(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


@OPTIMIZERS.add("adamw")
def adamw(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """torch.optim.AdamW."""
    return PromptAdam(parameters, lr=settings.lr, weight_decay=settings.weight_decay, decoupled_weight_decay=True, fused=True)


@SCHEDULERS.add("constant")
def constant(step: int, total: int, settings: TrainSettings) -> float:
    """Factor 1 at every step."""
    return 1.0


@SCHEDULERS.add("cosine")
def cosine(step: int, total: int, settings: TrainSettings) -> float:
    """Factor from 1 at step 0 along half a cosine towards 0 at the end."""
    return 0.5 * (1 + cos(pi * step / total))


@SCHEDULERS.add("warmup_cosine", reads=("warmup",))
def warmup_cosine(step: int, total: int, settings: TrainSettings) -> float:
    """Factor growing linearly to 1 over the warm-up's share of the steps, then half a cosine."""
    rising = int(settings.warmup * total)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + cos(pi * (step - rising) / max(1, total - rising)))
