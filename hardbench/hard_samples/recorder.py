"""Recording training dynamics: what hardness scores need of every sample over training time, one file per point until the run ends.

Of every sample the logits, and of its last hidden activations h (those the head turns into logits; of a greedy stack those of the last
layer, which are scored against the anchors) the length and the cosine to the mean of its class. In eval mode, on clean inputs.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hardbench import archives, artifacts, files
from hardbench.artifacts import DYNAMICS, DYNAMICS_POINTS, Array
from hardbench.data.batches import Batches
from hardbench.data.plant import truth
from hardbench.data.samples import Samples
from hardbench.errors import TrainingError
from hardbench.metrics.overlap import class_sums
from hardbench.products import product
from hardbench.training.evaluation import BATCH, batches
from hardbench.training.learners import Learner
from hardbench.training.loop import Callback, TrainState, at

LARGE = 1 << 30  # bytes from which the user is warned
HELD = 1 << 29  # bytes of activations that are held until the class means are known; more of them are computed again
SAMPLES = "samples.npz"  # in the folder of the points: what is known of the samples from the start
FIELDS = ("logits", "feature_norm", "class_cosine")


def record_of(classes: int, dtype: str) -> np.dtype:
    """What is recorded of one sample at one point. Half precision is for logits: cosines near 1 would become ties."""
    return np.dtype([("logits", dtype, (classes,)), ("feature_norm", "<f4"), ("class_cosine", "<f4")])


class DynamicsRecorder:
    """A callback that writes what is recorded of every training (and test) sample to a file per point.

    float32: of the largest logits of 20 000 MNIST images float16 leaves one in seven distinct (measured), and ranks become ties. Neither
    memory nor checkpoints hold what was recorded: a point that is measured again after a kill is the same file again, bit for bit.
    A point has nan for repeats that stopped before it or diverged; `ended` records, in place of these nan, what stopped repeats ended with.
    """

    def __init__(
        self,
        training: Batches,
        class_names: Sequence[str],
        folder: Path,
        publish: Callable[[str], object],
        test: Samples | None = None,
        dtype: str = "float32",
        ended: bool = False,
    ):
        self.training = training
        self.test = test
        self.folder = folder
        self.publish = publish
        self.ended = ended
        self.record = record_of(len(class_names), np.dtype(dtype).str)
        self.known = self._known(class_names)

    def _known(self, class_names: Sequence[str]) -> dict[str, Array]:
        """What is known of the samples from the start."""
        train, own = self.training.train, self.training.membership
        known = {"labels": train.labels, "clean": train.clean, "index": train.index, "fingerprint": train.fingerprints}
        known["membership"] = torch.ones(self.training.repeats, len(train), dtype=torch.bool) if own is None else own
        if self.test is not None:
            known |= {"test_labels": self.test.labels, "test_index": self.test.index, "test_fingerprint": self.test.fingerprints}
        arrays = {name: value.cpu().numpy() for name, value in known.items()}
        return arrays | truth(train) | {"class_names": np.array(class_names), "steps_per_epoch": np.array(self.training.per_epoch)}

    @property
    def bytes_of_a_point(self) -> int:
        """The size of a point's file."""
        return self.training.repeats * (len(self.training.train) + (0 if self.test is None else len(self.test))) * self.record.itemsize

    def begin(self) -> None:
        """Write what is known of the samples, so that a recording can be read however far it comes."""
        with files.whole(self.folder / SAMPLES) as file:
            np.savez(file, **self.known)  # type: ignore[arg-type]
        self.publish(f"{DYNAMICS_POINTS}/{SAMPLES}")

    def __call__(self, state: TrainState) -> None:
        """Write the point of this step."""
        if self.ended:
            state.learner.settle()
        with torch.inference_mode():
            point = self._measured(state.learner)
        absent = list(state.learner.diverged) if self.ended else state.ended
        for field in FIELDS:
            point[field][absent] = np.nan
        name = f"{state.step:09d}.npy"
        with files.whole(self.folder / name) as file:
            np.save(file, point, allow_pickle=False)
        self.publish(f"{DYNAMICS_POINTS}/{name}")

    def _measured(self, learner: Learner) -> Array:
        """The records [R, N + M] of the training samples, then the test samples, as the networks are now.

        Memory beside them is bounded: activations of more than HELD bytes are not held, but computed a second time.
        """
        train, test, repeats = self.training.train, self.test, learner.networks.repeats
        point = np.zeros((repeats, len(train) + (0 if test is None else len(test))), self.record)
        held, sums = [], torch.zeros((), dtype=torch.float64, device=learner.device)
        for rows, features, labels in self._passed(learner, train, point):
            own = self.training.membership
            trained_on = features if own is None else features * own[:, rows].unsqueeze(-1)
            sums = sums + class_sums(trained_on, labels, self.record["logits"].shape[0]).double()  # in turn, as `evaluate` does
            if features[:, :1].nbytes * len(train) <= HELD:
                held.append((rows, features, labels))
        directions = (sums / torch.linalg.vector_norm(sums, dim=-1, keepdim=True)).float()  # of the class means [R, K, D]
        for rows, features, labels in held or self._passed(learner, train, point):
            _put_cosines(point[:, rows], features, labels, directions)
        if test is not None:
            for rows, features, labels in self._passed(learner, test, point[:, len(train) :]):
                _put_cosines(point[:, len(train) :][:, rows], features, labels, directions)
        return point

    def _passed(self, learner: Learner, samples: Samples, point: Array) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """A forward pass: rows, last hidden activations [R, B, D] and labels batch by batch; logits and lengths go into the records."""
        largest = float(np.finfo(self.record["logits"].base).max)
        for first, (inputs, labels) in enumerate(batches(samples, self.training.standardise)):
            rows = slice(first * BATCH, first * BATCH + len(labels))
            features, logits = learner.forward(inputs)
            features = features.float()
            point["logits"][:, rows] = logits.float().clamp(-largest, largest).cpu().numpy()
            point["feature_norm"][:, rows] = torch.linalg.vector_norm(features, dim=-1).cpu().numpy()
            yield rows, features, labels

    def write(self, path: Path, steps: Sequence[int]) -> None:
        """Make the recording of these steps one file, dynamics.npz, in memory that does not grow with them.

        TrainingError where a point is missing.
        """
        points = [self.folder / f"{step:09d}.npy" for step in steps]
        for point in points:
            if not point.exists():
                raise TrainingError(f"record_dynamics: no {point}; the files of all points that the run has recorded")
        with files.whole(path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in _with_times(self.known, steps).items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            for name, field, rows in _recorded(self.known):
                shape, dtype = _shape(self.known, rows, len(points)), self.record[field]
                header = {"descr": dtype.base.str, "fortran_order": False, "shape": (*shape, *dtype.shape)}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    for r in range(shape[0]):
                        for point in points:
                            member.write(_point(point)[field][r, rows].astype(dtype.base).tobytes())


def _put_cosines(point: Array, features: Tensor, labels: Tensor, directions: Tensor) -> None:
    """Cosines of the activations [R, B, D] to the directions [R, K, D] of their classes' means, into records [R, B].

    nan where an activation is 0, or a class has no sample that the network trains on.
    """
    scores = product(features, directions.transpose(1, 2).contiguous())
    along = scores.gather(-1, labels.expand(len(scores), -1).unsqueeze(-1)).squeeze(-1)
    point["class_cosine"] = (along / torch.linalg.vector_norm(features, dim=-1)).clamp(-1, 1).cpu().numpy()


def when(points: str, steps: Sequence[int], record: Callback) -> Callback:
    """The callback that records at the points of the setting; `steps` are those of the evaluations."""
    if points == "evaluation":
        return at(steps, record)

    def due(state: TrainState) -> None:
        if state.last or (points == "epochs" and state.epoch_ends):
            record(state)

    return due


def recorded_steps(points: str, per_epoch: int, last: int, evaluated: Iterable[int]) -> list[int]:
    """The steps of the points of a training that ended at step `last`, by the setting; `evaluated` are those of its evaluations."""
    if points == "evaluation":
        return [int(step) for step in evaluated]
    return [*(range(per_epoch, last, per_epoch) if points == "epochs" else ()), last]


def read(path: Path) -> dict[str, Array]:
    """The arrays of a recording: of the file dynamics.npz, or of the folder dynamics/ of a run that is on or was killed, as far as it goes.

    artifacts.AXES names them. Recordings of former versions have logits, labels, clean, index, fingerprint and steps alone. ValueError,
    in words, for what is no recording, has no point yet or is more than memory takes.
    """
    arrays = _of_folder(path) if path.is_dir() else archives.read(path)
    artifacts.check(arrays, DYNAMICS)
    return arrays


def _of_folder(folder: Path) -> dict[str, Array]:
    points = sorted(path for path in folder.glob("[0-9]" * 9 + ".npy"))
    if not points:
        raise ValueError("no point is recorded yet; at least one")
    known = archives.read(folder / SAMPLES, ("labels", "membership", "steps_per_epoch"))
    archives.check_room(sum(point.stat().st_size for point in points))
    arrays = _with_times(known, [int(point.stem) for point in points])
    for name, field, rows in _recorded(known):
        dtype = _point(points[0]).dtype[field]
        arrays[name] = np.empty((*_shape(known, rows, len(points)), *dtype.shape), dtype.base)
        for place, point in enumerate(points):
            arrays[name][:, place] = _point(point)[field][:, rows]
    return arrays


def _with_times(known: Mapping[str, Array], steps: Sequence[int]) -> dict[str, Array]:
    """What is known of the samples, with the steps and the epochs of the points."""
    arrays = {name: array for name, array in known.items() if name != "steps_per_epoch"}
    whole = np.array(steps, dtype=np.int64)
    return arrays | {"steps": whole, "epochs": whole / int(known["steps_per_epoch"])}


def _recorded(known: Mapping[str, Array]) -> Iterator[tuple[str, str, slice]]:
    """The recorded arrays: name, field of the records, and the rows of a point that it is made of."""
    count = len(known["labels"])
    for prefix, rows in (("", slice(0, count)), ("test_", slice(count, count + len(known.get("test_labels", ()))))):
        if f"{prefix}labels" in known:
            yield from ((prefix + field, field, rows) for field in FIELDS)


def _shape(known: Mapping[str, Array], rows: slice, points: int) -> tuple[int, int, int]:
    """R, T and the number of samples."""
    return len(known["membership"]), points, rows.stop - rows.start


def _point(path: Path) -> Array:
    """The records [R, N + M] of one point, as they lie on the disk; of a former version the logits alone, the rest nan.

    ValueError for a file that is none.
    """
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from None
    if found.dtype.names is not None:
        return found
    point = np.full(found.shape[:2], np.nan, record_of(found.shape[-1], found.dtype.str))
    point["logits"] = found
    return point


def recorded_files(folder: Path) -> list[str]:
    """Names of the files that a recorder has written into a folder, half-written ones too."""
    digits = "[0-9]" * 9
    patterns = [f"{start}{name}{end}" for name in (f"{digits}.npy", SAMPLES) for start, end in (("", ""), (".", ".part"))]
    return sorted(path.name for pattern in patterns for path in folder.glob(pattern))


def is_complete(path: Path, steps: Sequence[int]) -> bool:
    """True if the file is a recording of all these steps."""
    try:
        return np.array_equal(archives.read(path, ("steps",), ())["steps"], steps)
    except ValueError:  # none, or a damaged one
        return False
