"""torchvision's residual networks (He et al. 2016, arXiv:1512.03385), not pretrained; the last hidden layer is the pooled vector."""

from collections.abc import Sequence

from torch import nn

from hardbench.models.layers import Chain, image_side, init_members
from hardbench.models.networks import Looped
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import ModelSettings

SMALL_SIDE = 64


def _chain(name: str, channels: int, small: bool, num_classes: int) -> Chain:
    from torchvision import models

    net = getattr(models, name)(weights=None, num_classes=num_classes)
    pool: nn.Module = net.maxpool
    if small:
        net.conv1 = nn.Conv2d(channels, 64, 3, stride=1, padding=1, bias=False)
        pool = nn.Identity()
    elif channels != 3:
        net.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    stem = nn.Sequential(net.conv1, net.bn1, net.relu, pool)
    last = nn.Sequential(net.layer4, net.avgpool, nn.Flatten())
    return Chain([stem, net.layer1, net.layer2, net.layer3, last], net.fc)


@MODELS.add("resnet18", "resnet50", reads=("init", "small_input"))
def build(input_shape: Sequence[int], num_classes: int, settings: ModelSettings, streams: Sequence[Seeds]) -> Looped:
    """R residual networks; small_input takes a 3x3 stem with stride 1 and no max-pool (auto: images up to 64 pixels)."""
    channels, side = image_side(settings.model, input_shape)
    small = side <= SMALL_SIDE if settings.small_input == "auto" else bool(settings.small_input)
    return Looped(init_members(lambda: _chain(settings.model, channels, small, num_classes), streams, settings.init), input_shape)
