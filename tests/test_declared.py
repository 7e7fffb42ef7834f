"""What a developer gets wrong is told by name: settings that no one declared, words that are none."""

import copy
import pickle
from dataclasses import replace

import pytest

from hardbench.errors import ConfigError
from hardbench.registry import DATASETS, MODELS
from hardbench.studies import eval as evaluation, invert, train


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("modle", r"^modle: no such setting; nearest: model$"),
        ("Batch_Size", r"^Batch_Size: no such setting; nearest: batch_size$"),
        ("learning_rate", r"^learning_rate: a former name; it is lr now$"),
        ("zzzzzzzz", r"^zzzzzzzz: no such setting; one of "),
    ],
)
@pytest.mark.parametrize("study", [train, invert])
def test_a_config_knows_its_words(study, word, told):
    """As the command line does; not a TypeError of Python's."""
    if study is invert and word in ("modle", "Batch_Size"):
        told = rf"^{word}: no such setting; "
    with pytest.raises(ConfigError, match=told):
        study.Config(**{word: 1})


def test_configs_are_copied_and_replaced():
    config = train.Config(width=7, repeats=2)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == replace(config) == config
    with pytest.raises(ConfigError, match=r"^widht: no such setting; nearest: width$"):
        replace(config, widht=3)


def test_a_model_that_reads_what_is_no_setting(monkeypatch):
    """Told where it is looked up first, with the place to declare it."""
    MODELS["mlp"]
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    MODELS.add("strange", reads=("width", "undeclared"))(lambda *parts: None)
    with pytest.raises(ConfigError, match=r'^model: strange reads undeclared; declared in settings.py, setting.*read_by="model"'):
        train.Config(model="strange")


def test_what_is_registered_reads_settings():
    """Every model and data set, and also by a class that has the choice without the rest."""
    for model in MODELS:
        assert train.Config(model=model).model == model
    for dataset in DATASETS:
        assert evaluation.Config(dataset=dataset).dataset == dataset
