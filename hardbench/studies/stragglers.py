"""Find hard samples by several scores and measure what removing hard or easy ones from training does.

Question: how does the balance of easy and hard samples within a class decide what a network gets right, and
which score finds the hard ones? Data and network are those of `invert --task classes`. Each of --sets straggler
sets counts the hard samples of every class; --repeats fresh networks per set, strategy, train ratio and share
remaining are tested on all, hard and easy samples. Which are hard is decided on all of them, so that hard test
samples are in-sample for the score that named them. Expect about .92 | .25 | .97 on MNIST with nothing removed.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hardbench import console, lifecycle, machine, seeding, tracking
from hardbench.configs.stragglers import Config
from hardbench.data.samples import Samples, Split
from hardbench.data.transforms import Standardise
from hardbench.errors import ConfigError, TrainingError
from hardbench.hard_samples import slices
from hardbench.hard_samples.cuts import HardEasyOrder, TrainSlice
from hardbench.hard_samples.detection import detection
from hardbench.hard_samples.identify import HardSamples, fresh_logits, gallery, identify, search_until_inverted, straggler_counts
from hardbench.hard_samples.slices import SliceTraining
from hardbench.hard_samples.tables import TESTS, agreement_arrays, class_table, independent, network_table, summary_rows, summary_table
from hardbench.inversion import search as inversion
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.search import Inversions, Search, TrainingData, find_inversions, training_settings
from hardbench.settings import STRAGGLERS
from hardbench.stored import ARRAYS, StoredRun
from hardbench.studies import train
from hardbench.training import callbacks, checkpoints, memory
from hardbench.training.loop import Callback, TrainState, fit

Array = np.ndarray[Any, Any]
HARD_SAMPLES = "hard_samples.npz"
FOLDER = "checkpoints"


@dataclass
class Study:
    """A study that is ready to start, and what it has found so far; arrays: see metrics/imbalance.py."""

    config: Config
    split: Split
    standardise: Standardise
    device: torch.device
    facts: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)  # names of the files that hold what groups of networks gave
    arrays: dict[str, Array] = field(default_factory=dict)

    @property
    def data(self) -> TrainingData:
        """The samples on the device."""
        return TrainingData(self.split.train.to(self.device), self.standardise.to(self.device), self.split.num_classes)

    @property
    def labels(self) -> torch.Tensor:
        """Labels [N] that networks are trained on."""
        return self.split.train.labels

    def note(self, fact: str) -> None:
        """Remember something a reader has to know, and say it once."""
        if fact not in self.facts:
            self.facts.append(fact)
            console.warn(fact)


def set_up(config: Config) -> Study:
    """The data; raises before a run exists if a setting does not fit it."""
    device = machine.take(config)
    split, standardise = prepare_pool(config, config.seed)
    if int(len(split.train) * (least := min(config.train_ratios))) == 0:
        raise ConfigError(f"train_ratios: {least:g}; more, as it leaves no training sample of {len(split.train)}")
    empty = [name for c, name in enumerate(split.class_names) if not (split.train.labels == c).any()]
    if empty:
        raise ConfigError(f"subset_size: {config.subset_size}; samples of every class, and there is none of {', '.join(empty)}")
    memory.check(inversion.estimate(config, split, config.precision), config, device, {"sets": 1})
    cells = len(config.train_ratios) * len(config.remaining_train_ratios)
    memory.check(slices.estimate(split, lambda one: training_settings(one, config.precision)), config, device, {"repeats": cells})
    return Study(config, split, standardise, device)


def run(config: Config) -> StoredRun:
    """Do the study in a run of its own; the stored run."""
    target = train.out_folder(config.out)
    study = set_up(config)
    dataset = config.dataset.rpartition("/")[2]
    title = config.name or f"{'+'.join(config.strategy)} {dataset} s{config.seed}"
    note = f"Hard samples of {len(study.labels)} from {dataset} by {', '.join(config.strategy)}; "
    note += f"{config.sets} x {config.repeats} networks\nHard test samples are in-sample for the score that named them."
    return _complete(tracking.start("stragglers", config, title, note, tags=config.tag), study, target)


def resume(stored: StoredRun, changed: Mapping[str, Any], out: str | None = None) -> StoredRun:
    """Go on with an unfinished run at the group of networks it was at."""
    target = train.out_folder(out)
    study = set_up(stored.settings(Config, changed))
    lifecycle.check_data(stored, study.split.digest)
    return _complete(tracking.reopen(stored), study, target)


def _complete(opening: AbstractContextManager[tracking.Run], study: Study, out: Path | None) -> StoredRun:
    """The study in its run, from what is stored of it on."""

    def compute(run: tracking.Run) -> None:
        lifecycle.describe(run, study.device, study.config.precision, study.config.dataset, study.split.digest)
        _all_networks(run, study)

    def report(run: tracking.Run) -> None:
        _report(lifecycle.draw_into(run, None))

    def close(run: tracking.Run) -> None:
        spare = set(checkpoints.spare(study.config.keep_checkpoints)) | {checkpoints.LAST}
        spare |= {f".{name}.part" for name in study.parts} | set(() if study.config.keep_checkpoints else study.parts)
        run.remove(*(f"{FOLDER}/{name}" for name in sorted(spare)))

    return lifecycle.complete(opening, compute, report, close, lambda run: train.finish(run, out))


def _all_networks(run: tracking.Run, study: Study) -> None:
    """Search, scores, grid, results."""
    config = study.config
    run.fetch(FOLDER)
    data = study.data
    found = _stragglers(run, study, data)
    counts = straggler_counts(found, study.labels, study.split.num_classes)
    logits = _scores(run, study, data, len(counts)) if set(config.strategy) - {STRAGGLERS} else None
    more = counts + int(config.noise_ratio * len(study.labels) / study.split.num_classes)
    hard = identify(config.strategy, found, logits, study.labels, study.split.train.index, more, config.level)
    _describe(run, study, found, counts, hard)
    _grid(run, study, data, hard)
    _finish(run, study, found, hard)


def _once(run: tracking.Run, study: Study, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a group of networks gave: as stored, or made now and stored, so that a resumed run does not train it again."""
    path = run.folder / FOLDER / f"{name}.pt"
    study.parts.append(path.name)
    if path.exists():
        try:
            return {key: value for key, value in checkpoints.load(path).items() if key != "networks"}
        except TrainingError as error:
            console.warn(f"{error}; trained again")
    state = make()
    checkpoints.save(path.parent, path.name, {"networks": [], **state})
    run.publish(f"{FOLDER}/{path.name}")
    return state


