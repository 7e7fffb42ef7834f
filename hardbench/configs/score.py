"""Settings of `hardbench score`."""

from dataclasses import dataclass

from hardbench.declaration import setting
from hardbench.errors import ConfigError
from hardbench.registry import SCORES
from hardbench.settings import MachineSettings, PlaceSettings, wrong_name, wrong_tags

FORMATS = ("csv", "npz", "parquet", "jsonl")


@dataclass(frozen=True)
class Config(MachineSettings, PlaceSettings):
    """Settings of the study of scores."""

    runs: tuple[str, ...] | None = setting(
        None,
        "Runs of train --record-dynamics, and of invert or stragglers on the same samples: ids, unique prefixes, or last (the default).",
        position=True,
        also=("run",),
    )
    recording: str | None = setting(
        None, "An .npz with logits (or probabilities) and labels from elsewhere, in place of a run.", instead_of=("runs",)
    )
    score: tuple[str, ...] = setting(
        ("all",),
        "Scores by name, or all that the recording allows, but for prediction_depth.",
        choices=SCORES,
        words=("all",),
        headline=True,
    )
    early: float = setting(0.1, "Share of the epochs at which early scores look.", above=0, high=1, headline=True)
    scores_from: str | None = setting(None, "A CSV with columns index and value: a score from elsewhere, set beside ours as outside_FILE.")
    direction: str | None = setting(None, "Which samples have high values in scores_from.", choices=("harder", "easier"))
    format: tuple[str, ...] = setting(
        ("csv",),
        "Files of the scores; npz is always there. jsonl: training dynamics as Data Maps have them, of the first network.",
        choices=FORMATS,
    )
    seed: int = setting(0, "Seed of the control `random`, of intervals and of ties.", low=0, headline=True)
    precision: str = setting("fp32", "Arithmetic of the networks that prediction_depth looks at.", choices=("fp32",))
    name: str | None = setting(None, "Run name; default: data set and number of scores.", wrong=wrong_name)
    tag: dict[str, str] | None = setting(None, "Tags for the run, k=v,k2=v2.", wrong=wrong_tags)

    def check(self) -> None:
        """Rules that join two settings, and of lists."""
        if (self.scores_from is None) != (self.direction is None):
            raise ConfigError(f"direction: {self.direction or 'none'}; harder or easier with scores_from, and only then")
        for name in ("runs", "score", "format"):
            values = getattr(self, name) or ()
            if len(set(values)) < len(values):
                raise ConfigError(f"{name}: {','.join(values)}; each once")
        if self.recording is not None and "prediction_depth" in self.score:
            raise ConfigError("score: prediction_depth; of runs, as it looks at their networks")
