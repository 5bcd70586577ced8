"""`icon-registration cohort`: register many pairs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import FolderError, InputError
from ..cohort.cluster import ClusterError
from ..cohort.driver import run_cohort
from ..cohort.entries import Entry, with_absolute_paths
from ..cohort.selection import add_entries, entries_of
from ..cohort.tally import Tally
from ..options import add_outputs, add_settings, outputs_of, settings_of
from ..pair import OutputOptions
from ..progress import CohortProgress

HELP = "Register many pairs: the rows of a table, a BIDS data set, or all images to one atlas."


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `cohort`."""
    parser.epilog = "Started again with the same DIR it goes on where it stopped. docs/cohort.md says more."
    add_entries(parser)
    add_settings(parser)
    out = parser.add_argument_group("outputs")
    out.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder of the cohort; may be a begun one")
    add_outputs(out)
    out.add_argument("--json", action="store_true", help="progress and result as JSON objects on stdout")
    add_execution(parser)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """The options for where and how the pairs are run, for `run_entries`."""
    where = parser.add_argument_group("execution")
    where.add_argument(
        "--workers", metavar="N", type=int, help="processes (default: by GPUs, or processors and memory)"
    )
    where.add_argument("--scheduler", metavar="ADDRESS", help="a Dask scheduler, tcp://host:8786, instead of processes")
    where.add_argument("--retry-failed", action="store_true", help="run the pairs that failed, and only those")
    where.add_argument(
        "--timeout", metavar="MIN", type=float, help="minutes after which a pair hangs (default: by size)"
    )


def run(args: argparse.Namespace) -> int:
    """The exit code: 0 if all pairs are done, 3 if some failed, 1 if it could not go on."""
    check_execution(args)
    entries, notes = entries_of(args, with_absolute_paths(settings_of(args)))
    return run_entries(args, entries, notes, outputs_of(args))


def check_execution(args: argparse.Namespace) -> None:
    """InputError if options of `add_execution` cannot be meant."""
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers is {args.workers}; at least one is needed.")
    if args.workers is not None and args.scheduler:
        raise InputError("--workers is for this computer, --scheduler for a cluster that has its own; choose one.")
    if args.timeout is not None and not args.timeout > 0:
        raise InputError(f"--timeout is {args.timeout:g} minutes; it must be positive.")


def run_entries(
    args: argparse.Namespace, entries: Sequence[Entry], notes: Iterable[str], outputs: OutputOptions
) -> int:
    """Run them as the options say, and say how it went: the exit code of `run`."""
    progress = CohortProgress(args.json, args.debug)
    for note in notes:
        progress.say(note)
    options = {"workers": args.workers, "scheduler": args.scheduler, "retry_failed": args.retry_failed}
    tally, problem = Tally(), None
    try:
        run_cohort(entries, args.out, outputs, minutes=args.timeout, progress=progress, tally=tally, **options)
    except (FolderError, ClusterError) as error:
        problem = str(error)
    except BaseException as stop:
        if isinstance(stop, Exception):
            raise
        raise type(stop)(f"stopped; {_standing(tally)}. The same command goes on.") from None
    finally:
        progress.close()
    if args.json:
        result = {"folder": str(args.out), "done": tally.done, "failed": tally.failed, "left": len(tally.left)}
        print(json.dumps({"result": result | {"error": problem}}), flush=True)
    else:
        print(f"{_standing(tally)}. See {args.out / 'cohort.html'}")
    if problem:
        print(f"icon-registration: {problem}", file=sys.stderr)
        return 1
    return 3 if tally.failed else 0


def _standing(tally: Tally) -> str:
    text = f"{tally.done} of {tally.total} pairs are done, {tally.failed} failed, {len(tally.left)} are left"
    return f"{text} ({tally.kept} failed before; --retry-failed tries them again)" if tally.kept else text
