"""The search for inversions and stragglers: networks are trained on one data set and the radii of their class manifolds recorded.

After Ciceri et al. 2024 (arXiv:2303.05161): the inversion of a class is the epoch at which its manifold stops shrinking, its stragglers
are the samples that the network misclassifies then.
"""

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hardbench import seeding
from hardbench.artifacts import Array
from hardbench.data.batches import Batches
from hardbench.data.samples import Samples, Split
from hardbench.data.transforms import Standardise
from hardbench.inversion.fullbatch import ForwardPass, FullBatch, predictions
from hardbench.inversion.radii import class_means, distances, inversion_epochs, lag, radii
from hardbench.models.stacked import Stacked
from hardbench.registry import MODELS
from hardbench.settings import InversionSettings, TrainingSettings
from hardbench.training import callbacks, memory
from hardbench.training.loop import Callback, TrainState, fit

State = dict[str, Tensor]
DETECT_EVERY = 10  # epochs from one run of the detector to the next


@dataclass(frozen=True)
class TrainingData:
    """The data of all networks of a search: samples and constants of standardisation on the device, the number of classes."""

    train: Samples
    standardise: Standardise
    num_classes: int

    def networks(self, settings: TrainingSettings, streams: Sequence[seeding.Seeds]) -> Stacked:
        """Newly initialised networks for the data, one per stream."""
        return MODELS[settings.model].call(self.train.shape, self.num_classes, settings, streams).to(self.train.labels.device)

    def batches(self, streams: Sequence[seeding.Seeds]) -> Batches:
        """The whole data set as the batch of every step, for one network per stream."""
        return Batches(self.train, self.standardise, "full", streams, [0.0] * len(streams))


@dataclass(frozen=True)
class Inversions:
    """Results of R networks of K classes on N samples, at T epochs from 0 (initialisation) to the last.

    repeats [R]: index of each network; radii [R, T, K]; distances [R, T, K, K]; error, loss [R, T]: of the samples trained on;
    inversion_epoch [R, K]: nan where there is none; judged [R, K]: epoch of the weights by which a class's stragglers were decided, nan
    where the class was left out; stragglers [R, N]; predicted [R, N]: class by those weights, -1 where left out; logits [R, N, K]: at
    the end; wrong [E, R, N]: the samples misclassified at the epochs looks [E] (none of a diverged network); weights: per network and
    class the state_dict at its inversion (empty: none); final: per network that of the end.
    """

    repeats: Tensor
    radii: Tensor
    distances: Tensor
    error: Tensor
    loss: Tensor
    inversion_epoch: Tensor
    judged: Tensor
    stragglers: Tensor
    predicted: Tensor
    logits: Tensor
    looks: Tensor
    wrong: Tensor
    weights: list[list[State]]
    final: list[State]

    @property
    def complete(self) -> list[bool]:
        """True for each network that has an inversion of every class."""
        return [bool(epochs.isfinite().all()) for epochs in self.inversion_epoch]

    @property
    def error_at_inversion(self) -> Tensor:
        """Training error at a class's inversion, mean over the classes that have one: [R] in [0, 1], nan where none has."""
        errors = self.error.gather(1, self.inversion_epoch.nan_to_num().long())
        return torch.where(self.inversion_epoch.isfinite(), errors, torch.nan).nanmean(1)

    def state(self) -> dict[str, Any]:
        """The fields as a checkpoint keeps them."""
        return dict(vars(self))


def first_complete(searches: Sequence[Inversions], count: int) -> Inversions:
    """The first `count` complete networks of several searches on the same samples, or all there are if fewer."""
    complete = [has_all for search in searches for has_all in search.complete]
    rows = torch.tensor(complete).nonzero().flatten()[:count]
    picked: dict[str, Any] = {"looks": searches[0].looks}
    for name in vars(searches[0]).keys() - picked.keys():
        values = [getattr(search, name) for search in searches]
        if isinstance(values[0], list):
            networks = list(itertools.chain(*values))
            picked[name] = [networks[r] for r in rows]
        else:
            axis = 1 if name == "wrong" else 0
            picked[name] = torch.cat(values, axis).index_select(axis, rows)
    return Inversions(**picked)


def training_settings(settings: InversionSettings, precision: str = "fp32") -> TrainingSettings:
    """Full-batch gradient descent of the study's MLP, as settings of `train`."""
    training = {"optimizer": "sgd", "lr": settings.lr, "batch_size": "full", "epochs": settings.epochs, "precision": precision}
    model = {"model": "mlp", "widths": settings.layers, "activation": settings.activation, "init": settings.init}
    return TrainingSettings(**training, **model)  # type: ignore[arg-type]


def estimate(settings: InversionSettings, split: Split, precision: str) -> memory.Estimate:
    """The estimated memory of a search."""
    classes, copies = split.num_classes, min(lag(settings) + DETECT_EVERY + 2, settings.epochs + 1)

    def rows(config: Any, networks: int) -> int:
        return 4 * (config.epochs + 1) * networks * (classes**2 + classes + 2)

    return memory.Estimate(split.train.shape, classes, len(split.train), lambda config: training_settings(config, precision), copies, rows)


