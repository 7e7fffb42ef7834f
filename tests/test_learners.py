"""What an update does: the greedy losses and their gradients, one forward for two; members as plain networks; the loop."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from courses import copied, course, equal_weights, images_in_classes, trained
from torch import nn
from torch.nn import functional

from hardbench.training.learners import ACE
from hardbench.training.loop import fit

VARIANTS = ("ce_i_next", "ce_next_i", "js", "sym_kl")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"dataset": images_in_classes(tmp_path_factory.mktemp("data") / "images.npz"), "batch_size": 13, "epochs": 2, "log_every": 1}


GREEDY = {"model": "gmlp", "depth": 3, "width": 24}


def _batch(ready):
    ready.learner.networks.train()
    return ready.batches.draw()


def _entropy(a, b):
    return -(a * np.log(np.maximum(b, 1e-12))).sum(-1)


def _shannon(p):
    return _entropy(p, p)


DISTANCES = {  # of q = q_i from after = q_{i+1}, by definition
    "ce_i_next": _entropy,
    "ce_next_i": lambda q, after: _entropy(after, q),
    "js": lambda q, after: _shannon((q + after) / 2) - (_shannon(q) + _shannon(after)) / 2,
    "sym_kl": lambda q, after: (q * np.log(q / after)).sum(-1) + (after * np.log(after / q)).sum(-1),
}


# greedy layers


@pytest.mark.parametrize("similarity", ["cosine", "l2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_greedy_losses_are_the_definition(images, variant, similarity):
    """DEFINITIONS 2 in double precision, from the plain members alone."""
    ready = course(**images, **GREEDY, ace_variant=variant, similarity=similarity, tau=0.5, lambda_ace=0.3, repeats=2)
    inputs, labels = _batch(ready)
    found = ready.learner.backward(inputs, labels)
    for r in range(2):
        member = ready.learner.networks.member(r).double()
        anchors = member.head.vectors.numpy()
        np.testing.assert_allclose(anchors @ anchors.T, np.eye(3), atol=1e-6)
        q = []
        for hidden in member.activations(inputs[r].double()):
            h = hidden.detach().numpy()
            if similarity == "cosine":
                scores = h @ anchors.T / np.linalg.norm(h, axis=1, keepdims=True)
            else:
                scores = -((h[:, None] - anchors) ** 2).sum(-1)
            weights = np.exp(scores / 0.5 - (scores / 0.5).max(1, keepdims=True))
            q.append(weights / weights.sum(1, keepdims=True))
        truth = np.eye(3)[labels[r].numpy()]
        losses = [_entropy(truth, one).mean() for one in q]
        apart = [DISTANCES[variant](own, after).mean() for own, after in pairwise(q)] + [0]
        np.testing.assert_allclose(found["layer_loss"][r], np.array(losses) - 0.3 * np.array(apart), rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(found["loss"][r], losses[-1], rtol=2e-5)
        np.testing.assert_allclose(found["layer_accuracy"][r], [(one.argmax(1) == labels[r].numpy()).mean() for one in q], rtol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_distances_of_the_next_layer(variant):
    rng = np.random.default_rng(0)
    q, after = rng.dirichlet(np.ones(5), (2, 3, 4))
    np.testing.assert_allclose(ACE[variant](torch.tensor(q).log(), torch.tensor(after).log()), DISTANCES[variant](q, after), rtol=1e-9)
    equal = ACE[variant](torch.tensor(q).log(), torch.tensor(q).log()).numpy()
    np.testing.assert_allclose(equal, _shannon(q) if variant.startswith("ce") else np.zeros((3, 4)), atol=1e-12)


def test_a_layers_loss_reaches_that_layer_alone(images):
    ready = course(**images, **GREEDY, repeats=2)
    networks = ready.learner.networks
    inputs, labels = _batch(ready)
    parameters = [list(block.parameters()) for block in networks.blocks]
    for i in range(3):
        logits = networks.layer_logits(networks.detached_activations(inputs))
        apart = functional.softmax(logits[i], -1) * functional.softmax(logits[min(i + 1, 2)], -1).detach()
        loss = functional.cross_entropy(logits[i].flatten(0, 1), labels.flatten()) + apart.sum()
        for j in range(3):
            reached = torch.autograd.grad(loss, parameters[j], allow_unused=True, retain_graph=True)
            assert all((gradient is not None and bool(gradient.any())) == (i == j) for gradient in reached)


def test_the_sum_of_the_losses_gives_every_layer_its_own_gradient(images):
    """Against one plain layer at a time: its input and the next layer's q are constants."""
    ready = course(**images, **GREEDY, lambda_ace=0.4, repeats=2)
    inputs, labels = _batch(ready)
    ready.learner.optimizer.zero_grad()
    ready.learner.backward(inputs, labels)
    for r in range(2):
        member = ready.learner.networks.member(r)
        constants = [hidden.detach() for hidden in member.activations(inputs[r])]
        for i, block in enumerate(member.blocks):
            q = functional.softmax(member.head(block(constants[i - 1] if i else inputs[r])), -1)
            loss = -q[torch.arange(len(q)), labels[r]].log().mean()
            if i < 2:
                after = functional.softmax(member.head(constants[i + 1]), -1)
                loss = loss + 0.4 * (q * after.clamp_min(1e-12).log()).sum(-1).mean()
            loss.backward()
            plain = next(module for module in block.modules() if isinstance(module, nn.Linear))
            stacked = next(module for module in ready.learner.networks.blocks[i].modules() if hasattr(module, "inputs"))
            count = stacked.inputs * stacked.outputs
            gradient = stacked.weight.grad[r, :count].view(stacked.inputs, stacked.outputs).t()
            torch.testing.assert_close(gradient, plain.weight.grad, rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(stacked.bias.grad[r, : stacked.outputs], plain.bias.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_forward_is_two(images, variant):
    """Bit for bit: layer after layer, a second forward pass for q_{i+1}, an Adam of its own for each (DEFINITIONS 2, as published)."""
    settings = images | GREEDY | {"ace_variant": variant, "repeats": 2, "lr": 3e-3}
    once = trained(**settings)
    ready = course(**settings)
    networks, config = ready.learner.networks.train(), ready.config
    adams = [torch.optim.Adam(block.parameters(), weight_decay=config.weight_decay, fused=True) for block in networks.blocks]
    for step in range(ready.total):
        inputs, labels = ready.batches.draw()
        hidden = networks.rows(inputs)
        for i, adam in enumerate(adams):
            adam.param_groups[0]["lr"] = config.lr * ready.learner.factor(step, ready.total, config)
            hidden = networks.blocks[i](hidden.detach())
            logits = networks.head(hidden)
            log_q = functional.log_softmax(logits, -1)
            loss = -log_q.gather(-1, labels.unsqueeze(-1)).squeeze(-1).mean(1)
            if i + 1 < len(adams):
                with torch.no_grad():
                    after = functional.log_softmax(networks.head(networks.blocks[i + 1](hidden.detach())), -1)
                loss = loss - config.lambda_ace * ACE[variant](log_q, after).mean(1)
            adam.zero_grad()
            loss.sum().backward()
            adam.step()
    assert all(map(equal_weights, networks.states(), once.weights))


# members


@pytest.mark.parametrize("settings", [{"model": "mlp", "widths": (19, 33)}, GREEDY, {"model": "cnn", "width": 5}, {"model": "simple_cnn"}])
def test_a_member_is_plain_pytorch(images, settings):
    networks = trained(**images | {"epochs": 1}, **settings, repeats=2).course.learner.networks.eval()
    inputs = torch.randn(2, 11, 1, 7, 9)
    own, shared = networks(inputs), networks(inputs[0])
    for r in range(2):
        member = networks.member(r).eval()
        assert all(type(module).__module__.startswith("torch.nn") for block in member.blocks for module in block.modules())
        torch.testing.assert_close(member(inputs[r]), own[r], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(member(inputs[0]), shared[r], rtol=1e-5, atol=1e-5)
        for one, all_ in zip(member.activations(inputs[r]), networks.activations(inputs), strict=True):
            torch.testing.assert_close(one.flatten(1), all_[r], rtol=1e-5, atol=1e-5)
        before = copied(networks.member_state(r))
        assert before.keys() == member.state_dict().keys()
        with torch.no_grad():
            for parameter in member.parameters():
                parameter.zero_()
        assert equal_weights(networks.member_state(r), before)  # its own copy


@pytest.mark.parametrize("model", ["mlp", "gmlp", "cnn", "resnet18"])
def test_states_go_out_and_come_in(images, model):
    small = images | {"model": model, "repeats": 2, "epochs": 1, "subset_size": 20, "batch_size": 10}
    one, two = trained(**small).course.learner.networks.eval(), course(**small, seed=1).learner.networks.eval()
    states = one.states()
    assert not any(map(equal_weights, states, two.states()))
    two.load_states(states)
    assert all(map(equal_weights, states, two.states()))
    inputs = torch.randn(5, 1, 7, 9)
    with torch.inference_mode():
        assert torch.equal(one(inputs), two(inputs))
    two.load_states(states[::-1])
    with torch.inference_mode():
        torch.testing.assert_close(two(inputs), one(inputs).flip(0), rtol=1e-4, atol=1e-5)


# the loop


def test_observers_see_every_step_once(images):
    ready = course(**images, model="mlp", width=4)
    seen = []
    assert fit(ready.learner, ready.batches, ready.total, [lambda moment: seen.append((moment.step, moment.epoch_ends, moment.last))]) == 14
    assert [step for step, _, _ in seen] == list(range(15))
    assert [step for step, ends, _ in seen if ends] == [7, 14]
    assert [step for step, _, last in seen if last] == [14]
