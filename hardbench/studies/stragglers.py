"""Find hard samples by several scores and measure what removing hard or easy ones from training does.

Question: how does the balance of easy and hard samples within a class decide what a network gets right, and
which score finds the hard ones? Data and network are those of `invert --task classes`. Each of --sets straggler
sets counts the hard samples of every class; --repeats fresh networks per set, strategy, train ratio and share
remaining are tested on all, hard and easy samples. Which are hard is decided on all of them, so that hard test
samples are in-sample for the score that named them. Expect about .92 | .25 | .97 on MNIST with nothing removed.
Source: Pukowski & Lu 2024 (arXiv:2409.14401), sections 4 and 5.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from hardbench import console, machine, seeding, tracking
from hardbench.artifacts import ACCURACY, ARRAYS, CHECKPOINTS, CLASSES_TABLE, DETECTION, HARD_SAMPLES, LAST, PLANTED, SUMMARY, Array
from hardbench.configs.stragglers import Config
from hardbench.data.plant import TYPES, planted_arrays, planting, truth
from hardbench.data.samples import Split
from hardbench.errors import ConfigError, TrainingError
from hardbench.hard_samples import slices
from hardbench.hard_samples.cuts import HardEasyOrder, TrainSlice
from hardbench.hard_samples.detection import detection
from hardbench.hard_samples.identify import HardSamples, fresh_logits, gallery, identify, search_until_inverted, straggler_counts
from hardbench.hard_samples.slices import SliceLearner
from hardbench.hard_samples.tables import TESTS, agreement_arrays, class_table, independent, network_table, summary_rows, summary_table
from hardbench.inversion.pool import prepare_pool
from hardbench.inversion.search import Inversions, Search, TrainingData, estimate, find_inversions, training_settings
from hardbench.lifecycle import Prepared, Stages
from hardbench.settings import STRAGGLERS
from hardbench.stored import StoredRun
from hardbench.training import callbacks, checkpoints, memory
from hardbench.training.loop import Callback, TrainState, every, fit

STUDY = "stragglers"
FIGURES = None
NUMBERS = 2  # raised when the same settings give other numbers: finished cells of sweeps are then computed again


@dataclass(frozen=True, kw_only=True)
class PreparedStudy(Prepared):
    """The samples that the study is about, on the device."""

    split: Split
    data: TrainingData


@dataclass
class Work:
    """A study at work: what it is about, where it is stored, what it has found so far; arrays: see hard_samples/tables.py."""

    config: Config
    split: Split
    data: TrainingData  # the split's, on the device
    run: tracking.Run
    stages: Stages
    saved: dict[str, Any] | None  # the state of the group of networks that was under way
    facts: list[str] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)

    def note(self, fact: str) -> None:
        """Remember something a reader has to know, and say it once."""
        if fact not in self.facts:
            self.facts.append(fact)
            console.warn(fact)


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedStudy:
    """The samples on the device."""
    device = machine.take(config)
    split, standardise = prepare_pool(config, config.seed)
    if int(len(split.train) * (least := min(config.train_ratios))) == 0:
        raise ConfigError(f"train_ratios: {least:g}; more, as it leaves no training sample of {len(split.train)}")
    empty = [name for c, name in enumerate(split.class_names) if not (split.train.labels == c).any()]
    if empty:
        raise ConfigError(f"subset_size: {config.subset_size}; samples of every class, and there is none of {', '.join(empty)}")
    memory.check(estimate(config, split, config.precision), config, device, "sets")
    cells = len(config.train_ratios) * len(config.remaining_train_ratios)
    memory.check(slices.estimate(split, config.precision), config, device, "repeats", cells)
    dataset = config.dataset.rpartition("/")[2]
    note = f"Hard samples of {len(split.train)} from {dataset}{planting(config)} by {', '.join(config.strategy)}; "
    note += f"{config.sets} x {config.repeats} networks\nHard test samples are in-sample for the score that named them."
    title = config.name or f"{'+'.join(config.strategy)} {dataset} s{config.seed}"
    data = TrainingData(split.train.to(device), standardise.to(device), split.num_classes)
    return PreparedStudy(config=config, title=title, note=note, device=device, digest=split.digest, split=split, data=data)


def compute(prepared: PreparedStudy, run: tracking.Run, stages: Stages) -> None:
    """Search, scores, grid, results."""
    work = Work(prepared.config, prepared.split, prepared.data, run, stages, stages.newest({}))
    config, samples, classes = work.config, work.split.train, work.split.num_classes
    stages.only_to_resume(f"{CHECKPOINTS}/{LAST}")
    inversions = _stragglers(work)
    counts = straggler_counts(inversions, samples.labels, classes)
    logits = _scores(work, len(counts)) if set(config.strategy) - {STRAGGLERS} else None
    more = counts + int(config.noise_ratio * len(samples) / classes)
    hard = identify(config.strategy, inversions, logits, samples, more, config.level)
    _describe(work, inversions, counts, hard)
    _grid(work, hard)
    _store(work, inversions, hard)


def _showing(show: Callable[[int, str], None], text: str, before: int = 0) -> Callback:
    """Tells a progress bar how far a group is, at every tenth step."""
    return every(10, lambda state: show(before + state.step, text))


def _stragglers(work: Work) -> Inversions:
    """One network per set with its stragglers; a fact for every set that is missing, TrainingError if all are or one diverged."""
    config = work.config

    def draw_networks(repeats: Sequence[int]) -> Inversions:
        def make() -> dict[str, Any]:
            search = Search(work.data, config, repeats, config.seed, config.precision)
            with console.progress(f"{work.run.id[:8]} search", config.epochs) as show:
                return dict(vars(search_until_inverted(search, _showing(show, f"networks {repeats[0]} to {repeats[-1]}"))))

        return Inversions(**work.stages.once(f"search_{repeats[0]:03d}", make))

    inversions = find_inversions(config, range(config.sets), draw_networks)
    complete, drawn = len(inversions.repeats), 10 * config.sets
    if not complete:
        none = f"none of {drawn} networks has an inversion of every class in {config.epochs} epochs"
        raise TrainingError(f"if_no_inversion: retry; {none}")
    if any(not whole and not ended for whole, ended in zip(inversions.complete, inversions.logits.isfinite().all(2).all(1), strict=True)):
        raise TrainingError(f"lr: {config.lr:g}; a smaller one, as a network that is to find stragglers diverged")
    if complete < config.sets:
        work.note(f"sets: {config.sets}; {complete} complete ones among {drawn} networks, and these are used")
    return inversions


def _scores(work: Work, sets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [S, T, N, K] of one fresh network per set, and their steps [T]."""
    config = work.config

    def make() -> dict[str, Any]:
        streams = [seeding.Seeds(config.seed).child("score", s) for s in range(sets)]
        with console.progress(f"{work.run.id[:8]} scores", config.epochs) as show:
            settings = training_settings(config, config.precision)
            logits, steps = fresh_logits(work.data, settings, streams, _showing(show, f"{sets} networks"))
        return {"logits": logits, "steps": steps}

    state = work.stages.once("scores", make)
    if not state["logits"].isfinite().all():
        raise TrainingError(f"lr: {config.lr:g}; a smaller one, as a network that is to score samples diverged")
    return state["logits"], state["steps"]


