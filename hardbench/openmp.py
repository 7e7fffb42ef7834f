"""How threads of OpenMP wait for each other: a policy that the command line sets unless the user has set one."""

import os
import time
from contextlib import suppress
from pathlib import Path

BRIEFLY = {"GOMP_SPINCOUNT": "20000"}
"""They spin for a millisecond at most, then sleep: as fast as OpenMP's own way, which spins much longer and takes the CPU time of the
threads that are waited for where other programs run."""
ASLEEP = {"OMP_WAIT_POLICY": "passive"}
"""They sleep at once: the fastest beside other programs, but a step takes 50 % longer on an idle machine. Numbers are the same however
threads wait. `python -m benchmarks --only waiting` measures both."""
PREFIXES = ("OMP_", "GOMP_", "KMP_")
OTHERS = ("KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK")  # set by libraries when they are imported, and inherited from their processes


def variables() -> dict[str, str]:
    """The environment's variables for OpenMP, but for those that libraries set."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES) and name not in OTHERS}


def set_policy() -> None:
    """Set the policy here and for every child; it counts where OpenMP's library has not been loaded. Nothing where the user has set any."""
    if not variables():
        os.environ.update(ASLEEP if machine_is_full() else BRIEFLY)


def machine_is_full() -> bool:
    """True if other threads than this one want all cores, five times in a row, a millisecond apart; False where Linux cannot be asked."""
    for _ in range(5):
        if runnable() <= (os.cpu_count() or 1):
            return False
        time.sleep(0.001)
    return True


def runnable() -> int:
    """The number of threads of the machine that run or want to, with this one; 0 where Linux cannot be asked."""
    with suppress(OSError):
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0])
    return 0
