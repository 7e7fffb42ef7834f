"""Layers that learn from their own output alone, as greedy ones do: their products need no graph, and each moves before the next is seen.

An optimiser that runs after the backward pass fetches every gradient from memory once more. Where a layer moves at once, its gradient,
and the weights in the precision of the products, are in buffers that all layers share and that stay near the processor.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from hardbench.models.layers import StackedLinear
from hardbench.products import product


class _Layer:
    """A layer's views on its parameters and on the shared buffers; what it has seen of the batch, and what came out."""

    def __init__(self, layer: StackedLinear, low: Tensor | None, gradients: Tensor):
        self.layer = layer
        self.parameters: list[Tensor] = [layer.weight, layer.bias]
        self.weight, self.bias = (own.detach() for own in layer.own())  # [R, in, out], [R, out]
        self.low = None if low is None else low[: self.weight.numel()].view(self.weight.shape)
        self.gradients = [gradients[: layer.weight.numel()].view(layer.weight.shape), torch.zeros_like(layer.bias)]
        count = layer.inputs * layer.outputs
        self.of_weight = self.gradients[0][:, :count].view(self.weight.shape)
        self.padding = self.gradients[0][:, count:]
        self.of_bias = self.gradients[1][:, : layer.outputs]
        self.seen = self.output = torch.empty(0)

    def __call__(self, inputs: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.low is not None:
            weight, bias, inputs = self.low.copy_(weight), bias.to(self.low.dtype), inputs.to(self.low.dtype)
        self.seen, self.output = inputs, product(inputs, weight, bias.unsqueeze(1)).requires_grad_()
        return self.output

    def differentiate(self) -> None:
        """The gradients, from that of the output, into their buffers."""
        grad = self.output.grad
        assert grad is not None
        space = self.of_weight if self.low is None else self.low
        found = product(self.seen.transpose(1, 2), grad, out=space if space.is_contiguous() else None)
        if found is not self.of_weight:
            self.of_weight.copy_(found)
        if self.padding.numel():
            self.padding.zero_()
        self.of_bias.copy_(grad.sum(1))
        self.seen = self.output = torch.empty(0)


class Local:
    """The stacked layers of greedy networks, whose parameters move in place; their products are computed in `dtype`."""

    def __init__(self, layers: Sequence[StackedLinear], dtype: torch.dtype):
        first = layers[0].weight
        largest = max(layer.weight.numel() for layer in layers)
        low = None if dtype == first.dtype else torch.empty(largest, dtype=dtype, device=first.device)
        gradients = torch.empty(largest, dtype=first.dtype, device=first.device)
        self._layers = [_Layer(layer, low, gradients) for layer in layers]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block the layers' outputs are leaves of the graph."""
        try:
            for own in self._layers:
                own.layer.through = own
            yield
        finally:
            for own in self._layers:
                own.layer.through = None

    def gradients(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Every layer's parameters with their gradients, from those of the recorded outputs; they are gone when the next are asked for."""
        for own in reversed(self._layers):
            own.differentiate()
            yield own.parameters, own.gradients
