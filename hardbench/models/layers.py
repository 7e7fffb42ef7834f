"""One network as plain PyTorch: a chain of hidden blocks with a head, the blocks' own modules, and how weights are drawn at the start."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from hardbench.errors import ConfigError
from hardbench.models.dropout import own_streams
from hardbench.seeding import Seeds

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "gelu": nn.GELU,
}


def outputs_of(blocks: Iterable[nn.Module], inputs: Tensor, detached: bool = False) -> list[Tensor]:
    """Output of every block of a sequence; `detached` gives each block its input without the graph before it."""
    outputs = []
    for block in blocks:
        inputs = block(inputs.detach() if detached else inputs)
        outputs.append(inputs)
    return outputs


class Chain(nn.Module):
    """One network as plain PyTorch: hidden blocks in sequence, then a head that turns the last activations into logits."""

    def __init__(self, blocks: Sequence[nn.Module], head: nn.Module):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.head = head

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Output of every hidden block, [B, ...] each."""
        return outputs_of(self.blocks, inputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, K]."""
        return self.head(self.blocks(inputs))


class Residual(nn.Module):
    """A block whose input is added to its output."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape as the inputs."""
        return inputs + self.block(inputs)


class UnitScale(nn.Module):
    """Activations [..., D] scaled to a root mean square of 1, so that a layer cannot read the length of its input."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Shape as the inputs."""
        wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        factor = wide.square().mean(-1, keepdim=True).clamp_min(1e-12).rsqrt()
        return inputs * factor.to(inputs.dtype)


def _initialise(network: nn.Module, init: str | None) -> None:
    """Draw Linear and Conv weights by `init` (He et al. 2015, arXiv:1502.01852), biases 0; `default` or None leaves PyTorch's own."""
    draw = {"kaiming_normal": nn.init.kaiming_normal_, "kaiming_uniform": nn.init.kaiming_uniform_}.get(init or "default")
    if draw is not None:
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                draw(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def init_members(make: Callable[[], Chain], streams: Sequence[Seeds], init: str | None) -> list[Chain]:
    """One freshly drawn chain per stream, with dropout streams of its own; `init` names the rule of its weights."""
    members = []
    for seeds in streams:
        with seeds.child("init").as_global():
            chain = make()
            _initialise(chain, init)
        own_streams(chain, seeds)
        members.append(chain)
    return members


def image_side(model: str, input_shape: Sequence[int]) -> tuple[int, int]:
    """Channels and shorter side of image inputs; ConfigError for vectors."""
    if len(input_shape) != 3:
        raise ConfigError(f"model: {model}; takes images, and the data set has vectors of {input_shape[0]} (mlp and gmlp take both)")
    return input_shape[0], min(input_shape[1:])
