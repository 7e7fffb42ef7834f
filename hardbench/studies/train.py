"""Train R networks at once and measure when each class is learned.

Question: which classes are learned late, and does the geometry of their representations say so; for gmlp
and mlp also what each layer knows. Expect about .96 on ten MNIST classes after one epoch of the default
network; that takes a second or two per network on a laptop core, a ResNet an hour per CIFAR epoch.
"""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hardbench import console, lifecycle, machine, tracking
from hardbench.configs.train import Config
from hardbench.data.samples import load
from hardbench.data.transforms import unit_of
from hardbench.errors import ConfigError, TrackingError, TrainingError
from hardbench.hard_samples import recorder, sample_hardness
from hardbench.metrics.hardness import hardness_table, mean_at_end, mean_stderr, overlap_hardness_spearman
from hardbench.settings import TrainingSettings
from hardbench.stored import ARRAYS, StoredRun
from hardbench.training import callbacks, checkpoints
from hardbench.training.loop import TrainState, at, evaluation_steps, fit
from hardbench.training.setup import TrainResult, TrainSetup, has_target, measuring_callbacks, result_of, train_setup

NUMBERS = 4  # raised when the same settings give other numbers: finished cells of sweeps are then computed again


def set_up(config: Config) -> TrainSetup:
    """A setup that is ready, with the groups that a hardness splits its samples into."""
    setup = train_setup(config)
    if config.hardness is not None:
        setup.groups = hardness(config.hardness).groups(setup.split, len(load(config, config.seed).train))
    return setup


def hardness(word: str) -> sample_hardness.Hardness:
    """The hardness that RUN or RUN:STRATEGY hands on."""
    run, strategy = sample_hardness.run_and_strategy(word)
    stored = _source(run)
    artifact = sample_hardness.SOURCES[stored.study][0]
    if not stored.has(artifact):
        how = "train --record-dynamics" if stored.study == "train" else stored.study
        raise ConfigError(f"hardness: {stored.id}; a run of {how}, with the artifact {artifact}")
    return sample_hardness.read(stored.study, stored.id, stored.archive(artifact), strategy)


def _source(word: str) -> StoredRun:
    """The run of an id or a prefix of one; of `last` the newest finished one that has samples' hardness to hand on."""
    if word == "last":
        for stored in tracking.runs():
            if (
                stored.status == "FINISHED"
                and stored.study in sample_hardness.SOURCES
                and stored.has(sample_hardness.SOURCES[stored.study][0])
            ):
                return stored
    return tracking.find(word, list(sample_hardness.SOURCES))


def named(word: str) -> str:
    """RUN or RUN:STRATEGY with the run by its id, which goes on to mean the same run."""
    run, strategy = sample_hardness.run_and_strategy(word)
    return ":".join(filter(None, (_source(run).id, strategy)))


FIGURES = ("basic_training_curves", "class_hardness", "overlap_scatter", "confusion_matrix", "research_questions")


Further = Callable[[tracking.Run], None]
"""What another study does in the run of a training before it is FINISHED."""


def run(
    config: Config, kinds: Sequence[str] | None = FIGURES, tags: Mapping[str, str] | None = None, then: Further | None = None
) -> StoredRun:
    """Train as the settings say, in a run of its own, and draw the kinds of figures that apply (None: all there are); the stored run.

    `tags` are further tags of the run, `then` what is done in it besides.
    """
    target = out_folder(config.out)
    if config.hardness is not None:
        config = replace(config, hardness=named(config.hardness))
    setup = set_up(config)
    note = note_of(config, setup.split.num_classes, len(setup.split.train))
    opening = tracking.start("train", config, title_of(config), note, tags={**tags_of(config, str(setup.learner.device)), **(tags or {})})
    return _complete(opening, setup, lambda: None, target, kinds, then)


