"""Settings: one declaration, the same value by command line, environment, YAML or code, and one clear line for a wrong one."""

import math
from dataclasses import dataclass, replace

import pytest
from words import REGISTRIES, given, no_surroundings

from hardbench.cli import main
from hardbench.config import Config, environment, options, parse_yaml, presets, read_file
from hardbench.configs.sweep import sweep_class
from hardbench.declaration import setting
from hardbench.errors import ConfigError
from hardbench.registry import MODELS
from hardbench.studies import invert, stragglers, train

OPTIONS = options(train.Config)


@pytest.fixture(autouse=True)
def nothing_around(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)


# words


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("", False),
        ("--augment", True),
        ("--augment true", True),
        ("--augment FALSE", False),
        ("--augment=no", False),
        ("--augment=on", True),
        ("--augment off --seed 3", False),
        ("--augment --seed 3", True),
        ("--seed 3 --augment", True),
        ("--augment --augment false", False),
    ],
)
def test_booleans(words, value):
    assert given(*words.split()).augment is value


@dataclass(frozen=True)
class Own(Config):
    """A command with a boolean, a boolean or word, and runs by position."""

    runs: tuple[str, ...] = setting((), "Runs.", position=True, was=("run_dirs",))
    show: bool = setting(False, "Show.")
    small: bool | str = setting("auto", "Small.", words=("auto",))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--show last", (("last",), True, "auto")),
        ("--show false last", (("last",), False, "auto")),
        ("a --show b", (("a", "b"), True, "auto")),
        ("--small a", (("a",), False, True)),
        ("--small AUTO a", (("a",), False, "auto")),
        ("--runs a,b --show", (("a", "b"), True, "auto")),
        ("--show", ((), True, "auto")),
    ],
)
def test_a_boolean_takes_the_next_word_only_if_it_is_one(words, expected):
    own = given(*words.split(), config=Own)
    assert (own.runs, own.show, own.small) == expected


def test_underscore_and_dash_are_the_same():
    for words in ("--batch_size 3", "--batch-size 3", "--batch_size=3", "--batch-size=3"):
        assert given(*words.split()).batch_size == 3
    assert given("--init", "kaiming-normal").init == given("--init", "kaiming_normal").init == "kaiming_normal"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        ("--widths 256,128", "widths", (256, 128)),
        ("--widths=256", "widths", (256,)),
        ("--eval-steps 0,10,1e3", "eval_steps", (0, 10, 1000)),
        ("--mean -0.5", "mean", (-0.5,)),
        ("--shift -1", "shift", -1.0),
        ("--class-map 0:0,2:1", "class_map", {0: 0, 2: 1}),
        ("--class-map 3:1,1:0", "class_map", {3: 1, 1: 0}),
        ("--tag a=b,c=d:e", "tag", {"a": "b", "c": "d:e"}),
        ("--batch-size full", "batch_size", "full"),
        ("--batch-size FULL", "batch_size", "full"),
        ("--subset-size all", "subset_size", "all"),
        ("--val-size 5000", "val_size", 5000.0),
        ("--lr 1e-3", "lr", 0.001),
        ("--epochs 1e1", "epochs", 10),
        ("--dataset MNIST", "dataset", "mnist"),
        ("--dataset Emnist:Letters", "dataset", "emnist:Letters"),
        ("--dataset npz:/My/Data.npz", "dataset", "npz:/My/Data.npz"),
        ("--model GMLP", "model", "gmlp"),
        ("--name --odd", "name", "--odd"),
    ],
)
def test_words_become_values(words, name, value):
    found = getattr(given(*words.split()), name)
    assert (found, type(found)) == (value, type(value))


def test_every_setting_is_an_option_with_help(capsys):
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name, option in OPTIONS.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert option.declared.help.split()[0] in shown


# precedence


