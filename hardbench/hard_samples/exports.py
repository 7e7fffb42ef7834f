"""Scores and training dynamics in the formats of other tools."""

import importlib.util
import json
from collections.abc import Iterator

import numpy as np

from hardbench.errors import ConfigError
from hardbench.hard_samples.recording import Recording

FOLDER = "training_dynamics"


def check_formats(formats: tuple[str, ...]) -> None:
    """ConfigError for a format that needs a package which is not here."""
    if "parquet" in formats and importlib.util.find_spec("pyarrow") is None:
        raise ConfigError("format: parquet; csv or jsonl, as the package pyarrow is not installed")


def training_dynamics(recording: Recording) -> Iterator[tuple[str, str]]:
    """Names and texts of the files that the tools of Data Maps read, one per recorded point, counted from 0, of the first network.

    A line per sample: `guid`, its index in the data set; `logits_epoch_T`; `gold`, the label it was trained with (Swayamdipta et al. 2020,
    arXiv:2009.10795). Points at which the network was no longer trained are left out.
    """
    indices, labels = recording.index.tolist(), recording.labels.tolist()
    for t in np.flatnonzero(recording.measured[0].numpy()).tolist():
        logits = recording.logits[0, t].float().tolist()
        lines = (
            json.dumps({"guid": index, f"logits_epoch_{t}": row, "gold": label})
            for index, row, label in zip(indices, logits, labels, strict=True)
        )
        yield f"{FOLDER}/dynamics_epoch_{t}.jsonl", "\n".join(lines) + "\n"
