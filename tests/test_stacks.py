"""Networks that somebody else has written: what cannot be stacked is looped, dropout has streams of its own, weights fit or are refused."""

import copy
import re

import numpy as np
import pytest
import torch
from projects import all_runs, last, new_project
from setups import copied, different_arrays, equal_weights, images_in_classes, run, stacked_is_alone, trained, training_setup
from torch import nn

from hardbench import seeding
from hardbench.cli import main
from hardbench.errors import ConfigError, TrainingError
from hardbench.models.dropout import Dropout
from hardbench.models.layers import ACTIVATIONS, Chain, init_members
from hardbench.models.networks import Looped
from hardbench.models.stacked import Stacked, stack_or_loop
from hardbench.registry import MODELS
from hardbench.training.evaluation import evaluate

TINY = {"batch_size": 13, "epochs": 2, "log_every": 1, "eval_points": 3, "val_size": 0.1}
VECTORS = {"dataset": "gaussian", "gaussian_shape": (9,), "gaussian_train": 25, "gaussian_test": 10, "subset_size": 75}


class Scale(nn.Module):
    """A module with a parameter and a buffer that nobody here knows."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(1 + torch.rand(1))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, inputs):
        if self.training:
            self.seen += 1
        return inputs * self.factor


class Late(nn.Module):
    """Dropout that no list of modules shows."""

    def forward(self, inputs):
        return nn.functional.dropout(inputs, 0.5, self.training)


INSIDE = {
    "layer norm": lambda: nn.LayerNorm(11),
    "prelu": nn.PReLU,
    "batch norm": lambda: nn.BatchNorm1d(11),
    "unknown": Scale,
    "no bias": lambda: nn.Linear(11, 11, bias=False),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(11, 11)),
    "softmax": lambda: nn.Softmax(1),
}
DROPPED = {
    "ours": lambda: Dropout(0.4),
    "torch's": lambda: nn.Dropout(0.4),
    "channels": lambda: nn.Dropout1d(0.4),
    "nested": lambda: nn.Sequential(nn.Dropout(0.2), nn.Sequential(nn.Linear(11, 11), nn.Dropout(0.5))),
    "looped": lambda: nn.Sequential(nn.Dropout(0.4), nn.LayerNorm(11)),
}


@pytest.fixture
def model(monkeypatch):
    """Registers a chain of linear layers with a module of the test's inside, for as long as the test runs."""
    MODELS["mlp"]  # all that is there is registered

    def add(inside, convolution=False):
        def build(input_shape, num_classes, settings, streams):
            """A chain of the test's."""

            def make():
                if convolution:
                    blocks = [
                        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), inside()),
                        nn.Sequential(nn.Flatten(), nn.Linear(140, 11), nn.ReLU()),
                    ]
                else:
                    size = int(np.prod(input_shape))
                    blocks = [
                        nn.Sequential(nn.Flatten(), nn.Linear(size, 11), inside(), nn.Tanh()),
                        nn.Sequential(nn.Linear(11, 11), nn.ReLU()),
                    ]
                return Chain(blocks, nn.Linear(11, num_classes))

            return stack_or_loop(init_members(make, streams, settings.init), input_shape)

        monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))
        MODELS.add("strange")(build)
        return {"model": "strange"}

    return add


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"dataset": images_in_classes(tmp_path_factory.mktemp("data") / "images.npz")}


def own_number(found):
    """Test loss and accuracy that the stored weights give in networks made anew."""
    ready = found.setup
    again = training_setup(
        **{name: getattr(ready.config, name) for name in ready.config.as_dict() if getattr(ready.config, name) is not None}
    )
    again.learner.networks.restore(found.weights)
    arrays = evaluate(again.learner, again.split.test, again.standardise).arrays()
    return {name: arrays[name].numpy() for name in ("loss", "accuracy", "loss_per_class")}


# what cannot be stacked


@pytest.mark.parametrize("data", ["images", "vectors"])
@pytest.mark.parametrize("inside", INSIDE)
def test_networks_share_nothing(model, images, inside, data):
    """Together as alone, bit for bit; and the weights that come out are all there is: they give training's own numbers."""
    settings = TINY | model(INSIDE[inside]) | (images if data == "images" else VECTORS)
    assert stacked_is_alone(**settings) == []
    found = trained(**settings, repeats=3)
    assert isinstance(found.setup.learner.networks, Looped)
    plain = found.setup.learner.networks.member(1)
    assert found.weights[0].keys() == plain.state_dict().keys()
    for name, value in own_number(found).items():
        np.testing.assert_array_equal(value, found.arrays[name][:, -1])


