"""Mask channels of one layer at a time and measure what the predictions still tell about the labels.

Question: how much does each layer's information hang on many channels? For every convolution (hidden unit layers of an mlp) sets of
channels of random size are kept, the others made constants; I(Y; prediction) over the test set, its loss per layer and class, and what
each channel adds. Expect early layers to lose more than late ones; VGG-11 with 20 sets takes a core about 10 s per 100 images. Networks:
Simonyan & Zisserman 2015 (arXiv:1409.1556); estimate for few samples: Grassberger 2003 (arXiv:physics/0307138).
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hardbench import console, tracking
from hardbench.artifacts import CHECKPOINTS, FORMER_COUNTS, MASKING, json_numbers, mask_information, masked_key, model_key
from hardbench.configs.mask_mi import Config
from hardbench.configs.train import Config as TrainConfig
from hardbench.data.samples import Samples, load
from hardbench.data.transforms import Standardise
from hardbench.errors import ConfigError, DataError, TrackingError
from hardbench.hardness_runs import pinned_hardness, read_hardness
from hardbench.lifecycle import Prepared, Stages, so_far
from hardbench.masking import masks as masking
from hardbench.masking.information import ESTIMATORS, PARTS, by_hardness, class_information, entropy, mask_arrays, per_repeat
from hardbench.masking.masks import ConfusionCounts, Masker
from hardbench.metrics.classification import overall_accuracy
from hardbench.metrics.hardness import mean_stderr
from hardbench.models.layers import Chain
from hardbench.registry import MODELS
from hardbench.seeding import Seeds
from hardbench.stored import SOURCE_RUN, StoredRun
from hardbench.trained import place, restore
from hardbench.training import checkpoints
from hardbench.training.setup import split_of

STUDY = "mask-mi"
FIGURES = None
VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")
SAVE_SECONDS = 10.0
BIASED = 0.2  # nats by which the plug-in estimate may be too high before it is told


@dataclass(frozen=True)
class Layer:
    """A layer whose channels are masked: its number among these, its place in a flat sequence of modules, its sets, what they cost."""

    number: int
    name: str
    module: str
    channels: int
    masks: Tensor  # bool [S, n]
    work: int  # multiplications of all sets for one image


@dataclass(frozen=True)
class TrainedRun:
    """One trained run under study: networks with their counts, the test images, layers by their position among the products."""

    stored: StoredRun
    model: str
    members: list[Chain]
    test: Samples
    standardise: Standardise
    class_names: tuple[str, ...]
    layers: dict[int, Layer]
    digest: str  # of the data
    part: Tensor | None  # [N], which of PARTS each image is in, where they are counted apart
    counts: list[ConfusionCounts]

    def inputs(self, first: int, stop: int) -> Tensor:
        """Standardised images."""
        return self.standardise(self.test.inputs[first:stop])

    def masker(self, config: Config, r: int) -> Masker:
        """Network r under the masks, its constants set."""
        masks = {at: layer.masks for at, layer in self.layers.items()}
        masker = Masker(self.members[r], self.test.shape, masks, config.precision, config.memory << 20)
        size = masker.batch_size(config.batch_size)
        masker.set_constants(config.mask_mode, lambda: (self.inputs(first, first + size) for first in range(0, len(self.test), size)))
        return masker


@dataclass(frozen=True, kw_only=True)
class PreparedMasking(Prepared):
    """The trained runs that are measured."""

    trained: tuple[TrainedRun, ...]
    other_data = TrackingError


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedMasking:
    """The trained runs that the settings name, or that the stored run was measuring: networks, test images, layers and masks."""
    if stored is not None:
        sources = [tracking.find(word, ["train"]) for word in stored.tags[SOURCE_RUN].split(",")]
    else:
        if config.hardness is not None:
            config = replace(config, hardness=pinned_hardness(config.hardness))
        sources = named_sources(config)
    trained = tuple(trained_run(config, source) for source in sources)
    models, images = ", ".join(run.model for run in trained), len(trained[0].test)
    note = f"{config.n_subsets} sets of channels per layer of {models}, {config.mask_mode}, {config.checkpoint} weights\n"
    note += f"information of {images} test images by {config.estimator}, runs {', '.join(source.id[:8] for source in sources)}"
    title = config.name or f"{models} {config.mask_mode}"
    device, dataset = trained[0].test.labels.device, str(sources[0].config["dataset"])
    digest, tags = ",".join(dict.fromkeys(run.digest for run in trained)), {SOURCE_RUN: ",".join(source.id for source in sources)}
    return PreparedMasking(config=config, title=title, note=note, device=device, dataset=dataset, digest=digest, tags=tags, trained=trained)


def compute(prepared: PreparedMasking, run: tracking.Run, stages: Stages) -> None:
    """Count the confusions of every network, layer and set, from the stored counts on; then store what follows from them."""
    config, sources = prepared.config, prepared.trained
    stages.only_to_resume(FORMER_COUNTS, f".{FORMER_COUNTS}.part")
    all_counts = {f"{m}_{r}_": counts for m, source in enumerate(sources) for r, counts in enumerate(source.counts)}
    saved = stages.newest({}, lambda: _former(run))
    if saved is not None:
        with checkpoints.restoring(run.folder / CHECKPOINTS, 0, 0):
            for start, counts in all_counts.items():
                counts.load({name.removeprefix(start): np.asarray(value) for name, value in saved.items() if name.startswith(start)})
    last = time.monotonic()
    for _ in _counted(run, config, sources):
        if time.monotonic() - last > SAVE_SECONDS:
            states = {start: counts.state() for start, counts in all_counts.items()}
            flat = {start + name: torch.from_numpy(value) for start, state in states.items() for name, value in state.items()}
            stages.save({"networks": [], **flat})
            last = time.monotonic()
    _store(run, config, sources)


def _former(run: tracking.Run) -> dict[str, Any] | None:
    """The counts of an unfinished run as versions before 0.2 kept them."""
    stored = so_far(run)
    return stored.archive(FORMER_COUNTS) if stored.has(FORMER_COUNTS) else None


def named_sources(config: Config) -> list[StoredRun]:
    """The trained runs: the one named, or the newest finished one of a model (or of each VGG) that kept its weights, sweep cells too."""
    if config.model is None:
        return [tracking.find(config.run or "last", ["train"])]
    wanted = VGGS if config.model == "all" else (MODELS[config.model].name,)
    newest: dict[str, StoredRun] = {}
    for run in tracking.runs("train", cells=True):
        model = run.params.get("model", "")
        if model in wanted and model not in newest and run.status == "FINISHED" and run.has(f"{CHECKPOINTS}/{config.checkpoint}.pt"):
            newest[model] = run
    if not newest:
        where = f"a finished run of {' or '.join(wanted)} with its weights, and there is none in {tracking.place()}"
        raise TrackingError(f"model: {config.model}; {where} (sweeps keep them with --keep-checkpoints)")
    return [newest[name] for name in wanted if name in newest]


def trained_run(config: Config, stored: StoredRun) -> TrainedRun:
    """All that measuring a run needs; raises before a run exists if anything does not fit."""
    trained = stored.settings(TrainConfig, place(config))
    split = split_of(trained, trained.seed)
    learner, standardise = restore(stored, trained, split, config.checkpoint)
    members = [learner.networks.member(r).to(learner.device).eval() for r in range(trained.repeats)]
    masking.check_sequential(members[0], trained.model)
    seeds = Seeds(config.seed).child("masks")
    blocks, masked = masking.folded_blocks(members[0], split.test.shape), masking.masked_layers(members[0])
    chosen = range(len(masked)) if "all" in config.layers else sorted(set(config.layers))
    if max(chosen) >= len(masked):
        raise ConfigError(f"layers: {max(chosen)}; from 0 to {len(masked) - 1} ({trained.model})")
    test = split.test
    if config.images != "all":
        if int(config.images) > len(test):
            raise ConfigError(f"images: {config.images}; at most the {len(test)} test images there are")
        order = torch.randperm(len(test), generator=seeds.child("images").generator())
        test = test.pick(order[: int(config.images)].sort().values)
    layers = {}
    for i in chosen:
        block = blocks[masked[i]]
        masks = masking.subsets(block.channels, config.n_subsets, seeds.child(i).generator())
        work = masking.mask_cost(blocks, masked[i]) * len(masks)
        layers[masked[i]] = Layer(i, block.name, block.module, block.channels, masks, work)
    device = learner.device
    part = None if config.hardness is None else _parts(config.hardness, trained, test).to(device)
    _warn_of_bias(config, split.num_classes, len(test), part)
    sets = {at: layer.masks for at, layer in layers.items()}
    counts = [ConfusionCounts(sets, split.num_classes, 1 if part is None else len(PARTS)) for _ in members]
    test, standardise = test.to(device), standardise.to(device)
    return TrainedRun(stored, trained.model, members, test, standardise, split.class_names, layers, split.digest, part, counts)


def _parts(hardness: str, trained: TrainConfig, test: Samples) -> Tensor:
    """For every test image the place of its part among PARTS, [N]; DataError if none of them is known to the run."""
    rows, hard = read_hardness(hardness).match(test, len(load(trained, trained.seed).train))
    if not len(rows):
        raise DataError(f"hardness: {hardness}; a run that knows test images (stragglers or invert on this data set)")
    return torch.zeros(len(test), dtype=torch.long).index_put((rows,), 1 + hard.long())


def _warn_of_bias(config: Config, classes: int, images: int, part: Tensor | None) -> None:
    """Says where the plug-in estimate may be far too high: many classes, few images, above all of a part of them."""
    counts = {"": images} | ({} if part is None else {f"{group} ": int((part == p).sum()) for p, group in enumerate(PARTS) if p})
    for group, count in counts.items():
        if config.estimator == "plugin" and count and (bias := (classes - 1) ** 2 / (2 * count)) > BIASED:
            excess = f"too high by up to {bias:.2f} nat for {count} {group}images of {classes} classes (grassberger corrects it)"
            console.warn(f"estimator: plugin; {excess}")


def _counted(run: tracking.Run, config: Config, sources: Sequence[TrainedRun]) -> Iterator[None]:
    """Fills the counts, showing how far it is."""
    costs = [sum(layer.work for layer in source.layers.values()) for source in sources]  # of an image
    total = sum(cost * len(source.test) * len(source.members) for cost, source in zip(costs, sources, strict=True))
    done = 0
    with console.progress(run.id[:8], max(total >> 20, 1)) as show:
        for cost, source in zip(costs, sources, strict=True):
            for r, counts in enumerate(source.counts):
                masker = source.masker(config, r)
                size = masker.batch_size(config.batch_size)
                for _ in masking.count_confusions(masker, source.inputs, source.test.labels, counts, size, source.part):
                    begun = min(size, len(source.test) - counts.images)
                    now = done + counts.images * cost + begun * sum(source.layers[at].work for at in counts.layers)
                    show(now >> 20, f"{source.model} images {counts.images}/{len(source.test)}")
                    yield
                done += len(source.test) * cost


def arrays_of(config: Config, source: TrainedRun) -> dict[str, np.ndarray]:
    """Everything that follows from the confusions of one trained run, [R, S, ...]; names end in the layer's number."""
    estimate = ESTIMATORS[config.estimator]
    labels = torch.bincount(source.test.labels.cpu(), minlength=len(source.class_names))
    whole = torch.stack([network.counts[-1].sum(0)[0] for network in source.counts])  # [R, K, K]
    layers = source.layers.values()
    arrays = {
        "layers": np.array([layer.number for layer in layers]),
        "layer_names": np.array([layer.name for layer in layers]),
        "n_channels": np.array([layer.channels for layer in layers]),
        "class_names": np.array(source.class_names),
        "label_entropy": entropy(labels).numpy(),
        "confusion_full": whole.numpy(),
        "mi_full": estimate(whole).numpy(),
        "accuracy_full": overall_accuracy(whole).numpy(),
        "class_information_full": class_information(whole).numpy(),
    }
    for p, group in enumerate(PARTS) if source.part is not None else ():
        for at, number in ((-1, None), *((at, layer.number) for at, layer in source.layers.items())):
            counts = torch.stack([network.counts[at][p][0 if at == -1 else slice(None)] for network in source.counts])
            arrays[masked_key(f"mi_{group}", number)] = estimate(counts).numpy()
            arrays[masked_key(f"accuracy_{group}", number)] = overall_accuracy(counts).numpy()
        arrays[f"images_{group}"] = source.counts[0].counts[-1][p].sum().numpy()
    for at, layer in source.layers.items():
        confusion = torch.stack([network.counts[at].sum(0) for network in source.counts])  # [R, S, K, K]
        seeds = Seeds(config.seed).child("masks", layer.number, "bootstrap")
        masked = mask_arrays(confusion, layer.masks, config.estimator, config.pairs, seeds.generator)
        arrays |= {masked_key(name, layer.number): value for name, value in masked.items()}
    return arrays


