"""The three questions about layers, drawn and answered from a run's numbers.

A change between two layers counts if its mean over networks, paired, is larger than its standard error times Student's factor for 95 %
(4.3 for three networks; at least 2). For one network, accuracies have the binomial error of their samples; its other metrics have no
error, and decide nothing. The figure says which of these applied.
"""

import itertools
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from hardbench.artifacts import Array
from hardbench.errors import ConfigError
from hardbench.figures import measures, style
from hardbench.figures.measures import PHASES, ends, with_error, wording
from hardbench.figures.runs import Kind, StoredRun, is_measured
from hardbench.metrics.hardness import mean_stderr

Values = Mapping[str, Array]  # metric -> [R, L] at the end
SAME = 0.95  # linear CKA from which on two layers count as the same


class Change(NamedTuple):
    """The change of a metric from one layer to a later one."""

    first: int
    last: int
    difference: float  # mean over repeats of last - first
    stderr: float  # nan where it is not known
    direction: int  # 1 up, -1 down, 0 where it does not exceed its error


def factor(count: int) -> float:
    """The number of standard errors that a difference has to exceed: Student's for 95 % and `count` networks, at least 2; 2 for one."""
    from scipy.special import stdtrit

    return max(2.0, float(stdtrit(count - 1, 0.975))) if count > 1 else 2.0


def paired(values: Array) -> Array:
    """The networks [r, L] of [R, L] that have numbers in the first and in the last layer that any has numbers in."""
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    return values[np.isfinite(values[:, known[[0, -1]]]).all(axis=1)] if len(known) else values[:0]


def change(values: Array, samples: int = 0) -> Change | None:
    """Paired change of [R, L] from the first to the last layer that has numbers; None if there are not two, in one network.

    With `samples`, values are shares of so many samples, whose binomial error counts where there is one network.
    """
    values = paired(values)
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    if len(known) < 2:
        return None
    first, last = int(known[0]), int(known[-1])
    mean, stderr = (float(part) for part in mean_stderr(values[:, last] - values[:, first]))
    if len(values) == 1:
        stderr = float(np.hypot(*errors(values, samples)[[first, last]]))
    exceeds = abs(mean) > factor(len(values)) * stderr  # never where the error is nan
    return Change(first, last, mean, stderr, int(np.sign(mean)) if exceeds else 0)


def errors(values: Array, samples: int = 0) -> Array:
    """Standard errors [L] of the means of [R, L]; of one network the binomial ones of shares of `samples` (nan for 0 samples)."""
    mean, stderr = mean_stderr(values)
    alone = np.isfinite(values).sum(axis=0) == 1
    return np.where(alone, np.sqrt(np.clip(mean * (1 - mean), 0, None) / (samples or np.nan)), stderr)


def _at(values: Array, layer: int, samples: int = 0) -> str:
    return f"{with_error(float(mean_stderr(values)[0][layer]), float(errors(values, samples)[layer]))} (layer {layer})"


def _by_one(values: Values, samples: int = 0) -> str:
    """The end of an answer that rests on one network: where its error comes from."""
    alone = max(np.isfinite(array).any(axis=1).sum() for array in values.values()) == 1
    return "" if not alone else f"; one network, error of {samples} samples" if samples else "; one network, so its error is unknown"


def _unseen(stderrs: Iterable[float]) -> str:
    """The answer where no difference exceeds its error."""
    return "Not decided" if np.isnan(list(stderrs)).all() else "No difference seen"


def predictive(values: Values, samples: int = 0) -> str:
    """Is probe accuracy (else anchor accuracy, else cross entropy) better in the last layer than in the first? In a sentence."""
    metric = next(iter(values))
    shares = 0 if metric.startswith("cross_entropy") else samples
    pairs, name = paired(values[metric]), wording(metric)[0]
    step = change(pairs, shares)
    if step is None:
        return "One layer: there is no later one."
    start, end = (_at(pairs, layer, shares) for layer in (step.first, step.last))
    better = step.direction * (-1 if metric.startswith("cross_entropy") else 1)
    verb = {1: "rises", -1: "falls"}.get(step.direction)
    gap = f"{name} {verb} from {start} to {end}" if verb else f"{name} is {start} and {end}, {_gap(step)} apart"
    head = {1: "Later layers are more predictive", 0: _unseen([step.stderr]), -1: "Later layers are less predictive"}[better]
    return f"{head}: {gap}{_by_one({metric: pairs}, shares)}."


