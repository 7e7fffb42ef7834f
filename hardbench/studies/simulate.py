"""Train, evaluate and draw everything, in one run; the list of every file made.

The same settings as `train`; what `mlflow run .` does.
"""

from dataclasses import dataclass
from pathlib import Path

from hardbench import console, tracking
from hardbench.studies import eval as evaluation
from hardbench.studies import train


@dataclass(frozen=True)
class Config(train.Config):
    """Settings of a simulation: those of a training run."""


def run(config: Config) -> None:
    """Train as the settings say, evaluate the best weights on the clean test set and list all files."""
    stored = train.run(config)
    again = evaluation.Config(run=stored.id, device=config.device, threads=config.threads, data_dir=config.data_dir, out=config.out)
    evaluation.run(again)
    folder = Path(config.out) if config.out else tracking.find(stored.id, ["train"]).file("")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    console.table("Files", ["path", "KiB"], [[path.relative_to(folder), f"{path.stat().st_size / 1024:.0f}"] for path in files])
