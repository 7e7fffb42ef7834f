"""Score every sample's hardness by all that a recording allows, and judge the scores on hardness that was planted.

Question: which score finds which kind of hard sample, how stable is it, and do scores agree? Reads runs of `train --record-dynamics`
(with `--plant TYPE:SHARE,...` for a judgement), beside them runs of `invert` or `stragglers` on the same samples, or a recording
from elsewhere. Positives are the samples planted with one type, negatives the clean ones: a random order has the base rate as
average precision, and a score that sorts the wrong way round is below it. Runs on five data sets or more are compared by mean ranks
(Demsar 2006, JMLR 7). 60 000 samples x 20 points x 5 networks take some 20 s, prediction_depth aside.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hardbench import console, files, machine, score_runs, tracking
from hardbench.artifacts import AGREEMENT, CLASSES_TABLE, DETECTION, INFLUENCE, SAMPLE_SCORES, SCORED, Array
from hardbench.configs.score import Config
from hardbench.errors import ConfigError, HardbenchError
from hardbench.hard_samples import exports, judged, outside, scoring
from hardbench.hard_samples.comparison import BLOCKS, blocks, friedman_arrays
from hardbench.hard_samples.influence import gallery as influence_gallery, influence
from hardbench.hard_samples.score_tables import agreement_table, class_table, detection_table, result_rows, sample_table, sentences
from hardbench.hard_samples.subjects import ONLY_NAMED, Subject
from hardbench.lifecycle import Prepared, Stages
from hardbench.metrics.hardness import mean_stderr
from hardbench.score_runs import Networks
from hardbench.seeding import Seeds
from hardbench.settings import STRAGGLERS
from hardbench.stored import SOURCE_RUN, StoredRun

STUDY = "score"
PARQUET = "scores.parquet"
FIGURES = None
HEADLINES = ("mean_loss", "aum", "data_maps_confidence", "el2n", STRAGGLERS, "wrong_at_end")  # scores whose numbers are metrics


@dataclass(frozen=True, kw_only=True)
class Part:
    """One subject of a study, the scores that it gets, and where its inputs and networks are (None for a recording from elsewhere)."""

    subject: Subject
    names: list[str]
    missing: Mapping[str, str]
    networks: Networks | None


@dataclass(frozen=True, kw_only=True)
class PreparedScores(Prepared):
    """The subjects, the first of which has its files in the run's own folder."""

    parts: list[Part]


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedScores:
    """Recordings, straggler sets joined to them, and a score from elsewhere."""
    device = machine.take(config)
    exports.check_formats(config.format)
    runs: list[StoredRun] = []
    if config.recording is None:
        runs = score_runs.find(stored.tags[SOURCE_RUN].split(",") if stored is not None else config.runs or ("last",))
    sources = _of_runs(config, runs) if runs else [(_of_file(config), None)]
    if config.scores_from is not None:
        _add_outside(config, [subject for subject, _ in sources])
    parts = []
    for subject, networks in sources:
        activations = networks.activations if networks is not None and set(ONLY_NAMED) & set(config.score) else None
        names, missing = subject.choose(config.score, activations)
        if networks is not None and set(ONLY_NAMED) & set(names):
            networks.check()
        if not names:
            raise ConfigError(f"score: {','.join(config.score)}; one that {subject.name} allows")
        parts.append(Part(subject=subject, names=names, missing=missing, networks=networks))
    datasets = blocks([subject.dataset for subject, _ in sources])
    samples = sum(len(subject) for subject, _ in sources)
    note = (
        f"{len(parts[0].names)} scores of {samples} samples of {', '.join(datasets)}\nrecordings: {', '.join(s.name for s, _ in sources)}"
    )
    title = config.name or f"{len(parts[0].names)} scores {datasets[0].rpartition('/')[2]}"
    tags = {SOURCE_RUN: ",".join(run.id for run in runs)} if runs else {}
    digest = _digest([subject for subject, _ in sources])
    return PreparedScores(config=config, title=title, note=note, device=device, dataset=datasets[0], digest=digest, tags=tags, parts=parts)


def _of_file(config: Config) -> Subject:
    assert config.recording is not None
    arrays, probabilities = outside.read_recording(config.recording)
    name = config.recording.rpartition("/")[2]
    return Subject.of(arrays, name, name.removesuffix(".npz"), config.early, config.seed, probabilities)


