"""Words from outside that are none: settings, YAML, environment, tags. Each gives one line that names the setting, and exit code 2."""

import pytest
from words import given, no_surroundings

from hardbench.cli import main
from hardbench.config import parse_yaml
from hardbench.errors import ConfigError, HardbenchError

BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{now}: &{now} [{','.join([f'*{before}'] * 10)}]\n" for before, now in zip("abcdefg", "bcdefgh", strict=True)
)
YAML = {
    "map of a word": "epochs: !!map 3",
    "int of a word": "epochs: !!int abc",
    "bool of a word": "augment: !!bool abc",
    "float of a word": "lr: !!float abc",
    "timestamp of a word": "name: !!timestamp abc",
    "unknown tag": "name: !!python/object/apply:os.system [touch left]",
    "deep": "epochs: " + "[" * 100_000,
    "deep and closed": "epochs: " + "[" * 300 + "]" * 300,
    "digits": "epochs: " + "9" * 5000,
    "hexadecimal digits": "epochs: 0x" + "f" * 5000,
    "sixties": "lr: " + "1:" * 3000 + "1.5",
    "huge": "epochs: 1e400",
    "large": "epochs: 1e300",
    "aliases": BOMB,
    "a long word many times": f"a: &a {'x' * 100_000}\nb: [{','.join(['*a'] * 1000)}]",
    "an alias in itself": "fixed: &a [*a]",
    "keys": "".join(f"key{i}: 1\n" for i in range(900_000)),
    "text": "x" * (2 << 20),
    "zero byte": "name: a\0b",
    "zero byte escaped": 'name: "a\\0b"',
    "half a character": 'name: "\\ud800"',
    "a set": "epochs: !!set {1, 2}",
    "a list as key": "? [a]\n: 1",
    "nothing but a word": "epochs",
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_yaml_gives_one_line(tmp_path, monkeypatch, capfd, text):
    no_surroundings(monkeypatch, tmp_path)
    (tmp_path / "c.yaml").write_text(text)
    assert main(["train", "--config", "c.yaml"]) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("hardbench: ")
    assert shown.err.count("\n") == 1
    assert len(shown.err) < 2100
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_yaml_that_uses_aliases_is_read():
    assert parse_yaml("a: &x [1, 2]\nb: *x\nc: *x", "here") == {"a": [1, 2], "b": [1, 2], "c": [1, 2]}


def test_config_that_is_no_file(tmp_path, monkeypatch, capfd):
    no_surroundings(monkeypatch, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    (tmp_path / "folder").mkdir()
    for word in ("latin.yaml", "folder", "/dev/zero", "none", "~nobody-of-that-name/x", "n" * 300, "a/../" + "b" * 5000):
        assert main(["train", "--config", word]) == 2, word
        shown = capfd.readouterr().err
        assert shown.startswith("hardbench: config: ")
        assert shown.count("\n") == 1


@pytest.mark.parametrize(
    "words", ["--threads 99999999999", "--epochs 99999999999999999999999", "--eval-points 1e12", "--epochs " + "9" * 5000]
)
def test_numbers_that_no_machine_holds(monkeypatch, tmp_path, words):
    no_surroundings(monkeypatch, tmp_path)
    name, value = words.removeprefix("--").replace("-", "_").split()
    with pytest.raises(ConfigError, match=f"^{name}: ") as caught:
        given(*words.split())
    assert len(str(caught.value)) < 400
    monkeypatch.setenv(f"HARDBENCH_{name.upper()}", value)
    with pytest.raises(ConfigError, match=f"^{name}: "):
        given()


@pytest.mark.parametrize(
    "tag",
    [
        "a/../b=1",
        "=1",
        "k" * 251 + "=1",
        "/a=1",
        "..=1",
        "a//b=1",
        "a;b=1",
        "a\tb=1",
        "a=\x1b[2J",
        "a=" + "v" * 5001,
        "hardbench.kind=cell",
    ],
)
def test_tags_are_checked_before_a_run_is_opened(tmp_path, monkeypatch, capfd, tag):
    no_surroundings(monkeypatch, tmp_path)
    for study in ("train", "invert", "mask-mi", "sweep"):
        assert main([study, "--tag", tag]) == 2
        shown = capfd.readouterr().err
        assert shown.startswith("hardbench: tag: ")
        assert shown.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["n" * 251, "two\nlines", "\x1b[31mred", "a\0b"])
def test_names_are_checked_before_a_run_is_opened(tmp_path, monkeypatch, capfd, name):
    no_surroundings(monkeypatch, tmp_path)
    for study in ("train", "invert", "mask-mi", "sweep"):
        assert main([study, "--name", name]) == 2
        assert capfd.readouterr().err.startswith("hardbench: name: ")
    assert list(tmp_path.iterdir()) == []


def test_tags_that_the_store_takes():
    tag = {"a.b/c d": "e:f", "mlflow.note": "two\nlines", "\xe4": "\u4e2d"}
    assert given("--tag", ",".join(f"{key}={value}" for key, value in tag.items())).tag == tag


def test_a_grid_is_counted_before_it_is_built(tmp_path, monkeypatch, capfd):
    no_surroundings(monkeypatch, tmp_path)
    thousand = ",".join(map(str, range(1, 1001)))
    assert main(["sweep", "train", "--seed", thousand, "--epochs", thousand, "--width", thousand]) == 2
    assert "a grid of 1000000000 points; at most 100000" in capfd.readouterr().err
    assert main(["sweep", "train", "--seed", ",".join(map(str, range(20_000)))]) == 2
    assert "seed: 20000 values; at most 10000" in capfd.readouterr().err


def test_an_error_is_one_line_whatever_went_into_it():
    text = str(HardbenchError("a\nb\x1b[2J\ud800\u202e" + "x" * 10_000 + "the end"))
    assert text.startswith("a\\nb\\x1b[2J\\ud800\\u202exxx")
    assert text.endswith("the end")
    assert len(text) < 2100
