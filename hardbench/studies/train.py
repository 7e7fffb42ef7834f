"""Train R networks at once and measure when each class is learned.

Question: which classes are learned late, and does the geometry of their representations say so; for gmlp
and mlp also what each layer knows. Expect about .96 on ten MNIST classes after one epoch of the default
network; that takes a second or two per network on a laptop core, a ResNet an hour per CIFAR epoch.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardbench import console, handover, seeding, tracking
from hardbench.data.batches import Batches
from hardbench.data.samples import Samples, Split, load, prepare
from hardbench.data.transforms import Standardise, check_fits, standardise_for, unit_of
from hardbench.errors import ConfigError, TrainingError
from hardbench.figures import draw
from hardbench.metrics.hardness import hardness_table, mean_stderr, overlap_hardness_spearman
from hardbench.metrics.overlap import class_sums, overlap
from hardbench.metrics.view import select
from hardbench.models.gmlp import GreedyStack
from hardbench.registry import MODELS
from hardbench.settings import TrainingSettings
from hardbench.stored import ARRAYS, StoredRun
from hardbench.training import checkpoints, dynamics, machine, observers
from hardbench.training.layers import Probe
from hardbench.training.learners import Learner, learner
from hardbench.training.loop import Moment, Observer, at, evaluation_steps, every, fit


@dataclass(frozen=True)
class Config(TrainingSettings):
    """Settings of a training run."""


@dataclass
class Course:
    """A training that is ready to start: everything a bad setting could spoil has been built."""

    config: Config
    split: Split
    standardise: Standardise
    learner: Learner
    batches: Batches
    total: int
    layer_metrics: list[str]
    static: dict[str, np.ndarray]
    groups: dict[tuple[str, str], Samples] = field(default_factory=dict)  # by phase and group: the samples metrics are split into


def set_up(config: Config) -> Course:
    """Data on the device, networks, learner and batches; raises before a run exists if anything does not fit."""
    device = machine.take(config)
    split = prepare(config, config.seed)
    check_fits(config, split.train)
    standardise = standardise_for(config, split.train)
    streams = seeding.networks(config.seed, config.first_repeat, config.repeats)
    networks = MODELS[config.model].call(split.train.shape, split.num_classes, config, streams).to(device)
    static = static_overlaps(split, standardise)
    train = split.train.to(device)
    batches = Batches(train, standardise.to(device), config.batch_size, streams, [config.corruption_p] * config.repeats, config.augment)
    alone = len(train) % batches.size == 1 or batches.size == 1
    if alone and any(isinstance(module, torch.nn.BatchNorm2d) for module in networks.modules()):
        raise ConfigError(f"batch_size: {config.batch_size}; one that leaves no batch of a single sample, which batch norm cannot train on")
    total = config.epochs * batches.per_epoch
    metrics = select(config.layer_metrics, isinstance(networks, GreedyStack))
    if metrics and len(train) < 2:
        raise ConfigError(f"layer_metrics: {','.join(config.layer_metrics)}; none for a single training sample")
    groups = {} if config.hardness is None else hardness(config.hardness).groups(split, len(load(config, config.seed).train))
    return Course(config, split, standardise, learner(networks, config, total), batches, total, metrics, static, groups)


def hardness(word: str) -> handover.Hardness:
    """The hardness that RUN or RUN:STRATEGY hands on."""
    run, strategy = handover.words(word)
    return handover.read(_source(run), strategy)


def _source(word: str) -> StoredRun:
    """The run of an id or a prefix of one; of `last` the newest finished one that has samples' hardness to hand on."""
    if word == "last":
        for stored in tracking.runs():
            if stored.status == "FINISHED" and stored.study in handover.SOURCES and stored.has(handover.SOURCES[stored.study][0]):
                return stored
    return tracking.find(word, list(handover.SOURCES))


def named(config: Config) -> Config:
    """The settings with the run whose hardness is read by its id, which goes on to mean the same run."""
    if config.hardness is None:
        return config
    run, strategy = handover.words(config.hardness)
    return replace(config, hardness=":".join(filter(None, (_source(run).id, strategy))))


