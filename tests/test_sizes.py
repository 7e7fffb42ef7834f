"""What does not fit the machine is told before it is built, by the setting that is to blame."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from projects import all_runs, new_project
from setups import training_setup

from hardbench import seeding
from hardbench.cli import main
from hardbench.errors import ConfigError
from hardbench.models.layers import Chain, init_members
from hardbench.models.networks import Looped
from hardbench.registry import MODELS
from hardbench.settings import TrainingSettings
from hardbench.training import memory

CPU = torch.device("cpu")
TOO_MUCH = {
    "width": ["train", "--width", "200000"],
    "repeats": ["train", "--repeats", "1000000"],
    "depth": ["train", "--depth", "100000"],
    "depth ": ["train", "--depth", "10000", "--width", "4000"],
    "width ": ["train", "--model", "cnn", "--width", "1000000"],
    "width  ": ["train", "--model", "gmlp", "--width", "300000"],
    "widths": ["train", "--widths", "64,900000,900000"],
    "repeats ": ["train", "--model", "resnet18", "--repeats", "100000"],
    "repeats  ": ["train", "--width", "1", "--depth", "1", "--repeats", "100000000"],
    "width   ": ["invert", "--dataset", "digits", "--width", "200000"],
    "repeats   ": ["invert", "--dataset", "digits", "--repeats", "10000000"],
    "depth  ": ["invert", "--dataset", "digits", "--depth", "100000"],
    "epochs": ["invert", "--dataset", "digits", "--epochs", "1000000000"],
    "repeats    ": ["stragglers", "--dataset", "digits", "--repeats", "10000000"],
    "sets": ["stragglers", "--dataset", "digits", "--sets", "10000000"],
}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = new_project(patch, tmp_path_factory.mktemp("project"))
        assert main(["invert", "--dataset", "digits", "--width", "200000", "--threads", "1"]) == 2  # everything imported
        assert not all_runs()
        yield folder


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_does_not_fit_is_told(project, capfd, name):
    """One line, exit code 2, no run, and no memory taken to find out."""
    before, runs = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(all_runs())
    assert main([*TOO_MUCH[name], "--threads", "1"]) == 2
    told = " ".join(capfd.readouterr().err.split())
    assert re.search(rf"{name.strip()}: [\d,]+; (at most (about )?[1-9]\d*|less)", told), told
    assert "Traceback" not in told
    assert len(all_runs()) == runs
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_what_is_said_to_fit_does(project, capfd):
    assert main(["train", "--width", "200000", "--threads", "1"]) == 2
    most = int(re.search(r"at most about (\d+)", " ".join(capfd.readouterr().err.split()))[1])
    assert 100 < most < 200000
    config = TrainingSettings(width=most)
    estimate = memory.Estimate((1, 8, 8), 10, 1437, lambda one: one)
    assert estimate(config, 1) < 1.2 * memory.available(CPU)
    assert estimate(TrainingSettings(width=int(1.05 * most)), 1) > 0.8 * memory.available(CPU)


@pytest.mark.parametrize("model", [name for name in MODELS if not name.startswith("vgg1") or name == "vgg11"])
def test_the_estimate_counts_every_weight(model):
    """Against the network itself; what is deep is continued, not built."""
    settings, shape = TrainingSettings(model=model), (3, 32, 32)
    networks = MODELS[model].call(shape, 10, settings, seeding.networks(0, 0, 1))
    parameters, modules, activations, looped = memory.Estimate(shape, 10, 100, lambda one: one).network(settings)
    assert parameters == sum(own.numel() for own in networks.parameters())
    assert modules == len(list(networks.modules()))
    assert looped == isinstance(networks, Looped)
    found = networks.eval().activations(torch.zeros(2, *shape))
    assert activations == sum(one.numel() for one in found) / 2


@pytest.mark.parametrize("model", ["mlp", "gmlp"])
@pytest.mark.parametrize("depth", [memory.DEEP - 1, memory.DEEP, memory.DEEP + 1, 3 * memory.DEEP])
def test_deep_networks_are_continued(model, depth):
    settings = TrainingSettings(model=model, depth=depth, width=13)
    networks = MODELS[model].call((9,), 3, settings, seeding.networks(0, 0, 1))
    parameters, modules, activations, _ = memory.Estimate((9,), 3, 100, lambda one: one).network(settings)
    assert parameters == sum(own.numel() for own in networks.parameters())
    assert (modules, activations) == (len(list(networks.modules())), 13 * depth)


GROWN = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import torch
from setups import training_setup
from hardbench.training import memory
ready = training_setup(subset_size=64, width=16)
for _ in range(2):
    ready.learner.update(*ready.batches.draw())
def taken():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
before = taken()
ready = training_setup(width=1024, depth=3, repeats=8, optimizer="adam")
for _ in range(2):
    ready.learner.update(*ready.batches.draw())
config = ready.config
print(taken() - before, memory.Estimate((1, 8, 8), 10, 1437, lambda one: one)(config, config.repeats))
"""


