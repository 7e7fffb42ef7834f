"""What everybody waits for first: help, the version and errors in words cost no heavy import, and Ctrl-C is one line from the start."""

import os
import resource
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from words import given

from hardbench import openmp
from hardbench.cli import commands
from hardbench.errors import ConfigError
from hardbench.registry import DATASETS, DETECTORS, LAYER_METRICS, MODELS, OPTIMIZERS, SCHEDULERS, SCORES, TASKS

HEAVY = {"torch", "mlflow", "numpy", "pandas", "matplotlib", "sklearn", "scipy", "torchvision", "rich"}
SECONDS = 0.5  # of CPU
LOADED = """
import atexit, sys
atexit.register(lambda: sys.stderr.write("\\nLOADED " + " ".join(sorted(name for name in sys.modules if "." not in name))))
from hardbench.__main__ import entry
entry()
"""
WRONG = {
    "train --modle mlp": "modle: no such setting; nearest: model",
    "train --model mpl": "model: mpl; nearest: mlp",
    "train --dataset mnits": "dataset: mnits; nearest: mnist",
    "sweep train --modle mlp": "modle: no such setting; nearest: model",
    "sweep trian": "study: trian; nearest: train",
    "invert --detector smoth": "detector: smoth; nearest: smooth",
    "stragglers --strategy lss": "strategy: lss; nearest: loss",
    "mask-mi --mask-mode zero": "mask_mode: zero",
    "plot --phase tset": "phase: tset; nearest: test",
    "trian": "command: trian; nearest: train",
}


def started(*words, **surroundings):
    """A command line in a process of its own: exit code, what it shows, the modules it ends with, the seconds of CPU it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HARDBENCH_", "OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run([sys.executable, "-c", LOADED, *words], capture_output=True, text=True, env=clean | surroundings, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shown, _, loaded = done.stderr.rpartition("\nLOADED ")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done.returncode, done.stdout, shown, set(loaded.split()), seconds


@pytest.mark.parametrize("words", [*(f"{name} --help" for name in commands()), "sweep mask-mi --help", "--help", "--version"])
def test_help_is_light(words):
    code, shown, errors, loaded, seconds = started(*words.split())
    assert (code, errors) == (0, "")
    assert "hardbench" in loaded and loaded.isdisjoint(HEAVY)
    assert shown.startswith("Usage: hardbench") or words == "--version"
    assert seconds < SECONDS


def test_the_version_is_the_packages():
    from hardbench import __version__

    assert started("--version")[1] == f"hardbench {__version__}\n"


@pytest.mark.parametrize("words", WRONG)
def test_errors_in_words_are_light(words):
    code, _, errors, loaded, seconds = started(*words.split())
    assert code == 2 and errors.startswith("hardbench: ") and WRONG[words] in errors
    assert loaded.isdisjoint(HEAVY)
    assert seconds < SECONDS


def test_registries_say_what_their_functions_do():
    """What is read from the source is what the decorators say when they run."""
    for registry in (DATASETS, DETECTORS, LAYER_METRICS, MODELS, OPTIMIZERS, SCHEDULERS, SCORES, TASKS):
        assert list(registry)
        for name in registry:
            read = registry[name]
            call, made = read.call, registry[name]  # the import has run the decorator
            assert (made.name, made.reads, made.defaults, made.variants) == (read.name, read.reads, read.defaults, read.variants)
            assert made.summary == read.summary and made.call is call


def test_every_data_set_that_is_known_can_be_chosen():
    from hardbench.data.torchvision_sets import KNOWN
    from hardbench.models.vgg import PLANS

    assert {name.partition(":")[0] for name in KNOWN} <= set(DATASETS)
    assert set(PLANS) <= set(MODELS)


# options without a value


def test_a_list_that_stands_alone_has_its_lone_value():
    """As README has it: `--layer-metrics`."""
    for words in ("--layer-metrics --threads 1", "--threads 1 --layer-metrics", "--layer_metrics --threads 1"):
        found = given("--model", "cnn", *words.split())
        assert (found.layer_metrics, found.threads) == (("all",), 1)
    assert given("--layer-metrics", "none").layer_metrics == ("none",)


@pytest.mark.parametrize("words", ["--epochs --threads 1", "--eval-steps --threads 1", "--name --threads 1", "--epochs"])
def test_an_option_takes_no_option_for_its_value(words):
    with pytest.raises(ConfigError, match=rf"^{words.split()[0][2:].replace('-', '_')}: no value; "):
        given(*words.split())
    assert given("--name=--x").name == "--x"


# interrupted

INTERRUPTER = """
import os, signal, sys

