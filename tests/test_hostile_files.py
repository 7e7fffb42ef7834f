"""Files that are damaged, hostile or another's: one line that names the file and the table's exit code, in time and within memory."""

import gzip
import io
import os
import re
import shutil
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import archive, cycle, idx_bytes, idx_set, load, usps_set
from projects import all_runs, client, new_project, with_one_run

from hardbench import archives, artifacts
from hardbench.cli import main
from hardbench.errors import DataError, TrainingError
from hardbench.stored import StoredRun
from hardbench.training import checkpoints, memory

# archives


def header(shape, dtype="|u1", more=""):
    """The beginning of an .npy file that promises a shape."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}{more}".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text) + 1) + text + b"\n"


def packed(path, content, how=zipfile.ZIP_DEFLATED, name="x_train.npy"):
    """An archive whose x_train is these bytes, the other arrays being as they should."""
    others = {"y_train": cycle(12, 3), "x_test": np.zeros((6, 5), "f4"), "y_test": cycle(6, 3)}
    with zipfile.ZipFile(path, "w", how) as made:
        made.writestr(name, content)
        for key, array in others.items():
            one = io.BytesIO()
            np.save(one, array)
            made.writestr(f"{key}.npy", one.getvalue())
    return path


def spoiled(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def encrypt(content):
    for at, step in ((content.find(b"PK\x03\x04"), 6), (content.find(b"PK\x01\x02"), 8)):
        content[at + step] |= 1


def unknown_compression(content):
    for at, step in ((content.find(b"PK\x03\x04"), 8), (content.find(b"PK\x01\x02"), 10)):
        content[at + step] = 77


def wipe(content):
    content[60:90] = bytes(30)


ARCHIVES = {
    "10^12 values": (header((10**12,)), None),
    "10^24 values": (header((10**12, 10**12)), None),
    "overflow": (header((2**32, 2**32, 4), "<f8"), None),
    "overflow to nothing": (header((2**62, 4), "<f4"), None),
    "negative": (header((-1, -5), "<f4") + bytes(20), None),
    "parentheses": (header("(" * 9000 + ")" * 9000), None),
    "minus signs": (header("(" + "-" * 900 + "1,)"), None),
    "no header": (b"words", None),
    "a pickle": (header((1,), "|O") + b"cos\nsystem\n(S'touch left'\ntR.", None),
    "longer than promised": (header((12, 5), "<f4") + bytes(999), None),
    "shorter than promised": (header((12, 5), "<f4") + bytes(9), None),
    "strange type": (header((12, 5), "<M8[s]") + bytes(480), None),
    "encrypted": (header((12, 5), "<f4") + bytes(240), encrypt),
    "unknown compression": (header((12, 5), "<f4") + bytes(240), unknown_compression),
}


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED])
@pytest.mark.parametrize("content, change", ARCHIVES.values(), ids=ARCHIVES)
def test_archives_that_are_none(tmp_path, monkeypatch, content, change, how):
    monkeypatch.chdir(tmp_path)
    path = packed(tmp_path / "own.npz", content, how)
    if change:
        spoiled(path, change)
    with pytest.raises(DataError, match=r"^dataset: npz:.*own\.npz; .*x_train ") as caught:
        load(f"npz:{path}")
    assert "\n" not in str(caught.value)
    assert [one.name for one in tmp_path.iterdir()] == ["own.npz"]


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_archives_with_damaged_compression(tmp_path, how):
    path = packed(tmp_path / "own.npz", header((12, 5), "<f4") + np.random.default_rng(0).bytes(240), how)
    spoiled(path, wipe)
    with pytest.raises(DataError, match="x_train cannot be read"):
        load(f"npz:{path}")


def test_a_bomb_asks_for_no_memory(tmp_path, monkeypatch):
    """An archive of 30 kB that holds 200 MB, on a machine with 100 MB."""
    monkeypatch.setattr(archives, "free_memory", lambda: 100 << 20)
    path = packed(tmp_path / "own.npz", header((12, 200 << 20)) + bytes(12), zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="x_train cannot be read"):  # promises more than is there
        load(f"npz:{path}")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as made, made.open("x_train.npy", "w") as file:
        file.write(header((200, 1 << 20)))
        for _ in range(200):
            file.write(bytes(1 << 20))
    with pytest.raises(ValueError, match=r"promises 0\.2 GB of arrays; at most 0\.1 GB"):
        archives.read(path, ["x_train"], [])
    assert path.stat().st_size < 100_000


@pytest.mark.parametrize("labels", [[0, 1, 100_000] * 4, [0, 1, 2**40] * 4, [0, 1, -2] * 4])
def test_labels_that_are_no_classes(tmp_path, labels):
    changes = {"y_train": np.array(labels), "y_test": np.array(labels[:6])}
    with pytest.raises(DataError, match=r"^dataset: npz:.*labels (up to|from -2)"):
        load(archive(tmp_path / "own.npz", **changes))


@pytest.mark.parametrize(
    "largest, words, code, told",
    [
        (4_999, "--eval-points 1000 --repeats 100 --epochs 999", 2, r"eval_points: 1000; less, as this takes [\d.]+ TB"),
        (2_999, "--eval-points 1000 --epochs 999", 2, r"eval_points: 1000; at most about \d+, as this takes [\d.]+ GB"),
        (2_999, "--eval-steps " + ",".join(map(str, range(999))) + " --epochs 999", 2, r"eval_steps: 0,1,.*; at most about \d+ of them"),
        (99_999, "--epochs 1", 3, "dataset: npz:.*own.npz; fewer than 100000 classes, or inputs smaller than 2: it takes "),
    ],
)
def test_classes_whose_confusions_do_not_fit(tmp_path, monkeypatch, capfd, largest, words, code, told):
    """The setting that is to blame is named, with what would fit; where no setting is, the data set."""
    new_project(monkeypatch, tmp_path)
    monkeypatch.setattr(memory, "free_memory", lambda: 8 << 30)
    labels = np.append(np.arange(11), largest)
    word = archive(tmp_path / "own.npz", x_train=np.zeros((12, 2), "f4"), x_test=np.zeros((12, 2), "f4"), y_train=labels, y_test=labels)
    assert main(["train", "--dataset", word, *words.split(), "--threads", "1"]) == code
    assert re.search(f"^hardbench: {told}", capfd.readouterr().err)
    assert not all_runs()


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31mred", "n" * 201])
def test_class_names_are_lines(tmp_path, name):
    with pytest.raises(DataError, match=r"class_names: names of one line"):
        load(archive(tmp_path / "own.npz", class_names=np.array(["a", "b", name])))


def test_paths_that_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for word in ("~nobody-of-that-name/x.npz", "n" * 300, "a/" * 3000, "pipe", "/dev/zero", "a\udc80b"):
        with pytest.raises(DataError, match=r"^dataset: npz:") as caught:
            load_bare(word)
        assert len(str(caught.value)) < 9000


def load_bare(word):
    """The data set of a path, past the check of words (which refuses half characters)."""
    from types import SimpleNamespace

    from hardbench.data import npz
    from hardbench.seeding import Seeds

    return npz.load(SimpleNamespace(dataset=f"npz:{word}"), Path(), Seeds(0))


# IDX


@pytest.mark.parametrize("body", [True, False])
@pytest.mark.parametrize("packing", [gzip.compress, bytes])
@pytest.mark.parametrize("sizes", [(2**32 - 1,) * 3, (2**31, 1, 1), (10**9, 10, 10)])
def test_idx_sizes_are_checked_before_memory_is_asked_for(tmp_path, packing, sizes, body):
    from hardbench.data.torchvision_sets import read_idx

    path = tmp_path / ("x-idx3-ubyte" + ".gz" * (packing is gzip.compress))
    path.write_bytes(packing(b"\0\0\x08\x03" + struct.pack(">3I", *sizes) + bytes(99)))
    with pytest.raises(DataError, match=r"promises \d+ x \d+ x \d+ items"):
        read_idx(tmp_path / "x-idx3-ubyte", body)


def test_an_idx_bomb_is_read_no_further_than_it_promises(tmp_path):
    idx_set(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros((40, 28, 28), "u1")) + bytes(300 << 20)))
    with pytest.raises(DataError, match="and holds 31361 bytes or more"):
        load("mnist", tmp_path)


def test_idx_files_that_are_none(tmp_path):
    for make in (os.mkfifo, os.mkdir):
        shutil.rmtree(tmp_path / "MNIST", ignore_errors=True)
        idx_set(tmp_path, packed=False)
        path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
        path.unlink()
        make(path)
        with pytest.raises(DataError, match=r"^dataset: mnist; .*t10k-labels-idx1-ubyte: cannot be read \(a "):
            load("mnist", tmp_path)


def test_idx_images_of_two_shapes(tmp_path):
    idx_set(tmp_path, packed=False)
    (tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((20, 14, 14), "u1")))
    with pytest.raises(DataError, match=r"^dataset: mnist; .*14"):
        load("mnist", tmp_path)


def test_a_usps_label_that_no_tensor_holds(tmp_path):
    import bz2

    usps_set(tmp_path)
    (tmp_path / "usps.t.bz2").write_bytes(bz2.compress(b"9" * 30 + b" " + b" ".join(b"%d:0.5" % at for at in range(1, 257))))
    with pytest.raises(DataError, match=r"^dataset: usps; .*damaged"):
        load("usps", tmp_path)


@pytest.mark.parametrize(
    "where, error, told, kind",
    [
        ("torchvision.datasets.USPS.__init__", MemoryError(), r"^dataset: usps; .* does not fit into memory", DataError),
        ("torchvision.datasets.USPS.__init__", KeyError("x"), r"^dataset: usps; .*damaged", DataError),
        ("hardbench.data.samples.Samples.of", KeyError("ours"), "ours", KeyError),
    ],
)
def test_what_goes_wrong_with_a_set_is_told_for_what_it_is(tmp_path, monkeypatch, where, error, told, kind):
    """Too little memory is no damage, nor is a bug of our own: nobody is told to delete files for it."""

    def fails(*words, **more):
        raise error

    usps_set(tmp_path)
    monkeypatch.setattr(where, fails)
    with pytest.raises(kind, match=told) as caught:
        load("usps", tmp_path)
    assert ("delete" in str(caught.value)) == ("damaged" in told)


# what a run has stored


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a finished run, R = 2, with a validation split; spoil its files and `mend` it."""
    with pytest.MonkeyPatch.context() as patch:
        words = "--threads 1 --epochs 2 --subset-size 200 --repeats 2 --eval-points 3 --width 8 --depth 1 --val-size 0.2 --record-dynamics"
        yield with_one_run(patch, tmp_path_factory.mktemp("hostile"), *words.split())


