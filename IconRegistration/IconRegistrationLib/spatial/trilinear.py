"""Interpolate trilinearly at scattered points, and compute the gradient there, fast on a CPU.

torch's 3D grid_sample takes one point after the other on a CPU; its 2D one takes eight or sixteen at a time. Planes
laid below each other are one image, so a trilinear value is two bilinear ones of that image, one plane apart, and a
blend of them: two to five times faster. Other devices use the 3D one.

Points are a tensor [N, 3, D, H, W] in the units of a `Frame`. Beyond the outermost samples the values continue as they
are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .sampling import slabs

#: Rounding error of a float32 of about 1.
_ROUNDING = 2.0**-23
_BILINEAR, _BORDER = 0, 1  # as torch.ops.aten names them


@dataclass(frozen=True)
class Frame:
    """The coordinates of points: scale * point + offset is the index in samples of a volume, per axis of (z, y, x).

    Attributes
    ----------
    order : tuple of int
        Which component of a point is z, y and x.
    scale, offset : tuple of float
        Per axis of (z, y, x).
    """

    order: tuple[int, int, int]
    scale: tuple[float, float, float]
    offset: tuple[float, float, float]

    @classmethod
    def unit(cls, shape: Sequence[int]) -> Frame:
        """Make the frame of phi: components (z, y, x); 0 and 1 at the first and last sample (docs/phi.md)."""
        depth, height, width = shape
        return cls((0, 1, 2), (depth - 1, height - 1, width - 1), (0, 0, 0))

    @classmethod
    def faces(cls, shape: Sequence[int]) -> Frame:
        """Make the frame of grid_sample: components (x, y, z); -1 and 1 at the outer faces of the outermost samples."""
        depth, height, width = shape
        return cls((2, 1, 0), (depth / 2, height / 2, width / 2), ((depth - 1) / 2, (height - 1) / 2, (width - 1) / 2))


def trilinear(values: torch.Tensor, points: torch.Tensor, frame: Frame, tolerance: float = math.inf) -> torch.Tensor:
    """Interpolate values at points; on a CPU not differentiable.

    Parameters
    ----------
    values : Tensor, [N, C, d, h, w]
    points : Tensor, [N, 3, D, H, W]
        In the coordinates of `frame`.
    frame : Frame
    tolerance : float
        Greatest error that rounding may make. The row of an image of many planes is less certain than that of one
        plane, by about 1e-7 of the number of its rows: where values are too steep for that, the 3D grid_sample takes
        over.

    Returns
    -------
    Tensor, [N, C, D, H, W]
    """
    if values.device.type != "cpu":
        return _by_grid_sample(values, points, frame)
    result = values.new_empty((*values.shape[:2], *points.shape[2:]))
    for n, volume in enumerate(values):
        for slab in slabs(result.shape[2:]):
            near = _Neighbours.of(volume, points[n, :, slab], frame, tolerance)
            if near is None:
                result[n, :, slab] = _by_grid_sample(volume[None], points[n : n + 1, :, slab], frame)[0]
            else:
                near.values(out=result[n, :, slab].view(near.lower.shape))
    return result


def compared(
    values: torch.Tensor,
    points: torch.Tensor,
    frame: Frame,
    compare: Callable[[torch.Tensor, int, slice], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """Interpolate values at points and compare them there, differentiable in the points.

    On a CPU the values, of which there may be many to a point, exist some planes at a time only.

    Parameters
    ----------
    values : Tensor, [N, C, d, h, w]
    points : Tensor, [N, 3, D, H, W]
        In the coordinates of `frame`.
    frame : Frame
    compare : callable
        Called as compare(values [C, ..., H, W], n, range of D) it returns a number for each point [..., H, W] and its
        derivative with respect to each of the values [C, ..., H, W]; "..." are the planes of that range, in one axis
        or two.

    Returns
    -------
    Tensor, [N, 1, D, H, W]
    """
    if values.device.type == "cpu":
        return _Compared.apply(points, values, frame, compare)
    pulled = _by_grid_sample(values, points, frame)
    return torch.stack([compare(volume, n, slice(None))[0] for n, volume in enumerate(pulled)])[:, None]


def _by_grid_sample(values: torch.Tensor, points: torch.Tensor, frame: Frame) -> torch.Tensor:
    grid = [
        _linear(points[:, component], 2 * scale / max(n - 1, 1), 2 * offset / max(n - 1, 1) - 1)
        for component, scale, offset, n in zip(frame.order, frame.scale, frame.offset, values.shape[2:], strict=True)
    ]
    return F.grid_sample(values, torch.stack(grid[::-1], -1), padding_mode="border", align_corners=True)


class _Compared(torch.autograd.Function):
    """Compute the gradient with the value, while both planes are at hand; it keeps three numbers per point."""

    @staticmethod
    def forward(context, points, values, frame, compare):
        result = values.new_empty((len(values), 1, *points.shape[2:]))
        slope = torch.empty_like(points) if context.needs_input_grad[0] else None
        for n, volume in enumerate(values):
            for slab in slabs(points.shape[2:]):
                near = _Neighbours.of(volume, points[n, :, slab], frame)
                assert near is not None  # only a tolerance makes it None
                number, derivative = compare(near.values(), n, slab)
                result[n, 0, slab] = number.view(result[n, 0, slab].shape)
                if slope is not None:
                    near.slope(derivative, out=slope[n, :, slab])
        context.save_for_backward(slope)
        return result

    @staticmethod
    def backward(context, gradient):
        (slope,) = context.saved_tensors
        return slope.mul_(gradient), None, None, None


@dataclass(frozen=True)
class _Neighbours:
    """Some planes of points, and the values on the planes of a volume below and above each of them.

    The planes are in one piece per thread, [pieces, D, H, W]: on a CPU grid_sample divides its work over the batch
    only.
    lower, rise: [C, pieces, D, H, W], the values below, and how much higher those above are.
    weight: [pieces, D, H, W], how far above the lower plane a point is.
    images: the planes that are needed, laid below each other, from the lowest one and from the one above it.
    grid: the points in them, as grid_sample takes them.
    points, frame, shape: the points themselves [3, pieces, D, H, W], their coordinates, and the volume's (d, h, w).
    """

    lower: torch.Tensor
    rise: torch.Tensor
    weight: torch.Tensor
    images: list[torch.Tensor]
    grid: torch.Tensor
    points: torch.Tensor
    frame: Frame
    shape: torch.Size

    @classmethod
    def of(
        cls, volume: torch.Tensor, points: torch.Tensor, frame: Frame, tolerance: float = math.inf
    ) -> _Neighbours | None:
        """Look up the values; None where rounding could make a greater error than `tolerance`."""
        depth, height, width = volume.shape[1:]
        threads = torch.get_num_threads()
        points = points.unflatten(1, (threads if points.shape[1] % threads == 0 else 1, -1))
        z, y, x = (points[component] for component in frame.order)
        weight = _linear(z, frame.scale[0], frame.offset[0]).clamp_(0, (depth - 1) * (1 - _ROUNDING))
        below = weight.floor()
        weight.sub_(below)
        first, last = (int(plane) for plane in below.aminmax())
        rows = (last - first + 1) * height
        if tolerance < math.inf and rows * _ROUNDING * _steepness(volume[:, first : last + 2]) > tolerance:
            return None
        # rounding must not carry a point across a border of its plane, into the next
        margin = rows * _ROUNDING
        row = _linear(y, frame.scale[1], frame.offset[1]).clamp_(margin, max(height - 1 - margin, margin))
        row.add_(below.sub_(first), alpha=height)
        grid = torch.empty((*row.shape, 2))
        _linear(x, 2 / max(width - 1, 1) * frame.scale[2], 2 / max(width - 1, 1) * frame.offset[2] - 1, grid[..., 0])
        _linear(row, 2 / max(rows - 1, 1), -1, grid[..., 1])
        grid = grid.flatten(1, 2)
        images = [volume[:, low : low + last - first + 1] for low in (first, min(first + 1, depth - 1))]
        images = [image.flatten(1, 2).expand(len(grid), -1, -1, -1) for image in images]
        lower, upper = (
            F.grid_sample(image, grid, padding_mode="border", align_corners=True).unflatten(2, row.shape[1:3])
            for image in images
        )
        rise = upper.sub_(lower)
        return cls(lower.transpose(0, 1), rise.transpose(0, 1), weight, images, grid, points, frame, volume.shape[1:])

    def values(self, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the interpolated values, [C, pieces, D, H, W]."""
        return torch.addcmul(self.lower, self.rise, self.weight, out=out)

    def slope(self, derivative: torch.Tensor, out: torch.Tensor) -> None:
        """Write the gradient with respect to the points into `out` [3, planes, H, W].

        derivative: [C, pieces, D, H, W], with respect to the values.
        """
        gradient = derivative.transpose(0, 1).flatten(2, 3)
        by_lower, by_upper = (
            torch.ops.aten.grid_sampler_2d_backward(
                gradient, image, self.grid, _BILINEAR, _BORDER, True, (False, True)
            )[1].view(*self.weight.shape, 2)
            for image in self.images
        )
        by_x, by_row = by_lower.lerp_(by_upper, self.weight[..., None]).unbind(-1)
        by_z = dot(self.rise, derivative)
        rows, width = self.images[0].shape[2:]
        steps = 1, 2 / max(rows - 1, 1), 2 / max(width - 1, 1)
        axes = zip(self.frame.order, (by_z, by_row, by_x), self.frame.scale, self.frame.offset, steps, strict=True)
        for axis, (component, found, scale, offset, step) in enumerate(axes):
            into = out[component].view(found.shape)
            torch.mul(found, scale * step, out=into)
            if axis < 2:  # where a point was held back at the border; along x grid_sample saw to it
                point = self.points[component]
                held = point.clamp(-offset / scale, (self.shape[axis] - 1 - offset) / scale)
                into.masked_fill_(held.ne_(point).bool(), 0)


def dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum a * b over the first axis. torch.linalg.vecdot writes all products to memory first."""
    total = a[0] * b[0]
    for one, other in zip(a[1:], b[1:], strict=True):
        total.addcmul_(one, other)
    return total


def _steepness(volume: torch.Tensor) -> float:
    """Return the greatest difference of neighbours along y."""
    return max(map(abs, map(float, volume.diff(dim=2).aminmax()))) if volume.shape[2] > 1 else 0.0


def _linear(x: torch.Tensor, scale: float, offset: float, out: torch.Tensor | None = None) -> torch.Tensor:
    """Compute scale * x + offset in one pass."""
    return torch.add(x.new_full((), float(offset)), x, alpha=scale, out=out)
