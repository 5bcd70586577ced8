"""What the cohort runner itself costs: real small pairs, and thousands of pairs that only sleep.

    python Testing/benchmarks/cohort.py FOLDER [--pairs 100] [--size 56] [--simulate 10000]

FOLDER takes inputs and results; it has to be empty or not there. `--pairs 0` or `--simulate 0` leaves a part out.

First table, phantoms of `--size` voxels along an axis, registered at a spacing of 8 mm, without scene and pictures, by
one and by two workers: seconds are the pairs' own, in their workers, whose first pair loads libraries; start is from
the command to the first pair's beginning, end from the last pair's end to the command's; overhead is what workers spent
between pairs (the last ones' waiting for each other included), per pair. Second table, `--simulate` pairs of 50 ms with
a real report, through the real runner and two workers: the driver is killed (SIGKILL) when half of them are done, and
started again. Memory is the driver's resident set, once a second.
"""

import argparse
import csv
import functools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

#: Of the lattice, mm: small pairs are where a runner's cost shows.
SPACING = "8"
#: Seconds that a simulated pair takes.
NAP = 0.05


# --------------------------------------------------------------------------------------------------------- real pairs


def real_pairs(folder: Path, count: int, size: int, workers: int) -> str:
    """A line of the first table."""
    manifest = write_phantoms(folder / "inputs", count, size)
    out = folder / f"by_{workers}"
    command = [sys.executable, "-m", "IconRegistrationLib.batch.command", "cohort", manifest, "--out", out]
    began = time.time()
    more = ["--spacing", SPACING, "--no-scene", "--no-pictures", "--workers", str(workers)]
    subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
    ended = time.time()
    rows = {path.stat().st_mtime: json.loads(path.read_text()) for path in out.glob("pairs/*/row.json")}
    seconds = [rows[when]["seconds"] for when in sorted(rows)]
    first = min(when - row["seconds"] for when, row in rows.items())
    overhead = (workers * (max(rows) - first) - sum(seconds)) / count
    usual = mean(seconds[workers:])
    return (
        f"| {workers} | {count} | {mean(seconds[:workers]):.1f} | {usual:.2f} | {3600 * count / (ended - began):.0f} | "
        f"{first - began:.1f} | {ended - max(rows):.1f} | {1000 * overhead:.0f} ms, {overhead / usual:.1%} |"
    )


def write_phantoms(folder: Path, count: int, size: int) -> Path:
    """A manifest of `count` rows, over four phantoms with segmentations and landmarks."""
    from IconRegistrationLib.batch.outputs import write_inputs
    from IconRegistrationLib.demo.phantom import make_phantom

    manifest = folder / "pairs.csv"
    if manifest.exists():
        return manifest
    for seed in range(4):
        (folder / str(seed)).mkdir(parents=True)
        write_inputs(folder / str(seed), make_phantom(seed, size).inputs)
    ends = {"": ".nii.gz", "_segmentation": ".seg.nrrd", "_landmarks": ".mrk.json"}
    with open(manifest, "w", newline="") as file:
        columns = [(side, kind) for kind in ends for side in ("fixed", "moving")]
        writer = csv.writer(file)
        writer.writerow(["id", *(side + kind for side, kind in columns)])
        writer.writerows(
            [f"pair-{n}", *(f"{n % 4}/inputs/{side}{ends[kind]}" for side, kind in columns)] for n in range(count)
        )
    return manifest


# ---------------------------------------------------------------------------------------------------------- simulation


def nap(pair, folder, outputs, progress, load):
    """In place of `register_pair`: sleeps, writes a file, and answers with a report that a registration had."""
    time.sleep(NAP)
    (folder / "report.txt").write_text("0" * 1000)
    return SimpleNamespace(report=SimpleNamespace(to_dict=lambda: _report(Path(pair.fixed).parent))), []


@functools.cache
def _report(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def write_simulation(folder: Path, count: int, report: dict) -> Path:
    """A manifest of `count` pairs of files of their own."""
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(report))
    for n in range(count):
        for side in ("fixed", "moving"):
            (folder / f"{side}-{n}.nii").write_text(f"{side} {n}")
    manifest = folder / "pairs.csv"
    rows = (f"pair-{n},fixed-{n}.nii,moving-{n}.nii\n" for n in range(count))
    manifest.write_text("id,fixed,moving\n" + "".join(rows))
    return manifest


