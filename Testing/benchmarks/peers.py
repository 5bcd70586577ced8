"""Ours and the tools that a user would pick instead: the same pairs, the same labels, the same machine, one run.

    python Testing/benchmarks/peers.py [--threads 2] [--only liver "phantom CT-MR" ...] [--tools ours,elastix,greedy]
                                       [--data ../shared/data] [--minutes 60] [--total 55] [--rounds 1] [--again]
                                       [--output peers.jsonl]

Every tool registers every pair in a process of its own, at most `--threads` threads wide; which tool goes first
changes from pair to pair. What it found is measured in a second process, by one function for all: its dense map from
fixed to moving points, at the fixed image's resolution. A row is appended to the JSON lines file as soon as it is
there; finished rows are not run again (--again does), so the table can be made in several sittings and from other
machines' files. Without anything left to run, it prints the table alone; it is also written beside the JSON lines.

Seconds are those of the registration, from images in memory to the tool's own result, of several rounds the median;
loading is what its libraries take before, once per process. The peak is that of the process up to there, its libraries
and the images included. What a pair is judged by stands above its table; "behind" says by how much of the best value a
tool misses it. Labels, landmarks and references are for measuring: no tool is given any. A pair without them ranks no
tool, for mutual information is what several of them maximise.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from pairs import PAIRS, load, reference_error

#: Kind and seed of the phantoms: others than those that settings were chosen on.
PHANTOMS = {"phantom CT-CT": ("ct", 11), "phantom CT-MR": ("ct-mr", 12), "phantom MR-MR": ("mr", 13)}
TWO_CONTRASTS = ("phantom CT-MR", "cord T1-T2", "MS T1-FLAIR", "head CT-MR", "knee")
#: What a pair is judged by, the first that it has; mutual information shows failure, and judges nothing.
MEASURES = {
    "error": ("known error", "mm", 2),
    "reference": ("distance from the published linear transform", "mm", 2),
    "tre": ("landmark error", "mm", 2),
    "dice": ("Dice", "", 3),
    "hd95": ("HD95", "mm", 1),
    "nmi": ("mutual information", "", 3),
}
RISING = ("dice", "nmi")
#: How far behind the most accurate tool a faster one may be to count as equally accurate.
EQUAL = 0.02
#: Pairs in a table of the overview.
COLUMNS = 6


# ---------------------------------------------------------------------------------------------- processes of their own


def inputs_of(pair: str, options: argparse.Namespace):
    """(Inputs, the phantom or None)."""
    if pair not in PHANTOMS:
        return load(pair, options.data), None
    from IconRegistrationLib.demo.phantom import make_phantom

    modality, seed = PHANTOMS[pair]
    known = make_phantom(seed, options.phantom_size, modality)
    return known.inputs, known


def register_pair(pair: str, name: str, folder: Path, options: argparse.Namespace) -> dict:
    from adapters import TOOLS, Run, limit_threads

    limit_threads(options.threads)
    import numpy as np

    inputs, _ = inputs_of(pair, options)
    run = Run(options.threads, pair in TWO_CONTRASTS)
    field = TOOLS[name].register(inputs.fixed, inputs.moving, run)
    if not np.isfinite(field.displacement).all():
        raise RuntimeError("the map it found is not finite")
    np.save(folder / "field.npy", field.displacement)
    clocks = ("loading", "seconds", "cpu_seconds", "peak")
    return {name: round(getattr(run, name), 3) for name in clocks}


def evaluate(pair: str, folder: Path, options: argparse.Namespace) -> dict:
    """Each measure before (headers alone) and after, and the share of voxels where the map folds."""
    import numpy as np

    from IconRegistrationLib.quality.assess import assess
    from IconRegistrationLib.spatial.displacement import DisplacementField

    inputs, known = inputs_of(pair, options)
    field = DisplacementField(np.load(folder / "field.npy"), inputs.fixed.grid)
    report = assess(
        inputs.fixed,
        inputs.moving,
        field,
        field,
        fixed_segmentation=inputs.fixed_segmentation,
        moving_segmentation=inputs.moving_segmentation,
        fixed_landmarks=inputs.fixed_landmarks,
        moving_landmarks=inputs.moving_landmarks,
        consistency_error=np.full(inputs.fixed.grid.shape, np.nan),  # not every tool gives the way back
    )
    result = {
        "dice": report.dice,
        "hd95": report.hd95,
        "tre": report.target_registration_error,
        "nmi": report.similarity.mutual_information,
    }
    if known is not None:
        errors = [
            known.end_point_error(transform).mean() for transform in (lambda points: points, field.transform_points)
        ]
        result["error"] = report.dice.__class__(*map(float, errors))
    elif "reference" in PAIRS[pair]:
        result["reference"] = reference_error(pair, options.data, inputs.fixed, field)
    row = {"folding": report.deformation.folding.share}
    row |= {
        "segments": sum(math.isfinite(segment.dice.after) for segment in report.segments),
        "landmarks": len(report.landmarks),
    }
    return row | {name: [change.before, change.after] for name, change in result.items() if math.isfinite(change.after)}


# ------------------------------------------------------------------------------------------------------------- the runs


def measured(pair: str, tool: str, options: argparse.Namespace) -> dict:
    """The row of one run; where the tool fails, `failed` says how."""
    with tempfile.TemporaryDirectory() as folder:
        row = {}
        for part in ("register", "evaluate"):
            command = [sys.executable, __file__, "--part", part, folder, "--only", pair, "--tools", tool]
            command += ["--data", str(options.data), "--threads", str(options.threads)]
            command += ["--phantom-size", str(options.phantom_size)]
            try:
                run = subprocess.run(command, capture_output=True, text=True, timeout=60 * options.minutes)
            except subprocess.TimeoutExpired:
                return {"failed": f"not done after {options.minutes:g} minutes"}
            if run.returncode:
                return {"failed": f"{part}: {_reason(run)}"}
            row |= json.loads((Path(folder) / f"{part}.json").read_text())
    return row


def _reason(run: subprocess.CompletedProcess) -> str:
    if run.returncode < 0:
        return f"ended by {signal.Signals(-run.returncode).name}"
    lines = [line for line in (run.stderr or run.stdout).splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else f"exit code {run.returncode}"


def commit() -> str:
    """Of this checkout, whose library ours are: its version alone changes seldom."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def run_all(pairs: list[str], tools: dict, options: argparse.Namespace, rows: list[dict]) -> None:
    """Runs what is not in `rows`, and adds it there and to the output file; begins none when the time is up."""
    end = time.monotonic() + 60 * options.total

    def key(row):
        return row["pair"], row["tool"], row["round"], row["threads"], row["machine"], row["phantom_size"]

    done = {key(row) for row in rows}
    for turn in range(options.rounds):
        for number, pair in enumerate(pairs):
            start = (number + turn) % len(tools)
            names = list(tools)
            for name in names[start:] + names[:start]:
                head = {
                    "pair": pair,
                    "tool": name,
                    "round": turn,
                    "threads": options.threads,
                    "machine": machine(),
                    "phantom_size": options.phantom_size if pair in PHANTOMS else None,
                }
                if key(head) in done and not options.again:
                    continue
                if time.monotonic() >= end:
                    print("Time is up; the same command goes on from here", file=sys.stderr)
                    return
                print(f"{pair}, {tools[name].title} ... ", end="", flush=True, file=sys.stderr)
                row = head | {"version": tools[name].version, "commit": commit()} | measured(pair, name, options)
                print(row.get("failed") or f"{row['seconds']:.0f} s", file=sys.stderr)
                rows.append(row)
                with options.output.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")