def static_overlaps(split: Split, standardise: Standardise) -> dict[str, np.ndarray]:
    """Overlaps [K, K] of the class means of the standardised training inputs, uncentred and centred."""
    train, classes = split.train, split.num_classes
    sums = torch.zeros(classes, *train.shape, dtype=torch.float64)
    for start in range(0, len(train), 4096):
        raw = train.inputs[start : start + 4096]
        rows = raw.flatten(1).double().unsqueeze(0)
        sums += class_sums(rows, train.labels[start : start + 4096], classes).view_as(sums)
    counts = torch.bincount(train.labels, minlength=classes).double().view(-1, *(1,) * len(train.shape))
    unit = unit_of(train.inputs)
    shifted = [(part / unit - standardise.mean) / standardise.std + standardise.shift for part in (sums / counts, sums.sum(0) / len(train))]
    means, centre = shifted[0].flatten(1), shifted[1].flatten()
    return {"overlap_static": overlap(means).numpy(), "overlap_static_centred": overlap(means, centre).numpy()}


FIGURES = ("basic_training_curves", "class_hardness", "overlap_scatter", "confusion_matrix", "research_questions")


def run(config: Config, kinds: Sequence[str] | None = FIGURES) -> StoredRun:
    """Train as the settings say, in a run of its own, and draw the kinds of figures that apply (None: all there are); the stored run."""
    target = out_folder(config.out)
    config = named(config)
    course = set_up(config)
    dataset = config.dataset.rpartition("/")[2]
    title = config.name or f"{config.model} {dataset} s{config.seed}"
    note = (
        f"{config.repeats} {config.model} on {dataset} ({course.split.num_classes} classes, {len(course.split.train)} training samples)\n"
    )
    tags = {**(config.tag or {}), "hardbench.device": str(course.learner.device), "hardbench.precision": config.precision}
    note += f"{config.epochs} epochs, {config.optimizer} {config.lr:g}"
    if config.hardness is not None:
        tags["hardbench.source_run"] = handover.words(config.hardness)[0]
    with _reported(target, kinds) as report, tracking.start("train", config, title, note, tags=tags) as run:
        report.append(run)
        run.tag("hardbench.threads", str(torch.get_num_threads()))
        run.data(dataset, course.split.digest, config.dataset)
        _train(run, course, None)
    return tracking.find(run.id, ["train"])


@contextmanager
def _reported(out: Path | None, kinds: Sequence[str] | None) -> Iterator[list[tracking.Run]]:
    """Reports on the run put into the list when it has ended, also when networks diverged in it."""
    runs: list[tracking.Run] = []
    try:
        yield runs
    except TrainingError:
        if runs and (runs[0].folder / ARRAYS).exists():
            _report(runs[0], out, kinds)
        raise
    _report(runs[0], out, kinds)


def resume(stored: StoredRun, changed: Mapping[str, Any], out: str | None = None) -> StoredRun:
    """Go on with an unfinished run where its newest readable checkpoint was written."""
    target = out_folder(out)
    config = Config.read(changed, stored.config)
    course = set_up(config)
    if stored.tags.get("hardbench.data_digest", course.split.digest) != course.split.digest:
        raise TrainingError(f"run: {stored.id}; the data set is not the one it was started on")
    with _reported(target, FIGURES) as report, tracking.reopen(stored) as run:
        report.append(run)
        state, note = checkpoints.newest(stored.file("checkpoints")) if stored.has("checkpoints") else (None, "")
        if note or state is None:
            console.warn(note or f"run {stored.id} had no checkpoint yet: it starts again from step 0")
        run.data(config.dataset.rpartition("/")[2], course.split.digest, config.dataset)
        _train(run, course, state)
    return tracking.find(run.id, ["train"])


def out_folder(out: str | None) -> Path | None:
    """The folder of `--out`, made now so that a bad one is known before any work."""
    if out is None:
        return None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out: {out}; a folder that can be written ({error.strerror})") from None
    return Path(out)


