"""Searches one after the other in a run that can be interrupted, the paper's further experiments, and what is made of the results."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hardbench import machine
from hardbench.artifacts import Array
from hardbench.data.plant import truth
from hardbench.data.samples import Samples
from hardbench.inversion.agreement import class_shares, most_voted, overlap_z
from hardbench.inversion.radii import passed
from hardbench.inversion.search import Inversions, Search, TrainingData
from hardbench.metrics.hardness import mean_stderr, mean_text
from hardbench.seeding import Seeds
from hardbench.settings import InversionSettings
from hardbench.training import callbacks, checkpoints, evaluation
from hardbench.training.loop import TrainState

if TYPE_CHECKING:
    import pandas

GALLERY = 40  # hardest stragglers whose inputs are kept
Progress = Callable[[str, int], AbstractContextManager[Callable[[int, str], None]]]
"""Given the name of a search and its epochs, a function of the epoch and a text that shows how far it is."""


class Memory(Protocol):
    """The memory that a run has of its searches: parts that are done are not computed again; the one under way has its state there."""

    def once(self, name: str, make: Callable[[], dict[str, Any]], spare: bool = False) -> dict[str, Any]:
        """A part by its name, as it was stored or as it is made now."""

    def save(self, state: dict[str, Any]) -> None:
        """Keep the state of what is under way."""


@dataclass
class SearchSeries:
    """Named searches in a row, which a run that goes on does not make again; `saved` is the state to go on from."""

    data: TrainingData
    settings: InversionSettings
    seed: int
    precision: str
    seconds: float  # between two states that are kept
    memory: Memory
    progress: Progress
    saved: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.done: dict[str, Any] = dict((self.saved or {}).get("done", {}))  # checkpoints of older versions and of failed runs have it

    def search(
        self,
        name: str,
        repeats: Sequence[int],
        without: Tensor | None = None,
        looks: Iterable[int] = (),
        sink: callbacks.Sink | None = None,
        slim: bool = False,
    ) -> Inversions:
        """The result of a search, as stored where it has been made; `without` [R, N] are samples left out, per network.

        `slim` results have no logits.
        """

        def make() -> dict[str, Any]:
            if name in self.done:
                return dict(self.done[name])
            machine.trim()  # of what the search before has left
            weights = None if without is None else (~without).float().to(self.data.train.labels.device)
            search = Search(self.data, self.settings, repeats, self.seed, self.precision, weights, looks, sink)
            state = dict(vars(self._run(name, search)))
            return state | {"logits": torch.empty(len(repeats), 0, 0)} if slim else state

        self.done[name] = self.memory.once(name.replace(" ", "_"), make, spare=True)
        with checkpoints.restoring(f"of the search {name}", 0, 0):
            return Inversions(**self.done[name])

    def _run(self, name: str, search: Search) -> Inversions:
        if self.saved is not None and self.saved["name"] == name:
            with checkpoints.restoring(f"of the search {name}", self.saved.get("steps"), self.settings.epochs):
                search.load(self.saved)

        def save(state: TrainState) -> None:
            self.memory.save({**search.state(), "name": name, "standardise": self.data.standardise.constants()})

        with self.progress(name, self.settings.epochs) as show:
            return search.run([callbacks.progress(show), callbacks.checkpoint(self.seconds, save)])


def log_spaced(count: int, last: int, first: int = 0) -> list[int]:
    """At most `count` epochs up to `last`, evenly spaced in their logarithm, as whole numbers without repetition; 0 too if `first` is 0."""
    spaced = np.logspace(0, np.log10(last), count).round().astype(int).tolist()
    return sorted({*spaced, first, last})


def stability(inversions: Inversions, epochs: Sequence[int]) -> dict[str, Array]:
    """z-scores of the overlaps of misclassified sets: stability_epochs [E], stability_z [P, E] for the P pairs of networks,
    straggler_z [P] for their straggler sets, misclassified [R, E] (shares), stability_pairs [P, 2] (places in axis 0 of the other arrays).
    """
    rows = torch.isin(inversions.looks, torch.tensor(epochs)).nonzero().flatten()
    wrong = inversions.wrong[rows]
    alive = inversions.error[:, inversions.looks[rows]].isfinite()
    pairs = list(itertools.combinations(range(len(inversions.repeats)), 2))
    return {
        "stability_epochs": inversions.looks[rows].numpy(),
        "stability_z": overlap_z(wrong).T,
        "straggler_z": overlap_z(inversions.stragglers),
        "misclassified": torch.where(alive, wrong.double().mean(2).t(), torch.nan).numpy(),
        "stability_pairs": np.array(pairs).reshape(-1, 2),
    }


def prune_curve(
    series: SearchSeries, inversions: Inversions, epochs: Sequence[int], test: Samples, noise: Sequence[float]
) -> dict[str, Array]:
    """Networks from the same initial weights, trained without the samples that the first training had wrong at an epoch.

    prune_epochs [P], prune_removed [R, P] (shares), test_noise [S] (standard deviations, on standardised inputs), prune_error [R, S, P]
    (test error in [0, 1]) and prune_baseline [R, S] (of the networks trained on everything).
    """
    repeats = inversions.repeats.tolist()
    judge = Search(series.data, series.settings, repeats, series.seed, series.precision)
    errors, removed = [], []
    for epoch in epochs:
        wrong = inversions.wrong[inversions.looks.tolist().index(epoch)]
        pruned = series.search(f"without epoch {epoch}", repeats, wrong, slim=True)
        errors.append(errors_on(judge, pruned.final, test, noise))
        removed.append(wrong.double().mean(1))
    return {
        "prune_epochs": np.array(epochs),
        "prune_removed": torch.stack(removed, 1).numpy(),
        "test_noise": np.array(noise, dtype=float),
        "prune_error": torch.stack(errors, 2).numpy(),
        "prune_baseline": errors_on(judge, inversions.final, test, noise).numpy(),
    }


def errors_on(judge: Search, states: Sequence[dict[str, Tensor]], test: Samples, noise: Sequence[float]) -> Tensor:
    """Error [R, S] in [0, 1] of networks on test samples whose standardised inputs get Gaussian noise, the same for all, of S strengths.

    nan for a network that diverged.
    """
    judge.learner.networks.load_states(states)
    device = test.labels.device
    rows = []
    for strength in noise:
        generator = Seeds(judge.seed).child("test", "noise", f"{strength:g}").generator(device)
        wrong = torch.zeros(len(states), device=device)
        for inputs, labels in evaluation.batches(test, judge.data.standardise):
            if strength:
                inputs = inputs + strength * torch.randn(inputs.shape, generator=generator, device=device)
            logits = judge.learner.predict(inputs)
            wrong += torch.where(logits.isfinite().all(-1), logits.argmax(-1) != labels, torch.nan).sum(-1)
        rows.append((wrong / len(test)).cpu())
    return torch.stack(rows, 1)


def straggler_arrays(inversions: Inversions, train: Samples) -> dict[str, Array]:
    """stragglers.npz: stragglers [R, N], predicted [R, N], index [N] (position in the data set, train first), labels [N], clean_labels [N],
    fingerprint [N] (of the inputs), planted [N] with its plant_types, judged_epoch [R, K], and of the hardest: gallery [G] (places in N),
    gallery_inputs [G, ...] as they are in the data set.
    """
    rows = most_voted(inversions.stragglers, inversions.logits, train.labels, GALLERY)
    tensors = {"stragglers": inversions.stragglers, "predicted": inversions.predicted, "judged_epoch": inversions.judged}
    tensors |= {"index": train.index, "labels": train.labels, "clean_labels": train.clean, "fingerprint": train.fingerprints}
    tensors |= {"gallery": rows, "gallery_inputs": train.inputs[rows]}
    return {name: tensor.numpy() for name, tensor in tensors.items()} | truth(train)


def inversion_table(arrays: Mapping[str, Array]) -> "pandas.DataFrame":
    """One row per class and network: class, repeat, epoch of the inversion, radius and training error there (nan where there is none),
    then the class's name, its smallest radius over all epochs, the epoch it was judged at, the share of its samples that are stragglers,
    and whether the inversion is passed later, by a radius over 1 % smaller (missing where there is none).
    """
    import pandas

    epochs, names = arrays["inversion_epoch"], arrays["class_names"]
    shares = class_shares(arrays["stragglers"], arrays["labels"], arrays["judged_epoch"])
    later = passed(arrays["radii"], epochs)
    rows = []
    for c, name in enumerate(names):
        for place, repeat in enumerate(arrays["repeats"].tolist()):
            radii, at = arrays["radii"][place, :, c], epochs[place, c]
            inverted = bool(np.isfinite(at))
            radius, error = (radii[int(at)], arrays["error"][place, int(at)]) if inverted else (np.nan, np.nan)
            smallest = np.nanmin(radii) if np.isfinite(radii).any() else np.nan
            judged, passed_later = arrays["judged_epoch"][place, c], later[place, c] if inverted else None
            rows.append((c, repeat, at, radius, error, str(name), smallest, judged, shares[place, c], passed_later))
    columns = ("class", "repeat", "epoch", "radius", "error", "name", "smallest_radius", "judged_epoch", "straggler_share", "passed_later")
    return pandas.DataFrame(rows, columns=list(columns))


def class_rows(arrays: Mapping[str, Array]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table a person reads: means over the networks with their standard errors.

    Epoch and radius at the inversion are of the networks that have one, the smallest radius and the stragglers of all.
    """
    table = inversion_table(arrays)
    count = len(arrays["repeats"])
    rows = []
    for c, name in enumerate(arrays["class_names"]):
        networks = table[table["class"] == c]
        inverted = int(networks["epoch"].notna().sum())
        later = f"{networks['passed_later'].eq(True).sum()} of {inverted}" if inverted else "-"
        digits = {"epoch": 0, "radius": 3, "smallest_radius": 3, "straggler_share": 4}
        epoch, radius, smallest, share = (mean_text(*mean_stderr(networks[column]), places) for column, places in digits.items())
        rows.append([str(name), f"{inverted} of {count}", epoch, radius, smallest, later, share])
    return ["class", "inversions", "epoch", "radius there", "smallest radius", "passed later", "stragglers (share)"], rows
