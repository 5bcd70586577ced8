"""A first registration without data of one's own: the phantom, its known deformation, and what was found of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .outputs import output_folder, write_inputs, write_results

if TYPE_CHECKING:
    from ..core.register import Progress
    from ..core.results import Results


@dataclass(frozen=True)
class Demo:
    """results; notes on what was left out; mean and 95th percentile of the distance to the truth in mm."""

    results: Results
    notes: list[str]
    before: tuple[float, float]
    after: tuple[float, float]


def run_demo(folder: Path, size: int, progress: Progress) -> Demo:
    """Make the phantom of about `size`^3 voxels, register it with the default settings, write all of it to `folder`."""
    from ..core.phantom import make_phantom
    from ..core.pipeline import compute

    progress("phantom", 0.0)
    phantom = make_phantom(size=size)
    with output_folder(folder) as partial:
        write_inputs(partial, phantom.inputs)
        results = compute(phantom.inputs, progress=lambda stage, fraction: progress(stage, 0.05 + 0.9 * fraction))
        progress("writing", 0.95)
        notes = write_results(partial, phantom.inputs, results)

    def error(transform) -> tuple[float, float]:
        distances = phantom.end_point_error(transform, step=3)
        return float(distances.mean()), float(np.percentile(distances, 95))

    return Demo(results, notes, error(lambda points: points), error(results.registration.forward.transform_points))
