"""Two things that the libraries leave undone on a CPU: to use a second core, and to keep memory that is used again."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

#: Bytes of freed memory that the process keeps, and the size from which on a block is asked of the system by itself;
#: in training two volumes of 175^3 are not yet such a block.
KEPT, SEPARATE, SEPARATE_IN_TRAINING = 100_000_000, 2**25, 46 * 2**20

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)


def keep_freed_memory(separate: int = SEPARATE) -> None:
    """Up to KEPT bytes of what is freed stay with the process; glibc would hand them back after every other tensor.

    The system clears each page that it hands out anew. Where tensors of megabytes are made by the hundred that takes a
    fifth of the time (docs/benchmarks.md). Nothing happens without glibc.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_TRIM_THRESHOLD, KEPT)
    mallopt(_M_TOP_PAD, KEPT)  # else all of it goes as soon as it is one byte more
    mallopt(_M_MMAP_THRESHOLD, separate)


def both(function: Callable, *arguments) -> list:
    """`function` of the first and of the second of each of the arguments, at the same time."""
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(function, *arguments))


def physical_memory() -> int | None:
    """Bytes of main memory, or of the control group's limit; None where the system does not say."""
    import os

    limits = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limits.append(int(file.read()))
    except (OSError, ValueError):  # no control group, or "max"
        pass
    return min(limits, default=None)