def _gap(step: Change) -> str:
    return with_error(abs(step.difference) if step.direction else step.difference, step.stderr)


def compressing(values: Values, samples: int = 0) -> str:
    """Do mutual information, entropy and participation ratio fall from the first to the last layer? In a sentence."""
    changes = {metric: step for metric, array in values.items() if (step := change(array)) is not None}
    if not changes:
        return "One layer: there is no later one."
    falls, rises = (any(step.direction == sign for step in changes.values()) for sign in (-1, 1))
    heads = {(True, True): "compress by some measures, not by others", (True, False): "compress", (False, True): "do not compress"}
    parts = []
    for metric, step in changes.items():
        verb = {1: "rises", -1: "falls", 0: "changes"}[step.direction]
        text = f"{wording(metric)[0]} {verb} by {_gap(step)} {wording(metric)[1].partition(' / ')[2]}"
        parts.append(text + (f", {_unseen([step.stderr]).lower()}" if (falls or rises) and not step.direction else ""))
    span = f"from layer {min(step.first for step in changes.values())} to {max(step.last for step in changes.values())}"
    head = f"Layers {heads[falls, rises]}" if falls or rises else _unseen(step.stderr for step in changes.values())
    return f"{head}: {span} {'; '.join(parts)}{_by_one({metric: paired(values[metric]) for metric in changes})}."


def different(values: Values, samples: int = 0) -> str:
    """Is the linear CKA of each layer from 1 on with the one before it below .95, where 1 is the same but for a rotation? In a sentence.

    It rises or falls with depth if it does so from the first of these layers to the last and between no two neighbours the other way.
    """
    if "linear_cka" not in values:
        return "Not told: linear CKA was not measured."
    cka = values["linear_cka"].copy()
    cka[:, 0] = np.nan  # with the input
    layers = [int(layer) for layer in np.flatnonzero(np.isfinite(cka).any(axis=0))]
    if not layers:
        return "One layer: there is none before it but the input."
    mean = mean_stderr(cka)[0]
    stderr = errors(cka)
    upper = mean + stderr * [factor(count) for count in np.isfinite(cka).sum(axis=0)]
    alike = [str(layer) for layer in layers if not upper[layer] < SAME]
    head = "Each layer differs from the one before"
    if len(alike) == len(layers):
        head = _unseen(stderr[layers])
    elif alike:
        head = f"No difference seen of layer{'s' * (len(alike) > 1)} {', '.join(alike)} from the one before, all others differ"
    low, high = min(layers, key=mean.__getitem__), max(layers, key=mean.__getitem__)
    span = f"is {_at(cka, low)}" if low == high else f"lies between {_at(cka, low)} and {_at(cka, high)}"
    way = getattr(change(cka), "direction", 0)
    steps = [change(cka[:, [a, b]]) for a, b in itertools.pairwise(layers)]
    against = any(step is not None and step.direction == -way for step in steps)
    trend = "" if against else {1: " and rises with depth", -1: " and falls with depth"}.get(way, "")
    same = "" if np.isnan(stderr[layers]).all() else f", where {SAME} counts as the same"
    return f"{head}: linear CKA {span}{trend}{same}{_by_one({'': cka})}."


def threshold(networks: int, samples: int) -> str:
    """The size that a difference has to exceed to be told, in words."""
    if networks > 1:
        return f"differences are told beyond {factor(networks):.1f} standard errors ({networks} networks, paired, Student's 95 %)"
    of = f"{factor(1):.0f} binomial standard errors of the {samples} samples" if samples else "their error, which is unknown"
    return f"differences of accuracies are told beyond {of}, others not from one network"


