"""Optimisers and courses of the learning rate, by name."""

from collections.abc import Iterable
from math import cos, pi

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from hardbench.registry import OPTIMIZERS, SCHEDULERS
from hardbench.settings import TrainSettings


@OPTIMIZERS.add("sgd", reads=("momentum",))
def sgd(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """torch.optim.SGD."""
    return SGD(parameters, lr=settings.lr, momentum=settings.momentum or 0.0, weight_decay=settings.weight_decay, fused=True)


@OPTIMIZERS.add("adam")
def adam(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """torch.optim.Adam."""
    return Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


@OPTIMIZERS.add("adamw")
def adamw(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """torch.optim.AdamW."""
    return AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


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
