"""Data sets read from files: every reader against small files in the real format, downloads, `hardbench data`, real files."""

import functools
import gzip
import hashlib
import http.server
import os
import re
import threading
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from makers import archive, cifar_batch, cycle, idx_bytes, idx_set, images, load, qmnist_set, usps_set, write

from hardbench.data import torchvision_sets
from hardbench.errors import ConfigError, DataError
from hardbench.registry import DATASETS

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


def files(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


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
    with pytest.raises(DataError, match=r"dataset: cifar10; .*test_batch.*damaged"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("dataset", ["emnist", "emnist:", "emnist:latin"])
def test_emnist_names_its_splits(tmp_path, dataset):
    with pytest.raises(ConfigError, match=r"one of emnist:balanced, .*emnist:letters"):
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
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("spoil", [cut, lambda content: b"not gzip", lambda content: content[:50] + bytes(30) + content[80:]])
def test_broken_gzip_is_named(tmp_path, spoil):
    idx_set(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: cannot be read"):
        load("mnist", tmp_path)


def test_broken_usps_is_named(tmp_path):
    usps_set(tmp_path)
    (tmp_path / "usps.bz2").write_bytes(cut((tmp_path / "usps.bz2").read_bytes()))
    with pytest.raises(DataError, match=r"dataset: usps; usps.bz2.*damaged"):
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
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        sums = [(name, hashlib.md5((folder / name).read_bytes()).hexdigest()) for name, _ in MNIST.resources]
        monkeypatch.setattr(MNIST, "resources", sums)
        yield folder
        server.shutdown()


def test_download_at_first_use(tmp_path, mirror, capfd):
    first = load("mnist", tmp_path / "data")
    assert re.search(r"100(\.0)?%", capfd.readouterr().err)  # with tqdm it is 100%
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


def test_emnist_is_unpacked_from_the_archive_torchvision_downloads(tmp_path, monkeypatch):
    from torchvision.datasets import EMNIST

    arrays = idx_set(tmp_path / "web", "gzip", ("emnist-digits-train", "emnist-digits-test"))
    (tmp_path / "EMNIST" / "raw").mkdir(parents=True)
    with zipfile.ZipFile(tmp_path / "EMNIST" / "raw" / "gzip.zip", "w") as packed:
        for path in (tmp_path / "web" / "gzip" / "raw").iterdir():
            packed.write(path, f"gzip/{path.name}")
    monkeypatch.setattr(EMNIST, "md5", hashlib.md5((tmp_path / "EMNIST" / "raw" / "gzip.zip").read_bytes()).hexdigest())
    np.testing.assert_array_equal(load("emnist:digits", tmp_path).train.inputs[:, 0], arrays["x_train"])
    (tmp_path / "EMNIST" / "raw" / "gzip.zip").unlink()
    np.testing.assert_array_equal(load("EMNIST:Digits", tmp_path).test.labels, arrays["y_test"])


# hardbench data


@pytest.fixture
def tables(monkeypatch):
    """What the command would print: [(title, columns, rows)]."""
    from hardbench.commands import data

    shown = []

    def table(title, columns, rows):
        shown.append((title, list(columns), [tuple(map(str, row)) for row in rows]))

    monkeypatch.setattr(data, "table", table)

    def call(*words, root):
        shown.clear()
        data.run(data.Config(**dict(zip(("action", "name"), words, strict=False)), data_dir=str(root)))
        return shown

    return call


def test_data_lists_every_set(tmp_path, tables):
    idx_set(tmp_path, train=45)
    write(tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte", b"")
    for name in ("train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        write(tmp_path / "FashionMNIST" / "raw" / name, b"")
    ((title, columns, rows),) = tables(root=tmp_path)
    assert str(tmp_path) in title
    listed = {row[0]: row[1:] for row in rows}
    assert all(len(row) == len(columns) for row in rows)
    assert {name.partition(":")[0] for name in listed} == set(DATASETS)
    assert listed["mnist"] == ("on disk", "45", "20", "10", "4-5", "1x28x28")
    assert listed["fashionmnist"][0] == "damaged"
    assert listed["digits"][:4] == ("embedded", "1437", "360", "10")
    assert listed["emnist:letters"] == ("absent", "124800", "20800", "27", "-", "1x28x28")
    assert listed["npz:PATH"] == ("absent", *"-----")
    assert not list(tmp_path.rglob(".download*"))


def test_data_shows_one_set_class_by_class(tmp_path, tables):
    idx_set(tmp_path, train=45)
    _, (_, columns, rows) = tables("list", "MNIST", root=tmp_path)
    assert (columns, rows[0], rows[9]) == (["class", "name", "train", "test"], ("0", "0", "5", "2"), ("9", "9", "4", "2"))
    own = archive(tmp_path / "Own.npz")
    assert tables("list", own, root=tmp_path)[0][2] == [(own, "on disk", "12", "6", "3", "4", "1x5x4")]
    assert len(tables("list", "emnist", root=tmp_path)[0][2]) == 6
    (tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"")
    with pytest.raises(DataError, match="t10k-labels"):
        tables("list", "mnist", root=tmp_path)


def test_data_fetch_downloads_and_verifies(tmp_path, mirror, tables, monkeypatch):
    with pytest.raises(DataError, match=r"40 training and 20 test samples .*; 60000 and 10000 were published"):
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
