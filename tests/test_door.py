"""The door: every error is one line on stderr with its exit code and leaves nothing behind; former names, registries, commands."""

import copy
import pickle
import signal

import pytest
import torch
from words import REGISTRIES, given, no_surroundings

from hardbench.cli import commands, main
from hardbench.config import options
from hardbench.errors import ConfigError, DataError, HardbenchError, Killed, TrackingError, TrainingError, nearest
from hardbench.studies import train


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)


ERRORS = {
    "train --modle mlp": "modle: no such setting; nearest: model",
    "train --model mpl": "model: mpl; nearest: mlp",
    "train --model qqqq": "model: qqqq; one of cnn, ",
    "train --dataset mnits": "dataset: mnits; nearest: mnist",
    "train --optimizer adm": "optimizer: adm; nearest: adam",
    "train --activation rleu": "activation: rleu; nearest: relu",
    "train --dataset_name mnist": "dataset_name: a former name; it is dataset now",
    "train --target-accuracy 95": "target_accuracy: 95; a share from 0 to 1 (0.95, not 95 %)",
    "train --noise-ratio 10": "noise_ratio: 10; a share from 0 to 1 (0.95, not 95 %)",
    "train --eval-steps 0,1 2": "eval_steps: stray '2'; lists take commas: 0,1,2",
    "train --augment maybe": "arguments: stray 'maybe'; lists take commas",
    "train --tau 0.1 --model cnn": "tau: 0.1; model cnn does not read it (read by gmlp)",
    "train --momentum 0.9": "momentum: 0.9; optimizer adam does not read it (read by sgd)",
    "train --gaussian-std 2": "gaussian_std: 2.0; dataset digits does not read it (read by gaussian)",
    "train --epochs": "epochs: no value; ",
    "train --epochs 0": "epochs: 0; at least 1",
    "train --lr nan": "lr: nan; a number",
    "train --seed 1.5": "seed: 1.5; a whole number",
    "train --config nofile": "config: nofile; a YAML file or a preset, ",
    "train -x": "No such option '-x'",
    "trian": "command: trian; nearest: train",
    "trian --seed 3": "command: trian; nearest: train",
    "--frobnicate": "--frobnicate",
    "--frobnicate train": "--frobnicate",
    "train --dataset npz": "dataset: npz; ",
    "train --model cnn --depth 4": "depth: 4; at most 3 for images of side 8",
    "train --model cnn --dataset gaussian --gaussian-shape 9": "model: cnn; takes images",
    "train --dataset gaussian --augment --gaussian-shape 9": "augment: true; images",
    "train --model resnet18 --batch-size 1": "batch_size: 1; ",
    "train --mean 1,2": "mean: [1.0, 2.0]; ",
    "train --device cuda": "device: cuda; no GPU here",
    "train --out /dev/null/x": "out: /dev/null/x; a folder that can be written",
}


@pytest.mark.parametrize("words", ERRORS)
def test_bad_input_is_one_line_and_leaves_nothing(words, capsys, tmp_path):
    if "cuda" in words and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(words.split()) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("hardbench: ")
    assert shown.err.count("\n") == 1
    assert ERRORS[words] in shown.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("train --dataset npz:none.npz", "none.npz"),
        ("train --subset-size 2000", "subset_size: 2000; at most the 1437 training samples"),
        ("train --val-size 1437", "val_size: 1437; fewer than the 1437 training samples"),
        ("train --class-map 0:0,10:1", "class_map: class 10; the data set has classes 0 to 9"),
        ("train --dataset gaussian --corruption-p 0.1", "corruption_p: inputs outside [0, 1]"),
    ],
)
def test_data_that_does_not_fit_leaves_nothing(words, line, capsys, tmp_path):
    assert main(words.split()) == DataError.exit_code == 3
    assert line in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


VARIANTS = ["model=mlp", "model=resnet18", "optimizer=sgd", "scheduler=cosine", "dataset=digits", "dataset=gaussian"]


@pytest.mark.parametrize("choice", VARIANTS)
def test_a_variant_where_there_is_none(choice):
    """`emnist:letters` and `npz:PATH` have a part behind a colon; what has none must not swallow it."""
    name, _, word = choice.partition("=")
    with pytest.raises(HardbenchError, match=f"^{name}: {word}:x; "):
        train.prepare(train.Config(**{name: f"{word}:x"}))


def test_exit_codes():
    codes = {HardbenchError: 1, ConfigError: 2, DataError: 3, TrainingError: 4, TrackingError: 5}
    assert {error: error.exit_code for error in codes} == codes
    assert main([]) == main(["--help"]) == main(["train", "--help"]) == 0


@pytest.mark.parametrize(("word", "expected"), [("Batch-Sise", "nearest: batch_size"), ("zzz", "one of batch_size, epochs")])
def test_nearest(word, expected):
    assert nearest(word, ["batch_size", "epochs"]) == expected


FORMER = {  # the former names of train's settings
    "dataset_name": "dataset",
    "model_type": "model",
    "ps": "corruption_p",
    "learning_rate": "lr",
    "N": "repeats",
    "runs": "repeats",
    "layers": "depth",
    "steps": "eval_steps",
    "num_points": "eval_points",
    "max_train_samples": "subset_size",
    "use_cuda": "device",
    "target_acc": "target_accuracy",
    "metrics_log_frequency": "log_every",
}


def test_former_names_are_refused_with_the_new_one(tmp_path):
    declared = {old: option.name for option in options(train.Config).values() for old in option.declared.was}
    assert FORMER.items() <= declared.items()
    for old, new in declared.items():
        (tmp_path / "c.yaml").write_text(f"{old}: 1")
        for words in (["--config", "c.yaml"], [f"--{old}", "1"], [f"--{old.replace('_', '-')}=1"], [f"--{old}"]):
            with pytest.raises(ConfigError, match=f"^{old}: a former name; it is {new} now$"):
                given(*words)


def test_registries_know_their_entries():
    for noun, registry in REGISTRIES.items():
        assert list(registry) == sorted(registry)
        for name in registry:
            assert registry[name.upper()].name == name
            assert registry[name].summary.endswith(".")
            assert registry[name].reads <= options(train.Config).keys()
            assert registry[name].defaults.keys() <= options(train.Config).keys()
        with pytest.raises(ConfigError, match=f"^{noun}: nonsense; one of "):
            registry["nonsense"]


def test_commands_are_files():
    assert {"train", "data"} <= commands().keys()
    for _, summary in commands().values():
        assert summary and not summary.endswith(".")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_what_killed_a_process_can_be_told_by_another(number):
    for again in (pickle.loads(pickle.dumps(Killed(number))), copy.copy(Killed(number))):
        assert (type(again), again.number, str(again)) == (Killed, number, number.name)
    assert str(Killed()) == "SIGTERM"