def test_precedence(tmp_path, monkeypatch):
    """Command line, environment, config, the model's own default, the study's: the first that names a setting wins."""
    (tmp_path / "c.yaml").write_text("batch_size: 32\nlr: 0.5\nmodel: gmlp\nepochs: 3\n")
    assert given().batch_size == options(train.Config)["batch_size"].declared.default == 64
    assert given("--model", "gmlp").batch_size == MODELS["gmlp"].defaults["batch_size"] == 128
    assert given("--config", "c.yaml").batch_size == 32
    monkeypatch.setenv("HARDBENCH_BATCH_SIZE", "16")
    assert (given().batch_size, given("--config", "c.yaml").batch_size) == (16, 16)
    found = given("--config", "c.yaml", "--batch-size", "8", "--epochs", "2")
    assert (found.batch_size, found.epochs, found.lr, found.model, found.depth) == (8, 2, 0.5, "gmlp", 4)
    monkeypatch.setenv("HARDBENCH_CONFIG", "c.yaml")
    assert (given().lr, given().batch_size, given("--model", "mlp").model) == (0.5, 16, "mlp")


def test_a_setting_beats_its_rival_of_a_lower_source(tmp_path):
    """widths stands in place of depth and width: by the same source they exclude each other, else the higher one wins."""
    (tmp_path / "deep.yaml").write_text("depth: 3\nwidth: 9\n")
    (tmp_path / "wide.yaml").write_text("widths: [5, 6]\n")
    found = given("--config", "deep.yaml", "--widths", "8,7")
    assert (found.widths, found.depth, found.width) == ((8, 7), None, None)
    found = given("--config", "wide.yaml", "--depth", "3")
    assert (found.widths, found.depth, found.width) == (None, 3, 128)
    with pytest.raises(ConfigError, match=r"widths: .*not both"):
        given("--widths", "8,7", "--depth", "3")


def test_environment(monkeypatch):
    monkeypatch.setenv("HARDBENCH_DATA", "/one")
    assert given().data_dir == "/one"
    monkeypatch.setenv("HARDBENCH_DATA_DIR", "/two")
    assert (given().data_dir, given("--data-dir", "/three").data_dir) == ("/two", "/three")
    monkeypatch.setenv("HARDBENCH_AUGMENT", "true")
    monkeypatch.setenv("HARDBENCH_EPOCHS", "")  # empty is not given
    monkeypatch.setenv("HARDBENCH_NO_SUCH", "1")
    assert given().augment is True
    assert set(environment(train.Config)) == {"data_dir", "augment"}
    monkeypatch.setenv("HARDBENCH_EPOCHS", "ten")
    with pytest.raises(ConfigError, match="epochs: ten; a whole number"):
        given()


