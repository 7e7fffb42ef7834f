"""The predictions of a network when only some channels of one layer are kept, for many sets of channels of every layer.

A masked channel is a constant, so that a layer's input is computed once for all sets, and the next layer's output is
next(constants) + the kept channels' part, or next(all channels) - the masked channels' part, whichever has fewer channels. Batch norm is
folded into the products. Only the layers after these are computed set by set, several sets in one product where their images are small.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import comb, prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hardbench.errors import ConfigError
from hardbench.masking.convolutions import Bilinear, Dense, Direct, Map, fast_pool
from hardbench.metrics.classification import confusion_counts
from hardbench.models.dropout import Dropout
from hardbench.models.layers import ACTIVATIONS, Chain

MEMORY = 1 << 29
WIDE = 1024  # images in one product beyond which nothing is gained
_POINTWISE = tuple(type(make()) for make in ACTIVATIONS.values())
_NOTHING = (Dropout, nn.Dropout, nn.Identity, nn.Flatten)  # in eval mode; Dense flattens


@dataclass
class FoldedBlock:
    """A convolution or linear layer, with batch norm folded in, and the activation and pooling after it."""

    name: str  # its place in a flat sequence of modules, `features.4`
    module: str  # its path in the network
    channels: int
    map: Map
    bias: Tensor  # [1, C] or [1, C, 1, 1]
    activation: nn.Module | None
    pooling: list[nn.MaxPool2d | nn.AvgPool2d]
    shape: tuple[int, ...]  # of one image's output, after pooling
    multiplications: int  # of one image, by the plain formula

    def activate(self, values: Tensor) -> Tensor:
        """The activation of the map's output; in place where torch can."""
        if isinstance(self.activation, nn.ReLU):
            return values.relu_()
        return values if self.activation is None else self.activation(values)

    def pool(self, values: Tensor) -> Tensor:
        """The pooling of activations: the input of the next block."""
        for pooling in self.pooling:
            values = fast_pool(pooling, values)
        return values


def subsets(channels: int, count: int, generator: torch.Generator) -> Tensor:
    """Distinct sets of channels bool [S, n], S = count or all 2^n - 1 there are; k uniform on 1..n, then k channels without replacement.

    A set that was drawn before is replaced by another one of the same k; where there is none left, k is drawn again.
    """
    masks: dict[bytes, Tensor] = {}
    drawn = [0] * (channels + 1)
    while len(masks) < min(count, 2**channels - 1):
        size = int(torch.randint(1, channels + 1, (), generator=generator))
        while drawn[size] < comb(channels, size):
            mask = torch.zeros(channels, dtype=torch.bool)
            mask[torch.randperm(channels, generator=generator)[:size]] = True
            key = mask.numpy().tobytes()
            if key not in masks:
                masks[key] = mask
                drawn[size] += 1
                break
    return torch.stack(list(masks.values()))


def _leaves(chain: Chain) -> list[tuple[str, nn.Module]]:
    """The modules of a chain in the order they are run, with their paths."""
    modules = chain.named_modules(remove_duplicate=False)
    return [(path, module) for path, module in modules if not isinstance(module, Chain | nn.Sequential)]


def check_sequential(chain: Chain, model: str) -> None:
    """ConfigError unless the network is a sequence of convolutions, linear layers, batch norms behind them, activations and pooling."""
    before: nn.Module | None = None
    for _, module in _leaves(chain):
        product = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros")
        norm = isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d)
        activation = isinstance(module, _POINTWISE) and isinstance(before, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
        if not (product or norm or activation or isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, *_NOTHING))):
            raise ConfigError(f"model: {model}; one whose layers run in sequence (vgg11 to vgg19, cnn, simple_cnn, mlp)")
        before = module


