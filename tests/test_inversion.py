"""Inversion points: radii by identity, planted inversions, stragglers by hand, retries, interruptions, the command itself."""

import csv
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from projects import all_runs, history, last, new_project, started, wait_for_step
from setups import copied

from hardbench.cli import main
from hardbench.errors import ConfigError, DataError
from hardbench.inversion.agreement import class_shares, most_voted, overlap_z, share
from hardbench.inversion.experiments import SearchSeries, log_spaced
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.radii import class_means, distances, inversion_epochs, published, published_parity, radii, shortest, smooth
from hardbench.inversion.search import Search, TrainingData, find_inversions, judging_epochs
from hardbench.settings import InversionSettings

EPOCHS = np.arange(301)


def settings(**more):
    return InversionSettings(**{"dataset": "digits", "subset_size": 300, "epochs": 12, "widths": (8, 6)} | more)


def search(repeats=(0, 1), looks=(), **more):
    chosen = settings(**more)
    split, standardise = prepare_pool(chosen, 0)
    return Search(TrainingData(split.train, standardise, split.num_classes), chosen, list(repeats), looks=looks)


# radii


@pytest.mark.parametrize("weighted", [False, True])
def test_radii_and_distances_are_the_definition(weighted):
    generator = torch.Generator().manual_seed(0)
    activations = torch.randn(3, 6, 70, generator=generator) + 1  # [R, D, N]
    labels = torch.arange(70) % 4
    weights = (torch.rand(3, 70, generator=generator) < 0.7).float() if weighted else None
    onehot = torch.nn.functional.one_hot(labels, 4).t().float()
    means, squares = class_means(activations, onehot, weights)
    for r in range(3):
        unit = activations[r].t() / activations[r].norm(dim=0)[:, None]
        centres = []
        for c in range(4):
            own = unit[(labels == c) & (weights is None or weights[r].bool())]
            centres.append(own.mean(0))
            direct = (own - own.mean(0)).square().sum(1).mean().sqrt()
            torch.testing.assert_close(radii(means, squares)[r, c], direct)
            torch.testing.assert_close(radii(means)[r, c], (1 - own.mean(0).square().sum()).sqrt())
        direct = torch.cdist(torch.stack(centres), torch.stack(centres))
        torch.testing.assert_close(distances(means)[r], direct, atol=1e-5, rtol=1e-5)


def test_an_activation_of_zero_has_no_direction():
    """It counts as a vector of length 0: R^2 is then the direct mean of |u - m|^2 all the same."""
    activations = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # two samples, one of them zero
    means, squares = class_means(activations, torch.ones(1, 2))
    torch.testing.assert_close(radii(means, squares), torch.tensor([[0.5]]))


def test_a_class_of_one_sample_has_radius_0_and_no_inversion():
    activations = torch.randn(200, 20, 1, generator=torch.Generator().manual_seed(0))  # 200 epochs, all of one sample
    curve = radii(*class_means(activations, torch.ones(1, 1))).numpy()
    assert not curve.any()
    assert np.isnan(published(curve)).all()
    assert np.isnan(smooth(curve)).all()


# detectors


def blob(turning, noise=0.0):
    """Radii [T] of a Gaussian blob around a unit vector whose width shrinks until `turning`, then grows."""
    generator = torch.Generator().manual_seed(1)
    draws = torch.randn(400, 5, generator=generator)
    centre = torch.zeros(5)
    centre[0] = 1
    widths = 0.2 + 0.002 * np.abs(EPOCHS - turning)
    means = [class_means((centre + width * draws).t()[None], torch.ones(1, 400))[0] for width in widths]
    found = radii(torch.cat(means))[:, 0].double().numpy()
    return found + noise * np.random.default_rng(0).standard_normal(len(found))


