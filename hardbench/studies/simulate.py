"""Train, evaluate and draw everything, in one run; the list of every file made.

The same settings as `train`; what `mlflow run .` does.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hardbench import console, tracking
from hardbench.config import setting
from hardbench.figures import draw, show
from hardbench.stored import StoredRun
from hardbench.studies import eval as evaluation
from hardbench.studies import train

RESEARCH = ("research_questions",)


@dataclass(frozen=True)
class Config(train.Config):
    """Settings of a simulation: those of a training run, and what to draw."""

    show: bool = setting(False, "Open a window per figure.", stored=False)
    research_only: bool = setting(False, "Of the figures draw research_questions alone.", stored=False)
    compare_runs: tuple[str, ...] = setting((), "Runs to draw multi_run and architecture_comparison with.", stored=False)


def run(config: Config) -> None:
    """Train as the settings say, evaluate the best weights on the clean test set, draw, and list all files."""
    others = [tracking.find(word, ["train"]) for word in config.compare_runs]
    stored = train.run(config, RESEARCH if config.research_only else None)
    evaluation.run(evaluation.Config(run=stored.id, device=config.device, threads=config.threads, data_dir=config.data_dir, out=config.out))
    folder = stored.file("figures")
    if others:
        with tracking.extend(stored) as open_run:
            names = draw([stored, *others], folder, _comparisons([stored, *others]), strict=False)
            for name in names:
                path = open_run.publish(f"figures/{name}")
                if config.out:
                    shutil.copy(path, Path(config.out) / "figures")
    made = Path(config.out) if config.out else stored.file("")
    files = sorted(path for path in made.rglob("*") if path.is_file())
    console.table("Files", ["path", "KiB"], [[path.relative_to(made), f"{path.stat().st_size / 1024:.0f}"] for path in files])
    if config.show:
        show(folder, sorted(path.name for path in folder.glob("*.png")))


def _comparisons(runs: Sequence[StoredRun]) -> list[str]:
    """The kinds that several runs allow: architectures are compared where there are several."""
    several = len({one.config["model"] for one in runs}) > 1
    return ["multi_run", *(["architecture_comparison"] if several else [])]
