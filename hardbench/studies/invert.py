"""Find when the manifold of each class stops shrinking, and which samples are still wrong then.

Question: which samples of a class stay behind when its radius in a hidden layer starts to grow again (stragglers)? All networks train
together, full batch; 500 epochs of five networks on 20 000 MNIST images take a minute or two on one core and find 6 to 12 % stragglers.

The smooth detector promises a minimum of the smoothed radius confirmed by `patience` later epochs, not the smallest radius of the whole
course: the table shows both radii, and how many inversions are passed later, by a radius over 1 % smaller.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardbench import console, lifecycle, machine, tracking
from hardbench.configs.invert import Config
from hardbench.data.samples import Split
from hardbench.data.transforms import unit_of
from hardbench.errors import ConfigError, TrainingError
from hardbench.inversion import agreement as stragglers
from hardbench.inversion import experiments
from hardbench.inversion.experiments import Journey
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.radii import PASSED, passed, shortest
from hardbench.inversion.search import Inversions, Search, TrainingData, estimate, find_inversions
from hardbench.stored import StoredRun
from hardbench.studies import train
from hardbench.training import callbacks, checkpoints, memory
from hardbench.training.loop import Callback

RADII, STRAGGLERS, STABILITY, PRUNE = "radii.npz", "stragglers.npz", "stability.npz", "prune_curve.npz"
WEIGHTS = "inversion.pt"  # checkpoint of the weights at every inversion
END = "end"  # what the last checkpoint of a run that has everything stored is called
LOOKS = 40  # epochs, evenly spaced in their logarithm, at which misclassified sets are compared


@dataclass
class Course:
    """A search that is ready to start: everything a bad setting could spoil has been built."""

    config: Config
    split: Split
    data: TrainingData


def set_up(config: Config) -> Course:
    """Data on the device; raises before a run exists if anything does not fit."""
    device = machine.take(config)
    split, standardise = prepare_pool(config, config.seed)
    counts = torch.bincount(split.train.labels, minlength=split.num_classes)
    if bool((counts == 0).any()):
        missing = split.class_names[int((counts == 0).nonzero()[0])]
        raise ConfigError(f"subset_size: {config.subset_size}; enough for a sample of every class, and class {missing} has none")
    if config.prune_curve and not len(split.test):
        raise ConfigError(f"prune_curve: true; samples to test on, and subset_size {config.subset_size} leaves none")
    memory.check(estimate(config, split, config.precision), config, device, {"repeats": 1})
    return Course(config, split, TrainingData(split.train.to(device), standardise.to(device), split.num_classes))


def run(config: Config, kinds: Sequence[str] | None = None) -> StoredRun:
    """Search as the settings say, in a run of its own, and draw the kinds of figures that apply (None: all there are); the stored run."""
    target = train.out_folder(config.out)
    course = set_up(config)
    if config.epochs < (least := shortest(config)):
        console.warn(f"epochs: {config.epochs}; the detector finds no inversion in fewer than {least}")
    dataset = config.dataset.rpartition("/")[2]
    title = config.name or f"{config.task} {dataset} s{config.seed}"
    note = f"{config.repeats} networks on {len(course.split.train)} samples of {dataset}, {config.task}\n"
    note += f"{config.epochs} full-batch epochs, detector {config.detector}, snapshot {config.snapshot}"
    opening = tracking.start("invert", config, title, note, tags=config.tag)
    return _complete(opening, course, lambda: None, target, kinds)


def resume(stored: StoredRun, changed: Mapping[str, Any], out: str | None = None) -> StoredRun:
    """Go on with an unfinished run where its newest readable checkpoint was written."""
    target = train.out_folder(out)
    course = set_up(stored.settings(Config, changed))
    lifecycle.check_data(stored, course.split.digest)
    return _complete(tracking.reopen(stored), course, lambda: lifecycle.newest_state(stored, checkpoints.SEARCH), target, None)


def _complete(
    opening: AbstractContextManager[tracking.Run],
    course: Course,
    state: Callable[[], dict[str, Any] | None],
    out: Path | None,
    kinds: Sequence[str] | None,
) -> StoredRun:
    """The search from a stored `state` (None: from the start) on, then the report, also if networks diverged in it."""
    config = course.config
    ends: list[dict[str, Any]] = []

    def compute(run: tracking.Run) -> None:
        lifecycle.describe(run, course.data.train.labels.device, config.precision, config.dataset, course.split.digest)
        found = state()
        if found is None or found["name"] != END or "done" in found:  # else everything is stored
            _search(run, course, found, ends)

    def report(run: tracking.Run) -> None:
        _report(lifecycle.draw_into(run, kinds))

    def close(run: tracking.Run) -> None:
        for end in ends if config.keep_checkpoints else ():
            _save(run, course, end)
        run.remove(*(f"checkpoints/{name}" for name in [*checkpoints.spare(config.keep_checkpoints), *_weights(config.keep_checkpoints)]))

    return lifecycle.complete(opening, compute, report, close, lambda run: train.finish(run, out))


def _weights(keep: bool) -> list[str]:
    """Names of the files with weights at inversions that a run which has ended does without."""
    return [f".{WEIGHTS}.part"] + ([] if keep else [WEIGHTS])


def _save(run: tracking.Run, course: Course, state: dict[str, Any]) -> None:
    """Write last.pt."""
    run.close()  # what a checkpoint counts as measured must be in the store
    known = course.data.standardise
    constants = {"mean": known.mean, "std": known.std, "shift": known.shift}
    checkpoints.save(run.folder / "checkpoints", checkpoints.LAST, {**state, "standardise": constants})
    run.publish(f"checkpoints/{checkpoints.LAST}")


def _search(run: tracking.Run, course: Course, state: dict[str, Any] | None, ends: list[dict[str, Any]]) -> None:
    """The networks themselves, then the further experiments asked for; results as soon as they are there.

    `ends` gets what the last checkpoint is to hold; TrainingError if a network diverged.
    """
    config, split = course.config, course.split
    looks = experiments.looks(LOOKS, config.epochs) if config.stability else []
    points = experiments.looks(config.prune_points, config.epochs, first=1) if config.prune_curve else []
    journey = Journey(
        course.data, config, config.seed, config.precision, config.checkpoint_every, partial(_save, run, course), _progress(run), state
    )

    def more(repeats: Sequence[int]) -> Inversions:
        first = repeats[0] == config.first_repeat
        sink = _live(run, config, split, "") if first else None
        return journey.search(f"networks {repeats[0]}", repeats, looks=sorted({*looks, *points}), sink=sink)

    found = find_inversions(config, range(config.first_repeat, config.first_repeat + config.repeats), more)
    if not len(found.repeats):
        _store(run, course, Inversions(**next(iter(journey.done.values()))), journey)
        failed = f"none of {10 * config.repeats} networks had an inversion of every class"
        raise TrainingError(f"if_no_inversion: retry; {failed}; the first are kept (run {run.id})", measured=True)
    if len(found.repeats) < config.repeats:
        console.warn(
            f"{len(found.repeats)} of {10 * config.repeats} networks have an inversion of every class, {config.repeats} were asked for"
        )
    _store(run, course, found, journey)
    if not bool(found.loss[:, -1].isfinite().any()):
        return _end(run, course, found, journey, ends)  # which says that all of them diverged
    if config.retrain_without_stragglers:
        again = journey.search("retrained", found.repeats.tolist(), found.stragglers, sink=_live(run, config, split, "retrained_"))
        _store_retrained(run, course, found, again)
    if config.stability:
        run.write_arrays(STABILITY, experiments.stability(found, looks))
    if points:
        arrays = experiments.prune_curve(journey, found, points, split.test.to(course.data.train.labels.device), config.test_noise)
        run.write_arrays(PRUNE, arrays)
        run.log({f"prune_error/{at:02d}": errors for at, errors in enumerate(arrays["prune_error"][:, 0].T)}, config.epochs)
    return _end(run, course, found, journey, ends)


def _progress(run: tracking.Run) -> experiments.Progress:
    @contextmanager
    def shown(name: str, epochs: int) -> Iterator[Sequence[Callback]]:
        with console.progress(f"{run.id[:8]} {name}", epochs) as show:
            yield [console.training_progress(show)]

    return shown


def _live(run: tracking.Run, config: Config, split: Split, prefix: str) -> callbacks.Sink:
    """Metrics of an epoch as it is measured, every few epochs."""

    def log(values: Mapping[str, np.ndarray], epoch: int) -> None:
        if epoch % config.log_every == 0 or epoch == config.epochs:
            metrics = {f"{prefix}radius/{c:02d}": values["radii"][:, c] for c in range(split.num_classes)}
            run.log(metrics | {f"{prefix or 'train/'}{name}": values[name] for name in ("error", "loss")}, epoch)

    return log


def _store(run: tracking.Run, course: Course, found: Inversions, journey: Journey) -> None:
    """radii.npz, stragglers.npz, inversion.csv, the weights at the inversions, and what they say in metrics."""
    config, split = course.config, course.split
    names = {"class_names": np.array(split.class_names), "repeats": found.repeats.numpy()}
    measured = {name: getattr(found, name).numpy() for name in ("radii", "distances", "error", "loss", "inversion_epoch")}
    arrays = {"epochs": np.arange(found.radii.shape[1]), **measured, **names}
    sets = experiments.straggler_arrays(found, split.train)
    run.write_arrays(RADII, arrays)
    run.write_arrays(STRAGGLERS, sets)
    run.write_text("inversion.csv", experiments.inversion_table(arrays | sets).to_csv(index=False))
    epochs = found.inversion_epoch.numpy()
    metrics = {f"inversion_epoch/{c:02d}": epochs[:, c] for c in range(split.num_classes)}
    metrics |= {
        f"straggler_share/{c:02d}": share
        for c, share in enumerate(stragglers.class_shares(sets["stragglers"], sets["labels"], sets["judged_epoch"]).T)
    }
    metrics["train/error_at_inversion"] = found.error_at_inversion.numpy()
    metrics["stragglers/fraction"] = stragglers.share(sets["stragglers"], sets["judged_epoch"])
    metrics["inversions/found"] = np.isfinite(epochs).sum(1).astype(float)
    metrics["final/error"] = found.error[:, -1].numpy()
    run.log(metrics, config.epochs)
    weights = {"networks": found.weights, "inversion_epoch": found.inversion_epoch, "repeats": found.repeats}
    checkpoints.save(run.folder / "checkpoints", WEIGHTS, weights)
    run.publish(f"checkpoints/{WEIGHTS}")
    if config.log_model:
        raw = split.train.inputs[:2]
        run.log_model(_plain(journey, found), course.data.standardise.to("cpu")(raw, unit_of(raw)))


def _plain(journey: experiments.Journey, found: Inversions) -> torch.nn.Module:
    """The first network at the end, as plain PyTorch."""
    networks = Search(journey.data, journey.settings, found.repeats[:1].tolist(), journey.seed).learner.networks
    networks.load_states(found.final[:1])
    return networks.member(0).cpu()


def _store_retrained(run: tracking.Run, course: Course, found: Inversions, again: Inversions) -> None:
    """What became of the radii without the stragglers, beside radii.npz's own arrays."""
    path = run.folder / RADII
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    for name in ("radii", "error", "inversion_epoch"):
        arrays[f"retrained_{name}"] = getattr(again, name).numpy()
    run.write_arrays(RADII, arrays)
    before, after = (part.inversion_epoch.isfinite().sum(1).double().numpy() for part in (found, again))
    run.log({"inversions/found_without_stragglers": after}, course.config.epochs)
    console.say(f"inversions {int(before.sum())}; without the stragglers {int(after.sum())}")


