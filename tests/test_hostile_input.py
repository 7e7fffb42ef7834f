"""Property-based tests: whatever comes, the answer is the table's exit code and one line, and nothing is executed.

A plain run takes about 2 000 cases, the same ones every time; `-m slow` ten times as many, new ones every time.
"""

import io
import os
import re
import shutil
import struct
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings, strategies as st
from makers import archive, idx_set, load
from projects import with_one_run
from test_hostile_files import Touch

from hardbench import options as command_line
from hardbench.cli import main, settings_of
from hardbench.config import options
from hardbench.data.samples import prepare
from hardbench.errors import HardbenchError
from hardbench.metrics.hardness import hardness_table
from hardbench.registry import ORDER
from hardbench.stored import StoredRun
from hardbench.studies import eval as evaluation, sweep, train
from hardbench.training import checkpoints

pytestmark = pytest.mark.reliability

CODES = {2: "ConfigError", 3: "DataError", 4: "TrainingError", 5: "TrackingError"}
LINE = re.compile(r"hardbench: [^\n]{1,3000}\n")
NUMBERS = [
    "0",
    "-0",
    "-1",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "-inf",
    "1e308",
    "5e-324",
    "9" * 25,
    "9" * 5000,
    "0x10",
    "1_000",
    "\u0663",
    "1.5",
    "2**3",
]
ODD = [
    "",
    " ",
    ",",
    ";",
    ":",
    "=",
    "a=b",
    "0:0",
    "0:0,1:1",
    "all",
    "full",
    "auto",
    "none",
    "true",
    "last",
    "../..",
    "~",
    "~nobody-there/x",
    "-",
    "--",
]
ODD += [
    "/dev/null",
    "/dev/zero",
    "/",
    ".",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "[/b]",
    "\udc80",
    "\u202e",
    "%s%n",
    "{0}",
    "'; --",
    "x" * 300,
    "y" * 20_000,
    "npz:",
]
words = st.one_of(st.sampled_from(NUMBERS + ODD), st.text(max_size=20), st.integers().map(str), st.floats().map(str))


def cases(count):
    """The decorator of a property: so many cases in a plain run, and a slow test of ten times as many."""

    def decorate(check):
        silent = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}

        def plain():
            settings(max_examples=count, derandomize=True, **silent)(given(st.data())(check))()

        def long():
            settings(max_examples=10 * count, print_blob=True, **silent)(given(st.data())(check))()

        @pytest.mark.parametrize("run", [plain, pytest.param(long, marks=pytest.mark.slow)], ids=["plain", "long"])
        def test(run, project):
            run()

        return test

    return decorate


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with one finished run, at work in it; STORED is the run, KEPT a copy of its files."""
    with pytest.MonkeyPatch.context() as change:
        folder = tmp_path_factory.mktemp("input")
        words = "--threads 1 --epochs 1 --subset-size 60 --repeats 2 --eval-points 2 --width 4 --depth 1 --val-size 0.2"
        STORED["run"], STORED["kept"] = with_one_run(change, folder, *words.split())
        STORED["before"] = everything(folder)
        yield folder
        assert everything(folder) - STORED["before"] <= {"own.npz", "c.yaml", "MNIST"}, "something was executed"


STORED = {}


def everything(folder):
    return {path.name for path in folder.iterdir()}


def refused(error):
    """An error of the table's, in one line."""
    assert type(error).__name__ in CODES.values()
    assert error.exit_code in CODES
    assert "\n" not in str(error)
    assert re.match(r"[^:]+: .", str(error))


def parsed(*line):
    """Run a command line with the work left out: the settings are read and checked, a sweep's cells are counted. Its code."""
    shown, told = io.StringIO(), io.StringIO()

    def stub(config):
        if isinstance(config, sweep.CampaignSettings):
            sweep.cells_of(config)

    def without_work(command, name, settings, text, work):
        made(command, name, settings, text, stub)

    made = command_line.SettingsCommand.__init__
    with redirect_stdout(shown), redirect_stderr(told), patch.object(command_line.SettingsCommand, "__init__", without_work):
        code = main(list(line))
    if code:
        assert code in CODES, line
        assert LINE.fullmatch(told.getvalue()), (line, told.getvalue())
    return code