def _describe(work: Work, inversions: Inversions, counts: torch.Tensor, hard: Mapping[str, HardSamples]) -> None:
    """hard_samples.npz, what is known of the sets, and facts about classes without hard samples."""
    config, samples = work.config, work.split.train
    parts = {"index": samples.index, "labels": samples.labels, "clean": samples.clean, "fingerprint": samples.fingerprints}
    parts |= {"networks": inversions.repeats, "counts": counts, "inversion_epoch": inversions.inversion_epoch}
    arrays: dict[str, Array] = {"strategies": np.array(config.strategy)} | {name: value.numpy() for name, value in parts.items()}
    arrays |= truth(samples)
    for name, chosen in hard.items():
        arrays |= {f"scores_{name}": chosen.score.float().numpy(), f"hard_{name}": chosen.hard.numpy()}
    work.run.write_arrays(HARD_SAMPLES, arrays)
    if planted := planted_arrays(work.split):
        work.run.write_arrays(PLANTED, planted)
    if lost := int(inversions.inversion_epoch.isnan().sum()):
        absent = f"{lost} of {inversions.inversion_epoch.numel()} class inversions were not found"
        work.note(f"if_no_inversion: {config.if_no_inversion}; {absent}")
    for name, chosen in hard.items():
        for s, mask in enumerate(chosen.hard):
            per_class = torch.bincount(samples.labels[mask], minlength=work.split.num_classes)
            if without := [work.split.class_names[c] for c in (per_class == 0).nonzero().flatten().tolist()]:
                work.note(f"strategy: {name}; no hard sample of class {', '.join(without)} in set {s}")


