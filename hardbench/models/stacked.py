"""R networks as batched products over R, for chains of linear layers; and which chains have that form."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hardbench.errors import ConfigError
from hardbench.models.anchors import Anchors, StackedAnchors
from hardbench.models.dropout import Dropout, StackedDropout
from hardbench.models.layers import ACTIVATIONS, Chain, Residual, UnitScale, outputs_of
from hardbench.models.networks import Looped, Networks
from hardbench.products import ALIGNED, product


class StackedLinear(nn.Module):
    """R linear layers as one batched product: [R, B, in] -> [R, B, out].

    Weights are kept [R, in * out] with every member's block padded to 16 floats: a fused optimiser rounds the tail of a
    tensor in other ways than its body, and no member may have a tail that depends on how many stand behind it.
    """

    def __init__(self, members: Sequence[nn.Linear]):
        super().__init__()
        first = members[0]
        self.inputs, self.outputs = first.in_features, first.out_features
        self.weight = nn.Parameter(_padded([m.weight.detach().t().flatten() for m in members]))
        self.bias = nn.Parameter(_padded([m.bias.detach() for m in members]))

    def forward(self, inputs: Tensor) -> Tensor:
        """[R, B, out]."""
        weight, bias = self.unpadded()
        return product(inputs, weight, bias.unsqueeze(1))

    def columns(self, inputs: Tensor) -> Tensor:
        """[R, out, N] from samples as columns: [in, N] that all networks share, by ONE product R * out rows high, or [R, in, N].

        A wide product rounds in other ways than R narrow ones: a network here equals itself alone within rounding, not bit for bit.
        """
        weight, bias = self.unpadded()
        turned = weight.transpose(1, 2)
        wide = inputs.ndim == 2
        outputs = (turned.flatten(0, 1) @ inputs).unflatten(0, (-1, self.outputs)) if wide else turned @ inputs
        return outputs.add_(bias.to(outputs.dtype).unsqueeze(2))  # in place and in the product's precision: an epoch waits for memory

    def unpadded(self) -> tuple[Tensor, Tensor]:
        """Weights [R, in, out] and biases [R, out] without their padding."""
        count = self.inputs * self.outputs
        weight = self.weight if self.weight.shape[1] == count else self.weight[:, :count]
        bias = self.bias if self.bias.shape[1] == self.outputs else self.bias[:, : self.outputs]
        return weight.view(-1, self.inputs, self.outputs), bias

    def tensors(self, r: int) -> dict[str, Tensor]:
        """Views of member r's tensors by name, in nn.Linear's shapes."""
        weight, bias = self.unpadded()
        return {"weight": weight[r].t(), "bias": bias[r]}


def _padded(rows: Sequence[Tensor]) -> Tensor:
    stacked = torch.stack(list(rows))
    return functional.pad(stacked, (0, -stacked.shape[1] % ALIGNED)).contiguous()


class Stacked(Networks):
    """Chains of linear layers as batched products over R."""

    def __init__(self, members: Sequence[Chain], input_shape: Sequence[int]):
        super().__init__(members, input_shape)
        alone = unstackable(members[0])
        if alone is not None:
            raise ConfigError(f"model: {alone} has no stacked form; stack_or_loop(members, input_shape) in place of {type(self).__name__}")
        self.blocks = nn.ModuleList(_stacked([m.blocks[i] for m in members]) for i in range(len(members[0].blocks)))
        self.head = _stacked([m.head for m in members])

    def rows(self, inputs: Tensor) -> Tensor:
        """Inputs as vectors [R, B, D], shared ones expanded."""
        flat = inputs.flatten(-self.input_ndim)
        return flat.expand(self.repeats, -1, -1) if flat.ndim == 2 else flat

    def parts(self, active: Sequence[bool]) -> Iterator[tuple[slice, Callable[[Tensor], Tensor]]]:
        """One part: all networks, the inactive ones too (their products come for nothing)."""
        yield slice(0, self.repeats), self

    def activations(self, inputs: Tensor) -> list[Tensor]:
        """Per hidden layer [R, B, D]."""
        return outputs_of(self.blocks, self.rows(inputs))

    def logits(self, features: Tensor) -> Tensor:
        """[R, B, K]."""
        return self.head(features)

    def columns(self, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
        """Activations of every hidden layer [R, D, N] and logits [R, K, N] of N samples that all networks share, as columns [D, N].

        The form of full batches: what is narrow stays the slow axis, so that everything elementwise runs along the samples. For chains
        of linear layers and elementwise functions.
        """
        activations = []
        for block in self.blocks:
            for module in block.children():
                inputs = module.columns(inputs) if isinstance(module, StackedLinear) else module(inputs)
            activations.append(inputs)
        assert isinstance(self.head, StackedLinear)
        return activations, self.head.columns(inputs)

    def tensors(self, r: int) -> Mapping[str, Tensor]:
        """The weights, biases and anchors of network r."""
        stacked = {path: module for path, module in self.named_modules() if isinstance(module, StackedLinear | StackedAnchors)}
        return {f"{path}.{name}": view.detach() for path, module in stacked.items() for name, view in module.tensors(r).items()}


_SHARED = (*(type(make()) for make in ACTIVATIONS.values()), nn.Identity, UnitScale)  # what is done to [R, B, D] as to [B, D]
_FORMS: dict[type[nn.Module], Callable[..., nn.Module]] = {nn.Linear: StackedLinear, Anchors: StackedAnchors, Dropout: StackedDropout}


def stack_or_loop(members: Sequence[Chain], input_shape: Sequence[int]) -> Networks:
    """R networks as batched products where every module has a stacked form, else one after the other."""
    return (Looped if unstackable(members[0]) else Stacked)(members, input_shape)


def unstackable(chain: Chain) -> str | None:
    """The first module of a chain that has no stacked form, `LayerNorm at blocks.0.1`; None if all have one.

    Only what is known here has one: another module may have parameters, buffers, a random stream, or take the axis R for a batch.
    """
    passed: set[int] = set()  # what two places share has no stacked form either
    for path, module in chain.named_modules(remove_duplicate=False):
        kind = type(module)
        holds = {"": module} if kind is Dropout else dict(module.named_parameters(recurse=False))  # streams or parameters of its own
        stackable = kind in (Chain, nn.Sequential, Residual, Dropout, Anchors, *_SHARED) and (kind is Dropout or not holds)
        if isinstance(module, nn.Flatten):
            stackable = (module.start_dim, module.end_dim) == (1, -1)
        elif kind is nn.Linear:
            stackable = holds.keys() == {"weight", "bias"} and all(parameter.requires_grad for parameter in module.parameters())
        if not stackable or any(id(held) in passed for held in holds.values()):
            return f"{kind.__name__} at {path}" if path else kind.__name__
        passed.update(map(id, holds.values()))
    return None


def _stacked(members: Sequence[Any]) -> nn.Module:
    """R modules of one kind as one: linear layers, anchors and dropout stacked, sequences member by member, activations shared."""
    first: nn.Module = members[0]
    if isinstance(first, nn.Sequential):
        return nn.Sequential(*(_stacked(modules) for modules in zip(*members, strict=True)))
    if isinstance(first, Residual):
        return Residual(_stacked([member.block for member in members]))
    if isinstance(first, nn.Flatten):
        return nn.Identity()
    form = _FORMS.get(type(first))
    return first if form is None else form(members)
