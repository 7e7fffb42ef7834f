"""Linear maps of some of their input channels, and 3x3 convolutions on a CPU with fewer products.

Images have the shape [N, C, H, W], in the memory order that is fastest for a map. A map first transforms its input once for all sets of
channels (`prepare`), then adds the outputs of some channels to a start (`into`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

LEAST = 16  # channels from which the transforms of a Bilinear map cost less than they save


@dataclass(frozen=True)
class Scheme:
    """The convolution of a row with three weights as products: outputs = back @ ((kernel @ weights) * (forth @ inputs)).

    Its `tile` outputs need tile + 2 inputs, or `tile` inputs where those at both ends are the zeros of the padding (`whole`).
    """

    tile: int
    whole: bool
    kernel: tuple[tuple[float, ...], ...]
    forth: tuple[tuple[float, ...], ...]
    back: tuple[tuple[float, ...], ...]


_FOUR = Scheme(  # F(4, 3): 6 products in place of 12; its factors up to 8 cost digits that bf16 does not have
    4,
    False,
    tuple(tuple(x / 24 for x in row) for row in ((6, 0, 0), (-4, -4, -4), (-4, 4, -4), (1, 2, 4), (1, -2, 4), (0, 0, 24))),
    ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
    ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
)
_PAIR = Scheme(2, True, ((0, 1, 0), (1, -1, 0), (0, -1, 1)), ((1, 1), (1, 0), (0, 1)), ((1, 0, 1), (1, 1, 0)))  # 3 products in place of 4


def scheme(height: int, width: int, dtype: torch.dtype) -> Scheme | None:
    """The scheme for images of that size; None where torch's own convolution is as fast."""
    if (height, width) == (2, 2):
        return _PAIR
    return _FOUR if height % 4 == width % 4 == 0 and dtype == torch.float32 else None


