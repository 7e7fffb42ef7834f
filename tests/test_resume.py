"""A run that was interrupted goes on in the same run, and ends with the numbers of one that was not, bit for bit."""

import os
import shutil
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from projects import all_runs, client, empty_store, history, last, new_project, started, wait_for_step
from setups import equal_weights, images_in_classes

from hardbench import tracking
from hardbench.errors import Killed, TrackingError, TrainingError
from hardbench.lifecycle import launch
from hardbench.stored import StoredRun
from hardbench.studies import train
from hardbench.training import checkpoints

NETWORKS = {
    "mlp": {"model": "mlp", "width": 20, "plant": "mislabel_close:0.1,corrupt:0.1,foreign:0.1"},
    "gmlp": {"model": "gmlp", "depth": 2, "width": 20, "precision": "bf16", "noise_ratio": 0.1},
    "cnn": {"model": "cnn", "width": 4, "optimizer": "sgd", "momentum": 0.9, "scheduler": "cosine"},
}


def _config(folder, name, **more):
    """120 steps of two networks with everything random switched on."""
    shared = {"dataset": f"npz:{folder / 'images.npz'}", "repeats": 2, "epochs": 20, "batch_size": 13, "val_size": 0.1, "augment": True}
    shared |= {"corruption_p": 0.2, "eval_points": 12, "log_every": 3, "threads": 1, "device": "cpu", "layer_metrics": ("none",)}
    return train.Config(**shared | NETWORKS[name] | more)


