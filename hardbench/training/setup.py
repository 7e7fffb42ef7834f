"""A training from settings to records, without a store: one configuration, or several that train in one stack."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from hardbench import machine, seeding
from hardbench.config import options
from hardbench.data.batches import Batches, batch_length
from hardbench.data.plant import planted
from hardbench.data.pruning import Judge, rows_kept
from hardbench.data.samples import Samples, Split, make_labels_wrong, prepare
from hardbench.data.share import share_count, share_rows
from hardbench.data.transforms import Standardise, check_fits, standardise_for, unit_of
from hardbench.errors import ConfigError
from hardbench.metrics.overlap import class_sums, overlap
from hardbench.metrics.view import select
from hardbench.models.dropout import check_streams
from hardbench.models.gmlp import GreedyStack
from hardbench.registry import MODELS
from hardbench.rules import plant_shares
from hardbench.settings import DataSettings, TrainingSettings
from hardbench.training import callbacks, memory, reference
from hardbench.training.greedy import make_learner
from hardbench.training.layer_metrics import LayerMetrics, draw_samples
from hardbench.training.learners import Learner
from hardbench.training.loop import Callback, at, evaluation_steps, every

Prepare = Callable[[TrainingSettings, int], Split]
_loaded: dict[str, Split] = {}  # the last split of this process


def split_of(config: TrainingSettings, seed: int) -> Split:
    """The split that a training learns from and is tested on, with what is planted in its training samples."""
    return planted(prepare(config, seed), config, seed, reference.reference(config, seed))


def data_key(config: TrainingSettings) -> str:
    """A key of the samples before `noise_ratio` makes labels wrong: configurations with the same key share them."""
    unlike = ("corruption_p", "noise_ratio", "normalize", "mean", "std", "shift", "augment")
    values = {name: getattr(config, name) for name in options(DataSettings) if name not in unlike}
    if config.plant is not None and "mislabel_close" in plant_shares(config.plant):
        values |= {name: getattr(config, name) for name in reference.READS}
    drawn = (
        config.val_size or config.plant or config.dataset == "gaussian" or (config.subset_size != "all" and config.subset_from == "random")
    )
    return str(sorted(values.items())) + (f" seed {config.seed}" if drawn else "")


def remembered(config: TrainingSettings, seed: int) -> Split:
    """The split of `split_of`; it is kept, and given again to a next call that asks for the same data."""
    key = data_key(config)
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = split_of(config, seed)
    return _loaded[key]


@dataclass
class TrainSetup:
    """A training that is ready to start: everything a bad setting could spoil has been built.

    `members` are the configurations whose networks train together, one after the other along the repeats; `config` is the first.
    """

    config: TrainingSettings
    split: Split
    standardise: Standardise
    learner: Learner
    batches: Batches
    total: int
    layer_metrics: list[str]
    members: tuple[TrainingSettings, ...] = ()
    noisy: list[Split] = field(default_factory=list)  # the split of every member, with labels of its own
    available: int = 0  # training samples, of which `keep` takes a part
    groups: dict[tuple[str, str], Samples] = field(default_factory=dict)  # by phase and group: the samples metrics are split into
    _static: dict[int, dict[str, np.ndarray]] = field(default_factory=dict)

    def rows(self, place: int) -> slice:
        """The places of a member's networks among all."""
        first = sum(member.repeats for member in self.members[:place])
        return slice(first, first + self.members[place].repeats)

    def static(self, place: int) -> dict[str, np.ndarray]:
        """Overlaps of the inputs that a member learns from, computed once for all members that share them."""
        split = self.noisy[place]
        if id(split) not in self._static:
            self._static[id(split)] = static_overlaps(split, self.standardise)
        return self._static[id(split)]


def train_setup(config: TrainingSettings, *others: TrainingSettings, load: Prepare = split_of, judge: Judge | None = None) -> TrainSetup:
    """Data on the device, networks, learner and batches; raises before a run exists if anything does not fit.

    The others differ from the first in what a network of a stack may have of its own: repeats, seed, corruption_p, noise_ratio. `load`
    gives the split of a configuration: `split_of`, or `remembered` where configurations follow each other in one process. `judge` says
    which samples are easy and hard, where `keep` asks: all that follows knows only the samples kept, standardisation and digest too.
    """
    members = (config, *others)
    device = machine.take(config)
    # labels are made wrong here and not by `load`, whose samples members share
    noisy = [make_labels_wrong(load(replace(member, noise_ratio=0.0), member.seed), member.noise_ratio, member.seed) for member in members]
    available = len(noisy[0].train)
    if config.keep is not None:  # members of one stack keep the same samples
        kept = noisy[0].train.pick(rows_kept(config.keep, noisy[0].train, config.seed, judge))
        noisy = [replace(noisy[0], train=kept)] * len(members)
    split = noisy[0]
    for member in members:
        check_fits(member, split.train)
    count = share_count(config.train_share, len(split.train))
    rows = partial(_result_bytes, count, len(split.train) + len(split.test), split.num_classes)
    estimate = memory.Estimate(split.train.shape, split.num_classes, count, lambda training: training, rows=rows)
    memory.check(estimate, config, device, "repeats", others=sum(other.repeats for other in others))
    standardise = standardise_for(config, split.train)
    streams = [seeds for member in members for seeds in seeding.networks(member.seed, member.first_repeat, member.repeats)]
    networks = MODELS[config.model].call(split.train.shape, split.num_classes, config, streams).to(device)
    check_streams(networks.member(0), split.train.shape)
    train = split.train.to(device)
    corruption_p = [member.corruption_p for member in members for _ in range(member.repeats)]
    labels = None
    if any(member.noise_ratio for member in members) and others:
        rows_of_labels = [part.train.labels for part, member in zip(noisy, members, strict=True) for _ in range(member.repeats)]
        labels = torch.stack(rows_of_labels).to(device)
    own = share_rows(config.train_share, len(train), streams)
    own = None if own is None else own.to(device)
    batches = Batches(train, standardise.to(device), config.batch_size, streams, corruption_p, config.augment, labels, own)
    alone = batches.count % batches.size == 1 or batches.size == 1
    if alone and any(isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d) for module in networks.modules()):
        raise ConfigError(f"batch_size: {config.batch_size}; one that leaves no batch of a single sample, which batch norm cannot train on")
    total = config.epochs * batches.per_epoch
    metrics = select(config.layer_metrics, isinstance(networks, GreedyStack))
    if metrics and len(train) < 2:
        raise ConfigError(f"layer_metrics: {','.join(config.layer_metrics)}; none for a single training sample")
    return TrainSetup(config, split, standardise, make_learner(networks, config, total), batches, total, metrics, members, noisy, available)


