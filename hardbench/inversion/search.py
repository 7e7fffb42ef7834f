"""Networks trained on one pooled data set while the radii of their class manifolds are watched: inversions and stragglers.

Nothing here knows of tracking: `find_inversions` is all that another study needs, `Search` what a resumable run is made of.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hardbench import seeding
from hardbench.data.batches import Batches
from hardbench.data.samples import Samples, Split
from hardbench.data.transforms import Standardise
from hardbench.inversion.fullbatch import ForwardPass, FullBatch, predictions
from hardbench.inversion.radii import class_means, distances, inversion_epochs, lag, radii
from hardbench.registry import MODELS
from hardbench.settings import InversionSettings, TrainingSettings
from hardbench.training import callbacks, memory
from hardbench.training.loop import Callback, TrainState, fit

Array = np.ndarray[Any, Any]
State = dict[str, Tensor]
DETECT = 10  # epochs between two looks for inversions


@dataclass(frozen=True)
class Data:
    """What all networks of a search see: samples and constants on the device, the classes."""

    train: Samples
    standardise: Standardise
    num_classes: int


@dataclass(frozen=True)
class Inversions:
    """What R networks of K classes showed in T epochs (0, initialisation, to the last) on N samples.

    repeats [R]: index of each network; radii [R, T, K]; distances [R, T, K, K]; error, loss [R, T]: of the samples trained on;
    inversion_epoch [R, K]: nan where there is none; judged [R, K]: epoch of the weights that judged a class, nan where it was left out;
    stragglers [R, N]; predicted [R, N]: class by those weights, -1 where left out; logits [R, N, K]: at the end;
    looks [E], wrong [E, R, N]: which samples were misclassified at the epochs asked for (none of a diverged network);
    weights: per network, per class the state_dict at its inversion (empty: none); final: per network that of the end.
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
        """Which networks have an inversion of every class."""
        return [bool(row.isfinite().all()) for row in self.inversion_epoch]

    @property
    def error_at_inversion(self) -> Tensor:
        """Training error at a class's inversion, mean over the classes that have one: [R] in [0, 1], nan where none has."""
        found = self.inversion_epoch.isfinite()
        at = self.error.gather(1, self.inversion_epoch.nan_to_num().long())
        return torch.where(found, at, torch.nan).nanmean(1)

    def pick(self, rows: Sequence[int]) -> "Inversions":
        """The networks at the given places."""
        one = torch.tensor(list(rows), dtype=torch.long)
        picked = {name: value if name == "looks" else _picked(value, rows, one, name) for name, value in self.state().items()}
        return Inversions(**picked)

    def state(self) -> dict[str, Any]:
        """The fields as a checkpoint keeps them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def _picked(value: Any, rows: Sequence[int], index: Tensor, name: str) -> Any:
    if isinstance(value, list):
        return [value[r] for r in rows]
    return value.index_select(1 if name == "wrong" else 0, index)


def together(parts: Sequence[Inversions]) -> Inversions:
    """The networks of several searches on the same samples as one."""
    states = [part.state() for part in parts]
    found: dict[str, Any] = {}
    for name, first in states[0].items():
        columns = [state[name] for state in states]
        if isinstance(first, list):
            found[name] = [row for column in columns for row in column]
        else:
            found[name] = first if name == "looks" else torch.cat(columns, 1 if name == "wrong" else 0)
    return Inversions(**found)


def training_settings(settings: InversionSettings, precision: str = "fp32") -> TrainingSettings:
    """Full-batch gradient descent of the study's perceptron, in the words of `train`."""
    training = {"optimizer": "sgd", "lr": settings.lr, "batch_size": "full", "epochs": settings.epochs, "precision": precision}
    model = {"model": "mlp", "widths": settings.layers, "activation": settings.activation, "init": settings.init}
    return TrainingSettings(**training, **model)  # type: ignore[arg-type]


def estimate(settings: InversionSettings, split: Split, precision: str) -> memory.Estimate:
    """What a search takes of a machine."""
    classes, copies = split.num_classes, min(lag(settings) + DETECT + 2, settings.epochs + 1)

    def rows(config: Any, networks: int) -> int:
        return 4 * (config.epochs + 1) * networks * (classes**2 + classes + 2)

    return memory.Estimate(split.train.shape, classes, len(split.train), lambda one: training_settings(one, precision), copies, rows)