def resume(
    stored: StoredRun,
    changed: Mapping[str, Any],
    out: str | None = None,
    kinds: Sequence[str] | None = FIGURES,
    then: Further | None = None,
) -> StoredRun:
    """Go on with an unfinished run where its newest readable checkpoint was written, and do what `run` does after it."""
    target = out_folder(out)
    setup = set_up(stored.settings(Config, changed))
    lifecycle.check_data(stored, setup.split.digest)
    return _complete(tracking.reopen(stored), setup, lambda: lifecycle.newest_state(stored), target, kinds, then)


def _complete(
    opening: AbstractContextManager[tracking.Run],
    setup: TrainSetup,
    state: Callable[[], dict[str, Any] | None],
    out: Path | None,
    kinds: Sequence[str] | None,
    then: Further | None,
) -> StoredRun:
    """The training from a stored `state` (None: from step 0) on, its report, and what is done besides."""
    config = setup.config

    def compute(run: tracking.Run) -> None:
        lifecycle.describe(run, setup.learner.device, config.precision, config.dataset, setup.split.digest)
        _train(run, setup, state())

    def report(run: tracking.Run) -> None:
        _report(lifecycle.draw_into(run, kinds))
        if then is not None:
            then(run)

    def close(run: tracking.Run) -> None:
        run.remove(*(f"{recorder.FOLDER}/{name}" for name in recorder.recorded_files(run.folder / recorder.FOLDER)))
        run.remove(*(f"checkpoints/{name}" for name in checkpoints.spare(config.keep_checkpoints)))

    return lifecycle.complete(opening, compute, report, close, lambda run: finish(run, out))


def out_folder(out: str | None) -> Path | None:
    """The folder of `--out`, made now so that a bad one is known before any work."""
    if out is None:
        return None
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(f"out: {out}; a folder that can be written ({error.strerror})") from None
    return Path(out)


def _train(run: tracking.Run, setup: TrainSetup, saved: dict[str, Any] | None) -> None:
    """The training itself: callbacks, loop, results. TrainingError at the end if a repeat diverged."""
    config, split, student = setup.config, setup.split, setup.learner
    records, best = callbacks.Records(), callbacks.Best(config.repeats)
    spent = 0.0  # seconds of training before this process
    if saved is not None:
        with checkpoints.restoring(run.folder / "checkpoints", saved["steps"], setup.total):
            student.load(saved)
            for part, name in ((setup.batches, "batches"), (records, "records"), (best, "best")):
                part.load(saved[name])
            spent = float(saved.get("seconds", 0))

    steps = evaluation_steps(config.eval_points, config.eval_steps, setup.total)
    logits_of_training = _logit_recorder(run, setup, len(steps)) if config.record_dynamics else None

    began = time.monotonic()

    def write(state: TrainState) -> None:
        run.close()  # what a checkpoint counts as measured must be in the store
        save(run.folder / "checkpoints", setup, records, best, spent + time.monotonic() - began)
        for name in (checkpoints.LAST, checkpoints.BEST):
            run.publish(f"checkpoints/{name}")

    with console.progress(run.id[:8], setup.total) as show:
        watching = measuring_callbacks(setup, records, best, run.log)
        watching += [at(steps, logits_of_training)] if logits_of_training else []
        watching += [console.training_progress(show), callbacks.checkpoint(config.checkpoint_every, write)]
        done = fit(student, setup.batches, setup.total, watching)
    run.log({"samples_per_second": done * setup.batches.size * config.repeats / (spent + time.monotonic() - began)}, done)
    if logits_of_training is not None and not recorder.is_complete(run.folder / recorder.ARTIFACT, records.arrays()["steps"]):
        run.write_arrays(recorder.ARTIFACT, logits_of_training.arrays(records.arrays()["steps"]), compressed=False)
    found = result_of(setup, records)
    _finish(run, config, found)
    if config.log_model:
        raw = split.test.inputs[:2]
        run.log_model(student.networks.member(0).cpu(), setup.standardise(raw, unit_of(raw)))
    _diverged(run, config, found)


