"""Optimisers and learning rate schedules, by name. All optimisers are torch's, in their fused form."""

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
    """torch.optim.Adam (Kingma & Ba 2015, arXiv:1412.6980)."""
    return Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


@OPTIMIZERS.add("adamw")
def adamw(parameters: Iterable[Tensor], settings: TrainSettings) -> Optimizer:
    """torch.optim.AdamW: decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    return AdamW(parameters, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)


@SCHEDULERS.add("constant")
def constant(step: int, total: int, settings: TrainSettings) -> float:
    """Factor 1 at every step."""
    return 1.0


@SCHEDULERS.add("cosine")
def cosine(step: int, total: int, settings: TrainSettings) -> float:
    """Factor from 1 at step 0 along half a cosine towards 0 at the end (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1 + cos(pi * step / total))


@SCHEDULERS.add("warmup_cosine", reads=("warmup",))
def warmup_cosine(step: int, total: int, settings: TrainSettings) -> float:
    """Factor growing linearly to 1 in the first `warmup` share of the steps, then half a cosine towards 0."""
    rising = int(settings.warmup * total)
    if step < rising:
        return (step + 1) / rising
    return cosine(step - rising, max(1, total - rising), settings)
