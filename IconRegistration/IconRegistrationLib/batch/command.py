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
from ..errors import InputError, explain, words_of
from ..machine import wait_briefly
from ..text import tr
from .commands import find_commands
from .compatibility import translate

#: Exit codes by the kind of error that `errors.explain` returns.
_EXIT_CODES = {"input": 2, "memory": 1, "folder": 1, "dependency": 1, "unexpected": 1, "cancelled": 130}


class _Terminated(BaseException):
    """Raised by SIGTERM, so that unfinished files are removed."""


class _Parser(argparse.ArgumentParser):
    """Report wrong usage as any other wrong input: one sentence, exit code 2."""

    def error(self, message: str):
        raise InputError(tr("{message}; see {command} --help.", message=message, command=self.prog))

    def parse_args(self, args=None, namespace=None):
        """Parse as argparse does, but let the parser of the command, not the outermost one, refuse what is unknown."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            getattr(found, "parser", self).error(f"unrecognized arguments: {' '.join(unknown)}")
        return found


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : list of str, optional
        Arguments without the program's name; by default those of this process.

    Returns
    -------
    int
        The exit code (docs/command.md).
    """
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    wait_briefly()
    try:
        args = build_parser().parse_args(translate(arguments))
        with _termination_as_exception():
            return args.run(args) or 0
    except _Terminated as stop:
        return _failed(143, words_of(stop) or tr("Terminated; nothing was changed."), debug)
    except (Exception, KeyboardInterrupt) as error:
        kind, sentence = explain(error)
        if kind == "unexpected" and not debug:
            sentence = tr("{sentence} Run again with --debug to see where.", sentence=sentence)
        return _failed(_EXIT_CODES[kind], sentence, debug)


def _failed(code: int, sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    lines = (" ".join(line.split()) for line in sentence.splitlines())  # a manifest's mistakes have a line each
    print("icon-registration: " + "\n".join(filter(None, lines)), file=sys.stderr)
    return code


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does."""
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
    """Return the parser; `run` of the namespace that it returns is the function to call."""
    parser = _Parser(prog="icon-registration", description="Deformable registration of volumes.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, module in find_commands().items():
        command = commands.add_parser(name, help=module.HELP, description=module.HELP, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the whole traceback of an error")
        command.set_defaults(run=module.run, parser=command)
        module.add_options(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