@cases(700)
def test_words(data):
    name = data.draw(st.sampled_from(ORDER))
    known = list(options(settings_of(name).Config))
    line = []
    for _ in range(data.draw(st.integers(1, 4))):
        option = data.draw(st.one_of(st.sampled_from(known), st.text(min_size=1, max_size=8)))
        assume(option not in ("help", "h"))
        line += [f"--{option.replace('_', '-')}", data.draw(words)]
    parsed(name, *line, *data.draw(st.lists(words, max_size=1)))


@cases(200)
def test_environment(data):
    name = data.draw(st.sampled_from([name for name in ORDER if name != "ui"]))
    known = list(options(settings_of(name).Config))
    value = data.draw(words).replace("\0", "")
    with patch.dict(os.environ):
        try:
            os.environ[f"HARDBENCH_{data.draw(st.sampled_from(known)).upper()}"] = value
        except UnicodeEncodeError:
            assume(False)
        parsed(name)


yaml_words = st.recursive(
    st.one_of(
        st.sampled_from(
            ["!!map", "!!int abc", "!!bool x", "!!timestamp 1", "!!binary a", "!!set {1}", "*a", "&a 1", "~", "1:0", "2001-01-01", ".nan"]
        ),
        st.sampled_from(NUMBERS),
        st.text(max_size=8).map(repr),
        st.integers().map(str),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(lambda parts: f"[{', '.join(parts)}]"),
        st.dictionaries(st.sampled_from(["a", "lr", "1", "seed"]), inner, max_size=3).map(
            lambda parts: "{" + ", ".join(f"{key}: {value}" for key, value in parts.items()) + "}"
        ),
    ),
    max_leaves=8,
)


@cases(400)
def test_yaml(data):
    name = data.draw(st.sampled_from(["train", "sweep", "invert", "mask-mi", "plot"]))
    keys = st.sampled_from([*options(settings_of(name).Config), "fixed", "grid"])
    structured = st.dictionaries(keys, yaml_words, max_size=4).map(
        lambda parts: "\n".join(f"{key}: {value}" for key, value in parts.items())
    )
    content = data.draw(
        st.one_of(
            structured.map(lambda text: text.encode(errors="surrogatepass")),
            st.text(max_size=40).map(lambda t: t.encode(errors="ignore")),
            st.binary(max_size=60),
        )
    )
    Path("c.yaml").write_bytes(content)
    parsed(name, "--config", "c.yaml")


