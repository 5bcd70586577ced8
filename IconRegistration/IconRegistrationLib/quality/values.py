"""The values that a report is made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Folding:
    """Where a map turns space inside out.

    count, share: nodes with a Jacobian determinant of 0 or less, and their share of all that were looked at.
    minimum: the smallest determinant.  place: where it is, (x, y, z) in mm LPS.
    """

    count: int
    share: float
    minimum: float
    place: tuple[float, float, float]


@dataclass(frozen=True)
class Change:
    """A measure without the deformation (world coordinates, or the initial transform) and with it; NaN: unknown."""

    before: float
    after: float


@dataclass(frozen=True)
class Similarity:
    """Of the intensities, over the fixed voxels that lie in the moving image.

    ncc: correlation coefficient.  mutual_information: normalised, (H(A) + H(B)) / H(A, B), in [1, 2].
    overlap: share of the fixed voxels that lie in the moving image.
    """

    ncc: Change
    mutual_information: Change
    overlap: Change


@dataclass(frozen=True)
class SegmentQuality:
    """One structure. Agreement is NaN where only one of the segmentations has it.

    hd95: larger of both directed 95th percentiles of surface distances in mm (Maier-Hein et al., Nature Methods 2024).
    fixed_mm3: its volume in the fixed image.  mapped_mm3: volume that the map gives it, by the Jacobian.
    moving_mm3: its volume in the moving segmentation.
    """

    name: str
    dice: Change
    hd95: Change
    fixed_mm3: float
    mapped_mm3: float
    moving_mm3: float

    @property
    def volume_ratio(self) -> float:
        """Mapped over fixed volume: above 1, the moving structure is larger."""
        return self.mapped_mm3 / self.fixed_mm3 if self.fixed_mm3 else math.nan


@dataclass(frozen=True)
class LandmarkQuality:
    """Target registration error of one pair of landmarks in mm."""

    label: str
    error: Change


@dataclass(frozen=True)
class Spread:
    """A distribution within the fixed image, in mm."""

    mean: float
    median: float
    percentile95: float
    maximum: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """Measure the distribution of the finite values; NaN where there are none."""
        values = values[np.isfinite(values)]
        if not values.size:
            return cls(*[math.nan] * 4)
        median, high = np.percentile(values, [50, 95])
        return cls(float(values.mean(dtype=np.float64)), float(median), float(high), float(values.max()))


@dataclass(frozen=True)
class Deformation:
    """Measures of the map itself, at its lattice points within the fixed image.

    Attributes
    ----------
    folding : Folding
        Points whose Jacobian determinant is 0 or less.
    log_jacobian_sd : float
        Standard deviation of the logarithm of the determinant where that is positive.
    displacement : Spread
        Lengths of the whole map's displacements in mm, linear part included.
    inverse_consistency : Spread
        Inverse-consistency error ``|backward(forward(x)) - x|`` in mm.
    """

    folding: Folding
    log_jacobian_sd: float
    displacement: Spread
    inverse_consistency: Spread


def pair_of(change: Change) -> tuple[float, float]:
    """Return (before, after) of a change."""
    return change.before, change.after


def mean_change(changes: Iterable[Change]) -> Change:
    """Average the changes whose values before and after are both finite."""
    pairs = [pair_of(c) for c in changes if math.isfinite(c.before) and math.isfinite(c.after)]
    return Change(*(float(v) for v in np.mean(pairs, axis=0))) if pairs else Change(math.nan, math.nan)