# ------------------------------------------------------------------------------------------------------------ the table


def judged_by(row: dict) -> str:
    return next(measure for measure in MEASURES if measure in row)


def behind(row: dict, best: dict) -> float:
    """By how much of the best value this row misses it."""
    measure = judged_by(best)
    ours, theirs = row[measure][1], best[measure][1]
    return (theirs - ours if measure in RISING else ours - theirs) / abs(theirs)


def combined(rows: list[dict]) -> dict[str, dict[str, dict]]:
    """pair -> tool -> row: the last of each round, and of the rounds the last with the median time."""
    latest = {(row["pair"], row["tool"], row["round"]): row for row in rows}
    result: dict[str, dict[str, dict]] = {}
    for pair, tool, _ in latest:
        rounds = [row for (p, t, _), row in latest.items() if (p, t) == (pair, tool)]
        row = dict(rounds[-1])
        if not any("failed" in one for one in rounds):
            row["seconds"] = statistics.median(one["seconds"] for one in rounds)
            row["peak"] = max(one["peak"] for one in rounds)
        result.setdefault(pair, {})[tool] = row
    return result


def overview(rows: list[dict], tools: dict) -> list[str]:
    """Markdown: a column per pair, the most accurate of each bold; a row per tool. Wide tables are cut."""
    by_pair = combined(rows)
    pairs = [pair for pair, by_tool in by_pair.items() if any("failed" not in row for row in by_tool.values())]
    lines = []
    for start in range(0, len(pairs), COLUMNS):
        lines += ["", *_overview({pair: by_pair[pair] for pair in pairs[start : start + COLUMNS]}, tools)]
    return lines[1:]