def summary(config: Config, source: TrainedRun, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One model's part of the JSON: the published structure and what this study adds. Means over repeats; per_repeat has each."""
    layers, full = [], float(arrays["mi_full"].mean())
    for layer in source.layers.values():
        masked = {name: arrays[masked_key(name, layer.number)] for name in ("mi", "kept", "class_information", "ci95", "accuracy")}
        mi, sets = masked["mi"], len(masked["kept"])
        lost = (arrays["class_information_full"][:, None] - masked["class_information"]).mean((0, 1))
        entry = {
            "layer_idx": layer.number,
            "layer_name": layer.name,
            "module": layer.module,
            "n_channels": layer.channels,
            "n_subsets": sets,
            "mean_mi": float(mi.mean()),
            "mean_mi_stderr": json_numbers(mean_stderr(mi.mean(1))[1]),
            "std_mi": float(mi.std(1).mean()),
            "i_full": full,
            "delta_mi": full - float(mi.mean()),
            "ci95": json_numbers(masked["ci95"]),
            "k": masked["kept"].tolist(),
            "mi": mi.mean(0).tolist(),
            "accuracy": masked["accuracy"].mean(0).tolist(),
            "class_information_loss": json_numbers(lost),
            "contribution_underdetermined": sets < 4 * layer.channels,
            **by_hardness(arrays, "mean_mi", layer.number),
        }
        layers.append(entry)
    return {
        "model_name": source.model,
        "checkpoint_path": str(source.stored.file(f"{CHECKPOINTS}/{config.checkpoint}.pt")),
        "source_run": source.stored.id,
        "n_subsets": config.n_subsets,
        "mask_mode": config.mask_mode,
        "estimator": config.estimator,
        "n_images": len(source.test),
        **{f"n_images_{group}": int(arrays[f"images_{group}"]) for group in PARTS[1:] if f"images_{group}" in arrays},
        "n_repeats": len(source.members),
        "i_full": full,
        **by_hardness(arrays, "i_full", None),
        "label_entropy": float(arrays["label_entropy"]),
        "layers": layers,
        "per_repeat": [per_repeat([layer.number for layer in source.layers.values()], arrays, r) for r in range(len(source.members))],
    }


def _store(run: tracking.Run, config: Config, sources: Sequence[TrainedRun]) -> None:
    """Arrays, JSON and metrics; the JSON of each trained run goes to that run, too."""
    by_model = {source.model: arrays_of(config, source) for source in sources}
    arrays = {model_key(name, model, len(sources)): value for model, part in by_model.items() for name, value in part.items()}
    run.write_arrays(MASKING, arrays | {"models": np.array(list(by_model))})
    results = {source.model: summary(config, source, by_model[source.model]) for source in sources}
    run.write_text(mask_information(config.checkpoint), json.dumps(results, indent=1))
    for source in sources:
        part, end = by_model[source.model], "" if len(sources) == 1 else f"_{source.model}"
        metrics = {f"mask_mi_full{end}": part["mi_full"]}
        for layer in source.layers.values():
            mean = part[masked_key("mi", layer.number)].mean(1)
            metrics |= {f"mask_mi{end}/{layer.number:02d}": mean, f"delta_mi{end}/{layer.number:02d}": part["mi_full"] - mean}
        run.log(metrics)
        with tracking.extend(source.stored) as trained:
            trained.write_text(mask_information(config.checkpoint), json.dumps({source.model: results[source.model]}, indent=1))


def report(stored: StoredRun) -> None:
    """Print a line per layer."""
    for model, part in json.loads(stored.file(mask_information(stored.config["checkpoint"])).read_text()).items():
        columns = ["layer", "name", "channels", "sets", "mean I", "std", "delta I", "95 %"]
        rows = []
        for layer in part["layers"]:
            numbers = [f"{layer[name]:.3f}" for name in ("mean_mi", "std_mi", "delta_mi")]
            bounds = "-" if None in layer["ci95"] else "{:.3f} to {:.3f}".format(*layer["ci95"])
            rows.append([layer["layer_idx"], layer["layer_name"], layer["n_channels"], layer["n_subsets"], *numbers, bounds])
        console.table(f"{model}: information of {part['n_images']} images / nats, {part['i_full']:.3f} without masks", columns, rows)
        if few := ", ".join(str(layer["layer_idx"]) for layer in part["layers"] if layer["contribution_underdetermined"]):
            console.say(f"contributions of channels in layers {few} rest on fewer than 4 sets per channel: an order, no more")