def drive(manifest: Path, out: Path) -> None:
    """The driver of the simulation, in a process of its own."""
    import cohort  # this file, as the workers import it

    from IconRegistrationLib.batch.cohort.driver import run_cohort
    from IconRegistrationLib.batch.cohort.manifest import read_manifest
    from IconRegistrationLib.batch.pair import OutputOptions
    from IconRegistrationLib.registration.settings import Settings

    entries = read_manifest(manifest, Settings(device="cpu"))
    run_cohort(entries, out, OutputOptions(scene=False, pictures=False), workers=2, register=cohort.nap)


def watch(manifest: Path, out: Path, kill_at: int | None = None) -> list[tuple[float, int, float]]:
    """Start the driver, until it ends or has so many pairs and is killed: (seconds, pairs, MiB) all along."""
    import psutil

    here = os.pathsep.join([str(Path(__file__).resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, __file__, str(manifest.parent), "--drive", str(manifest), str(out)]
    began, samples = time.monotonic(), []
    driver = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": here}, stderr=subprocess.DEVNULL)
    process, before = psutil.Process(driver.pid), done_in(out)
    while driver.poll() is None:
        try:
            memory = process.memory_info().rss / 2**20
        except psutil.Error:
            break
        samples.append((time.monotonic() - began, done_in(out), memory))
        if kill_at is not None and samples[-1][1] >= kill_at:
            driver.kill()
            break
        time.sleep(0.1 if samples[-1][1] < before + 10 else 1.0)
    code = driver.wait()
    if code != (0 if kill_at is None else -signal.SIGKILL):
        raise RuntimeError(f"the driver ended with {code}")
    return [*samples, (time.monotonic() - began, done_in(out), samples[-1][2])]


def done_in(out: Path) -> int:
    """Finished pairs."""
    return sum(not name.startswith(".") for name in os.listdir(out / "pairs")) if (out / "pairs").is_dir() else 0


def simulation(folder: Path, count: int) -> list[str]:
    """Lines of the second table, and what the kill cost."""
    from IconRegistrationLib.demo.phantom import make_phantom
    from IconRegistrationLib.registration.settings import Settings
    from IconRegistrationLib.workflow.pipeline import compute

    report = compute(make_phantom(size=32).inputs, Settings(steps=2, spacing=16.0, device="cpu")).report.to_dict()
    manifest, out = write_simulation(folder / "simulated", count, report), folder / "simulation"
    killed = watch(manifest, out, kill_at=count // 2)
    resumed = watch(manifest, out)
    lines = []
    step = max(count // 10, 1)
    for run, samples in (("first", killed), ("resumed", resumed)):
        for least in range(0, count, step):
            part = [sample for sample in samples if max(least, samples[0][1] + 1) <= sample[1] < least + step]
            if part and part[-1][1] - part[0][1] > step / 2:
                pairs, seconds = part[-1][1] - part[0][1], part[-1][0] - part[0][0]
                memory = f"{part[0][2]:.0f} -> {part[-1][2]:.0f}"
                lines.append(f"| {run} | {least} to {least + step} | {1000 * seconds / pairs:.1f} | {memory} |")
    # two pairs were at work when the driver was killed, and their workers may have ended them: the third is new
    first_new = next(seconds for seconds, pairs, _ in resumed if pairs > killed[-1][1] + 2)
    last = next(seconds for seconds, pairs, _ in resumed if pairs == count)
    return [
        *lines,
        "",
        f"Killed with {killed[-1][1]} pairs done after {killed[-1][0]:.0f} s. Resumed: the first new pair was done "
        f"after {first_new:.1f} s, the last after {last:.0f} s; the tables took {resumed[-1][0] - last:.1f} s more.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=100)
    parser.add_argument("--size", type=int, default=56)
    parser.add_argument("--simulate", type=int, default=10_000)
    parser.add_argument("--drive", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.drive:
        drive(*args.drive)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    if any(args.folder.iterdir()):
        parser.error(f"{args.folder} is not empty")
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}\n")
    if args.pairs:
        print("| workers | pairs | first s | others s | pairs/h | start s | end s | overhead per pair |")
        print("|-|-|-|-|-|-|-|-|", flush=True)
        for workers in (1, 2):
            print(real_pairs(args.folder, args.pairs, args.size, workers), flush=True)
        print()
    if args.simulate:
        print("| run | pairs | s per 1000 | driver MiB |\n|-|-|-|-|", flush=True)
        print("\n".join(simulation(args.folder, args.simulate)))


if __name__ == "__main__":
    main()
