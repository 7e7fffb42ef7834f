"""Settings as long as they may be: what is accepted can be written and read again, what is longer is refused where it is given."""

import pytest

from hardbench.cli import main
from hardbench.configs.train import Config
from hardbench.declaration import SEVERAL, TEXT
from hardbench.errors import ConfigError
from hardbench.yaml_text import parse_yaml


def again(config):
    return Config.read({}, {}, parse_yaml(config.to_yaml(), "config.yaml"))


def test_the_longest_list_of_steps_is_read_again():
    config = Config(eval_steps=tuple(range(SEVERAL)))
    assert again(config) == config


@pytest.mark.slow
def test_the_longest_settings_are_read_again():
    """Every list of a training as long as it may be, of the longest items that may stand in it, in letters that YAML escapes."""
    numbers = [f"{n:05d}" for n in range(SEVERAL)]
    config = Config(
        class_map={n + 10**15 - SEVERAL: n for n in range(SEVERAL)},
        gaussian_shape=(10**15,) * SEVERAL,
        dataset="gaussian",
        mean=(-1.2345678901e-100,) * SEVERAL,
        std=(1.2345678901e-100,) * SEVERAL,
        widths=(10**15,) * SEVERAL,
        eval_steps=tuple(range(10**15, 10**15 + SEVERAL)),
        layer_metrics=("probe_accuracy",) * SEVERAL,
        tag={n: "\U0001f600" * (TEXT // SEVERAL - len(n) - 1) for n in numbers},
    )
    assert again(config) == config


def test_what_is_longer_is_refused_by_its_own_name(capfd):
    assert main(["train", "--eval-steps", ",".join(map(str, range(SEVERAL + 1)))]) == 2
    assert capfd.readouterr().err == f"hardbench: eval_steps: {SEVERAL + 1} values; at most {SEVERAL}\n"
    assert main(["train", "--class-map", ",".join(f"{n}:0" for n in range(SEVERAL + 1))]) == 2
    assert capfd.readouterr().err == f"hardbench: class_map: {SEVERAL + 1} values; at most {SEVERAL}\n"
    with pytest.raises(ConfigError, match=rf"^name: {SEVERAL + 1} characters; at most {SEVERAL}$"):
        Config(name="n" * (SEVERAL + 1))
    with pytest.raises(ConfigError, match=rf"^tag: \d+ characters; at most {TEXT}$"):
        Config(tag={str(n): "x" * 1000 for n in range(300)})
