"""Choose the lattices of the two maps: that of phi_AB over the fixed image, that of phi_BA over the moving image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np

from ..errors import InputError
from ..text import tr
from .geometry import Grid

#: Share of the overlap's extent that is kept around it, so that the border has a neighbourhood.
MARGIN = 0.1
#: Samples of the lattice on which maps are refined without a network: less than a minute on two CPU cores, seconds on
#: a GPU. Three numbers for each of the two directions then stay below 32 MiB, above which glibc gives every tensor
#: pages of its own that the system clears first: a third more time for a tenth more samples.
REFINEMENT_VOXELS = {"cpu": 1_350_000, "cuda": 6_000_000}
#: Fewest samples of an axis on which a displacement field can bend.
FEWEST_SAMPLES = 4


def network_lattices(fixed: Grid, moving: Grid, shape: Sequence[int]) -> tuple[Grid, Grid]:
    """Return the lattices of a network as published: the boxes of both images are stretched to its input.

    Parameters
    ----------
    fixed, moving : Grid
    shape : sequence of int
        Of the network's input, (k, j, i).
    """
    return fixed.with_shape(shape), moving.with_shape(shape)


def linear_between(fixed_lattice: Grid, moving_lattice: Grid) -> np.ndarray:
    """Return the 4x4, fixed mm -> moving mm, that lays one lattice on the other: phi = identity."""
    return moving_lattice.faces_to_world() @ np.linalg.inv(fixed_lattice.faces_to_world())


def refinement_lattices(
    fixed: Grid,
    moving: Grid,
    linear: np.ndarray,
    *,
    spacing: float | None = None,
    voxels: int = REFINEMENT_VOXELS["cpu"],
    region: Grid | None = None,
) -> tuple[Grid, Grid]:
    """Return two lattices of one shape over what the images share, each along its own image's axes.

    No axis is sampled more finely than the finer of the two images along it.

    Parameters
    ----------
    fixed, moving : Grid
    linear : ndarray, 4x4
        Fixed mm -> moving mm.
    spacing : float, optional
        Distance of samples in mm; by default the finest for which a lattice has at most `voxels` samples.
    voxels : int
        Samples of a lattice.
    region : Grid, optional
        A box in the fixed world to which the registration is confined.

    Returns
    -------
    fixed_lattice, moving_lattice : Grid

    Raises
    ------
    InputError
        If the images do not overlap.
    """
    moving = _axes_like(fixed, moving, linear)
    fixed_box = fixed if region is None else region_box(fixed, region)
    fixed_box = _overlap(fixed_box, moving, linear)
    moving_box = _overlap(moving, fixed_box, np.linalg.inv(linear))
    extent = np.maximum(fixed_box.extent, moving_box.extent)
    finest = np.minimum(fixed.spacing, moving.spacing)
    if spacing is None:
        spacing = _spacing_for(extent, finest, voxels)
    size = [max(FEWEST_SAMPLES, math.ceil(e / max(spacing, f) - 1e-6)) for e, f in zip(extent, finest, strict=True)]
    return fixed_box.with_shape(size[::-1]), moving_box.with_shape(size[::-1])


def region_box(grid: Grid, region: Grid) -> Grid:
    """Return the voxels of `grid` within the box of `region`.

    Raises
    ------
    InputError
        If there are none.
    """
    return _overlap(grid, region, np.eye(4), margin=0)


def _spacing_for(extent: np.ndarray, finest: np.ndarray, voxels: int) -> float:
    """Return the finest spacing in mm whose lattice over `extent` has at most `voxels` samples."""
    low, high = float(finest.min()), float(extent.max())
    if np.prod(extent / finest) <= voxels:
        return low
    for _ in range(40):
        middle = (low + high) / 2
        if np.prod(np.ceil(extent / np.maximum(middle, finest))) > voxels:
            low = middle
        else:
            high = middle
    return high


def _axes_like(fixed: Grid, moving: Grid, linear: np.ndarray) -> Grid:
    """Permute and flip the axes of `moving` to run as the fixed image's: the same voxels, another order."""
    towards = linear[:3, :3] @ fixed.direction
    agreement = (towards / np.linalg.norm(towards, axis=0)).T @ moving.direction
    order = max(permutations(range(3)), key=lambda p: sum(abs(agreement[n, p[n]]) for n in range(3)))
    change = np.zeros((4, 4))
    change[3, 3] = 1
    for new, old in enumerate(order):
        forwards = agreement[new, old] >= 0
        change[old, new] = 1 if forwards else -1
        change[old, 3] = 0 if forwards else moving.size[old] - 1
    size = [moving.size[old] for old in order]
    i, j, k = size
    return Grid((k, j, i), moving.affine @ change)


def _overlap(grid: Grid, other: Grid, to_other: np.ndarray, margin: float = MARGIN) -> Grid:
    """Return the part of `grid` within the box of `other` and a margin; `to_other`: 4x4, mm of `grid` -> of `other`."""
    corners = other.corners(faces=True)
    mine = grid.to_index(corners @ np.linalg.inv(to_other)[:3, :3].T + np.linalg.inv(to_other)[:3, 3])
    low, high = mine.min(0) + 0.5, mine.max(0) + 0.5  # in voxels from the outer face
    if (np.minimum(high, grid.size) - np.maximum(low, 0) < 1).any():
        raise InputError(
            tr(
                "The images do not overlap: along its axes, in voxels, one covers 0..{size} and the other "
                "{low}..{high} of it. Check the headers, or align them first (align centre, rigid or affine, or an "
                "initial transform).",
                size=str(list(grid.size)),
                low=str(low.round().astype(int).tolist()),
                high=str(high.round().astype(int).tolist()),
            )
        )
    spare = margin * (high - low) - 1e-6  # a face on a voxel's face takes no further voxel
    first = np.maximum(np.floor(low - spare), 0).astype(int)
    return grid.box(first, np.minimum(np.ceil(high + spare), grid.size).astype(int))