def _result_bytes(samples: int, everything: int, classes: int, config: TrainingSettings, networks: int) -> int:
    """Bytes of what the evaluations of networks leave behind: three float64 arrays [R, T, K, K], and the rows they are made of.

    With recorded dynamics one point of them as well, of all the data there is; and the samples of each network where it has its own.
    """
    total = config.epochs * -(-samples // batch_length(config.batch_size, samples))
    points = len(evaluation_steps(config.eval_points, config.eval_steps, total))
    of_samples = 4 * everything * (classes + 2) if config.record_dynamics else 0
    own = 2 * 8 * samples if config.train_share < 1 else 0  # their rows, and those in this epoch's order
    return networks * (2 * 3 * 8 * points * classes**2 + of_samples + own)


def static_overlaps(split: Split, standardise: Standardise) -> dict[str, np.ndarray]:
    """Overlaps [K, K] of the class means of the standardised training inputs, uncentred and centred."""
    train, classes = split.train, split.num_classes
    sums = torch.zeros(classes, *train.shape, dtype=torch.float64)
    for inputs, labels in zip(train.inputs.split(4096), train.labels.split(4096), strict=True):
        sums += class_sums(inputs.flatten(1).double().unsqueeze(0), labels, classes).view_as(sums)
    counts = torch.bincount(train.labels, minlength=classes).double().view(-1, *(1,) * len(train.shape))
    unit = unit_of(train.inputs)
    shifted = [(part / unit - standardise.mean) / standardise.std + standardise.shift for part in (sums / counts, sums.sum(0) / len(train))]
    means, centre = shifted[0].flatten(1), shifted[1].flatten()
    return {"overlap_static": overlap(means).numpy(), "overlap_static_centred": overlap(means, centre).numpy()}


def measuring_callbacks(setup: TrainSetup, records: callbacks.Records, best: callbacks.Best, sink: callbacks.Sink) -> list[Callback]:
    """The callbacks that measure a setup and stop its networks: all but progress and checkpoints."""
    config, device = setup.config, setup.learner.device
    test, val = setup.split.test.to(device), None if setup.split.val is None else setup.split.val.to(device)
    steps = evaluation_steps(config.eval_points, config.eval_steps, setup.total)
    groups = {key: samples.to(device) for key, samples in setup.groups.items()}
    measuring: list[Callback] = [callbacks.divergence()]
    if has_target(config):
        measuring.append(partial(callbacks.target, config.target_accuracy, config.stop_at_target))
    measuring.append(every(config.log_every, partial(callbacks.curves, records, sink)))
    measuring.append(at(steps, partial(callbacks.evaluation, records, sink, best, test, val)))
    if setup.layer_metrics:
        measuring.append(at(steps, partial(callbacks.layers, records, sink, layer_metrics_of(setup, test, val or test))))
    if groups:
        measuring.append(at(steps, partial(callbacks.groups, records, sink, groups)))
    if val is not None:
        measuring.append(partial(callbacks.validation, best, val, frozenset(steps)))
    return measuring


def has_target(config: TrainingSettings) -> bool:
    """True if the training accuracy has a target: where the run is to stop by it, or the recipe (or the user) names one."""
    named = config.target_accuracy != options(TrainingSettings)["target_accuracy"].declared.default
    return config.stop_at_target or named or "target_accuracy" in MODELS[config.model].defaults


def layer_metrics_of(setup: TrainSetup, test: Samples, held_out: Samples) -> LayerMetrics:
    """The layer metrics of a run; `held_out` is the validation split, or the test set where there is none."""
    config, batches, classes = setup.config, setup.batches, setup.split.num_classes
    seeds = seeding.Seeds(config.seed).child("data", "layers")
    batch = batches.size if config.layer_estimator == "published" else 0
    phases, fitted = draw_samples(batches.train, held_out, test, seeds)
    return LayerMetrics(setup.layer_metrics, phases, fitted, batches.standardise, classes, seeds, config.null_repeats, batch)
