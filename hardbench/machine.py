"""The device and threads a command computes with, and the identity of its process."""

import ctypes
import functools
import os
import platform
import socket
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch

from hardbench import openmp
from hardbench.errors import ConfigError
from hardbench.settings import MachineSettings


def take(settings: MachineSettings) -> torch.device:
    """Set the CPU threads and give the device that the settings name; ConfigError for a GPU that is not there."""
    torch.set_num_threads(settings.threads or len(os.sched_getaffinity(0)))
    gpu = torch.cuda.is_available()
    if settings.device == "cuda" and not gpu:
        raise ConfigError("device: cuda; no GPU here: cpu or auto")
    return torch.device("cuda" if gpu and settings.device != "cpu" else "cpu")


def waiting() -> str:
    """OpenMP's environment variables of this process as NAME=VALUE words; `default` if there are none."""
    return " ".join(f"{name}={value}" for name, value in openmp.variables().items())[:500] or "default"


def described() -> str:
    """Threads and OpenMP's variables of this process, in one line."""
    return f"threads {torch.get_num_threads()}, OpenMP's waiting: {waiting()}"


def trim() -> None:
    """Give free memory back to the system where the C library can (glibc); small tensors between freed large ones would keep it."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def identity() -> dict[str, str]:
    """Tags that identify this process: host, process id and start, boot, container, Python, OpenMP's variables and git revision."""
    tags = {
        "hardbench.python": platform.python_version(),
        "hardbench.host": socket.gethostname(),
        "hardbench.process": _process(os.getpid()),
        "hardbench.boot": _boot(),
        "hardbench.namespace": _namespace(),
        "hardbench.omp": waiting(),
    }
    return tags | ({"hardbench.git": _revision()} if _revision() else {})


@functools.cache
def _revision() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    return done.stdout.strip()


def alive(tags: Mapping[str, str]) -> bool:
    """True if the process that wrote these tags on this host still runs."""
    owner = tags.get("hardbench.process", "")
    number = owner.partition(":")[0]
    return same_kernel(tags) and number.isdecimal() and _process(int(number)) == owner


def same_kernel(tags: Mapping[str, str]) -> bool:
    """True if these tags were written on this kernel since it booted: its file locks are visible here, from any container."""
    return tags.get("hardbench.boot") == _boot()


def same_processes(tags: Mapping[str, str]) -> bool:
    """True if process numbers in these tags are valid here: containers number their own processes."""
    return same_kernel(tags) and tags.get("hardbench.namespace") == _namespace()


def _process(pid: int) -> str:
    """pid:start time, which no other process of this boot shares; empty if there is no such process."""
    try:
        return f"{pid}:{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, ValueError):
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (no path)
    except OSError:
        return "unknown"


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else "unknown"
