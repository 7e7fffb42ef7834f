"""Count the hidden units of a trained run that hardly any test sample activates.

Question: how much of each layer is not used (dead units: Lu et al., arXiv:1903.06733)? A second per network on a laptop core.
"""

from dataclasses import dataclass

import numpy as np
import torch

from hardbench import console, tracking
from hardbench.artifacts import ARRAYS
from hardbench.configs.idle_units import Config
from hardbench.configs.train import Config as TrainConfig
from hardbench.data.samples import Split
from hardbench.data.samples import prepare as split_of
from hardbench.data.transforms import Standardise, unit_of
from hardbench.lifecycle import Prepared, Stages
from hardbench.metrics.hardness import mean_stderr
from hardbench.stored import StoredRun
from hardbench.trained import restore
from hardbench.training.learners import Learner

STUDY = "idle-units"
FIGURES = ()  # kinds of figures drawn at its end
BATCH = 1000  # samples that go through the networks at once


@dataclass(frozen=True, kw_only=True)
class PreparedCount(Prepared):
    """Trained networks, and the samples that they are shown."""

    learner: Learner
    standardise: Standardise
    split: Split


def prepare(config: Config, stored: StoredRun | None = None) -> PreparedCount:
    """The networks of the run that the settings name, or of the one that the stored count began with."""
    source = tracking.find(config.run if stored is None else stored.tags["hardbench.source_run"], ["train"])
    here = {"device": config.device, "threads": config.threads, "data_dir": config.data_dir, "config": None}
    trained = source.settings(TrainConfig, here)
    split = split_of(trained, trained.seed)
    learner, standardise = restore(source, trained, split, "best")
    title, note = config.name or source.name, f"units that less than {config.share:g} of the test samples activate"
    data = {"dataset": trained.dataset, "digest": split.digest, "split": split}
    return PreparedCount(
        config=config, title=title, note=note, device=learner.device, sources=(source,), learner=learner, standardise=standardise, **data
    )


def compute(prepared: PreparedCount, run: tracking.Run, stages: Stages) -> None:
    """Store the share of the units of every layer that are idle, [R, L]."""
    active = stages.once("active", lambda: {"layers": activated(prepared)})["layers"]
    idle = torch.stack([(layer < prepared.config.share).double().mean(1) for layer in active], dim=1).numpy()
    run.write_arrays(ARRAYS, {"idle_units": idle})
    run.log({f"idle_units/{layer:02d}": idle[:, layer] for layer in range(idle.shape[1])})


def activated(prepared: PreparedCount) -> list[torch.Tensor]:
    """Per layer the share of the test samples that activate each unit, [R, D]."""
    inputs, unit = prepared.split.test.inputs, unit_of(prepared.split.test.inputs)
    standardise = prepared.standardise.to(prepared.device)
    counts: list[torch.Tensor] = []
    with console.progress("samples", len(inputs)) as show:
        for first in range(0, len(inputs), BATCH):
            batch = standardise(inputs[first : first + BATCH].to(prepared.device), unit)
            counts.append([(layer > 0).sum(1).cpu() for layer in prepared.learner.activations(batch)])
            show(min(first + BATCH, len(inputs)), "")
    return [sum(layers) / len(inputs) for layers in zip(*counts, strict=True)]


def report(stored: StoredRun) -> None:
    """Print a line per layer."""
    rows = [[i, f"{mean:.3f}", f"{stderr:.3f}"] for i, (mean, stderr) in enumerate(np.transpose(mean_stderr(stored.arrays["idle_units"])))]
    console.table("Idle units", ["layer", "share", "standard error"], rows)
