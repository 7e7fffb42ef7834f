"""Layer metrics against closed forms, identities and scikit-learn."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from hardbench.errors import ConfigError
from hardbench.metrics.geometry import debiased_hsic
from hardbench.metrics.information import first_components
from hardbench.metrics.published import PUBLISHED
from hardbench.metrics.view import LayerView, centred, remembered, select, self_frobenius, squared_frobenius
from hardbench.registry import LAYER_METRICS
from hardbench.seeding import Seeds

CLASSES = 5
CALLS = {name: LAYER_METRICS[name].call for name in LAYER_METRICS} | {f"published_{name}": call for name, call in PUBLISHED.items()}
PER_NETWORK = ("activations", "fit_activations", "after", "fit_after", "anchors", "scores", "next_scores")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Seeds(seed).child(*shape).generator())


def classes(count: int, seed: int = 0) -> Tensor:
    return torch.randint(0, CLASSES, (count,), generator=Seeds(seed).child("labels").generator())


def orthogonal(width: int) -> Tensor:
    return torch.linalg.qr(noise(width, width, seed=9)).Q


def view_of(activations: Tensor, **given) -> LayerView:
    """A view of [R, N, D] whose every other part is random, unless given."""
    repeats, count, width = activations.shape
    anchors = noise(repeats, CLASSES, width, seed=3)
    parts = {
        "activations": activations,
        "before": noise(1, count, 7, seed=1),
        "inputs": noise(1, count, 7, seed=1),
        "labels": classes(count),
        "num_classes": CLASSES,
        "fit_activations": noise(repeats, count, width, seed=2),
        "fit_labels": classes(count, seed=1),
        "after": noise(repeats, count, 6, seed=4),
        "fit_after": noise(repeats, count, 6, seed=5),
        "anchors": anchors,
        "scores": torch.einsum("rnd,rkd->rnk", activations.float(), anchors),
        "next_scores": noise(repeats, count, CLASSES, seed=6),
        "tau": 0.1,
    }
    return LayerView(**(parts | given))


def measure(name: str, view: LayerView) -> Tensor:
    return LAYER_METRICS[name].call(view)


def one(name: str, activations: Tensor, **given) -> float:
    """The metric of one network with activations [N, D]."""
    (value,) = measure(name, view_of(activations[None], **given)).tolist()
    return value


@pytest.mark.parametrize("name", list(LAYER_METRICS))
def test_every_metric_is_one_number_per_network_and_says_what_it_is(name):
    values = measure(name, view_of(noise(3, 90, 8).relu()))
    assert values.shape == (3,) and values.dtype == torch.float64 and values.isfinite().all()
    assert len(LAYER_METRICS[name].call.__doc__.partition("\n")[0]) > 30


@pytest.mark.parametrize("name", CALLS)
def test_a_network_gets_the_same_bits_alone_and_stacked(name):
    stacked = view_of(noise(3, 101, 13).relu())
    alone = [replace(stacked, **{part: getattr(stacked, part)[r : r + 1].clone() for part in PER_NETWORK}) for r in range(3)]
    assert torch.equal(CALLS[name](stacked), torch.cat([CALLS[name](view) for view in alone]))


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1e6, math.nan, math.inf])
def test_a_dead_or_diverged_layer_is_nan_and_leaves_the_others_alone(name, wrong):
    good, fit = noise(2, 60, 8), noise(2, 60, 8, seed=2)
    broken, broken_fit = good.clone(), fit.clone()
    broken[1], broken_fit[1] = wrong, wrong
    values = CALLS[name](view_of(broken, fit_activations=broken_fit))
    assert values[0] == CALLS[name](view_of(good, fit_activations=fit))[0]
    assert values[1] == 1 if name == "dead_units" and math.isfinite(wrong) else values[1].isnan()


def test_few_samples_and_bfloat16_are_measured():
    rounded = noise(2, 400, 8).bfloat16()
    for call in CALLS.values():
        assert call(view_of(noise(2, 3, 8))).shape == (2,)
        assert torch.equal(call(view_of(rounded)), call(view_of(rounded.float())))


def test_the_last_layer_has_no_next_and_a_plain_network_no_anchors():
    last = view_of(noise(2, 50, 8), after=None, fit_after=None, next_scores=None, scores=None, anchors=None)
    for name in LAYER_METRICS:
        needs = LAYER_METRICS[name].reads & {"after", "anchors"}
        assert measure(name, last).isnan().all() == bool(needs)


# anchors


def test_scores_are_judged_by_labels_and_temperature():
    labels, scores = classes(50), 0.1 * noise(1, 50, CLASSES)
    view = view_of(noise(1, 50, 8), scores=scores, labels=labels)
    assert measure("accuracy", view)[0] == (scores[0].argmax(1) == labels).double().mean()
    for name, tau in (("cross_entropy", 0.1), ("cross_entropy_raw", 1.0)):
        expected = torch.nn.functional.cross_entropy(scores[0].double() / tau, labels)
        assert measure(name, view)[0] == pytest.approx(expected.item(), rel=1e-9)
    even = replace(view, scores=torch.zeros_like(scores))
    assert measure("cross_entropy", even)[0] == pytest.approx(math.log(CLASSES))
    wrong = replace(view, scores=100.0 * one_hot((labels + 1) % CLASSES, CLASSES)[None])
    assert measure("cross_entropy", wrong)[0] == pytest.approx(-math.log(1e-12))


def test_cross_entropy_raw_has_the_floor_of_cosine_scores():
    labels = classes(50)
    best = (2.0 * one_hot(labels, CLASSES) - 1)[None]
    assert one("cross_entropy_raw", noise(50, 8), scores=best, labels=labels) == pytest.approx(math.log(1 + (CLASSES - 1) * math.exp(-2)))


def test_ace_regularizer_is_the_entropy_of_equal_predictions():
    scores = noise(1, 50, CLASSES)
    q = (scores[0].double() / 0.1).softmax(1)
    entropy = -(q * q.clamp(min=1e-12).log()).sum(1).mean().item()
    view = view_of(noise(1, 50, 8), scores=scores, next_scores=scores.clone())
    assert measure("ace_regularizer", view)[0] == pytest.approx(entropy, abs=1e-9)
    assert measure("ace_regularizer", replace(view, next_scores=noise(1, 50, CLASSES, seed=8)))[0] > entropy


def test_alignment_and_margin_are_cosines():
    labels, anchors = classes(50), torch.eye(CLASSES)[None]
    on_anchor = 3.0 * anchors[:, labels]
    view = view_of(on_anchor, anchors=anchors, labels=labels)
    assert measure("alignment", view)[0] == pytest.approx(1) and measure("margin", view)[0] == pytest.approx(1)
    random = replace(view, activations=noise(1, 50, CLASSES))
    cosines = cosine_similarity(random.activations[0][:, None], anchors, dim=2)
    own = cosines[range(50), labels]
    rest = torch.stack([row[torch.arange(CLASSES) != y].max() for row, y in zip(cosines, labels, strict=True)])
    assert measure("alignment", random)[0] == pytest.approx(own.mean().item(), abs=1e-6)
    assert measure("margin", random)[0] == pytest.approx((own - rest).mean().item(), abs=1e-6)


# probes


@pytest.mark.parametrize("width", [12, 300])
def test_the_probe_is_scikit_learns_ridge_classifier(width):
    from sklearn.linear_model import RidgeClassifier
    from sklearn.metrics import accuracy_score, f1_score

    centres, labels, fit_labels = noise(CLASSES, width, seed=7), classes(400), classes(200, seed=1)
    samples, fitted = (noise(len(y), width, seed=s) * 3 + 5 + centres[y] for s, y in ((0, labels), (1, fit_labels)))
    fitted[:, 0] = 0  # dead on the fitted samples, alive on the others
    mean, std = fitted.mean(0), fitted.std(0)
    std[0] = 1
    model = RidgeClassifier(alpha=1e-3 * 200).fit((fitted - mean) / std, fit_labels)
    predicted = model.predict((samples - mean) / std)
    view = view_of(samples[None], fit_activations=fitted[None], labels=labels, fit_labels=fit_labels)
    assert measure("probe_accuracy", view)[0] == pytest.approx(accuracy_score(labels, predicted), abs=2 / 400)
    assert measure("f1_score", view)[0] == pytest.approx(f1_score(labels, predicted, average="weighted"), abs=2 / 400)
    assert measure("probe_accuracy", view)[0] > 0.3


def test_permuted_labels_give_chance_held_out_and_certainty_on_the_batch():
    count, width = 2000, 1024
    labels, fit_labels = classes(count), classes(count, seed=1)
    activations = noise(1, count, width).relu()
    view = view_of(activations, fit_activations=noise(1, count, width, seed=2).relu(), labels=labels, fit_labels=fit_labels)
    chance = 1 / CLASSES
    assert abs(measure("probe_accuracy", view)[0] - chance) < 3 * math.sqrt(chance * (1 - chance) / count)
    batch = view_of(activations[:, :128], labels=labels[:128])
    assert PUBLISHED["probe_accuracy"](batch)[0] == 1 and PUBLISHED["f1_score"](batch)[0] == 1


def test_shuffled_labels_reach_the_probe_though_the_rest_is_remembered():
    labels, fit_labels = classes(600), classes(600, seed=1)
    activations, fitted = (one_hot(y, CLASSES)[None] + 0.1 * noise(1, 600, CLASSES, seed=s) for s, y in ((0, labels), (1, fit_labels)))
    view = view_of(activations, fit_activations=fitted, labels=labels, fit_labels=fit_labels)
    order = torch.randperm(600, generator=Seeds(0).generator())
    null = replace(view, labels=labels[order], fit_labels=fit_labels[order.flip(0)])
    assert measure("probe_accuracy", view)[0] == 1
    assert measure("probe_accuracy", null)[0] < 0.4
    assert measure("mutual_information", view) == measure("mutual_information", null)


@pytest.mark.parametrize("width", [20, 500])
def test_ridge_r2_is_scikit_learns_and_one_for_a_linear_map(width):
    from sklearn.linear_model import Ridge
    from sklearn.metrics import r2_score

    weights = noise(width, 6, seed=8) * torch.arange(1, 7)
    x, fitted = noise(1, 300, width), noise(1, 250, width, seed=2)
    noisy = (x @ weights + 3 + 9 * noise(1, 300, 6), fitted @ weights + 3 + 9 * noise(1, 250, 6, seed=1))
    view = view_of(x, fit_activations=fitted, after=noisy[0], fit_after=noisy[1])
    mean, std = fitted[0].mean(0), fitted[0].std(0)
    model = Ridge(alpha=1e-3 * 250).fit((fitted[0] - mean) / std, noisy[1][0])
    expected = r2_score(noisy[0][0], model.predict((x[0] - mean) / std), multioutput="variance_weighted")
    assert measure("ridge_r2", view)[0] == pytest.approx(expected, abs=1e-4)
    if width == 20:
        exact = replace(view, after=x @ weights + 3, fit_after=fitted @ weights + 3)
        assert measure("ridge_r2", exact)[0] == pytest.approx(1, abs=1e-4)


def test_ridge_r2_of_unrelated_layers_is_below_zero():
    assert one("ridge_r2", noise(200, 50), after=noise(1, 200, 6, seed=4), fit_after=noise(1, 200, 6, seed=5)) < 0


# similarity


def test_cka_is_one_up_to_rotation_scale_and_shift():
    x = noise(500, 32) * torch.linspace(0.1, 3, 32)
    assert one("linear_cka", 4 * x @ orthogonal(32) + 7, before=x[None]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("width", [40, 600])
def test_cka_of_independent_layers_is_near_zero_where_the_biased_one_is_not(width):
    x, y = noise(200, width), noise(1, 200, width, seed=4)
    assert abs(one("linear_cka", x, before=y)) < 0.03
    assert PUBLISHED["linear_cka"](view_of(x[None], before=y))[0] > 0.15


def test_debiased_hsic_from_features_is_song_et_al_over_samples():
    n, x, y = 50, noise(1, 50, 8) + 2, noise(1, 50, 80, seed=1).relu()
    y[0, :, :8] += x[0]
    k, low = (z[0].double() @ z[0].double().T for z in (x, y))
    k.fill_diagonal_(0), low.fill_diagonal_(0)
    ones = torch.ones(n, dtype=torch.float64)
    terms = (k @ low).trace() + (ones @ k @ ones) * (ones @ low @ ones) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (ones @ k @ low @ ones)
    a, b = centred(x, 0), centred(y, 0)
    assert debiased_hsic(a, b, squared_frobenius(a, b)) == pytest.approx((terms / (n * (n - 3))).item(), rel=1e-5)
    assert math.isnan(debiased_hsic(a[:3], b[:3], 1.0))


@pytest.mark.parametrize(("d", "d2"), [(5, 6), (300, 400), (3, 400)])
def test_the_overlap_is_the_same_by_features_and_by_samples(d, d2):
    x, y = noise(60, d), noise(60, d2, seed=1)
    assert squared_frobenius(x, y) == pytest.approx((x.T @ y).double().square().sum().item(), rel=1e-5)
    assert squared_frobenius(x, x) == pytest.approx((x.T @ x).double().square().sum().item(), rel=1e-5)


# information


def test_information_of_independent_data_is_zero_and_of_equal_data_the_bins_entropy():
    x = noise(5000, 6)
    for seed in range(3):
        assert abs(one("mutual_information", noise(5000, 20, seed=10 + seed).relu(), inputs=x[None])) < 0.02
    t = first_components(x[None])[0]
    shares = torch.histc(t, 30).double() / 5000
    entropy = -torch.special.xlogy(shares, shares).sum().item()
    assert one("mutual_information", x @ orthogonal(6), inputs=x[None]) == pytest.approx(entropy, abs=0.15)
    published = PUBLISHED["mutual_information"]
    assert published(view_of(noise(1, 128, 20), inputs=noise(1, 128, 6)))[0] > 1.9


def test_the_first_component_is_that_of_the_singular_values():
    x = noise(1, 400, 60) * torch.linspace(3, 0.3, 60) ** 2 + 1
    expected = torch.linalg.svd(centred(x, 0), full_matrices=False)
    cosine = cosine_similarity(first_components(x)[0], expected.U[:, 0], dim=0)
    assert abs(cosine) == pytest.approx(1, abs=1e-3)


def test_entropy_of_gaussian_units_counts_the_live_ones():
    scales = torch.linspace(0.5, 3, 40)
    x = noise(4000, 40) * scales + 100
    expected = (0.5 * (2 * math.pi * math.e * scales**2).log()).mean().item()
    assert one("gaussian_entropy", x) == pytest.approx(expected, abs=0.01)
    assert one("gaussian_entropy", x[:, :20] * 1e-6) < -10
    half_dead = torch.cat([x, torch.full_like(x, 0.1)], 1)
    assert one("gaussian_entropy", half_dead) == pytest.approx(one("gaussian_entropy", x), abs=1e-6)
    assert (one("dead_units", half_dead), one("dead_units", x)) == (0.5, 0)
    assert PUBLISHED["gaussian_entropy"](view_of(x[None]))[0] == pytest.approx(40 * expected, abs=0.4)
    assert PUBLISHED["gaussian_entropy"](view_of(half_dead[None]))[0] == 0
    assert PUBLISHED["gaussian_entropy"](view_of(x[None] * 1e-3))[0] == 0


# geometry


@pytest.mark.parametrize(("count", "width"), [(3000, 64), (300, 900)])
def test_participation_ratio_of_isotropic_data(count, width):
    n = count - 1
    assert one("participation_ratio", noise(count, width)) == pytest.approx(width * n / (n + width + 1), rel=0.02)


def test_participation_ratio_counts_directions():
    assert one("participation_ratio", noise(100, 1) * torch.ones(1, 9)) == pytest.approx(1, abs=1e-5)
    spread = torch.tensor([1.0, 2.0, 0.0])
    x = torch.cat([torch.diag(spread), -torch.diag(spread)])
    assert one("participation_ratio", x @ orthogonal(3)) == pytest.approx((1 + 4) ** 2 / (1 + 16), rel=1e-5)


# choosing and remembering


def test_words_choose_metrics():
    everything = select(["all"], has_anchors=True)
    assert everything == list(LAYER_METRICS) and len(everything) == 14
    assert set(everything) - set(select(["fast"], has_anchors=True)) == {"participation_ratio", "ridge_r2"}
    assert not {"accuracy", "margin", "ace_regularizer"} & set(select(["all"], has_anchors=False))
    assert select(["none"], has_anchors=True) == []
    assert select(["Linear-CKA", "dead_units", "linear_cka"], has_anchors=False) == ["dead_units", "linear_cka"]
    with pytest.raises(ConfigError, match="linear_kca; nearest: linear_cka"):
        select(["linear_kca"], has_anchors=True)
    with pytest.raises(ConfigError, match="margin; needs a model with anchors"):
        select(["margin"], has_anchors=False)


def test_what_is_remembered_is_computed_once_for_a_tensor_and_forgotten_with_it():
    calls = []
    count = remembered(lambda stack: calls.append(1))
    stack = noise(1, 40, 4)
    count(stack), count(stack)
    assert len(calls) == 1
    count(stack.clone()), count(stack.clone())  # the first clone is gone before the second is made
    assert len(calls) == 3
    with torch.inference_mode():
        assert self_frobenius(noise(1, 40, 4)) == self_frobenius(noise(1, 40, 4))
