"""Operations on a batch of raw inputs [R, B, ...] on the device: crop and flip, standardise."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor
from torch.nn import functional

from hardbench.data.samples import Samples
from hardbench.errors import ConfigError, DataError
from hardbench.settings import DataSettings

PADDING = 4
RESOLUTION = 4 * torch.finfo(torch.float32).eps  # 5e-7: four times the relative precision of float32


@dataclass(frozen=True)
class Standardise:
    """x -> (x - mean) / std + shift, for x in units of 1 (float inputs) or of 1/255 (uint8 pixels).

    mean and std broadcast against one input: [1] scalar, [C, 1, 1] channel, [D] channel of vectors, the input's shape for pixel.
    """

    mean: Tensor
    std: Tensor
    shift: float = 0.0

    def __call__(self, raw: Tensor, unit: float | None = None) -> Tensor:
        """float32 standardised inputs, shape as `raw`, of which `unit` stands for 1 (None: by its type)."""
        scaled = raw.float() * (self._scale / (unit_of(raw) if unit is None else unit))
        # not addcmul, whose kernel takes three times as long where constants are broadcast
        return scaled if self._offset is None else scaled.add_(self._offset)

    @cached_property
    def _scale(self) -> Tensor:
        return 1 / self.std

    @cached_property
    def _offset(self) -> Tensor | None:
        """None if there is nothing to add: the product alone gives the same numbers faster."""
        return self.shift - self.mean * self._scale if self.shift or bool(self.mean.any()) else None

    def constants(self) -> dict[str, Tensor | float]:
        """mean, std and shift, as a checkpoint keeps them."""
        return {"mean": self.mean, "std": self.std, "shift": self.shift}

    def to(self, device: torch.device | str) -> "Standardise":
        """The same constants on a device."""
        return Standardise(self.mean.to(device), self.std.to(device), self.shift)


def unit_of(inputs: Tensor) -> float:
    """The raw value that stands for 1: 255 for uint8 pixels, 1 for floats."""
    return 255.0 if inputs.dtype == torch.uint8 else 1.0


def standardise_for(settings: DataSettings, train: Samples) -> Standardise:
    """The constants by `normalize`: those in the settings, else of the training samples; a constant feature has std 1."""
    shape = train.shape
    per_input = (shape[0], *[1] * (len(shape) - 1)) if settings.normalize == "channel" and len(shape) != 2 else (1,) * len(shape)
    if settings.normalize == "none":
        return Standardise(torch.zeros(per_input), torch.ones(per_input), settings.shift)
    mean, std = moments(train.inputs, settings.normalize)
    given = _given("mean", settings.mean, mean, per_input), _given("std", settings.std, std, per_input)
    return Standardise(*given, settings.shift)


def moments(inputs: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Mean and population standard deviation (1 where constant), from float64 sums over chunks; `how` as the setting `normalize`.

    A channel or pixel of vectors is a feature. A table's columns have different units: sums are of differences from the first row, and a
    column varies if its deviation is above the precision of float32 at its largest number.
    """
    shape = inputs.shape[1:]
    features = how in ("channel", "pixel") and len(shape) == 1
    if how == "pixel" or features:
        dims: tuple[int, ...] = (0,)
    else:
        dims = (0, 2, 3) if how == "channel" and len(shape) == 3 else tuple(range(inputs.ndim))
    origin = inputs[:1].double() / unit_of(inputs) if features else torch.zeros((), dtype=torch.float64)
    total, square, largest = torch.zeros(3, dtype=torch.float64)
    for part in inputs.split(4096):
        values = part.double() / unit_of(inputs) - origin
        if features:
            largest = torch.maximum(largest, part.double().abs().amax(0, keepdim=True) / unit_of(inputs))
        total = total + values.sum(dims, keepdim=True)
        square = square + values.square().sum(dims, keepdim=True)
    count = inputs.numel() / total.numel()
    mean = total / count
    variance = (square / count - mean.square()).clamp_min(0)
    varies = variance.sqrt() > RESOLUTION * largest if features else variance > 1e-14
    std = torch.where(varies, variance, torch.ones_like(variance)).sqrt()
    return (mean + origin)[0].float(), std[0].float()


def _given(name: str, values: tuple[float, ...] | None, measured: Tensor, per_input: tuple[int, ...]) -> Tensor:
    if values is None:
        return measured
    allowed = {1, measured.numel()}
    if len(values) not in allowed:
        raise ConfigError(f"{name}: {list(values)}; as many numbers as {' or '.join(map(str, sorted(allowed)))}")
    return torch.tensor(values).expand(measured.numel()).reshape(per_input)


def check_fits(settings: DataSettings, train: Samples) -> None:
    """DataError or ConfigError if the samples do not allow the corruption or augmentation that the settings ask for."""
    if settings.augment and len(train.shape) != 3:
        raise ConfigError("augment: true; images, and the data set has vectors")
    if settings.corruption_p:
        check_pixels(train)


def check_pixels(samples: Samples) -> None:
    """DataError if inputs leave [0, 1], where corruption is not defined."""
    if samples.inputs.dtype != torch.uint8 and not (samples.inputs.min() >= 0 and samples.inputs.max() <= 1):
        raise DataError("corruption_p: inputs outside [0, 1]; corruption replaces pixels in [0, 1]")


def crop_and_flip(raw: Tensor, generators: Sequence[Generator]) -> Tensor:
    """[R, B, C, H, W] images shifted by up to 4 pixels (filled with zeros) and flipped left-right with probability 1/2, per image."""
    _, batch, channels, height, width = raw.shape
    padded = functional.pad(raw, (PADDING,) * 4)
    out = torch.empty_like(raw)
    device = raw.device
    for r, generator in enumerate(generators):
        top, left = torch.randint(0, 2 * PADDING + 1, (2, batch), generator=generator, device=device)
        flip = torch.randint(0, 2, (batch,), generator=generator, device=device).bool()
        rows = top[:, None] + torch.arange(height, device=device)
        columns = torch.arange(width, device=device).expand(batch, width)
        columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
        image = torch.arange(batch, device=device)[:, None, None, None]
        channel = torch.arange(channels, device=device)[None, :, None, None]
        out[r] = padded[r][image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return out
