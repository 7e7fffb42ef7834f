"""The three questions about layers, drawn and answered from a run's numbers.

A change between two layers is clear if its paired mean over repeats exceeds its standard error by Student's factor for 95 % (4.3 for three
networks). One network has no standard error: its sign is told, and that it is one.
"""

import textwrap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from hardbench.errors import ConfigError
from hardbench.figures import measures, style
from hardbench.figures.measures import Array, Kind, ends, with_error, wording
from hardbench.figures.style import SMALL, FigureOptions, StoredRun, is_measured
from hardbench.metrics.hardness import mean_stderr

Values = Mapping[str, Array]  # metric -> [R, L] at the end
SAME = 0.95  # linear CKA from which on two layers count as the same


class Change(NamedTuple):
    """What happens to a metric from one layer to a later one."""

    first: int
    last: int
    difference: float  # mean over repeats of last - first
    stderr: float  # nan for one network
    direction: int  # 1 up, -1 down, 0 not to be told from none


def factor(count: int) -> float:
    """How many standard errors of `count` numbers make a 95 % interval; 0 for one, which has none."""
    from scipy.special import stdtrit

    return float(stdtrit(count - 1, 0.975)) if count > 1 else 0.0


def change(values: Array) -> Change | None:
    """Paired change of [R, L] from the first to the last layer that has numbers; None if there are not two."""
    known = np.flatnonzero(np.isfinite(values).any(axis=0))
    if len(known) < 2:
        return None
    pairs = values[:, known[-1]] - values[:, known[0]]
    mean, stderr = (float(part) for part in mean_stderr(pairs))
    clear = abs(mean) > factor(int(np.isfinite(pairs).sum())) * np.nan_to_num(stderr)
    return Change(int(known[0]), int(known[-1]), mean, stderr, int(np.sign(mean)) if clear else 0)


def _at(values: Array, layer: int) -> str:
    mean, stderr = mean_stderr(values[:, layer])
    return f"{with_error(float(mean), float(stderr))} (layer {layer})"


def _by_one(values: Values) -> str:
    """The reservation of one network."""
    alone = max(np.isfinite(each).any(axis=1).sum() for each in values.values()) == 1
    return "; one network, so its error is unknown" if alone else ""


def predictive(values: Values) -> str:
    """Whether probe accuracy (else anchor accuracy, else cross entropy) is better in the last layer than in the first."""
    metric = next(iter(values))
    found, name = change(values[metric]), wording(metric)[0]
    if found is None:
        return "One layer: there is no later one."
    start, end = (_at(values[metric], layer) for layer in (found.first, found.last))
    better = found.direction * (-1 if metric.startswith("cross_entropy") else 1)
    verb = {1: "rises", -1: "falls"}.get(found.direction)
    gap = f"{name} {verb} from {start} to {end}" if verb else f"{name} is {start} and {end}, {_gap(found)} apart"
    return f"Later layers are {({1: '', 0: 'not clearly ', -1: 'not '})[better]}more predictive: {gap}{_by_one(values)}."


def _gap(found: Change) -> str:
    return with_error(abs(found.difference) if found.direction else found.difference, found.stderr)


def compressing(values: Values) -> str:
    """Which of mutual information, entropy and participation ratio fall from the first to the last layer."""
    found = {metric: each for metric, values in values.items() if (each := change(values)) is not None}
    if not found:
        return "One layer: there is no later one."
    falls, rises = (any(each.direction == sign for each in found.values()) for sign in (-1, 1))
    heads = {(True, True): "compress by some measures, not by others", (True, False): "compress", (False, True): "do not compress"}
    verbs = {1: "rises by {} {}", -1: "falls by {} {}", 0: "changes by {} {}, not clearly"}
    parts = [f"{wording(m)[0]} {verbs[each.direction]}".format(_gap(each), wording(m)[1].partition(" / ")[2]) for m, each in found.items()]
    span = f"from layer {min(each.first for each in found.values())} to {max(each.last for each in found.values())}"
    return f"Layers {heads.get((falls, rises), 'do not clearly compress')}: {span} {'; '.join(parts)}{_by_one(values)}."


