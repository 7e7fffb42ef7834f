"""VGG networks for small images, with batch norm (Simonyan & Zisserman 2015, arXiv:1409.1556)."""

from collections.abc import Sequence

from torch import nn

from hardbench.errors import ConfigError
from hardbench.models.dropout import Dropout
from hardbench.models.layers import Chain, image_side, init_members
from hardbench.models.networks import Looped
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import ModelSettings

PLANS = {  # output channels of the convolutions in order; M: the maximum over 2x2
    "vgg11": "64 M 128 M 256 256 M 512 512 M 512 512 M",
    "vgg13": "64 64 M 128 128 M 256 256 M 512 512 M 512 512 M",
    "vgg16": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
    "vgg19": "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512 M",
}
HALVINGS, HEAD = 5, 512
FITTING = "cifar10 and cifar100 do, and npz:PATH of such images"


def _blocks(plan: str, channels: int) -> list[nn.Module]:
    """Conv 3x3 with bias, batch norm, ReLU and, before an M, the pooling."""
    blocks: list[nn.Sequential] = []
    for word in plan.split():
        if word == "M":
            blocks[-1].append(nn.MaxPool2d(2))
        else:
            width = int(word)
            blocks.append(nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()))
            channels = width
    return list(blocks)


@MODELS.add(
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    reads=("init", "dropout"),
    optimizer="sgd",
    lr=0.01,
    momentum=0.9,
    weight_decay=5e-4,
    scheduler="cosine",
    batch_size=128,
    epochs=200,
    val_size=0.1,
    target_accuracy=0.9999,
)
def build(input_shape: Sequence[int], num_classes: int, settings: ModelSettings, streams: Sequence[Seeds]) -> Looped:
    """R networks: the convolutions of the plan, then linear layers 512-512-K with ReLU and dropout."""
    channels, side = image_side(settings.model, input_shape)
    if side < 2**HALVINGS:
        raise ConfigError(f"model: {settings.model}; images of side {2**HALVINGS} at least ({FITTING}), and the data set has side {side}")
    flat = HEAD * (input_shape[1] >> HALVINGS) * (input_shape[2] >> HALVINGS)

    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, HEAD), nn.ReLU(), Dropout(settings.dropout)]

    def make() -> Chain:
        head = [nn.Sequential(nn.Flatten(), *hidden(flat)), nn.Sequential(*hidden(HEAD))]
        return Chain([*_blocks(PLANS[settings.model], channels), *head], nn.Linear(HEAD, num_classes))

    return Looped(init_members(make, streams, settings.init), input_shape)
