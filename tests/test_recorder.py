"""The recording of a training: what is recorded against plain networks, when, in which numbers and files, and how it is read."""

import tracemalloc

import numpy as np
import pytest
import torch
from projects import new_project
from setups import CLASSES, TEST, TRAIN, images_in_classes, training_setup

from hardbench import archives
from hardbench.cli import main
from hardbench.data.share import membership
from hardbench.errors import TrainingError
from hardbench.hard_samples import recorder
from hardbench.hard_samples.recorder import FIELDS, DynamicsRecorder, read, recorded_steps
from hardbench.hard_samples.recording import Recording
from hardbench.training.callbacks import Best, Records
from hardbench.training.loop import TrainState, fit
from hardbench.training.setup import measuring_callbacks

SMALL = {"batch_size": 13, "epochs": 2, "repeats": 2, "train_share": 0.7, "noise_ratio": 0.1}
MODELS = {
    "mlp": {"model": "mlp", "widths": (20, 11)},
    "gmlp": {"model": "gmlp", "width": 12, "depth": 2, "val_size": 0},
    "cnn": {"model": "cnn", "width": 4},
    "simple_cnn": {"model": "simple_cnn"},
    "resnet18": {"model": "resnet18"},
    "vgg11": {"model": "vgg11", "val_size": 0},
}
STOP = {"model": "mlp", "width": 20, "lr": 2e-3, "epochs": 20, "target_accuracy": 0.8, "stop_at_target": True, "repeats": 3}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return {"dataset": images_in_classes(tmp_path_factory.mktemp("data") / "images.npz")}


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Images of 32 x 32 pixels, which vgg takes."""
    path, rng = tmp_path_factory.mktemp("data") / "large.npz", np.random.default_rng(0)
    pixels = {f"x_{part}": rng.integers(0, 256, (count, 32, 32)).astype(np.uint8) for part, count in (("train", 40), ("test", 9))}
    np.savez(path, **pixels, y_train=np.arange(40) % 3, y_test=np.arange(9) % 3)
    return {"dataset": f"npz:{path}"}


def recorder_of(ready, folder, **more):
    made = DynamicsRecorder(ready.batches, ready.split.class_names, folder, lambda name: None, ready.split.test, **more)
    made.begin()
    return made


def recorded(folder, points, **settings):
    """The training of these settings, and the arrays of its recording."""
    ready = training_setup(**settings)
    made = recorder_of(ready, folder / "dynamics", ended=points == "last")
    records, steps = Records(), (0, 3, ready.total)
    measuring = measuring_callbacks(ready, records, Best(ready.config.repeats), lambda values, step: None)
    fit(ready.learner, ready.batches, ready.total, [*measuring, recorder.when(points, steps, made)])
    made.write(folder / "dynamics.npz", recorded_steps(points, ready.batches.per_epoch, ready.learner.steps, (0, 3, ready.learner.steps)))
    return ready, read(folder / "dynamics.npz")


def plain(ready, r, samples, sums=None):
    """Logits, lengths and cosines by a plain network, the means from the samples that it was trained on."""
    network, train = ready.learner.networks.member(r).eval(), ready.split.train
    own = membership(ready.config, len(train))[r]
    with torch.inference_mode():
        of_train, hidden = (network.blocks(ready.standardise(part.inputs)).flatten(1) for part in (train, samples))
        logits = network.head(hidden)
    means = torch.stack([of_train[own & (train.labels == c)].double().mean(0) for c in range(ready.split.num_classes)])
    cosine = torch.nn.functional.cosine_similarity(hidden.double(), means[samples.labels], eps=0)
    return logits, hidden.norm(dim=1), cosine


@pytest.mark.parametrize("model", MODELS)
def test_what_is_recorded_is_what_a_plain_network_gives(images, large, tmp_path, model):
    """Of training and test samples; the last hidden activations are the head's input, of a greedy stack that of its last scoring."""
    ready = training_setup(**(large if model == "vgg11" else images), **SMALL | MODELS[model])
    fit(ready.learner, ready.batches, 2)
    made = recorder_of(ready, tmp_path / "dynamics")
    made(TrainState(2, ready.total, ready.learner, ready.batches, {}))
    found = read(made.folder)
    for prefix, samples in (("", ready.split.train), ("test_", ready.split.test)):
        for name, values in zip(FIELDS, zip(*(plain(ready, r, samples) for r in range(2)), strict=True), strict=True):
            expected = torch.stack(values).unsqueeze(1)
            np.testing.assert_allclose(found[prefix + name], expected, rtol=2e-4, atol=2e-5, err_msg=prefix + name)
        np.testing.assert_array_equal(found[f"{prefix}labels"], samples.labels)
    np.testing.assert_array_equal(found["membership"], membership(ready.config, len(ready.split.train)))


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_network_of_the_stack_is_recorded_as_alone(images, tmp_path, model):
    together = recorded(tmp_path / "all", "epochs", **images, **SMALL | MODELS[model])[1]
    for r in range(2):
        alone = recorded(tmp_path / str(r), "epochs", **images, **SMALL | MODELS[model] | {"repeats": 1, "first_repeat": r})[1]
        for name in [*FIELDS, *(f"test_{field}" for field in FIELDS), "membership"]:
            np.testing.assert_array_equal(together[name][r], alone[name][0], err_msg=name)