@pytest.mark.parametrize("turning", [25, 60, 133, 250])
def test_a_planted_inversion_is_found(turning):
    curve = blob(turning)
    assert smooth(curve) == turning
    assert published_parity(curve) == turning + 1
    assert published(curve) == 5 * (turning // 5 + 1 + (turning % 5 > 2))  # the first multiple of 5 that is farther from it than the last


@pytest.mark.parametrize("turning", [60, 133, 250])
def test_noise_moves_the_smooth_detector_by_half_a_window_and_fools_the_published_ones(turning):
    curve = blob(turning, noise=0.002)
    assert abs(smooth(curve) - turning) <= 6
    assert published_parity(curve) < 30


@pytest.mark.parametrize(
    "curve", [blob(1000), np.full(301, 0.4), np.exp(-EPOCHS / 50.0), 0.3 + 1e-8 * np.random.default_rng(0).random(301)]
)
def test_a_monotonic_radius_has_no_inversion(curve):
    assert np.isnan(smooth(curve))
    if np.ptp(np.diff(curve)) > 1e-12 and (np.diff(curve) < 0).all():
        assert np.isnan(published(curve))
        assert np.isnan(published_parity(curve))


def test_detectors_take_whole_arrays_and_never_take_back():
    curves = np.stack([blob(60), blob(1000), blob(133)], 1).reshape(301, 3, 1)
    np.testing.assert_array_equal(smooth(curves)[:, 0], [60, np.nan, 133])
    np.testing.assert_array_equal(published(curves)[:, 0], [65, np.nan, 140])
    for end in range(0, 301, 7):
        found = smooth(curves[:end])
        assert (np.isnan(found) | (found == smooth(curves))).all()
    assert np.isnan(smooth(curves[:133])[2, 0])  # not confirmed yet
    assert np.isfinite(smooth(curves[: 133 + 20 + 5 + 1])[2, 0])


def test_a_rise_before_the_guard_or_without_patience_is_none():
    assert np.isnan(smooth(blob(10)))
    assert smooth(blob(10), guard=0) == 10
    skewed = np.where(EPOCHS < 18, 18 - EPOCHS, 0.02 * (EPOCHS - 18.0))  # its mean over 11 epochs is smallest 5 later
    assert smooth(skewed, guard=0) == 18
    assert smooth(skewed) == 20
    bump = 0.5 - 0.001 * EPOCHS + 0.05 * np.exp(-(((EPOCHS - 100) / 6.0) ** 2))  # rises for ten epochs
    assert np.isnan(smooth(bump))
    assert np.isfinite(smooth(bump, patience=5))


def test_the_published_parity_rule_watches_class_0():
    curves = np.stack([blob(60), blob(133)], 1)[:, None]
    parity = settings(task="parity", detector="published", subset_size=50, widths=None)
    np.testing.assert_array_equal(inversion_epochs(curves, parity), [[61, 61]])
    np.testing.assert_array_equal(inversion_epochs(curves, settings(detector="published")), [[65, 140]])
    np.testing.assert_array_equal(inversion_epochs(curves, settings()), [[60, 133]])


def test_which_weights_judge_a_class():
    epochs = np.array([[30.0, np.nan, 50.0], [20.0, 25.0, 40.0]])
    for snapshot, absent, expected in (
        ("per_class", "end", [[30, 99, 50], [20, 25, 40]]),
        ("per_class", "exclude", [[30, np.nan, 50], [20, 25, 40]]),
        ("last", "end", [[99, 99, 99], [40, 40, 40]]),
        ("last", "exclude", [[50, np.nan, 50], [40, 40, 40]]),
    ):
        np.testing.assert_array_equal(judging_epochs(epochs, 99, settings(snapshot=snapshot, if_no_inversion=absent)), expected)


def test_a_diverged_network_judges_only_what_had_inverted():
    epochs, end = np.array([[30.0, np.nan], [20.0, np.nan]]), np.array([[99.0], [np.nan]])
    np.testing.assert_array_equal(judging_epochs(epochs, end, settings()), [[30, 99], [20, np.nan]])
    stragglers, labels = np.ones((2, 4), dtype=bool), np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(class_shares(stragglers, labels, np.array([[30, 99], [20, np.nan]])), [[1, 1], [1, np.nan]])
    np.testing.assert_array_equal(share(stragglers, np.array([[30, 99], [np.nan, np.nan]])), [1, np.nan])


@pytest.mark.parametrize("words", [{}, {"guard": 0}, {"window": 4, "patience": 3}, {"detector": "published"}])
def test_the_shortest_training_with_an_inversion(words):
    chosen = settings(**words)
    least = shortest(chosen)

    def found(turning, epochs):
        return np.isfinite(inversion_epochs(np.abs(np.arange(epochs + 1.0) - turning)[:, None, None], chosen)).any()

    assert any(found(turning, least) for turning in range(least))
    assert not any(found(turning, least - 1) for turning in range(least))


# agreement


def test_overlap_z_is_that_of_the_hypergeometric_law():
    from scipy.stats import hypergeom

    sets = torch.rand(2, 3, 200, generator=torch.Generator().manual_seed(0)) < torch.tensor([0.1, 0.3, 0.5])[:, None]
    found = overlap_z(sets)
    for look in range(2):
        for p, (i, j) in enumerate(((0, 1), (0, 2), (1, 2))):
            law = hypergeom(200, int(sets[look, i].sum()), int(sets[look, j].sum()))
            shared = int((sets[look, i] & sets[look, j]).sum())
            np.testing.assert_allclose(found[look, p], (shared - law.mean()) / law.std(), rtol=1e-9)
    assert np.isnan(overlap_z(torch.zeros(2, 9, dtype=torch.bool))).all()


def test_the_hardest_are_those_most_networks_call_stragglers():
    stragglers = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    logits = torch.zeros(2, 4, 2)
    logits[:, 1, 0] = -5
    assert most_voted(stragglers, logits, torch.zeros(4, dtype=torch.long), 9).tolist() == [1, 0, 2]


# the pool


def test_the_pool_of_classes_is_drawn_from_train_and_test():
    split, standardise = prepare_pool(settings(subset_size=900), 0)
    whole, _ = prepare_pool(settings(subset_size="all"), 0)
    assert (len(split.train), len(split.test), len(whole.train), len(whole.test)) == (900, 897, 1797, 0)
    assert whole.train.index.tolist() == list(range(1797))
    assert split.train.index.max() >= 1437 > split.train.index.min()
    both = torch.cat([split.train.index, split.test.index])
    assert both.sort().values.tolist() == list(range(1797))
    assert torch.equal(whole.train.inputs[split.train.index], split.train.inputs)
    values = standardise(split.train.inputs, 255.0 if split.train.inputs.dtype == torch.uint8 else 1.0)
    torch.testing.assert_close(values.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(), torch.tensor(1.0), atol=1e-4, rtol=0)
    again, _ = prepare_pool(settings(subset_size=900), 1)
    assert not torch.equal(again.train.index, split.train.index)


def test_the_pool_of_parity_is_the_first_of_train_pixel_by_pixel():
    split, standardise = prepare_pool(settings(task="parity", subset_size=100, widths=None), 0)
    assert split.train.index.tolist() == list(range(100))
    assert (split.class_names, int(split.train.labels.max()), len(split.test)) == (("even", "odd"), 1, 360)
    values = standardise(split.train.inputs, 255.0 if split.train.inputs.dtype == torch.uint8 else 1.0)
    varying = split.train.inputs.float().std(0) > 0
    torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.std(0, correction=0)[varying], torch.ones(int(varying.sum())), atol=1e-4, rtol=0)
    assert not values[:, ~varying].any()