# YAML


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr: 1e-3", "--lr 0.001"),
        ("lr: 1E-3  # text for safe_load", "--lr 0.001"),
        ("widths: [256, 128]", "--widths 256,128"),
        ("widths: 256,128", "--widths 256,128"),
        ("widths: 256", "--widths 256"),
        ("class_map: {0: 0, 2: 1}", "--class-map 0:0,2:1"),
        ("class_map: 0:0,2:1", "--class-map 0:0,2:1"),
        ("class-map:\n  1: 0\n  0: 1", "--class-map 1:0,0:1"),
        ("tag: {a: 1, b: true}", "--tag a=1,b=True"),
        ("augment: yes\nstop-at-target: true", "--augment --stop-at-target"),
        ("batch_size: full\nepochs: 1.0", "--batch-size full --epochs 1"),
        ("eval_steps: []\nwidth: null\nname: 3", "--eval-steps= --name 3"),
        ("model: mlp\ndepth: '3'", "--model mlp --depth 3"),
        ("", ""),
        ("# nothing", ""),
    ],
)
def test_yaml_goes_through_the_same_parser(tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    assert replace(given("--config", "c.yaml"), config=None) == given(*words.split())


YAML_ERRORS = {
    "class_map: 1:0": r"class_map: 60; .*\{1: 0\}",
    "class_map: {1: 0, 1: 1}": "1: twice in",
    "lr: 1\nlr: 2": "lr: twice in",
    "batch-size: 1\nbatch_size: 2": "batch_size: twice in",
    "learning_rate: 1": "learning_rate: a former name; it is lr now",
    "epohcs: 1": "epohcs: no such setting; nearest: epochs",
    "training:\n  lr: 1": "training: a section; keys stand at top level",
    "model:\n  depth: 3": "model: .*top level",
    "target_accuracy: 95": "target_accuracy: 95; a share from 0 to 1",
    "epochs: [1, 2]": "epochs: .*a single value",
    "epochs: true": "epochs: True; a whole number",
    "lr: .nan": "lr: nan; a number",
    "lr: -.inf": "lr: -inf; a number",
    "widths: [3, x]": "widths: x; a whole number",
    "class_map: [0, 1]": "class_map: .*pairs such as 0:0,2:1",
    "- lr": "config: c.yaml; a mapping",
    "word": "config: c.yaml; a mapping",
    "lr: [1": "config: c.yaml; not YAML",
    "a: b\n---\nc: d": "config: c.yaml; not YAML",
    "name: !!python/object:os.system x": "config: c.yaml; not YAML",
}


@pytest.mark.parametrize("text", YAML_ERRORS, ids=repr)
def test_yaml_errors(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=YAML_ERRORS[text]) as error:
        given("--config", "c.yaml")
    assert "\n" not in str(error.value)


def test_a_config_that_is_no_text_or_not_there(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"lr: \xff\xfe\x00")
    for word in ("c.yaml", "none.yaml", "."):
        with pytest.raises(ConfigError, match=f"^config: {word}; "):
            given("--config", word)


PRESETS_OF = {
    "inversion": invert.Config,
    "stragglers": stragglers.Config,
    "corruption": sweep_class("train"),
    "prune": sweep_class("train"),
}


def test_presets_are_configurations():
    for word in presets():
        settings = PRESETS_OF.get(word.partition("_")[0], train.Config)
        found, read = read_file(word), settings.read(read_file(word)).as_dict()
        assert found and found.keys() <= read.keys()
        if settings is train.Config:
            assert given("--config", word).as_dict() == read


# what a choice reads


def _chosen(chooser, name):
    return {chooser: "npz:x" if name == "npz" else name}


@pytest.mark.parametrize(("chooser", "name"), [(chooser, name) for chooser, registry in REGISTRIES.items() for name in registry])
def test_a_setting_the_choice_does_not_read_is_refused_and_null(chooser, name):
    choice = _chosen(chooser, name)
    resolved = train.Config(**choice).as_dict()
    for unread, option in OPTIONS.items():
        if option.declared.read_by == chooser and unread not in REGISTRIES[chooser][name].reads:
            assert resolved[unread] is None
            value = option.declared.default if option.declared.default is not None else _valid(option)
            with pytest.raises(ConfigError, match=f"^{unread}: .*; {chooser} {name} does not read it"):
                train.Config(**choice, **{unread: value})


def _valid(option):
    value = {int: 3, float: 0.5, str: "x", tuple: (3,), dict: {0: 0}}[option.kind]
    return next(iter(option.declared.choices)) if option.declared.choices is not None else value


@pytest.mark.parametrize("name", list(MODELS))
def test_config_yaml_is_a_config(tmp_path, name):
    """What a run stores resolves to the same settings again, for every model."""
    config = train.Config(model=name)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert train.Config.read(parse_yaml(config.to_yaml(), "here")) == config
    assert given("--config", "config.yaml").as_dict() == config.as_dict()
    assert {"config", "out"}.isdisjoint(config.as_dict())


@pytest.mark.parametrize(
    "words",
    [
        "--widths 256,128 --class-map 0:0,3:1 --tag a=1,b=x=y --augment --mean 0.1,0.2,0.3 --batch-size full --name '3'",
        "--dataset gaussian --gaussian-mode overlap --gaussian-cosine 0.3 --gaussian-separation 2 --gaussian-shape 9",
        "--optimizer sgd --momentum 0.9 --weight-decay 0.01 --init kaiming_uniform --activation leaky_relu",
        "--model cnn --pooling avg --scheduler warmup_cosine --warmup 0.2 --lr 3e-4 --eval-steps 0,5 --val-size 0.15 --stop-at-target",
        "--model resnet18 --small-input false --precision bf16 --corruption-p 0.3 --subset-size 100 --subset-from first --std 2",
        "--lr 0.1234567890123456 --shift 1e-300 --seed 12345678901",
    ],
)
def test_settings_survive_their_file(tmp_path, words):
    config = given(*words.split())
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    again = given("--config", "config.yaml")
    assert again.as_dict() == config.as_dict()
    assert again.to_yaml() == config.to_yaml()


# every setting, by its declaration


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_values_of_every_setting(name):
    """Non-finite, out of range, the wrong type: a ConfigError that begins with the setting's name."""
    option, declared = OPTIONS[name], OPTIONS[name].declared
    wrong = []
    inner = option.items[0] if option.kind is tuple else option.kind
    if inner in (int, float):
        wrong += ["nan", "inf", "-inf", "1e999", "word", math.nan, math.inf, True, "1,x", "0x"]
        wrong += [""] if option.kind is inner else []
        wrong += [2.5, "2.5", 1e-9] if inner is int else []
        wrong += [] if declared.low is None else [declared.low - 1, math.nextafter(declared.low, -math.inf)]
        wrong += [] if declared.above is None else [declared.above, declared.above - 1, str(declared.above)]
        wrong += [] if declared.high is None else [declared.high + 1, math.nextafter(declared.high, math.inf)]
    if inner is bool:
        wrong += ["maybe", 2, "", 0.5, "null"]
    if declared.choices is not None:
        wrong += ["no such word", "", 7]
    if option.kind is dict:
        wrong += ["a", "0:0,1", 60, 0.5, ["0:0"], "0:0,0:1" if option.items[0] is int else "a=1,a=2"]
    elif option.kind is tuple:
        wrong += [{0: 1}, [[1]] if inner is not str else []]
    else:
        wrong += [[1, 2], {0: 1}, (1,)]
    assert wrong
    for value in wrong:
        with pytest.raises(ConfigError, match=f"^{name}: ") as error:
            train.Config(**{name: value})
            pytest.fail(f"{name}={value!r} was accepted")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", OPTIONS)
def test_defaults_and_bounds_are_valid(name):
    option, declared = OPTIONS[name], OPTIONS[name].declared
    values = [value for value in (declared.default, *declared.words, declared.low, declared.high) if value is not None]
    if declared.above is not None:
        values.append(math.nextafter(declared.above, math.inf) if option.kind is not int else declared.above + 1)
    for value in values:
        value = (value,) if option.kind is tuple and not isinstance(value, tuple) else value
        assert option.accept(value) == value
        assert option.accept(",".join(map(str, value)) if isinstance(value, tuple) else str(value)) == value


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.kind is tuple and option.declared.default != ()])
def test_a_list_of_nothing(name):
    """`--widths ,` is not a network without layers; only evaluation steps may be none (the first and last are always added)."""
    reader = {"dataset": {"dataset": "gaussian"}}.get(OPTIONS[name].declared.read_by, {})
    for nothing in ("", ",", []):
        if name == "eval_steps":
            assert train.Config(eval_steps=nothing).eval_steps == ()
            continue
        with pytest.raises(ConfigError, match=f"^{name}: "):
            train.Config(**reader, **{name: nothing})


def test_whole_numbers_are_exact():
    for number in (2**53 + 1, 2**63, 10**18 + 1):
        assert given("--seed", str(number)).seed == train.Config(seed=number).seed == number


# rules that join two settings


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--widths 3,4 --depth 2", "widths: .*either widths or depth, not both"),
        ("--val-size 1.5", "val_size: 1.5; a share below 1 or a whole number"),
        ("--class-map 0:0", "class_map: .*at least two"),
        ("--class-map 0:0,1:2", "class_map: .*without a gap"),
        ("--class-map 0:1,1:2", "class_map: .*without a gap"),
        ("--normalize none --mean 0", "mean: .*normalize scalar or channel, not none"),
        ("--normalize pixel --std 1", "std: .*normalize scalar or channel, not pixel"),
        ("--dataset gaussian --gaussian-cosine 0.5", "gaussian_cosine: 0.5; given with gaussian_mode overlap"),
        ("--dataset gaussian --gaussian-mode overlap", "gaussian_cosine: None; given with gaussian_mode overlap"),
    ],
)
def test_settings_that_do_not_go_together(words, line):
    with pytest.raises(ConfigError, match=line):
        given(*words.split())
