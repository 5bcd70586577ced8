"""Measure mutual information: joint histograms, and the Parzen windows of the linear alignment."""

from __future__ import annotations

import numpy as np

#: Bins of the linear alignment's joint histogram, along each axis.
BINS = 32
#: Values are counted this many times finer than BINS before the Parzen windows widen them: one count per voxel does.
REFINEMENT = 8


def joint_histogram(first: np.ndarray, second: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Count value pairs.

    Parameters
    ----------
    first, second : np.ndarray
        Values in [0, 1] of two images at the same points.
    bins : int
        Bins of [0, 1].

    Returns
    -------
    np.ndarray
        [bins, bins] counts.
    """
    a, b = (np.clip(values * bins, 0, bins - 1).astype(np.int64).ravel() for values in (first, second))
    return np.bincount(a * bins + b, minlength=bins * bins).reshape(bins, bins)


def normalised_mutual_information(joint: np.ndarray) -> float:
    """Return (H(A) + H(B)) / H(A, B) in [1, 2] of a joint histogram.

    References
    ----------
    Studholme et al., Pattern Recognition 1999.

    Examples
    --------
    >>> float(normalised_mutual_information(np.eye(4)))
    2.0
    """
    joint = joint / joint.sum()
    together = entropy_of(joint)
    return (entropy_of(joint.sum(0)) + entropy_of(joint.sum(1))) / together if together > 0 else 1.0


def entropy_of(p: np.ndarray) -> float:
    """Return the entropy, in nats, of probabilities of any shape."""
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


def robust_range(array: np.ndarray) -> tuple[float, float]:
    """Return the range of the values without the tails of the histogram, which metal and noise make long."""
    values = array.ravel()[:: max(1, array.size // 1_000_000)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.001, 0.999])
    return float(low), float(high if high > low else values.max())


def _parzen() -> tuple[np.ndarray, np.ndarray]:
    """Return shares of a fine bin in cubic B-spline windows, [BINS * REFINEMENT, BINS], and their slopes by value.

    Values from 0 to 1 lie between the second window and the last but one: none leaves its windows.
    """
    values = (np.arange(BINS * REFINEMENT) + 0.5) / (BINS * REFINEMENT)
    offset = 1 + values[:, None] * (BINS - 3) - np.arange(BINS)
    far, sign = np.abs(offset), np.sign(offset)
    shares = np.where(far < 1, (4 - 6 * far**2 + 3 * far**3) / 6, np.maximum(2 - far, 0) ** 3 / 6)
    slopes = np.where(far < 1, 1.5 * far**2 - 2 * far, -0.5 * np.maximum(2 - far, 0) ** 2) * sign
    return shares, slopes * (BINS - 3)


PARZEN, PARZEN_SLOPE = _parzen()