@pytest.mark.parametrize("points", ["epochs", "evaluation", "last"])
def test_when_it_is_recorded(images, tmp_path, points):
    ready, found = recorded(tmp_path, points, **images, **SMALL | MODELS["mlp"])
    each = ready.batches.per_epoch
    assert found["steps"].tolist() == {"epochs": [each, 2 * each], "evaluation": [0, 3, 2 * each], "last": [2 * each]}[points]
    np.testing.assert_array_equal(found["epochs"], found["steps"] / each)
    assert found["logits"].shape == (2, len(found["steps"]), TRAIN, CLASSES)
    assert found["test_class_cosine"].shape == (2, len(found["steps"]), TEST)
    assert np.isfinite(found["logits"]).all()
    kept = Recording.of(found)
    np.testing.assert_array_equal(kept.epochs, found["epochs"][found["steps"] > 0])
    np.testing.assert_array_equal(kept.membership, found["membership"])


def test_a_network_that_has_stopped(images, tmp_path):
    """Is nan from there on at the ends of epochs; the last point has what every network ended with, as alone."""
    ready, by_epoch = recorded(tmp_path / "epochs", "epochs", **images, **STOP)
    _, at_end = recorded(tmp_path / "last", "last", **images, **STOP)
    assert len(set(ready.learner.stopped.values())) > 1
    assert at_end["logits"].shape[1] == 1
    for r, step in ready.learner.stopped.items():
        there = np.isfinite(by_epoch["feature_norm"][r]).all(-1)
        np.testing.assert_array_equal(there, by_epoch["steps"] <= step)
        for name in FIELDS:
            np.testing.assert_array_equal(at_end[name][r, 0], by_epoch[name][r][by_epoch["steps"] == step][0])
    np.testing.assert_array_equal(Recording.of(at_end).last, Recording.of(by_epoch).last)


def test_a_network_that_diverged_is_nan(images, tmp_path):
    settings = images | SMALL | {"model": "mlp", "width": 8, "optimizer": "sgd", "lr": 1e30, "train_share": 1}
    for points in ("epochs", "last"):
        ready, found = recorded(tmp_path / points, points, **settings)
        assert sorted(ready.learner.diverged) == [0, 1]
        assert all(np.isnan(found[name][:, -1]).all() for name in FIELDS)


def test_more_activations_than_are_held_give_the_same(images, tmp_path, monkeypatch):
    ready = training_setup(**images, **SMALL | MODELS["mlp"])
    made, state = recorder_of(ready, tmp_path), TrainState(7, ready.total, ready.learner, ready.batches, {})
    monkeypatch.setattr("hardbench.training.evaluation.BATCH", 20)
    monkeypatch.setattr(recorder, "BATCH", 20)
    files = []
    for held in (1 << 29, TRAIN * 11 * 4 * 2 - 1, 0):
        monkeypatch.setattr(recorder, "HELD", held)
        made(state)
        files.append((tmp_path / "000000007.npy").read_bytes())
    assert files[0] == files[1] == files[2]


def test_half_precision_is_for_logits(images, tmp_path):
    """Rounded, and the largest number where they are larger; lengths and cosines stay as they are."""
    points = []
    for dtype in ("float32", "float16"):
        ready = training_setup(**images, **SMALL | MODELS["mlp"])
        with torch.no_grad():
            ready.learner.networks.head.bias[0, 1] = 1e6
        made = recorder_of(ready, tmp_path / dtype, dtype=dtype)
        made(TrainState(1, ready.total, ready.learner, ready.batches, {}))
        assert made.bytes_of_a_point == 2 * (TRAIN + TEST) * (CLASSES * np.dtype(dtype).itemsize + 8)
        assert 0 < (tmp_path / dtype / "000000001.npy").stat().st_size - made.bytes_of_a_point < 500
        made.write(tmp_path / f"{dtype}.npz", [1])
        points.append(read(tmp_path / f"{dtype}.npz"))
    single, half = points
    assert half["logits"].dtype == np.float16
    np.testing.assert_array_equal(half["logits"], single["logits"].clip(-65504, 65504).astype(np.float16))
    for name in ("feature_norm", "class_cosine", "test_class_cosine"):
        np.testing.assert_array_equal(half[name], single[name])


