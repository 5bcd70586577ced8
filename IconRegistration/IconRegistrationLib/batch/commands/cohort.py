"""`icon-registration cohort`: register many pairs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ...errors import FolderError, InputError
from ...text import tr
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
    """Add the options of `cohort`."""
    parser.epilog = "Run again with the same DIR, it continues where it stopped. See docs/cohort.md."
    add_entries(parser)
    add_settings(parser)
    out = parser.add_argument_group("outputs")
    out.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder of the cohort, new or unfinished")
    add_outputs(out)
    out.add_argument("--json", action="store_true", help="progress and result as JSON objects on stdout")
    add_execution(parser)


def add_execution(parser: argparse.ArgumentParser) -> None:
    """Add the options for where and how pairs are run, which `run_entries` reads."""
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
    """Run the cohort and return the exit code: 0 if all pairs are done, 3 if some failed, 1 if it had to stop."""
    check_execution(args)
    entries, notes = entries_of(args, with_absolute_paths(settings_of(args)))
    return run_entries(args, entries, notes, outputs_of(args))


def check_execution(args: argparse.Namespace) -> None:
    """Raise InputError if options of `add_execution` make no sense."""
    if args.workers is not None and args.workers < 1:
        raise InputError(tr("--workers is {count}; at least one is needed.", count=args.workers))
    if args.workers is not None and args.scheduler:
        raise InputError(tr("--workers is for this computer, --scheduler for a cluster that has its own; choose one."))
    if args.timeout is not None and not args.timeout > 0:
        raise InputError(tr("--timeout is {minutes:g} minutes; it must be positive.", minutes=args.timeout))


def run_entries(
    args: argparse.Namespace, entries: Sequence[Entry], notes: Iterable[str], outputs: OutputOptions
) -> int:
    """Run the pairs as the options say and print the outcome; return the exit code of `run`."""
    progress = CohortProgress(args.json, args.debug)
    for note in notes:
        progress.say(note)
    options = {"workers": args.workers, "scheduler": args.scheduler, "retry_failed": args.retry_failed}
    tally, problem = Tally(), None
    try:
        run_cohort(entries, args.out, outputs, minutes=args.timeout, progress=progress, tally=tally, **options)
    except (FolderError, ClusterError) as error:
        problem = error.args[0]
    except BaseException as stop:
        if isinstance(stop, Exception):
            raise
        raise type(stop)(tr("Stopped; {standing}. The same command continues.", standing=_standing(tally))) from None
    finally:
        progress.close()
    if args.json:
        result = {"folder": str(args.out), "done": tally.done, "failed": tally.failed, "left": len(tally.left)}
        print(json.dumps({"result": result | {"error": problem}}), flush=True)
    else:
        print(tr("{standing}. See {page}", standing=_standing(tally), page=args.out / "cohort.html"))
    if problem:
        print(f"icon-registration: {problem}", file=sys.stderr)
        return 1
    return 3 if tally.failed else 0


def _standing(tally: Tally) -> str:
    counts = {"done": tally.done, "total": tally.total, "failed": tally.failed, "left": len(tally.left)}
    text = tr("{done} of {total} pairs are done, {failed} failed, {left} are left", **counts)
    if not tally.kept:
        return text
    return tr("{text} ({kept} failed before; --retry-failed tries them again)", text=text, kept=tally.kept)