@pytest.mark.parametrize("inside", ["layer norm", "batch norm"])
def test_eval_gives_trainings_own_number(model, monkeypatch, tmp_path, inside):
    """Through the command line, from the stored checkpoint."""
    new_project(monkeypatch, tmp_path / "project")
    words = ["--threads", "1", "--epochs", "1", "--repeats", "2", "--subset-size", "200"]
    model(INSIDE[inside])
    assert main(["train", "--model", "strange", *words]) == 0
    assert main(["eval"]) == 0
    run = last()
    assert run.metrics["eval/accuracy"] == run.metrics["test/accuracy"]
    assert run.metrics["eval/loss"] == run.metrics["test/loss"]


@pytest.mark.parametrize("inside", INSIDE)
def test_stacked_refuses_what_it_would_share(inside):
    members = [Chain([nn.Sequential(nn.Linear(4, 11), INSIDE[inside]())], nn.Linear(11, 2)) for _ in range(2)]
    with pytest.raises(ConfigError, match=r"^model: \w+ at blocks\.0\.1 has no stacked form; stack_or_loop") as told:
        Stacked(members, (4,))
    assert "\n" not in str(told.value)


def test_a_layer_used_twice_is_looped():
    def make():
        shared = nn.Linear(8, 8)
        return Chain([nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.ReLU())], nn.Linear(8, 3))

    members = init_members(make, seeding.networks(0, 0, 2), None)
    networks = stack_or_loop(members, (8,))
    assert isinstance(networks, Looped)
    assert len(list(networks.parameters())) == 8


def test_plain_chains_are_stacked_with_all_activations():
    for make in ACTIVATIONS.values():
        members = [Chain([nn.Sequential(nn.Flatten(), nn.Linear(7, 5), make(), Dropout(0.1))], nn.Linear(5, 2)) for _ in range(3)]
        assert isinstance(stack_or_loop(members, (7,)), Stacked)


@pytest.mark.parametrize("kind", [Looped, Stacked])
def test_what_is_no_chain_is_named(kind):
    with pytest.raises(TypeError, match=r"of Sequential; of Chain\(blocks, head\)"):
        kind([nn.Sequential(nn.Linear(4, 2))], (4,))


def test_batch_norm_of_vectors_takes_no_single_sample(model):
    settings = TINY | VECTORS | model(INSIDE["batch norm"]) | {"val_size": 0, "batch_size": 37}
    with pytest.raises(ConfigError, match=r"^batch_size: 37; one that leaves no batch of a single sample"):
        training_setup(**settings)


# dropout


@pytest.mark.parametrize("data", ["images", "vectors"])
@pytest.mark.parametrize("inside", DROPPED)
def test_every_network_has_its_own_dropout(model, images, inside, data):
    """Whatever the global stream does, together as alone, interrupted or not."""
    settings = TINY | model(DROPPED[inside]) | (images if data == "images" else VECTORS)
    assert stacked_is_alone(**settings) == []
    whole = trained(**settings, repeats=3)
    assert isinstance(whole.setup.learner.networks, Looped if inside == "looped" else Stacked)
    torch.rand(7)
    _, state = run(training_setup(**settings, repeats=3), until=4)
    torch.rand(3)
    again, _ = run(training_setup(**settings, repeats=3), state=state)
    assert different_arrays(whole.arrays, again.arrays, [0, 1, 2]) == []
    assert all(map(equal_weights, whole.weights, again.weights))


@pytest.mark.parametrize("inside", [lambda: nn.Dropout(0.4), lambda: nn.Dropout2d(0.4)], ids=["dropout", "dropout2d"])
def test_dropout_behind_convolutions(model, images, inside):
    assert stacked_is_alone(**TINY | model(inside, convolution=True) | images) == []


def test_dropout_does_what_torchs_does():
    """Shares, scale and, of channels, all or nothing; another stream for every network, none in eval mode."""
    members = init_members(
        lambda: Chain([nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.25)), nn.Sequential(nn.Dropout2d(0.5))], nn.Linear(8, 2)),
        seeding.networks(0, 0, 2),
        None,
    )
    ours = [[module for module in member.modules() if isinstance(module, Dropout)] for member in members]
    assert [(module.p, module.whole) for module in ours[0]] == [(0.25, False), (0.5, True)]
    ones = torch.ones(40, 50, 3, 3)
    values, whole = (module.train()(ones) for module in ours[0])
    assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((values == 0).double().mean() - 0.25) < 0.02
    assert set(whole.sum((2, 3)).unique().tolist()) == {0.0, 18.0}
    assert not torch.equal(values, ours[1][0].train()(ones))
    assert ours[0][0].eval()(ones) is ones


@pytest.mark.parametrize("inside", [nn.AlphaDropout, nn.RReLU], ids=lambda kind: kind.__name__)
def test_what_only_knows_the_global_stream_is_refused(model, inside):
    with pytest.raises(ConfigError, match=rf"^model: blocks\.0\.2 \({inside.__name__}\) draws from torch's global stream"):
        training_setup(**TINY, **VECTORS, **model(inside))