def test_the_estimate_is_what_training_takes():
    """At least, and no more than that: a run that would fit is not refused."""
    code = GROWN.format(tests=str(Path(__file__).parent))
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    taken, estimated = map(int, shown.split())
    assert 0.7 * taken < estimated < 1.1 * taken


TAKEN = """
import sys
from pathlib import Path
from hardbench.configs import invert as of_invert, stragglers as of_stragglers
from hardbench.studies import invert, stragglers
from hardbench.training import memory
from hardbench.inversion import search as inversion
from hardbench.hard_samples import slices
from hardbench.inversion.search import training_settings
name, settings, module, words = sys.argv[1], of_invert, invert, dict(dataset="digits", threads=1, epochs=25, width=1000, depth=2)
if name == "invert":
    words |= dict(repeats=4)
else:
    settings, module, words = of_stragglers, stragglers, words | dict(train_ratios=(0.9, 0.5), remaining_train_ratios=(0, 0.25, 1))
config = settings.Config(**words)
import torch
from hardbench import machine
machine.take(config)
from hardbench.inversion.pool import prepare_pool
split, standardise = prepare_pool(config, 0)
data = inversion.TrainingData(split.train, standardise, split.num_classes)
def taken(which):
    return next(int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
small = settings.Config(**words | dict(epochs=2, width=8))
inversion.Search(data, small, [0]).run()
before = taken("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
if name != "stragglers":
    count = config.repeats if name == "invert" else config.sets
    inversion.Search(data, config, range(count)).run()
    found = inversion.estimate(config, split, "fp32")(config, count)
else:
    from hardbench import seeding
    from hardbench.hard_samples.cuts import HardEasyOrder
    from hardbench.training.loop import fit
    order = HardEasyOrder.of(torch.arange(len(split.train)) % 5 == 0, seeding.Seeds(0))
    cuts = [order.train_slice(p, q, False) for p in config.train_ratios for q in config.remaining_train_ratios]
    plain = lambda one: training_settings(one, "fp32")
    streams = [seeding.Seeds(0).child("repeat", r) for r in range(config.repeats)]
    training = slices.SliceTraining(data, cuts, streams, plain(config))
    fit(training.learner, training.batches, 2, [])
    training.accuracies()
    found = slices.estimate(split, plain)(config, config.repeats * len(cuts))
print(taken("VmHWM") - before, found)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["invert", "stragglers", "sets"])
def test_a_study_is_not_refused_what_it_does_not_take(name):
    """Estimates against the peak of networks in training: those of a search keep weights of many epochs, those of the grid none."""
    shown = subprocess.run([sys.executable, "-c", TAKEN, name], capture_output=True, text=True, check=True).stdout
    taken, estimated = map(int, shown.split())
    assert 0.3 * taken < estimated < 1.1 * taken


def test_a_model_that_looks_at_numbers_is_built_all_the_same(monkeypatch):
    """The meta device has none; such a model is not estimated, and trains."""
    MODELS["mlp"]

    def build(input_shape, num_classes, settings, streams):
        """One that draws until its first weight is positive."""

        def make():
            layer = torch.nn.Linear(64, 4)
            while layer.weight[0, 0].item() < 0:
                layer = torch.nn.Linear(64, 4)
            return Chain([torch.nn.Sequential(torch.nn.Flatten(), layer)], torch.nn.Linear(4, num_classes))

        return Looped(init_members(make, streams, settings.init), input_shape)

    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
    MODELS.add("picky")(build)
    assert training_setup(model="picky", repeats=3).learner.networks.repeats == 3


def test_a_model_that_refuses_says_so_itself():
    with pytest.raises(ConfigError, match=r"^depth: 9; at most 3 for images of side 8"):
        training_setup(model="cnn", depth=9)


def test_what_is_available_is_some_of_what_there_is():
    there = memory.available(CPU)
    assert there > 0
    held = torch.ones(1 << 27)  # half a gigabyte
    assert memory.available(CPU) < there + (1 << 28)
    assert held.sum() == 1 << 27