class Watch:
    """The callback that measures. The weights of epoch t are what step t + 1 computes with: radii and errors come from its forward pass.

    Weights are remembered for as long as a detector needs to know that an inversion was one.
    """

    def __init__(
        self, data: Data, settings: InversionSettings, learner: FullBatch, looks: Iterable[int] = (), sink: callbacks.Sink | None = None
    ):
        self.data, self.settings, self.learner = data, settings, learner
        self.looks = sorted({look for look in looks if look <= settings.epochs})
        self.sink = sink or (lambda values, step: None)
        self.onehot = one_hot(data.train.labels, data.num_classes).t().float().contiguous()
        self.rows: dict[str, Tensor] = {}  # [T, R, ...], made once: small tensors kept from every epoch would tear the heap apart
        self.known = 0  # epochs measured
        self.wrong: list[Tensor] = []
        self.recent: dict[int, State] = {}
        self.weights: list[list[State]] = [[{} for _ in range(data.num_classes)] for _ in range(learner.networks.repeats)]
        self.epochs = np.full((learner.networks.repeats, data.num_classes), np.nan)
        self.end: ForwardPass | None = None

    def __call__(self, state: TrainState) -> None:
        """Take what the last step saw, remember the weights it made; at the end look once more."""
        labels = self.data.train.labels.expand(self.learner.networks.repeats, -1)
        if state.step and self.learner.seen is not None:
            self._take(state.step - 1, self.learner.seen, state.scalars, state)
        oldest = self.recent.pop(state.step - lag(self.settings) - DETECT - 2, None)
        now = self.learner.networks.state_dict()
        self.recent[state.step] = {name: tensor.clone() if oldest is None else oldest[name].copy_(tensor) for name, tensor in now.items()}
        if state.last:
            inputs, _ = state.batches.draw()
            self.end = self.learner.forward_all(inputs)
            scalars = {"loss": self.learner.losses(self.end.logits, labels), "accuracy": self.learner.accuracy(self.end.logits, labels)}
            self._take(state.step, self.end, scalars, state)
        if state.step % DETECT == 0 or state.last:
            self._detect()

    def _take(self, epoch: int, seen: ForwardPass, scalars: Mapping[str, Tensor], state: TrainState) -> None:
        means, squares = class_means(seen.activations[self.settings.latent_layer], self.onehot, self.learner.weights)
        found = {"radii": radii(means, squares), "distances": distances(means), "error": 1 - scalars["accuracy"], "loss": scalars["loss"]}
        gone = [r for r in self.learner.diverged if epoch > self.learner.measured_until(r)]
        for name, values in found.items():
            if name not in self.rows:
                self.rows[name] = torch.full((self.settings.epochs + 1, *values.shape), torch.nan)
            self.rows[name][epoch] = values.detach()
            self.rows[name][epoch, gone] = torch.nan
        self.known = epoch + 1
        if epoch in self.looks:
            self.wrong.append((predictions(seen.logits) != self.data.train.labels).cpu())
        self.sink({name: rows[epoch].numpy() for name, rows in self.rows.items()}, epoch)

    def _detect(self) -> None:
        """Look for inversions in what is known; keep the weights of new ones."""
        if not self.known:
            return
        found = inversion_epochs(self.rows["radii"][: self.known].numpy(), self.settings)
        stored = copy.deepcopy(self.learner.networks) if (np.isfinite(found) & np.isnan(self.epochs)).any() else None
        for r, c in np.argwhere(np.isfinite(found) & np.isnan(self.epochs)).tolist():
            assert stored is not None
            stored.load_state_dict(self.recent[int(found[r, c])])
            self.weights[r][c] = stored.member_state(r)
            self.epochs[r, c] = found[r, c]

    def state(self) -> dict[str, Any]:
        """The arrays so far, as a checkpoint keeps them."""
        rows = {name: found[: self.known].clone() for name, found in self.rows.items()}
        parts = {"recent": self.recent, "weights": self.weights, "epochs": torch.from_numpy(self.epochs.copy())}
        return {"rows": rows, "wrong": list(self.wrong), **parts}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        for name, found in state["rows"].items():
            self.known = len(found)
            self.rows[name] = torch.full((self.settings.epochs + 1, *found.shape[1:]), torch.nan)
            self.rows[name][: self.known] = found
        self.wrong, self.recent, self.weights = list(state["wrong"]), dict(state["recent"]), state["weights"]
        self.epochs = state["epochs"].numpy().copy()


