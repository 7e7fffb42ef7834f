"""Masked channels: two sets of channels for every convolution of VGG-11 and VGG-16, 512 images of 32x32.

Against the usual loop: a copy of the model whose weights are set to 0 channel by channel, a DataLoader over the images and a full
forward pass for every set, scikit-learn's mutual_info_score on the predictions. The networks are random, the images too.
"""

import copy
import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.row import DifferentError, Goal, Row, Workload
from hardbench import seeding
from hardbench.data.transforms import Standardise
from hardbench.masking.information import plugin
from hardbench.masking.masks import ConfusionCounts, Masker, count_confusions, folded_blocks, masked_layers, subsets
from hardbench.models.layers import Chain
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.studies.train import Config

SHAPE, CLASSES, SETS, BATCH = (3, 32, 32), 10, 2, 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
FLOPS = {"vgg11": 2 * 153e6, "vgg16": 2 * 313e6}  # of one image's forward pass


def images(quick: bool) -> int:
    """How many go through the networks."""
    return 16 if quick else 512


@functools.cache
def network(model: str) -> Chain:
    """Drawn weights, statistics of batch norm that are not 0 and 1, and biases of the head such that all classes are predicted."""
    config = Config(model=model, dataset="cifar10", init="kaiming_normal")
    chain = MODELS[model].call(SHAPE, CLASSES, config, seeding.networks(0, 0, 1)).member(0).eval()
    generator = Seeds(0).child("benchmark").generator()
    with torch.no_grad():
        for module in chain.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 1.5), (module.weight, 0.7, 1.3)):
                    assert tensor is not None
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
        assert isinstance(chain.head, nn.Linear)
        chain.head.bias.sub_(chain(_standardised(pixels(True)[0])).mean(0))
    return chain


def pixels(quick: bool) -> tuple[Tensor, Tensor]:
    """uint8 images [N, 3, 32, 32], smooth so that networks tell them apart, and labels."""
    generator = Seeds(1).child("benchmark").generator()
    coarse = torch.rand(images(quick), 3, 4, 4, generator=generator)
    fine = nn.functional.interpolate(coarse, size=32, mode="bilinear")
    return (255 * fine).to(torch.uint8), torch.arange(images(quick)) % CLASSES


def _standardised(raw: Tensor) -> Tensor:
    return Standardise(torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1))(raw, 255.0)


def masks(model: str) -> dict[int, Tensor]:
    """Two sets of every convolution's channels, bool [S, n]."""
    chain = network(model)
    blocks, streams = folded_blocks(chain, SHAPE), Seeds(0).child("masks")
    return {layer: subsets(blocks[layer].channels, SETS, streams.child(layer).generator()) for layer in masked_layers(chain)}


class Usual(Dataset[Any]):
    """Images as torchvision's CIFAR10 gives them: one by one, from arrays over PIL to standardised tensors."""

    def __init__(self, quick: bool):
        from torchvision import transforms

        raw, self.labels = pixels(quick)
        self.arrays = raw.permute(0, 2, 3, 1).numpy()
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.arrays[index])), int(self.labels[index])


def plain(model: str, quick: bool) -> Workload:
    """A full pass for every set."""
    from sklearn.metrics import mutual_info_score

    chain, wanted = network(model), masks(model)
    names = [block.module for block in folded_blocks(chain, SHAPE)]
    loader = DataLoader(Usual(quick), batch_size=BATCH)

    def information(net: nn.Module) -> float:
        with torch.no_grad():
            parts = [(net(inputs).argmax(1), labels) for inputs, labels in loader]
        predicted, labels = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
        return float(mutual_info_score(labels, predicted))

    def call() -> Any:
        found = []
        for layer, rows in wanted.items():
            for keep in rows:
                masked = copy.deepcopy(chain)
                weight = masked.get_submodule(names[layer]).weight
                with torch.no_grad():
                    weight[~keep] = 0  # type: ignore[operator]
                found.append(information(masked))
        return np.array(found)

    return Workload(call)


def ours(model: str, precision: str, quick: bool) -> Workload:
    """The engine, from the network to the information of every set."""
    chain, wanted = network(model), masks(model)
    raw, labels = pixels(quick)

    def call() -> Any:
        masker = Masker(chain, SHAPE, wanted, precision)
        masker.set_constants("conv_weight", lambda: iter(()))
        counts = ConfusionCounts(wanted, CLASSES)
        for _ in count_confusions(masker, lambda first, stop: _standardised(raw[first:stop]), labels, counts, BATCH):
            pass
        return np.concatenate([plugin(counts.counts[layer][0]).numpy() for layer in wanted])

    return Workload(call, flops=len(labels) * FLOPS[model] * SETS * len(wanted))


def check(tolerance: float, expected: Any, found: Any) -> str:
    """Information of every set, which one prediction in 512 moves by about .005."""
    apart = np.abs(expected - found).max()
    words = f"information {expected.min():.3f} to {expected.max():.3f} nats, within {apart:.1e}"
    if apart > tolerance:
        raise DifferentError(words)
    return words


ROWS = [
    Row(
        f"masking_{model}_{precision}",
        f"{model}, 512 images, {SETS} sets of channels per convolution: predictions and information",
        "network",
        functools.partial(plain, model),
        functools.partial(ours, model, precision),
        functools.partial(check, tolerance),
        Goal("faster", bound),
        precision=precision,
        needs=("avx512_bf16",) if precision == "bf16" else (),
        goal_if_quick=False,
        rounds=1,  # a minute or two
        warm_up=False,
        memory=False,
    )
    for model in ("vgg11", "vgg16")
    for precision, bound, tolerance in (("fp32", 3, 0.02), ("bf16", 6, 0.2))
]
