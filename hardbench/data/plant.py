"""Hardness planted in training samples on purpose, so that it is known which samples are hard, and why.

The taxonomy is that of H-CAT (Seedat et al. 2024, arXiv:2403.04551): mislabelled, out of distribution and atypical samples. A type is a
function of the samples chosen for it: what they are from now on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hardbench.artifacts import Array
from hardbench.data.corruption import Corruption
from hardbench.data.samples import Samples, Split, load
from hardbench.data.transforms import moments, unit_of
from hardbench.errors import ConfigError, DataError, brief
from hardbench.rules import PLANT_TYPES, plant_shares
from hardbench.seeding import Seeds
from hardbench.settings import PlantSettings, SourceSettings

TYPES = PLANT_TYPES  # `Samples.planted` is a type's position here, plus 1
PARTS = 8  # of the samples' random order; the k-th type begins in the k-th part
ROUNDING = 1e-9  # .29 of 100 samples are 29
CORRUPTED = 0.5  # share of pixels that `corrupt` replaces
SHOWN = 5  # samples of each type in the gallery
DIRECTIONS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]
Closest = Callable[[Split], Tensor]
"""Given a split, for every training sample the class other than its label that a reference network finds most likely, int64 [N]."""


@dataclass(frozen=True)
class Chosen:
    """The n samples chosen for a type, as they were, and what else a type may read.

    rows [n]: their places in the training set; low, high: the range of the inputs, see `bounds`; foreign: other inputs, if any were named.
    """

    inputs: Tensor
    labels: Tensor
    rows: Tensor
    seeds: Seeds
    split: Split
    low: Tensor
    high: Tensor
    closest: Closest
    foreign: Tensor | None

    def as_pixels(self, values: Tensor) -> Tensor:
        """float values in the type of the inputs: uint8 is rounded and clipped to 0 to 255."""
        return values.round().clamp(0, 255).to(torch.uint8) if self.inputs.dtype == torch.uint8 else values.to(self.inputs.dtype)


Planted = tuple[Tensor, Tensor]  # inputs [n, ...] and labels [n]


def bounds(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and highest value an input may have: 0 and 255 for uint8, 0 and 1 for floats that all lie there.

    For other floats the smallest and largest there are: of every feature of vectors [D], of all values of images.
    """
    if inputs.dtype == torch.uint8:
        return torch.tensor(0.0), torch.tensor(255.0)
    low, high = (inputs.amin(0), inputs.amax(0)) if inputs.ndim == 2 else (inputs.min(), inputs.max())
    return (torch.tensor(0.0), torch.tensor(1.0)) if low.min() >= 0 and high.max() <= 1 else (low, high)


def mislabel(chosen: Chosen) -> Planted:
    """Another label, uniform over the other classes."""
    classes = chosen.split.num_classes
    turn = torch.randint(1, classes, chosen.labels.shape, generator=chosen.seeds.generator())
    return chosen.inputs, (chosen.labels + turn) % classes


def mislabel_pairs(chosen: Chosen) -> Planted:
    """The next class: y + 1 mod K."""
    return chosen.inputs, (chosen.labels + 1) % chosen.split.num_classes


def mislabel_close(chosen: Chosen) -> Planted:
    """The class that a reference network ranks second, or first where it does not rank the label first: the best one that is not the label.

    The network is trained for one epoch on the run's training samples before anything is planted (training/reference.py).
    """
    return chosen.inputs, chosen.closest(chosen.split)[chosen.rows]


def corrupt(chosen: Chosen) -> Planted:
    """Every value replaced with probability 1/2 by one that is uniform in the range of the inputs, one fixed draw."""
    untouched = 2.0
    draws = Corruption([chosen.seeds], [CORRUPTED], torch.device("cpu"))(torch.full((1, *chosen.inputs.shape), untouched), 1.0)[0]
    replaced = chosen.as_pixels(chosen.low + draws * (chosen.high - chosen.low))
    return torch.where(draws <= 1, replaced, chosen.inputs), chosen.labels