class Search:
    """R networks on their way to their inversions: what to train with, what has been measured, what a checkpoint keeps."""

    def __init__(
        self,
        data: Data,
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
        networks = MODELS["mlp"].call(data.train.shape, data.num_classes, training, streams).to(data.train.labels.device)
        self.learner = FullBatch(networks, training, settings.epochs, weights)
        self.batches = Batches(data.train, data.standardise, "full", streams, [0.0] * len(streams))
        self.watch = Watch(data, settings, self.learner, looks, sink)

    def run(self, watching: Sequence[Callback] = ()) -> Inversions:
        """Train to the end; further callbacks come after the one that measures."""
        fit(self.learner, self.batches, self.settings.epochs, [callbacks.divergence(), self.watch, *watching])
        return self.result()

    def state(self) -> dict[str, Any]:
        """All that going on needs."""
        return {**self.learner.state(), "batches": self.batches.state(), "watch": self.watch.state(), "repeats": self.repeats}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.learner.load(dict(state))
        self.batches.load(state["batches"])
        self.watch.load(state["watch"])

    def result(self) -> Inversions:
        """What was found, with the stragglers by the weights that the settings name."""
        watch, learner = self.watch, self.learner
        inputs, _ = self.batches.draw()
        final = learner.networks.states()
        logits = (watch.end or learner.forward_all(inputs)).logits
        end = np.full((len(final), 1), float(self.settings.epochs))
        end[sorted(learner.diverged)] = np.nan  # weights that judge nothing
        judged = judging_epochs(watch.epochs, end, self.settings)
        predicted = torch.full((len(self.repeats), len(self.data.train)), -1)
        before, found = None, None
        for c in range(self.data.num_classes):
            chosen = [_weights_at(judged[r, c], watch.epochs[r], watch.weights[r], final[r]) for r in range(len(final))]
            if before is None or any(one is not other for one, other in zip(chosen, before, strict=True)):
                learner.networks.load_states(chosen)
                before, found = chosen, predictions(learner.forward_all(inputs).logits).cpu()
            assert found is not None
            take = (self.data.train.labels.cpu() == c) & torch.from_numpy(np.isfinite(judged[:, c]))[:, None]
            predicted = torch.where(take, found, predicted)
        learner.networks.load_states(final)
        stragglers = (predicted != self.data.train.labels.cpu()) & (predicted >= 0)
        if learner.weights is not None:
            stragglers &= learner.weights.cpu().bool()
        rows = {name: found.transpose(0, 1).contiguous() for name, found in watch.rows.items()}
        looks = torch.tensor(watch.looks, dtype=torch.long)
        wrong = torch.zeros(len(looks), *predicted.shape, dtype=torch.bool)
        for row, there in zip(wrong, watch.wrong, strict=False):  # fewer where all networks diverged
            row.copy_(there)
        wrong &= rows["error"][:, looks].isfinite().t().unsqueeze(2)
        return Inversions(
            torch.tensor(self.repeats), rows["radii"], rows["distances"], rows["error"], rows["loss"], torch.from_numpy(watch.epochs),
            torch.from_numpy(judged), stragglers, predicted, logits.transpose(1, 2).float().cpu().clone(), looks, wrong,
            watch.weights, final,
        )  # fmt: skip


def judging_epochs(epochs: Array, end: Array | float, settings: InversionSettings) -> Array:
    """Epoch [R, K] of the weights that judge each class, from its inversion [R, K] (nan: none): its own, or the last class's.

    A class without inversion is judged at the end (the same for all, or [R, 1]; nan for a diverged network, which leaves it out), or
    (if_no_inversion exclude) not at all: nan.
    """
    judged = np.where(np.isnan(epochs) & (settings.if_no_inversion != "exclude"), end, epochs)
    if settings.snapshot == "last":
        known = np.isfinite(judged)
        judged = np.where(known, np.where(known, judged, -1).max(1, keepdims=True), np.nan)
    return judged


def _weights_at(epoch: float, epochs: Array, weights: Sequence[State], final: State) -> State:
    """A network's weights of an epoch at which one of its classes inverted; else those of the end."""
    places = np.flatnonzero(epochs == epoch)
    return weights[places[0]] if len(places) else final


def find_inversions(
    data: Data,
    settings: InversionSettings,
    repeats: Sequence[int],
    train: Callable[[Sequence[int]], Inversions] | None = None,
    **options: Any,
) -> Inversions:
    """Train the networks of these repeat indices together and find their inversions and stragglers.

    With if_no_inversion retry, networks that miss a class are replaced by those of the next indices, as many as are missing at a time,
    until there are len(repeats) complete ones or ten times as many were drawn; only complete ones come back, in the order drawn.
    `options` are those of Search (seed, precision, weights, looks); `train` does the training in its place (a resumable study's way).
    """
    train = train or (lambda indices: Search(data, settings, indices, **options).run())
    parts = [train(list(repeats))]
    if settings.if_no_inversion != "retry":
        return parts[0]
    return retried(parts, len(repeats), train)


def retried(parts: list[Inversions], count: int, train: Callable[[Sequence[int]], Inversions]) -> Inversions:
    """The first `count` complete networks, with further ones trained while there are fewer; what there is after 10 x count were drawn."""
    parts = list(parts)
    while (missing := count - sum(sum(part.complete) for part in parts)) > 0:
        drawn = sum(len(part.repeats) for part in parts)
        if drawn >= 10 * count:
            break
        following = 1 + max(int(part.repeats.max()) for part in parts)
        parts.append(train(range(following, following + min(missing, 10 * count - drawn))))
    whole = together(parts)
    return whole.pick([r for r, full in enumerate(whole.complete) if full][:count])
