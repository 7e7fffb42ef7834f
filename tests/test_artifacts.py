"""Names of stored arrays: built and taken apart by functions that are each other's inverse."""

import numpy as np
import pytest

from hardbench.artifacts import LAYER_PARTS, by_model, check, layer_key, masked_key, metric_of, model_key, setting_key, settings_of
from hardbench.registry import LAYER_METRICS


@pytest.mark.parametrize("part", ["val", *LAYER_PARTS])
def test_a_layer_key_gives_its_metric_back(part):
    assert len(list(LAYER_METRICS)) > 10
    for metric in (*LAYER_METRICS, "loss", "train", "my_test_metric"):
        assert metric_of(layer_key(metric, part)) == metric


def test_layer_keys_are_those_of_the_store():
    assert layer_key("margin") == layer_key("margin", "val") == "layer_margin"
    assert layer_key("margin", "null_std") == "layer_margin_null_std"
    assert [metric_of(key) for key in ("train_layer_loss", "accuracy", "steps")] == [None] * 3


def test_keys_of_masked_layers():
    assert [masked_key("mi", layer) for layer in (None, 0, 12, 123)] == ["mi_full", "mi_00", "mi_12", "mi_123"]


@pytest.mark.parametrize("models", [["vgg11"], ["vgg11", "vgg13"]])
def test_arrays_of_models_are_found_again(models):
    stored = {model_key("mi_full", model, len(models)): np.array([place]) for place, model in enumerate(models)}
    assert stored.keys() == ({"mi_full"} if len(models) == 1 else {"vgg11/mi_full", "vgg13/mi_full"})
    apart = by_model(stored | {"models": np.array(models)})
    assert list(apart) == models
    assert [int(arrays["mi_full"][0]) for arrays in apart.values()] == list(range(len(models)))


def test_settings_of_a_sweep_are_found_again():
    stored = {setting_key(name): np.array([name]) for name in ("model", "corruption_p")} | {"test_accuracy": np.ones((1, 2))}
    assert {name: values.item() for name, values in settings_of(stored).items()} == {"model": "model", "corruption_p": "corruption_p"}


def _masking(models: list[str]) -> dict[str, np.ndarray]:
    """A mask-mi archive of two layers (4 and 5 channels), three sets, two networks, two classes."""
    arrays = {"layers": np.arange(2), "n_channels": np.array([4, 5])}
    arrays |= {name: np.array(["x", "y"]) for name in ("layer_names", "class_names")}
    shapes = {"confusion": (2, 2), "mi": (), "accuracy": (), "class_information": (2,)}
    arrays |= {masked_key(name, None): np.ones((2, *shape)) for name, shape in shapes.items()}
    for layer, channels in enumerate((4, 5)):
        shapes = {"mi": (2, 3), "accuracy": (2, 3), "class_information": (2, 3, 2), "contribution": (2, 3, channels)}
        shapes |= {"masks": (3, channels), "kept": (3,)}
        arrays |= {masked_key(name, layer): np.ones(shape) for name, shape in shapes.items()}
    every = {model_key(name, model, len(models)): array for model in models for name, array in arrays.items()}
    return every | {"models": np.array(models)}


@pytest.mark.parametrize(("models", "start"), [(["vgg11"], ""), (["vgg11", "vgg13"], "vgg13/")])
def test_a_masking_archive_has_every_array_of_every_model(models, start):
    arrays = _masking(models)
    check(arrays, "mask-mi")
    for name in ("mi_full", "layers", "contribution_01"):
        with pytest.raises(ValueError, match=f"^no array {start}{name} in it$"):
            check({key: array for key, array in arrays.items() if key != start + name}, "mask-mi")
    with pytest.raises(ValueError, match=rf"^{start}accuracy_01 has shape \(2, 4\), and others have 3 there; one length$"):
        check(arrays | {f"{start}accuracy_01": np.ones((2, 4))}, "mask-mi")
