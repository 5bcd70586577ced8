"""From inputs to everything a user takes away: register, warp, measure. No node and no file is touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..networks.catalog import load_model
from ..quality.assess import assess
from ..registration.register import StageProgress, register
from ..registration.settings import Settings
from ..spatial.field import in_type_of, inverse_consistency_error, jacobian_determinant, warp_image, warp_segmentation
from ..spatial.geometry import Grid, Image
from ..text import tr
from .results import Inputs, Results


def compute(
    inputs: Inputs,
    settings: Settings | None = None,
    *,
    guide: bool = False,
    carry: bool = True,
    compare: bool = True,
    moving_resolution: bool = False,
    progress: StageProgress | None = None,
    load: Callable = load_model,
) -> Results:
    """Register, warp and measure.

    Parameters
    ----------
    inputs : Inputs
        Images, segmentations, landmarks and masks of the pair.
    settings : Settings, optional
        How to register; the defaults if omitted.
    guide : bool
        Whether segments that both segmentations name also guide the registration; their own Dice then no longer
        measures the accuracy.
    carry : bool
        Whether the moving segmentation is warped.
    compare : bool
        Whether the report measures the segments.
    moving_resolution : bool
        Whether the moving image is also warped at its own resolution.
    progress : callable, optional
        Called with the stage and the fraction of the run in [0, 1]; may raise Cancelled.
    load : callable
        `load_model`, or a function that keeps loaded networks between runs.

    Returns
    -------
    Results
        The registration, everything warped, and the report.

    Raises
    ------
    Exception
        Whatever `register` raises.
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
        load=load,
    )
    forward, backward = registration.forward, registration.backward

    def warped_on(grid: Grid) -> Image:
        return in_type_of(moving, warp_image(moving, forward, grid, outside=registration.outside))

    progress(tr("warping"), 0.9)
    warped = warped_on(fixed.grid)
    warped_fine = warped_segmentation = warped_landmarks = None
    if moving_resolution:
        warped_fine = warped_on(grid_at_moving_resolution(fixed.grid, moving.grid, registration.linear))
    if carry and inputs.moving_segmentation is not None:
        warped_segmentation = warp_segmentation(inputs.moving_segmentation, forward, fixed.grid)
    if inputs.moving_landmarks is not None:
        carried = backward.transform_points(inputs.moving_landmarks.points)
        warped_landmarks = replace(inputs.moving_landmarks, points=carried)
    progress(tr("measuring"), 0.95)
    jacobian = jacobian_determinant(forward)
    consistency_error = inverse_consistency_error(forward, backward)
    report = assess(
        fixed,
        moving,
        forward,
        backward,
        fixed_segmentation=inputs.fixed_segmentation if compare else None,
        moving_segmentation=inputs.moving_segmentation if compare else None,
        fixed_landmarks=inputs.fixed_landmarks,
        moving_landmarks=inputs.moving_landmarks,
        initial=inputs.initial,
        jacobian=jacobian,
        consistency_error=consistency_error,
        provenance=registration.provenance,
    )
    progress(tr("done"), 1.0)
    return Results(
        registration,
        warped,
        warped_fine,
        warped_segmentation,
        warped_landmarks,
        Image(jacobian, forward.grid, "Jacobian"),
        Image(consistency_error, forward.grid, "inverse-consistency error"),
        report,
    )


def grid_at_moving_resolution(fixed: Grid, moving: Grid, linear: np.ndarray) -> Grid:
    """Return the box of the fixed grid, sampled as finely as the moving grid is along the fixed grid's axes.

    linear: 4x4, fixed mm -> moving mm, which says how the axes of the two grids lie to each other.
    """
    steps = (
        np.linalg.inv(moving.affine[:3, :3]) @ linear[:3, :3] @ fixed.direction
    )  # moving voxels per mm, columns i j k
    samples = np.maximum(np.ceil(np.abs(steps).max(axis=0) * fixed.extent - 1e-6), 1).astype(int)
    return fixed.with_shape(tuple(samples[::-1]))
