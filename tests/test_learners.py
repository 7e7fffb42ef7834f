"""What an update does: the greedy losses and their gradients, one forward for two; members as plain networks; the loop."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from setups import copied, equal_weights, images_in_classes, trained, training_setup
from torch import nn
from torch.nn import functional

from hardbench.models.anchors import similarity_scores
from hardbench.training.greedy import ACE, local_losses
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
    """In double precision, from the plain members alone."""
    ready = training_setup(**images, **GREEDY, ace_variant=variant, similarity=similarity, tau=0.5, lambda_ace=0.3, repeats=2)
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


def test_squared_distances_in_bf16_keep_the_classes_apart():
    """|h|^2 is some hundreds, the classes differ by ones: in bf16's steps of 2 to 4 the differences would be gone."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 64, 1024, generator=generator).relu()
    anchors = functional.normalize(torch.randn(1, 10, 1024, generator=generator), dim=-1)
    exact, found = (similarity_scores(h, e, "l2").double() for h, e in ((hidden.double(), anchors.double()), (hidden.bfloat16(), anchors)))
    exact, found = (scores - scores.mean(-1, keepdim=True) for scores in (exact, found))
    assert (found - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize("variant", VARIANTS)
def test_distances_of_the_next_layer(variant):
    rng = np.random.default_rng(0)
    q, after = rng.dirichlet(np.ones(5), (2, 3, 4))

    def distance(q, after):
        columns = [torch.tensor(np.moveaxis(one, -1, 0)).unsqueeze(0) for one in (q, after)]
        return ACE[variant](columns[0], columns[0].log(), columns[1].log())[0][0].numpy()

    np.testing.assert_allclose(distance(q, after), DISTANCES[variant](q, after), rtol=1e-9)
    np.testing.assert_allclose(distance(q, q), _shannon(q) if variant.startswith("ce") else np.zeros((3, 4)), atol=1e-12)


@pytest.mark.parametrize("spread", [1, 30])  # with 30, probabilities below 1e-12
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_closed_form_is_the_gradient(variant, spread):
    """Against autograd through the definition, in double precision."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 3, 7, dtype=torch.double, generator=generator).mul_(spread).requires_grad_()
    after = torch.randn(2, 5, 3, 7, dtype=torch.double, generator=generator).mul_(spread).log_softmax(1)
    labels, weights = torch.randint(0, 5, (2, 7), generator=generator), torch.tensor([[0.3], [0.1], [0.0]]).double()
    log_q = logits.log_softmax(1)

    def entropy(a, log_b):
        return -(a * log_b.clamp_min(np.log(1e-12))).sum(1)

    q, p = log_q.exp(), after.exp()
    middle = (q + p) / 2
    distance = {
        "ce_i_next": entropy(q, after),
        "ce_next_i": entropy(p, log_q),
        "js": entropy(middle, middle.log()) - (entropy(q, log_q) + entropy(p, after)) / 2,
        "sym_kl": entropy(q, after) - entropy(q, log_q) + entropy(p, log_q) - entropy(p, after),
    }[variant]
    expected = functional.cross_entropy(logits, labels.unsqueeze(1).expand(-1, 3, -1), reduction="none") - weights * distance
    expected.sum().backward()
    losses, slopes = local_losses(log_q.detach(), after, labels, weights, variant)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(slopes, logits.grad, rtol=1e-9, atol=1e-9)


def test_a_layers_loss_reaches_that_layer_alone(images):
    ready = training_setup(**images, **GREEDY, repeats=2)
    networks = ready.learner.networks
    inputs, labels = _batch(ready)
    parameters = [list(block.parameters()) for block in networks.blocks]
    for i in range(3):
        logits = networks.layer_logits(networks.detached_activations(inputs))  # [R, L, B, K]
        apart = functional.softmax(logits[:, i], -1) * functional.softmax(logits[:, min(i + 1, 2)], -1).detach()
        loss = functional.cross_entropy(logits[:, i].flatten(0, 1), labels.flatten()) + apart.sum()
        for j in range(3):
            reached = torch.autograd.grad(loss, parameters[j], allow_unused=True, retain_graph=True)
            assert all((gradient is not None and bool(gradient.any())) == (i == j) for gradient in reached)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"residual": True, "normalize_layer_input": True},
        {"similarity": "l2", "tau": 1.0},
        {"batch_size": 16},
        {"depth": 1},
        {"lambda_ace": 0.0},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_every_layer_gets_the_gradient_of_its_own_loss(images, more):
    """Against one plain layer at a time: its input and the next layer's q are constants."""
    ready = training_setup(**images | GREEDY | {"lambda_ace": 0.4, "repeats": 2} | more)
    inputs, labels = _batch(ready)
    config = ready.config
    ready.learner.optimizer.zero_grad()
    ready.learner.backward(inputs, labels)
    for r in range(2):
        member = ready.learner.networks.member(r)
        constants = [hidden.detach() for hidden in member.activations(inputs[r])]
        for i, block in enumerate(member.blocks):
            q = functional.softmax(member.head(block(constants[i - 1] if i else inputs[r])), -1)
            loss = -q[torch.arange(len(q)), labels[r]].log().mean()
            if i + 1 < len(member.blocks):
                after = functional.softmax(member.head(constants[i + 1]), -1)
                loss = loss + config.lambda_ace * (q * after.clamp_min(1e-12).log()).sum(-1).mean()
            loss.backward()
            plain = next(module for module in block.modules() if isinstance(module, nn.Linear))
            stacked = next(module for module in ready.learner.networks.blocks[i].modules() if hasattr(module, "inputs"))
            count = stacked.inputs * stacked.outputs
            gradient = stacked.weight.grad[r, :count].view(stacked.inputs, stacked.outputs).t()
            for found, expected in ((gradient, plain.weight.grad), (stacked.bias.grad[r, : stacked.outputs], plain.bias.grad)):
                assert (found - expected).norm() <= (1e-4 if config.precision == "fp32" else 0.1) * expected.norm()


@pytest.mark.parametrize("more", [{}, {"batch_size": 16}, {"dataset": "digits", "subset_size": 160, "batch_size": 48}], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_forward_is_two(images, variant, more):
    """Bit for bit: layer after layer, a second forward pass for q_{i+1}, an Adam of its own for each (as published)."""
    settings = images | GREEDY | {"ace_variant": variant, "repeats": 2, "lr": 3e-3} | more
    once = trained(**settings)
    ready = training_setup(**settings)
    networks, config = ready.learner.networks.train(), ready.config
    adams = [torch.optim.Adam(block.parameters(), weight_decay=config.weight_decay, fused=True) for block in networks.blocks]
    for step in range(ready.total):
        inputs, labels = ready.batches.draw()
        hidden = networks.rows(inputs)
        for i, adam in enumerate(adams):
            adam.param_groups[0]["lr"] = config.lr * ready.learner.factor(step, ready.total, config)
            hidden = networks.blocks[i](hidden.detach())
            logits = networks.head(hidden)
            with torch.no_grad():
                last = i + 1 == len(adams)
                after = logits if last else networks.head(networks.blocks[i + 1](hidden.detach()))
                log_q, log_after = (one.permute(0, 2, 1).unsqueeze(2).log_softmax(1) for one in (logits, after))
                weight = torch.tensor([[0.0 if last else config.lambda_ace]])
                slopes = local_losses(log_q, log_after, labels, weight, variant)[1] / labels.shape[1]
            adam.zero_grad()
            logits.backward(slopes.squeeze(2).permute(0, 2, 1))
            adam.step()
    assert all(map(equal_weights, networks.states(), once.weights))


# members


@pytest.mark.parametrize("settings", [{"model": "mlp", "widths": (19, 33)}, GREEDY, {"model": "cnn", "width": 5}, {"model": "simple_cnn"}])
def test_a_member_is_plain_pytorch(images, settings):
    networks = trained(**images | {"epochs": 1}, **settings, repeats=2).setup.learner.networks.eval()
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
    one, two = trained(**small).setup.learner.networks.eval(), training_setup(**small, seed=1).learner.networks.eval()
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


def test_callbacks_are_called_once_a_step(images):
    ready = training_setup(**images, model="mlp", width=4)
    seen = []
    assert fit(ready.learner, ready.batches, ready.total, [lambda state: seen.append((state.step, state.epoch_ends, state.last))]) == 14
    assert [step for step, _, _ in seen] == list(range(15))
    assert [step for step, ends, _ in seen if ends] == [7, 14]
    assert [step for step, _, last in seen if last] == [14]