def _train(run: tracking.Run, course: Course, state: dict[str, Any] | None) -> None:
    """The training itself: observers, loop, results. TrainingError at the end if a repeat diverged."""
    config, split, student = course.config, course.split, course.learner
    records, best = observers.Records(), observers.Best(config.repeats)
    if state is not None:
        student.load(state)
        for part, name in ((course.batches, "batches"), (records, "records"), (best, "best")):
            part.load(state[name])
    device = student.device
    val = None if split.val is None else split.val.to(device)
    eye = observers.Eye(split.test.to(device), val, course.standardise.to(device), split.num_classes)
    steps = evaluation_steps(config.eval_points, config.eval_steps, course.total)
    tape = _tape(run, course, len(steps)) if config.record_dynamics else None

    def write(moment: Moment) -> None:
        run.close()  # what a checkpoint counts as measured must be in the store
        save(run.folder / "checkpoints", course, records, best)
        for name in (checkpoints.LAST, checkpoints.BEST):
            run.publish(f"checkpoints/{name}")

    began, first = time.monotonic(), student.steps
    with console.progress(run.id[:8], course.total) as show:
        watching: list[Observer] = [observers.divergence()]
        if config.stop_at_target:
            watching.append(observers.target(course.batches.train, eye, config.target_accuracy))
        watching += [
            every(config.log_every, observers.curves(records, run.log)),
            at(steps, observers.evaluation(records, run.log, eye, best)),
            *([at(steps, observers.layers(records, run.log, _probe(course, eye)))] if course.layer_metrics else []),
            *([at(steps, observers.groups(records, run.log, eye, _on(device, course.groups)))] if course.groups else []),
            *([at(steps, tape)] if tape else []),
            observers.validation(eye, best, steps),
            console.training_progress(show),
            observers.checkpoint(config.checkpoint_every, write),
        ]
        done = fit(student, course.batches, course.total, watching) - first
    seconds = time.monotonic() - began
    if done:
        run.log({"samples_per_second": done * course.batches.size * config.repeats / seconds}, student.steps)
    if tape is not None:
        run.write_arrays(dynamics.ARTIFACT, tape.arrays(records.arrays()["steps"]), compressed=False)
        shutil.rmtree(tape.folder)
    _finish(run, course, records)


def _on(device: torch.device, groups: Mapping[tuple[str, str], Samples]) -> dict[tuple[str, str], Samples]:
    return {key: samples.to(device) for key, samples in groups.items()}


def _tape(run: tracking.Run, course: Course, points: int) -> dynamics.Tape:
    """What records the logits of the training samples; a warning where that is a lot."""
    train = course.batches.train
    needed = dynamics.size(course.config.repeats, points, len(train), course.split.num_classes)
    if needed > dynamics.LARGE:
        console.warn(f"record_dynamics: {needed / 1e9:.1f} GB for {points} points; fewer with eval_steps")
    return dynamics.Tape(train, course.standardise.to(course.learner.device), run.fetch(dynamics.FOLDER), run.publish)


def _probe(course: Course, eye: observers.Eye) -> Probe:
    """What measures the layers: on the validation split, or the test set where there is none."""
    config, train = course.config, course.batches.train
    seeds = seeding.Seeds(config.seed).child("data", "layers")
    batch = course.batches.size if config.layer_estimator == "published" else 0
    more = {"standardise": eye.standardise, "num_classes": eye.num_classes, "null_repeats": config.null_repeats, "published_batch": batch}
    return Probe.of(course.layer_metrics, train, eye.val or eye.test, eye.test, seeds, **more)


def save(folder: Path, course: Course, records: observers.Records, best: observers.Best) -> None:
    """Write last.pt (all that resuming needs) and best.pt (weights per repeat with their step and validation accuracy)."""
    constants = {"mean": course.standardise.mean, "std": course.standardise.std, "shift": course.standardise.shift}
    state = course.learner.state()
    last = {**state, "standardise": constants, "batches": course.batches.state(), "records": records.state(), "best": best.state()}
    chosen: dict[str, Any] = best.state()
    if course.split.val is None:
        chosen = {"networks": state["networks"], "step": [state["steps"]] * course.config.repeats, "is_last": True}
    checkpoints.save(folder, checkpoints.BEST, {**chosen, "standardise": constants})
    checkpoints.save(folder, checkpoints.LAST, last)


