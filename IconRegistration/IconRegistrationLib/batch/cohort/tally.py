"""Count the finished, failed and remaining pairs of a cohort."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Tally:
    """State of a cohort.

    Attributes
    ----------
    done, failed : int
        Numbers of pairs.
    kept : int
        Pairs that failed before and are not tried again; `failed` counts them too.
    left : dict
        Ids of the pairs that are neither done nor failed, in order; an ordered set.
    """

    done: int = 0
    failed: int = 0
    kept: int = 0
    left: dict[str, None] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Number of all pairs of the manifest."""
        return self.done + self.failed + len(self.left)