def _logit_recorder(run: tracking.Run, setup: TrainSetup, points: int) -> recorder.LogitRecorder:
    """What records the logits of the training samples; a warning where that is a lot."""
    train = setup.batches.train
    needed = recorder.recording_bytes(setup.config.repeats, points, len(train), setup.split.num_classes)
    if needed > recorder.LARGE:
        console.warn(f"record_dynamics: {needed / 1e9:.1f} GB for {points} points; fewer with eval_steps")
    return recorder.LogitRecorder(train, setup.standardise.to(setup.learner.device), run.fetch(recorder.FOLDER), run.publish)


def save(folder: Path, setup: TrainSetup, records: callbacks.Records, best: callbacks.Best, seconds: float) -> None:
    """Write last.pt (all that resuming needs) and best.pt (weights per repeat with their step and validation accuracy).

    `seconds` is how long the training has taken so far.
    """
    constants = {"mean": setup.standardise.mean, "std": setup.standardise.std, "shift": setup.standardise.shift}
    state = setup.learner.state()
    last = {**state, "standardise": constants, "batches": setup.batches.state(), "records": records.state(), "best": best.state()}
    last["seconds"] = seconds
    chosen: dict[str, Any] = best.state()
    if setup.split.val is None:
        chosen = {"networks": state["networks"], "step": [state["steps"]] * setup.config.repeats, "is_last": True}
    checkpoints.save(folder, checkpoints.BEST, {**chosen, "standardise": constants})
    checkpoints.save(folder, checkpoints.LAST, last)


