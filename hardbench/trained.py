"""The results of a training in its run: arrays, the table of class hardness, checkpoints, final metrics; and its networks from there."""

import itertools
from typing import Any

import numpy as np

from hardbench import console, machine, seeding
from hardbench.artifacts import ARRAYS, CHECKPOINTS, CLASS_HARDNESS
from hardbench.data.batches import batch_length
from hardbench.data.samples import Split
from hardbench.data.transforms import Standardise
from hardbench.errors import TrainingError
from hardbench.hard_samples.sample_hardness import EASY, HARD
from hardbench.metrics.hardness import final, hardness_table, mean_at_end, overlap_hardness_spearman
from hardbench.registry import MODELS
from hardbench.settings import TrainingSettings
from hardbench.stored import KEPT, StoredRun
from hardbench.training import checkpoints
from hardbench.training.core import TrainResult
from hardbench.training.greedy import make_learner
from hardbench.training.learners import Learner
from hardbench.training.setup import has_target
from hardbench.written import Run

FINAL = {"test_loss": "loss", "test_accuracy": "accuracy", "val_loss": "val_loss", "val_accuracy": "val_accuracy"}  # metric -> array


def store_cell(run: Run, config: TrainingSettings, result: TrainResult) -> None:
    """Everything a run keeps of a training that a sweep's worker made; TrainingError at the end if a repeat diverged."""
    run.data(config.dataset, result.digest)
    if config.keep is not None:
        run.tag(KEPT, result.kept)
    for row, step in result.journal:
        run.log(row, step)
    for name, state in result.checkpoints.items():
        checkpoints.save(run.folder / CHECKPOINTS, f"{name}.pt", state)
        run.publish(f"{CHECKPOINTS}/{name}.pt")
    store_result(run, config, result)
    check_diverged(run, config, result)


def store_result(run: Run, config: TrainingSettings, result: TrainResult) -> None:
    """metrics.npz, the hardness table, final metrics."""
    arrays = result.arrays
    run.write_arrays(ARRAYS, arrays)
    run.write_text(CLASS_HARDNESS, hardness_table(arrays).to_csv(index=False))
    metrics = {f"final/{name}": final(arrays, key, by=key) for name, key in FINAL.items()}
    size = batch_length(config.batch_size, result.train_samples)
    for name in ("loss", "accuracy"):
        points = arrays["log_steps"], arrays[f"train_{name}"]
        metrics[f"final/train_{name}_last_epoch"] = mean_at_end(*points, -(-result.train_samples // size))
    for phase, group in itertools.product(("train", "val", "test"), (HARD, EASY)):
        if (name := f"accuracy_{phase}_{group}") in arrays:
            metrics[f"final/{phase}_accuracy_{group}"] = final(arrays, name, by=name)
    metrics["final/overlap_hardness_spearman"] = overlap_hardness_spearman(arrays)
    if not result.validated:
        del metrics["final/val_loss"], metrics["final/val_accuracy"]
    if result.bayes_accuracy is not None:
        metrics["bayes_accuracy"] = np.array([result.bayes_accuracy])
    if has_target(config):
        metrics |= _target(config, result)
    run.log(metrics, result.step)
    run.tag("hardbench.best", "validation accuracy" if result.validated else "last (val_size 0)")


def _target(config: TrainingSettings, result: TrainResult) -> dict[str, np.ndarray]:
    """True if each repeat reached the target accuracy (0 or 1) and in which epoch (nan: in none), [R]; a warning for those that did not."""
    epochs = np.array([result.reached.get(r, np.nan) for r in range(config.repeats)])
    missed = [str(config.first_repeat + r) for r in np.isnan(epochs).nonzero()[0]]
    if missed:
        console.warn(f"target_accuracy: {config.target_accuracy:g} of the training set was not reached by repeat {', '.join(missed)}")
    return {"train/target_reached": np.isfinite(epochs).astype(float), "train/target_epoch": epochs}


def check_diverged(run: Run, config: TrainingSettings, result: TrainResult) -> None:
    """TrainingError, once all is stored, if a repeat diverged."""
    if result.diverged:
        where = ", ".join(f"step {step} of repeat {config.first_repeat + r}" for r, step in sorted(result.diverged.items()))
        others = [str(config.first_repeat + r) for r in range(config.repeats) if r not in result.diverged]
        ended = f"; repeats {', '.join(others)} went on to the end" if others else ""
        raise TrainingError(f"loss: not finite at {where}; what was measured until then is kept{ended} (run {run.id})", measured=True)


def place(config: Any) -> dict[str, Any]:
    """Where to compute and to read data now, in place of what a stored training has."""
    return {"device": config.device, "threads": config.threads, "data_dir": config.data_dir}


def restore(stored: StoredRun, trained: TrainingSettings, split: Split, checkpoint: str) -> tuple[Learner, Standardise]:
    """A trained run's networks on this machine's device, and the standardisation they were trained with."""
    device = machine.take(trained)
    path = stored.file(f"{CHECKPOINTS}/{checkpoint}.pt")
    state = checkpoints.load(path, checkpoints.WEIGHTS)
    streams = seeding.networks(trained.seed, trained.first_repeat, trained.repeats)
    networks = MODELS[trained.model].call(split.test.shape, split.num_classes, trained, streams).to(device)
    with checkpoints.restoring(path, 0, 0):
        standardise = Standardise(**state["standardise"])
        if standardise(split.test.inputs[:1]).shape[1:] != split.test.shape:
            raise ValueError("constants of inputs of another shape")
        networks.restore(state["networks"])
    return make_learner(networks, trained, 1), standardise
