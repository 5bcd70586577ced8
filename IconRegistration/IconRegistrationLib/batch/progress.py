"""How far a run is: one line that updates itself on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from typing import TYPE_CHECKING

from ..workflow.pace import Pace, duration

if TYPE_CHECKING:
    from .cohort.tally import Tally

#: Least seconds between two lines of one stage where nothing updates itself.
_PAUSE = 5.0


class ProgressPrinter:
    """Called as progress(stage, fraction of the run in [0, 1]).

    as_json: an object per line on stdout, {"stage", "fraction", "seconds_left"}; otherwise text on stderr.
    """

    def __init__(self, as_json: bool = False):
        self._as_json = as_json
        self._updates = not as_json and sys.stderr.isatty()
        self._pace = Pace()
        self._stage = ""
        self._last = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._last < (0.1 if self._updates else _PAUSE):
            return
        self._stage, self._last = stage, now
        left = self._pace.seconds_left(stage, fraction)
        if self._as_json:
            seconds = None if left is None else round(left, 1)
            print(json.dumps({"stage": stage, "fraction": round(fraction, 4), "seconds_left": seconds}), flush=True)
            return
        text = f"{stage:<12}{fraction:6.0%}" + ("" if left is None else f"  {duration(left)} left")
        if self._updates:
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal's cursor at the start of an empty line."""
        if self._updates and self._stage:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class CohortProgress:
    """How far a cohort is: a bar on a terminal (with rich), a line now and then elsewhere, JSON for programs.

    as_json: an object per line on stdout: {"done", "failed", "left", "running", "seconds_left"}, {"note"},
        {"pair", "error"} of a pair that failed. Otherwise text on stderr.
    details: show the traceback of what was not expected.
    """

    def __init__(self, as_json: bool = False, details: bool = False):
        self._as_json = as_json
        self._details = details
        self._began = (0.0, 0)  # when, and how many pairs were settled then
        self._shown = (-math.inf, None)
        self._bar = None

    def start(self, tally: Tally, workers: str) -> None:
        """The pairs that are left begin."""
        self._began = (time.monotonic(), tally.total - len(tally.left))
        self.say(f"{_count(len(tally.left), 'pair')} to register, {tally.done} done before; {workers}")
        if not self._as_json and sys.stderr.isatty():
            self._bar = _bar(tally)

    def show(self, tally: Tally, running: int, waiting: bool) -> None:
        """Called as often as one likes; a line is not printed more often than every few seconds.

        waiting: no worker is there.
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
        """A pair failed; details: the traceback."""
        if self._as_json:
            self._line({"pair": pair, "error": sentence})
        else:
            self._line(f"{pair} failed: {sentence}")
        if details and self._details:
            print(details, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A sentence for who watches."""
        self._line({"note": text} if self._as_json else text)

    def close(self) -> None:
        """Leave the terminal as it was."""
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
        text = f"{tally.done} done, {tally.failed} failed, {len(tally.left)} left"
        if tally.left and waiting:
            text += ", waiting for workers"
        return text if left is None else f"{text}, about {duration(left)}"

    def _seconds_left(self, tally: Tally) -> float | None:
        """By the pace since the start; None before the first pair, and after the last."""
        began, before = self._began
        settled = tally.total - len(tally.left) - before
        return (time.monotonic() - began) / settled * len(tally.left) if settled and tally.left else None


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _bar(tally: Tally):
    """A live bar of rich, or None without rich."""
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
