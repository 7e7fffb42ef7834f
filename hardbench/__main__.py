"""The console script and `python -m hardbench`: what has to be so before anything else is imported."""

import sys


def entry() -> None:
    """Run the command line of this process; a signal is one line and its exit code from here on, also while libraries are imported."""
    try:
        from hardbench import openmp, signals, streams
        from hardbench.errors import Killed

        try:
            signals.catch()
            streams.guard()
            openmp.set_policy()
            from hardbench.cli import main

            code = main()
            streams.report()
        except Killed as error:
            sys.stderr.write("hardbench: terminated\n")
            code = 128 + error.number
        signals.ignore()
    except KeyboardInterrupt:
        sys.stderr.write("hardbench: interrupted\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    entry()
