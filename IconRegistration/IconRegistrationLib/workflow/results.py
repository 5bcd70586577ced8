"""What goes into a registration and what comes out of it, as values. No torch here: Slicer's own process holds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..quality.report import Report
from ..registration.result import Registration
from ..spatial.geometry import Grid, Image, Landmarks, Segmentation


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
    """Results of a registration.

    Attributes
    ----------
    registration : Registration
        The maps and how they were made.
    warped : Image
        The moving image on the fixed grid.
    warped_fine : Image or None
        The same box at the moving image's resolution.
    warped_segmentation : Segmentation or None
        The moving segmentation on the fixed grid, resampled once from its original voxels.
    warped_landmarks : Landmarks or None
        The moving landmarks carried to the fixed image.
    jacobian : Image
        Jacobian determinants of the forward map at its samples, float32.
    consistency_error : Image
        Inverse-consistency error ``|backward(forward(x)) - x|`` in mm at the same samples, float32; NaN where
        ``forward(x)`` leaves the moving image.
    report : Report
        What was measured.
    """

    registration: Registration
    warped: Image
    warped_fine: Image | None
    warped_segmentation: Segmentation | None
    warped_landmarks: Landmarks | None
    jacobian: Image
    consistency_error: Image
    report: Report
