"""Data sets: every reader against files in the real format, what is refused and how, and the arithmetic of splits."""

import functools
import gzip
import hashlib
import http.server
import io
import math
import os
import threading
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from makers import cifar_batch, cycle, idx_bytes, idx_set, images, qmnist_set, usps_set, write

from hardbench.data import torchvision_sets
from hardbench.data.gaussian import bayes_accuracy, class_means
from hardbench.data.samples import prepare
from hardbench.errors import ConfigError, DataError
from hardbench.registry import DATASETS
from hardbench.seeding import Seeds
from hardbench.settings import DataSettings

REAL = os.environ.get("HARDBENCH_DATA")
real = [pytest.mark.real, pytest.mark.skipif(not REAL, reason="HARDBENCH_DATA is not set")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only this machine can be reached."""
    reach = urllib.request.urlopen

    def urlopen(request, *args, **kwargs):
        url = getattr(request, "full_url", request)
        if "127.0.0.1" not in url:
            raise urllib.error.URLError("no network in tests")
        return reach(request, *args, **kwargs)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


def load(dataset, root=None, seed=0, **more):
    return prepare(DataSettings(dataset=dataset, data_dir=None if root is None else str(root), normalize="none", **more), seed)


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


# embedded


def test_digits():
    split = load("digits")
    assert (len(split.train), len(split.test), split.train.shape, split.class_names) == (1437, 360, (1, 8, 8), tuple("0123456789"))
    assert split.train.inputs.dtype == torch.float32
    assert (split.train.inputs * 16 == (split.train.inputs * 16).round()).all()
    assert (split.train.inputs.min(), split.train.inputs.max()) == (0, 1)
    assert split.train.labels[:10].tolist() == list(range(10))


# files in torchvision's layout


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dataset, home", [("mnist", "MNIST"), ("FashionMNIST", "FashionMNIST"), ("KMNIST", "KMNIST")])
def test_idx_set_is_read_where_it_lies(tmp_path, dataset, home, packed):
    arrays = idx_set(tmp_path, home, packed=packed)
    before = files(tmp_path)
    for folder in (tmp_path / home / "raw", tmp_path / home, tmp_path):
        folder.chmod(0o555)
    split = load(dataset, tmp_path)
    assert split.train.inputs.dtype == torch.uint8
    np.testing.assert_array_equal(split.train.inputs[:, 0], arrays["x_train"])
    np.testing.assert_array_equal(split.test.inputs[:, 0], arrays["x_test"])
    np.testing.assert_array_equal(split.train.labels, arrays["y_train"])
    np.testing.assert_array_equal(split.test.labels, arrays["y_test"])
    assert split.num_classes == 10
    assert files(tmp_path) == before
    for folder in (tmp_path, tmp_path / home, tmp_path / home / "raw"):
        folder.chmod(0o755)


@pytest.mark.parametrize("dataset", ["mnist", "fashionmnist", "kmnist", "qmnist", "emnist:letters", "emnist:byclass", "usps"])
def test_same_as_torchvision(tmp_path, dataset):
    from torchvision import datasets

    known = torchvision_sets.KNOWN[dataset]
    if dataset == "usps":
        usps_set(tmp_path)
    elif dataset == "qmnist":
        qmnist_set(tmp_path)
    else:
        split = known.options.get("split")
        stems = (f"emnist-{split}-train", f"emnist-{split}-test") if split else ("train", "t10k")
        idx_set(tmp_path, known.home, stems, packed=False, first=int(split == "letters"))
    ours = load(dataset, tmp_path)
    for train, samples in ((True, ours.train), (False, ours.test)):
        theirs = getattr(datasets, known.home)(tmp_path, train=train, **known.options)
        np.testing.assert_array_equal(samples.inputs[:, 0], theirs.data)
        assert samples.labels.tolist() == [label for _, label in theirs]
    names = tuple(name.partition(" - ")[0] for name in getattr(theirs, "classes", "0123456789"))
    assert ours.class_names == names
    assert len(names) == known.classes


def test_cifar_comes_through_torchvision(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    names = [name for name, _ in CIFAR10.train_list]
    monkeypatch.setattr(CIFAR10, "train_list", [[name, cifar_batch(folder / name, 20)] for name in names])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", cifar_batch(folder / "test_batch", 30)]])
    meta = cifar_batch(folder / "batches.meta", 1, label_names=[f"thing {k}" for k in range(10)])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    split = load("CIFAR10", tmp_path)
    assert (tuple(split.train.inputs.shape), tuple(split.test.inputs.shape)) == ((100, 3, 32, 32), (30, 3, 32, 32))
    expected = np.random.default_rng(20).integers(0, 256, (20, 3072), dtype=np.uint8).reshape(20, 3, 32, 32)
    np.testing.assert_array_equal(split.train.inputs[:20], expected)
    assert split.class_names[3] == "thing 3"
    (folder / "test_batch").write_bytes(b"not this")
    with pytest.raises(DataError, match="dataset: cifar10; .*test_batch.*damaged"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("dataset", ["emnist", "emnist:", "emnist:latin"])
def test_emnist_names_its_splits(tmp_path, dataset):
    with pytest.raises(ConfigError, match="one of emnist:balanced, .*emnist:letters"):
        load(dataset, tmp_path)


def cut(content):
    return content[:-100]


BROKEN = {
    "bad magic": ("train-images-idx3-ubyte", lambda content: b"\x00\x00\x08\x01" + content[4:], "begins with 0x00000801.*0x00000803"),
    "labels for images": ("train-labels-idx1-ubyte", lambda content: idx_bytes(images(40)), "begins with 0x00000803.*0x00000801"),
    "empty": ("t10k-labels-idx1-ubyte", lambda content: b"", "0 bytes of header"),
    "header only": ("t10k-images-idx3-ubyte", lambda content: content[:9], "9 bytes of header"),
    "cut short": ("train-images-idx3-ubyte", cut, "promises 40 x 28 x 28 items of 1 bytes and holds 31260 bytes"),
    "too long": ("train-labels-idx1-ubyte", lambda content: content + b"1", "promises 40 items of 1 bytes and holds 41 bytes"),
    "fewer labels": ("train-labels-idx1-ubyte", lambda content: idx_bytes(cycle(39)), "39 labels; 40, as many as images"),
    "eleventh class": ("t10k-labels-idx1-ubyte", lambda content: idx_bytes(cycle(20, classes=11)), "labels from 0 to 10 in the test files"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("name, spoil, said", BROKEN.values(), ids=BROKEN)
def test_broken_idx_is_named(tmp_path, packed, name, spoil, said):
    idx_set(tmp_path, packed=packed)
    path = tmp_path / "MNIST" / "raw" / (name + ".gz" * packed)
    content = path.read_bytes()
    write(tmp_path / "MNIST" / "raw" / name, spoil(gzip.decompress(content) if packed else content), packed)
    with pytest.raises(DataError, match=f"^dataset: mnist; .*{said}") as caught:
        load("mnist", tmp_path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("spoil", [cut, lambda content: b"not gzip", lambda content: content[:50] + bytes(30) + content[80:]])
def test_broken_gzip_is_named(tmp_path, spoil):
    idx_set(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match="train-images-idx3-ubyte.gz: cannot be read"):
        load("mnist", tmp_path)


def test_broken_usps_is_named(tmp_path):
    usps_set(tmp_path)
    (tmp_path / "usps.bz2").write_bytes(cut((tmp_path / "usps.bz2").read_bytes()))
    with pytest.raises(DataError, match="dataset: usps; usps.bz2.*damaged"):
        load("usps", tmp_path)


# downloads


@pytest.mark.parametrize("dataset", ["mnist", "qmnist", "emnist:digits", "usps", "cifar10", "cifar100"])
def test_no_files_and_no_network(tmp_path, dataset):
    with pytest.raises(DataError) as caught:
        load(dataset, tmp_path / "new")
    words = str(caught.value)
    assert words.startswith(f"dataset: {dataset}; looked for {torchvision_sets.KNOWN[dataset].files[0]}, ")
    assert str(tmp_path / "new") in words
    assert "\n" not in words
    assert not files(tmp_path)


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written to"):
        load("mnist", tmp_path / "file" / "data")


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server on this machine that offers a small MNIST; returns the served folder."""
    from torchvision.datasets import MNIST

    idx_set(tmp_path / "web")
    folder = tmp_path / "web" / "MNIST" / "raw"
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *words: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        sums = [(name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name, _ in MNIST.resources]
        monkeypatch.setattr(MNIST, "resources", sums)
        yield folder
        server.shutdown()


def test_download_at_first_use(tmp_path, mirror, capfd):
    first = load("mnist", tmp_path / "data")
    assert "100%" in capfd.readouterr().err
    for path in mirror.iterdir():
        path.unlink()
    assert load("mnist", tmp_path / "data").digest == first.digest == load("mnist", tmp_path / "web" / ".." / "data").digest
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["MNIST"]


def test_broken_download_leaves_nothing(tmp_path, mirror):
    whole = (mirror / "t10k-images-idx3-ubyte.gz").read_bytes()
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(cut(whole))
    with pytest.raises(DataError, match="download failed"):
        load("mnist", tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())
    (mirror / "t10k-images-idx3-ubyte.gz").write_bytes(whole)
    assert len(load("mnist", tmp_path / "data").train) == 40


def test_archives_already_there_are_not_downloaded_again(tmp_path, mirror):
    raw = tmp_path / "data" / "MNIST" / "raw"
    name = "train-images-idx3-ubyte.gz"
    write(raw / name, (mirror / name).read_bytes())
    (mirror / name).unlink()
    assert len(load("mnist", tmp_path / "data").train) == 40


# npz


def archive(path, **changes):
    """An archive of 12 and 6 random 5x4 images in three classes, with changes (None leaves a key out)."""
    arrays = {"x_train": images(12)[:, :5, :4], "y_train": cycle(12, 3), "x_test": images(6, seed=1)[:, :5, :4], "y_test": cycle(6, 3)}
    np.savez(path, **{key: value for key, value in (arrays | changes).items() if value is not None})
    return f"npz:{path}"


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
    "identifiers": ({"y_train": cycle(12, 3).astype(int) * 10**9, "y_test": cycle(6, 3).astype(int) * 10**9}, "at most 100000"),
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
    with pytest.raises(DataError, match="no such file"):
        load(f"npz:{tmp_path}")
    np.save(tmp_path / "array.npy", np.arange(3))
    (tmp_path / "text.npz").write_text("hello")
    content = archive(tmp_path / "whole.npz") and (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(cut(content))
    for name in ("array.npy", "text.npz", "cut.npz"):
        with pytest.raises(DataError, match="no .npz archive"):
            load(f"npz:{tmp_path / name}")
    (tmp_path / "flipped.npz").write_bytes(content[:300] + bytes(20) + content[320:])
    with pytest.raises(DataError, match="x_train cannot be read"):
        load(f"npz:{tmp_path}/flipped.npz")
    text = io.BytesIO()
    with zipfile.ZipFile(text, "w") as made:
        for key in ("x_train", "y_train", "x_test", "y_test"):
            made.writestr(key, "words")
    (tmp_path / "words.npz").write_bytes(text.getvalue())
    with pytest.raises(DataError, match="x_train is no array"):
        load(f"npz:{tmp_path}/words.npz")


# Gaussian classes


def overlap(cosine=0.3, separation=2.0, classes=3, **more):
    return load("gaussian", gaussian_mode="overlap", gaussian_cosine=cosine, gaussian_separation=separation, gaussian_classes=classes, **more)


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
    assert split.bayes_accuracy == pytest.approx(hits.mean(), abs=4 * 0.5 / math.sqrt(len(hits)))
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
        assert len(DATASETS[name].summary) > 20


# hardbench data


@pytest.fixture
def tables(monkeypatch):
    """What the command would print: [(title, columns, rows)]."""
    from hardbench.commands import data

    shown = []
    monkeypatch.setattr(data, "table", lambda title, columns, rows: shown.append((title, list(columns), [tuple(map(str, row)) for row in rows])))

    def call(*words, root):
        shown.clear()
        data.run(data.Config(**dict(zip(("action", "name"), words, strict=False)), data_dir=str(root)))
        return shown

    return call


def test_data_lists_every_set(tmp_path, tables):
    idx_set(tmp_path, counts=(45, 20))
    write(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte", b"")
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        write(tmp_path / "FashionMNIST" / "raw" / name, b"")
    ((title, columns, rows),) = tables(root=tmp_path)
    assert str(tmp_path) in title
    listed = {row[0]: row[1:] for row in rows}
    assert all(len(row) == len(columns) for row in rows)
    assert {name.partition(":")[0] for name in listed} == set(DATASETS)
    assert listed["mnist"] == ("on disk", "45", "20", "10", "4-5", "2", "1 x 28 x 28")
    assert listed["fashionmnist"][0] == "damaged"
    assert listed["digits"][:4] == ("embedded", "1437", "360", "10")
    assert listed["emnist:letters"] == ("not there", "124800", "20800", "27", "-", "-", "1 x 28 x 28")
    assert listed["npz:PATH"] == ("not there", *"------")
    assert not list(tmp_path.rglob(".download*"))


def test_data_shows_one_set_class_by_class(tmp_path, tables):
    idx_set(tmp_path, counts=(45, 20))
    _, (_, columns, rows) = tables("list", "MNIST", root=tmp_path)
    assert (columns, rows[0], rows[9]) == (["class", "name", "train", "test"], ("0", "0", "5", "2"), ("9", "9", "4", "2"))
    own = archive(tmp_path / "Own.npz")
    assert tables("list", own, root=tmp_path)[0][2] == [(own, "on disk", "12", "6", "3", "4", "2", "1 x 5 x 4")]
    assert len(tables("list", "emnist", root=tmp_path)[0][2]) == 6
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match="t10k-labels"):
        tables("list", "mnist", root=tmp_path)


def test_data_fetch_downloads_and_verifies(tmp_path, mirror, tables, monkeypatch):
    with pytest.raises(DataError, match="40 training and 20 test samples .*; 60000 and 10000 were published"):
        tables("fetch", "mnist", root=tmp_path / "data")
    monkeypatch.setattr(torchvision_sets, "KNOWN", {"mnist": torchvision_sets._idx("MNIST", 40, 20, names=tuple("0123456789"))})
    summary, classes = tables("fetch", "mnist", root=tmp_path / "data")
    assert summary[2][0][:4] == ("mnist", "on disk", "40", "20")
    assert len(classes[2]) == 10
    assert "nothing to fetch" in tables("fetch", "digits", root=tmp_path)[0][0]


def test_data_refusals(tmp_path, tables):
    with pytest.raises(ConfigError, match="fetch takes a data set"):
        tables("fetch", root=tmp_path)
    with pytest.raises(ConfigError, match="nearest: mnist"):
        tables("list", "mnits", root=tmp_path)
    with pytest.raises(ConfigError, match="one of emnist:balanced"):
        tables("fetch", "emnist", root=tmp_path)
    with pytest.raises(DataError, match="no network in tests"):
        tables("fetch", "kmnist", root=tmp_path)


# real files


class TestReal:
    pytestmark = real

    def test_mnist(self):
        split = load("mnist", REAL)
        assert (tuple(split.train.inputs.shape), tuple(split.test.inputs.shape)) == ((60_000, 1, 28, 28), (10_000, 1, 28, 28))
        assert split.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
        assert split.train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
        assert split.test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert split.train.inputs.float().mean() / 255 == pytest.approx(0.1307, abs=1e-4)

    def test_fashionmnist(self):
        split = load("fashionmnist", REAL)
        assert (len(split.train), len(split.test)) == (60_000, 10_000)
        assert split.train.labels.bincount().tolist() == [6000] * 10
        assert split.class_names[9] == "Ankle boot"
        assert split.train.labels[0] == 9

    def test_both_are_fetched_already(self, tables):
        for name in ("mnist", "fashionmnist"):
            assert tables("fetch", name, root=REAL)[0][2][0][1:4] == ("on disk", "60000", "10000")
