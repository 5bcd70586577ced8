"""Measure a registration and report on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..spatial.field import inverse_consistency_error, jacobian_determinant
from ..spatial.geometry import Image, Landmarks, Segmentation
from .measures import _deformation, _landmarks, _segments, _similarity
from .report import Report
from .verdicts import Measured, verdicts_of

if TYPE_CHECKING:
    from ..spatial.displacement import DisplacementField


def assess(
    fixed: Image,
    moving: Image,
    forward: DisplacementField,
    backward: DisplacementField,
    *,
    fixed_segmentation: Segmentation | None = None,
    moving_segmentation: Segmentation | None = None,
    fixed_landmarks: Landmarks | None = None,
    moving_landmarks: Landmarks | None = None,
    initial: np.ndarray | None = None,
    jacobian: np.ndarray | None = None,
    consistency_error: np.ndarray | None = None,
    provenance: dict | None = None,
) -> Report:
    """Measure a registration at the images' own resolution.

    Segments are matched by name, landmarks by label; what has no partner is left out of the agreement.

    Parameters
    ----------
    fixed, moving : Image
    forward, backward : DisplacementField
        Fixed mm -> moving mm, and back.
    fixed_segmentation, moving_segmentation : Segmentation, optional
        For Dice, HD95 and volumes.
    fixed_landmarks, moving_landmarks : Landmarks, optional
        For the target registration error.
    initial : np.ndarray, optional
        4x4, fixed mm -> moving mm: what "before" means; by default world coordinates as they are.
    jacobian, consistency_error : np.ndarray, optional
        [k, j, i] on the forward field's grid: `jacobian_determinant(forward)` and
        `inverse_consistency_error(forward, backward)`, where the caller has them already.
    provenance : dict, optional
        How the registration was made; kept in the report.

    Returns
    -------
    Report

    Examples
    --------
    The identity map between two equal images folds nowhere and agrees with its inverse.

    >>> import numpy as np
    >>> from IconRegistrationLib.spatial.displacement import DisplacementField
    >>> from IconRegistrationLib.spatial.geometry import Grid, Image
    >>> image = Image(np.arange(512.0).reshape(8, 8, 8), Grid((8, 8, 8), np.eye(4)))
    >>> identity = DisplacementField(np.zeros((8, 8, 8, 3), np.float32), image.grid)
    >>> for verdict in assess(image, image, identity, identity).verdicts:
    ...     print(f"{verdict.measure}: {verdict.meaning}")
    Folding: none; the smallest Jacobian is 1.00
    Inverse consistency: both directions agree within 0.00 mm for 95 % of the points (limit 2.0 mm)
    Mutual information: unchanged: 2.000 -> 2.000
    """
    initial = np.eye(4) if initial is None else np.asarray(initial, dtype=np.float64)
    jacobian = jacobian_determinant(forward) if jacobian is None else jacobian
    if consistency_error is None:
        consistency_error = inverse_consistency_error(forward, backward)
    similarity = _similarity(fixed, moving, forward, initial)
    segments = _segments(fixed.grid, fixed_segmentation, moving_segmentation, forward, initial, jacobian)
    landmarks = _landmarks(fixed_landmarks, moving_landmarks, forward, initial)
    deformation = _deformation(fixed.grid, forward, jacobian, consistency_error)
    measured = Measured(similarity, segments, landmarks, deformation, float(fixed.grid.spacing.max()))
    return Report(similarity, segments, landmarks, deformation, verdicts_of(measured), provenance or {})
