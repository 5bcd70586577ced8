"""How tests wait: for an event, never for a time."""

import time

#: Seconds after which a test gives up. It matters only where something hangs, never on a busy machine.
PATIENCE = 300.0


def until(condition) -> None:
    """Return when `condition()` holds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it did not happen within {PATIENCE:.0f} s"
        time.sleep(0.02)


class Clock:
    """What a module takes for `time`: a test puts it ahead, instead of waiting."""

    def __init__(self):
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead
