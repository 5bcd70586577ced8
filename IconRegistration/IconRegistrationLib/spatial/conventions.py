"""Express a deformation in the conventions of other tools; docs/phi.md explains each and shows it at work.

`field` is a `DisplacementField` (mm, LPS, fixed -> moving); `fixed` and `moving` are the grids of the images at their
own resolution. Its mm displacement is `field.sampled_on(fixed).displacement` in LPS (ITK, SimpleITK), and
`flip_vectors` of that in RAS (Slicer, nibabel).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .displacement import DisplacementField
from .field import mapped_index
from .geometry import Grid


def identity_map(shape: Sequence[int]) -> torch.Tensor:
    """Return the phi that moves nothing.

    Parameters
    ----------
    shape : sequence of int
        Samples along (k, j, i): D, H, W.

    Returns
    -------
    Tensor, [1, 3, D, H, W] float32
        Components 0, 1, 2 run from 0 to 1 along D, H, W.

    Examples
    --------
    >>> identity_map((2, 3, 4))[0, 1, 0, :, 0].tolist()
    [0.0, 0.5, 1.0]
    """
    return torch.stack(torch.meshgrid(*[torch.linspace(0, 1, n) for n in shape], indexing="ij"))[None]


def sampling_grid_from_phi(phi: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Turn phi into the grid of torch's `grid_sample(moving, grid, align_corners=False)`.

    No geometry is needed as long as each lattice fills the box of its image, as icon_registration's do; the moving
    image may have any shape.

    Parameters
    ----------
    phi : Tensor, [1, 3, d, h, w]
        Unit coordinates on the lattice, components in the order (k, j, i).
    shape : sequence of int
        (D, H, W) of the fixed image at its own resolution.

    Returns
    -------
    Tensor, [1, D, H, W, 3]
        (x, y, z) along (i, j, k); -1 and 1 at the outer faces of the moving image.
    """
    n = torch.tensor(phi.shape[2:], dtype=phi.dtype, device=phi.device).view(1, 3, 1, 1, 1)
    # The displacement is clamped beyond the outermost samples of the lattice; the map itself must not be.
    displacement = (phi - identity_map(phi.shape[2:]).to(phi)) * (2 * (n - 1) / n)
    displacement = F.interpolate(displacement, size=tuple(shape), mode="trilinear", align_corners=False)
    faces = [(2 * torch.arange(m, dtype=phi.dtype, device=phi.device) + 1) / m - 1 for m in shape]
    identity = torch.stack(torch.meshgrid(*faces, indexing="ij"))
    return (identity + displacement).flip(1).permute(0, 2, 3, 4, 1)


def displacement_in_voxels(field: DisplacementField, grid: Grid) -> np.ndarray:
    """Measure a displacement in voxels.

    Parameters
    ----------
    field : DisplacementField
    grid : Grid
        Whose voxels, that is axes and spacing, are the unit; its shape does not matter.

    Returns
    -------
    ndarray, [k, j, i, 3] float32
        Components (i, j, k), at the samples of the field.
    """
    return field.displacement @ np.linalg.inv(grid.affine[:3, :3]).T.astype(np.float32)


def voxel_map(field: DisplacementField, fixed: Grid, moving: Grid) -> np.ndarray:
    """Map every fixed voxel to its position in the moving image.

    Parameters
    ----------
    field : DisplacementField
        Fixed -> moving.
    fixed, moving : Grid
        The images at their own resolution.

    Returns
    -------
    ndarray, [k, j, i, 3] float32
        For every fixed voxel the moving voxel (i, j, k), with fractions.

    Examples
    --------
    >>> grid = Grid.from_parts((4, 3, 2), spacing=(2.0, 1.0, 1.0))
    >>> shift = DisplacementField(np.full((1, 1, 1, 3), 1.0), Grid((1, 1, 1), np.eye(4)))  # 1 mm along each axis
    >>> voxel_map(shift, grid, grid)[0, 0, 0].tolist()
    [0.5, 1.0, 1.0]
    """
    result = np.empty((*fixed.shape, 3), np.float32)
    for slab, index in mapped_index(field, moving, fixed):
        result[slab] = index.permute(1, 2, 3, 0).numpy()
    return result


def sampling_grid(field: DisplacementField, fixed: Grid, moving: Grid, align_corners: bool) -> torch.Tensor:
    """Return the grid with which torch's `grid_sample` pulls the moving image onto the fixed one.

    Parameters
    ----------
    field : DisplacementField
        Fixed -> moving.
    fixed, moving : Grid
        The images at their own resolution; the input of `grid_sample` is the moving image [1, C, D', H', W'].
    align_corners : bool
        What is passed to `grid_sample`: whether -1 and 1 are the centres of the first and last voxels, else their outer
        faces.

    Returns
    -------
    Tensor, [1, D, H, W, 3] float32
        (x, y, z) along (i, j, k).
    """
    index = torch.from_numpy(voxel_map(field, fixed, moving))[None]
    size = torch.tensor(moving.size, dtype=torch.float32)
    return 2 * index / (size - 1) - 1 if align_corners else (2 * index + 1) / size - 1


def half_extent_displacement(
    field: DisplacementField, fixed: Grid, moving: Grid, align_corners: bool = True
) -> np.ndarray:
    """Measure the displacement in half image extents, in nibabel's axis order.

    An axis of the fixed image runs from -1 to 1, and so does the axis of the same number of the moving image, whatever
    their spacing and direction; the displacement is the difference of the two coordinates.

    Parameters
    ----------
    field : DisplacementField
        Fixed -> moving.
    fixed, moving : Grid
        The images at their own resolution.
    align_corners : bool
        Whether an axis runs between the centres of the outermost voxels, else between their outer faces.

    Returns
    -------
    ndarray, [i, j, k, 3] float32
        Components (i, j, k).
    """
    positions = sampling_grid(field, fixed, moving, align_corners)[0].numpy()
    still = DisplacementField(np.zeros((1, 1, 1, 3)), Grid((1, 1, 1), fixed.affine))
    identity = sampling_grid(still, fixed, fixed, align_corners)[0].numpy()
    return (positions - identity).transpose(2, 1, 0, 3)
