"""Settings of `hardbench train`."""

from dataclasses import dataclass

from hardbench.settings import TrainingSettings


@dataclass(frozen=True)
class Config(TrainingSettings):
    """Settings of a training run."""
