"""Find when the manifold of each class stops shrinking, and which samples are still wrong then.

Question: which samples of a class stay behind when its radius in a hidden layer starts to grow again (stragglers)? All networks train
together, full batch; 500 epochs of five networks on 20 000 MNIST images take a minute or two on one core and find 6 to 12 % stragglers.

The smooth detector promises a minimum of the smoothed radius confirmed by `patience` later epochs, not the smallest radius of all epochs:
the table shows both radii, and how many inversions are passed later, by a radius over 1 % smaller. Source: Ciceri et al. 2024
(arXiv:2303.05161); for several classes Pukowski & Lu 2024 (arXiv:2409.14401).
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch

from hardbench import console, machine, tracking
from hardbench.artifacts import CHECKPOINTS, INVERSION_WEIGHTS, INVERSIONS, PLANTED, PRUNE_CURVE, RADII, STABILITY, STRAGGLERS
from hardbench.configs.invert import Config
from hardbench.data.plant import planted_arrays, planting
from hardbench.data.samples import Split
from hardbench.errors import ConfigError, TrainingError
from hardbench.inversion import agreement, experiments
from hardbench.inversion.experiments import SearchSeries
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.radii import PASSED, passed, shortest
from hardbench.inversion.search import Inversions, Search, TrainingData, estimate, find_inversions
from hardbench.lifecycle import Prepared, Stages
from hardbench.metrics.hardness import mean_stderr, mean_text
from hardbench.stored import StoredRun
from hardbench.training import callbacks, checkpoints, memory

STUDY = "invert"
FIGURES = None
END = "end"  # what the last checkpoint of a run that has everything stored is called
LOOKS = 40  # epochs, evenly spaced in their logarithm, at which misclassified sets are compared


@dataclass(frozen=True, kw_only=True)
class PreparedSearch(Prepared):
    """A search that is ready to start."""

    split: Split
    data: TrainingData


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedSearch:
    """The data on the device."""
    device = machine.take(config)
    split, standardise = prepare_pool(config, config.seed)
    counts = torch.bincount(split.train.labels, minlength=split.num_classes)
    if bool((counts == 0).any()):
        missing = split.class_names[int((counts == 0).nonzero()[0])]
        raise ConfigError(f"subset_size: {config.subset_size}; enough for a sample of every class, and class {missing} has none")
    if config.prune_curve and not len(split.test):
        raise ConfigError(f"prune_curve: true; samples to test on, and subset_size {config.subset_size} leaves none")
    memory.check(estimate(config, split, config.precision), config, device, "repeats")
    if stored is None and config.epochs < (least := shortest(config)):
        console.warn(f"epochs: {config.epochs}; the detector finds no inversion in fewer than {least}")
    dataset = config.dataset.rpartition("/")[2]
    note = f"{config.repeats} networks on {len(split.train)} samples of {dataset}, {config.task}{planting(config)}\n"
    note += f"{config.epochs} full-batch epochs, detector {config.detector}, snapshot {config.snapshot}"
    title = config.name or f"{config.task} {dataset} s{config.seed}"
    data = TrainingData(split.train.to(device), standardise.to(device), split.num_classes)
    return PreparedSearch(config=config, title=title, note=note, device=device, digest=split.digest, split=split, data=data)


def compute(prepared: PreparedSearch, run: tracking.Run, stages: Stages) -> None:
    """The networks themselves, then the further experiments asked for; results as soon as they are there.

    TrainingError if no network had an inversion of every class that `if_no_inversion retry` asks for, and if one diverged.
    """
    config = prepared.config
    stages.only_to_resume(f"{CHECKPOINTS}/.{INVERSION_WEIGHTS}.part")
    if not config.keep_checkpoints:
        stages.only_to_resume(f"{CHECKPOINTS}/{INVERSION_WEIGHTS}")
    saved = stages.newest(checkpoints.SEARCH)
    if saved is not None and saved["name"] == END and "done" not in saved:
        return  # everything is stored
    looks = experiments.log_spaced(LOOKS, config.epochs) if config.stability else []
    points = experiments.log_spaced(config.prune_points, config.epochs, first=1) if config.prune_curve else []

    def progress(name: str, epochs: int) -> AbstractContextManager[Callable[[int, str], None]]:
        return console.progress(f"{run.id[:8]} {name}", epochs)

    series = SearchSeries(prepared.data, config, config.seed, config.precision, config.checkpoint_every, stages, progress, saved)
    inversions = _first_searches(prepared, run, series, sorted({*looks, *points}))
    if bool(inversions.loss[:, -1].isfinite().any()):
        _further_experiments(prepared, run, series, inversions, looks, points)
    diverged = [int(r) for r, loss in zip(inversions.repeats, inversions.loss[:, -1], strict=True) if not loss.isfinite()]
    _save_end(prepared, series, inversions, failed=bool(diverged))
    if diverged:
        where = f"repeats {', '.join(map(str, diverged))}"
        raise TrainingError(f"loss: not finite in {where}; what was measured until then is kept (run {run.id})", measured=True)


def _save_end(prepared: PreparedSearch, series: SearchSeries, inversions: Inversions, failed: bool) -> None:
    """Keep the weights at the end; of a run that fails also what is done, so that it says the same when it is resumed."""
    if prepared.config.keep_checkpoints:
        end = {"networks": inversions.final, "steps": prepared.config.epochs, "repeats": inversions.repeats, "name": END}
        done = {"done": series.done} if failed else {}
        series.memory.save({**end, **done, "standardise": prepared.data.standardise.constants()})


def _first_searches(prepared: PreparedSearch, run: tracking.Run, series: SearchSeries, looks: Sequence[int]) -> Inversions:
    """The networks asked for, stored; TrainingError, with the first ones stored, if `retry` ends without any."""
    config = prepared.config

    def search(repeats: Sequence[int]) -> Inversions:
        sink = _live(run, config) if repeats[0] == config.first_repeat else None
        return series.search(f"networks {repeats[0]}", repeats, looks=looks, sink=sink)

    inversions = find_inversions(config, range(config.first_repeat, config.first_repeat + config.repeats), search)
    if not len(inversions.repeats):
        first = Inversions(**next(iter(series.done.values())))
        _store(prepared, run, first)
        _save_end(prepared, series, first, failed=True)
        failed = f"none of {10 * config.repeats} networks had an inversion of every class"
        raise TrainingError(f"if_no_inversion: retry; {failed}; the first are kept (run {run.id})", measured=True)
    if len(inversions.repeats) < config.repeats:
        complete = f"{len(inversions.repeats)} of {10 * config.repeats} networks have an inversion of every class"
        console.warn(f"{complete}, {config.repeats} were asked for")
    _store(prepared, run, inversions)
    return inversions


def _further_experiments(
    prepared: PreparedSearch, run: tracking.Run, series: SearchSeries, inversions: Inversions, looks: Sequence[int], points: Sequence[int]
) -> None:
    """The networks again without their stragglers, the overlaps of misclassified sets at `looks`, the prune curve at `points`."""
    config, repeats = prepared.config, inversions.repeats.tolist()
    if config.retrain_without_stragglers:
        sink = _live(run, config, "retrained_")
        _store_retrained(prepared, run, inversions, series.search("retrained", repeats, inversions.stragglers, sink=sink))
    if looks:
        run.write_arrays(STABILITY, experiments.stability(inversions, looks))
    if points:
        arrays = experiments.prune_curve(series, inversions, points, prepared.split.test.to(prepared.device), config.test_noise)
        run.write_arrays(PRUNE_CURVE, arrays)
        run.log({f"prune_error/{at:02d}": errors for at, errors in enumerate(arrays["prune_error"][:, 0].T)}, config.epochs)


def _live(run: tracking.Run, config: Config, prefix: str = "") -> callbacks.Sink:
    """Metrics of an epoch as it is measured, every few epochs."""

    def log(values: Mapping[str, np.ndarray], epoch: int) -> None:
        if epoch % config.log_every == 0 or epoch == config.epochs:
            metrics = {f"{prefix}radius/{c:02d}": radii for c, radii in enumerate(values["radii"].T)}
            run.log(metrics | {f"{prefix or 'train/'}{name}": values[name] for name in ("error", "loss")}, epoch)

    return log


def _radii(split: Split, inversions: Inversions) -> dict[str, np.ndarray]:
    measured = {name: getattr(inversions, name).numpy() for name in ("radii", "distances", "error", "loss", "inversion_epoch")}
    names = {"class_names": np.array(split.class_names), "repeats": inversions.repeats.numpy()}
    return {"epochs": np.arange(inversions.radii.shape[1]), **measured, **names}


def _store(prepared: PreparedSearch, run: tracking.Run, inversions: Inversions) -> None:
    """radii.npz, stragglers.npz, inversion.csv, the weights at the inversions, and what they say in metrics."""
    config, split = prepared.config, prepared.split
    arrays, sets = _radii(split, inversions), experiments.straggler_arrays(inversions, split.train)
    run.write_arrays(RADII, arrays)
    run.write_arrays(STRAGGLERS, sets)
    if planted := planted_arrays(split):
        run.write_arrays(PLANTED, planted)
    run.write_text(INVERSIONS, experiments.inversion_table(arrays | sets).to_csv(index=False))
    epochs = inversions.inversion_epoch.numpy()
    shares = agreement.class_shares(sets["stragglers"], sets["labels"], sets["judged_epoch"])
    metrics = {f"inversion_epoch/{c:02d}": values for c, values in enumerate(epochs.T)}
    metrics |= {f"straggler_share/{c:02d}": values for c, values in enumerate(shares.T)}
    metrics["train/error_at_inversion"] = inversions.error_at_inversion.numpy()
    metrics["stragglers/fraction"] = agreement.share(sets["stragglers"], sets["judged_epoch"])
    metrics["inversions/found"] = np.isfinite(epochs).sum(1).astype(float)
    metrics["final/error"] = inversions.error[:, -1].numpy()
    run.log(metrics, config.epochs)
    weights = {"networks": inversions.weights, "inversion_epoch": inversions.inversion_epoch, "repeats": inversions.repeats}
    checkpoints.save(run.folder / CHECKPOINTS, INVERSION_WEIGHTS, weights)
    run.publish(f"{CHECKPOINTS}/{INVERSION_WEIGHTS}")
    if config.log_model:
        networks = Search(prepared.data, config, inversions.repeats[:1].tolist(), config.seed).learner.networks
        networks.load_states(inversions.final[:1])
        run.log_model(networks.member(0).cpu(), prepared.data.standardise.to("cpu")(split.train.inputs[:2]))


def _store_retrained(prepared: PreparedSearch, run: tracking.Run, inversions: Inversions, again: Inversions) -> None:
    """Add the radii, errors and inversions of the networks trained without their stragglers to radii.npz."""
    retrained = {f"retrained_{name}": getattr(again, name).numpy() for name in ("radii", "error", "inversion_epoch")}
    run.write_arrays(RADII, _radii(prepared.split, inversions) | retrained)
    before, after = (part.inversion_epoch.isfinite().sum(1).double().numpy() for part in (inversions, again))
    run.log({"inversions/found_without_stragglers": after}, prepared.config.epochs)
    console.say(f"inversions {int(before.sum())}; without the stragglers {int(after.sum())}")


def report(stored: StoredRun) -> None:
    """Print the class table."""
    arrays = stored.arrays
    console.table("Inversions", *experiments.class_rows(arrays))
    inverted, later = np.isfinite(arrays["inversion_epoch"]), passed(arrays["radii"], arrays["inversion_epoch"])
    shares = agreement.share(arrays["stragglers"], arrays["judged_epoch"])
    beyond = f"{later.sum()} of them passed later (a radius over {PASSED:.0%} smaller)"
    console.say(f"inversions {inverted.sum()} of {inverted.size}, {beyond}, stragglers {mean_text(*mean_stderr(shares))}")
