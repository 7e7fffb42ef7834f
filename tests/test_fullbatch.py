"""Full batches: one wide product equals the plain networks, subsets are weights, looking costs no forward pass."""

import pytest
import torch
from torch.nn import functional

from hardbench import seeding
from hardbench.data.batches import Batches
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise
from hardbench.inversion.fullbatch import FullBatch, predictions
from hardbench.inversion.search import Search, TrainingData, training_settings
from hardbench.models.mlp import build
from hardbench.settings import InversionSettings
from hardbench.training.loop import fit

COUNT, FEATURES, CLASSES = 90, 13, 3


def blobs(count=COUNT, features=FEATURES, classes=CLASSES):
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, features, generator=generator)
    return Samples.of(centres[labels] + torch.randn(count, features, generator=generator), labels)


def ready(repeats=2, weights=None, precision="fp32", epochs=6):
    settings = training_settings(InversionSettings(dataset="digits", epochs=epochs, widths=(7, 5)), precision)
    streams = [seeding.Seeds(0).child("repeat", r) for r in range(repeats)]
    learner = FullBatch(build((FEATURES,), CLASSES, settings, streams), settings, epochs, weights)
    return learner, Batches(blobs(), Standardise(torch.zeros(1), torch.ones(1)), "full", streams, [0.0] * repeats)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_that_of_the_plain_network_on_its_own_samples(weighted):
    weights = (torch.rand(2, COUNT, generator=torch.Generator().manual_seed(1)) < 0.6).float() if weighted else None
    learner, batches = ready(weights=weights)
    members = [learner.networks.member(r) for r in range(2)]
    scalars = learner.update(*batches.draw())
    for r, member in enumerate(members):
        keep = slice(None) if weights is None else weights[r].bool()
        inputs, labels = batches.train.inputs[keep], batches.train.labels[keep]
        logits = member(inputs)
        loss = functional.cross_entropy(logits, labels)
        loss.backward()
        torch.testing.assert_close(scalars["loss"][r], loss.detach())
        torch.testing.assert_close(scalars["accuracy"][r], (logits.argmax(1) == labels).float().mean())
        after = learner.networks.member_state(r)
        for name, parameter in member.named_parameters():
            torch.testing.assert_close(after[name], parameter.detach() - 0.1 * parameter.grad, rtol=1e-5, atol=1e-6)


def test_what_a_step_saw_are_the_weights_before_it():
    learner, batches = ready()
    learner.update(*batches.draw())
    before = [learner.networks.member(r) for r in range(2)]
    learner.update(*batches.draw())
    for r, member in enumerate(before):
        layers = member.activations(batches.train.inputs)
        for found, expected in zip(learner.last_pass.activations, layers, strict=True):
            torch.testing.assert_close(found[r].t(), expected)
        torch.testing.assert_close(learner.last_pass.logits[r].t(), member(batches.train.inputs))
    now = learner.forward_all(batches.draw()[0])
    torch.testing.assert_close(now.logits[0].t(), learner.networks.member(0)(batches.train.inputs))
    assert not torch.allclose(now.logits, learner.last_pass.logits)


def test_looking_before_the_first_update_leaves_training_as_it_is():
    """What looking keeps for later passes can be trained on."""
    (looked, batches), (other, _) = ready(), ready()
    inputs, labels = batches.draw()
    looked.forward_all(inputs)
    for learner in (looked, other):
        learner.update(inputs, labels)
    for name, value in looked.networks.state_dict().items():
        assert torch.equal(value, other.networks.state_dict()[name])


def test_a_subset_as_weights_is_the_subset():
    """Networks on the first and the last two thirds, sharing the wide product, against each on its part alone."""
    whole = blobs()
    parts = [torch.arange(60), torch.arange(30, COUNT)]
    weights = torch.zeros(2, COUNT)
    for r, part in enumerate(parts):
        weights[r, part] = 1
    settings = InversionSettings(dataset="digits", epochs=40, widths=(7, 5))
    same = Standardise(torch.zeros(1), torch.ones(1))
    shared = Search(TrainingData(whole, same, CLASSES), settings, [0, 1], weights=weights).run()
    for r, part in enumerate(parts):
        alone = Search(TrainingData(whole.pick(part), same, CLASSES), settings, [r]).run()
        torch.testing.assert_close(shared.radii[r], alone.radii[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(shared.distances[r], alone.distances[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(shared.error[r], alone.error[0], rtol=0, atol=1e-6)
        assert torch.equal(shared.stragglers[r, part], alone.stragglers[0])
        outside = torch.ones(COUNT, dtype=torch.bool).index_fill(0, part, False)
        assert not shared.stragglers[r, outside].any()


def test_training_goes_through_the_loop_and_resumes_bit_for_bit():
    (one, batches), (two, again) = ready(epochs=8), ready(epochs=8)
    fit(one, batches, 8)
    fit(two, again, 3)
    three, third = ready(epochs=8)
    three.load(two.state())
    third.load(again.state())
    fit(three, third, 8)
    for left, right in zip(one.networks.states(), three.networks.states(), strict=True):
        assert all(torch.equal(left[name], right[name]) for name in left)


def test_predictions_are_the_largest_logit():
    logits = torch.randn(3, 7, 50)
    assert torch.equal(predictions(logits), logits.argmax(1))
