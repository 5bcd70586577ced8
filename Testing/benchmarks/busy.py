"""What a registration costs beside busy processes, for several ways in which OpenMP's threads wait.

    python Testing/benchmarks/busy.py [--fixed F --moving M] [--neighbours 0 1 2] [--spins 300000 ours] [--rounds 3]

Each run is the whole command `register --no-scene --no-pictures` in a process of its own, all at the same priority as
their neighbours, which do nothing but count. The ways alternate within a round, so that a machine that drifts does so
for all. "ours" is what the command chooses by itself; 300000 is libgomp's own choice. Without images: the demo's
phantom. The table has the median wall and CPU seconds of the rounds, and the ratio to the idle machine.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from IconRegistrationLib.machine import WAITING

BUSY = "n = 0\nwhile True:\n    n += 1"


@contextmanager
def neighbours(count: int):
    """Let `count` processes count for as long as the block runs."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(fixed: str, moving: str, spins: str) -> tuple[float, float]:
    """Return wall and CPU seconds of one command."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", *WAITING)}
    if spins != "ours":
        environment["GOMP_SPINCOUNT"] = spins
    command = [sys.executable, "-m", "IconRegistrationLib.batch.command", "register"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--fixed", fixed, "--moving", moving, "--no-scene", "--no-pictures", "--out", f"{folder}/out"]
        subprocess.run([*command, *options], env=environment, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - start, cpu


def phantom(folder: Path) -> tuple[str, str]:
    """Write the demo's pair into `folder`; return the two paths."""
    from IconRegistrationLib.demo.phantom import make_phantom
    from IconRegistrationLib.io.images import write_image

    pair = make_phantom().inputs
    paths = folder / "fixed.nii.gz", folder / "moving.nii.gz"
    for image, path in zip((pair.fixed, pair.moving), paths, strict=True):
        write_image(image, path)
    return str(paths[0]), str(paths[1])


def main():
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fixed")
    parser.add_argument("--moving")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--spins", nargs="+", default=["300000", "ours"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fixed, moving = (args.fixed, args.moving) if args.fixed else phantom(Path(folder))
        run(fixed, moving, "ours")  # the disk's cache is warm
        found: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for _ in range(args.rounds):
            for count in args.neighbours:
                for spins in args.spins:
                    with neighbours(count):
                        # CPU seconds of the neighbours come to this process when they are waited for, after the run
                        found.setdefault((count, spins), []).append(run(fixed, moving, spins))
    print("| busy neighbours | " + " | ".join(f"{spins}: wall s, CPU s, times idle" for spins in args.spins) + " |")
    print("|-" * (len(args.spins) + 1) + "|")
    for count in args.neighbours:
        cells = []
        for spins in args.spins:
            wall, cpu = (statistics.median(column) for column in zip(*found[count, spins], strict=True))
            idle = statistics.median(wall for wall, _ in found[args.neighbours[0], spins])
            cells.append(f"{wall:.1f}, {cpu:.1f}, {wall / idle:.2f}")
        print(f"| {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