def shift(chosen: Chosen) -> Planted:
    """The image moved by a fifth of its sides (rounded, a pixel at least) in one of eight directions.

    What it leaves empty has the value of the corner there (of a whole side, its top or left corner); nothing comes in from the other side.
    """
    height, width = chosen.inputs.shape[-2:]
    directions = torch.randint(len(DIRECTIONS), chosen.labels.shape, generator=chosen.seeds.generator())
    moved = chosen.inputs.clone()
    for number, (down, right) in enumerate(DIRECTIONS):
        rows = (directions == number).nonzero().flatten()
        moved[rows] = _moved(chosen.inputs[rows], down * max(1, round(height / 5)), right * max(1, round(width / 5)))
    return moved, chosen.labels


def _moved(images: Tensor, down: int, right: int) -> Tensor:
    """Images [n, C, H, W] moved by so many pixels, the rest filled with the value of the corner that is left empty."""
    height, width = images.shape[-2:]
    corner = images[..., -1 if down < 0 else 0, -1 if right < 0 else 0]
    moved = corner[..., None, None].expand_as(images).clone()
    top, left = max(down, 0), max(right, 0)
    kept = images[..., max(-down, 0) : height - top, max(-right, 0) : width - left]
    moved[..., top : top + kept.shape[-2], left : left + kept.shape[-1]] = kept
    return moved


def zoom(chosen: Chosen) -> Planted:
    """The centre half in each direction, enlarged to full size (bilinear)."""
    height, width = chosen.inputs.shape[-2:]
    tall, wide = max(1, round(height / 2)), max(1, round(width / 2))
    top, left = (height - tall) // 2, (width - wide) // 2
    centre = chosen.inputs[..., top : top + tall, left : left + wide].float()
    return chosen.as_pixels(functional.interpolate(centre, (height, width), mode="bilinear")), chosen.labels


def invert(chosen: Chosen) -> Planted:
    """Light for dark: low + high - x, by the range of the inputs; 255 - x for pixels."""
    return chosen.as_pixels(chosen.low + chosen.high - chosen.inputs), chosen.labels


