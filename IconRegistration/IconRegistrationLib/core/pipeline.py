"""From inputs to everything a user takes away: register, warp, measure. No node and no file is touched."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .field import in_type_of, warp_image, warp_segmentation
from .geometry import Grid, Image, Landmarks, Segmentation
from .quality import Report, assess
from .register import Progress, Registration, Settings, register


@dataclass(frozen=True)
class Inputs:
    """What is registered; everything in one world.

    Landmarks and segmentations are carried over and compared; masks (non-zero counts), `initial` (4x4, fixed mm ->
    moving mm) and `region` (a box in the fixed world) are as in `register`.
    """

    fixed: Image
    moving: Image
    fixed_segmentation: Segmentation | None = None
    moving_segmentation: Segmentation | None = None
    fixed_landmarks: Landmarks | None = None
    moving_landmarks: Landmarks | None = None
    fixed_mask: Image | None = None
    moving_mask: Image | None = None
    initial: np.ndarray | None = None
    region: Grid | None = None


@dataclass(frozen=True)
class Results:
    """What a registration gives.

    warped: the moving image on the fixed grid.  warped_fine: the same box at the moving image's resolution.
    warped_segmentation: the moving segmentation on the fixed grid, resampled once from its original voxels.
    warped_landmarks: the moving landmarks carried to the fixed image.
    """

    registration: Registration
    warped: Image
    warped_fine: Image | None
    warped_segmentation: Segmentation | None
    warped_landmarks: Landmarks | None
    report: Report


def compute(
    inputs: Inputs,
    settings: Settings | None = None,
    *,
    guide: bool = False,
    moving_resolution: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Register, warp and measure.

    guide: segments that both segmentations name also guide the registration (their own Dice then no longer measures
        the accuracy).
    moving_resolution: also warp the moving image at its own resolution.
    progress(stage, fraction of the run): may raise Cancelled.
    Raises what `register` raises.
    """
    progress = progress or (lambda stage, fraction: None)
    fixed, moving = inputs.fixed, inputs.moving
    registration = register(
        fixed,
        moving,
        settings,
        initial=inputs.initial,
        fixed_mask=inputs.fixed_mask,
        moving_mask=inputs.moving_mask,
        fixed_labels=inputs.fixed_segmentation if guide else None,
        moving_labels=inputs.moving_segmentation if guide else None,
        region=inputs.region,
        progress=lambda stage, fraction: progress(stage, 0.9 * fraction),
    )
    forward = registration.forward

    def warped_on(grid: Grid) -> Image:
        return in_type_of(moving, warp_image(moving, forward, grid, outside=registration.outside))

    progress("warping", 0.9)
    warped = warped_on(fixed.grid)
    warped_fine = warped_segmentation = warped_landmarks = None
    if moving_resolution:
        warped_fine = warped_on(grid_at_moving_resolution(fixed.grid, moving.grid, registration.linear))
    if inputs.moving_segmentation is not None:
        warped_segmentation = warp_segmentation(inputs.moving_segmentation, forward, fixed.grid)
    if inputs.moving_landmarks is not None:
        carried = registration.backward.transform_points(inputs.moving_landmarks.points)
        warped_landmarks = replace(inputs.moving_landmarks, points=carried)
    progress("measuring", 0.95)
    report = assess(
        fixed,
        moving,
        forward,
        registration.backward,
        fixed_segmentation=inputs.fixed_segmentation,
        moving_segmentation=inputs.moving_segmentation,
        fixed_landmarks=inputs.fixed_landmarks,
        moving_landmarks=inputs.moving_landmarks,
        initial=inputs.initial,
        provenance=registration.provenance,
    )
    progress("done", 1.0)
    return Results(registration, warped, warped_fine, warped_segmentation, warped_landmarks, report)


def grid_at_moving_resolution(fixed: Grid, moving: Grid, linear: np.ndarray) -> Grid:
    """The box of the fixed grid, sampled as finely as the moving grid is along the fixed grid's axes.

    linear: 4x4, fixed mm -> moving mm, which says how the axes of the two grids lie to each other.
    """
    steps = (
        np.linalg.inv(moving.affine[:3, :3]) @ linear[:3, :3] @ fixed.direction
    )  # moving voxels per mm, columns i j k
    samples = np.maximum(np.ceil(np.abs(steps).max(axis=0) * fixed.extent - 1e-6), 1).astype(int)
    return fixed.with_shape(tuple(samples[::-1]))