class RadiusRecorder:
    """The callback that records radii, distances, errors and losses of every epoch, and the weights at inversions.

    Step t + 1 computes with the weights of epoch t, so that its forward pass gives the numbers of epoch t. The weights of recent epochs are
    kept for as long as the detector needs to confirm an inversion.
    """

    def __init__(
        self, data: TrainingData, settings: InversionSettings, learner: FullBatch, looks: Iterable[int], sink: callbacks.Sink | None
    ):
        self.data, self.settings, self.learner = data, settings, learner
        repeats, classes = learner.networks.repeats, data.num_classes
        self.looks = sorted({epoch for epoch in looks if epoch <= settings.epochs})
        self.sink = sink or (lambda values, step: None)
        self.onehot = one_hot(data.train.labels, classes).t().float().contiguous()
        shapes = {"radii": (classes,), "distances": (classes, classes), "error": (), "loss": ()}
        self.rows = {name: torch.full((settings.epochs + 1, repeats, *shape), torch.nan) for name, shape in shapes.items()}  # [T, R, ...]
        self.measured = 0  # epochs
        self.wrong: list[Tensor] = []
        self.recent: dict[int, State] = {}
        self.weights: list[list[State]] = [[{} for _ in range(classes)] for _ in range(repeats)]
        self.inversion_epoch = np.full((repeats, classes), np.nan)
        self.final_pass: ForwardPass | None = None

    def __call__(self, state: TrainState) -> None:
        """Record the epoch before this step, keep the weights after it; at the last step record these, too."""
        labels = self.data.train.labels.expand(self.learner.networks.repeats, -1)
        if state.step and self.learner.last_pass is not None:
            self._record(state.step - 1, self.learner.last_pass, state.scalars)
        oldest = self.recent.pop(state.step - lag(self.settings) - DETECT_EVERY - 2, None)
        now = self.learner.networks.state_dict()
        self.recent[state.step] = {name: tensor.clone() if oldest is None else oldest[name].copy_(tensor) for name, tensor in now.items()}
        if state.last:
            inputs, _ = state.batches.draw()
            self.final_pass = self.learner.forward_all(inputs)
            logits = self.final_pass.logits
            scalars = {"loss": self.learner.losses(logits, labels), "accuracy": self.learner.accuracy(logits, labels)}
            self._record(state.step, self.final_pass, scalars)
        if state.step % DETECT_EVERY == 0 or state.last:
            self._detect()

    def _record(self, epoch: int, forward: ForwardPass, scalars: Mapping[str, Tensor]) -> None:
        means, squares = class_means(forward.activations[self.settings.latent_layer], self.onehot, self.learner.weights)
        point = {"radii": radii(means, squares), "distances": distances(means), "error": 1 - scalars["accuracy"], "loss": scalars["loss"]}
        diverged = [r for r in self.learner.diverged if epoch > self.learner.measured_until(r)]
        for name, values in point.items():
            self.rows[name][epoch] = values.detach()
            self.rows[name][epoch, diverged] = torch.nan
        self.measured = epoch + 1
        if epoch in self.looks:
            self.wrong.append((predictions(forward.logits) != self.data.train.labels).cpu())
        self.sink({name: rows[epoch].numpy() for name, rows in self.rows.items()}, epoch)

    def _detect(self) -> None:
        """Run the detector on the epochs measured; keep the weights of new inversions."""
        epochs = inversion_epochs(self.rows["radii"][: self.measured].numpy(), self.settings)
        if new := np.argwhere(np.isfinite(epochs) & np.isnan(self.inversion_epoch)).tolist():
            networks = copy.deepcopy(self.learner.networks)
            for r, c in new:
                networks.load_state_dict(self.recent[int(epochs[r, c])])
                self.weights[r][c] = networks.member_state(r)
                self.inversion_epoch[r, c] = epochs[r, c]

    def state(self) -> dict[str, Any]:
        """All that a checkpoint keeps."""
        rows = {name: values[: self.measured].clone() for name, values in self.rows.items()}
        epochs = torch.from_numpy(self.inversion_epoch.copy())
        return {"rows": rows, "wrong": list(self.wrong), "recent": self.recent, "weights": self.weights, "epochs": epochs}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        for name, values in state["rows"].items():
            self.measured = len(values)
            self.rows[name][: self.measured] = values
        self.wrong, self.recent, self.weights = list(state["wrong"]), dict(state["recent"]), state["weights"]
        self.inversion_epoch = state["epochs"].numpy().copy()