@pytest.fixture
def run(project):
    run, kept = project
    client().set_terminated(run.id, "FINISHED")
    folder = home(run)
    yield run
    shutil.rmtree(folder)
    shutil.copytree(kept, folder)


def home(run: StoredRun) -> Path:
    return run.file(".")


def refused(code, name, capfd, *words):
    """A command ends with that code and one line that names a file of the run."""
    capfd.readouterr()
    assert main(list(words)) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1
    assert lines[0].startswith("hardbench: ")
    assert name in lines[0]


CONFIGS = {
    "empty": b"",
    "no settings": b"{}",
    "latin-1": b"name: caf\xe9\n",
    "no YAML": b"a: [",
    "a word": b"word",
    "another width": b"model: mlp\nwidth: 16\ndepth: 1\n",
    "another seed": b"model: mlp\nseed: 7\n",
    "no setting": b"modle: mlp\n",
    "no number": b"lr: x\nval_size: two\n",
    "folder": None,
    "large": b"#" * (8 << 20),
}


@pytest.mark.parametrize("content", CONFIGS.values(), ids=CONFIGS)
def test_a_config_that_is_not_the_runs(run, capfd, content):
    path = home(run) / "config.yaml"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    refused(5, "config.yaml", capfd, "eval", run.id)
    client().set_terminated(run.id, "KILLED")
    refused(5, "config.yaml", capfd, "resume", run.id)


