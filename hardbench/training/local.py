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

    def __init__(self, layer: StackedLinear, cast: Tensor | None, gradients: Tensor):
        self.layer = layer
        self.parameters: list[Tensor] = [layer.weight, layer.bias]
        self.weight, self.bias = (values.detach() for values in layer.unpadded())  # [R, in, out], [R, out]
        self.cast = None if cast is None else cast[: self.weight.numel()].view(self.weight.shape)
        self.gradients = [gradients[: layer.weight.numel()].view(layer.weight.shape), torch.zeros_like(layer.bias)]
        count = layer.inputs * layer.outputs
        self.of_weight = self.gradients[0][:, :count].view(self.weight.shape)
        self.padding = self.gradients[0][:, count:]
        self.of_bias = self.gradients[1][:, : layer.outputs]
        self.forget()

    def forget(self) -> None:
        """Let go of the batch."""
        self.seen = self.output = torch.empty(0)

    def __call__(self, inputs: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if self.cast is not None:
            weight, bias, inputs = self.cast.copy_(weight), bias.to(self.cast.dtype), inputs.to(self.cast.dtype)
        self.seen, self.output = inputs, product(inputs, weight, bias.unsqueeze(1)).requires_grad_()
        return self.output

    def differentiate(self) -> None:
        """The gradients, from that of the output, into their buffers."""
        grad = self.output.grad
        assert grad is not None
        space = self.of_weight if self.cast is None else self.cast
        found = product(self.seen.transpose(1, 2), grad, out=space if space.is_contiguous() else None)
        if found is not self.of_weight:
            self.of_weight.copy_(found)
        if self.padding.numel():
            self.padding.zero_()
        self.of_bias.copy_(grad.sum(1))
        self.forget()


class Local:
    """The stacked layers of greedy networks, whose products are computed in `dtype`; their parameters must stay where they are."""

    def __init__(self, layers: Sequence[StackedLinear], dtype: torch.dtype):
        first = layers[0].weight
        largest = max(layer.weight.numel() for layer in layers)
        cast = None if dtype == first.dtype else torch.empty(largest, dtype=dtype, device=first.device)
        gradients = torch.empty(largest, dtype=first.dtype, device=first.device)
        self._records = [_Layer(layer, cast, gradients) for layer in layers]

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within the block the layers' outputs are leaves of the graph. It is for one forward and one backward pass."""
        try:
            for record in self._records:
                record.layer.through = record
            yield
        except BaseException:
            for record in self._records:
                record.forget()
            raise
        finally:
            for record in self._records:
                record.layer.through = None

    def gradients(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Every layer's parameters with their gradients, from those of the recorded outputs; they are gone when the next are asked for."""
        for record in reversed(self._records):
            record.differentiate()
            yield record.parameters, record.gradients