def _of_runs(config: Config, runs: Sequence[StoredRun]) -> list[tuple[Subject, Networks | None]]:
    """The subjects of the trainings among the runs, each with the stragglers that other runs found among its samples."""
    groups = score_runs.recorded(runs)
    subjects = [Subject.of(group.arrays, group.name, group.dataset, config.early, config.seed) for group in groups]
    sets = [score_runs.straggler_sets(run) for run in runs if run.study in score_runs.COUNTED]
    if sets:
        score_runs.join(sets, subjects)
    networks = [Networks(group.networks, group.arrays["fingerprint"], group.arrays["index"], config) for group in groups]
    return list(zip(subjects, networks, strict=True))


def _add_outside(config: Config, subjects: Sequence[Subject]) -> None:
    assert config.scores_from is not None and config.direction is not None
    if len(subjects) > 1:
        raise ConfigError(f"scores_from: {config.scores_from}; beside one recording, and there are {len(subjects)}")
    name, values = outside.read_values(config.scores_from, subjects[0].truth["index"], config.direction)
    subjects[0].add(name, values)


def _digest(subjects: Sequence[Subject]) -> str:
    """SHA-256 (first 16 digits) of recordings and joined scores."""
    state = hashlib.sha256()
    for subject in subjects:
        arrays = [subject.recording.logits.numpy(), *(array for array in subject.truth.values()), *subject.further.values()]
        for array in arrays:
            state.update(f"{array.shape}{array.dtype}".encode())
            state.update(np.ascontiguousarray(array).view(np.uint8).data)
    return state.hexdigest()[:16]


def compute(prepared: PreparedScores, run: tracking.Run, stages: Stages) -> None:
    """Scores, judgement and tables of every subject, those after the first in folders of their names; then the comparison."""
    config, parts, found = prepared.config, prepared.parts, []
    with console.progress(f"{run.id[:8]} scores", len(parts)) as show:
        for place, part in enumerate(parts):
            show(place, part.subject.name)
            folder = f"{part.subject.name}/" if place else ""
            values, arrays = _scored(config, part, stages, place)
            found.append(arrays | {"recordings": np.array([other.subject.name for other in parts])})
            _write(config, run, folder, part.subject, values, found[-1])
            if not place:
                _log(run, arrays)
    datasets = [part.subject.dataset for part in parts]
    if len(parts) > 1:
        compared = friedman_arrays(found, datasets)
        if not compared:
            console.warn(f"runs: {_not_compared(found, datasets)}; every recording has its own tables")
        found[0] |= compared
    run.write_arrays(SCORED, found[0], compressed=False)
    if (influence := _influence(parts[0])) is not None:
        run.write_arrays(INFLUENCE, influence)


def _not_compared(found: Sequence[Mapping[str, Array]], datasets: Sequence[str]) -> str:
    """Why mean ranks are not compared, in words."""
    if any("detection_ap" not in arrays for arrays in found):
        return "scores are compared where something was planted in all of them"
    if (count := len(blocks(datasets))) < BLOCKS:
        return f"mean ranks are compared over {BLOCKS} data sets or more, and there are {count}"
    return "scores are compared where two of them and a planted type are in all recordings"


def _scored(config: Config, part: Part, stages: Stages, place: int) -> tuple[dict[str, Array], dict[str, Array]]:
    """Scores by name, and all arrays of a subject as they are stored."""
    subject, names = part.subject, part.names
    activations = part.networks.activations if part.networks is not None else None
    values = subject.values(names, activations)
    truth, seeds = subject.truth, Seeds(config.seed).child("score", subject.name)

    def judge() -> dict[str, Any]:
        rngs = [np.random.default_rng(seeds.child(purpose).integer) for purpose in ("bootstrap", "ties")]
        types = [str(name) for name in truth["plant_types"]]
        detection = judged.detection_arrays(values, truth["planted"], types, rngs[0])
        count = judged.hard_count(truth["planted"])
        agreement = judged.agreement_arrays(values, truth["labels"], len(truth["class_names"]), count, rngs[1])
        words = {name: [str(word) for word in array] for name, array in detection.items() if array.dtype.kind == "U"}
        numbers = {name: torch.from_numpy(np.asarray(array)) for name, array in (detection | agreement).items() if name not in words}
        return {**words, **numbers}

    found = stages.once(f"judged_{place}", judge, spare=True)
    arrays = {name: np.array(value) if isinstance(value, list) else value.numpy() for name, value in found.items()}
    arrays |= {name: np.asarray(value, dtype=np.float32) for name, value in values.items()}
    arrays |= {f"{name}_error": error for name, error in _errors(subject, names, seeds).items()}
    arrays |= {**truth, "score_names": np.array(names), "predicted": subject.predicted()}
    arrays |= {"missing_scores": np.array(list(part.missing), dtype=str), "missing_why": np.array(list(part.missing.values()), dtype=str)}
    if subject.lacking("self_confidence") is None:
        called = scoring.confident_learning(subject.recording).numpy()
        arrays |= judged.set_arrays("confident_learning", called, truth["planted"], [str(name) for name in truth["plant_types"]])
    return values, arrays | _gallery(part, values)


