"""Campaigns for tests: a sweep as a process of its own that can be killed in every way, and the numbers it left."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from mlflow import MlflowClient

from hardbench.stored import StoredRun

ROOT = Path(__file__).parents[1]
CELLS = "mlruns/*/*/artifacts/seconds.npy"  # a file that every cell of a training gets
TINY = [
    "sweep",
    "train",
    "--normalize",
    "none",
    "--layer-metrics",
    "none",
    "--epochs",
    "1",
    "--eval-points",
    "1",
    "--log-every",
    "10",
    "--subset-size",
    "200",
]


def sweep(folder: Path, *words: str) -> subprocess.Popen[bytes]:
    """A command line at work in a folder, on the default store there."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HARDBENCH_", "MLFLOW_"))}
    clean |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", "hardbench", *words], cwd=folder, env=clean, stdout=log, stderr=log)


def workers(pid: int) -> list[int]:
    """The worker processes of a sweep."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def store(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def cells(folder: Path) -> list[StoredRun]:
    """All cells of a folder's store."""
    client = store(folder)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(experiments, "tags.`hardbench.kind` = 'cell'", max_results=5000)
    return [StoredRun(client, run) for run in runs]


def finished(folder: Path) -> Counter[str]:
    """How often each cell is FINISHED."""
    return Counter(cell.tags["hardbench.cell"] for cell in cells(folder) if cell.status == "FINISHED")


def arrays(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """All numbers of the finished cells."""
    return {cell.tags["hardbench.cell"]: cell.arrays for cell in cells(folder) if cell.status == "FINISHED"}


def metrics(folder: Path) -> dict[str, dict[str, float]]:
    return {cell.tags["hardbench.cell"]: cell.metrics for cell in cells(folder) if cell.status == "FINISHED"}


def rows(path: Path) -> list[dict[str, str]]:
    """Rows of results_per_run.csv without what differs from run to run."""
    with path.open() as file:
        return [{name: value for name, value in row.items() if name not in ("seconds", "run")} for row in csv.DictReader(file)]


def same(left: dict[str, dict[str, np.ndarray]], right: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """What differs between the numbers of two campaigns, bit for bit (nan equals nan)."""
    wrong = [f"cell {key}" for key in left.keys() ^ right.keys()]
    for key in left.keys() & right.keys():
        wrong += [f"{key}: {name}" for name in left[key].keys() ^ right[key].keys()]
        wrong += [
            f"{key}: {name}"
            for name in left[key].keys() & right[key].keys()
            if not np.array_equal(left[key][name], right[key][name], equal_nan=left[key][name].dtype.kind == "f")
        ]
    return wrong


def wait_for_cells(folder: Path, count: int, process: subprocess.Popen[bytes] | BaseProcess, seconds: float = 120) -> None:
    """Until so many cells are finished, or the process has ended."""
    until = time.monotonic() + seconds
    while (process.is_alive() if isinstance(process, BaseProcess) else process.poll() is None) and time.monotonic() < until:
        if (folder / "mlflow.db").exists() and len(list(folder.glob(CELLS))) >= count:
            return
        time.sleep(0.05)


def disturb(folder: Path, words: Sequence[str], how: str, rng: random.Random) -> int:
    """Start the sweep and do `how` (worker, parent or interrupt) some cells and a moment later; the exit code.

    A sweep whose worker was killed goes on for a few cells and is then ended by SIGTERM. Cells are counted, not seconds: on a machine of
    any speed there is work left to disturb.
    """

    def some_cells() -> None:
        wait_for_cells(folder, len(list(folder.glob(CELLS))) + rng.randint(1, 5), process)
        time.sleep(rng.uniform(0, 0.4))

    process = sweep(folder, *words)
    some_cells()
    left = workers(process.pid)
    if how == "worker":
        assert left, "no worker to kill"
        os.kill(rng.choice(left), signal.SIGKILL)
        some_cells()
    process.send_signal({"worker": signal.SIGTERM, "parent": signal.SIGKILL, "interrupt": signal.SIGINT}[how])
    process.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left), "a worker outlived its parent"
    return process.wait(timeout=120)


def end(folder: Path, words: Sequence[str]) -> int:
    """Run the sweep to its end; the exit code."""
    return sweep(folder, *words).wait(timeout=600)
