"""Measure a registration and report on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..spatial.field import inverse_consistency_error, jacobian_determinant
from ..spatial.geometry import Image, Landmarks, Segmentation
from .measures import _deformation, _landmarks, _segments, _similarity
from .report import Report
from .verdicts import _verdicts

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
    distrust: np.ndarray | None = None,
    provenance: dict | None = None,
) -> Report:
    """Measure a registration at the images' own resolution.

    forward, backward: fixed mm -> moving mm, and back.
    Segments are matched by name, landmarks by label; what has no partner is left out of the agreement.
    initial: 4x4, fixed mm -> moving mm: what "before" means; world coordinates as they are if None.
    jacobian, distrust: `jacobian_determinant(forward)` and `inverse_consistency_error(forward, backward)` where the
    caller has them already.
    """
    initial = np.eye(4) if initial is None else np.asarray(initial, dtype=np.float64)
    jacobian = jacobian_determinant(forward) if jacobian is None else jacobian
    distrust = inverse_consistency_error(forward, backward) if distrust is None else distrust
    similarity = _similarity(fixed, moving, forward, initial)
    segments = _segments(fixed.grid, fixed_segmentation, moving_segmentation, forward, initial, jacobian)
    landmarks = _landmarks(fixed_landmarks, moving_landmarks, forward, initial)
    deformation = _deformation(fixed.grid, forward, jacobian, distrust)
    verdicts = _verdicts(similarity, segments, landmarks, deformation, float(fixed.grid.spacing.max()))
    return Report(similarity, segments, landmarks, deformation, verdicts, provenance or {})
