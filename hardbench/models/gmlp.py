"""Greedy multi-layer perceptron: a chain of metric predictors against fixed anchors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hardbench.models.anchors import Anchors, StackedAnchors
from hardbench.models.layers import Chain, Residual, UnitScale, init_members, outputs_of
from hardbench.models.mlp import hidden_blocks
from hardbench.models.stacked import Stacked
from hardbench.products import ALIGNED
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import ModelSettings


class GreedyStack(Stacked):
    """R greedy networks: every layer is scored against the same anchors, and its gradient stays in it."""

    head: StackedAnchors

    def layer_logits(self, activations: Sequence[Tensor]) -> Tensor:
        """G / tau of every layer, [R, L, B, K] (a view of [R, K, L, B]), from the layers' activations [R, B, D].

        One product for all layers where a batch is a multiple of 16 samples; with other sizes it would round a layer's scores differently
        than a product of that layer alone.
        """
        if activations[0].shape[1] % ALIGNED:
            return torch.stack([self.head(hidden).transpose(1, 2) for hidden in activations], 2).permute(0, 2, 3, 1)
        layers = torch.stack(list(activations), 1)
        return self.head(layers.flatten(1, 2)).unflatten(1, layers.shape[1:3])

    def detached_activations(self, inputs: Tensor) -> list[Tensor]:
        """Per layer [R, B, D], each computed from the detached activations of the layer before."""
        return outputs_of(self.blocks, self.rows(inputs), detached=True)


def draw_anchors(num_classes: int, width: int) -> Tensor:
    """Unit rows [K, D]: orthonormal by QR of a Gaussian matrix where K <= D, else directions drawn uniformly."""
    gaussian = torch.randn(width, num_classes)
    if num_classes <= width:
        return torch.linalg.qr(gaussian).Q.t().contiguous()
    return nn.functional.normalize(gaussian.t(), dim=1)


@MODELS.add(
    "gmlp",
    reads=("depth", "width", "similarity", "tau", "lambda_ace", "ace_variant", "normalize_layer_input", "residual"),
    depth=4,
    width=256,
    batch_size=128,
    weight_decay=1e-4,
    scheduler="warmup_cosine",
    val_size=0.1,
    layer_metrics=("all",),
)
def build(input_shape: Sequence[int], num_classes: int, settings: ModelSettings, streams: Sequence[Seeds]) -> GreedyStack:
    """R greedy networks of equal layers, one per stream; biases start at 0."""
    width, depth = settings.width or 0, settings.depth or 0

    def make() -> Chain:
        blocks: list[nn.Module] = hidden_blocks(input_shape, (width,) * depth, "relu")
        for module in nn.ModuleList(blocks).modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if settings.normalize_layer_input:
            blocks[1:] = [nn.Sequential(UnitScale(), block) for block in blocks[1:]]
        if settings.residual:
            blocks[1:] = [Residual(block) for block in blocks[1:]]
        return Chain(blocks, Anchors(draw_anchors(num_classes, width), settings.similarity, settings.tau))

    return GreedyStack(init_members(make, streams, "default"), input_shape)