def test_dropout_that_hides_is_told_before_there_is_a_run(model, monkeypatch, tmp_path, capfd):
    new_project(monkeypatch, tmp_path / "project")
    model(Late)
    assert main(["train", "--model", "strange", "--threads", "1", "--epochs", "1"]) == 2
    told = capfd.readouterr().err
    assert re.search(r"^hardbench: model: blocks\.0\.2 \(Late\) draws from torch's global stream in training", told)
    assert "Traceback" not in told
    assert not all_runs()


def test_a_set_up_draws_from_no_stream():
    """What looks for dropout that hides leaves the networks, their streams and the global one where they were."""
    torch.manual_seed(3)
    before = torch.get_rng_state()
    images = {"gaussian_shape": (3, 32, 32), "gaussian_train": 5, "gaussian_test": 5}
    ready = training_setup(**TINY | {"dataset": "gaussian", "batch_size": 20} | images, model="vgg11", repeats=1, dropout=0.5)
    assert torch.equal(before, torch.get_rng_state())
    fresh = MODELS["vgg11"].call(
        ready.split.train.shape, ready.split.num_classes, ready.config, seeding.networks(0, 0, ready.config.repeats)
    )
    assert all(map(torch.equal, ready.learner.networks.streams(), fresh.streams()))
    assert all(map(equal_weights, ready.learner.networks.states(), fresh.states()))


def test_one_dropout_in_two_places_becomes_two():
    """In one parent and in two: PyTorch's own lists of children leave out what they have named before."""

    def make():
        one = nn.Dropout(0.5)
        return Chain([nn.Sequential(nn.Linear(8, 8), one, nn.ReLU(), one), nn.Sequential(one)], nn.Linear(8, 2))

    (member,) = init_members(make, seeding.networks(0, 0, 1), None)
    ours = [module for module in member.modules() if isinstance(module, Dropout)]
    assert len(ours) == 3
    assert not any(isinstance(module, nn.Dropout) for module in member.modules())
    ones = torch.ones(100, 8)
    assert len({tuple(module.train()(ones).flatten().tolist()) for module in ours}) == 3


# weights


def _end(states):
    """The last tensor's name."""
    return list(states[1])[-1]


WRONG = {
    "one missing": lambda states: states[1].pop(_end(states)),
    "one too many": lambda states: states[1].update(more=torch.zeros(2)),
    "another shape": lambda states: states[1].update({_end(states): torch.zeros(2)}),
    "turned": lambda states: states[1].update({name: value.transpose(0, 1) for name, value in states[1].items() if value.ndim > 1}),
    "another type": lambda states: states[1].update({_end(states): states[1][_end(states)].long()}),
    "no tensor": lambda states: states[1].update({_end(states): [0.0, 0.0, 0.0]}),
    "no state": lambda states: states.__setitem__(1, None),
    "a network short": lambda states: states.pop(),
    "a network more": lambda states: states.append(states[0]),
}
BROKEN = {
    "nan": lambda states: states[1][_end(states)].fill_(torch.nan),
    "inf": lambda states: states[1][_end(states)].view(-1)[:1].fill_(torch.inf),
}


@pytest.mark.parametrize("wrong", WRONG | BROKEN)
@pytest.mark.parametrize("model", ["mlp", "gmlp", "cnn"])
def test_weights_fit_or_are_refused(images, model, wrong):
    ready = training_setup(**images, **TINY, model=model, width=6, repeats=2)
    before, states = copied(ready.learner.networks.states()), copied(ready.learner.networks.states())
    (WRONG | BROKEN)[wrong](states)
    with pytest.raises(TrainingError, match=r"^checkpoint: ") as told:
        ready.learner.networks.restore(states)
    assert "\n" not in str(told.value)
    ready.learner.networks.restore(before)
    assert all(map(equal_weights, ready.learner.networks.states(), before))


STATES = {
    **{name: lambda state, spoil=spoil: spoil(state["networks"]) for name, spoil in WRONG.items()},
    "no steps": lambda state: state.pop("steps"),
    "steps beyond": lambda state: state.update(steps=10**9),
    "steps before": lambda state: state.update(steps=-1),
    "steps as words": lambda state: state.update(steps="many"),
    "frozen of others": lambda state: state.update(frozen={0: {"head.bias": torch.zeros(3)}}),
    "no optimiser": lambda state: state.update(optimizer={}),
    "optimiser of another shape": lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(2, 3)),
    "a stream too few": lambda state: state["streams"].pop(),
    "a stream that is none": lambda state: state["streams"].__setitem__(0, torch.zeros(3)),
}


@pytest.mark.parametrize("wrong", STATES)
def test_a_state_of_something_else_is_told(model, wrong):
    settings = TINY | VECTORS | model(DROPPED["ours"]) | {"repeats": 2}
    found = trained(**settings)
    state = copy.deepcopy(found.setup.learner.state())
    STATES[wrong](state)
    with pytest.raises(TrainingError, match=r"^checkpoint: ") as told:
        training_setup(**settings).learner.load(state)
    assert "\n" not in str(told.value)
