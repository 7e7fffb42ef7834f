"""Settings of `hardbench stragglers`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.errors import ConfigError
from hardbench.registry import SCORES
from hardbench.settings import LEVELS, STRAGGLERS, CheckpointSettings, InversionSettings, RunSettings

STRATEGIES = tuple(name for name in SCORES if SCORES[name].reads <= {"time", "stragglers"})  # those of every network by its logits


@dataclass(frozen=True)
class Config(RunSettings, InversionSettings, CheckpointSettings):
    """Settings of the study of hard samples."""

    strategy: tuple[str, ...] = setting((STRAGGLERS,), "Scores that say which samples are hard.", choices=STRATEGIES, headline=True)
    train_ratios: tuple[float, ...] = setting(
        (0.9, 0.5), "Shares of the hard and of the easy samples to train on, the rest being the tests.", low=0, high=1, headline=True
    )
    remaining_train_ratios: tuple[float, ...] = setting(
        (0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 0.75, 1), "Shares of the reduced group's training samples that remain.", low=0, high=1
    )
    reduce_hard: bool = setting(False, "Remove hard samples from training, not easy ones.", headline=True)
    level: str = setting("dataset", "Count hard samples over the data set or class by class.", choices=LEVELS, headline=True)
    sets: int = setting(1, "Straggler sets, one network each, with a split of their own.", low=1, headline=True)
    repeats: int = setting(3, "Networks per set and training set.", low=1, was=("runs", "N"), headline=True)

    def check(self) -> None:
        """Rules of lists: shares that leave something to train and to test on, everything once."""
        for name in ("strategy", "train_ratios", "remaining_train_ratios"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: {','.join(map(str, values))}; each once")
        if len(set(self.steps)) < len(self.steps):
            raise ConfigError(f"remaining_train_ratios: {','.join(map(repr, self.remaining_train_ratios))}; at least a millionth apart")
        for ratio in self.train_ratios:
            if ratio in (0, 1):
                nothing = "training" if ratio == 0 else "test"
                raise ConfigError(f"train_ratios: {ratio:g}; between 0 and 1, as it leaves no {nothing} sample")

    @property
    def steps(self) -> list[int]:
        """A step for the metrics of every share that remains: its percent, or in a finer unit (to millionths) where two shared one."""
        for unit in (100, 1000, 10_000, 100_000, 1_000_000):
            steps = [round(unit * share) for share in self.remaining_train_ratios]
            if len(set(steps)) == len(steps):
                break
        return steps