def test_a_config_that_is_missing(run, capfd):
    (home(run) / "config.yaml").unlink()
    refused(5, "config.yaml", capfd, "eval", run.id)


def change(path, **changes):
    with np.load(path, allow_pickle=False) as found:
        arrays = {name: found[name] for name in found.files} | changes
    with path.open("wb") as file:
        np.savez(file, **{name: value for name, value in arrays.items() if value is not None})


ARRAYS = {
    "no steps": {"steps": None},
    "no losses": {"loss": None},
    "objects": {"loss": np.array([[None]], dtype=object)},
    "words": {"accuracy": np.array([["a", "b"]])},
    "complex": {"accuracy": np.zeros((2, 4), "c8")},
    "another length": {"steps": np.arange(3)},
    "another repeat": {"accuracy": np.zeros((3, 4))},
    "an axis less": {"confusion": np.zeros((2, 4))},
    "broken steps": {"steps": np.array([0.5, 1, 2, 3])},
    "no classes": {"class_names": np.arange(10)},
    "fewer classes": {"class_names": np.array(["a"])},
}


@pytest.mark.parametrize("changes", ARRAYS.values(), ids=ARRAYS)
def test_arrays_that_are_not_the_runs(run, capfd, changes):
    change(home(run) / "metrics.npz", **changes)
    refused(5, "metrics.npz", capfd, "plot", run.id)


