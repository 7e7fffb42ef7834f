"""Settings of `hardbench eval`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.errors import ConfigError
from hardbench.registry import DATASETS
from hardbench.settings import MachineSettings, PlaceSettings

STEPS = 1_000_000  # steps of the corrupted metrics from p = 0 to p = 1: a level is its probability in millionths


@dataclass(frozen=True)
class Config(MachineSettings, PlaceSettings):
    """Settings of an evaluation."""

    run: str = setting("last", "Run id, unique prefix of one, or last.", position=True, was=("run_dir", "run_id"))
    checkpoint: str = setting("best", "Weights: best on validation, or last.", choices=("best", "last"))
    corruption_p: tuple[float, ...] = setting(
        (0.0,), "Probabilities that a test pixel is replaced by U(0,1); metrics have millionths as steps.", low=0, high=1, was=("ps",)
    )
    dataset: str | None = setting(None, "Another data set to test on; default: the run's own.", choices=DATASETS, was=("dataset_name",))

    def check(self) -> None:
        """Levels that MLflow's whole steps can tell apart."""
        levels: dict[int, float] = {}
        for p in self.corruption_p:
            if levels.setdefault(round(p * STEPS), p) != p:
                raise ConfigError(f"corruption_p: {levels[round(p * STEPS)]!r},{p!r}; levels at least a millionth apart")
