"""Data sets that need no download, what is refused and how, and the arithmetic of splits."""

import io
import math
import zipfile

import numpy as np
import pytest
import torch
from makers import archive, cycle, images, load

from hardbench.data.gaussian import bayes_accuracy, class_means
from hardbench.errors import ConfigError, DataError
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds

# embedded


def test_digits():
    split = load("digits")
    assert (len(split.train), len(split.test), split.train.shape, split.class_names) == (1437, 360, (1, 8, 8), tuple("0123456789"))
    assert split.train.inputs.dtype == torch.float32
    assert (split.train.inputs * 16 == (split.train.inputs * 16).round()).all()
    assert (split.train.inputs.min(), split.train.inputs.max()) == (0, 1)
    counts = torch.bincount(torch.cat([split.train.labels, split.test.labels]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert torch.bincount(split.test.labels).min() >= 25  # shuffled: no class is left to training alone


# npz


def test_npz_inputs_keep_their_meaning(tmp_path):
    rng = np.random.default_rng(0)
    for suffix, shape in (((5, 4), (1, 5, 4)), ((5, 4, 3), (3, 5, 4))):
        train, test = (rng.integers(0, 256, (count, *suffix), dtype=np.uint8) for count in (12, 6))
        split = load(archive(tmp_path / "My Data.npz", x_train=train, x_test=test))
        assert (split.train.shape, split.train.inputs.dtype) == (shape, torch.uint8)
        np.testing.assert_array_equal(split.train.inputs.permute(0, 2, 3, 1).squeeze(-1), train)
    vectors = load(archive(tmp_path / "v.npz", x_train=train.reshape(12, -1), x_test=test.reshape(6, -1))).train.inputs
    assert (vectors.shape, vectors.dtype) == ((12, 60), torch.float32)
    np.testing.assert_allclose(vectors, train.reshape(12, -1) / 255, rtol=1e-6)
    for dtype in ("f2", ">f4", "f8"):
        floats = rng.normal(size=(12, 7)).astype(dtype)
        split = load(archive(tmp_path / "f.npz", x_train=floats, x_test=floats[:6]))
        np.testing.assert_array_equal(split.train.inputs, floats.astype("f4"))


@pytest.mark.parametrize("dtype", ["i1", "u2", ">i4", "u8"])
def test_npz_labels(tmp_path, dtype):
    split = load(archive(tmp_path / "a.npz", y_train=cycle(12, 3).astype(dtype)[:, None], y_test=cycle(6, 3).astype(dtype)))
    assert split.train.labels.tolist() == [0, 1, 2] * 4
    assert split.class_names == ("0", "1", "2")
    assert load(archive(tmp_path / "b.npz", class_names=np.array(["ant", "bee", "cat"]))).class_names == ("ant", "bee", "cat")


def test_npz_path_counts_from_the_working_directory(tmp_path, monkeypatch):
    archive(tmp_path / "Own.npz")
    monkeypatch.chdir(tmp_path)
    assert len(load("NPZ:Own.npz").train) == 12


FLOATS = np.ones((12, 5), "f4")
REFUSED = {
    "missing keys": ({"y_train": None, "x_test": None}, "no y_train, x_test in it"),
    "pickle": ({"y_test": np.array([0, "one"], dtype=object)}, "y_test holds Python objects"),
    "pickled names": ({"class_names": np.array(["a", "b", "c"], dtype=object)}, "class_names holds Python objects"),
    "flat inputs": ({"x_train": np.ones(12, "u1")}, r"x_train has shape \(12,\)"),
    "five axes": ({"x_train": np.ones((12, 1, 1, 1, 1), "u1")}, "x_train has shape"),
    "channels first": ({"x_train": np.ones((12, 1, 28, 28), "u1")}, "channels last"),
    "integers": ({"x_train": np.ones((12, 5, 4), "i8")}, "x_train is int64; uint8"),
    "lengths": ({"y_train": cycle(11, 3)}, "x_train holds 12 inputs, y_train 11 labels"),
    "nothing": ({"x_test": np.ones((0, 5, 4), "u1"), "y_test": cycle(0)}, "at least one"),
    "nan": ({"x_train": FLOATS * np.nan, "x_test": FLOATS[:6]}, "x_train holds values that are not finite"),
    "too large": ({"x_train": FLOATS.astype("f8") * 1e300, "x_test": FLOATS[:6]}, "not finite"),
    "two shapes": ({"x_test": images(6)}, r"x_train holds \(5, 4\) uint8, x_test \(28, 28\) uint8"),
    "two types": ({"x_test": np.ones((6, 5, 4), "f4")}, "same shape and type"),
    "float labels": ({"y_train": cycle(12, 3) + 0.5}, "y_train is float64; integers"),
    "text labels": ({"y_train": np.array(["a", "b", "c"] * 4)}, "y_train is <U1; integers"),
    "negative labels": ({"y_train": cycle(12, 3).astype(int) - 1}, "labels from -1 to 1"),
    "one-hot labels": ({"y_train": np.eye(3, dtype=int)[cycle(12, 3)]}, r"y_train has shape \(12, 3\)"),
    "unseen class": ({"y_test": cycle(6, 5)}, "class 3 is in y_test and not in y_train"),
    "one class": ({"y_train": cycle(12, 1), "y_test": cycle(6, 1)}, "at least two"),
    "identifiers": ({"y_train": cycle(12, 3).astype(int) * 10**9, "y_test": cycle(6, 3).astype(int) * 10**9}, "at most 10000"),
    "names": ({"class_names": np.array(["a", "b"])}, "3 strings"),
}


@pytest.mark.parametrize("changes, said", REFUSED.values(), ids=REFUSED)
def test_npz_refusals(tmp_path, changes, said):
    dataset = archive(tmp_path / "own.npz", **changes)
    with pytest.raises(DataError, match=f"^dataset: npz:.*own.npz; .*{said}") as caught:
        load(dataset)
    assert "\n" not in str(caught.value)


def test_npz_files_that_are_none(tmp_path):
    with pytest.raises(ConfigError, match="npz:PATH"):
        load("npz")
    with pytest.raises(DataError, match="no such file"):
        load(f"npz:{tmp_path}/none.npz")
    with pytest.raises(DataError, match="a folder, not a file"):
        load(f"npz:{tmp_path}")
    np.save(tmp_path / "array.npy", np.arange(3))
    (tmp_path / "text.npz").write_text("hello")
    content = archive(tmp_path / "whole.npz") and (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(content[:-100])
    for name in ("array.npy", "text.npz", "cut.npz"):
        with pytest.raises(DataError, match=r"no .npz archive"):
            load(f"npz:{tmp_path / name}")
    (tmp_path / "flipped.npz").write_bytes(content[:300] + bytes(20) + content[320:])
    with pytest.raises(DataError, match="x_train cannot be read"):
        load(f"npz:{tmp_path}/flipped.npz")
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as made:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            made.writestr(key, "words")
    (tmp_path / "words.npz").write_bytes(text.getvalue())
    with pytest.raises(DataError, match="x_train cannot be read"):
        load(f"npz:{tmp_path}/words.npz")


# Gaussian classes


def overlap(cosine=0.3, separation=2.0, classes=3, **more):
    more |= {"gaussian_cosine": cosine, "gaussian_separation": separation, "gaussian_classes": classes}
    return load("gaussian", gaussian_mode="overlap", **more)


def test_null_gaussian_has_the_moments_asked_for_in_every_class():
    split = load("gaussian", gaussian_train=2000, gaussian_mean=3, gaussian_std=2, gaussian_shape=(3, 4, 4))
    assert split.train.shape == (3, 4, 4)
    for label in range(3):
        values = split.train.inputs[split.train.labels == label]
        assert len(values) == 2000
        assert values.mean() == pytest.approx(3, abs=5 * 2 / math.sqrt(values.numel()))
        assert values.std() == pytest.approx(2, abs=5 * 2 / math.sqrt(2 * values.numel()))
    assert split.bayes_accuracy == pytest.approx(1 / 3)
    assert (len(load("gaussian").train), len(load("gaussian").test), load("gaussian").train.shape) == (60, 30, (1, 8, 8))


@pytest.mark.parametrize("classes, cosine", [(2, -1), (2, 0.4), (3, -0.5), (5, 0), (10, 0.9), (4, 1)])
def test_class_means_have_the_cosine_asked_for(classes, cosine):
    means = class_means(classes, 16, cosine, Seeds(1))
    torch.testing.assert_close(means @ means.T, torch.full((classes, classes), float(cosine)).double().fill_diagonal_(1))
    assert not torch.allclose(means, class_means(classes, 16, cosine, Seeds(2)))


@pytest.mark.parametrize("classes, cosine, separation", [(2, 0.5, 2.0), (2, -1, 0.7), (3, 0.3, 2.0), (6, -0.1, 3.0), (4, 1, 2.0)])
def test_bayes_accuracy_is_what_the_nearest_mean_reaches(classes, cosine, separation):
    split = overlap(cosine, separation, classes, gaussian_std=0.8, gaussian_shape=(8,), gaussian_test=60_000 // classes)
    means = separation * class_means(classes, 8, cosine, Seeds(0).child("data", "gaussian", "means")).float()
    hits = (torch.cdist(split.test.inputs, means).argmin(dim=1) == split.test.labels).float()
    assert split.bayes_accuracy == pytest.approx(float(hits.mean()), abs=4 * 0.5 / math.sqrt(len(hits)))
    xi = split.test.inputs - means[split.test.labels]
    assert xi.mean() == pytest.approx(0, abs=0.01)
    assert xi.std() == pytest.approx(0.8, abs=0.01)


def test_bayes_accuracy_in_closed_form():
    distance = math.sqrt(2 * (1 - 0.3))
    phi = 0.5 * (1 + math.erf(2.0 * distance / (2 * 0.7) / math.sqrt(2)))
    assert bayes_accuracy(2, 0.3, 2.0, 0.7) == pytest.approx(phi, abs=1e-12)
    z = torch.linspace(-10, 10, 100_001, dtype=torch.float64)
    integral = torch.trapezoid(torch.special.ndtr(z + 2.0 * math.sqrt(0.7) / 0.7) * torch.exp(-(z**2) / 2), z) / math.sqrt(2 * math.pi)
    assert float(integral) == pytest.approx(phi, abs=1e-9)
    for classes in (3, 10):
        assert bayes_accuracy(classes, 0.5, 0.0, 1.0) == pytest.approx(1 / classes, abs=1e-9)
        assert bayes_accuracy(classes, 0.5, 100.0, 1.0) == pytest.approx(1, abs=1e-9)


def test_bayes_accuracy_is_of_the_classes_kept():
    assert load("gaussian", class_map={0: 0, 2: 1}).bayes_accuracy == 0.5
    assert overlap(0.3, class_map={0: 0, 2: 1}).bayes_accuracy == pytest.approx(overlap(0.3, classes=2).bayes_accuracy)
    assert overlap(class_map={0: 0, 1: 0, 2: 1}).bayes_accuracy is None


def test_gaussian_streams_do_not_touch_each_other():
    small, large = overlap(gaussian_train=5), overlap(gaussian_train=50)
    torch.testing.assert_close(small.test.inputs, large.test.inputs, rtol=0, atol=0)
    assert not torch.equal(small.train.inputs[:15], small.test.inputs[:15])
    assert small.train.labels[:6].tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"cosine": -0.6}, "gaussian_cosine: -0.6; from -0.5"),
        ({"cosine": 1.5}, "gaussian_cosine: 1.5; from -0.5 .* to 1"),
        ({"gaussian_shape": (2,)}, "gaussian_shape: 2 features; at least as many as the 3 classes"),
        ({"gaussian_shape": (8, 8)}, "gaussian_shape: 8,8; C,H,W or D"),
        ({"gaussian_mean": 1.0}, "gaussian_mean: 1.0; mode null only"),
    ],
)
def test_gaussian_refusals(settings, said):
    with pytest.raises(ConfigError, match=said):
        overlap(**settings)


