"""CPU workarounds: short waiting, two-thread execution, freed memory kept; existing memory and processes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")

#: Bytes of freed memory that the process keeps (mallopt's M_TRIM_THRESHOLD).
TRIM_THRESHOLD = 100_000_000
#: Bytes from which on a block is requested from the system by itself (mallopt's M_MMAP_THRESHOLD).
MMAP_THRESHOLD = 2**25
#: The same where a network is trained: two volumes of 175^3 are not yet such a block.
MMAP_THRESHOLD_IN_TRAINING = 46 * 2**20

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # mallopt(3)

#: What OpenMP's threads do at a barrier before they sleep: libgomp counts turns of a loop, LLVM's and Intel's libraries
#: milliseconds. Testing/benchmarks/busy.py compares such choices; its table is not in the docs yet.
WAITING = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
#: Environment variables with which a user sets the wait policy.
_CHOSEN_BY_THE_USER = ("OMP_WAIT_POLICY", *WAITING)


def wait_briefly(environment: MutableMapping[str, str] | None = None) -> None:
    """Let OpenMP's threads sleep soon when they wait, if nobody has chosen how they wait.

    By default they spin at every barrier for a thread that the system has put aside, which costs most beside one
    other busy process. OpenMP reads the variables when torch loads it; a process that
    holds torch already is not changed.

    Parameters
    ----------
    environment : mapping of str to str, optional
        The variables to change: those of this process unless given.
    """
    environment = os.environ if environment is None else environment
    if not any(name in environment for name in _CHOSEN_BY_THE_USER):
        environment.update(WAITING)


def keep_freed_memory(training: bool = False) -> None:
    """Keep up to TRIM_THRESHOLD bytes of freed memory in this process, from now on; without glibc nothing happens.

    glibc would return them to the system after every other tensor, and the system clears each page that it hands out
    anew. Where tensors of megabytes are made by the hundred that takes a fifth of the time (docs/benchmarks.md). It
    changes the whole process: the worker and the command call it, the library within another program does not.

    Parameters
    ----------
    training : bool
        Whether the weights of a network are about to be trained, which makes larger tensors by the hundred.
    """
    if sys.platform != "linux":
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)
    mallopt(_M_TOP_PAD, TRIM_THRESHOLD)  # else all of it is returned as soon as it is one byte more
    mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD_IN_TRAINING if training else MMAP_THRESHOLD)


def map_both_directions(function: Callable[..., _Result], *arguments: Iterable[Any]) -> list[_Result]:
    """Return `function` of the first and of the second of each of `arguments`, computed at the same time.

    Examples
    --------
    >>> map_both_directions(max, (1, 2), (3, 0))
    [3, 2]
    """
    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(function, *arguments))


def physical_memory() -> int | None:
    """Return the bytes of main memory, or of the control group's limit; None where the system does not say."""
    limits = []
    if sys.platform != "win32" and "SC_PHYS_PAGES" in os.sysconf_names:
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            limits.append(int(file.read()))
    except (OSError, ValueError):  # no control group, or "max"
        pass
    return min(limits, default=None)


def process_is_alive(pid: int) -> bool:
    """Return whether a process of this machine has this number; True where the system does not tell.

    Examples
    --------
    >>> process_is_alive(os.getpid())
    True
    """
    if sys.platform == "win32":  # where os.kill(pid, 0) would send Ctrl-C
        return _is_alive_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


if sys.platform == "win32":

    def _is_alive_on_windows(pid: int) -> bool:
        from ctypes import wintypes

        query_limited_information, access_denied, still_active = 0x1000, 5, 259
        kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
        kernel32.OpenProcess.argtypes = (wintypes.DWORD, wintypes.BOOL, wintypes.DWORD)
        kernel32.OpenProcess.restype = wintypes.HANDLE
        kernel32.GetExitCodeProcess.argtypes = (wintypes.HANDLE, wintypes.LPDWORD)
        kernel32.CloseHandle.argtypes = (wintypes.HANDLE,)
        if not 0 <= pid < 2**32:
            return False
        handle = kernel32.OpenProcess(query_limited_information, False, pid)
        if not handle:
            return ctypes.get_last_error() == access_denied  # another user's
        try:
            code = wintypes.DWORD()
            return not kernel32.GetExitCodeProcess(handle, ctypes.byref(code)) or code.value == still_active
        finally:
            kernel32.CloseHandle(handle)
