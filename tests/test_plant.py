"""Planted hardness: the law of every type, the samples that get it, and the same planted samples wherever a run's data come from."""

import csv
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from projects import all_runs, new_project
from scipy.stats import chi2
from words import given, no_surroundings

from hardbench.campaign.grid import numbers
from hardbench.cli import main
from hardbench.config import Config
from hardbench.configs import invert, train
from hardbench.configs.sweep import config_for, words_of
from hardbench.data import plant
from hardbench.data.plant import LAWS, TYPES, drawn, planted, planted_arrays
from hardbench.data.samples import Samples, Split
from hardbench.errors import ConfigError, DataError
from hardbench.inversion.pool import prepare_pool
from hardbench.seeding import Seeds
from hardbench.settings import InversionSettings, TrainingSettings
from hardbench.training.setup import data_key, split_of

ALL = ",".join(f"{name}:0.02" for name in TYPES)


def split(inputs: torch.Tensor, classes: int = 4) -> Split:
    """Inputs of classes that take turns, for training and for the test."""
    samples = Samples.of(inputs, torch.arange(len(inputs)) % classes)
    return Split(samples, samples, tuple(map(str, range(classes))))


def changed(what: str, inputs: torch.Tensor, classes: int = 4, seed: int = 0, **more: object) -> tuple[Split, torch.Tensor]:
    """The split after planting, and the rows that the one type (or the first of several) has."""
    before = split(inputs, classes)
    nowhere = lambda split: torch.zeros(len(split.train), dtype=torch.long)  # noqa: E731
    after = planted(before, TrainingSettings(plant=what, **more), seed, nowhere)
    code = TYPES.index(what.partition(":")[0]) + 1
    return after, (after.train.planted == code).nonzero().flatten()