def _overview(by_pair: dict[str, dict[str, dict]], tools: dict) -> list[str]:
    done = {pair: [row for row in by_tool.values() if "failed" not in row] for pair, by_tool in by_pair.items()}
    measures = {pair: judged_by(rows[0]) for pair, rows in done.items()}
    heads, before = [], []
    for pair, measure in measures.items():
        label, unit, digits = MEASURES[measure]
        heads.append(f"{pair}, {label} {unit}".strip())
        before.append(f"{done[pair][0][measure][0]:.{digits}f}")
    lines = [_line(["", *heads, "peak GiB"]), "|" + "-|" * (len(heads) + 2), _line(["headers alone", *before, ""])]
    for name, tool in tools.items():
        if not any(name in by_tool for by_tool in by_pair.values()):
            continue
        cells = [_cell(by_pair[pair].get(name), measure, done[pair]) for pair, measure in measures.items()]
        peaks = sorted(row["peak"] for rows in done.values() for row in rows if row["tool"] == name)
        span = dict.fromkeys(f"{peak:.1f}" for peak in peaks[:1] + peaks[-1:])
        lines.append(_line([tool.title, *cells, " - ".join(span)]))
    return lines


def _cell(row: dict | None, measure: str, others: Iterable[dict]) -> str:
    """'**0.640**, 8.9 s, folds 0.01 %'"""
    if row is None:
        return ""
    if "failed" in row:
        return row["failed"]
    digits = MEASURES[measure][2]
    best = (max if measure in RISING else min)(round(other[measure][1], digits) for other in others)
    value = f"{row[measure][1]:.{digits}f}"
    if measure != "nmi" and float(value) == best:
        value = f"**{value}**"
    folds = f", folds {100 * row['folding']:.2g} %" if row["folding"] else ""
    return f"{value}, {row['seconds']:.{1 if row['seconds'] < 10 else 0}f} s{folds}"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(rows: list[dict], tools: dict) -> str:
    """Markdown: the overview, who is first, one table per pair."""
    summary = ["| pair | judged by | most accurate | fastest within 2 % of it |", "|-|-|-|-|"]
    details = []
    for pair, by_tool in combined(rows).items():
        found = {tool: row for tool, row in by_tool.items() if "failed" not in row}
        failed = [f"| {tools[tool].title} | {row['failed']} |" for tool, row in by_tool.items() if "failed" in row]
        if not found:
            details += [f"\n### {pair}\n", "| tool | |\n|-|-|", *failed]
            continue
        measure = judged_by(next(iter(found.values())))
        judged = measure != "nmi"
        order = sorted(found, key=lambda tool: found[tool][measure][1], reverse=measure in RISING)
        best = found[order[0]]
        equal = [tool for tool in order if behind(found[tool], best) <= EQUAL]
        fastest = min(equal, key=lambda tool: found[tool]["seconds"])
        quickest = min(row["seconds"] for row in found.values())
        label, unit, digits = MEASURES[measure]
        if judged:
            summary.append(
                f"| {pair} | {label}, {best[measure][0]:.{digits}f} {unit} before | {tools[order[0]].title}: "
                f"{best[measure][1]:.{digits}f} {unit} | {tools[fastest].title}: {found[fastest]['seconds']:.0f} s |"
            )
        else:
            summary.append(f"| {pair} | nothing: it has no labels, landmarks or reference | | |")
        shown = [name for name in MEASURES if name in best]
        heads = [f"{MEASURES[name][0]} {MEASURES[name][1]}".strip() for name in shown]
        before = ", ".join(
            f"{head} {best[name][0]:.{MEASURES[name][2]}f}" for head, name in zip(heads, shown, strict=True)
        )
        columns = ["tool", *heads, "behind %", "folding %", "seconds", "x fastest", "CPU s", "loading s", "peak GiB"]
        counts = [f"{best[name]} {name}" for name in ("segments", "landmarks") if best[name]]
        means = f" Means over {' and '.join(counts)}." if counts else ""
        details += [f"\n### {pair}\n", f"Judged by {label if judged else 'nothing'}. Before: {before}.{means}\n"]
        details += [_line(columns), "|-" * len(columns) + "|"]
        for tool in order:
            row = found[tool]
            cells = [tools[tool].title + (" *" if judged and tool == fastest else "")]
            cells += [f"{row[name][1]:.{MEASURES[name][2]}f}" if name in row else "" for name in shown]
            cells += [f"{100 * behind(row, best):.1f}" if judged else "", f"{100 * row['folding']:.3f}"]
            cells += [f"{row['seconds']:.1f}", f"{row['seconds'] / quickest:.1f}", f"{row['cpu_seconds']:.1f}"]
            cells += [f"{row['loading']:.1f}", f"{row['peak']:.1f}"]
            details.append(_line(cells))
        details += failed
    recipes = [
        f"- {tools[name].title} ({' '.join(filter(None, versions))}): {tools[name].recipe}."
        for name in tools
        if (versions := sorted({f"{tools[name].distribution} {row['version']}" for row in rows if row["tool"] == name}))
    ]
    commits = sorted({row["commit"] for row in rows})
    machines = sorted({f"{row['machine']}, {row['threads']} threads" for row in rows})
    return "\n".join(
        [
            f"Machine: {'; '.join(machines)}. Checkout: {', '.join(commits)}.",
            "",
            *overview(rows, tools),
            "",
            *summary,
            *details,
            "\n`*`: the fastest within 2 % of the best.\n",
            *recipes,
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2].parent / "shared" / "data")
    parser.add_argument("--only", nargs="+", choices=[*PHANTOMS, *PAIRS], default=[*PHANTOMS, *PAIRS], metavar="PAIR")
    parser.add_argument("--tools", default="", help="names separated by commas (ours is all of ours); default all")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--minutes", type=float, default=60, help="time limit of one run")
    parser.add_argument("--total", type=float, default=math.inf, metavar="MINUTES", help="begin no run after these")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--phantom-size", type=int, default=144)
    parser.add_argument("--again", action="store_true", help="run what is finished, too")
    parser.add_argument("--output", type=Path, default=Path("peers.jsonl"))
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        part, folder = options.part[0], Path(options.part[1])
        work = {"register": lambda: register_pair(options.only[0], options.tools, folder, options)}
        work["evaluate"] = lambda: evaluate(options.only[0], folder, options)
        (folder / f"{part}.json").write_text(json.dumps(work[part]()))
        return

    from adapters import OURS, TOOLS

    wanted = options.tools.replace("ours", ",".join(OURS)).split(",") if options.tools else list(TOOLS)
    if unknown := [name for name in wanted if name not in TOOLS]:
        parser.error(f"no tool is called {unknown[0]!r}; choose ours or among {', '.join(TOOLS)}")
    tools = {name: TOOLS[name] for name in wanted if TOOLS[name].version}
    for name in wanted:
        if name not in tools:
            print(f"{TOOLS[name].title} is left out: {TOOLS[name].distribution} is missing", file=sys.stderr)
    pairs = [pair for pair in options.only if pair in PHANTOMS or (options.data / PAIRS[pair]["fixed"]).exists()]
    for pair in set(options.only) - set(pairs):
        print(f"{pair} is left out: it is not at {options.data}", file=sys.stderr)
    rows = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    run_all(pairs, tools, options, rows)
    text = table(rows, TOOLS)
    options.output.with_suffix(".md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