# what every split goes through


def test_class_map_relabels_at_once():
    whole = load("digits")
    swapped = load("digits", class_map={0: 1, 1: 0})
    kept = whole.train.labels < 2
    assert swapped.train.labels.tolist() == (1 - whole.train.labels[kept]).tolist()
    torch.testing.assert_close(swapped.train.inputs, whole.train.inputs[kept])
    assert swapped.class_names == ("1", "0")
    pair = load("digits", class_map={0: 0, 2: 1})
    assert (pair.num_classes, pair.class_names, set(pair.test.labels.tolist())) == (2, ("0", "2"), {0, 1})
    assert len(pair.train) == int(((whole.train.labels == 0) | (whole.train.labels == 2)).sum())
    assert load("digits", class_map={0: 0, 1: 0, 2: 1}).class_names == ("0+1", "2")
    with pytest.raises(ConfigError, match="without a gap"):
        load("digits", class_map={0: 0, 5: 2})
    with pytest.raises(DataError, match="class_map: class 10; the data set has classes 0 to 9"):
        load("digits", class_map={0: 0, 10: 1})


def test_subset_and_validation_are_drawn_from_train():
    split = load("digits", subset_size=500, val_size=0.1)
    assert (len(split.train), len(split.val), len(split.test)) == (450, 50, 360)
    rows = torch.cat([split.train.index, split.val.index])
    assert len(rows.unique()) == 500
    whole = load("digits")
    torch.testing.assert_close(split.val.inputs, whole.train.inputs[split.val.index])
    assert len(load("digits", val_size=37).val) == 37
    assert load("digits", subset_size=20, subset_from="first").train.index.tolist() == list(range(20))
    assert len(load("digits", subset_size=1437).train) == 1437
    with pytest.raises(DataError, match="subset_size: 1438; at most the 1437"):
        load("digits", subset_size=1438)
    with pytest.raises(DataError, match="val_size: 500; fewer than the 500"):
        load("digits", subset_size=500, val_size=500)


@pytest.mark.parametrize("ratio", [0.1, 0.333, 1.0])
def test_noise_makes_exactly_the_share_wrong(ratio):
    noisy, clean = load("digits", noise_ratio=ratio), load("digits")
    changed = noisy.train.labels != clean.train.labels
    assert int(changed.sum()) == int(ratio * 1437)
    torch.testing.assert_close(noisy.train.clean, clean.train.labels)
    torch.testing.assert_close(noisy.test.labels, clean.test.labels)
    assert noisy.train.labels[changed].bincount(minlength=10).min() > 0


def test_digest_tells_splits_apart():
    assert load("digits").digest == load("digits", seed=5).digest
    assert load("gaussian").digest == load("gaussian").digest != load("gaussian", seed=1).digest
    assert len({load("digits", **more).digest for more in ({}, {"noise_ratio": 0.01}, {"subset_size": 1436}, {"val_size": 1})}) == 4


def test_every_data_set_says_what_it_is():
    for name in DATASETS:
        assert len(DATASETS[name].call.__doc__.partition("\n")[0]) > 20
