"""How far a run is: one line that updates itself on a terminal, lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import sys
import time

#: Least seconds between two lines of one stage where nothing updates itself.
_PAUSE = 5.0


class Progress:
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


class Pace:
    """Seconds left, by the pace of the present stage: stages differ too much from machine to machine to mix them."""

    def __init__(self):
        self._stage: str | None = None
        self._began = (0.0, 0.0)  # when the stage began, and at which fraction of the run

    def seconds_left(self, stage: str, fraction: float) -> float | None:
        """Called as the run goes on; None where it is too early to tell."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began = stage, (now, fraction)
        start, done = self._began
        return (now - start) * (1 - fraction) / (fraction - done) if fraction - done > 0.02 else None


def duration(seconds: float) -> str:
    """In words: 1 min 05 s."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
