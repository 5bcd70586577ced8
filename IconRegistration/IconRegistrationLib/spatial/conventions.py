"""The deformation in the words of other tools: docs/phi.md explains each and shows it at work.

`field` is a `DisplacementField` (mm, LPS, fixed -> moving); `fixed` and `moving` are the grids of the images at their
own resolution. Its mm displacement is `field.sampled_on(fixed).displacement` in LPS (ITK, SimpleITK), and
`flip_vectors` of that in RAS (Slicer, nibabel).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from .displacement import DisplacementField
from .field import mapped_index
from .geometry import Grid


def identity_map(shape) -> torch.Tensor:
    """The map that moves nothing, [1, 3, D, H, W] float32: components 0, 1, 2 run from 0 to 1 along D, H, W."""
    return torch.stack(torch.meshgrid(*[torch.linspace(0, 1, n) for n in shape], indexing="ij"))[None]


def sampling_grid_from_phi(phi: torch.Tensor, shape) -> torch.Tensor:
    """phi [1, 3, d, h, w] -> [1, D, H, W, 3] for `grid_sample(moving, ..., align_corners=False)`.

    shape: (D, H, W) of the fixed image at its own resolution; the moving image may have any shape. No geometry is
    needed as long as each lattice fills the box of its image, as icon_registration's do.
    """
    n = torch.tensor(phi.shape[2:], dtype=phi.dtype, device=phi.device).view(1, 3, 1, 1, 1)
    # The displacement is clamped beyond the outermost samples of the lattice; the map itself must not be.
    displacement = (phi - identity_map(phi.shape[2:]).to(phi)) * (2 * (n - 1) / n)
    displacement = F.interpolate(displacement, size=tuple(shape), mode="trilinear", align_corners=False)
    faces = [(2 * torch.arange(m, dtype=phi.dtype, device=phi.device) + 1) / m - 1 for m in shape]
    identity = torch.stack(torch.meshgrid(*faces, indexing="ij"))
    return (identity + displacement).flip(1).permute(0, 2, 3, 4, 1)


def displacement_in_voxels(field: DisplacementField, grid: Grid) -> np.ndarray:
    """The displacement measured in voxels of `grid` (its axes, its spacing), [k, j, i, 3], components (i, j, k)."""
    return field.displacement @ np.linalg.inv(grid.affine[:3, :3]).T.astype(np.float32)


def voxel_map(field: DisplacementField, fixed: Grid, moving: Grid) -> np.ndarray:
    """For every fixed voxel its place in the moving image in voxels: float32 [k, j, i, 3], components (i, j, k)."""
    result = np.empty((*fixed.shape, 3), np.float32)
    for slab, index in mapped_index(field, moving, fixed):
        result[slab] = index.permute(1, 2, 3, 0).numpy()
    return result


def sampling_grid(field: DisplacementField, fixed: Grid, moving: Grid, align_corners: bool) -> torch.Tensor:
    """[1, D, H, W, 3] for torch's `grid_sample` of the moving image [1, C, D', H', W'] at its own resolution.

    Components (x, y, z) along (i, j, k); -1 and 1 are the centres of the first and last voxels with `align_corners`,
    their outer faces without. Pass the same `align_corners` to `grid_sample`.
    """
    places = torch.from_numpy(voxel_map(field, fixed, moving))[None]
    size = torch.tensor(moving.size, dtype=torch.float32)
    return 2 * places / (size - 1) - 1 if align_corners else (2 * places + 1) / size - 1


def half_extent_displacement(
    field: DisplacementField, fixed: Grid, moving: Grid, align_corners: bool = True
) -> np.ndarray:
    """The displacement in half image extents, in nibabel's axis order: [i, j, k, 3], components (i, j, k).

    An axis of the fixed image runs from -1 to 1, and so does the axis of the same number of the moving image, whatever
    their spacing and direction; the displacement is the difference of the two coordinates. From centre to centre of
    the outermost voxels with `align_corners`, from face to face without.
    """
    places = sampling_grid(field, fixed, moving, align_corners)[0].numpy()
    still = DisplacementField(np.zeros((1, 1, 1, 3)), Grid((1, 1, 1), fixed.affine))
    identity = sampling_grid(still, fixed, fixed, align_corners)[0].numpy()
    return (places - identity).transpose(2, 1, 0, 3)
