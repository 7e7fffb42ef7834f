"""What is measured at an evaluation point, against plain numpy on the activations of the plain members."""

import numpy as np
import pytest
import torch
from setups import images_in_classes, run, trained, training_setup

from hardbench.data.samples import Samples
from hardbench.training.callbacks import measure
from hardbench.training.evaluation import evaluate
from hardbench.training.loop import fit
from hardbench.training.setup import static_overlaps


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"dataset": images_in_classes(tmp_path_factory.mktemp("data") / "images.npz"), "batch_size": 13, "epochs": 2}


def _cosines(means):
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    return unit @ unit.T


def _by_hand(member, inputs, labels, classes):
    """Everything an evaluation holds of one network, in double precision, class by class."""
    with torch.no_grad():
        hidden = member.activations(inputs.double())[-1].flatten(1)
        logits = member.head(hidden).numpy()
    hidden, labels = hidden.numpy(), labels.numpy()
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(labels)), labels]
    predicted = logits.argmax(1)
    confusion = np.array([[((labels == true) & (predicted == guess)).sum() for guess in range(classes)] for true in range(classes)])
    means = np.array([hidden[labels == c].mean(0) for c in range(classes)])
    return {
        "loss": losses.mean(),
        "accuracy": (predicted == labels).mean(),
        "loss_per_class": [losses[labels == c].mean() for c in range(classes)],
        "accuracy_per_class": confusion.diagonal() / confusion.sum(1),
        "confusion": confusion,
        "overlap_dynamic": _cosines(means),
        "overlap_dynamic_centred": _cosines(means - hidden.mean(0)),
    }


MODELS = [
    {"model": "mlp", "widths": (40, 33)},
    {"model": "gmlp", "width": 40, "depth": 2},
    {"model": "cnn", "width": 6, "activation": "tanh"},
]


@pytest.mark.parametrize("settings", MODELS, ids=lambda settings: settings["model"])
def test_evaluation_is_the_definition(settings):
    """On 1437 digits, which are several passes."""
    ready = trained(dataset="digits", epochs=1, lr=0.01, repeats=2, normalize="pixel", **settings).setup
    train = ready.split.train
    found = evaluate(ready.learner, train, ready.standardise).arrays()
    pixels = train.inputs.double()
    spread = pixels.std(0, correction=0)
    inputs = (pixels - pixels.mean(0)) / torch.where(spread > 0, spread, 1)
    for r in range(2):
        expected = _by_hand(ready.learner.networks.member(r).double().eval(), inputs, train.labels, 10)
        assert expected.keys() <= found.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][r], value, rtol=1e-4, atol=2e-5, err_msg=name)
        np.testing.assert_array_equal(found["confusion"][r], expected["confusion"])
        assert found["accuracy"][r] > 0.5  # something has been learned


def test_overlaps_are_cosines(images):
    found = trained(**images, model="mlp", width=12, repeats=2).arrays
    for name in ("overlap_dynamic", "overlap_dynamic_centred"):
        overlap = found[name]
        np.testing.assert_array_equal(np.diagonal(overlap, axis1=-2, axis2=-1), np.ones(overlap.shape[:-1]))
        np.testing.assert_array_equal(overlap, overlap.swapaxes(-1, -2))
        assert (abs(overlap) <= 1).all()
    assert (found["overlap_dynamic"] >= 0).all()  # ReLU features
    assert (found["overlap_dynamic_centred"] < 0).any()


def test_static_overlap_is_of_the_standardised_training_set(images):
    ready = training_setup(**images, model="mlp", width=4, shift=0.5, subset_size=50)
    pixels = ready.split.train.inputs.double().numpy().reshape(50, -1) / 255
    labels = ready.split.train.labels.numpy()
    inputs = (pixels - pixels.mean()) / pixels.std() + 0.5
    means = np.array([inputs[labels == c].mean(0) for c in range(3)])
    static = static_overlaps(ready.split, ready.standardise)
    np.testing.assert_allclose(static["overlap_static"], _cosines(means), rtol=1e-5)
    np.testing.assert_allclose(
        static_overlaps(ready.split, ready.standardise)["overlap_static_centred"], _cosines(means - inputs.mean(0)), rtol=1e-5
    )


def test_a_large_shift_drives_static_overlap_to_one(images):
    ready = training_setup(**images, model="mlp", width=4, shift=1000.0)
    assert (static_overlaps(ready.split, ready.standardise)["overlap_static"] > 0.9999).all()


