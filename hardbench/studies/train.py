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
from hardbench.data.plant import planting
from hardbench.data.samples import load
from hardbench.hard_samples import recorder, sample_hardness
from hardbench.hard_samples.recorder import LogitRecorder
from hardbench.hardness_runs import pinned_hardness, read_hardness
from hardbench.lifecycle import Prepared, Stages
from hardbench.metrics.hardness import final, hardness_table, mean_stderr, mean_text
from hardbench.stored import SOURCE_RUN, StoredRun
from hardbench.trained import check_diverged, store_result
from hardbench.training import callbacks, checkpoints
from hardbench.training.core import Training
from hardbench.training.loop import TrainState, at, evaluation_steps
from hardbench.training.setup import TrainSetup, train_setup

STUDY = "train"
NUMBERS = 4  # raised when the same settings give other numbers: finished cells of sweeps are then computed again
FIGURES = ("basic_training_curves", "class_hardness", "overlap_scatter", "confusion_matrix", "research_questions", "planted")


@dataclass(frozen=True, kw_only=True)
class PreparedTraining(Prepared):
    """A training that is ready to start."""

    setup: TrainSetup


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedTraining:
    """Data, networks and learner, with the groups that a hardness splits the samples into."""
    if config.hardness is not None:
        config = replace(config, hardness=pinned_hardness(config.hardness))
    setup, tags = train_setup(config), {}
    if config.hardness is not None:
        tags[SOURCE_RUN] = sample_hardness.run_and_strategy(config.hardness)[0]
        setup.groups = read_hardness(config.hardness).groups(setup.split, len(load(config, config.seed).train))
    dataset, classes, samples = config.dataset.rpartition("/")[2], setup.split.num_classes, len(setup.split.train)
    note = f"{config.repeats} {config.model} on {dataset} ({classes} classes, {samples} training samples{planting(config)})\n"
    note += f"{config.epochs} epochs, {config.optimizer} {config.lr:g}"
    title = config.name or f"{config.model} {dataset} s{config.seed}"
    device, digest = setup.learner.device, setup.split.digest
    return PreparedTraining(config=config, title=title, note=note, device=device, digest=digest, tags=tags, setup=setup)


def compute(prepared: PreparedTraining, run: tracking.Run, stages: Stages) -> None:
    """Train, from the newest checkpoint on, and store what was measured. TrainingError at the end if a repeat diverged."""
    setup, config = prepared.setup, prepared.config
    training = Training(setup)
    saved = stages.newest(checkpoints.TRAINING)
    if saved is not None:
        with checkpoints.restoring(run.folder / CHECKPOINTS, saved["steps"], setup.total):
            training.load(saved)
    steps = evaluation_steps(config.eval_points, config.eval_steps, setup.total)
    logits = _logit_recorder(run, setup, len(steps)) if config.record_dynamics else None

    def save(state: TrainState) -> None:
        now = training.state()
        stages.save(now, (BEST, training.best_weights(now["networks"])))

    further = [] if logits is None else [at(steps, logits)]
    with console.progress(run.id[:8], setup.total) as show:
        training.run(run.log, [*further, callbacks.progress(show), callbacks.checkpoint(config.checkpoint_every, save)])
    step = setup.learner.steps
    run.log({"samples_per_second": step * setup.batches.size * config.repeats / training.seconds}, step)
    if logits is not None:
        measured = training.records.arrays()["steps"]
        if not recorder.is_complete(run.folder / DYNAMICS, measured):
            run.write_arrays(DYNAMICS, logits.arrays(measured), compressed=False)
        stages.only_to_resume(*(f"{DYNAMICS_POINTS}/{name}" for name in recorder.recorded_files(run.folder / DYNAMICS_POINTS)))
    result = training.result()
    store_result(run, config, result)
    if config.log_model:
        run.log_model(setup.learner.networks.member(0).cpu(), setup.standardise(setup.split.test.inputs[:2]))
    check_diverged(run, config, result)


def _logit_recorder(run: tracking.Run, setup: TrainSetup, points: int) -> LogitRecorder:
    """The callback that records the logits of the training samples; a warning where that is a lot."""
    train = setup.batches.train
    needed = 4 * setup.config.repeats * points * len(train) * setup.split.num_classes  # bytes
    if needed > recorder.LARGE:
        console.warn(f"record_dynamics: {needed / 1e9:.1f} GB for {points} points; fewer with eval_steps")
    return LogitRecorder(train, setup.standardise.to(setup.learner.device), run.fetch(DYNAMICS_POINTS), run.publish)


def report(stored: StoredRun) -> None:
    """Print the class table and the accuracy."""
    console.table("Class hardness (test set)", *class_rows(stored.arrays))
    console.say(f"test accuracy {mean_text(*mean_stderr(final(stored.arrays, 'accuracy')))}")
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
