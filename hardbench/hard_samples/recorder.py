"""Recording per-sample dynamics: the logits of the whole training set at evaluation points, one file per point until the run ends."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from hardbench import archives, files
from hardbench.artifacts import DYNAMICS_POINTS
from hardbench.data.samples import Samples
from hardbench.data.transforms import Standardise
from hardbench.errors import TrainingError
from hardbench.training.evaluation import batches
from hardbench.training.loop import TrainState

LARGE = 1 << 30  # bytes from which the user is warned


class LogitRecorder:
    """A callback that writes the logits of every training sample, in eval mode on clean inputs, to a file per point.

    float32: of the largest logits of 20 000 MNIST images float16 leaves one in seven distinct (measured), and ranks become ties. Neither
    memory nor checkpoints hold what was recorded: a point that is measured again after a kill is the same file again, bit for bit.
    """

    def __init__(self, train: Samples, standardise: Standardise, folder: Path, publish: Callable[[str], object]):
        self.train = train
        self.standardise = standardise
        self.folder = folder
        self.publish = publish

    def __call__(self, state: TrainState) -> None:
        """Write the logits of this step; those of repeats that stopped before it are nan."""
        logits = torch.cat([state.learner.predict(inputs).float() for inputs, _ in batches(self.train, self.standardise)], 1)
        logits[state.ended] = torch.nan
        name = f"{state.step:09d}.npy"
        with files.whole(self.folder / name) as file:
            np.save(file, logits.cpu().numpy(), allow_pickle=False)
        self.publish(f"{DYNAMICS_POINTS}/{name}")

    def arrays(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """The recording as it is stored: logits [R, T, N, K] at the steps [T], and the samples: labels, clean, index, fingerprint [N]."""
        names = [f"{step:09d}.npy" for step in steps]
        for name in names:
            if not (self.folder / name).exists():
                raise TrainingError(f"record_dynamics: no {self.folder / name}; the files of all points that the run has recorded")
        points = [np.load(self.folder / name, mmap_mode="r", allow_pickle=False) for name in names]
        train = self.train
        samples = {"labels": train.labels, "clean": train.clean, "index": train.index, "fingerprint": train.fingerprints}
        return {"logits": np.stack(points, 1), "steps": steps} | {name: value.cpu().numpy() for name, value in samples.items()}


def recorded_files(folder: Path) -> list[str]:
    """Names of the files that a recorder has written into a folder, half-written ones too."""
    digits = "[0-9]" * 9
    return sorted(path.name for pattern in (f"{digits}.npy", f".{digits}.npy.part") for path in folder.glob(pattern))


def is_complete(path: Path, steps: np.ndarray) -> bool:
    """True if the file is a recording of all these steps."""
    try:
        return np.array_equal(archives.read(path, ("steps",), ())["steps"], steps)
    except ValueError:  # none, or a damaged one
        return False
