"""Settings of `hardbench invert`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.errors import ConfigError
from hardbench.settings import CheckpointSettings, InversionSettings, RunSettings


@dataclass(frozen=True)
class Config(RunSettings, InversionSettings, CheckpointSettings):
    """Settings of a search for inversions."""

    repeats: int = setting(5, "Independent networks, trained together.", low=1, was=("runs", "N"), headline=True)
    log_every: int = setting(5, "Epochs between two live points of the radii (the arrays have every epoch).", low=1)
    retrain_without_stragglers: bool = setting(
        False, "Train the same networks again without their stragglers, and count the inversions left."
    )
    stability: bool = setting(False, "Compare the misclassified sets of the networks over training time (two networks at least).")
    prune_curve: bool = setting(False, "Test networks trained without the samples misclassified at log-spaced epochs.")
    prune_points: int = setting(8, "Epochs of the prune curve.", low=2)
    test_noise: tuple[float, ...] = setting((0.0,), "Standard deviations of Gaussian noise on the prune curve's test inputs.", low=0)

    def check(self) -> None:
        """Rules that join two settings."""
        if self.stability and self.repeats < 2:
            raise ConfigError("stability: true; two repeats or more to compare")
