"""`icon-registration demo`: a first registration without data of one's own.

The phantom, its known deformation, and what was found of it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...text import tr
from ...workflow.folder import check_folder, output_folder
from ..outputs import list_files, write_inputs, write_results
from ..progress import ProgressPrinter

if TYPE_CHECKING:
    from ...workflow.results import Results

HELP = "Make a phantom with a known deformation, register it, and print the remaining error."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `demo`."""
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    parser.add_argument("--size", metavar="N", type=int, default=144, help="about N^3 voxels (default: 144)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier demo")


def run(args: argparse.Namespace) -> None:
    """Register the phantom; print the report, the error against the truth, and the files to open."""
    folder = check_folder(args.out, args.overwrite)
    progress = ProgressPrinter()
    try:
        result = register_phantom(folder, args.size, progress)
    finally:
        progress.close()
    print(result.results.report.table())
    print()
    print(tr("Distance to the known deformation within the body, mean and 95th percentile"))
    for name, (mean, high) in ((tr("before"), result.before), (tr("after"), result.after)):
        print(f"  {name:<8}{mean:7.2f} mm {high:7.2f} mm")
    print(list_files(folder, result.notes))


@dataclass(frozen=True)
class Demo:
    """Results, notes on omissions, and mean and 95th percentile of the distance to the truth in mm."""

    results: Results
    notes: list[str]
    before: tuple[float, float]
    after: tuple[float, float]


def register_phantom(folder: Path, size: int, progress: ProgressPrinter) -> Demo:
    """Make the phantom of about `size`^3 voxels, register it with the default settings, write all of it to `folder`."""
    from ...demo.phantom import make_phantom
    from ...machine import keep_freed_memory
    from ...workflow.pipeline import compute

    keep_freed_memory()
    progress(tr("phantom"), 0.0)
    phantom = make_phantom(size=size)
    with output_folder(folder) as partial:
        write_inputs(partial, phantom.inputs)
        results = compute(phantom.inputs, progress=lambda stage, fraction: progress(stage, 0.05 + 0.9 * fraction))
        progress(tr("writing"), 0.95)
        notes = write_results(partial, phantom.inputs, results)

    def error(transform) -> tuple[float, float]:
        distances = phantom.end_point_error(transform, step=3)
        return float(distances.mean()), float(np.percentile(distances, 95))

    return Demo(results, notes, error(lambda points: points), error(results.registration.forward.transform_points))