def test_sizes_and_class_maps():
    assert len(prepare_pool(settings(subset_size=20000), 0)[0].train) == 1797  # the default takes what there is
    with pytest.raises(DataError, match="subset_size: 1798; at most the 1797"):
        prepare_pool(settings(subset_size=1798), 0)
    split, _ = prepare_pool(settings(subset_size="all", class_map={3: 0, 8: 1}), 0)
    whole, _ = prepare_pool(settings(subset_size="all"), 0)
    assert set(whole.train.labels[split.train.index].tolist()) == {3, 8}
    noisy, _ = prepare_pool(settings(subset_size=900, noise_ratio=0.1), 0)
    assert int((noisy.train.labels != noisy.train.clean).sum()) == 90


@pytest.mark.parametrize(
    ("words", "line"), [({"latent_layer": 2}, "latent_layer: 2"), ({"detector": "published", "patience": 3}, "patience")]
)
def test_settings_that_do_not_fit_are_refused(words, line):
    with pytest.raises(ConfigError, match=line):
        settings(**words)


def test_defaults_follow_the_task():
    assert (InversionSettings().layers, InversionSettings().subset_size) == ((20, 20), 20000)
    parity = InversionSettings(task="parity")
    assert (parity.layers, parity.subset_size) == ((20,), 8192)
    assert InversionSettings(widths=(9, 8, 7)).layers == (9, 8, 7)


# searches


