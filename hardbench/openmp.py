"""How threads of OpenMP wait for each other: what the command line sets, never over what the user has set."""

import os

WAITING = {"GOMP_SPINCOUNT": "10000"}
"""They spin for half a millisecond at most, then sleep. By default they spin much longer, and take the CPU time of the threads they wait
for where other programs run; with OMP_WAIT_POLICY=passive they sleep at once, and a step takes 50 % longer on an idle machine.
`python -m benchmarks --only waiting` measures both."""
PREFIXES = ("OMP_", "GOMP_", "KMP_")
OTHERS = ("KMP_INIT_AT_FORK", "KMP_DUPLICATE_LIB_OK")  # set by libraries when they are imported, and inherited from their processes


def variables() -> dict[str, str]:
    """The environment's variables for OpenMP, but for those that libraries set."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES) and name not in OTHERS}


def wait_briefly() -> None:
    """Set the policy here and for every child; it counts where OpenMP's library has not been loaded. Nothing where the user has set any."""
    if not variables():
        os.environ.update(WAITING)