def mutated(data, content):
    """Bytes with some of them changed, inserted or cut off."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(content) - 1, 0)))
        how = data.draw(st.sampled_from(["set", "insert", "cut", "zero"]))
        if how == "set" and content:
            content[at] = data.draw(st.integers(0, 255))
        elif how == "insert":
            content[at:at] = data.draw(st.binary(max_size=20))
        elif how == "cut":
            del content[at:]
        else:
            content[at : at + 8] = bytes(8)
    return bytes(content)


def arrays(data):
    """Any array of a simple type, some of them Python objects that leave a file behind when they are unpickled."""
    if data.draw(st.integers(0, 9)) == 0:
        return np.array([Touch("left-behind")], dtype=object)
    dtype = data.draw(st.sampled_from(["u1", "i8", "f4", "f8", "U3", "S2", "c8", "?", "M8[s]", ">i2", "f2"]))
    shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
    value = data.draw(st.sampled_from([0, 1, 3, 7]))
    made = np.full(shape, value).astype(dtype)
    if made.dtype.kind == "f" and made.size and data.draw(st.booleans()):
        made.flat[0] = np.nan
    return made


def read_or_refused(act):
    try:
        act()
    except HardbenchError as error:
        refused(error)


@cases(200)
def test_npz(data):
    names = ("x_train", "y_train", "x_test", "y_test", "class_names")
    word = archive(Path("own.npz"), **{name: arrays(data) for name in data.draw(st.sets(st.sampled_from(names), max_size=3))})
    if data.draw(st.booleans()):
        Path("own.npz").write_bytes(mutated(data, Path("own.npz").read_bytes()))
    read_or_refused(lambda: load(word))


@cases(150)
def test_idx(data):
    idx_set(Path(), packed=(packed := data.draw(st.booleans())))
    path = Path("MNIST/raw") / (data.draw(st.sampled_from(["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"])) + ".gz" * packed)
    content = path.read_bytes()
    if not packed and data.draw(st.booleans()):
        sizes = [data.draw(st.sampled_from([0, 1, 28, 40, 2**31, 2**32 - 1])) for _ in range(3)]
        content = content[:4] + struct.pack(">3I", *sizes) + content[16:]
    path.write_bytes(mutated(data, content))
    try:
        read_or_refused(lambda: load("mnist", "."))
    finally:
        shutil.rmtree("MNIST")


def fresh():
    """The stored run, with nothing read yet."""
    return StoredRun(STORED["run"].client, STORED["run"].run)


@cases(120)
def test_config_of_a_run(data):
    run = fresh()
    path, whole = run.file("config.yaml"), (STORED["kept"] / "config.yaml").read_text()
    lines = whole.splitlines()
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = f"{lines[at].partition(':')[0]}: {data.draw(yaml_words)}"
    content = "\n".join(lines).encode(errors="ignore")
    path.write_bytes(content if data.draw(st.booleans()) else mutated(data, whole.encode()))
    try:
        read_or_refused(lambda: run.settings(train.Config))
    finally:
        path.write_text(whole)


@cases(150)
def test_arrays_of_a_run(data):
    run = fresh()
    path = run.file("metrics.npz")
    with np.load(STORED["kept"] / "metrics.npz", allow_pickle=False) as found:
        there = {name: found[name] for name in found.files}
    for name in data.draw(st.sets(st.sampled_from(sorted(there)), min_size=1, max_size=2)):
        there[name] = arrays(data)
    np.savez(path, **there)
    if data.draw(st.integers(0, 3)) == 0:
        path.write_bytes(mutated(data, path.read_bytes()))
    read_or_refused(lambda: hardness_table(run.arrays))


def altered(data, state):
    """A state with one of its parts, however deep, replaced by something else."""
    odd = st.sampled_from(
        [None, 0, -1, 10**9, 10**30, 1.5, float("nan"), "word", [], {}, [1], torch.zeros(3), torch.zeros(2, 2), torch.ones(1, 9)]
    )
    if isinstance(state, dict) and state and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(list(state)))
        return {**state, key: altered(data, state[key])}
    if isinstance(state, list) and state and data.draw(st.integers(0, 3)):
        return [altered(data, state[0]), *state[1:]]
    return data.draw(odd)


@cases(120)
def test_checkpoints_of_a_run(data):
    run = fresh()
    name = data.draw(st.sampled_from(["best", "last"]))
    path = run.file(f"checkpoints/{name}.pt")
    kept = STORED["kept"] / "checkpoints" / f"{name}.pt"  # a case that hypothesis gives up in the middle leaves its own file behind
    whole = kept.read_bytes()
    state = altered(data, torch.load(kept, weights_only=True))
    if data.draw(st.integers(0, 9)) == 0:
        state = {"networks": [Touch("left-behind")]}
    torch.save(state, path)
    if data.draw(st.integers(0, 3)) == 0:
        path.write_bytes(mutated(data, whole))
    config = run.settings(train.Config)

    def act():
        if name == "best":
            evaluation.restore(run, config, prepare(config, config.seed), name)
            return
        setup = train.prepare(config).setup
        found = checkpoints.load(path, checkpoints.TRAINING)
        with checkpoints.restoring(path, found["steps"], setup.total):
            setup.learner.load(found)
            setup.batches.load(found["batches"])

    try:
        read_or_refused(act)
    finally:
        path.write_bytes(whole)