def _grid(work: Work, hard: Mapping[str, HardSamples]) -> None:
    """Train every network of the grid, one group per set and strategy, and fill in the arrays."""
    config = work.config
    sets = len(next(iter(hard.values())).hard)
    shape = (len(config.strategy), len(config.train_ratios), len(config.remaining_train_ratios), sets, config.repeats)
    arrays = {f"accuracy_{test}": np.full(shape, np.nan) for test in TESTS}
    arrays["accuracy_per_class"] = np.full((*shape, work.split.num_classes), np.nan)
    arrays["train_samples"], arrays["done"] = np.zeros(shape[:4], dtype=int), np.zeros((shape[0], sets), dtype=bool)
    repeats = np.arange(config.first_repeat, config.first_repeat + config.repeats)
    axes = {"strategies": np.array(config.strategy), "train_ratios": np.array(config.train_ratios), "repeats": repeats}
    work.arrays = arrays | axes | {"remaining": np.array(config.remaining_train_ratios, dtype=float), "sets": np.arange(sets)}
    groups = [(m, s) for s in range(sets) for m in range(shape[0])]
    with console.progress(f"{work.run.id[:8]} grid", len(groups) * config.epochs) as show:
        for done, (m, s) in enumerate(groups):
            order = HardEasyOrder.of(hard[config.strategy[m]].hard[s], seeding.Seeds(config.seed).child("data", "split", s))
            _group(work, order, m, s, _showing(show, f"{config.strategy[m]}, set {s}", done * config.epochs))
            arrays["done"][m, s] = True
            work.run.write_text(ACCURACY, network_table(work.arrays).to_csv(index=False))


def _group(work: Work, order: HardEasyOrder, m: int, s: int, show: Callback) -> None:
    """The networks of strategy m and set s, trained together; cells that nothing is left to train on stay nan and are a fact."""
    config, arrays, name = work.config, work.arrays, work.config.strategy[m]
    slices = {}
    for p, ratio in enumerate(config.train_ratios):
        for q, remaining in enumerate(config.remaining_train_ratios):
            part = order.train_slice(ratio, remaining, config.reduce_hard)
            arrays["train_samples"][m, p, q, s] = len(part)
            slices[p, q] = part
    cells = {cell: part for cell, part in slices.items() if len(part)}
    for p, q in slices.keys() - cells.keys():
        where = f"train ratio {config.train_ratios[p]:g}, remaining {config.remaining_train_ratios[q]:g}"
        work.note(f"remaining_train_ratios: no training sample is left of {name}, set {s}, at {where}: nan")
    lacking = {"hard": [part.hard_end == 0 for part in slices.values()]}
    lacking["easy"] = [part.easy_start == len(order.rows) for part in slices.values()]
    for group, lacks in lacking.items():
        if any(lacks):
            work.note(f"train_ratios: no {group} test sample of {name}, set {s}: its accuracy is nan")
    if not cells:
        return
    tested = work.stages.once(f"grid_{name}_{s}", lambda: _trained(work, order, list(cells.values()), name, s, show))
    if tested["lost"]:
        work.note(f"lr: {config.lr:g}; {tested['lost']} networks of {name}, set {s}, diverged: nan")
    for i, (p, q) in enumerate(cells):
        for key in (*TESTS, "per_class"):
            arrays[f"accuracy_{key}"][m, p, q, s] = tested[key][i * config.repeats : (i + 1) * config.repeats].cpu().numpy()


def _trained(work: Work, order: HardEasyOrder, slices: Sequence[TrainSlice], name: str, s: int, show: Callback) -> dict[str, Any]:
    """Accuracies of a group of networks at the end of their training, which goes on from its last checkpoint if there is one."""
    config, saved, group = work.config, work.saved, f"{name}_{s}"
    data = replace(work.data, train=work.data.train.pick(order.rows.to(work.data.train.labels.device)))
    streams = [seeding.Seeds(config.seed).child("set", s, "repeat", config.first_repeat + r) for r in range(config.repeats)]
    learner = SliceLearner(data, slices, streams, training_settings(config, config.precision))
    if saved is not None and saved.get("group") == group:
        with checkpoints.restoring(work.run.folder / CHECKPOINTS / LAST, saved.get("steps"), config.epochs):
            learner.load(saved)
            learner.batches.load(saved["batches"])

    def save(state: TrainState) -> None:
        work.stages.save({**learner.state(), "batches": learner.batches.state(), "group": group})

    fit(learner, learner.batches, config.epochs, [callbacks.divergence(), show, callbacks.checkpoint(config.checkpoint_every, save)])
    return {**learner.accuracies(), "lost": len(learner.diverged)}


