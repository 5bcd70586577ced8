"""Estimate the time left, and put durations into words."""

from __future__ import annotations

import time

from ..text import Sentence, tr


class Pace:
    """Seconds left, by the pace of the present stage: stages differ too much from machine to machine to mix them."""

    def __init__(self):
        self._stage: str | None = None
        self._began = (0.0, 0.0)  # when the stage began, and at which fraction of the run

    def seconds_left(self, stage: str, fraction: float) -> float | None:
        """Return the seconds that are left; None where it is too early to tell. To be called as the run goes on."""
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._began = stage, (now, fraction)
        start, done = self._began
        return (now - start) * (1 - fraction) / (fraction - done) if fraction - done > 0.02 else None


def duration(seconds: float) -> Sentence:
    """Put seconds into words.

    Examples
    --------
    >>> duration(65)
    '1 min 05 s'
    """
    minutes, seconds = divmod(round(seconds), 60)
    if minutes:
        return tr("{minutes} min {seconds:02d} s", minutes=minutes, seconds=seconds)
    return tr("{seconds} s", seconds=seconds)