def test_an_empty_axis_is_told_as_such():
    arrays = {"logits": np.zeros((0, 2, 3, 4)), "steps": np.arange(2)} | dict.fromkeys(("labels", "index", "fingerprint"), np.arange(3))
    with pytest.raises(ValueError, match=r"^logits has shape \(0, 2, 3, 4\); no axis of length 0$"):
        artifacts.check(arrays, "dynamics.npz")


@pytest.mark.parametrize("content", [b"", b"words", b"PK\x03\x04" + bytes(99), None])
def test_arrays_that_are_no_archive(run, capfd, content):
    path = home(run) / "metrics.npz"
    content = path.read_bytes()[:-200] if content is None else content
    path.write_bytes(content)
    refused(5, "metrics.npz", capfd, "plot", run.id)


@pytest.mark.parametrize("changes", [{"logits": None}, {"labels": np.arange(3)}, {"index": np.array(["a"] * 160)}, {"fingerprint": None}])
def test_a_hardness_that_is_not_the_runs(run, capfd, changes):
    change(home(run) / "dynamics.npz", **changes)
    refused(5, "dynamics.npz", capfd, "train", "--hardness", run.id, "--subset-size", "200")


def altered(run, name, **changes):
    path = home(run) / "checkpoints" / name
    state = torch.load(path, weights_only=True) | changes
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    return state


STATES = {
    "no weights": {"networks": None},
    "weights of one": {"networks": [{}]},
    "weights of another": {"networks": [{"weight": torch.zeros(3, 3)}] * 2},
    "no networks": {"networks": [1, 2]},
    "no constants": {"standardise": None},
    "constants of another": {"standardise": {"mean": torch.zeros(5, 1, 1), "std": torch.ones(5, 1, 1), "shift": 0.0}},
    "constants that are none": {"standardise": {"mean": 0.0, "std": 1.0, "shift": 0.0}},
}
TRAINING_STATES = {
    **STATES,
    "no batches": {"batches": None},
    "no records": {"records": None},
    "no best": {"best": None},
    "best of others": {"best": {"networks": [{}], "accuracy": [0.5], "step": [10**6]}},
    "step 10^9": {"steps": 10**9},
    "step -1": {"steps": -1},
    "step of words": {"steps": "three"},
    "later than its records": {"steps": 1},
}