@pytest.mark.parametrize("latent", [0, 1])
def test_radii_are_those_of_the_plain_network_after_every_step(latent):
    """Every epoch again by autograd on the plain network, one at a time."""
    one = search(latent_layer=latent)
    members = [one.learner.networks.member(r) for r in range(2)]
    found = one.run()
    inputs, labels = one.batches.draw()[0], one.data.train.labels
    for r, member in enumerate(members):
        optimizer = torch.optim.SGD(member.parameters(), lr=0.1)
        for epoch in range(13):
            hidden = member.activations(inputs)[latent]
            unit = hidden / hidden.norm(dim=1, keepdim=True)
            direct = [(unit[labels == c] - unit[labels == c].mean(0)).square().sum(1).mean().sqrt() for c in range(10)]
            torch.testing.assert_close(found.radii[r, epoch], torch.stack(direct), atol=2e-5, rtol=0)
            logits = member(inputs)
            torch.testing.assert_close(found.error[r, epoch], (logits.argmax(1) != labels).float().mean(), atol=4e-3, rtol=0)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, labels).backward()
            optimizer.step()


def test_a_network_alone_is_the_network_in_the_stack():
    together = search((0, 1, 2), epochs=100).run()
    for r in range(3):
        alone = search((r,), epochs=100).run()
        torch.testing.assert_close(alone.radii[0], together.radii[r], rtol=0, atol=1e-4)


def test_stragglers_are_the_samples_wrong_at_their_class_inversion():
    one = search(epochs=120, lr=0.4, detector="published", looks=range(121), widths=(20, 20))
    found = one.run()
    assert found.inversion_epoch.isfinite().any()
    for r in range(2):
        for c in range(10):
            own = one.data.train.labels == c
            epoch = found.judged[r, c]
            assert epoch == (found.inversion_epoch[r, c] if found.inversion_epoch[r, c].isfinite() else 120)
            assert torch.equal(found.stragglers[r, own], found.wrong[int(epoch), r, own])
    assert not found.stragglers.equal(found.wrong[120])


def test_a_network_without_an_inversion_is_replaced():
    missing = {0: [1], 1: [], 2: [0], 3: [], 4: []}
    drawn = []

    def train(indices):
        found = search(indices, epochs=1).run()
        for place, index in enumerate(indices):
            found.inversion_epoch[place] = 30.0
            found.inversion_epoch[place, missing[index]] = torch.nan
        drawn.append(list(indices))
        return found

    chosen = settings(if_no_inversion="retry")
    found = find_inversions(chosen, range(3), train)
    assert drawn == [[0, 1, 2], [3, 4]]
    assert found.repeats.tolist() == [1, 3, 4]
    assert found.stragglers.shape == (3, 300)
    missing = {index: [0] for index in range(40)}
    drawn.clear()
    assert len(find_inversions(chosen, range(2), train).repeats) == 0
    assert sum(map(len, drawn)) == 20


def test_bf16_keeps_the_radii():
    one, two = search(epochs=30).run(), None
    chosen = settings(epochs=30)
    split, standardise = prepare_pool(chosen, 0)
    two = Search(TrainingData(split.train, standardise, split.num_classes), chosen, [0, 1], precision="bf16").run()
    torch.testing.assert_close(one.radii, two.radii, rtol=0, atol=0.01)


def test_an_interrupted_search_goes_on_bit_for_bit():
    whole = search(epochs=60, detector="published", lr=0.4, looks=(3, 50)).run()
    taken = {}
    first = search(epochs=60, detector="published", lr=0.4, looks=(3, 50))

    def stop(state):
        if state.step == 37:
            taken["state"] = first.state()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run([stop])
    second = search(epochs=60, detector="published", lr=0.4, looks=(3, 50))
    second.load(taken["state"])
    for name, value in vars(second.run()).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(torch.nan_to_num(value.double(), -1), torch.nan_to_num(getattr(whole, name).double(), -1)), name


class Notes:
    """What a run's checkpoints hold of its searches, in memory."""

    def __init__(self, until=None):
        self.parts, self.states, self.until = {}, [], until

    def once(self, name, make, spare=False):
        if name not in self.parts:
            self.parts[name] = copied(make())
        return self.parts[name]

    def save(self, state):
        if (state["name"], state["steps"]) == self.until:
            raise KeyboardInterrupt
        self.states.append(copied(state))


