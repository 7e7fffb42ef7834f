"""The machine under the benchmarks: what it is, its rate of matrix products, the memory that work takes."""

import multiprocessing
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from statistics import median

import torch

from benchmarks import mnist

SIDE = 1024  # of the square matrices whose product is the yardstick
CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _cpuinfo(key: str) -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")


def has_bf16() -> bool:
    """True if the CPU multiplies bf16 numbers."""
    return "avx512_bf16" in _cpuinfo("flags").split()


def describe() -> dict[str, str | int | bool]:
    """The facts that a reader needs to judge the numbers."""
    return {
        "date": date.today().isoformat(),
        "cpu": _cpuinfo("model name") or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "avx512_bf16": has_bf16(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


NEEDS: dict[str, Callable[[], str]] = {
    "avx512_bf16": lambda: "" if has_bf16() else "no avx512_bf16",
    "mnist": lambda: "" if mnist.there() else "no MNIST in HARDBENCH_DATA",
}
"""Requirements of rows by name: each gives the reason why this machine does not meet it, or an empty string."""


def matrix_rate(precision: str, clock: Callable[[], float]) -> float:
    """FLOP/s of a product of square matrices, the median of five, by the clock of the row that is compared with it."""
    left, right = (torch.randn(SIDE, SIDE).to(DTYPES[precision]) for _ in range(2))
    torch.mm(left, right)
    seconds = []
    for _ in range(5):
        began = clock()
        torch.mm(left, right)
        seconds.append(clock() - began)
    return 2 * SIDE**3 / median(seconds)


def peak_memory(work: Callable[[], object], threads: int) -> float | None:
    """MiB by which a call of `work` raises the memory of a fresh process; None where the system does not say.

    It is a process of its own, since a used one has free memory to fill and remembers the peak of other work. It is forked off one that
    has imported everything and computed nothing, and gets `work` by pickle. Only anonymous memory counts: pages of libraries are loaded
    when code first runs.
    """
    if not CLEAR.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.preload"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_growth, work, threads).result()


def _growth(work: Callable[[], object], threads: int) -> float:
    torch.set_num_threads(threads)
    before = _status("RssAnon")
    CLEAR.write_text("5")  # the peak, VmHWM, starts again from here
    work()
    return (_status("VmHWM") - _status("RssFile") - _status("RssShmem") - before) / 1024


def _status(key: str) -> int:
    """A line of /proc/self/status, in KiB."""
    return next(int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
