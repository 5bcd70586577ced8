"""Count the finished, failed and remaining pairs of a cohort."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """How a cohort stands.

    left: ids of pairs that are neither done nor failed, in order.  kept: those that failed before and are not tried
    again; `failed` counts them too.
    """

    done: int = 0
    failed: int = 0
    kept: int = 0
    left: dict[str, None] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """All pairs of the manifest."""
        return self.done + self.failed + len(self.left)
