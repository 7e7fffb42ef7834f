"""A run holds every point once and whole: going on from any state, recording, what ends before FINISHED."""

from types import SimpleNamespace

import pytest
import torch
from setups import different_arrays, equal_weights, images_in_classes, run, training_setup

from hardbench.errors import TrainingError
from hardbench.training.callbacks import Records
from hardbench.training.loop import TrainState

SETTINGS = {"repeats": 2, "epochs": 2, "batch_size": 13, "width": 12, "layer_metrics": ("probe_accuracy",), "log_every": 2}


@pytest.mark.parametrize("step", [0, 1, 14])
def test_a_state_of_any_step_goes_on_to_the_same_arrays(tmp_path, step):
    """Step 0 above all: for the first minute it is the only one there is."""
    dataset = images_in_classes(tmp_path / "images.npz")
    undisturbed, state = run(training_setup(dataset=dataset, **SETTINGS), until=step)
    again, _ = run(training_setup(dataset=dataset, **SETTINGS), state)
    assert again.arrays["accuracy"].shape[1] == len(again.arrays["steps"]) == len(set(again.arrays["steps"]))
    assert different_arrays(undisturbed.arrays, again.arrays, [0, 1]) == []
    assert all(map(equal_weights, undisturbed.weights, again.weights))


def _state(step):
    return TrainState(step, 9, SimpleNamespace(stopped={}), None, {})


def test_a_row_never_stands_without_its_step():
    records, row = Records(), {"loss": torch.zeros(2)}
    records.add("steps", _state(0), row)
    with pytest.raises(ValueError, match="loss: 1 rows before point 1 of steps"):
        records.add("steps", _state(0), row)
    with pytest.raises(ValueError, match="steps: step 3 after step 5"):
        records.add("steps", _state(5), row)
        records.add("steps", _state(3), row)
    with pytest.raises(ValueError, match="late: 0 rows before point 2 of steps"):
        records.add("steps", _state(5), {"late": torch.zeros(2)})


def test_an_array_that_lacks_a_point_is_never_handed_on():
    records = Records()
    records.add("steps", _state(0), {"loss": torch.zeros(2), "accuracy": torch.zeros(2)})
    records.add("steps", _state(1), {"loss": torch.ones(2)})
    with pytest.raises(ValueError, match="accuracy has 1 rows for 2 points of steps"):
        records.arrays()
    with pytest.raises(TrainingError, match="checkpoint: accuracy has 1 rows for 2 points of steps"):
        Records().load(records.state())


def test_what_is_measured_at_the_end_has_no_steps():
    records = Records()
    for step in (0, 4, 9):
        records.add("steps", _state(step), {"loss": torch.full((2,), float(step))})
    records.add("end", _state(9), {"final": torch.ones(2, 3)})
    again = Records()
    again.load(records.state())
    for found in (records.arrays(), again.arrays()):
        assert found["steps"].tolist() == [0, 4, 9]
        assert {name: value.shape for name, value in found.items()} == {
            "steps": (3,), "log_steps": (0,), "loss": (2, 3), "final": (2, 3)
        }  # fmt: skip
