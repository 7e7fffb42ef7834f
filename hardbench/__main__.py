"""The console script and `python -m hardbench`: what has to be so before anything else is imported."""

import os
import sys

WAITING = {"GOMP_SPINCOUNT": "10000"}
"""How threads of OpenMP wait for each other: they spin for half a millisecond at most, then sleep. As long as they spin by default
they keep the cores from the very threads they wait for, where other work is on the machine; asleep at once (OMP_WAIT_POLICY=passive)
they wake too late on an idle one, where a step took half as long again. `python -m benchmarks --only waiting` measures both."""


def entry() -> None:
    """Run the command line of this process; Ctrl-C is one line and exit code 130 from here on."""
    try:
        wait_briefly()
        from hardbench.cli import main

        code = main()
    except KeyboardInterrupt:
        sys.stderr.write("hardbench: interrupted\n")
        code = 130
    sys.exit(code)


def wait_briefly() -> None:
    """Set OpenMP's policy here and in every child, before its library reads it; nothing where the user has set a variable of these."""
    if not any(name.startswith(("OMP_", "GOMP_", "KMP_")) for name in os.environ):
        os.environ.update(WAITING)


if __name__ == "__main__":
    entry()
