"""Resize fields and evaluate B-splines as matrix products along each axis."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from .similarity import apply_along_axes


def _resized(values: torch.Tensor, shape) -> torch.Tensor:
    """Mean over the cells of a coarser lattice of the same box."""
    return values if tuple(values.shape[2:]) == tuple(shape) else F.interpolate(values, size=tuple(shape), mode="area")


def _smoothly_resized(values: torch.Tensor, shape) -> torch.Tensor:
    """Cubic interpolation on another lattice of the same box."""
    if tuple(values.shape[2:]) == tuple(shape):
        return values
    return apply_along_axes(
        values, [_cubic_matrix(n, old).to(values.device) for n, old in zip(shape, values.shape[2:], strict=True)]
    )


def _basis_matrix(count: int, controls: int, weights: Callable[[torch.Tensor], list[torch.Tensor]]) -> torch.Tensor:
    """[count, controls]: a four-tap basis at `count` samples over `controls` ones of the same box, ends repeated."""
    position = (torch.arange(count, dtype=torch.float64) + 0.5) * controls / count - 0.5
    left = position.floor()
    matrix = torch.zeros(count, controls, dtype=torch.float64)
    for offset, weight in zip((-1, 0, 1, 2), weights(position - left), strict=True):
        column = (left.long() + offset).clamp(0, controls - 1)
        matrix.scatter_add_(1, column[:, None], weight[:, None])
    return matrix.float()


def _bspline_matrix(count: int, controls: int) -> torch.Tensor:
    """Cubic B-spline: smooths its coefficients."""
    return _basis_matrix(
        count,
        controls,
        lambda t: [(1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6],
    )


def _cubic_matrix(count: int, controls: int) -> torch.Tensor:
    """Catmull-Rom spline: passes through its samples (Keys, IEEE TASSP 1981, a = -1/2)."""
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
