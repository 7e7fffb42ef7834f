"""Dropout with a random stream of its own: nn.Dropout draws from the global generator, which networks would share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardbench.errors import ConfigError
from hardbench.seeding import Seeds

_WHOLE = {nn.Dropout: False, nn.Dropout1d: True, nn.Dropout2d: True, nn.Dropout3d: True}  # True: whole channels are dropped


class Dropout(nn.Module):
    """Sets values to 0 with probability p in training, and scales the others by 1 / (1 - p); `seeds` is set by `init_members`.

    With `whole`, all values of a channel of [B, C, ...] are dropped together.
    """

    def __init__(self, p: float, whole: bool = False):
        super().__init__()
        self.p, self.whole = p, whole
        self.seeds = Seeds(0)
        self._generator: torch.Generator | None = None

    def stream(self, device: torch.device) -> torch.Generator:
        """The generator on the device where the values are."""
        if self._generator is None or self._generator.device != device:
            self._generator = self.seeds.generator(device)
        return self._generator

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape as the inputs."""
        if not self.training or self.p == 0:
            return inputs
        shape = (*inputs.shape[:2], *[1] * (inputs.ndim - 2)) if self.whole else inputs.shape
        keep = torch.rand(shape, generator=self.stream(inputs.device), device=inputs.device) >= self.p
        return inputs * keep / max(1 - self.p, 1e-9)


class StackedDropout(nn.Module):
    """R dropouts on [R, B, ...], each with its own stream."""

    def __init__(self, members: Sequence[Dropout]):
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape as the inputs."""
        if not self.training:
            return inputs
        return torch.stack([member(rows) for member, rows in zip(self.members, inputs, strict=True)])


def own_streams(network: nn.Module, seeds: Seeds) -> None:
    """Replace PyTorch's dropout by this one, and give each its stream."""
    for path, child in list(network.named_modules(remove_duplicate=False)):  # one for every place of PyTorch's
        if type(child) in _WHOLE:
            parent, _, name = path.rpartition(".")
            setattr(network.get_submodule(parent), name, Dropout(child.p, _WHOLE[type(child)]).train(child.training))
    for i, module in enumerate(module for module in network.modules() if isinstance(module, Dropout)):
        module.seeds = seeds.child("dropout", i)


def check_streams(network: nn.Module, shape: Sequence[int]) -> None:
    """ConfigError if a network draws from torch's global stream in training: two inputs go through it, so it must be a copy."""
    before, drew = torch.get_rng_state(), []

    def note(module: nn.Module, inputs: object, outputs: object) -> None:
        if not torch.equal(before, torch.get_rng_state()):
            drew.append(module)

    paths = {module: path for path, module in network.named_modules()}
    for module in paths:
        module.register_forward_hook(note)
    with torch.no_grad():
        network.train()(torch.zeros(2, *shape))
    if drew or not torch.equal(before, torch.get_rng_state()):
        first = drew[0] if drew else network
        drawing = f"{paths[first] or 'it'} ({type(first).__name__}) draws from torch's global stream in training"
        raise ConfigError(f"model: {drawing}; hardbench.models.dropout.Dropout has a stream of its own")