def _showing(show: Callable[[int, str], None], text: str, before: int = 0) -> Callback:
    """Tells a progress bar how far a group is, at every tenth step."""

    def look(state: TrainState) -> None:
        if state.step % 10 == 0 or state.last:
            show(before + state.step, text)

    return look


def _stragglers(run: tracking.Run, study: Study, data: TrainingData) -> Inversions:
    """One network per set with its stragglers; a fact for every set that is missing, TrainingError if all are or one diverged."""
    config = study.config

    def draw_networks(repeats: Sequence[int]) -> Inversions:
        def make() -> dict[str, Any]:
            with console.progress(f"{run.id[:8]} search", config.epochs) as show:
                text = f"networks {repeats[0]} to {repeats[-1]}"
                ready = Search(data, config, repeats, config.seed, config.precision)
                return search_until_inverted(ready, _showing(show, text)).state()

        return Inversions(**_once(run, study, f"search_{repeats[0]:03d}", make))

    found = find_inversions(config, range(config.sets), draw_networks)
    missing = config.sets - len(found.repeats)
    if missing == config.sets:
        raise TrainingError(
            f"if_no_inversion: retry; none of {10 * config.sets} networks has an inversion of every class in {config.epochs} epochs"
        )
    if any(not whole and not ended for whole, ended in zip(found.complete, found.logits.isfinite().all(2).all(1), strict=True)):
        raise TrainingError(f"lr: {config.lr:g}; a smaller one, as a network that is to find stragglers diverged")
    if missing:
        study.note(f"sets: {config.sets}; {len(found.repeats)} complete ones among {10 * config.sets} networks, and these are used")
    return found


