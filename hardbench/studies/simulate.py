"""Train, evaluate and draw everything, in one run; the list of every file made.

The same settings as `train`; what `mlflow run .` does.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardbench import console, lifecycle, tracking
from hardbench.configs.simulate import Config
from hardbench.errors import TrackingError
from hardbench.figures import draw, show
from hardbench.stored import StoredRun
from hardbench.studies import eval as evaluation
from hardbench.studies import train

RESEARCH = ("research_questions",)
WANTED = "hardbench.simulate"  # tag of a training that is one: what it does besides, for a resumed one


def run(config: Config) -> None:
    """Train as the settings say, evaluate the best weights on the clean test set, draw, and list all files."""
    others = [tracking.find(word, ["train"]) for word in config.compare_runs]
    wanted = {"research_only": config.research_only, "compare_runs": [one.id for one in others]}
    kinds = RESEARCH if config.research_only else None
    stored = train.run(config, kinds, {WANTED: json.dumps(wanted)}, lambda run: _evaluate_and_compare(run, config, others))
    _list(stored, config.out)
    if config.show:
        folder = stored.file("figures")
        show(folder, sorted(path.name for path in folder.glob("*.png")))


def resume(stored: StoredRun, changed: Mapping[str, Any], out: str | None = None) -> StoredRun:
    """Go on with a simulation where its training was, and do the rest of it."""
    try:
        wanted = {"research_only": False, "compare_runs": [], **json.loads(stored.tags[WANTED])}
    except (ValueError, TypeError):
        raise TrackingError(f"run: {stored.id}; its tag {WANTED} as `simulate` wrote it") from None
    others = [tracking.find(word, ["train"]) for word in wanted["compare_runs"]]
    kinds = RESEARCH if wanted["research_only"] else None
    place = stored.settings(train.Config, changed)
    again = train.resume(stored, changed, out, kinds, lambda run: _evaluate_and_compare(run, place, others))
    _list(again, out)
    return again


def _evaluate_and_compare(run: tracking.Run, config: train.Config, others: Sequence[StoredRun]) -> None:
    """The best weights on the clean test set, and the figures of this run beside others."""
    stored = lifecycle.so_far(run)
    place = evaluation.Config(run=stored.id, device=config.device, threads=config.threads, data_dir=config.data_dir)
    evaluation.store(run, place, *evaluation.measure(place, stored))
    if others:
        for name in draw([stored, *others], run.folder / "figures", _comparisons([stored, *others]), strict=False):
            run.publish(f"figures/{name}")


def _list(stored: StoredRun, out: str | None) -> None:
    """A table of every file made."""
    made = Path(out) if out else stored.file("")
    files = sorted(path for path in made.rglob("*") if path.is_file())
    console.table("Files", ["path", "KiB"], [[path.relative_to(made), f"{path.stat().st_size / 1024:.0f}"] for path in files])


def _comparisons(runs: Sequence[StoredRun]) -> list[str]:
    """The kinds that several runs allow: architectures are compared where there are several."""
    several = len({one.config["model"] for one in runs}) > 1
    return ["multi_run", *(["architecture_comparison"] if several else [])]