@pytest.mark.parametrize("changes", STATES.values(), ids=STATES)
def test_weights_that_are_not_the_runs(run, capfd, changes):
    altered(run, "best.pt", **changes)
    refused(4, "best.pt", capfd, "eval", run.id)


def test_weights_that_are_not_finite(run, capfd):
    path = home(run) / "checkpoints" / "best.pt"
    state = torch.load(path, weights_only=True)
    name, weights = next(iter(state["networks"][1].items()))
    weights.fill_(torch.nan)
    torch.save(state, path)
    refused(4, f"best.pt; {name} of network 1 is not finite", capfd, "eval", run.id)


@pytest.mark.parametrize("changes", [TRAINING_STATES[name] for name in TRAINING_STATES if name != "constants of another"])
def test_states_that_are_not_the_runs(run, capfd, changes):
    altered(run, "last.pt", **changes)
    (home(run) / "checkpoints" / "previous.pt").unlink(missing_ok=True)
    client().set_terminated(run.id, "KILLED")
    refused(4, "checkpoint: ", capfd, "resume", run.id)


def test_checkpoints_that_are_no_files(run, capfd):
    folder = home(run) / "checkpoints"
    for make in (lambda path: path.symlink_to("/dev/zero"), os.mkfifo, os.mkdir, lambda path: path.write_bytes(b"words")):
        path = folder / "best.pt"
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        refused(4, "best.pt; cannot be read", capfd, "eval", run.id)
    shutil.rmtree(folder)
    folder.write_text("a file")
    refused(5, "best.pt", capfd, "eval", run.id)
    client().set_terminated(run.id, "KILLED")
    refused(4, "checkpoints; a folder", capfd, "resume", run.id)


class Touch:
    """Pickled, it leaves a file behind when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def test_nothing_is_executed(run, tmp_path, capfd):
    left = tmp_path / "left"
    torch.save({"networks": [Touch(left)]}, home(run) / "checkpoints" / "best.pt")
    refused(4, "best.pt; cannot be read", capfd, "eval", run.id)
    change(home(run) / "metrics.npz", loss=np.array([[Touch(left)]], dtype=object))
    refused(5, "metrics.npz", capfd, "plot", run.id)
    np.savez(tmp_path / "own.npz", **{name: np.array([Touch(left)], dtype=object) for name in ("x_train", "y_train", "x_test", "y_test")})
    with pytest.raises(DataError, match="a pickle"):
        load(f"npz:{tmp_path / 'own.npz'}")
    assert not left.exists()


def test_a_compressed_checkpoint_is_not_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "last.pt", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", bytes(50 << 20))
    with pytest.raises(TrainingError, match="cannot be read"):
        checkpoints.load(tmp_path / "last.pt")


def test_out_that_is_the_runs_own_folder_or_none(run, tmp_path, capfd):
    before = (home(run) / "metrics.npz").read_bytes()
    assert main(["eval", run.id, "--out", str(home(run))]) == 0
    assert (home(run) / "metrics.npz").read_bytes() == before
    (tmp_path / "file").write_text("kept")
    for word in ("file", "file/below", "n" * 300, "/proc/none"):
        refused(2, "out: ", capfd, "eval", run.id, "--out", str(tmp_path / word))
    assert (tmp_path / "file").read_text() == "kept"


def test_no_home_folder(tmp_path, monkeypatch, capfd):
    """Neither HOME nor an entry of the user: data that need no file are there, others say what is missing."""
    new_project(monkeypatch, tmp_path)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert len(load("digits").train) == 1437
    refused(3, "there is no home folder", capfd, "train", "--dataset", "mnist")
    assert not (tmp_path / "~").exists()