def different(values: Values) -> str:
    """Whether the linear CKA of each layer from 1 on with the one before it stays below .95, where 1 is the same but for a rotation."""
    if "linear_cka" not in values:
        return "Not told: linear CKA was not measured."
    cka = values["linear_cka"].copy()
    cka[:, 0] = np.nan  # with the input
    layers = [int(layer) for layer in np.flatnonzero(np.isfinite(cka).any(axis=0))]
    if not layers:
        return "One layer: there is none before it but the input."
    mean, stderr = mean_stderr(cka)
    upper = mean + np.nan_to_num(stderr) * [factor(count) for count in np.isfinite(cka).sum(axis=0)]
    alike = [str(layer) for layer in layers if not upper[layer] < SAME]
    head = "Each layer differs from the one before"
    if len(alike) == len(layers):
        head = "No layer clearly differs from the one before"
    elif alike:
        who = f"Layers {', '.join(alike)} do" if len(alike) > 1 else f"Layer {alike[0]} does"
        head = f"{who} not clearly differ from the one before, all others do"
    low, high = min(layers, key=mean.__getitem__), max(layers, key=mean.__getitem__)
    span = f"is {_at(cka, low)}" if low == high else f"lies between {_at(cka, low)} and {_at(cka, high)}"
    trend = {1: " and rises with depth", -1: " and falls with depth"}.get(getattr(change(cka), "direction", 0), "")
    return f"{head}: linear CKA {span}{trend}, where {SAME} counts as the same{_by_one({'': cka})}."


QUESTIONS = (
    ("Are later layers more predictive?", (("probe_accuracy",), ("accuracy",), ("cross_entropy",)), predictive),
    ("Do layers compress?", (("mutual_information",), ("gaussian_entropy",), ("participation_ratio",)), compressing),
    (
        "Is each layer different from the one before?",
        (("linear_cka", "ridge_r2"), ("alignment", "margin"), ("ace_regularizer",)),
        different,
    ),
)


def verdicts(run: StoredRun, phase: str) -> dict[str, str]:
    """The answer to each question; ConfigError if none of their metrics was measured."""
    found = {}
    for question, rows, answer in QUESTIONS:
        names = [name for row in rows for name in row]
        values = {name: ends(run, name, phase) for name in names if is_measured(run, measures.array_of(run, name, phase))}
        found[question] = answer(values) if values else f"Not measured: {', '.join(wording(name)[0] for name in names)}."
    if all(sentence.startswith("Not measured") for sentence in found.values()):
        raise ConfigError(f"layer_metrics: none measured in {run.name} ({run.id[:8]}), {phase}")
    return found


def _questions(run: StoredRun, phase: str, metrics: list[str], options: FigureOptions) -> Figure:
    """The three questions, each with its metrics by layer at the end and its answer in a sentence."""
    answers = {question: textwrap.wrap(sentence, 60) for question, sentence in verdicts(run, phase).items()}
    most = max(map(len, answers.values()))
    figure = Figure(figsize=(14.4, 7.6), dpi=150, layout="constrained")
    for part, (question, rows, _) in zip(figure.subfigures(1, 3, squeeze=False)[0], QUESTIONS, strict=True):
        part.suptitle(question, fontsize=SMALL + 4, fontweight="bold")
        part.supxlabel("\n".join(answers[question] + [""] * (most - len(answers[question]))), fontsize=SMALL + 2, x=0.03, ha="left")
        known = [[name for name in row if is_measured(run, measures.array_of(run, name, phase))] for row in rows]
        _column(part, run, phase, [row for row in known if row])
    return figure


def _column(part: SubFigure, run: StoredRun, phase: str, rows: list[list[str]]) -> None:
    """A question's metrics, one axis per row of them; permuted labels of one alone as a band where in view, and in words."""
    axes: list[Axes] = list(part.subplots(len(rows), 1, squeeze=False, sharex=True).flat) if rows else []
    for axis, row in zip(axes, rows, strict=True):
        style.dress(axis)
        lines = [measures.profile(axis, ends(run, m, phase), wording(m)[0], **style.look(number)) for number, m in enumerate(row)]
        titles, view = [wording(metric)[2].replace("\n", "\n" if len(row) == 1 else " ") for metric in row], axis.get_ylim()
        if len(row) == 1 and (limits := measures.null_range(run, row[0], phase, end=True)) is not None:
            measures.grey_band(axis, np.arange(limits.shape[1]), *limits)
            low, high = (float(edge) for edge in mean_stderr(limits.T)[0])
            titles[0] += f"; permuted labels {with_error((low + high) / 2, (high - low) / 4)} (std)"
        axis.set_ylim(view)
        axis.set_title("\n".join(titles), fontsize=SMALL, loc="left")
        axis.set_xlabel("layer" if axis is axes[-1] else "")
        if len(row) > 1:
            style.label_ends(axis, lines)


KINDS: dict[str, Kind] = {"research_questions": measures.single("research_questions", _questions)}
