"""The masking engine predicts what a straightforward loop does, for every layer, mode and set; sets of channels are what they say."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hardbench import seeding
from hardbench.data.digits import load
from hardbench.errors import ConfigError
from hardbench.masking import masks as masking
from hardbench.masking.convolutions import Bilinear, Direct, fast_pool
from hardbench.masking.masks import ConfusionCounts, Masker, count_confusions, folded_blocks, masked_layers, subsets
from hardbench.metrics.classification import confusion_counts
from hardbench.models.layers import ACTIVATIONS, Chain
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.settings import MODES
from hardbench.studies import train

SIDE = 16


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# the networks


def small_vgg(activation="relu", pooling=nn.MaxPool2d, first=16):
    """Images 16x16 to 1x1 as in a VGG: every kind of map of the engine, batch norm, a hidden linear layer, dropout."""
    blocks, channels = [], 1
    for width, pooled in ((first, True), (20, False), (24, True), (32, True), (32, True)):
        block = [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), ACTIVATIONS[activation]()]
        blocks.append(nn.Sequential(*block, *[pooling(2)] * pooled))
        channels = width
    hidden = nn.Sequential(nn.Flatten(), nn.Linear(32, 24), nn.ReLU(), nn.Dropout(0.5))
    return Chain([*blocks, hidden], nn.Linear(24, 10))


def digits(count):
    split = load(train.Config(), None, Seeds(0))
    images = functional.interpolate(split.train.inputs[:count].float() / 16, size=SIDE, mode="bilinear")
    return (images - images.mean()) / images.std(), split.train.labels[:count]


@pytest.fixture(scope="module")
def trained():
    """A small VGG that tells the digits apart, batch norm's statistics far from 0 and 1 (rescaled, the same function)."""
    with Seeds(3).as_global():
        chain = small_vgg()
        inputs, labels = digits(400)
        optimizer = torch.optim.Adam(chain.parameters(), lr=3e-3)
        for rows in itertools.chain(*[torch.randperm(400).split(50) for _ in range(5)]):
            optimizer.zero_grad()
            functional.cross_entropy(chain(inputs[rows]), labels[rows]).backward()
            optimizer.step()
    with torch.no_grad():
        modules = [m for m in chain.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
        for conv, norm in zip(modules[::2], modules[1::2], strict=True):
            conv.weight *= 6
            conv.bias.mul_(6).add_(2)
            norm.running_mean.mul_(6).add_(2)
            norm.running_var.mul_(36)
    chain.eval()
    assert all(abs(m.running_mean).mean() > 0.5 and m.running_var.median() > 2 for m in chain.modules() if isinstance(m, nn.BatchNorm2d))
    assert len(chain(inputs[:100]).argmax(1).unique()) >= 5
    return chain


# the straightforward loop


@torch.no_grad()
def plain(chain, inputs, module, keep, mode):
    """Logits of a copy of the network in which one layer keeps some channels: weights set to 0, or its activations replaced."""
    network = copy.deepcopy(chain)
    layer = network.get_submodule(module)
    if mode == "conv_weight":
        layer.weight[~keep] = 0
        return network(inputs)
    flat = [m for m in network.modules() if not list(m.children())]
    active = next(m for m in flat[flat.index(layer) :] if isinstance(m, tuple(type(make()) for make in ACTIVATIONS.values())))
    seen = []
    active.register_forward_hook(lambda _, __, out: seen.append(out))
    network(inputs)
    means = seen[0].mean([0, *range(2, seen[0].ndim)])

    def replace(_, __, out):
        constant = torch.zeros_like(means) if mode == "activation_zero" else means
        shape = (1, -1) + (1,) * (out.ndim - 2)
        return torch.where(keep.view(shape), out, constant.view(shape))

    active.register_forward_hook(replace)
    return network(inputs)


def engine(chain, inputs, masks, mode, **more):
    """Logits [S, B, K] by layer, -1 for no mask."""
    masker = Masker(chain, inputs.shape[1:], masks, **more)
    masker.set_constants(mode, lambda: iter(inputs.split(7)))
    found = {}
    for layer, rows, logits in masker.logits(inputs, list(masks)):
        found.setdefault(layer, []).append(logits)
        assert rows.stop - rows.start == len(logits)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def masks_of(chain, shape, sets):
    blocks = folded_blocks(chain, shape)
    return {layer: subsets(blocks[layer].channels, sets, generator(layer)) for layer in masked_layers(chain)}


def assert_same(chain, inputs, sets, mode, share=1e-4, **more):
    """The same logits within a share of their range, and the same prediction where the two highest are further apart than that."""
    blocks, masks = folded_blocks(chain, inputs.shape[1:]), masks_of(chain, inputs.shape[1:], sets)
    found = engine(chain, inputs, masks, mode, **more)
    assert list(found) == [*masks, -1]
    torch.testing.assert_close(found[-1][0], chain(inputs).detach(), rtol=1e-4, atol=share * 10)
    for layer, rows in masks.items():
        assert len(found[layer]) == len(rows)
        for keep, logits in zip(rows, found[layer], strict=True):
            expected = plain(chain, inputs, blocks[layer].module, keep, mode)
            allowed = share * (expected.max() - expected.min())
            assert (logits - expected).abs().max() <= allowed, (layer, int(keep.sum()))
            first, second = expected.topk(2).values.T
            clear = first - second > 2 * allowed
            assert torch.equal(logits.argmax(1)[clear], expected.argmax(1)[clear])


@pytest.mark.parametrize("mode", MODES)
def test_predictions_are_those_of_the_straightforward_loop(trained, mode):
    kinds = [type(block.map) for block in folded_blocks(trained, (1, SIDE, SIDE))]
    assert {Direct, Bilinear} <= set(kinds)
    assert_same(trained, digits(60)[0], 9, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", ["cnn", "simple_cnn", "mlp"])
def test_every_model_in_sequence_is_masked_rightly(model, mode):
    more = (
        {"activation": "tanh", "pooling": "avg"} if "cnn" in model else {"widths": (30, 20), "activation": "gelu"} if model == "mlp" else {}
    )
    chain = MODELS[model].call((2, 12, 12), 5, train.Config(model=model, **more), seeding.networks(0, 0, 1)).member(0).eval()
    assert_same(chain, torch.randn(20, 2, 12, 12, generator=generator()), 5, mode)


def test_vgg11_is_masked_rightly():
    chain = MODELS["vgg11"].call((3, 32, 32), 5, train.Config(model="vgg11"), seeding.networks(0, 0, 1)).member(0).eval()
    assert_same(chain, torch.randn(4, 3, 32, 32, generator=generator()), 1, "conv_weight")


def test_a_few_mib_give_the_same(trained):
    inputs, _ = digits(40)
    masks = masks_of(trained, inputs.shape[1:], 20)
    much, little = (engine(trained, inputs, masks, "conv_weight", memory=memory) for memory in (1 << 29, 1 << 20))
    for layer in much:
        torch.testing.assert_close(much[layer], little[layer], rtol=1e-4, atol=1e-4)


def test_bf16_tells_nearly_the_same(trained):
    inputs, _ = digits(100)
    masks = masks_of(trained, inputs.shape[1:], 10)
    exact, rough = (engine(trained, inputs, masks, "conv_weight", precision=precision) for precision in ("fp32", "bf16"))
    assert np.mean([(exact[layer].argmax(-1) == rough[layer].argmax(-1)).float().mean().item() for layer in exact]) > 0.96


def test_a_mask_that_keeps_all_is_no_mask(trained):
    inputs, _ = digits(20)
    channels = [block.channels for block in folded_blocks(trained, inputs.shape[1:])]
    found = engine(trained, inputs, {layer: torch.ones(1, channels[layer], dtype=torch.bool) for layer in range(5)}, "activation_zero")
    for layer in range(5):
        torch.testing.assert_close(found[layer][0], found[-1][0], rtol=1e-5, atol=1e-5)


def test_each_batch_of_images_goes_through_once(trained, monkeypatch):
    """The first convolution, which no mask changes, is computed once per batch, however many layers and sets there are."""
    seen = []
    full = Direct.full
    monkeypatch.setattr(Direct, "full", lambda self, inputs, bias: (seen.append(len(inputs)), full(self, inputs, bias))[1])
    inputs, labels = digits(50)
    masks = masks_of(trained, inputs.shape[1:], 3)
    masker = Masker(trained, inputs.shape[1:], masks)
    masker.set_constants("conv_weight", lambda: iter(()))
    seen.clear()
    first = [isinstance(block.map, Direct) for block in masker.blocks].index(True)
    assert first == 0 and sum(isinstance(block.map, Direct) for block in masker.blocks) == 1
    list(count_confusions(masker, lambda a, b: inputs[a:b], labels, ConfusionCounts(masks, 10), 20))
    assert seen == [20, 20, 10]


def test_confusions_are_those_of_the_predictions_also_in_parts(trained):
    inputs, labels = digits(50)
    masks = masks_of(trained, inputs.shape[1:], 4)
    found = engine(trained, inputs, masks, "conv_weight")
    hard = torch.rand(50, generator=generator()) < 0.3
    counts = ConfusionCounts(masks, 10, parts=2)
    masker = Masker(trained, inputs.shape[1:], masks)
    masker.set_constants("conv_weight", lambda: iter(()))
    list(count_confusions(masker, lambda a, b: inputs[a:b], labels, counts, 20, hard.long()))
    for layer, logits in found.items():
        for part, rows in enumerate((~hard, hard)):
            assert torch.equal(counts.counts[layer][part], confusion_counts(labels[rows], logits.argmax(-1)[:, rows], 10))


def test_a_count_goes_on_at_the_next_unfinished_layer(trained):
    inputs, labels = digits(50)
    masks = masks_of(trained, inputs.shape[1:], 4)

    def counted(counts, stop):
        masker = Masker(trained, inputs.shape[1:], masks)
        masker.set_constants("activation_mean", lambda: iter([inputs]))
        return list(itertools.islice(count_confusions(masker, lambda a, b: inputs[a:b], labels, counts, 20), stop))

    whole = ConfusionCounts(masks, 10)
    assert counted(whole, None) == [0, 1, 2, 3, 4, -1] * 3
    broken = ConfusionCounts(masks, 10)
    counted(broken, 9)  # the second batch, after its third layer
    again = ConfusionCounts(masks, 10)
    again.load(broken.state())
    assert counted(again, None) == [3, 4, -1, 0, 1, 2, 3, 4, -1]
    for layer, counts in whole.counts.items():
        assert torch.equal(again.counts[layer], counts)


@pytest.mark.parametrize("model", ["resnet18", "gmlp"])
def test_what_is_no_sequence_is_refused(model):
    chain = MODELS[model].call((3, 32, 32), 5, train.Config(model=model), seeding.networks(0, 0, 1)).member(0)
    with pytest.raises(ConfigError, match=f"model: {model}; one whose layers run in sequence"):
        masking.check_sequential(chain, model)


# the maps


@pytest.mark.parametrize("size", [(2, 2), (4, 4), (8, 8), (12, 4), (16, 16)])
def test_tiles_are_the_convolution(size):
    conv = nn.Conv2d(16, 24, 3, padding=1)
    inputs, weight, bias = torch.randn(5, 16, *size), conv.weight.detach(), torch.randn(1, 24, 1, 1)
    map_ = Bilinear.of(conv, weight, inputs)
    expected = functional.conv2d(inputs.double(), weight.double(), bias.flatten().double(), padding=1)
    torch.testing.assert_close(map_.full(inputs, bias).double(), expected, rtol=0, atol=2e-5)
    channels = torch.tensor([1, 4, 15])
    out = map_.empty(5)
    map_.into(out, map_.prepare(inputs), bias, -1, channels)
    part = functional.conv2d(inputs[:, channels].double(), weight[:, channels].double(), padding=1)
    torch.testing.assert_close(out.double(), bias.double() - part, rtol=0, atol=2e-5)


def test_other_convolutions_are_torchs():
    inputs = torch.randn(2, 16, 8, 8)
    for conv in (
        nn.Conv2d(16, 16, 5, padding=2),
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(16, 16, 3, padding=1, stride=2),
        nn.Conv2d(16, 8, 3, padding=1),
    ):
        assert Bilinear.of(conv, conv.weight.detach(), inputs) is None
    assert Bilinear.of(nn.Conv2d(16, 16, 3, padding=1), torch.randn(16, 16, 3, 3), torch.randn(2, 16, 7, 7)) is None


@pytest.mark.parametrize("module", [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.MaxPool2d(3), nn.MaxPool2d(2, padding=1)])
def test_pooling_is_torchs_in_any_order_of_memory(module):
    images = torch.randn(3, 4, 7, 9)
    for one in (images, images.to(memory_format=torch.channels_last), images.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)):
        torch.testing.assert_close(fast_pool(module, one), module(images))


# the sets


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_there_are_no_more_sets_than_there_are(channels):
    found = subsets(channels, 1000, generator())
    assert len(found) == 2**channels - 1 == len({tuple(row.tolist()) for row in found})
    assert found.any(1).all()


def test_sets_are_distinct_and_fixed_by_the_seed():
    found = subsets(7, 100, generator(1))
    assert found.dtype == torch.bool and len({tuple(row.tolist()) for row in found}) == 100
    assert torch.equal(found, subsets(7, 100, generator(1)))
    assert not torch.equal(found, subsets(7, 100, generator(2)))


def test_sizes_are_uniform_and_so_are_channels():
    from scipy.stats import chisquare

    found = torch.cat([subsets(64, 4, generator(seed)) for seed in range(1500)])
    sizes = torch.bincount(found.sum(1), minlength=65)
    assert sizes[0] == 0
    assert chisquare(sizes[1:].numpy()).pvalue > 0.001
    assert chisquare(found.sum(0).numpy()).pvalue > 0.001