@pytest.fixture(scope="module")
def points(images, tmp_path_factory):
    """A recorder with forty points, all the same."""
    ready = training_setup(**images, **SMALL | MODELS["mlp"])
    made = recorder_of(ready, tmp_path_factory.mktemp("dynamics"))
    for step in range(1, 41):
        made(TrainState(step, ready.total, ready.learner, ready.batches, {}))
    return made


def test_memory_does_not_grow_with_the_points(tmp_path):
    """Forty points become one file in the memory of four: far less than one point takes."""
    ready = training_setup(dataset="digits", width=8, repeats=4)
    made, peaks = recorder_of(ready, tmp_path / "dynamics"), []
    for step in range(1, 41):
        made(TrainState(step, ready.total, ready.learner, ready.batches, {}))
    for count in (4, 40):
        tracemalloc.start()
        made.write(tmp_path / f"{count}.npz", range(1, count + 1))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < made.bytes_of_a_point / 2, peaks


def test_the_file_is_an_archive_like_any_other(points, tmp_path):
    """For NumPy and what reads archives from outside; and the folder of points that it is made of reads the same, as far as it goes."""
    path = tmp_path / "dynamics.npz"
    points.write(path, range(1, 41))
    found, whole = archives.read(path), read(points.folder)
    with np.load(path, allow_pickle=False) as plain_numpy:
        for other in (dict(plain_numpy), read(path), whole):
            assert found.keys() == other.keys()
            for name, array in found.items():
                assert array.dtype == other[name].dtype
                np.testing.assert_array_equal(array, other[name])
    assert recorder.is_complete(path, range(1, 41))
    assert not recorder.is_complete(path, range(1, 40))
    bytes_of_it = path.read_bytes()
    points.write(path, range(1, 41))
    assert path.read_bytes() == bytes_of_it


def test_what_is_no_recording(points, tmp_path):
    with pytest.raises(TrainingError, match=r"^record_dynamics: no .*000000041\.npy;"):
        points.write(tmp_path / "dynamics.npz", [40, 41])
    folder = tmp_path / "dynamics"
    folder.mkdir()
    with pytest.raises(ValueError, match="no point is recorded yet"):
        read(folder)
    (folder / "000000003.npy").write_bytes(b"none")
    with pytest.raises(ValueError, match=r"no \.npz archive"):
        read(folder)
    (folder / "samples.npz").write_bytes((points.folder / "samples.npz").read_bytes())
    with pytest.raises(ValueError, match=r"000000003\.npy cannot be read"):
        read(folder)
    assert recorder.recorded_files(folder) == ["000000003.npy", "samples.npz"]


def test_recordings_of_a_former_version_are_read(points, tmp_path):
    """A file with logits alone; and points with logits alone among those of a run that went on."""
    former = {"logits": np.zeros((2, 3, 5, 4), np.float32), "labels": np.arange(5) % 4, "steps": np.array([0, 1, 9])}
    np.savez(tmp_path / "former.npz", **former, clean=former["labels"], index=np.arange(5), fingerprint=np.arange(5))
    kept = Recording.of(read(tmp_path / "former.npz"))
    assert (kept.epochs.tolist(), kept.membership, kept.feature_norm) == ([1, 9], None, None)
    folder = tmp_path / "dynamics"
    folder.mkdir()
    for name in ("samples.npz", "000000002.npy"):
        (folder / name).write_bytes((points.folder / name).read_bytes())
    logits = np.random.default_rng(0).normal(size=(2, TRAIN + TEST, CLASSES)).astype(np.float32)
    np.save(folder / "000000001.npy", logits)
    found = read(folder)
    np.testing.assert_array_equal(found["logits"][:, 0], logits[:, :TRAIN])
    assert np.isfinite(found["class_cosine"]).all(axis=(0, 2)).tolist() == [False, True]


@pytest.mark.parametrize("words", [["--record-test"], ["--record-dtype", "float16"], ["--record-points", "last"]])
def test_without_a_recording_there_is_nothing_to_set(monkeypatch, tmp_path, capsys, words):
    new_project(monkeypatch, tmp_path / "project")
    assert main(["train", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("given with record_dynamics, and only then") and words[0].strip("-").replace("-", "_") in line