@dataclass
class Interrupted:
    """A run that a signal ended, beside the same run undisturbed."""

    whole: StoredRun
    run: StoredRun
    exitcode: int
    checkpoints: Path
    aside: Path  # a copy of them as the signal left them

    def rewind(self) -> StoredRun:
        """The run as the signal left it."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        shutil.copytree(self.aside, self.checkpoints)
        client().set_terminated(self.run.id, "KILLED")
        return tracking.find(self.run.id, ["train"], finished=False)


def _interrupt(folder, name, number):
    images_in_classes(folder / "images.npz")
    config = _config(folder, name)
    whole = launch(train, config)
    (folder / "config.yaml").write_text(config.to_yaml())
    other = folder / "other"
    other.mkdir()
    shutil.copy(empty_store(), other / "mlflow.db")
    process = started(other, "train", "--config", str(folder / "config.yaml"), "--checkpoint-every", "0")
    wait_for_step(other, 14, process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{other}/mlflow.db"
    tracking.connect()
    run = last()
    there = run.file("checkpoints")
    shutil.copytree(there, folder / "aside")
    return Interrupted(whole, run, process.exitcode, there, folder / "aside")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield _interrupt(new_project(patch, tmp_path_factory.mktemp("project")), "mlp", signal.SIGKILL)


def _resume(run):
    """Go on, without the checkpoint after every step that made the interruption likely to fall between two of them."""
    return launch(train, run.settings(train.Config, {"checkpoint_every": 60.0}), run)


def _assert_same(again, whole):
    assert again.status == "FINISHED"
    assert again.arrays.keys() == whole.arrays.keys()
    np.testing.assert_equal(again.arrays, whole.arrays)
    for name in ("last", "best"):
        one, two = (torch.load(run.file(f"checkpoints/{name}.pt"), weights_only=True) for run in (again, whole))
        assert all(map(equal_weights, one["networks"], two["networks"]))
        assert (one.get("accuracy"), one.get("step")) == (two.get("accuracy"), two.get("step"))
    for metric, points in history(again).items():
        assert len({step for step, _ in points}) == len(points), f"{metric} has two values at one step"


def test_a_killed_run_is_found_out(killed):
    assert killed.exitcode == -signal.SIGKILL
    assert killed.run.status == "KILLED"
    assert "error" in killed.run.tags
    state = torch.load(killed.aside / "last.pt", weights_only=True)
    assert 14 <= state["steps"] < 120


def test_resumed_after_sigkill(killed):
    again = _resume(killed.rewind())
    assert again.id == killed.run.id
    _assert_same(again, killed.whole)
    assert "error" not in again.tags
    with pytest.raises(TrackingError, match="an unfinished run, and this one is FINISHED"):
        tracking.find(again.id, ["train"], finished=False)
    assert len(all_runs()) == 1
    assert len(again.run.inputs.dataset_inputs) == 1
    resumed = history(again)
    os.environ["MLFLOW_TRACKING_URI"] = str(killed.whole.client.tracking_uri)
    undisturbed = history(killed.whole)
    os.environ["MLFLOW_TRACKING_URI"] = str(killed.run.client.tracking_uri)
    assert resumed.keys() == undisturbed.keys()
    for metric in resumed.keys() - {"samples_per_second"}:
        assert resumed[metric] == undisturbed[metric], metric


def test_a_truncated_checkpoint_is_named_and_the_one_before_taken(killed, capsys):
    run = killed.rewind()
    path = killed.checkpoints / "last.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    _assert_same(_resume(run), killed.whole)
    shown = " ".join(capsys.readouterr().err.split())
    assert f"checkpoint: {path}; cannot be read" in shown
    assert "using previous.pt" in shown


def test_a_kill_between_two_renames(killed):
    """last.pt has become previous.pt and the new one is not yet in its place."""
    run = killed.rewind()
    (killed.checkpoints / "last.pt").replace(killed.checkpoints / ".last.pt.part")
    _assert_same(_resume(run), killed.whole)


def test_a_run_without_a_checkpoint_begins_again(killed):
    run = killed.rewind()
    shutil.rmtree(killed.checkpoints)
    _assert_same(_resume(run), killed.whole)


def test_no_readable_checkpoint(killed):
    run = killed.rewind()
    for name in ("last.pt", "previous.pt"):
        (killed.checkpoints / name).write_bytes(b"nothing")
    with pytest.raises(TrainingError, match=r"last\.pt; cannot be read .*previous\.pt"):
        _resume(run)
    assert tracking.find(run.id, ["train"], finished=False).status == "FAILED"
    _assert_same(_resume(killed.rewind()), killed.whole)  # with the files back it can go on


def test_other_data_is_refused(killed, tmp_path):
    run = killed.rewind()
    rows = dict(np.load(killed.whole.config["dataset"].removeprefix("npz:"), allow_pickle=False))
    rows["x_train"][0, 0, 0] ^= 1
    np.savez(tmp_path / "images.npz", **rows)
    with pytest.raises(TrainingError, match="the data set is not the one it was started on"):
        launch(train, run.settings(train.Config, {"dataset": f"npz:{tmp_path / 'images.npz'}"}), run)
    assert tracking.find(run.id, ["train"], finished=False).status == "KILLED"


def test_a_network_that_diverges_after_the_interruption(killed, capsys):
    """Its weights spoilt in the checkpoint, repeat 1 fails, repeat 0 ends as it would have."""
    run = killed.rewind()
    state = checkpoints.load(killed.checkpoints / "last.pt")
    state["networks"][1] = {name: value * torch.inf for name, value in state["networks"][1].items()}
    checkpoints.save(killed.checkpoints, "last.pt", state)
    step = state["steps"] + 1
    with pytest.raises(TrainingError, match=f"not finite at step {step} of repeat 1; .*; repeats 0 went on to the end"):
        _resume(run)
    failed = tracking.find(run.id, ["train"], finished=False)
    assert failed.status == "FAILED"
    assert failed.arrays["stopped_step"].tolist() == [-1, step]
    for name in ("loss", "accuracy", "confusion", "val_accuracy"):
        np.testing.assert_array_equal(failed.arrays[name][0], killed.whole.arrays[name][0])


@pytest.mark.parametrize(
    ("name", "number", "code", "error"),
    [("gmlp", signal.SIGTERM, 143, "Killed"), ("cnn", signal.SIGINT, 130, "KeyboardInterrupt")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_signal_ends_a_run_as_killed_and_it_can_go_on(monkeypatch, tmp_path, name, number, code, error):
    stopped = _interrupt(new_project(monkeypatch, tmp_path / "project"), name, number)
    assert stopped.exitcode == code
    assert stopped.run.status == "KILLED"
    assert stopped.run.tags["error"].startswith(error)
    _assert_same(_resume(tracking.find("last", ["train"], finished=False)), stopped.whole)


# checkpoint files


STATE = {"networks": [{"weight": torch.arange(3000.0)}], "steps": 3, "words": ["a", None, True, 2.5]}


def test_checkpoints_come_back_and_one_is_kept(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, "last.pt", STATE | {"steps": step})
        checkpoints.save(tmp_path, "best.pt", STATE | {"steps": step})
    assert {path.name: checkpoints.load(path)["steps"] for path in tmp_path.iterdir()} == {"last.pt": 3, "previous.pt": 2, "best.pt": 3}
    state, note = checkpoints.newest(tmp_path)
    assert (state["steps"], note, state["words"]) == (3, "", STATE["words"])
    assert torch.equal(state["networks"][0]["weight"], STATE["networks"][0]["weight"])
    assert checkpoints.newest(tmp_path / "none") == (None, "")


def test_a_checkpoint_cut_anywhere_is_noticed(tmp_path):
    checkpoints.save(tmp_path, "last.pt", STATE)
    path = tmp_path / "last.pt"
    whole = path.read_bytes()
    for length in range(0, len(whole), 199):
        path.write_bytes(whole[:length])
        with pytest.raises(TrainingError, match=r"^checkpoint: .*last\.pt; cannot be read"):
            checkpoints.load(path)


def test_a_flipped_bit_is_noticed_or_does_no_harm(tmp_path):
    checkpoints.save(tmp_path, "last.pt", STATE)
    path = tmp_path / "last.pt"
    whole = path.read_bytes()
    noticed = 0
    for position in range(0, len(whole), 97):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            state = checkpoints.load(path)
        except TrainingError:
            noticed += 1
        else:
            assert torch.equal(state["networks"][0]["weight"], STATE["networks"][0]["weight"]), f"byte {position} of {len(whole)}"
            assert {name: state[name] for name in ("steps", "words")} == {name: STATE[name] for name in ("steps", "words")}
    assert noticed > 50


def test_a_signal_while_a_checkpoint_is_written_stays_a_signal(tmp_path):
    """Whenever it comes it is Killed that arrives, not an error of the writer it interrupted, and a whole checkpoint is there."""

    def terminate(number, frame):
        raise Killed

    before = signal.signal(signal.SIGTERM, terminate)
    state = {"networks": [{"weight": torch.zeros(2_000_000)}]}
    try:
        checkpoints.save(tmp_path, "last.pt", state)
        for delay in np.linspace(0, 0.02, 15):
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGTERM))
            with pytest.raises(Killed):
                timer.start()
                checkpoints.save(tmp_path, "last.pt", state)
                timer.join()
                time.sleep(0.01)
            timer.join()
            found, _ = checkpoints.newest(tmp_path)
            assert found is not None
            assert not found["networks"][0]["weight"].any()
    finally:
        signal.signal(signal.SIGTERM, before)


class Payload:
    """What runs when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path):
    for name, content in (("zip.pt", {"networks": [], "x": Payload(tmp_path / "ran")}), ("bare.pt", Payload(tmp_path / "ran"))):
        torch.save(content, tmp_path / name)
        with pytest.raises(TrainingError, match=f"{name}; cannot be read"):
            checkpoints.load(tmp_path / name)
    for content in ([1, 2], {"other": 1}, torch.zeros(3)):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(TrainingError, match="not a checkpoint"):
            checkpoints.load(tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()
