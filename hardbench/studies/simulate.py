"""Train, evaluate and draw everything, in one run; the list of every file made.

The same settings as `train`; what `mlflow run .` does.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hardbench import console, tracking
from hardbench.configs import eval as eval_settings
from hardbench.configs.simulate import Config
from hardbench.errors import TrackingError, TrainingError
from hardbench.lifecycle import Stages, publish, so_far
from hardbench.stored import SIMULATION, StoredRun
from hardbench.studies import eval as evaluation
from hardbench.studies import train
from hardbench.studies.train import PreparedTraining
from hardbench.training import checkpoints

STUDY = "train"  # its runs are those of a training, with a tag that says what else is done
FIGURES = ()  # drawn before the evaluation
RESEARCH = ("research_questions",)


@dataclass(frozen=True, kw_only=True)
class PreparedSimulation(PreparedTraining):
    """A training that is ready to start, and what is done after it."""

    research_only: bool
    compared: tuple[StoredRun, ...]


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedSimulation:
    """The training, and the runs to compare it with."""
    wanted: dict[str, Any] = {"research_only": config.research_only, "compare_runs": list(config.compare_runs)}
    if stored is not None:
        try:
            wanted = {"research_only": False, "compare_runs": [], **json.loads(stored.tags[SIMULATION])}
        except (ValueError, TypeError):
            raise TrackingError(f"run: {stored.id}; its tag {SIMULATION} as `simulate` wrote it") from None
    compared = tuple(tracking.find(word, ["train"]) for word in wanted["compare_runs"])
    training = train.prepare(config, stored)
    tags = {**training.tags, SIMULATION: json.dumps(wanted | {"compare_runs": [one.id for one in compared]})}
    return PreparedSimulation(**vars(training) | {"tags": tags}, research_only=bool(wanted["research_only"]), compared=compared)


def compute(prepared: PreparedSimulation, run: tracking.Run, stages: Stages) -> None:
    """The training and its figures, the best weights on the clean test set, and figures of this run beside others."""
    diverged = None
    try:
        train.compute(prepared, run, stages)
    except TrainingError as error:
        if not error.measured:
            raise
        diverged = error
    stored = so_far(run)
    publish(run, [stored], RESEARCH if prepared.research_only else None)
    config = prepared.config
    place = eval_settings.Config(run=stored.id, device=config.device, threads=config.threads, data_dir=config.data_dir)
    evaluation.compute(evaluation.measure(place, so_far(run)), run, stages)
    if prepared.compared:
        publish(run, [stored, *prepared.compared], _comparisons([stored, *prepared.compared]))
    if diverged is not None:
        raise diverged


def _comparisons(runs: Sequence[StoredRun]) -> list[str]:
    """The kinds that several runs allow: architectures are compared where there are several."""
    several = len({one.config["model"] for one in runs}) > 1
    return ["multi_run", *(["architecture_comparison"] if several else [])]


def report(stored: StoredRun) -> None:
    """Print what the training prints, and a table of every file made."""
    train.report(stored)
    folder = stored.file("")
    spare = checkpoints.spare(keep=bool(stored.config["keep_checkpoints"]))
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in spare)
    console.table("Files", ["path", "KiB"], [[path.relative_to(folder), f"{path.stat().st_size / 1024:.0f}"] for path in files])