QUESTIONS: tuple[tuple[Any, ...], ...] = (  # in words, the function that answers it, metrics: a row of the figure each
    ("Are later layers more predictive?", predictive, ("probe_accuracy",), ("accuracy",), ("cross_entropy",)),
    ("Do layers compress?", compressing, ("mutual_information",), ("gaussian_entropy",), ("participation_ratio",)),
    ("Is each layer different from the one before?", different, ("linear_cka", "ridge_r2"), ("alignment", "margin"), ("ace_regularizer",)),
)


def verdicts(run: StoredRun, phase: str) -> dict[str, str]:
    """The answer to each question; ConfigError if none of their metrics was measured."""
    answers = {}
    for question, answer, *rows in QUESTIONS:
        names = [name for row in rows for name in row]
        values = {name: ends(run, name, phase) for name in names if is_measured(run, measures.array_of(run, name, phase))}
        answers[question] = answer(values, _samples(run)) if values else f"Not measured: {', '.join(wording(name)[0] for name in names)}."
    if all(sentence.startswith("Not measured") for sentence in answers.values()):
        raise ConfigError(f"layer_metrics: none measured in {run.name} ({run.id[:8]}), {phase}")
    return answers


def _samples(run: StoredRun) -> int:
    """Samples that the layer metrics are of; 0 where a run did not store it."""
    return int(run.arrays.get("measured_samples", np.zeros(1)).max())


def _questions(run: StoredRun, phase: str, *metrics: str) -> Figure:
    """The three questions, each with its metrics by layer at the end and its answer in a sentence."""
    answers = {question: textwrap.wrap(sentence, 60) for question, sentence in verdicts(run, phase).items()}
    most = max(map(len, answers.values()))
    figure = Figure(figsize=(14.4, 7.6), dpi=150, layout="constrained")
    figure.set_label(f"{PHASES[phase]}; {threshold(measures.repeats_of(run), _samples(run))}")
    for part, (question, _, *rows) in zip(figure.subfigures(1, 3, squeeze=False)[0], QUESTIONS, strict=True):
        part.suptitle(question, fontsize=style.SMALL + 4, fontweight="bold")
        part.supxlabel("\n".join(answers[question] + [""] * (most - len(answers[question]))), fontsize=style.SMALL + 2, x=0.03, ha="left")
        drawn = [[name for name in row if is_measured(run, measures.array_of(run, name, phase))] for row in rows]
        _column(part, run, phase, [row for row in drawn if row])
    return figure


def _column(part: SubFigure, run: StoredRun, phase: str, rows: list[list[str]]) -> None:
    """A question's metrics, one axis per row of them; where a row has one metric, also permuted labels, as a band and in words."""
    axes: list[Axes] = list(part.subplots(len(rows), 1, squeeze=False, sharex=True).flat) if rows else []
    for axis, row in zip(axes, rows, strict=True):
        style.dress(axis)
        lines = [measures.profile(axis, ends(run, m, phase), wording(m)[0], **style.line_style(number)) for number, m in enumerate(row)]
        titles, view = [wording(metric)[2].replace("\n", "\n" if len(row) == 1 else " ") for metric in row], axis.get_ylim()
        if len(row) == 1 and (limits := measures.null_range(run, row[0], phase, end=True)) is not None:
            measures.grey_band(axis, np.arange(limits.shape[1]), *limits)
            low, high = (float(edge) for edge in mean_stderr(limits.T)[0])
            titles[0] += f"; permuted labels {with_error((low + high) / 2, (high - low) / 4)} (std)"
        axis.set_ylim(view)
        axis.set_title("\n".join(titles), fontsize=style.SMALL, loc="left")
        axis.set_xlabel("layer" if axis is axes[-1] else "")
        if len(row) > 1:
            style.label_ends(axis, lines)


KINDS: dict[str, Kind] = {"research_questions": measures.single("research_questions", _questions)}