def _finish(run: tracking.Run, config: TrainingSettings, found: TrainResult) -> None:
    """metrics.npz, the hardness table, final metrics."""
    run.write_arrays(ARRAYS, found.arrays)
    run.write_text("class_hardness.csv", hardness_table(found.arrays).to_csv(index=False))
    final = {f"final/{name}": last_measured(found.arrays, key) for name, key in _FINAL.items()}
    size = found.about[1] if config.batch_size == "full" else int(config.batch_size)
    for name in ("loss", "accuracy"):
        points = found.arrays["log_steps"], found.arrays[f"train_{name}"]
        final[f"final/train_{name}_last_epoch"] = mean_at_end(*points, -(-found.about[1] // size))
    for phase, group in itertools.product(("train", "val", "test"), (sample_hardness.HARD, sample_hardness.EASY)):
        if f"accuracy_{phase}_{group}" in found.arrays:
            final[f"final/{phase}_accuracy_{group}"] = last_measured(found.arrays, f"accuracy_{phase}_{group}")
    final["final/overlap_hardness_spearman"] = overlap_hardness_spearman(found.arrays)
    if not found.validated:
        del final["final/val_loss"], final["final/val_accuracy"]
    if found.bayes_accuracy is not None:
        final["bayes_accuracy"] = np.array([found.bayes_accuracy])
    if has_target(config):
        final |= _aim(config, found)
    run.log(final, found.step)
    run.tag("hardbench.best", "validation accuracy" if found.validated else "last (val_size 0)")


def _aim(config: TrainingSettings, found: TrainResult) -> dict[str, np.ndarray]:
    """Whether each repeat reached the target accuracy (0 or 1) and in which epoch (nan: in none), [R]; a warning for those that did not."""
    epochs = np.array([found.reached.get(r, np.nan) for r in range(config.repeats)])
    missed = [str(config.first_repeat + r) for r in np.isnan(epochs).nonzero()[0]]
    if missed:
        console.warn(f"target_accuracy: {config.target_accuracy:g} of the training set was not reached by repeat {', '.join(missed)}")
    return {"train/target_reached": np.isfinite(epochs).astype(float), "train/target_epoch": epochs}


def _diverged(run: tracking.Run, config: TrainingSettings, found: TrainResult) -> None:
    """TrainingError if a repeat diverged."""
    if found.diverged:
        where = ", ".join(f"step {step} of repeat {config.first_repeat + r}" for r, step in sorted(found.diverged.items()))
        others = [str(config.first_repeat + r) for r in range(config.repeats) if r not in found.diverged]
        ended = f"; repeats {', '.join(others)} went on to the end" if others else ""
        raise TrainingError(f"loss: not finite at {where}; what was measured until then is kept{ended} (run {run.id})", measured=True)


def title_of(config: TrainingSettings) -> str:
    """The run's name."""
    return config.name or f"{config.model} {config.dataset.rpartition('/')[2]} s{config.seed}"


def note_of(config: TrainingSettings, classes: int, samples: int) -> str:
    """Two lines on a run for its reader."""
    head = f"{config.repeats} {config.model} on {config.dataset.rpartition('/')[2]} ({classes} classes, {samples} training samples)"
    return f"{head}\n{config.epochs} epochs, {config.optimizer} {config.lr:g}"


def tags_of(config: TrainingSettings, device: str) -> dict[str, str]:
    """The run's own tags, and how it was computed."""
    source = {} if config.hardness is None else {"hardbench.source_run": sample_hardness.run_and_strategy(config.hardness)[0]}
    return {**(config.tag or {}), **source, "hardbench.device": device, "hardbench.precision": config.precision}


def write_cell(run: tracking.Run, config: TrainingSettings, found: TrainResult) -> None:
    """Everything a run keeps of a training that was made elsewhere."""
    dataset = config.dataset.rpartition("/")[2]
    run.data(dataset, found.digest, config.dataset)
    for row, step in found.journal:
        run.log(row, step)
    for name, state in found.checkpoints.items():
        checkpoints.save(run.folder / "checkpoints", f"{name}.pt", state)
        run.publish(f"checkpoints/{name}.pt")
    _finish(run, config, found)
    _diverged(run, config, found)


_FINAL = {"test_loss": "loss", "test_accuracy": "accuracy", "val_loss": "val_loss", "val_accuracy": "val_accuracy"}


def last_measured(arrays: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The last measured value of every repeat [R]; nan where there is none."""
    values = arrays[name]
    if not values.shape[1]:
        return np.full(len(values), np.nan)
    there = np.isfinite(values)
    position = values.shape[1] - 1 - there[:, ::-1].argmax(1)
    return np.where(there.any(1), values[np.arange(len(values)), position], np.nan)


def _report(stored: StoredRun) -> None:
    """Print the class table and the accuracy."""
    console.table("Class hardness (test set)", *class_rows(stored.arrays))
    mean, stderr = mean_stderr(last_measured(stored.arrays, "accuracy"))
    spread = "" if np.isnan(stderr) else f" +- {stderr:.4f}"
    console.say(f"test accuracy {mean:.4f}{spread}")
    if "last" in stored.tags.get("hardbench.best", ""):
        console.say("best.pt is last.pt: there is no validation split (val_size 0)")


def class_rows(arrays: Mapping[str, np.ndarray]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the class table a person reads; where some networks end below 90 %, how many in place of the step."""
    table, columns = hardness_table(arrays), ["name", "accuracy", "accuracy_stderr", "loss", "step_90", "confused_with", "overlap"]
    rows = [[_short(value) for value in row] for row in table[columns].itertuples(index=False)]
    for row, never, count in zip(rows, table["step_90_never"], table["repeats"], strict=True):
        row[4] = f"{never} of {count} never" if never else row[4]
    return [column.replace("_", " ") for column in columns], rows


def finish(run: tracking.Run, out: Path | None, made: Sequence[str] = (".",)) -> None:
    """The closing lines of every command that writes to a run: its id, where its files are, where the UI shows it.

    `made` (files or folders of the run) is copied to `out`, unless that is where they are.
    """
    if out is not None and "." in made:
        run.gather()
    try:
        for name in made if out is not None and out.resolve() != run.folder.resolve() else ():
            source, copy = run.folder / name, Path(str(out)) / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, copy, dirs_exist_ok=True) if source.is_dir() else shutil.copy(source, copy)
    except OSError as error:  # of a whole folder: a list of (from, to, why)
        reason = error.args[0][0][2] if isinstance(error, shutil.Error) else error.strerror
        raise TrackingError(f"out: {out}; a folder that takes a copy of {run.folder} ({reason})") from None
    console.say(f"run {run.id}")
    console.say(f"files {out or run.folder}")
    console.say(machine.described())
    console.say(f"hardbench ui shows it at {run.link}")


def _short(value: object) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.4g}"
    return str(value)
