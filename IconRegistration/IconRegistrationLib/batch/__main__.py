"""The command `icon-registration` by Slicer's means, with the same arguments, output and exit codes.

    PythonSlicer -m IconRegistrationLib.batch ARGUMENTS
    Slicer --no-splash --no-main-window --python-script .../IconRegistrationLib/batch/__main__.py -- ARGUMENTS

A file that Slicer runs has no package: nothing here is imported relatively.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code, also that of --help."""
    from IconRegistrationLib.batch.command import main

    try:
        return main(arguments)
    except SystemExit as end:  # how argparse ends --help
        return int(end.code or 0)


def run_in_slicer(slicer, arguments: list[str]) -> None:
    """Run in Slicer's own process, which continues after the script, and exit with the command's code."""
    # what stands for them in Slicer is written when a buffer of C++ is full: progress would come at the end
    sys.stdout, sys.stderr = sys.__stdout__ or sys.stdout, sys.__stderr__ or sys.stderr
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Slicer's own ends the process on the spot
    status = 1
    try:
        status = run(arguments)
    finally:
        sys.stdout.flush()
        slicer.util.exit(status)


def _arguments() -> list[str]:
    """Return the arguments without the --, which Slicer leaves to the script."""
    return sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]


if __name__ == "__main__":
    if not __package__:  # run as a file, whose folder came first: there `table` would be ours
        here = Path(sys.argv[0]).resolve().parent
        sys.path[:] = [str(here.parents[1]), *(path for path in sys.path if Path(path).resolve() != here)]
    slicer = sys.modules.get("slicer")
    if getattr(slicer, "app", None) is None:
        sys.exit(run(_arguments()))
    run_in_slicer(slicer, _arguments())
