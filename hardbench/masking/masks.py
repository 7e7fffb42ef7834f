"""What a network predicts when only some channels of one layer are left, for many sets of channels of every layer.

A masked channel is a constant, so that a layer's input is computed once for all sets, and so is the share of the next layer that no mask
can change: next(masked) = next(constants) + kept channels' part, or next(all) - masked channels' part, whichever is less. Batch norm is
folded into the products. Only what follows is run set by set, several sets in one product where their images are small.
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
from hardbench.masking.convolutions import Bilinear, Dense, Direct, Map, pool
from hardbench.models.dropout import Dropout
from hardbench.models.layers import ACTIVATIONS, Chain

MEMORY = 1 << 29
WIDE = 1024  # images in one product beyond which nothing is gained
_POINTWISE = tuple(type(make()) for make in ACTIVATIONS.values())
_NOTHING = (Dropout, nn.Dropout, nn.Identity, nn.Flatten)  # in eval mode; Dense flattens


@dataclass
class Step:
    """One product with what comes behind it: activation, then pooling."""

    name: str  # where the product stands in a flat sequence, `features.4`
    module: str  # its path in the network
    channels: int
    map: Map
    bias: Tensor  # [1, C] or [1, C, 1, 1]
    activation: nn.Module | None
    after: list[Callable[[Tensor], Tensor]]
    shape: tuple[int, ...]  # of what the next product gets
    work: int  # multiplications of one image, by the plain formula

    def active(self, values: Tensor) -> Tensor:
        """The activation of what the product gave; in place where torch can."""
        if isinstance(self.activation, nn.ReLU):
            return values.relu_()
        return values if self.activation is None else self.activation(values)

    def passed(self, values: Tensor) -> Tensor:
        """What the next product gets."""
        for module in self.after:
            values = module(values)
        return values


def subsets(channels: int, count: int, generator: torch.Generator) -> Tensor:
    """Distinct sets of channels bool [S, n], S = count or all 2^n - 1 there are; k uniform on 1..n, then k channels without replacement.

    A set that was drawn before is drawn again with the same k; k itself only where all its sets are used up.
    """
    found: dict[bytes, Tensor] = {}
    drawn = [0] * (channels + 1)
    while len(found) < min(count, 2**channels - 1):
        size = int(torch.randint(1, channels + 1, (), generator=generator))
        while drawn[size] < comb(channels, size):
            mask = torch.zeros(channels, dtype=torch.bool)
            mask[torch.randperm(channels, generator=generator)[:size]] = True
            key = mask.numpy().tobytes()
            if key not in found:
                found[key] = mask
                drawn[size] += 1
                break
    return torch.stack(list(found.values()))


def _leaves(chain: Chain) -> Iterator[tuple[str, nn.Module]]:
    """The modules in the order they are run, with their paths; ConfigError where they are not run in sequence."""

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        if isinstance(module, nn.Sequential):
            for name, child in module.named_children():
                yield from walk(f"{path}.{name}", child)
        else:
            yield path, module

    yield from walk("blocks", chain.blocks)
    yield from walk("head", chain.head)


def check(chain: Chain, model: str) -> None:
    """ConfigError unless the network is a sequence of convolutions, linear layers, batch norms behind them, activations and pooling."""
    before: nn.Module | None = None
    for _, module in _leaves(chain):
        product = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1 and module.padding_mode == "zeros")
        behind = isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d)
        active = isinstance(module, _POINTWISE) and isinstance(before, nn.Conv2d | nn.Linear | nn.BatchNorm2d)
        if not (product or behind or active or isinstance(module, (nn.MaxPool2d, nn.AvgPool2d, *_NOTHING))):
            raise ConfigError(f"model: {model}; one whose layers run in sequence (vgg11 to vgg19, cnn, simple_cnn, mlp)")
        before = module


def steps(chain: Chain, input_shape: Sequence[int], dtype: torch.dtype = torch.float32) -> list[Step]:
    """A network in eval mode as products with their tails, batch norm folded into the products; the last gives the logits."""
    found: list[Step] = []
    modules = list(_leaves(chain))
    device = next(chain.parameters()).device
    values = torch.zeros(1, *input_shape, device=device, dtype=dtype)
    channels = input_shape[0]
    for place, (path, module) in enumerate(modules):
        if isinstance(module, nn.Conv2d | nn.Linear):
            behind = modules[place + 1][1] if place + 1 < len(modules) else None
            weight, bias = (part.to(dtype) for part in _folded(module, behind if isinstance(behind, nn.BatchNorm2d) else None))
            made = _map(module, weight, values, channels)
            channels = len(weight)
            bias = bias.view(1, -1, *(1, 1) * isinstance(module, nn.Conv2d))
            values = made.full(values, bias)
            work = weight.numel() * prod(values.shape[2:])
            found.append(Step(f"features.{place}", path, channels, made, bias, None, [], tuple(values.shape[1:]), work))
        elif isinstance(module, _POINTWISE):
            found[-1].activation = module
        elif isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
            found[-1].after.append(pool(module))
            values = found[-1].after[-1](values)
            found[-1].shape = tuple(values.shape[1:])
    return found


def _folded(module: nn.Conv2d | nn.Linear, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    weight = module.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if module.bias is None else module.bias.detach().double()
    if norm is not None:
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() / (norm.running_var.double() + norm.eps).sqrt()
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = norm.bias.detach().double() + scale * (bias - norm.running_mean.double())
    return weight, bias


def _map(module: nn.Conv2d | nn.Linear, weight: Tensor, values: Tensor, channels: int) -> Map:
    if isinstance(module, nn.Linear):
        return Dense(weight, channels if values.ndim == 4 else values.shape[1])
    fast = Bilinear.of(module, weight, values)
    if fast is not None:
        return fast
    shape = nn.functional.conv2d(values, weight, None, module.stride, module.padding, module.dilation).shape[1:]
    return Direct(module, weight, tuple(shape), prod(values.shape[1:]))


def work(products: Sequence[Step], layer: int) -> int:
    """Multiplications that one mask of a layer takes for one image, about."""
    return products[layer + 1].work // 4 + sum(step.work for step in products[layer + 2 :])


def masked_layers(chain: Chain) -> list[int]:
    """Positions among the products of the layers whose channels are masked: convolutions, or hidden linear layers without any."""
    products = [module for _, module in _leaves(chain) if isinstance(module, nn.Conv2d | nn.Linear)]
    convolutions = [place for place, module in enumerate(products) if isinstance(module, nn.Conv2d)]
    return convolutions or list(range(len(products) - 1))


class Masker:
    """One network under masks: `masks` by layer (a position among the products), bool [S, n], True for what is kept.

    `memory` bounds the bytes of values held at once, whatever the number of sets or images. A masked channel is the constant that `mode`
    says: the activation of the bias that its convolution and batch norm leave without weights (conv_weight), 0, or its mean over the data.
    """

    def __init__(
        self, chain: Chain, input_shape: Sequence[int], masks: Mapping[int, Tensor], precision: str = "fp32", memory: int = MEMORY
    ):
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.steps = steps(chain.eval(), input_shape, self.dtype)
        self.device = self.steps[0].bias.device
        self.masks = {layer: mask.to(self.device) for layer, mask in masks.items()}
        self.memory = memory
        self.constants: dict[int, Tensor] = {}
        self.starts: dict[int, Tensor] = {}

    def rooms(self, first: int) -> int:
        """Bytes that one image takes at the most in the products from `first` on."""
        return 2 * self.dtype.itemsize * max(step.map.room for step in self.steps[first:])

    def batch(self, wanted: int) -> int:
        """Images that go through at once: as many as wanted, fewer where half the memory does not hold them."""
        return max(1, min(wanted, self.memory // 2 // self.rooms(0)))

    @torch.inference_mode()
    def fix(self, mode: str, batches: Callable[[], Iterator[Tensor]]) -> None:
        """Set the constants that masked channels become; activation_mean looks at all batches for them."""
        means = self._means(batches()) if mode == "activation_mean" else {}
        for layer in self.masks:
            step, after = self.steps[layer], self.steps[layer + 1]
            constant = torch.zeros_like(step.bias)
            if mode == "conv_weight":
                constant = step.active(step.bias.clone())
            elif mode == "activation_mean":
                constant = means[layer].to(step.bias).view_as(step.bias)
            self.constants[layer] = constant
            self.starts[layer] = after.map.full(constant.expand(1, *step.shape).contiguous(), after.bias)

    def _means(self, batches: Iterator[Tensor]) -> dict[int, Tensor]:
        """Mean activation of every channel of the masked layers over all images and positions, [n] by layer."""
        sums: dict[int, Tensor] = {}
        count = 0
        for inputs in batches:
            count += len(inputs)
            values = inputs.to(self.dtype)
            for layer, step in enumerate(self.steps[: max(self.masks) + 1]):
                active = step.active(step.map.full(values, step.bias))
                if layer in self.masks:
                    here = active.float().unsqueeze(-1).flatten(2).mean(2).double().sum(0)
                    sums[layer] = sums[layer] + here if layer in sums else here
                values = step.passed(active)
        return {layer: total / count for layer, total in sums.items()}

    @torch.inference_mode()
    def logits(self, inputs: Tensor, layers: Sequence[int]) -> Iterator[tuple[int, slice, Tensor]]:
        """Logits of a batch [B, ...] under the masks of the given layers, as they come: (layer, rows of its masks, [S', B, K]).

        At the end (-1, the only row, [1, B, K]) for the network without a mask.
        """
        step = self.steps[0]
        out = step.map.full(inputs.to(self.dtype), step.bias)
        for layer, after in enumerate(self.steps[1:]):
            values = step.passed(step.active(out))
            if layer in layers:
                prepared = after.map.prepare(values - self.constants[layer])
                out = after.map.empty(len(inputs))
                after.map.into(out, prepared, self.starts[layer])
                for rows, masked in self._masked(layer, prepared, out):
                    yield layer, rows, self._rest(layer + 1, masked).view(rows.stop - rows.start, len(inputs), -1)
            else:
                out = after.map.full(values, after.bias)
            step = after
        yield -1, slice(0, 1), out.float().unsqueeze(0)

    def _masked(self, layer: int, prepared: Any, unmasked: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """What the product after a layer gives for several masks at once, [S' * B, ...]."""
        masks, after, count = self.masks[layer], self.steps[layer + 1], len(unmasked)
        fitting = min(self.memory // 2 // self.rooms(layer + 1), WIDE)
        together = max(1, fitting // count)
        for first in range(0, len(masks), together):
            rows = slice(first, min(first + together, len(masks)))
            out = after.map.empty(count * (rows.stop - first))
            for place, mask in enumerate(masks[rows]):
                part = out[place * count : (place + 1) * count]
                few = 2 * int(mask.sum()) <= len(mask)
                channels = (mask if few else ~mask).nonzero().flatten()
                if len(channels):
                    after.map.into(part, prepared, self.starts[layer] if few else unmasked, 1 if few else -1, channels)
                else:
                    part.copy_(unmasked)
            yield rows, out

    def _rest(self, first: int, out: Tensor) -> Tensor:
        """Logits from what product `first` gave."""
        for step, after in itertools.pairwise(self.steps[first:]):
            out = after.map.full(step.passed(step.active(out)), after.bias)
        return out.float()


class ConfusionCounts:
    """Confusions counted so far: by layer int64 [P, S, K, K] (part of the samples, mask, true class, predicted class), and how far.

    Layer -1 is the network without a mask, S = 1 there. `parts` splits the samples, as into easy and hard ones.
    """

    def __init__(self, masks: Mapping[int, Tensor], classes: int, parts: int = 1):
        self.counts = {layer: torch.zeros(parts, len(mask), classes, classes, dtype=torch.int64) for layer, mask in masks.items()}
        self.counts[-1] = torch.zeros(parts, 1, classes, classes, dtype=torch.int64)
        self.images = 0  # images that all layers are done with
        self.layers: list[int] = []  # layers that are done with the images after these, too

    def add(self, layer: int, rows: slice, labels: Tensor, predicted: Tensor, part: Tensor | None = None) -> None:
        """Count predictions [S', B] of samples with labels [B], in parts [B] from 0 on (None: all in part 0)."""
        counts = self.counts[layer]
        parts, _, classes, _ = counts.shape
        sets = len(predicted)
        where = labels if part is None else part * sets * classes + labels
        cells = (torch.arange(sets, device=labels.device)[:, None] * classes + where) * classes + predicted
        found = torch.bincount(cells.flatten(), minlength=parts * sets * classes**2)
        counts[:, rows] += found.view(parts, sets, classes, classes).cpu()

    def state(self) -> dict[str, Any]:
        """All of it, as arrays."""
        names = {f"counts_{layer}": counts.numpy() for layer, counts in self.counts.items()}
        return {**names, "images": np.array(self.images), "layers": np.array(self.layers, dtype=np.int64)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.counts = {layer: torch.from_numpy(state[f"counts_{layer}"].copy()).view(kept.shape) for layer, kept in self.counts.items()}
        self.images, self.layers = int(state["images"]), [int(layer) for layer in state["layers"]]


def count(
    masker: Masker, inputs: Callable[[int, int], Tensor], labels: Tensor, counts: ConfusionCounts, batch: int, part: Tensor | None = None
) -> Iterator[int]:
    """Fill the counts, each batch of images going through the network once; yields the layer that is done with a batch, -1 after the last.

    `inputs` gives the standardised images from one index to another; `part` [N] is what a sample belongs to (see ConfusionCounts). Stopped
    after any yield, and begun again with the same counts, it goes on with the next unfinished layer.
    """
    size, layers = masker.batch(batch), sorted(masker.masks)
    while counts.images < len(labels):
        first, stop = counts.images, min(counts.images + size, len(labels))
        own = None if part is None else part[first:stop]
        left = [layer for layer in layers if layer not in counts.layers]
        for layer, rows, logits in masker.logits(inputs(first, stop), left):
            counts.add(layer, rows, labels[first:stop], logits.argmax(-1), own)
            if layer >= 0 and rows.stop == len(masker.masks[layer]):
                counts.layers.append(layer)
                yield layer
        counts.images, counts.layers = stop, []
        yield -1