def test_the_order_of_the_samples_does_not_matter(images):
    ready = trained(**images, model="mlp", width=12, repeats=2).setup
    train = ready.split.train
    one, two = (
        evaluate(ready.learner, train.pick(order), ready.standardise).arrays()
        for order in (torch.arange(len(train)), torch.randperm(len(train), generator=torch.Generator().manual_seed(0)))
    )
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6, equal_nan=True)
    assert torch.equal(one["confusion"], two["confusion"])


def test_a_class_without_samples_is_nan_and_the_rest_is_not(images):
    ready = trained(**images, model="mlp", width=12).setup
    test = ready.split.test
    there = evaluate(ready.learner, test.pick((test.labels != 1).nonzero().flatten()), ready.standardise).arrays()
    whole = evaluate(ready.learner, test, ready.standardise).arrays()
    for name in ("loss_per_class", "accuracy_per_class"):
        assert there[name][0].isnan().tolist() == [False, True, False]
        torch.testing.assert_close(there[name][0, [0, 2]], whole[name][0, [0, 2]])
    assert there["overlap_dynamic"][0].isnan().sum() == 5
    assert bool(there["loss"].isfinite().all())


def test_evaluation_leaves_no_trace(images):
    """Nor does it draw a number: training goes on the same however often one measured."""
    settings = images | {"model": "cnn", "width": 4, "repeats": 2, "augment": True, "corruption_p": 0.2}
    rare, often = trained(**settings, eval_steps=(0,)), trained(**settings, eval_steps=tuple(range(14)), log_every=1)
    assert len(often.arrays["steps"]) == 15
    assert all(torch.equal(rare.weights[r][name], often.weights[r][name]) for r in range(2) for name in rare.weights[r])
    np.testing.assert_array_equal(rare.arrays["loss"][:, -1], often.arrays["loss"][:, -1])


def test_batch_norm_is_evaluated_in_eval_mode(images):
    """A sample's loss does not depend on the samples beside it."""
    small = images | {"epochs": 1, "subset_size": 20, "batch_size": 10}
    ready = trained(**small, model="resnet18").setup
    test = ready.split.test
    alone = [evaluate(ready.learner, test.pick(torch.tensor([i])), ready.standardise).arrays()["loss"][0].item() for i in range(4)]
    several = evaluate(ready.learner, test.pick(torch.arange(4)), ready.standardise).arrays()["loss"][0].item()
    assert np.mean(alone) == pytest.approx(several, rel=1e-3)


def test_the_training_curve_is_of_the_batch_before_its_update(images):
    """Its first point is the loss of the first batch at the initial weights."""
    ready = training_setup(**images, model="mlp", width=12, repeats=2, log_every=1)
    inputs, labels = ready.batches.draw()
    logits = ready.learner.predict(inputs)
    expected = [torch.nn.functional.cross_entropy(logits[r], labels[r]).item() for r in range(2)]
    found = trained(**images, model="mlp", width=12, repeats=2, log_every=1).arrays
    np.testing.assert_allclose(found["train_loss"][:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(found["train_accuracy"][:, 0], (logits.argmax(-1) == labels).double().mean(1), rtol=1e-6)
    assert (found["train_loss"].shape, found["train_accuracy"].shape) == ((2, 14), (2, 14))


def test_best_is_the_first_of_the_best_on_validation(images):
    """Searched for at every evaluation point and at the end of every epoch."""
    ready = training_setup(**images | {"epochs": 6}, model="mlp", width=12, val_size=0.4, eval_steps=(0, 2), repeats=2, lr=1e-2)
    measured = {}

    def measure_all(state):
        if state.step in (0, 2, state.total) or state.epoch_ends:
            measured[state.step] = measure(state, ready.split.val)["accuracy"].tolist(), state.learner.networks.states()

    fit(ready.learner, ready.batches, ready.total, [measure_all])
    best = run(training_setup(**images | {"epochs": 6}, model="mlp", width=12, val_size=0.4, eval_steps=(0, 2), repeats=2, lr=1e-2))[0].best
    for r in range(2):
        highest = max(accuracy[r] for accuracy, _ in measured.values())
        step = min(step for step, (accuracy, _) in measured.items() if accuracy[r] == highest)
        assert (best.step[r], best.accuracy[r]) == (step, pytest.approx(highest))
        assert all(torch.equal(best.networks[r][name], value) for name, value in measured[step][1][r].items())


def test_float_inputs_need_no_unit():
    """uint8 pixels and the same numbers over 255 are the same samples."""
    ready = training_setup(dataset="digits", model="mlp", width=8)
    floats = ready.split.test
    pixels = Samples.of((floats.inputs * 16 * 15).to(torch.uint8), floats.labels)
    scaled = Samples.of(pixels.inputs.float() / 255, floats.labels)
    one, two = (evaluate(ready.learner, samples, ready.standardise).arrays()["loss"] for samples in (pixels, scaled))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