def pixels(count: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_every_type_has_a_law():
    assert tuple(LAWS) == TYPES
    assert all(len(law.__doc__) > 20 for law in LAWS.values())


def test_counts_are_exact_and_sets_disjoint():
    counts = {name: 3 + 5 * place for place, name in enumerate(TYPES)}
    for size in (sum(counts.values()), 400, 1000):  # to the last sample, and with room
        places = torch.cat(list(drawn(counts, size, Seeds(0)).values()))
        assert len(places) == len(places.unique()) == sum(counts.values())
        assert places.min() >= 0 and places.max() < size
    after, rows = changed("corrupt:0.0299,mislabel:0.333,foreign:0.6", pixels(500, 1, 6, 6))
    assert len(rows) == 14
    assert torch.bincount(after.train.planted, minlength=9).tolist() == [20, 166, 0, 0, 14, 0, 0, 0, 300]
    everything, _ = changed("mislabel:0.5,invert:0.5", pixels(500, 1, 6, 6))
    assert torch.bincount(everything.train.planted).tolist() == [0, 250, 0, 0, 0, 0, 0, 250]


def test_samples_are_drawn_uniformly():
    """Of 4 000 draws every one of 40 places gets each type equally often, beyond the type's own part too: chi-square."""
    hits = {"mislabel": torch.zeros(40), "foreign": torch.zeros(40)}
    for seed in range(4000):
        for name, rows in drawn({"mislabel": 12, "foreign": 2}, 40, Seeds(seed)).items():
            hits[name][rows] += 1
    for name, count in (("mislabel", 12), ("foreign", 2)):
        expected = 4000 * count / 40
        statistic = float(((hits[name] - expected) ** 2 / (expected * (1 - count / 40))).sum()) * 39 / 40
        assert statistic < chi2.ppf(1 - 1e-6, 39)


def test_a_type_moves_no_other_type():
    inputs = pixels(400, 1, 6, 6)
    alone = {name: changed(f"{name}:0.05", inputs) for name in TYPES}
    together, _ = changed(",".join(f"{name}:0.125" for name in TYPES[:4]) + "," + ",".join(f"{name}:0.05" for name in TYPES[4:]), inputs)
    for name in TYPES[4:]:
        after, rows = alone[name]
        assert torch.equal(rows, (together.train.planted == TYPES.index(name) + 1).nonzero().flatten())
        for part in ("inputs", "labels", "clean"):
            assert torch.equal(getattr(after.train, part)[rows], getattr(together.train, part)[rows])
    for name in TYPES[:4]:  # a larger share has the samples of a smaller one
        larger = (together.train.planted == TYPES.index(name) + 1).nonzero().flatten()
        assert set(alone[name][1].tolist()) < set(larger.tolist())
    assert not torch.equal(alone["corrupt"][1], changed("corrupt:0.05", inputs, seed=1)[1])
    shares = [set(changed(f"mislabel:{share}{more}", inputs)[1].tolist()) for share in (0.2, 0.3) for more in ("", ",corrupt:0.1")]
    assert shares[0] == shares[1] < shares[2] == shares[3]  # beyond an eighth, while the others leave room


def test_what_is_not_planted_stays_as_it_is():
    inputs = pixels(300, 1, 6, 6)
    after, _ = changed(ALL, inputs)
    kept, before = after.train.planted == 0, split(inputs)
    assert int(kept.sum()) == 300 - 8 * 6
    for part in ("inputs", "labels", "clean", "index"):
        assert torch.equal(getattr(after.train, part)[kept], getattr(before.train, part)[kept])
    assert torch.equal(after.test.inputs, before.test.inputs) and not after.test.planted.any()
    assert before.train.planted.sum() == 0 and torch.equal(before.train.inputs, inputs)  # nothing is changed in place
    wrong = after.train.labels != after.train.clean
    assert set(after.train.planted[wrong].tolist()) <= {1, 2, 3}


def test_mislabel_is_uniform_over_the_other_classes():
    after, rows = changed("mislabel:1", torch.zeros(12_000, 3), classes=5)
    turns = torch.bincount((after.train.labels - after.train.clean)[rows] % 5, minlength=5)
    assert turns[0] == 0 and turns.sum() == 12_000
    assert float(((turns[1:] - 3000.0) ** 2 / 3000).sum()) < chi2.ppf(1 - 1e-6, 3)
    assert torch.equal(after.train.clean, split(torch.zeros(12_000, 3), 5).train.labels)


def test_pairs_are_the_next_class():
    after, rows = changed("mislabel_pairs:0.5", torch.zeros(40, 3), classes=7)
    assert torch.equal(after.train.labels[rows], (after.train.clean[rows] + 1) % 7)


def test_corrupt_replaces_half_of_the_pixels_by_uniform_ones():
    after, _ = changed("corrupt:1", torch.full((200, 3, 10, 10), 77, dtype=torch.uint8))
    values = after.train.inputs.flatten().double()
    n, p = len(values), 0.5 * 255 / 256  # a uniform level is the old one once in 256
    replaced = values[values != 77]
    assert abs(len(replaced) - p * n) < 5 * (p * (1 - p) * n) ** 0.5
    assert abs(replaced.mean() - 127.5) < 5 * 73.7 / len(replaced) ** 0.5 + 0.2 and (replaced.min(), replaced.max()) == (0, 255)
    assert not torch.equal(after.train.inputs[0], after.train.inputs[1])
    vectors, _ = changed("corrupt:1", torch.tensor([[-3.0, 10.0], [5.0, 11.0]]).repeat(500, 1))  # each feature within its own range
    low, high = vectors.train.inputs.amin(0), vectors.train.inputs.amax(0)
    assert torch.equal(low, torch.tensor([-3.0, 10.0])) and torch.equal(high, torch.tensor([5.0, 11.0]))
    assert len(vectors.train.inputs[:, 0].unique()) > 400


def test_shift_moves_and_never_wraps():
    """An image of 10 x 5 with a value for every pixel: moved by 2 rows and 1 column, filled from the corner left empty."""
    image = torch.arange(1, 51, dtype=torch.uint8).view(1, 10, 5)
    after, _ = changed("shift:1", image.expand(400, 1, 10, 5).clone())
    expected = {}
    for down, right in itertools.product((-2, 0, 2), (-1, 0, 1)):
        corner = image[0, -1 if down < 0 else 0, -1 if right < 0 else 0]
        moved = [
            [image[0, y - down, x - right] if 0 <= y - down < 10 and 0 <= x - right < 5 else corner for x in range(5)] for y in range(10)
        ]
        expected[down, right] = torch.tensor(moved, dtype=torch.uint8)
    still = expected.pop((0, 0))
    assert torch.equal(still, image[0])
    counts = [sum(torch.equal(one[0], picture) for one in after.train.inputs) for picture in expected.values()]
    assert sum(counts) == 400 and min(counts) > 25
    for side, pixels_moved in ((28, 6), (32, 6), (8, 2), (3, 1)):
        ramp = torch.arange(side).view(1, 1, side).expand(50, 1, 1, side).float() / side
        moved, _ = changed("shift:1", ramp.expand(50, 1, side, side).clone())
        starts = {round(float(one[0, side // 2, -1] - one[0, side // 2, 0]) * side) for one in moved.train.inputs}
        assert starts == {side - 1, side - 1 - pixels_moved}


def test_zoom_shows_the_centre_half():
    after, _ = changed("zoom:1", torch.full((20, 3, 9, 14), 201, dtype=torch.uint8))
    assert (after.train.inputs == 201).all()
    image = torch.zeros(20, 1, 8, 8)
    image[:, :, 2:6, 2:6] = 1.0  # the centre half fills the picture
    assert (changed("zoom:1", image)[0].train.inputs == 1).all()
    image[:, :, 2:6, 4:6] = 0.25
    zoomed = changed("zoom:1", image)[0].train.inputs[0, 0]
    assert torch.equal(zoomed[:, [0, 2, 5, 7]], torch.tensor([1, 1, 0.25, 0.25]).expand(8, 4)) and (zoomed.diff(dim=1) <= 0).all()


def test_inverting_twice_is_the_identity():
    for inputs in (pixels(30, 3, 4, 4), torch.randint(0, 17, (30, 1, 4, 4)) / 16, torch.randint(-9, 9, (30, 5)).float()):
        once, _ = changed("invert:1", inputs)
        assert not torch.equal(once.train.inputs, inputs) and once.train.inputs.dtype == inputs.dtype
        assert torch.equal(changed("invert:1", once.train.inputs)[0].train.inputs, inputs)
    assert torch.equal(changed("invert:1", pixels(30, 3, 4, 4))[0].train.inputs, 255 - pixels(30, 3, 4, 4))


def test_foreign_noise_has_the_moments_of_every_pixel():
    inputs = (torch.randn(4000, 1, 2, 3, generator=torch.Generator().manual_seed(0)) * 10 + torch.tensor([60.0, 90, 130])).round()
    inputs[:, :, 0, 0] = 7
    after, rows = changed("foreign:1", inputs.to(torch.uint8))
    noise = after.train.inputs.double()
    assert (noise[:, :, 0, 0] == 7).all()
    assert ((noise.mean(0) - inputs.mean(0)).abs() < 5 * 10 / 4000**0.5).all()
    assert ((noise.std(0) - inputs.std(0)).abs() < 0.8).all()
    labels = torch.bincount(after.train.labels[rows], minlength=4)
    assert float(((labels - 1000.0) ** 2 / 1000).sum()) < chi2.ppf(1 - 1e-6, 3)
    assert torch.equal(after.train.clean, after.train.labels)  # there is no right label that it could be against
    edge, _ = changed("foreign:1", torch.tensor([0, 255], dtype=torch.uint8).repeat(100).view(200, 1, 1, 1))
    assert edge.train.inputs.min() == 0 and edge.train.inputs.max() == 255
    vectors, _ = changed("foreign:1", torch.randn(500, 3))
    assert vectors.train.inputs.std(0).min() > 0.5


def test_foreign_inputs_of_another_data_set(tmp_path):
    arrays = {f"x_{part}": pixels(30, 5, 5).numpy() for part in ("train", "test")}
    arrays |= {f"y_{part}": np.arange(30) % 3 for part in ("train", "test")}
    np.savez(tmp_path / "other.npz", **arrays)
    other, source = f"npz:{tmp_path / 'other.npz'}", torch.from_numpy(arrays["x_train"]).unsqueeze(1)
    after, rows = changed("foreign:0.5", torch.zeros(60, 1, 5, 5, dtype=torch.uint8), plant_from=other)
    found = [int((source == one).flatten(1).all(1).nonzero()) for one in after.train.inputs[rows]]
    assert sorted(found) == list(range(30))  # without repetition where there are enough
    assert len(changed("foreign:1", torch.zeros(80, 1, 5, 5), plant_from=other)[1]) == 80
    scaled, rows = changed("foreign:0.5", torch.rand(60, 1, 5, 5), plant_from=other)
    assert torch.equal((scaled.train.inputs[rows] * 255).round().sum(0), source.float().sum(0))
    with pytest.raises(DataError, match=r"plant_from: npz:.*, inputs of 1x5x5; of 1x6x6, "):
        changed("foreign:0.5", torch.zeros(60, 1, 6, 6, dtype=torch.uint8), plant_from=other)


def in_a_row(path: Path) -> str:
    """Three classes on a line, at 0, 1 and 4, of 60 samples each: the middle one is closest to both others."""
    rng = np.random.default_rng(0)
    labels = np.arange(180) % 3
    inputs = np.stack([np.array([0.0, 1, 4])[labels] + 0.1 * rng.standard_normal(180), 0.1 * rng.standard_normal(180)], 1)
    np.savez(path, x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
    return f"npz:{path}"


@pytest.mark.parametrize("kind", ["train", "invert"])
def test_close_labels_are_those_of_the_reference_network(kind, tmp_path):
    name = in_a_row(tmp_path / "row.npz")

    def read(threads: int, plant: str = "mislabel_close:0.5") -> Samples:
        if kind == "train":
            return split_of(TrainingSettings(dataset=name, plant=plant, lr=0.01, batch_size=5, threads=threads), 0).train
        return prepare_pool(InversionSettings(dataset=name, plant=plant, pool="train", lr=1.0), 0)[0].train

    before = torch.get_num_threads()
    samples = read(1)
    assert torch.get_num_threads() == before
    rows = samples.planted == TYPES.index("mislabel_close") + 1
    assert int(rows.sum()) == 90 and (samples.labels[rows] != samples.clean[rows]).all()
    outer = rows & (samples.clean != 1)
    assert (samples.labels[outer] == 1).float().mean() > 0.9
    assert torch.equal(read(2).labels, samples.labels)
    more = read(1, "mislabel:0.1,mislabel_close:0.1")
    kept = more.planted == TYPES.index("mislabel_close") + 1
    assert torch.equal(more.labels[kept], samples.labels[kept]) and rows[kept].all()  # the reference sees nothing planted


def test_the_pool_of_training_samples_is_that_of_a_training():
    shared = {"dataset": "digits", "subset_size": 500, "plant": ALL}
    own = split_of(TrainingSettings(**shared), 3)
    pool, _ = prepare_pool(InversionSettings(pool="train", **shared), 3)
    alike = [name for name in TYPES if name != "mislabel_close"]  # the networks that rank the classes differ
    rows = torch.isin(pool.train.planted, torch.tensor([0, *(TYPES.index(name) + 1 for name in alike)]))
    for part in ("inputs", "index", "planted", "clean", "fingerprints"):
        assert torch.equal(getattr(own.train, part), getattr(pool.train, part))
    assert torch.equal(own.train.labels[rows], pool.train.labels[rows])
    assert torch.equal(pool.test.inputs, own.test.inputs) and pool.test.index.tolist() == list(range(1437, 1797))
    parity, _ = prepare_pool(InversionSettings(task="parity", pool="train", **shared), 3)
    first = split_of(TrainingSettings(subset_from="first", **shared), 3)
    assert torch.equal(parity.train.fingerprints, first.train.fingerprints) and torch.equal(parity.train.planted, first.train.planted)
    everything, _ = prepare_pool(InversionSettings(**shared | {"subset_size": "all"}), 3)
    assert len(everything.train) == 1797 and (everything.train.index[everything.train.planted > 0] >= 1437).any()


def test_configurations_share_data_only_where_it_is_the_same():
    base = TrainingSettings(plant="corrupt:0.1")
    assert data_key(base) == data_key(replace(base, lr=0.5, corruption_p=0.2))
    assert data_key(base) != data_key(replace(base, seed=1)) and data_key(replace(base, plant=None)) == data_key(TrainingSettings(seed=1))
    close = TrainingSettings(plant="mislabel_close:0.1")
    assert data_key(close) != data_key(replace(close, lr=0.5)) and data_key(close) == data_key(replace(close, epochs=50))


def test_the_truth_is_stored_with_five_of_every_type():
    after, rows = changed("corrupt:0.01,shift:0.3", pixels(300, 3, 6, 6))
    arrays = planted_arrays(after)
    assert arrays["plant_types"].tolist() == list(TYPES)
    shown = (arrays["gallery_index"] >= 0).sum(1).tolist()
    assert shown == [0, 0, 0, 3, 5, 0, 0, 0]
    code, place = TYPES.index("corrupt"), int(rows[0])
    assert arrays["gallery_index"][code, 0] == place and arrays["planted"][place] == code + 1
    np.testing.assert_array_equal(arrays["gallery_images"][code, 0], after.train.inputs[place])
    assert (arrays["gallery_labels"][code, 3:] == -1).all()
    assert planted_arrays(split(pixels(30, 3, 6, 6))) == {}
    assert "gallery_images" not in planted_arrays(changed("corrupt:0.5", torch.rand(30, 4))[0])


def test_one_form_whatever_comes_in(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    text = "mislabel:0.1,corrupt:0.05"
    for words in ("corrupt:.05, mislabel:1e-1", "CORRUPT:0.05,mislabel:0.10".lower(), "mislabel:0.1,corrupt:5e-2,"):
        assert given("--plant", words).plant == text
    assert given("--plant", "mislabel-pairs:1").plant == "mislabel_pairs:1.0"
    assert train.Config(plant={"corrupt": 0.05, "mislabel": 0.1}).plant == text
    Path("map.yaml").write_text("plant: {corrupt: 0.05, mislabel: 0.1}\n")
    assert given("--config", "map.yaml").plant == text and given("--config", "map.yaml", "--plant", "none").plant is None
    config = given("--plant", text)
    assert yaml.safe_load(config.to_yaml())["plant"] == text == config.params()["plant"]
    swept = config_for(["train"])
    for given_words in (f"mislabel:0.3;none;{text}", ["mislabel:0.3", None, {"mislabel": 0.1, "corrupt": 0.05}]):
        assert words_of(swept(plant=given_words)).given["plant"] == ("mislabel:0.3", None, text)
    assert words_of(swept(plant=text)).given["plant"] == (text,)


@pytest.mark.parametrize("config", [train.Config, invert.Config])
def test_a_cell_without_plant_is_what_it_was(config: type[Config]):
    """What a cell is recognised by has nothing of the settings that came later, unless they are used."""
    assert not {"plant", "plant_from", "pool"} & numbers(config(dataset="digits")).keys()
    assert numbers(config(dataset="digits", plant="corrupt:0.1"))["plant"] == "corrupt:0.1"


REFUSED = {
    "train --plant corupt:0.1": "plant: corupt:0.1; nearest: corrupt",
    "train --plant qqqq:0.1": "plant: qqqq:0.1; one of mislabel, ",
    "train --plant corrupt": "plant: corrupt; TYPE:SHARE with a share above 0 and at most 1",
    "train --plant corrupt:nan": "plant: corrupt:nan; TYPE:SHARE",
    "train --plant corrupt:0": "plant: corrupt:0; TYPE:SHARE",
    "train --plant corrupt:10%": "plant: corrupt:10%; TYPE:SHARE",
    "train --plant corrupt:-0.1": "plant: corrupt:-0.1; TYPE:SHARE",
    "train --plant corrupt:0.1,corrupt:0.2": "plant: corrupt:0.1,corrupt:0.2; each type once",
    "train --plant corrupt:0.6,shift:0.5": "plant: corrupt:0.6,shift:0.5; TYPE:SHARE,... with at least one type, and shares that sum",
    "train --plant ,": "plant: ,; TYPE:SHARE,... with at least one type",
    "train --plant": "plant: no value; ",
    "train --plant corrupt:0.1 --noise-ratio 0.1": "noise_ratio: 0.1; 0 beside plant",
    "train --plant corrupt:0.1 --plant-from mnist": "plant_from: mnist; given with foreign in plant",
    "train --plant-from mnist": "plant_from: mnist; given with foreign in plant",
    "train --plant foreign:0.1 --plant-from digits": "plant_from: digits; another data set than the run's own",
    "train --plant foreign:0.1 --plant-from mnits": "plant_from: mnits; nearest: mnist",
    "train --plant shift:0.1 --dataset gaussian --gaussian-shape 9": "plant: shift; images, and the data set has vectors",
    "train --plant corrupt:0.0001": "plant: corrupt:0.0001; a larger share, as it is less than one of 1437 training samples",
    "invert --dataset digits --plant zoom:0.0001 --epochs 2": "plant: zoom:0.0001; a larger share, as it is less than one of 1797",
    "stragglers --dataset digits --plant shift:0.1 --noise-ratio 0.1": "noise_ratio: 0.1; 0 beside plant",
    "invert --pool test": "pool: test; one of all, train",
}


@pytest.mark.parametrize("words", REFUSED)
def test_words_that_do_not_fit_are_one_line_and_leave_nothing(words, monkeypatch, capsys, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    assert main(words.split()) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"hardbench: {REFUSED[words]}") and shown.count("\n") == 1, shown
    assert list(tmp_path.iterdir()) == []


def test_hostile_words_are_no_plan(monkeypatch, tmp_path):
    no_surroundings(monkeypatch, tmp_path)
    for word in (":", "::", "corrupt:0.1:0.2", "corrupt=0.1", "\u202ecorrupt:1", "corrupt:inf", "corrupt:1e999", "mislabel:" + "9" * 5000):
        with pytest.raises(ConfigError, match=r"^plant: [^\n]*$"):
            given("--plant", word)
    for value in ([["corrupt"]], {"corrupt": {"corrupt": 1}}, {"corrupt": None}, {1: 2}, 3, True, "x" * 20_000):
        with pytest.raises(ConfigError, match=r"^plant: [^\n]*$"):
            train.Config(plant=value)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A training, an inversion run and a study of hard samples on the same planted digits; then the training evaluated, and a sweep."""
    shared = ["--dataset", "digits", "--subset-size", "400", "--plant", ALL, "--threads", "1"]
    with pytest.MonkeyPatch.context() as patch:
        folder = new_project(patch, tmp_path_factory.mktemp("planted"))
        small = ["--width", "8", "--layer-metrics", "none", "--eval-points", "2"]
        assert main(["train", *shared, *small, "--epochs", "2", "--val-size", "0"]) == 0
        assert main(["eval", "last", "--threads", "1"]) == 0
        assert main(["invert", *shared, "--pool", "train", "--epochs", "3", "--repeats", "2"]) == 0
        grid = ["--train-ratios", "0.5", "--remaining-train-ratios", "1", "--repeats", "1", "--strategy", "stragglers,loss"]
        assert main(["stragglers", *shared, "--pool", "train", "--epochs", "30", "--lr", "0.5", *grid]) == 0
        plans = "mislabel:0.1;mislabel:0.2;none"
        assert main(["sweep", "train", "--plant", plans, "--workers", "1", *small, "--epochs", "1", "--out", "swept"]) == 0
        yield folder


def runs(study: str) -> list:
    return [run for run in all_runs() if run.study == study]


def test_the_same_samples_are_planted_everywhere(project):
    kept = [run.archive("planted.npz") for run in (runs("train")[-1], *runs("invert"), *runs("stragglers"))]
    assert len(kept) == 3
    for arrays in kept:
        for name in ("planted", "index", "fingerprint", "plant_types"):
            np.testing.assert_array_equal(arrays[name], kept[0][name])
        assert np.bincount(arrays["planted"]).tolist() == [336, *[8] * 8]
    for study, file in (("invert", "stragglers.npz"), ("stragglers", "hard_samples.npz")):
        np.testing.assert_array_equal(runs(study)[0].archive(file)["planted"], kept[0]["planted"])


def test_an_evaluation_finds_the_run_as_it_was_trained(project):
    run = runs("train")[-1]
    assert run.metrics["eval/accuracy"] == pytest.approx(run.metrics["final/test_accuracy"])
    assert run.config["plant"] == run.params["plant"] == ",".join(f"{name}:0.02" for name in TYPES)


@pytest.mark.parametrize("study", ["train", "invert", "stragglers"])
def test_what_was_planted_is_drawn(project, study):
    assert runs(study)[-1].file("figures/planted.png").stat().st_size > 20_000


def test_strategies_are_judged_type_by_type(project):
    (run,) = runs("stragglers")
    rows = list(csv.DictReader(run.file("detection.csv").open()))
    assert [(row["type"], row["strategy"]) for row in rows] == [(name, score) for name in TYPES for score in ("stragglers", "loss")]
    assert {float(row["base_rate"]) for row in rows} == {8 / 344}
    loss = {row["type"]: float(row["average_precision"]) for row in rows if row["strategy"] == "loss"}
    assert loss["mislabel"] > 0.3 and run.metrics["mislabel_average_precision/loss"] == pytest.approx(loss["mislabel"])


def test_a_sweep_over_plans(project):
    cells = {run.config["plant"]: run for run in runs("train")[:-1]}
    assert cells.keys() == {None, "mislabel:0.1", "mislabel:0.2"}
    assert not cells[None].has("planted.npz")
    some, more = (cells[f"mislabel:{share}"].archive("planted.npz")["planted"] for share in (0.1, 0.2))
    assert (int((some > 0).sum()), int((more > 0).sum())) == (143, 287) and (more[some > 0] == 1).all()
    assert "mislabel:0.2" in cells["mislabel:0.2"].name
    assert main(["plot", cells[None].id, "--kind", "planted"]) == 2


def test_the_parts_of_the_order_stay_when_types_are_added():
    """A ninth type has no part of its own, and takes from the ends what the others leave."""
    assert plant.PARTS == 8
    before = drawn({"corrupt": 30, "foreign": 20}, 400, Seeds(5))
    assert {name: rows.tolist() for name, rows in before.items()} == {
        name: drawn({name: count}, 400, Seeds(5))[name].tolist() for name, count in (("corrupt", 30), ("foreign", 20))
    }
