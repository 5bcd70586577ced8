"""Show progress: one line that updates itself on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING

from ..text import english, tr
from ..workflow.pace import Pace, duration

if TYPE_CHECKING:
    from .cohort.tally import Tally

#: Minimum seconds between two lines of one stage where lines do not update themselves.
_PAUSE = 5.0


class ProgressPrinter:
    """Show the progress of one run; called as progress(stage, fraction of the run in [0, 1]).

    Parameters
    ----------
    as_json : bool
        Print an object per line on stdout, {"stage", "fraction", "seconds_left"}; otherwise text on stderr.
    """

    def __init__(self, as_json: bool = False):
        self._as_json = as_json
        self._updates = not as_json and sys.stderr.isatty()
        self._pace = Pace()
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        """Show a stage and the fraction of the run; between two lines of one stage some time passes."""
        now = time.monotonic()
        if stage == self._stage and now - self._last < (0.1 if self._updates else _PAUSE):
            return
        self._stage, self._last = stage, now
        left = self._pace.seconds_left(stage, fraction)
        if self._as_json:
            seconds = None if left is None else round(left, 1)
            line = {"stage": english(stage), "fraction": round(fraction, 4), "seconds_left": seconds}
            print(json.dumps(line), flush=True)
            return
        text: str = f"{stage:<12}{fraction:6.0%}"
        if left is not None:
            text = tr("{text}  {time} left", text=text, time=duration(left))
        if self._updates:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Return the terminal's cursor to the start of an empty line."""
        if self._updates and self._stage:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class CohortProgress:
    """Show the progress of a cohort: a bar on a terminal (with rich), occasional lines elsewhere, JSON for programs.

    Parameters
    ----------
    as_json : bool
        Print an object per line on stdout: {"done", "failed", "left", "running", "seconds_left"}, {"note"}, or
        {"pair", "error"} for a pair that failed. Otherwise text on stderr.
    details : bool
        Print the tracebacks of unexpected errors.
    """

    def __init__(self, as_json: bool = False, details: bool = False):
        self._as_json = as_json
        self._details = details
        self._began = (0.0, 0)  # when, and how many pairs were settled then
        self._shown: tuple[float, str | None] = (-math.inf, None)
        self._bar = None

    def start(self, tally: Tally, workers: str) -> None:
        """Announce the start of the pairs that are left. workers: a phrase about these."""
        self._began = (time.monotonic(), tally.total - len(tally.left))
        left = len(tally.left)
        if left == 1:
            self.say(tr("1 pair to register, {done} done before; {workers}", done=tally.done, workers=workers))
        else:
            self.say(
                tr(
                    "{left} pairs to register, {done} done before; {workers}",
                    left=left,
                    done=tally.done,
                    workers=workers,
                )
            )
        if not self._as_json and sys.stderr.isatty():
            self._bar = _bar(tally)

    def show(self, tally: Tally, running: int, waiting: bool) -> None:
        """Show how many pairs are done; prints at most a line every few seconds, however often it is called.

        Parameters
        ----------
        tally : Tally
        running : int
            Number of pairs that are being registered.
        waiting : bool
            Whether there is no worker.
        """
        text, left = self._standing(tally, waiting), self._seconds_left(tally)
        if self._bar is not None:
            settled = tally.total - len(tally.left)
            self._bar.update(self._bar.task_ids[0], completed=settled, text=text)
            return
        when, before = self._shown
        if text == before or (tally.left and time.monotonic() - when < _PAUSE):
            return
        self._shown = (time.monotonic(), text)
        if self._as_json:
            seconds = None if left is None else round(left, 1)
            counts = {"done": tally.done, "failed": tally.failed, "left": len(tally.left), "running": running}
            self._line(counts | {"seconds_left": seconds})
        else:
            self._line(text)

    def failed(self, pair: str, sentence: str, details: str | None = None) -> None:
        """Show that a pair failed. details: the traceback."""
        if self._as_json:
            self._line({"pair": pair, "error": sentence})
        else:
            self._line(tr("{pair} failed: {reason}", pair=pair, reason=sentence))
        if details and self._details:
            print(details, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Show a sentence."""
        self._line({"note": text} if self._as_json else text)

    def close(self) -> None:
        """Remove the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _line(self, content) -> None:
        if self._as_json:
            print(json.dumps(content), flush=True)
        elif self._bar is not None:
            self._bar.console.print(content, markup=False, highlight=False)
        else:
            print(content, file=sys.stderr, flush=True)

    def _standing(self, tally: Tally, waiting: bool) -> str:
        left = self._seconds_left(tally)
        counts = {"done": tally.done, "failed": tally.failed, "left": len(tally.left)}
        text: str = tr("{done} done, {failed} failed, {left} left", **counts)
        if tally.left and waiting:
            text = tr("{text}, waiting for workers", text=text)
        return text if left is None else tr("{text}, about {time}", text=text, time=duration(left))

    def _seconds_left(self, tally: Tally) -> float | None:
        """Estimate from the pace since the start; None before the first pair and after the last."""
        began, before = self._began
        settled = tally.total - len(tally.left) - before
        return (time.monotonic() - began) / settled * len(tally.left) if settled and tally.left else None


def _bar(tally: Tally):
    """Return a live bar of rich, or None without rich."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    except ImportError:
        return None
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}", markup=False))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    bar.add_task("", total=tally.total, text="")
    bar.start()
    return bar