@pytest.mark.parametrize("former", [False, True])
@pytest.mark.parametrize("name", ["one", "two"])
def test_searches_in_a_row_go_on_in_the_one_that_was_interrupted(name, former):
    """Also from a checkpoint of a former version, which held the searches that were done."""
    chosen = settings(epochs=9)
    split, standardise = prepare_pool(chosen, 0)
    data = TrainingData(split.train, standardise, split.num_classes)

    def go(notes, state=None):
        def progress(title, epochs):
            return nullcontext(lambda epoch, text: None)

        series = SearchSeries(data, chosen, 0, "fp32", 0.0, notes, progress, state)
        first = series.search("one", [0, 1])
        return first, series.search("two", [0, 1], first.stragglers, slim=True)

    whole, notes = go(Notes()), Notes(until=(name, 5))
    with pytest.raises(KeyboardInterrupt):
        go(notes)
    notes.until = None
    state = notes.states[-1]
    assert (state["name"], state["steps"]) == (name, 4)
    if former:
        state, notes = state | {"done": notes.parts}, Notes()
    for again, before in zip(go(notes, state), whole, strict=True):
        for key in ("radii", "error", "stragglers", "predicted"):
            np.testing.assert_array_equal(getattr(again, key), getattr(before, key), err_msg=key)


def test_epochs_are_spaced_evenly_in_their_logarithm():
    assert log_spaced(4, 1000) == [0, 1, 10, 100, 1000]
    assert log_spaced(4, 1000, first=1) == [1, 10, 100, 1000]
    assert log_spaced(40, 3) == [0, 1, 2, 3]


# the command

THREE = ("--class-map", "0:0,1:1,2:2")
WORDS = "invert --dataset digits --subset-size 400 --repeats 2 --threads 1 --epochs 30 --lr 0.4"


def test_the_command_leaves_a_finished_run(monkeypatch, tmp_path):
    new_project(monkeypatch, tmp_path)
    extra = "--stability --retrain-without-stragglers --prune-curve --prune-points 2 --test-noise 0,1 --detector published"
    assert main([*WORDS.split(), *extra.split(), "--out", "copy"]) == 0
    run = last()
    assert (run.status, run.study) == ("FINISHED", "invert")
    arrays = run.arrays
    assert arrays["radii"].shape == (2, 31, 10)
    assert arrays["distances"].shape == (2, 31, 10, 10)
    assert arrays["error"].shape == arrays["loss"].shape == (2, 31)
    assert arrays["inversion_epoch"].shape == arrays["judged_epoch"].shape == (2, 10)
    assert arrays["stragglers"].shape == (2, 400)
    assert arrays["stragglers"].dtype == bool
    assert arrays["epochs"].tolist() == list(range(31))
    assert arrays["stability_z"].shape == (1, len(arrays["stability_epochs"]))
    assert arrays["prune_error"].shape == (2, 2, 2)
    assert arrays["retrained_radii"].shape == (2, 31, 10)
    with (tmp_path / "copy" / "inversion.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:5] == ["class", "repeat", "epoch", "radius", "error"]
    assert len(rows) == 20
    weights = torch.load(run.file("checkpoints/inversion.pt"), weights_only=True)["networks"]
    for row in rows:
        there = row["epoch"] != ""
        assert bool(weights[int(row["repeat"])][int(row["class"])]) == there
        if there:
            assert float(row["radius"]) == pytest.approx(arrays["radii"][int(row["repeat"]), int(float(row["epoch"])), int(row["class"])])
    points = history(run)
    assert [step for step, _ in points["radius/03"]] == [0, 5, 10, 15, 20, 25, 30]
    assert points["radius/03"][-1][1] == pytest.approx(arrays["radii"][:, 30, 3].mean())
    assert "radius/03_stderr" in points
    assert run.metrics["stragglers/fraction"] == pytest.approx(arrays["stragglers"].mean())
    for name in ("radii", "radii_retrained", "distance_error", "stability", "prune_curve", "gallery"):
        assert run.has(f"figures/{name}.png"), name
    assert main(["compare", "--csv", "runs.csv"]) == 0
    with (tmp_path / "runs.csv").open() as file:
        shown = next(csv.DictReader(file))
    assert float(shown["inversions/found"]) == pytest.approx(np.isfinite(arrays["inversion_epoch"]).sum(1).mean())
    assert main(["plot", "--kind", "gallery,distance-error", "--out", "drawn"]) == 0
    assert (tmp_path / "drawn" / "gallery.png").exists()


def test_its_settings_are_a_config(monkeypatch, tmp_path):
    new_project(monkeypatch, tmp_path)
    assert main([*WORDS.split(), *THREE, "--epochs", "3"]) == 0
    first = last()
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(first.config))
    assert main(["invert", "--config", "again.yaml"]) == 0
    np.testing.assert_array_equal(first.arrays["radii"], last().arrays["radii"])


