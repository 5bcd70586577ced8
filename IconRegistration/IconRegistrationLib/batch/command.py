"""The command `icon-registration`: files in, a folder of results out.

Nothing heavy is imported at the top: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from .. import __version__
from ..errors import InputError, explain
from ..machine import wait_briefly
from ..text import tr
from .commands import cohort, demo, models, propagate, register, warp
from .compatibility import translate

#: Every command: its module has `add_options(parser)` and `run(args)`.
COMMANDS = {
    "register": (register, "Register a moving volume to a fixed one."),
    "cohort": (cohort, "Register the many pairs of a manifest, on all processors or on a cluster."),
    "propagate": (propagate, "Carry the labels of one atlas or several to many images."),
    "warp": (warp, "Apply a saved transform to a volume, a segmentation or landmarks."),
    "models": (models, "List the models, and where their weights are."),
    "demo": (demo, "Make a phantom of a breathing torso, register it, show how well that worked."),
}

#: By what `errors.explain` calls the kind of an error.
_EXIT_CODES = {"input": 2, "memory": 1, "folder": 1, "dependency": 1, "unexpected": 1, "cancelled": 130}


class _Terminated(BaseException):
    """SIGTERM, as an exception: everything that was begun is cleared away."""


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other wrong input: one sentence, exit code 2."""

    def error(self, message: str):
        raise InputError(f"{message}; see {self.prog} --help.")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code (docs/command.md)."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    wait_briefly()
    try:
        args = build_parser().parse_args(translate(arguments))
        with _termination_as_exception():
            return args.run(args) or 0
    except _Terminated as stop:
        return _failed(143, str(stop) or tr("Terminated; nothing was changed."), debug)
    except (Exception, KeyboardInterrupt) as error:
        kind, sentence = explain(error)
        if kind == "unexpected" and not debug:
            sentence = tr("{sentence} Run again with --debug to see where.", sentence=sentence)
        return _failed(_EXIT_CODES[kind], sentence, debug)


def _failed(code: int, sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    lines = (" ".join(line.split()) for line in sentence.splitlines())  # a manifest's mistakes are one on each
    print("icon-registration: " + "\n".join(filter(None, lines)), file=sys.stderr)
    return code


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # Python's rule for signal handlers
        yield
        return

    def stop(number, frame):
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def build_parser() -> argparse.ArgumentParser:
    """The parser; `run` of what it parses is the function to call."""
    parser = _Parser(prog="icon-registration", description="Deformable registration of volumes.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        command.set_defaults(run=module.run)
        module.add_options(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
