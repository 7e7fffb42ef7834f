"""Convolutional networks: cnn (depth x width) and simple_cnn (32, 64 channels and a hidden linear layer)."""

import itertools
from collections.abc import Sequence
from math import log2

from torch import nn

from hardbench.errors import ConfigError
from hardbench.models.layers import ACTIVATIONS, Chain, image_side, init_members
from hardbench.models.networks import Looped
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import ModelSettings


def _conv(inputs: int, outputs: int, activation: str, pooling: str) -> nn.Sequential:
    """Conv 3x3, activation, 2x2 pooling."""
    pool = nn.MaxPool2d(2) if pooling == "max" else nn.AvgPool2d(2)
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), ACTIVATIONS[activation](), pool)


def _pooled(shape: Sequence[int], times: int) -> int:
    return (shape[1] >> times) * (shape[2] >> times)


@MODELS.add("cnn", reads=("depth", "width", "activation", "init", "pooling"), depth=2, width=32)
def build_cnn(input_shape: Sequence[int], num_classes: int, settings: ModelSettings, streams: Sequence[Seeds]) -> Looped:
    """R networks of depth x (Conv 3x3, activation, pool) and a linear head on the flattened last output."""
    channels, side = image_side("cnn", input_shape)
    depth, width = settings.depth or 0, settings.width or 0
    if depth > int(log2(side)):
        raise ConfigError(f"depth: {depth}; at most {int(log2(side))} for images of side {side} (every layer halves it)")

    def make() -> Chain:
        sizes = [channels, *([width] * depth)]
        blocks = [_conv(a, b, settings.activation, settings.pooling) for a, b in itertools.pairwise(sizes)]
        blocks[-1].append(nn.Flatten())
        return Chain(blocks, nn.Linear(width * _pooled(input_shape, depth), num_classes))

    return Looped(init_members(make, streams, settings.init), input_shape)


@MODELS.add("simple_cnn", reads=("activation", "init", "pooling"))
def build_simple(input_shape: Sequence[int], num_classes: int, settings: ModelSettings, streams: Sequence[Seeds]) -> Looped:
    """R networks conv 32, pool, conv 64, pool, Linear 128, head."""
    channels, side = image_side("simple_cnn", input_shape)
    if side < 4:
        raise ConfigError(f"model: simple_cnn; images of side 4 at least, and the data set has side {side}")

    def make() -> Chain:
        flat = nn.Sequential(nn.Flatten(), nn.Linear(64 * _pooled(input_shape, 2), 128), ACTIVATIONS[settings.activation]())
        first = _conv(channels, 32, settings.activation, settings.pooling)
        return Chain([first, _conv(32, 64, settings.activation, settings.pooling), flat], nn.Linear(128, num_classes))

    return Looped(init_members(make, streams, settings.init), input_shape)
