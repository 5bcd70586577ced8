"""Variants measured alternately, every measurement in a process of its own: its memory is its own.

A script that uses this accepts `--measure VARIANT FOLDER` besides its other arguments, and then prints one JSON object
of numbers as its last line.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path


class PeakMemory:
    """The most memory that this process holds at once, in GiB, beyond what it holds when this is made."""

    def __init__(self):
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux then counts the peak anew
        except OSError:
            self._base = self._peak()
        else:
            self._base = self._status("VmRSS")

    def above_base(self) -> float:
        return max(self._peak() - self._base, 0.0)

    def _peak(self) -> float:
        if Path("/proc/self/status").exists():
            return self._status("VmHWM")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30  # macOS counts bytes

    @staticmethod
    def _status(name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(name))) / 2**20


def alternately(script: str, variants: Iterable[str], rounds: int, folder: str | Path, *arguments) -> dict[str, dict]:
    """The least of every number over the rounds, by variant; the first variant that fails ends it all."""
    best: dict[str, dict] = {}
    for _ in range(rounds):
        for variant in variants:
            command = [sys.executable, script, "--measure", variant, str(folder), *map(str, arguments)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            result = json.loads(output.strip().splitlines()[-1])
            best[variant] = {key: min(value, best.get(variant, result)[key]) for key, value in result.items()}
    return best