def _end(run: tracking.Run, course: Course, found: Inversions, journey: Journey, ends: list[dict[str, Any]]) -> None:
    """What the last checkpoint is to hold goes into `ends`; TrainingError if a network diverged."""
    lost = [int(r) for r, loss in zip(found.repeats, found.loss[:, -1], strict=True) if not loss.isfinite()]
    end = {"networks": found.final, "steps": course.config.epochs, "repeats": found.repeats, "name": END}
    ends.append(end | ({"done": journey.done} if lost else {}))  # a failed run can be resumed, and then says the same
    if lost:
        where = f"repeats {', '.join(map(str, lost))}"
        raise TrainingError(f"loss: not finite in {where}; what was measured until then is kept (run {run.id})", measured=True)


def _report(stored: StoredRun) -> None:
    """Print the class table."""
    arrays = stored.arrays
    console.table("Inversions", *experiments.class_rows(arrays))
    found, later = np.isfinite(arrays["inversion_epoch"]), passed(arrays["radii"], arrays["inversion_epoch"])
    shares = stragglers.share(arrays["stragglers"], arrays["judged_epoch"])
    beyond = f"{later.sum()} of them passed later (a radius over {PASSED:.0%} smaller)"
    console.say(f"inversions {found.sum()} of {found.size}, {beyond}, stragglers {experiments.spread(shares)}")