def _scores(run: tracking.Run, study: Study, data: TrainingData, sets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [S, T, N, K] of one fresh network per set, and their steps [T]."""
    config = study.config

    def make() -> dict[str, Any]:
        streams = [seeding.Seeds(config.seed).child("score", s) for s in range(sets)]
        with console.progress(f"{run.id[:8]} scores", config.epochs) as show:
            settings = training_settings(config, config.precision)
            logits, steps = fresh_logits(data, settings, streams, _showing(show, f"{sets} networks"))
        return {"logits": logits, "steps": steps}

    state = _once(run, study, "scores", make)
    if not state["logits"].isfinite().all():
        raise TrainingError(f"lr: {config.lr:g}; a smaller one, as a network that is to score samples diverged")
    return state["logits"], state["steps"]


def _describe(run: tracking.Run, study: Study, found: Inversions, counts: torch.Tensor, hard: Mapping[str, HardSamples]) -> None:
    """hard_samples.npz, what is known of the sets, and facts about classes without hard samples."""
    config, samples = study.config, study.split.train
    parts = {"index": samples.index, "labels": samples.labels, "clean": samples.clean, "fingerprint": samples.fingerprints}
    parts |= {"networks": found.repeats, "counts": counts, "inversion_epoch": found.inversion_epoch}
    arrays: dict[str, Array] = {"strategies": np.array(config.strategy)} | {name: value.numpy() for name, value in parts.items()}
    for name, one in hard.items():
        arrays |= {f"scores_{name}": one.score.float().numpy(), f"hard_{name}": one.hard.numpy()}
    run.write_arrays(HARD_SAMPLES, arrays)
    lost = int(found.inversion_epoch.isnan().sum())
    if lost:
        study.note(f"if_no_inversion: {config.if_no_inversion}; {lost} of {found.inversion_epoch.numel()} class inversions were not found")
    for name, one in hard.items():
        for s, mask in enumerate(one.hard):
            per_class = torch.bincount(samples.labels[mask], minlength=study.split.num_classes)
            without = [study.split.class_names[c] for c in (per_class == 0).nonzero().flatten().tolist()]
            if without:
                study.note(f"strategy: {name}; no hard sample of class {', '.join(without)} in set {s}")


def _grid(run: tracking.Run, study: Study, data: TrainingData, hard: Mapping[str, HardSamples]) -> None:
    """Train every network of the grid, one group per set and strategy, and fill in the arrays."""
    config = study.config
    sets = len(next(iter(hard.values())).hard)
    shape = (len(config.strategy), len(config.train_ratios), len(config.remaining_train_ratios), sets, config.repeats)
    arrays = {f"accuracy_{test}": np.full(shape, np.nan) for test in TESTS}
    arrays["accuracy_per_class"] = np.full((*shape, study.split.num_classes), np.nan)
    arrays["train_samples"], arrays["done"] = np.zeros(shape[:4], dtype=int), np.zeros((shape[0], sets), dtype=bool)
    repeats = np.arange(config.first_repeat, config.first_repeat + config.repeats)
    axes = {"strategies": np.array(config.strategy), "train_ratios": np.array(config.train_ratios), "repeats": repeats}
    study.arrays = arrays | axes | {"remaining": np.array(config.remaining_train_ratios, dtype=float), "sets": np.arange(sets)}
    groups = [(m, s) for s in range(sets) for m in range(shape[0])]
    with console.progress(f"{run.id[:8]} grid", len(groups) * config.epochs) as show:
        for done, (m, s) in enumerate(groups):
            order = HardEasyOrder.of(hard[config.strategy[m]].hard[s], seeding.Seeds(config.seed).child("data", "split", s))
            cuts = {
                (p, q): order.train_slice(ratio, share, config.reduce_hard)
                for p, ratio in enumerate(config.train_ratios)
                for q, share in enumerate(config.remaining_train_ratios)
            }
            for (p, q), cut in cuts.items():
                arrays["train_samples"][m, p, q, s] = len(cut)
            text = f"{config.strategy[m]}, set {s}"
            _group(run, study, data, order, cuts, (m, s), _showing(show, text, done * config.epochs))
            arrays["done"][m, s] = True
            run.write_text("accuracy.csv", network_table(study.arrays).to_csv(index=False))


def _group(
    run: tracking.Run,
    study: Study,
    data: TrainingData,
    order: HardEasyOrder,
    cuts: Mapping[tuple[int, int], TrainSlice],
    place: tuple[int, int],
    show: Callback,
) -> None:
    """The networks of one set and strategy, trained together; cells that nothing is left to train on stay nan and are a fact."""
    config, (m, s) = study.config, place
    name = f"{config.strategy[m]}_{s}"
    cells = {cell: cut for cell, cut in cuts.items() if len(cut)}
    for p, q in cuts.keys() - cells.keys():
        where = f"train ratio {config.train_ratios[p]:g}, remaining {config.remaining_train_ratios[q]:g}"
        study.note(f"remaining_train_ratios: no training sample is left of {config.strategy[m]}, set {s}, at {where}: nan")
    for group, lacks in (("hard", lambda cut: cut.hard_end == 0), ("easy", lambda cut: cut.easy_start == len(order.rows))):
        if any(map(lacks, cuts.values())):
            study.note(f"train_ratios: no {group} test sample of {config.strategy[m]}, set {s}: its accuracy is nan")
    if not cells:
        return

    def make() -> dict[str, Any]:
        samples = Samples(*(getattr(data.train, part)[order.rows.to(study.device)] for part in ("inputs", "labels", "index", "clean")))
        streams = [seeding.Seeds(config.seed).child("set", s, "repeat", config.first_repeat + r) for r in range(config.repeats)]
        settings = training_settings(config, config.precision)
        networks = SliceTraining(replace(data, train=samples), list(cells.values()), streams, settings)
        _train(run, config, networks, name, show)
        return {**networks.accuracies(), "lost": len(networks.learner.diverged)}

    found = _once(run, study, f"grid_{name}", make)
    if found["lost"]:
        study.note(f"lr: {config.lr:g}; {found['lost']} networks of {config.strategy[m]}, set {s}, diverged: nan")
    for i, (p, q) in enumerate(cells):
        for key in (*TESTS, "per_class"):
            study.arrays[f"accuracy_{key}"][m, p, q, s] = found[key][i * config.repeats : (i + 1) * config.repeats].cpu().numpy()


def _train(run: tracking.Run, config: Config, networks: SliceTraining, name: str, show: Callback) -> None:
    """Train a group to its end, from its last checkpoint on if there is one."""
    folder = run.folder / FOLDER
    saved = checkpoints.newest(folder)[0] if folder.exists() else None
    if saved is not None and saved.get("group") == name:
        with checkpoints.restoring(folder / checkpoints.LAST, saved.get("steps"), config.epochs):
            networks.learner.load(saved)
            networks.batches.load(saved["batches"])

    def write(state: TrainState) -> None:
        checkpoints.save(folder, checkpoints.LAST, {**networks.learner.state(), "batches": networks.batches.state(), "group": name})
        run.publish(f"{FOLDER}/{checkpoints.LAST}")

    watching = [callbacks.divergence(), show, callbacks.checkpoint(config.checkpoint_every, write)]
    fit(networks.learner, networks.batches, config.epochs, watching)


def _finish(run: tracking.Run, study: Study, found: Inversions, hard: Mapping[str, HardSamples]) -> None:
    """metrics.npz, tables and metrics."""
    arrays = study.arrays
    masks = np.stack([one.hard.numpy() for one in hard.values()], 1)  # [S, M, N]
    scores = np.stack([one.score.numpy() for one in hard.values()], 1)
    arrays |= agreement_arrays(masks, scores, study.labels.numpy(), study.split.num_classes)
    arrays |= {"class_names": np.array(study.split.class_names), "inversion_epoch": found.inversion_epoch.numpy()}
    arrays |= {name: value.numpy() for name, value in gallery(study.split.train, found, list(hard.values())).items()}
    run.write_arrays(ARRAYS, arrays)
    run.write_text("accuracy.csv", network_table(arrays).to_csv(index=False))
    run.write_text("summary.csv", summary_table(arrays).to_csv(index=False))
    run.write_text("classes.csv", class_table(arrays).to_csv(index=False))
    _log(run, study, masks)
    if study.config.noise_ratio:
        _log_detection(run, study, masks, scores)
    run.tag("hardbench.facts", "; ".join(study.facts)[:5000] or "none")


def _log(run: tracking.Run, study: Study, masks: Array) -> None:
    """Accuracies of the first train ratio against the percent (or a finer unit) remaining; hard shares, overlaps and stability."""
    config, arrays = study.config, study.arrays
    gap = arrays["accuracy_easy"] - arrays["accuracy_hard"]
    for m, name in enumerate(config.strategy):
        for q, step in enumerate(config.steps):
            values = {f"accuracy_{test}/{name}": independent(arrays[f"accuracy_{test}"][m, 0, q]) for test in TESTS}
            run.log(values | {f"accuracy_gap/{name}": independent(gap[m, 0, q])}, step)
        run.log({f"hard_fraction/{name}": masks[:, m].mean(1)})
        if len(masks) > 1:
            run.log({f"stability_z/{name}": float(arrays["stability"][m])})
        for other in range(m):
            run.log({f"jaccard/{config.strategy[other]}_{name}": arrays["jaccard"][:, other, m]})


def _log_detection(run: tracking.Run, study: Study, masks: Array, scores: Array) -> None:
    """How well every strategy finds the wrong labels: detection.csv, one row per strategy and set, and metrics."""
    import pandas

    noisy = (study.labels != study.split.train.clean).numpy()
    rows = []
    for m, name in enumerate(study.config.strategy):
        found = []
        for s in range(len(masks)):
            rng = np.random.default_rng(seeding.Seeds(study.config.seed).child("bootstrap", name, s).integer)
            found.append(detection(scores[s, m], masks[s, m], noisy, rng))
            rows.append({"strategy": name, "set": s, **found[-1]})
        for key in ("recall", "precision", "average_precision"):
            run.log({f"noise_{key}/{name}": np.array([one[key] for one in found])})
    run.log({"noise_base_rate": float(noisy.mean())})
    run.write_text("detection.csv", pandas.DataFrame(rows).to_csv(index=False))


def _report(stored: StoredRun) -> None:
    """Print the tables."""
    console.table("Accuracy on test samples", *summary_rows(stored.arrays))
    if stored.has("detection.csv"):
        import pandas

        names = ["recall", "precision", "average_precision", "base_rate"]
        found = pandas.read_csv(stored.file("detection.csv")).groupby("strategy", sort=False)[names].mean()
        shown = [[strategy, *(f"{value:.4f}" for value in row)] for strategy, row in found.iterrows()]
        console.table("Wrong labels found", ["strategy", *(name.replace("_", " ") for name in names)], shown)
    console.say("hard test samples are in-sample for the score that named them")