def look(event, arguments):
    if event == "import" and arguments[0] == os.environ["AT"]:
        os.environ["AT"] = ""
        os.kill(os.getpid(), signal.SIGINT)

sys.addaudithook(look)
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


@pytest.mark.parametrize("module", ["hardbench.cli", "click", "ast", "yaml", "hardbench.options", "torch", "numpy", "mlflow", "rich"])
def test_interrupted_while_it_imports(tmp_path, module):
    """At any moment from the first line on: one line, exit code 130."""
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTER)
    root = str(Path(sys.modules["hardbench"].__file__).parents[1])
    surroundings = {**os.environ, "AT": module, "PYTHONPATH": os.pathsep.join([str(tmp_path), root])}
    words = [sys.executable, "-m", "hardbench", "train", "--config", "gaussian", "--threads", "1", "--epochs", "1"]
    done = subprocess.run(words, capture_output=True, text=True, env=surroundings, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert [line for line in done.stderr.splitlines() if line] == ["hardbench: interrupted"]


# how OpenMP's threads wait

POLICIES = ("GOMP_SPINCOUNT=20000", "OMP_WAIT_POLICY=passive")
SHOWN = """
import os, subprocess, sys
from hardbench import openmp
before = "torch" in sys.modules
openmp.runnable = lambda: 1 + BESIDE
openmp.set_policy()
from hardbench import machine
code = "import os; print(*(os.environ.get(n) for n in ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')))"
child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
print(before, machine.waiting(), child.stdout.strip(), sep=";")
"""


@pytest.mark.parametrize(
    ("own", "beside", "expected"),
    [
        ({}, 0, "False;GOMP_SPINCOUNT=20000;20000 None"),
        ({}, 10**6, "False;OMP_WAIT_POLICY=passive;None passive"),
        ({"OMP_WAIT_POLICY": "active"}, 10**6, "False;OMP_WAIT_POLICY=active;None active"),
        ({"GOMP_SPINCOUNT": "7"}, 10**6, "False;GOMP_SPINCOUNT=7;7 None"),
        ({"KMP_INIT_AT_FORK": "FALSE"}, 0, "False;GOMP_SPINCOUNT=20000;20000 None"),  # scikit-learn's doing
        ({"KMP_BLOCKTIME": "1"}, 0, "False;KMP_BLOCKTIME=1;None None"),
    ],
)
def test_the_policy_is_set_unless_the_user_has_one(own, beside, expected):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", SHOWN.replace("BESIDE", str(beside))], capture_output=True, text=True, env=clean | own, check=True
    )
    assert done.stdout.strip() == expected


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="only Linux can be asked")
def test_a_full_machine_is_seen():
    """As many busy processes as there are cores, seen within a moment."""
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        assert any(openmp.machine_is_full() or time.sleep(0.05) for _ in range(600))  # until they run


def test_importing_hardbench_sets_no_policy():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    code = "import os, hardbench, hardbench.cli, hardbench.studies.train; print([n for n in os.environ if 'OMP_' in n])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True).stdout == "[]\n"


def test_a_run_says_how_its_threads_waited(tmp_path):
    words = ["train", *["--epochs", "1", "--width", "8", "--depth", "1", "--threads", "1", "--eval-points", "2", "--layer-metrics", "none"]]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_", "MLFLOW_", "HARDBENCH_"))}
    done = subprocess.run([sys.executable, "-m", "hardbench", *words], capture_output=True, text=True, cwd=tmp_path, env=clean, check=True)
    (policy,) = (one for one in POLICIES if f"threads 1, OpenMP's waiting: {one}" in done.stdout.splitlines())
    from mlflow import MlflowClient

    store = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = store.search_runs([found.experiment_id for found in store.search_experiments()])
    assert run.data.tags["hardbench.omp"] == policy
    assert run.data.tags["hardbench.threads"] == "1"