def _finish(run: tracking.Run, course: Course, records: observers.Records) -> None:
    """metrics.npz, the hardness table, final metrics."""
    config, student = course.config, course.learner
    arrays = records.arrays() | course.static
    arrays["stopped_step"] = np.array([student.stopped.get(r, -1) for r in range(config.repeats)])
    arrays["class_names"] = np.array(course.split.class_names)
    run.write_arrays(ARRAYS, arrays)
    run.write_text("class_hardness.csv", hardness_table(arrays).to_csv(index=False))
    final = {f"final/{name}": _last(arrays, key) for name, key in _FINAL.items()}
    final |= {f"final/{phase}_accuracy_{group}": _last(arrays, f"accuracy_{phase}_{group}") for phase, group in course.groups}
    final["final/overlap_hardness_spearman"] = overlap_hardness_spearman(arrays)
    if course.split.val is None:
        del final["final/val_loss"], final["final/val_accuracy"]
    if course.split.bayes_accuracy is not None:
        final["bayes_accuracy"] = np.array([course.split.bayes_accuracy])
    run.log(final, student.steps)
    run.tag("hardbench.best", "last (val_size 0)" if course.split.val is None else "validation accuracy")
    folder = run.folder / "checkpoints"
    if not config.keep_checkpoints:
        shutil.rmtree(folder)
    for path in folder.glob("*.pt") if folder.exists() else ():
        run.publish(f"checkpoints/{path.name}")
    if config.log_model:
        raw = course.split.test.inputs[:2]
        run.log_model(student.networks.member(0).cpu(), course.standardise(raw, unit_of(raw)))
    if student.diverged:
        where = ", ".join(f"step {step} of repeat {config.first_repeat + r}" for r, step in sorted(student.diverged.items()))
        others = [str(config.first_repeat + r) for r in range(config.repeats) if r not in student.diverged]
        ended = f"; repeats {', '.join(others)} went on to the end" if others else ""
        raise TrainingError(f"loss: not finite at {where}; what was measured until then is kept{ended} (run {run.id})")


_FINAL = {"test_loss": "loss", "test_accuracy": "accuracy", "val_loss": "val_loss", "val_accuracy": "val_accuracy"}
_FINAL |= {"train_loss": "train_loss", "train_accuracy": "train_accuracy"}


def _last(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The last measured value of every repeat [R]; nan where there is none."""
    values = arrays[name]
    there = np.isfinite(values)
    position = values.shape[1] - 1 - there[:, ::-1].argmax(1)
    return np.where(there.any(1), values[np.arange(len(values)), position], np.nan)


def _report(run: tracking.Run, out: Path | None, kinds: Sequence[str] | None) -> None:
    """Draw the figures, print the class table, the run id and the link; copy to `out`."""
    stored = tracking.find(run.id, ["train"], finished=None)
    with tracking.extend(stored) as open_run:
        for name in draw([stored], open_run.folder / "figures", kinds, strict=False):
            open_run.publish(f"figures/{name}")
    table = hardness_table(stored.arrays)
    columns = ["name", "accuracy", "accuracy_stderr", "loss", "step_90", "confused_with", "overlap"]
    rows = [[_short(value) for value in row] for row in table[columns].itertuples(index=False)]
    console.table("Class hardness (test set)", [column.replace("_", " ") for column in columns], rows)
    mean, stderr = mean_stderr(_last(stored.arrays, "accuracy"))
    spread = "" if np.isnan(stderr) else f" +- {stderr:.4f}"
    console.say(f"test accuracy {mean:.4f}{spread}")
    if "last" in stored.tags.get("hardbench.best", ""):
        console.say("best.pt is last.pt: there is no validation split (val_size 0)")
    finish(run, out)


def finish(run: tracking.Run, out: Path | None, made: Sequence[str] = (".",)) -> None:
    """The closing lines of every command that writes to a run: its id, where its files are, where the UI shows it.

    `made` (files or folders of the run) is copied to `out`.
    """
    for name in made if out is not None else ():
        source, copy = run.folder / name, Path(str(out)) / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, copy, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, copy)
    console.say(f"run {run.id}")
    console.say(f"files {out or run.folder}")
    console.say(f"hardbench ui shows it at {run.link}")


def _short(value: object) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.4g}"
    return str(value)
