"""Where a command computes."""

import os

import torch

from hardbench.errors import ConfigError
from hardbench.settings import MachineSettings


def take(settings: MachineSettings) -> torch.device:
    """The device the settings name, with the CPU threads they allow; ConfigError for a GPU that is not there."""
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    there = torch.cuda.is_available()
    if settings.device == "cuda" and not there:
        raise ConfigError("device: cuda; no GPU here: cpu or auto")
    return torch.device("cuda" if there and settings.device != "cpu" else "cpu")