class Map:
    """A linear map without its bias; `weight` has its input channels on axis 1. `room` is the most numbers held per input: input, output
    and intermediate ones.
    """

    weight: Tensor
    out_shape: tuple[int, ...]
    room: int

    def prepare(self, inputs: Tensor) -> Any:
        """The inputs, transformed once for all sets of channels."""
        raise NotImplementedError

    def apply(self, prepared: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The outputs of prepared inputs by some weight: the map's own, or that of some channels."""
        raise NotImplementedError

    def empty(self, count: int) -> Tensor:
        """An uninitialised tensor for the outputs of `count` inputs."""
        return self.weight.new_empty(count, *self.out_shape)

    def into(self, out: Tensor, prepared: Any, start: Tensor, sign: int = 1, channels: Tensor | None = None) -> None:
        """out = start + sign * (the outputs of the given input channels, by default all); `start` broadcasts."""
        weight = self.weight
        if channels is not None:
            prepared, weight = prepared.index_select(1, channels), weight.index_select(1, channels)
        torch.add(start, self.apply(prepared, weight), alpha=sign, out=out)

    def full(self, inputs: Tensor, bias: Tensor) -> Tensor:
        """The outputs of all channels plus the bias."""
        return self.apply(inputs, self.weight, bias.flatten())


class Direct(Map):
    """torch's convolution: [N, C, H, W] to [N, C', H', W']."""

    def __init__(self, conv: nn.Conv2d, weight: Tensor, inputs: Tensor):
        self.conv, self.weight = conv, weight
        outputs = self.apply(inputs, weight)
        self.out_shape, self.room = tuple(outputs.shape[1:]), inputs[0].numel() + outputs[0].numel()

    def prepare(self, inputs: Tensor) -> Tensor:
        """The inputs, channel by channel in memory."""
        return inputs.contiguous()

    def apply(self, prepared: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, C', H', W']."""
        return functional.conv2d(prepared, weight, bias, self.conv.stride, self.conv.padding, self.conv.dilation)


class Dense(Map):
    """A linear layer on flattened channels: [N, C, ...] to [N, K]."""

    def __init__(self, weight: Tensor, channels: int):
        self.weight, self.out_shape = weight.view(len(weight), channels, -1), (len(weight),)
        self.room = weight.shape[0] + 2 * weight.shape[1]

    def prepare(self, inputs: Tensor) -> Tensor:
        """[N, C, positions]."""
        return inputs.reshape(len(inputs), self.weight.shape[1], -1)

    def apply(self, prepared: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, K]."""
        return functional.linear(prepared.flatten(1), weight.flatten(1), bias)


class Bilinear(Map):
    """A convolution 3x3, stride 1, padding 1, tile by tile: a linear map of the tile, products channel by channel, a linear map back.

    Tiles of 4x4 outputs take 36 products instead of 144 (Winograd's; Lavin & Gray 2016, arXiv:1509.09308), images of 2x2, whose border is
    known to be zero, 9 instead of 16. In memory images are [H, W, C, N], so that every one of the three steps is a matrix product.
    """

    def __init__(self, weight: Tensor, height: int, width: int, how: Scheme):
        outputs, inputs = weight.shape[:2]
        kernel, forth, back = (torch.tensor(rows, dtype=torch.float64) for rows in (how.kernel, how.forth, how.back))
        if how.tile == height == width and not how.whole:
            forth = forth[:, 1:-1]  # the border of the only tile is zero
        self.tile, self.whole = how.tile, how.tile == height == width
        weights = torch.einsum("pi,ocij,qj->pqco", kernel, weight.double().cpu(), kernel)
        self.weight = weights.reshape(-1, inputs, outputs).to(weight).contiguous()
        self.forth, self.back = torch.kron(forth, forth).to(weight), torch.kron(back, back).to(weight)
        self.shape, self.points = (height, width, inputs, outputs), len(self.weight)
        tiles = 1 if self.whole else (height // how.tile) * (width // how.tile)
        self.room = inputs * (height + 2) * (width + 2) + outputs * height * width + self.points * (inputs * tiles + outputs)

    @staticmethod
    def of(conv: nn.Conv2d, weight: Tensor, inputs: Tensor) -> "Bilinear | None":
        """The map of a convolution (with this weight) of such inputs; None if it is of another kind, or would not be faster."""
        height, width = inputs.shape[2:]
        plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        how = scheme(height, width, weight.dtype)
        if not plain or how is None or inputs.device.type != "cpu" or min(weight.shape[:2]) < LEAST:
            return None
        return Bilinear(weight, height, width, how)

    def prepare(self, inputs: Tensor) -> list[Tensor]:
        """The transformed tiles [points, C, N]."""
        return list(self._transformed(inputs))

    def empty(self, count: int) -> Tensor:
        """[count, C', H, W]."""
        height, width, _, outputs = self.shape
        return self.weight.new_empty(height, width, outputs, count).permute(3, 2, 0, 1)

    def into(self, out: Tensor, prepared: Iterable[Tensor], start: Tensor, sign: int = 1, channels: Tensor | None = None) -> None:
        """Tile by tile, the products of the chosen channels alone."""
        weight = self.weight if channels is None else self.weight.index_select(1, channels)
        back, turned = sign * self.back, weight.transpose(1, 2)
        target, base = out.permute(2, 3, 1, 0), start.permute(2, 3, 1, 0).expand(out.permute(2, 3, 1, 0).shape)
        for (rows, columns), tile in zip(self._places(), prepared, strict=True):
            products = torch.bmm(turned, tile if channels is None else tile.index_select(1, channels))
            outputs = (back @ products.view(self.points, -1)).view(self.tile, self.tile, self.shape[3], -1)
            torch.add(outputs, base[rows, columns], out=target[rows, columns])

    def full(self, inputs: Tensor, bias: Tensor) -> Tensor:
        """[N, C', H, W]; no more than one tile is held transformed."""
        out = self.empty(len(inputs))
        self.into(out, self._transformed(inputs), bias)
        return out

    def _places(self) -> Iterator[tuple[slice, slice]]:
        for top in range(0, self.shape[0], self.tile):
            for left in range(0, self.shape[1], self.tile):
                yield slice(top, top + self.tile), slice(left, left + self.tile)

    def _transformed(self, inputs: Tensor) -> Iterator[Tensor]:
        height, width, channels, _ = self.shape
        images = inputs.permute(2, 3, 1, 0)
        if self.whole:
            yield (self.forth @ images.reshape(height * width, -1)).view(self.points, channels, -1)
            return
        padded = images.new_zeros(height + 2, width + 2, channels, len(inputs))
        padded[1:-1, 1:-1] = images
        for rows, columns in self._places():
            tile = padded[rows.start : rows.stop + 2, columns.start : columns.stop + 2]
            yield (self.forth @ tile.reshape(self.forth.shape[1], -1)).view(self.points, channels, -1)


def fast_pool(module: nn.MaxPool2d | nn.AvgPool2d, images: Tensor) -> Tensor:
    """The pooling for any memory order; 2x2 on a CPU as three elementwise operations, many times faster than torch's on [H, W, C, N]."""
    plain = all(value in (2, (2, 2)) for value in (module.kernel_size, module.stride)) and module.padding in (0, (0, 0))
    if not plain or images.device.type != "cpu":
        outputs: Tensor = module(images)
        return outputs
    height, width = images.shape[2] // 2 * 2, images.shape[3] // 2 * 2
    corners = [images[:, :, top:height:2, left:width:2] for top in (0, 1) for left in (0, 1)]
    if isinstance(module, nn.MaxPool2d):
        return torch.maximum(torch.maximum(corners[0], corners[1]), torch.maximum(corners[2], corners[3]))
    return (corners[0] + corners[1] + corners[2] + corners[3]) / 4
