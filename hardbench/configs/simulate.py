"""Settings of `hardbench simulate`."""

from dataclasses import dataclass

from hardbench.configs import train
from hardbench.declaration import setting


@dataclass(frozen=True)
class Config(train.Config):
    """Settings of a simulation: those of a training run, and what to draw."""

    show: bool = setting(False, "Open a window per figure.", stored=False)
    research_only: bool = setting(False, "Of the figures draw research_questions alone.", stored=False)
    compare_runs: tuple[str, ...] = setting((), "Runs to draw multi_run and architecture_comparison with.", stored=False)