def _errors(subject: Subject, names: Sequence[str], seeds: Seeds) -> dict[str, Array]:
    """Bootstrap errors over networks [N] of the scores of all networks together."""
    streams = {name: np.random.default_rng(seeds.child("networks", name).integer) for name in names if subject.needs_all(name)}
    return {name: scoring.bootstrap_error(subject.recording, name, rng).float().numpy() for name, rng in streams.items()}


def _gallery(part: Part, values: Mapping[str, Array]) -> dict[str, Array]:
    """The hardest samples of every class by every score, with their inputs where the data set is there."""
    truth = part.subject.truth
    rows = judged.hardest_of_classes(values, truth["labels"], len(truth["class_names"]))
    arrays = {"gallery": rows, "gallery_rows": np.unique(rows[rows >= 0])}
    if part.networks is not None:
        try:
            arrays["gallery_inputs"] = part.networks.samples()[0].inputs[torch.from_numpy(arrays["gallery_rows"])].numpy()
        except HardbenchError as error:
            console.warn(f"{error}; no gallery of inputs")
    return arrays


def _influence(part: Part) -> dict[str, Array] | None:
    """influence.npz of a recording with test samples, by networks trained on shares of the training samples; else None."""
    subject, membership = part.subject, part.subject.recording.membership
    if membership is None or not subject.test or bool(membership.all(0).all()):
        return None
    arrays = influence(subject.test_right(), membership) | {"influence_test_labels": subject.test["test_labels"]}
    if part.networks is not None:
        with suppress(HardbenchError):  # without inputs, as was said for the gallery
            train, test = part.networks.samples()
            arrays |= influence_gallery(arrays, train.inputs, test.inputs)
    return arrays


def _write(
    config: Config, run: tracking.Run, folder: str, subject: Subject, values: Mapping[str, Array], arrays: Mapping[str, Array]
) -> None:
    """The tables of a subject, in the formats asked for; its arrays where it is not the first."""
    if folder:
        run.write_arrays(f"{folder}{SCORED}", arrays, compressed=False)
    errors = {name.removesuffix("_error"): array for name, array in arrays.items() if name.endswith("_error")}
    table = sample_table(subject.truth, values, errors) if {"csv", "parquet"} & set(config.format) else None
    if table is not None and "csv" in config.format:
        run.write_text(f"{folder}{SAMPLE_SCORES}", table.to_csv(index=False))
    if table is not None and "parquet" in config.format:
        with files.whole(run.folder / folder / PARQUET) as file:
            table.to_parquet(file, index=False)
        run.publish(f"{folder}{PARQUET}")
    if "jsonl" in config.format:
        for name, text in exports.training_dynamics(subject.recording):
            run.write_text(f"{folder}{name}", text)
    run.write_text(f"{folder}{AGREEMENT}", agreement_table(arrays).to_csv(index=False))
    run.write_text(f"{folder}{CLASSES_TABLE}", class_table(arrays).to_csv(index=False))
    if "detection_ap" in arrays:
        run.write_text(f"{folder}{DETECTION}", detection_table(arrays).to_csv(index=False))


def _log(run: tracking.Run, arrays: Mapping[str, Array]) -> None:
    """Average precision of five scores by type with its standard error over networks, base rates, and how many samples and scores."""
    run.log({"samples": float(len(arrays["labels"])), "scores": float(len(arrays["score_names"]))})
    names = [str(name) for name in arrays.get("detection_scores", ())]
    chosen = [name for name in HEADLINES if name in names][:5]
    for p, kind in enumerate(arrays.get("detection_types", ())):
        run.log({f"base_rate/{kind}": float(arrays["detection_base_rate"][p])})
        for name in chosen:
            s = names.index(name)
            key = f"average_precision/{kind}/{name}"
            stderr = mean_stderr(arrays["detection_ap_repeats"][s, p])[1]
            run.log({key: float(arrays["detection_ap"][s, p])})
            if np.isfinite(stderr):
                run.log({f"{key}_stderr": float(stderr)})


def report(stored: StoredRun) -> None:
    """Print which score finds which kind of hardness, and what there is to say of it."""
    names = [str(name) for name in stored.arrays["recordings"]]
    for place, name in enumerate(names):
        arrays = stored.archive(f"{name}/{SCORED}") if place else stored.arrays
        title, columns, rows = result_rows(arrays)
        console.table(f"{title}{f', {name}' if len(names) > 1 else ''}", columns, rows)
        for line in sentences(arrays):
            console.say(line)
