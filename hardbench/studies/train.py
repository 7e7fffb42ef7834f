"""Train R networks at once and measure when each class is learned.

Question: which classes are learned late, and does the geometry of their representations say so; for gmlp
and mlp also what each layer knows. Expect about .96 on ten MNIST classes after one epoch of the default
network; that takes a second or two per network on a laptop core, a ResNet an hour per CIFAR epoch.
Greedy layers (gmlp) learn by the losses of Shoham & Permuter 2020 (arXiv:2007.08140).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hardbench import console, tracking
from hardbench.artifacts import BEST, CHECKPOINTS, DYNAMICS, DYNAMICS_POINTS
from hardbench.configs.train import Config
from hardbench.data.samples import load
from hardbench.hard_samples import recorder, sample_hardness
from hardbench.hard_samples.recorder import DynamicsRecorder
from hardbench.hardness_runs import pinned_hardness, read_hardness
from hardbench.lifecycle import Prepared, Stages
from hardbench.metrics.hardness import final, hardness_table, mean_stderr, mean_text
from hardbench.stored import KEPT, SOURCE_RUN, StoredRun
from hardbench.trained import check_diverged, store_result
from hardbench.training import callbacks, checkpoints
from hardbench.training.core import Training
from hardbench.training.loop import TrainState, evaluation_steps
from hardbench.training.setup import TrainSetup, train_setup

STUDY = "train"
NUMBERS = 4  # raised when the same settings give other numbers: finished cells of sweeps are then computed again
FIGURES = ("basic_training_curves", "class_hardness", "overlap_scatter", "confusion_matrix", "research_questions")


@dataclass(frozen=True, kw_only=True)
class PreparedTraining(Prepared):
    """A training that is ready to start."""

    setup: TrainSetup


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedTraining:
    """Data, networks and learner, with the groups that a hardness splits the samples into."""
    if config.hardness is not None:
        config = replace(config, hardness=pinned_hardness(config.hardness))
    if config.record_dynamics and stored is not None and "record_points" not in stored.config:  # a former version recorded at these
        config = replace(config, record_points="evaluation")
    hardness = None if config.hardness is None else read_hardness(config.hardness)
    setup, tags = train_setup(config, judge=None if hardness is None else hardness.judge), {}
    if hardness is not None:
        tags[SOURCE_RUN] = sample_hardness.run_and_strategy(str(config.hardness))[0]
        setup.groups = hardness.groups(setup.split, len(load(config, config.seed).train), needed=config.keep is None)
    kept = ""
    if config.keep is not None:
        tags[KEPT] = f"{len(setup.split.train)} of {setup.available}"
        kept = f"\nkept {tags[KEPT]} training samples: {_kept_by(config)}"
        if hardness is not None and (others := hardness.relabelled(setup.split.train)):
            console.warn(f"keep: {others} of the {len(setup.split.train)} samples kept have other labels in run {hardness.source}")
    dataset, classes, samples = config.dataset.rpartition("/")[2], setup.split.num_classes, len(setup.split.train)
    each = f", {setup.batches.count} for each" if config.train_share < 1 else ""
    note = f"{config.repeats} {config.model} on {dataset} ({classes} classes, {samples} training samples{each})\n"
    note += f"{config.epochs} epochs, {config.optimizer} {config.lr:g}{kept}"
    title = config.name or f"{config.model} {dataset} s{config.seed}"
    device, digest = setup.learner.device, setup.split.digest
    return PreparedTraining(config=config, title=title, note=note, device=device, digest=digest, tags=tags, setup=setup)


def _kept_by(config: Config) -> str:
    """In words which samples were kept: easy:0.8 by aum of run 0123abcd."""
    keep = str(config.keep)
    if config.hardness is None or keep.startswith("random"):
        return keep
    run, score = sample_hardness.run_and_strategy(config.hardness)
    return f"{keep} by {f'{score} of ' if score else ''}run {run[:8]}"


def compute(prepared: PreparedTraining, run: tracking.Run, stages: Stages) -> None:
    """Train, from the newest checkpoint on, and store what was measured. TrainingError at the end if a repeat diverged."""
    setup, config = prepared.setup, prepared.config
    training = Training(setup)
    saved = stages.newest(checkpoints.TRAINING)
    if saved is not None:
        with checkpoints.restoring(run.folder / CHECKPOINTS, saved["steps"], setup.total):
            training.load(saved)
    dynamics = _recorder(run, setup) if config.record_dynamics else None

    def save(state: TrainState) -> None:
        now = training.state()
        stages.save(now, (BEST, training.best_weights(now["networks"])))

    steps = evaluation_steps(config.eval_points, config.eval_steps, setup.total)
    further = [] if dynamics is None else [recorder.when(config.record_points, steps, dynamics)]
    with console.progress(run.id[:8], setup.total) as show:
        training.run(run.log, [*further, callbacks.progress(show), callbacks.checkpoint(config.checkpoint_every, save)])
    step = setup.learner.steps
    run.log({"samples_per_second": step * setup.batches.size * config.repeats / training.seconds}, step)
    if dynamics is not None:
        recorded = recorder.recorded_steps(config.record_points, setup.batches.per_epoch, step, training.records.arrays()["steps"])
        if not recorder.is_complete(run.folder / DYNAMICS, recorded):
            dynamics.write(run.folder / DYNAMICS, recorded)
            run.publish(DYNAMICS)
        stages.only_to_resume(*(f"{DYNAMICS_POINTS}/{name}" for name in recorder.recorded_files(run.folder / DYNAMICS_POINTS)))
    result = training.result()
    store_result(run, config, result)
    if config.log_model:
        run.log_model(setup.learner.networks.member(0).cpu(), setup.standardise(setup.split.test.inputs[:2]))
    check_diverged(run, config, result)


def _recorder(run: tracking.Run, setup: TrainSetup) -> DynamicsRecorder:
    """The callback that records dynamics; a warning where that is a lot."""
    config, batches = setup.config, setup.batches
    made = DynamicsRecorder(
        batches,
        setup.split.class_names,
        run.fetch(DYNAMICS_POINTS),
        run.publish,
        setup.split.test.to(setup.learner.device) if config.record_test else None,
        config.record_dtype,
        config.record_points == "last",
    )
    evaluated = evaluation_steps(config.eval_points, config.eval_steps, setup.total)
    points = len(recorder.recorded_steps(config.record_points, batches.per_epoch, setup.total, evaluated))
    if (needed := points * made.bytes_of_a_point) > recorder.LARGE:
        console.warn(f"record_dynamics: {needed / 1e9:.1f} GB for {points} points; less with record_points last or record_dtype float16")
    made.begin()
    return made


def report(stored: StoredRun) -> None:
    """Print the class table and the accuracy."""
    console.table("Class hardness (test set)", *class_rows(stored.arrays))
    console.say(f"test accuracy {mean_text(*mean_stderr(final(stored.arrays, 'accuracy')))}")
    if KEPT in stored.tags:
        console.say(f"trained on {stored.tags[KEPT]} training samples ({_kept_by(stored.settings(Config))})")
    if "last" in stored.tags.get("hardbench.best", ""):
        console.say("best.pt is last.pt: there is no validation split (val_size 0)")


def class_rows(arrays: Mapping[str, np.ndarray]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the class table a person reads; where some networks end below 90 %, how many in place of the step."""
    table, columns = hardness_table(arrays), ["name", "accuracy", "accuracy_stderr", "loss", "step_90", "confused_with", "overlap"]
    rows = [[_short(value) for value in row] for row in table[columns].itertuples(index=False)]
    for row, never, count in zip(rows, table["step_90_never"], table["repeats"], strict=True):
        row[4] = f"{never} of {count} never" if never else row[4]
    return [column.replace("_", " ") for column in columns], rows


def _short(value: object) -> str:
    if isinstance(value, float):
        return "-" if np.isnan(value) else f"{value:.4g}"
    return str(value)