def _store(work: Work, inversions: Inversions, hard: Mapping[str, HardSamples]) -> None:
    """metrics.npz, tables and metrics."""
    arrays, split = work.arrays, work.split
    masks = np.stack([chosen.hard.numpy() for chosen in hard.values()], 1)  # [S, M, N]
    scores = np.stack([chosen.score.numpy() for chosen in hard.values()], 1)
    arrays |= agreement_arrays(masks, scores, split.train.labels.numpy(), split.num_classes)
    arrays |= {"class_names": np.array(split.class_names), "inversion_epoch": inversions.inversion_epoch.numpy()}
    arrays |= {name: value.numpy() for name, value in gallery(split.train, inversions, list(hard.values())).items()}
    work.run.write_arrays(ARRAYS, arrays)
    for file, table in ((ACCURACY, network_table), (SUMMARY, summary_table), (CLASSES_TABLE, class_table)):
        work.run.write_text(file, table(arrays).to_csv(index=False))
    _log(work, masks)
    _store_detection(work, masks, scores)
    work.run.tag("hardbench.facts", "; ".join(work.facts)[:5000] or "none")


def _log(work: Work, masks: Array) -> None:
    """Accuracies of the first train ratio against the percent (or a finer unit) remaining; hard shares, overlaps and stability."""
    config, arrays = work.config, work.arrays
    gap = arrays["accuracy_easy"] - arrays["accuracy_hard"]
    for m, name in enumerate(config.strategy):
        for q, step in enumerate(config.steps):
            values = {f"accuracy_{test}/{name}": independent(arrays[f"accuracy_{test}"][m, 0, q]) for test in TESTS}
            work.run.log(values | {f"accuracy_gap/{name}": independent(gap[m, 0, q])}, step)
        work.run.log({f"hard_fraction/{name}": masks[:, m].mean(1)})
        if len(masks) > 1:
            work.run.log({f"stability_z/{name}": float(arrays["stability"][m])})
        for other in range(m):
            work.run.log({f"jaccard/{config.strategy[other]}_{name}": arrays["jaccard"][:, other, m]})


def _store_detection(work: Work, masks: Array, scores: Array) -> None:
    """detection.csv and metrics: how every strategy finds wrong labels of noise_ratio, or the samples planted with every type.

    Positives of a type are its samples, negatives those with nothing planted; samples of other types are left out.
    """
    import pandas

    train, config = work.split.train, work.config
    wrong, codes = (train.labels != train.clean).numpy(), train.planted.numpy()
    kinds = {"": (wrong, np.ones_like(wrong))} if config.noise_ratio else {}
    kinds |= {TYPES[code - 1]: (codes == code, (codes == code) | (codes == 0)) for code in np.unique(codes[codes > 0])}
    rows = []
    for kind, (positive, among) in kinds.items():
        for m, name in enumerate(config.strategy):
            seeds = [seeding.Seeds(config.seed).child("bootstrap", name, *filter(None, [kind]), s) for s in range(len(masks))]
            rngs = [np.random.default_rng(seed.integer) for seed in seeds]
            found = [detection(scores[s, m][among], masks[s, m][among], positive[among], rng) for s, rng in enumerate(rngs)]
            rows += [{"strategy": name, **({"type": kind} if kind else {}), "set": s, **numbers} for s, numbers in enumerate(found)]
            for key in ("recall", "precision", "average_precision"):
                work.run.log({f"{kind or 'noise'}_{key}/{name}": np.array([numbers[key] for numbers in found])})
        work.run.log({f"{kind or 'noise'}_base_rate": float(positive[among].mean())})
    if rows:
        work.run.write_text(DETECTION, pandas.DataFrame(rows).to_csv(index=False))


def report(stored: StoredRun) -> None:
    """Print the tables."""
    console.table("Accuracy on test samples", *summary_rows(stored.arrays))
    if stored.has(DETECTION):
        import pandas

        names = ["recall", "precision", "average_precision", "base_rate"]
        table = pandas.read_csv(stored.file(DETECTION))
        keys = [key for key in ("type", "strategy") if key in table]
        means = table.groupby(keys, sort=False)[names].mean().reset_index()
        shown = [[*row[: len(keys)], *(f"{value:.4f}" for value in row[len(keys) :])] for row in means.itertuples(index=False)]
        title = "Planted samples found" if "type" in keys else "Wrong labels found"
        console.table(title, [*keys, *(name.replace("_", " ") for name in names)], shown)
    console.say("hard test samples are in-sample for the score that named them")