class Search:
    """The training of R networks (repeats) with a RadiusRecorder; it can be interrupted and continued by `state` and `load`.

    `weights` [R, N], 0 or 1, say which samples each network learns from (None: all); `looks` are the epochs of `Inversions.wrong`.
    """

    def __init__(
        self,
        data: TrainingData,
        settings: InversionSettings,
        repeats: Sequence[int],
        seed: int = 0,
        precision: str = "fp32",
        weights: Tensor | None = None,
        looks: Iterable[int] = (),
        sink: callbacks.Sink | None = None,
    ):
        self.data, self.settings, self.repeats, self.seed = data, settings, list(repeats), seed
        streams = [seeding.Seeds(seed).child("repeat", r) for r in repeats]
        training = training_settings(settings, precision)
        self.learner = FullBatch(data.networks(training, streams), training, settings.epochs, weights)
        self.batches = data.batches(streams)
        self.recorder = RadiusRecorder(data, settings, self.learner, looks, sink)

    def run(self, more: Sequence[Callback] = ()) -> Inversions:
        """Train to the end; `more` callbacks are called after the recorder."""
        fit(self.learner, self.batches, self.settings.epochs, [callbacks.divergence(), self.recorder, *more])
        return self.result()

    def state(self) -> dict[str, Any]:
        """All that a checkpoint keeps."""
        return {**self.learner.state(), "batches": self.batches.state(), "watch": self.recorder.state(), "repeats": self.repeats}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a `state`."""
        self.learner.load(dict(state))
        self.batches.load(state["batches"])
        self.recorder.load(state["watch"])

    def result(self) -> Inversions:
        """The results, with the stragglers by the weights that the settings name."""
        recorder, learner = self.recorder, self.learner
        inputs, _ = self.batches.draw()
        final = learner.networks.states()
        logits = (recorder.final_pass or learner.forward_all(inputs)).logits
        end = np.full((len(final), 1), float(self.settings.epochs))
        end[sorted(learner.diverged)] = np.nan  # such weights decide nothing
        judged = judging_epochs(recorder.inversion_epoch, end, self.settings)
        predicted = torch.full((len(self.repeats), len(self.data.train)), -1)
        labels = self.data.train.labels.cpu()
        for c in range(self.data.num_classes):
            weights = [_weights_at(judged[r, c], recorder.inversion_epoch[r], recorder.weights[r], final[r]) for r in range(len(final))]
            learner.networks.load_states(weights)
            decided = (labels == c) & torch.from_numpy(np.isfinite(judged[:, c]))[:, None]
            predicted = torch.where(decided, predictions(learner.forward_all(inputs).logits).cpu(), predicted)
        learner.networks.load_states(final)
        stragglers = (predicted != labels) & (predicted >= 0)
        if learner.weights is not None:
            stragglers &= learner.weights.cpu().bool()
        rows = {name: values.transpose(0, 1).contiguous() for name, values in recorder.rows.items()}
        looks = torch.tensor(recorder.looks, dtype=torch.long)
        wrong = torch.zeros(len(looks), *predicted.shape, dtype=torch.bool)
        for row, mask in zip(wrong, recorder.wrong, strict=False):  # fewer where all networks diverged
            row.copy_(mask)
        wrong &= rows["error"][:, looks].isfinite().t().unsqueeze(2)
        return Inversions(
            torch.tensor(self.repeats), rows["radii"], rows["distances"], rows["error"], rows["loss"],
            torch.from_numpy(recorder.inversion_epoch), torch.from_numpy(judged), stragglers, predicted,
            logits.transpose(1, 2).float().cpu().clone(), looks, wrong, recorder.weights, final,
        )  # fmt: skip


def judging_epochs(epochs: Array, end: Array | float, settings: InversionSettings) -> Array:
    """Epoch [R, K] of the weights that decide the stragglers of each class, from the inversions [R, K] (nan: none).

    It is the class's own inversion, or with snapshot last that of the network's last class. For a class without inversion it is `end` (one
    epoch for all, or [R, 1]; nan for a diverged network), or, with if_no_inversion exclude, nan: the class is left out.
    """
    judged = np.where(np.isnan(epochs) & (settings.if_no_inversion != "exclude"), end, epochs)
    if settings.snapshot == "last":
        defined = np.isfinite(judged)
        judged = np.where(defined, np.where(defined, judged, -1).max(1, keepdims=True), np.nan)
    return judged


def _weights_at(epoch: float, epochs: Array, weights: Sequence[State], final: State) -> State:
    """A network's weights of an epoch at which one of its classes inverted; of any other epoch those of the end."""
    classes = np.flatnonzero(epochs == epoch)
    return weights[classes[0]] if len(classes) else final


def find_inversions(settings: InversionSettings, repeats: Sequence[int], train: Callable[[Sequence[int]], Inversions]) -> Inversions:
    """The inversions and stragglers of the networks of these repeat indices; `train` gives the result of a Search for some indices.

    With if_no_inversion retry, networks that miss a class are replaced by those of the next indices, as many as are missing at a time,
    until there are len(repeats) complete ones or ten times as many were drawn; only complete ones come back, in the order drawn.
    """
    searches = [train(list(repeats))]
    if settings.if_no_inversion != "retry":
        return searches[0]
    count, drawn = len(repeats), len(repeats)
    while drawn < 10 * count and (missing := count - sum(sum(search.complete) for search in searches)) > 0:
        following = 1 + max(int(search.repeats.max()) for search in searches)
        indices = range(following, following + min(missing, 10 * count - drawn))
        searches.append(train(indices))
        drawn += len(indices)
    return first_complete(searches, count)
