"""The console script and `python -m hardbench`: what has to be so before anything else is imported."""

import sys


def entry() -> None:
    """Run the command line of this process; Ctrl-C is one line and exit code 130 from here on."""
    try:
        from hardbench import openmp

        openmp.wait_briefly()
        from hardbench.cli import main

        code = main()
    except KeyboardInterrupt:
        sys.stderr.write("hardbench: interrupted\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    entry()
