"""Memory of this machine that can still be had."""

import os
from collections.abc import Iterator
from pathlib import Path


def free_memory() -> int:
    """Bytes that this process can still take, in memory or swap, within its control groups."""
    return max(min(_machine(), *_groups()), 0)


def _machine() -> int:
    try:
        with Path("/proc/meminfo").open() as file:
            fields = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in file}
        return fields["MemAvailable"] + fields.get("SwapFree", 0)
    except (OSError, KeyError):  # not on Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups() -> Iterator[int]:
    """Bytes that are left to the control groups this process is in, of either version; a lot where there are none."""
    yield 1 << 62
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, kind, path = line.split(":", 2)
        top = Path("/sys/fs/cgroup") / kind
        names = {"": ("memory.max", "memory.current"), "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes")}.get(kind)
        for folder in [top / path.strip("/"), *(top / path.strip("/")).parents] if names else []:
            limit, used = (folder / name for name in names or ())
            if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdecimal():
                yield int(most) - int(used.read_text()) + _cached(folder / "memory.stat")


def _cached(stat: Path) -> int:
    """Bytes of files that a group gives back when it needs them."""
    words = dict(line.split()[:2] for line in stat.read_text().splitlines()) if stat.is_file() else {}
    return int(words.get("total_inactive_file", words.get("inactive_file", 0)))
