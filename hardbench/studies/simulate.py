"""Train, evaluate and draw everything, in one run; the list of every file made.

The same settings as `train`; what `mlflow run .` does.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from hardbench import tracking
from hardbench.configs import eval as eval_settings
from hardbench.configs.simulate import Config
from hardbench.errors import TrackingError, TrainingError
from hardbench.lifecycle import Stages, publish, so_far
from hardbench.stored import SIMULATION, StoredRun
from hardbench.studies import eval as evaluation, train
from hardbench.studies.train import PreparedTraining

STUDY = "train"  # its runs are those of a training, with a tag that says what else is done
FIGURES = ()  # drawn before the evaluation
RESEARCH = ("research_questions",)


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedTraining:
    """The training, tagged with what is done after it; the runs to compare it with are there."""
    wanted: dict[str, Any] = {"research_only": config.research_only, "compare_runs": list(config.compare_runs)}
    if stored is not None:
        try:
            wanted = {"research_only": False, "compare_runs": [], **json.loads(stored.tags[SIMULATION])}
        except (ValueError, TypeError):
            raise TrackingError(f"run: {stored.id}; its tag {SIMULATION} as `simulate` wrote it") from None
    wanted["compare_runs"] = [run.id for run in _compared(wanted["compare_runs"])]
    training = train.prepare(config, stored)
    return replace(training, tags={**training.tags, SIMULATION: json.dumps(wanted)}, lists_files=True)


def _compared(words: Sequence[str]) -> list[StoredRun]:
    return [tracking.find(word, ["train"]) for word in words]


def compute(prepared: PreparedTraining, run: tracking.Run, stages: Stages) -> None:
    """The training and its figures, the best weights on the clean test set, and figures of this run beside others."""
    wanted, diverged = json.loads(prepared.tags[SIMULATION]), None
    try:
        train.compute(prepared, run, stages)
    except TrainingError as error:
        if not error.measured:
            raise
        diverged = error
    stored = so_far(run)
    publish(run, [stored], RESEARCH if wanted["research_only"] else None)
    config = prepared.config
    settings = eval_settings.Config(run=stored.id, device=config.device, threads=config.threads, data_dir=config.data_dir)
    evaluation.compute(evaluation.measure(settings, so_far(run)), run, stages)
    if wanted["compare_runs"]:
        runs = [stored, *_compared(wanted["compare_runs"])]
        models = {compared.config["model"] for compared in runs}
        publish(run, runs, ["multi_run", "architecture_comparison"] if len(models) > 1 else ["multi_run"])
    if diverged is not None:
        raise diverged


def report(stored: StoredRun) -> None:
    """Print what the training and the evaluation print."""
    train.report(stored)
    evaluation.report(stored)