def foreign(chosen: Chosen) -> Planted:
    """Another data set's inputs, or noise with the mean and deviation of every pixel, within the range of the inputs; labels uniform."""
    generator, count = chosen.seeds.generator(), len(chosen.labels)
    labels = torch.randint(chosen.split.num_classes, (count,), generator=generator)
    if chosen.foreign is not None:
        others = len(chosen.foreign)
        rows = torch.cat([torch.randperm(others, generator=generator) for _ in range(-(-count // others))])[:count]
        return chosen.foreign[rows], labels
    train = chosen.split.train.inputs
    mean, std = (values * unit_of(train) for values in moments(train, "pixel"))
    std = torch.where(train.amin(0) == train.amax(0), 0, std)  # moments has 1 there
    noise = mean + std * torch.randn(count, *train.shape[1:], generator=generator)
    return chosen.as_pixels(torch.minimum(torch.maximum(noise, chosen.low), chosen.high)), labels


LAWS: Mapping[str, Callable[[Chosen], Planted]] = {
    law.__name__: law for law in (mislabel, mislabel_pairs, mislabel_close, corrupt, shift, zoom, invert, foreign)
}
OF_IMAGES = ("shift", "zoom")


def planted(split: Split, settings: PlantSettings, seed: int, closest: Closest) -> Split:
    """The split with what `plant` asks for in its training samples: int(share N) of each type, in sets without a sample in common.

    `clean` keeps the right labels; a foreign input has none, and so its label counts as right. ConfigError for a share that is less than
    one sample, or images' types on vectors; DataError for foreign inputs of another shape.
    """
    if settings.plant is None:
        return split
    train, shares = split.train, plant_shares(settings.plant)
    counts = {name: int(share * len(train) + ROUNDING) for name, share in shares.items()}
    for name, share in shares.items():
        if not counts[name]:
            raise ConfigError(f"plant: {name}:{share:g}; a larger share, as it is less than one of {len(train)} training samples")
        if name in OF_IMAGES and len(train.shape) != 3:
            raise ConfigError(f"plant: {name}; images, and the data set has vectors")
        if name.startswith("mislabel") and split.num_classes < 2:
            raise ConfigError(f"plant: {name}; two classes or more, and the data set has one")
    seeds = Seeds(seed).child("data", "plant")
    low, high = bounds(train.inputs)
    others = None if settings.plant_from is None else _inputs_of(settings, train.inputs, seed)
    places = drawn(counts, len(train), seeds)
    inputs, labels, codes = train.inputs.clone(), train.labels.clone(), train.planted.clone()
    for name, rows in places.items():
        chosen = Chosen(train.inputs[rows], train.labels[rows], rows, seeds.child(name), split, low, high, closest, others)
        inputs[rows], labels[rows] = LAWS[name](chosen)
        codes[rows] = TYPES.index(name) + 1
    clean = torch.where(codes == TYPES.index("foreign") + 1, labels, train.clean)
    return replace(split, train=replace(train, inputs=inputs, labels=labels, clean=clean, planted=codes))


def drawn(counts: Mapping[str, int], size: int, seeds: Seeds) -> dict[str, Tensor]:
    """Places of the samples of every type among `size`, no place twice.

    The k-th of TYPES has the k-th eighth of one random order to itself; what it lacks comes from the ends of the others. So a type of up to
    an eighth of all samples has the same ones whatever else is planted, and those of a smaller share are among those of a larger one.
    """
    parts = torch.randperm(size, generator=seeds.child("rows").generator()).tensor_split(PARTS)
    own = {name: parts[TYPES.index(name)][:count] for name, count in counts.items()}
    backwards = torch.cat([torch.arange(len(part)).flip(0) for part in parts])
    rest = torch.cat(parts)[backwards.argsort(stable=True)]  # the last of every part, then the last but one of every part, ...
    free = torch.ones(size, dtype=torch.bool)
    free[torch.cat(list(own.values()))] = False
    rest = rest[free[rest]]
    places = {}
    for name, rows in own.items():
        more = counts[name] - len(rows)
        places[name], rest = torch.cat([rows, rest[:more]]), rest[more:]
    return places


def _inputs_of(settings: PlantSettings, like: Tensor, seed: int) -> Tensor:
    """The training inputs of the data set `plant_from`, in the type of `like`; DataError unless their shape is the same."""
    word = str(settings.plant_from)
    inputs = load(SourceSettings(dataset=word, data_dir=settings.data_dir), seed).train.inputs
    if inputs.shape[1:] != like.shape[1:]:
        other, own = ("x".join(map(str, values.shape[1:])) for values in (inputs, like))
        raise DataError(f"plant_from: {brief(word)}, inputs of {other}; of {own}, the shape of the run's own")
    if inputs.dtype == like.dtype:
        return inputs
    scaled = inputs * (unit_of(like) / unit_of(inputs))
    return scaled.round().clamp(0, 255).to(torch.uint8) if like.dtype == torch.uint8 else scaled.to(like.dtype)


def planting(settings: PlantSettings) -> str:
    """What is planted, as the end of a phrase; empty where nothing is."""
    return f", planted {settings.plant}" if settings.plant else ""


def truth(samples: Samples) -> dict[str, Array]:
    """What is planted, as a run stores it: planted [N], 0 for none, else the place in plant_types plus 1."""
    return {"planted": samples.planted.cpu().numpy(), "plant_types": np.array(TYPES)}


def planted_arrays(split: Split) -> dict[str, Array]:
    """planted.npz of a run: the truth about its training samples, and five samples of every type; nothing where none is planted.

    labels, clean, index, fingerprint [N]; class_names [K]; gallery_labels, gallery_clean, gallery_index [types, 5], -1 where a type has
    fewer, and of images gallery_images [types, 5, ...].
    """
    train = split.train
    if not train.planted.any():
        return {}
    parts = {"labels": train.labels, "clean": train.clean, "index": train.index, "fingerprint": train.fingerprints}
    rows = torch.full((len(TYPES), SHOWN), -1)
    for code, row in enumerate(rows, start=1):
        found = (train.planted == code).nonzero().flatten()
        spread = torch.linspace(0, len(found) - 1, min(SHOWN, len(found))).round().long()
        row[: len(spread)] = found[spread]
    none = rows < 0
    picked = train.pick(rows.flatten().clamp_min(0))
    for name in ("labels", "clean", "index"):
        parts[f"gallery_{name}"] = getattr(picked, name).view(rows.shape).masked_fill(none, -1)
    if len(train.shape) == 3:
        images = picked.inputs.view(*rows.shape, *train.shape)
        parts["gallery_images"] = images.masked_fill(none[..., None, None, None], 0)
    names = {"class_names": np.array(split.class_names)}
    return truth(train) | names | {name: value.cpu().numpy() for name, value in parts.items()}