def folded_blocks(chain: Chain, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> list[FoldedBlock]:
    """A network in eval mode as a list of blocks; the output of the last one is the logits."""
    blocks: list[FoldedBlock] = []
    modules = _leaves(chain)
    device = next(chain.parameters()).device
    values = torch.zeros(1, *input_shape, device=device, dtype=dtype)
    for place, (path, module) in enumerate(modules):
        if isinstance(module, nn.Conv2d | nn.Linear):
            following = modules[place + 1][1] if place + 1 < len(modules) else None
            weight, bias = (part.to(dtype) for part in _folded(module, following if isinstance(following, nn.BatchNorm2d) else None))
            linear = _map(module, weight, values)
            bias = bias.view(1, -1, *(1, 1) * isinstance(module, nn.Conv2d))
            values = linear.full(values, bias)
            multiplications = weight.numel() * prod(values.shape[2:])
            shape = tuple(values.shape[1:])
            blocks.append(FoldedBlock(f"features.{place}", path, len(weight), linear, bias, None, [], shape, multiplications))
        elif isinstance(module, _POINTWISE):
            blocks[-1].activation = module
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            blocks[-1].pooling.append(module)
            values = fast_pool(module, values)
            blocks[-1].shape = tuple(values.shape[1:])
    return blocks


def _folded(module: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Weight and bias, float64, of a layer with the batch norm after it."""
    weight = module.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = norm.bias.detach().double() + scale * (bias - norm.running_mean.double())
    return weight, bias


def _map(module: nn.Conv2d | nn.Linear, weight: Tensor, values: Tensor) -> Map:
    if isinstance(module, nn.Linear):
        return Dense(weight, values.shape[1])
    return Bilinear.of(module, weight, values) or Direct(module, weight, values)


def mask_cost(blocks: Sequence[FoldedBlock], layer: int) -> int:
    """Multiplications for one mask of a layer and one image, about: a mask keeps or removes a quarter of the channels on average."""
    return blocks[layer + 1].multiplications // 4 + sum(block.multiplications for block in blocks[layer + 2 :])


def masked_layers(chain: Chain) -> list[int]:
    """Positions among the blocks of the layers whose channels are masked: the convolutions, or without any the hidden linear layers."""
    maps = [module for _, module in _leaves(chain) if isinstance(module, nn.Conv2d | nn.Linear)]
    convolutions = [place for place, module in enumerate(maps) if isinstance(module, nn.Conv2d)]
    return convolutions or list(range(len(maps) - 1))


class Masker:
    """One network under masks: `masks` by layer (a position among the blocks), bool [S, n], True for a channel that is kept.

    `memory` bounds the bytes of values held at once, whatever the number of sets or images. A masked channel has the constant value of
    `set_constants`.
    """

    def __init__(
        self, chain: Chain, input_shape: Sequence[int], masks: Mapping[int, Tensor], precision: str = "fp32", memory: int = MEMORY
    ):
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.blocks = folded_blocks(chain.eval(), input_shape, self.dtype)
        self.masks = {layer: mask.to(self.blocks[0].bias.device) for layer, mask in masks.items()}
        self.memory = memory
        self.constants: dict[int, Tensor] = {}
        self.starts: dict[int, Tensor] = {}

    def images_in_memory(self, first: int) -> int:
        """The number of images for which half the memory is enough in the blocks from `first` on."""
        return self.memory // 2 // (2 * self.dtype.itemsize * max(block.map.room for block in self.blocks[first:]))

    def batch_size(self, wanted: int) -> int:
        """The number of images that are computed at once: as many as wanted, fewer where the memory does not hold them."""
        return max(1, min(wanted, self.images_in_memory(0)))

    @torch.inference_mode()
    def set_constants(self, mode: str, batches: Callable[[], Iterator[Tensor]]) -> None:
        """Set the value of masked channels.

        conv_weight: the activation of the bias that convolution and batch norm have with weights of 0; activation_zero: 0; activation_mean:
        the channel's mean activation over all batches.
        """
        means = self._means(batches()) if mode == "activation_mean" else {}
        for layer in self.masks:
            block, following = self.blocks[layer], self.blocks[layer + 1]
            constant = torch.zeros_like(block.bias)
            if mode == "conv_weight":
                constant = block.activate(block.bias.clone())
            elif mode == "activation_mean":
                constant = means[layer].to(block.bias).view_as(block.bias)
            self.constants[layer] = constant
            self.starts[layer] = following.map.full(constant.expand(1, *block.shape).contiguous(), following.bias)

    def _means(self, batches: Iterator[Tensor]) -> dict[int, Tensor]:
        """Mean activation of every channel of the masked layers over all images and positions, [n] by layer."""
        sums: dict[int, Tensor] = {}
        count = 0
        for inputs in batches:
            count += len(inputs)
            values = inputs.to(self.dtype)
            for layer, block in enumerate(self.blocks[: max(self.masks) + 1]):
                activations = block.activate(block.map.full(values, block.bias))
                if layer in self.masks:
                    batch_sum = activations.float().unsqueeze(-1).flatten(2).mean(2).double().sum(0)
                    sums[layer] = sums[layer] + batch_sum if layer in sums else batch_sum
                values = block.pool(activations)
        return {layer: total / count for layer, total in sums.items()}

    @torch.inference_mode()
    def logits(self, inputs: Tensor, layers: Sequence[int]) -> Iterator[tuple[int, slice, Tensor]]:
        """Logits of a batch [B, ...] under the masks of the given layers, part by part: (layer, rows of its masks, [S', B, K]).

        The last is (-1, the only row, [1, B, K]): the network without a mask.
        """
        block = self.blocks[0]
        out = block.map.full(inputs.to(self.dtype), block.bias)
        for layer, following in enumerate(self.blocks[1:]):
            values = block.pool(block.activate(out))
            if layer in layers:
                prepared = following.map.prepare(values - self.constants[layer])
                out = following.map.empty(len(inputs))
                following.map.into(out, prepared, self.starts[layer])
                for rows, masked in self._masked(layer, prepared, out):
                    yield layer, rows, self._rest(layer + 1, masked).view(rows.stop - rows.start, len(inputs), -1)
            else:
                out = following.map.full(values, following.bias)
            block = following
        yield -1, slice(0, 1), out.float().unsqueeze(0)

    def _masked(self, layer: int, prepared: Any, unmasked: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The map after a layer for several masks at once, [S' * B, ...], with the rows of the masks."""
        masks, following, count = self.masks[layer], self.blocks[layer + 1].map, len(unmasked)
        at_once = max(1, min(self.images_in_memory(layer + 1), WIDE) // count)
        for first in range(0, len(masks), at_once):
            rows = slice(first, min(first + at_once, len(masks)))
            out = following.empty(count * (rows.stop - first))
            for outputs, mask in zip(out.split(count), masks[rows], strict=True):
                few = 2 * int(mask.sum()) <= len(mask)
                channels = (mask if few else ~mask).nonzero().flatten()
                if len(channels):
                    following.into(outputs, prepared, self.starts[layer] if few else unmasked, 1 if few else -1, channels)
                else:
                    outputs.copy_(unmasked)
            yield rows, out

    def _rest(self, first: int, out: Tensor) -> Tensor:
        """Logits from the output of the map of block `first`."""
        for block, following in itertools.pairwise(self.blocks[first:]):
            out = following.map.full(block.pool(block.activate(out)), following.bias)
        return out.float()


class ConfusionCounts:
    """Confusions counted so far, by layer int64 [P, S, K, K] (part of the samples, mask, true class, predicted class).

    Layer -1 is the network without a mask (S = 1). Samples are counted in P parts, such as the easy and the hard ones.
    """

    def __init__(self, masks: Mapping[int, Tensor], classes: int, parts: int = 1):
        self.counts = {layer: torch.zeros(parts, len(mask), classes, classes, dtype=torch.int64) for layer, mask in masks.items()}
        self.counts[-1] = torch.zeros(parts, 1, classes, classes, dtype=torch.int64)
        self.images = 0  # images that are counted for all layers
        self.layers: list[int] = []  # layers for which the next batch of images is counted, too

    def add(self, layer: int, rows: slice, labels: Tensor, predicted: Tensor, part: Tensor | None = None) -> None:
        """Count predictions [S', B] of samples with labels [B], in the parts [B] from 0 on (None: there is one part)."""
        for p, counts in enumerate(self.counts[layer]):
            chosen: slice | Tensor = slice(None) if part is None else part == p
            counts[rows] += confusion_counts(labels[chosen], predicted[:, chosen], counts.shape[-1]).cpu()

    def state(self) -> dict[str, Any]:
        """The counts as arrays."""
        names = {f"counts_{layer}": counts.numpy() for layer, counts in self.counts.items()}
        return {**names, "images": np.array(self.images), "layers": np.array(self.layers, dtype=np.int64)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self.counts = {layer: torch.from_numpy(state[f"counts_{layer}"].copy()).view(counts.shape) for layer, counts in self.counts.items()}
        self.images, self.layers = int(state["images"]), [int(layer) for layer in state["layers"]]


def count_confusions(
    masker: Masker, inputs: Callable[[int, int], Tensor], labels: Tensor, counts: ConfusionCounts, batch: int, part: Tensor | None = None
) -> Iterator[int]:
    """Fill the counts, batch by batch of images; yields each layer as it is counted for a batch, and -1 at the end of the batch.

    `inputs` gives the standardised images from one index to another; `part` [N] is the part of each sample (see ConfusionCounts). Stopped
    after any yield, and started again with the same counts, it continues with the next layer.
    """
    size, layers = masker.batch_size(batch), sorted(masker.masks)
    while counts.images < len(labels):
        first, stop = counts.images, min(counts.images + size, len(labels))
        batch_part = None if part is None else part[first:stop]
        left = [layer for layer in layers if layer not in counts.layers]
        for layer, rows, logits in masker.logits(inputs(first, stop), left):
            counts.add(layer, rows, labels[first:stop], logits.argmax(-1), batch_part)
            if layer >= 0 and rows.stop == len(masker.masks[layer]):
                counts.layers.append(layer)
                yield layer
        counts.images, counts.layers = stop, []
        yield -1