def test_a_killed_run_is_resumed_bit_for_bit(monkeypatch, tmp_path):
    words = [*WORDS.split(), *THREE, "--epochs", "60", "--detector", "published", "--checkpoint-every", "0", "--stability"]
    folder = tmp_path / "killed"
    folder.mkdir()
    process = started(folder, *words)
    wait_for_step(folder, 20, process)
    process.kill()
    process.join()
    new_project(monkeypatch, tmp_path / "whole")
    assert main(words) == 0
    whole = last()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    assert main(["resume"]) == 0
    again = last()
    assert (again.status, len(all_runs())) == ("FINISHED", 1)
    assert again.arrays.keys() == whole.arrays.keys()
    for name, values in whole.arrays.items():
        np.testing.assert_array_equal(values, again.arrays[name], err_msg=name)
    resumed, undisturbed = history(again), None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/whole/mlflow.db")
    undisturbed = history(whole)
    assert resumed == undisturbed


def test_networks_that_diverge_fail_with_what_was_measured(monkeypatch, tmp_path, capsys):
    new_project(monkeypatch, tmp_path)
    assert main([*WORDS.split(), *THREE, "--lr", "1e30", "--activation", "relu", "--stability"]) == 4
    assert "loss: not finite in repeats 0, 1" in capsys.readouterr().err
    run = last()
    assert run.status == "FAILED"
    assert np.isnan(run.arrays["radii"][:, -1]).all()
    assert np.isnan(run.arrays["judged_epoch"]).all()
    assert not run.arrays["stragglers"].any()
    assert "stragglers/fraction" not in run.metrics
    assert main(["resume"]) == 4
    assert "loss: not finite in repeats 0, 1" in capsys.readouterr().err


def test_parity_vectors_and_colours(monkeypatch, tmp_path):
    new_project(monkeypatch, tmp_path)
    rng = np.random.default_rng(0)
    for name, shape in (("vectors", (7,)), ("colours", (5, 4, 3))):
        parts = {f"x_{part}": rng.integers(0, 255, (count, *shape)).astype(np.uint8) for part, count in (("train", 30), ("test", 12))}
        if name == "vectors":
            parts = {key: value / 255.0 for key, value in parts.items()}
        np.savez(tmp_path / f"{name}.npz", **parts, y_train=np.arange(30) % 3, y_test=np.arange(12) % 3)
        words = f"invert --dataset npz:{name}.npz --threads 1 --epochs 3 --repeats 1 --subset-size all"
        assert main(words.split()) == 0
        assert last().arrays["radii"].shape == (1, 4, 3)
        assert main([*words.split(), "--task", "parity", "--latent-layer", "1", "--depth", "3"]) == 0
        assert last().arrays["radii"].shape == (1, 4, 2)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ("--stability --repeats 1", 2, "stability: true; two repeats or more"),
        ("--prune-curve --subset-size all", 2, "prune_curve: true; samples to test on"),
        ("--latent-layer 2", 2, "latent_layer: 2; at most 1"),
        ("--subset-size 5000", 3, "subset_size: 5000; at most the 1797"),
        ("--subset-size 3", 2, "subset_size: 3; enough for a sample of every class"),
        ("--model mlp", 2, "model"),
        ("--learning-rate 1", 2, "learning_rate: a former name; it is lr now"),
    ],
)
def test_bad_settings_are_one_line_before_a_run_exists(monkeypatch, tmp_path, capsys, words, code, line):
    new_project(monkeypatch, tmp_path)
    assert main([*WORDS.split(), *words.split()]) == code
    shown = capsys.readouterr().err.strip()
    assert line in shown
    assert len(shown.splitlines()) == 1
    assert all_runs() == []
