"""Multi-layer perceptron: depth x (Linear, activation), then a Linear head."""

import itertools
from collections.abc import Sequence
from math import prod

from torch import nn

from hardbench.models.layers import ACTIVATIONS, Chain, init_members
from hardbench.models.stacked import Stacked
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import ModelSettings


def hidden_blocks(input_shape: Sequence[int], widths: Sequence[int], activation: str) -> list[nn.Module]:
    """Blocks Linear, activation of the given widths on flattened inputs."""
    sizes = [prod(input_shape), *widths]
    blocks = [nn.Sequential(nn.Linear(a, b), ACTIVATIONS[activation]()) for a, b in itertools.pairwise(sizes)]
    blocks[0].insert(0, nn.Flatten())
    return list(blocks)


@MODELS.add("mlp", reads=("depth", "width", "widths", "activation", "init"), depth=2, width=128, layer_metrics=("all",))
def build(input_shape: Sequence[int], num_classes: int, settings: ModelSettings, streams: Sequence[Seeds]) -> Stacked:
    """R multi-layer perceptrons, one per stream."""
    widths = settings.widths or (settings.width or 0,) * (settings.depth or 0)

    def make() -> Chain:
        return Chain(hidden_blocks(input_shape, widths, settings.activation), nn.Linear(widths[-1], num_classes))

    return Stacked(init_members(make, streams, settings.init), input_shape)
