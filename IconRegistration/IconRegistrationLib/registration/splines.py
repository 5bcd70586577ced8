"""Resize fields and evaluate B-splines as matrix products along each axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .similarity import apply_along_axes


def resize_by_area(values: torch.Tensor, shape) -> torch.Tensor:
    """Resize values [N, C, D, H, W] to `shape`, the mean over the cells of a coarser lattice of the same box."""
    return values if tuple(values.shape[2:]) == tuple(shape) else F.interpolate(values, size=tuple(shape), mode="area")


def resize_smoothly(values: torch.Tensor, shape) -> torch.Tensor:
    """Resize values [N, C, D, H, W] to `shape` by cubic interpolation on another lattice of the same box."""
    if tuple(values.shape[2:]) == tuple(shape):
        return values
    return apply_along_axes(
        values, [cubic_matrix(n, old).to(values.device) for n, old in zip(shape, values.shape[2:], strict=True)]
    )


def _basis_matrix(count: int, controls: int, weights: Callable[[torch.Tensor], list[torch.Tensor]]) -> torch.Tensor:
    """Return a four-tap basis, [count, controls], at `count` samples over `controls` of one box, ends repeated."""
    position = (torch.arange(count, dtype=torch.float64) + 0.5) * controls / count - 0.5
    left = position.floor()
    matrix = torch.zeros(count, controls, dtype=torch.float64)
    for offset, weight in zip((-1, 0, 1, 2), weights(position - left), strict=True):
        column = (left.long() + offset).clamp(0, controls - 1)
        matrix.scatter_add_(1, column[:, None], weight[:, None])
    return matrix.float()


def bspline_matrix(count: int, controls: int) -> torch.Tensor:
    """Return the cubic B-spline's matrix [count, controls], which smooths its coefficients."""
    return _basis_matrix(
        count,
        controls,
        lambda t: [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6],
    )


def cubic_matrix(count: int, controls: int) -> torch.Tensor:
    """Return the Catmull-Rom spline's matrix [count, controls], which passes through its samples.

    References
    ----------
    Keys, IEEE TASSP 1981, with a = -1/2.
    """
    return _basis_matrix(
        count,
        controls,
        lambda t: [
            (-(t**3) + 2 * t**2 - t) / 2,
            (3 * t**3 - 5 * t**2 + 2) / 2,
            (-3 * t**3 + 4 * t**2 + t) / 2,
            (t**3 - t**2) / 2,
        ],
    )
