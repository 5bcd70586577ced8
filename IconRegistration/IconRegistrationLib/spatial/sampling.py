"""Sample images between their voxels and on other grids, in slabs so that memory stays small.

Positions are voxel coordinates in the order (i, j, k), held component first: `index` [3, k, j, i], float64. A position
is inside an image up to the outer faces of its voxels, [-1/2, N - 1/2] per axis; within the last half voxel values are
those at the outermost centre (ITK's resampling does the same).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from .geometry import Grid, Image, apply_affine

#: Positions computed at a time: 3 MB in float64, so that the steps of one slab meet their operands in the cache.
SLAB_VOXELS = 2**17
#: Rounding in an affine must not decide whether a face belongs to its voxel.
FACE_TOLERANCE = 1e-6


def as_volume(array: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """Convert [k, j, i] or [C, k, j, i] of any real type to a tensor [C, k, j, i], float32; no copy of a float32."""
    volume = torch.from_numpy(np.require(array, np.float32, ["C", "W"]))
    return (volume[None] if volume.dim() == 3 else volume).to(device)


def slabs(shape: Sequence[int]) -> Iterator[slice]:
    """Cut an array of `shape` (k, j, i) into ranges of k of about SLAB_VOXELS voxels, equally many per thread."""
    depth, *plane = shape
    threads = torch.get_num_threads()
    step = max(1, SLAB_VOXELS // math.prod(plane) // threads) * threads
    for start in range(0, depth, step):
        yield slice(start, min(start + step, depth))


def affine_index(
    matrix: np.ndarray, shape: Sequence[int], slab: slice, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Map the voxels of a slab by a matrix.

    Parameters
    ----------
    matrix : ndarray, 4x4
        Voxel (i, j, k) -> voxel.
    shape : sequence of int
        Of the whole array, (k, j, i).
    slab : slice
        Range of k.
    device : str or torch.device

    Returns
    -------
    Tensor, [3, k, j, i] float64
        Components (i, j, k).
    """
    linear = torch.as_tensor(matrix, dtype=torch.float64, device=device)
    i, j, k = (
        torch.arange(start, stop, dtype=torch.float64, device=device)
        for start, stop in ((0, shape[2]), (0, shape[1]), (slab.start, slab.stop))
    )
    along_i, along_j, along_k = (linear[:3, axis, None] * n for axis, n in enumerate((i, j, k)))
    row = along_k[:, :, None] + along_j[:, None, :] + linear[:3, 3, None, None]
    return row[..., None] + along_i[:, None, None, :]


def voxel_to_voxel(source: Grid, target: Grid, transform: np.ndarray | None = None) -> np.ndarray:
    """Return the 4x4 of voxels of `target` -> voxels of `source`; `transform`: 4x4, target mm -> source mm."""
    to_source = target.affine if transform is None else np.asarray(transform, dtype=np.float64) @ target.affine
    return np.linalg.solve(source.affine, to_source)


def inside(index: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Tell which positions [3, ...] lie within the outer faces of an array of `shape` (k, j, i): bool [...]."""
    result = torch.ones(index.shape[1:], dtype=torch.bool, device=index.device)
    for position, n in zip(index, reversed(shape), strict=True):
        result &= (position >= -0.5 - FACE_TOLERANCE) & (position <= n - 0.5 + FACE_TOLERANCE)
    return result


def interpolate(volume: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Interpolate trilinearly; beyond the outermost centres the values of the border hold.

    Parameters
    ----------
    volume : Tensor, [C, D, H, W] float32
    index : Tensor, [3, k, j, i] float64
        Voxels (i, j, k) of the volume, with fractions.

    Returns
    -------
    Tensor, [C, k, j, i] float32
    """
    sizes = torch.tensor(volume.shape[:0:-1], dtype=index.dtype, device=index.device)
    scale = (2 / (sizes - 1).clamp_min(1)).reshape(3, 1, 1, 1)
    coordinates = (index * scale - 1).to(volume.dtype).permute(1, 2, 3, 0)
    # On a CPU grid_sample divides its work over the batch only: cut the slab into one piece per thread. The volume is
    # expanded, not copied.
    depth, threads = coordinates.shape[0], torch.get_num_threads()
    pieces = threads if volume.device.type == "cpu" and depth % threads == 0 else 1
    batch = coordinates.reshape(pieces, depth // pieces, *coordinates.shape[1:])
    values = F.grid_sample(
        volume.expand(pieces, *volume.shape), batch, mode="bilinear", padding_mode="border", align_corners=True
    )
    return values.transpose(0, 1).reshape(len(volume), *coordinates.shape[:3])


def interpolate_affine(volume: torch.Tensor, matrix: np.ndarray, shape: Sequence[int], slab: slice) -> torch.Tensor:
    """Interpolate at a slab of voxels of an array of `shape`, mapped by `matrix` (4x4, voxel -> voxel of `volume`).

    Where the axes of both run alike, as from a lattice to its own image, the weights are one matrix per axis: three
    times faster than weighing eight neighbours per voxel.
    """
    if not _runs_alike(matrix, shape):
        return interpolate(volume, affine_index(matrix, shape, slab))
    ranges = ((slab.start, slab.stop), (0, shape[1]), (0, shape[2]))
    along_k, along_j, along_i = (
        _linear_weights(n, matrix[axis, axis] * np.arange(*voxels) + matrix[axis, 3])
        for n, axis, voxels in zip(volume.shape[1:], (2, 1, 0), ranges, strict=True)
    )
    (weighted,) = along_k.any(0).nonzero(as_tuple=True)
    used = slice(int(weighted[0]), int(weighted[-1]) + 1)
    planes = along_k[:, used] @ volume[:, used].flatten(2)
    return along_j @ planes.reshape(len(volume), len(along_k), *volume.shape[2:]) @ along_i.T


def _runs_alike(matrix: np.ndarray, shape: Sequence[int]) -> bool:
    """Tell whether a map of the voxels of an array of `shape` (k, j, i), 4x4, moves each along its own axis only."""
    linear = matrix[:3, :3]
    slant = np.abs(linear - np.diag(np.diag(linear))) @ np.array(shape[::-1])
    return bool(slant.max() <= FACE_TOLERANCE)


def _linear_weights(n: int, positions: np.ndarray) -> torch.Tensor:
    """Return the weights [m, n] of n samples in the linear, clamped interpolation at m positions."""
    positions = positions.clip(0, n - 1)
    low = positions.astype(np.int64)
    rows = np.arange(len(positions))
    weights = np.zeros((len(positions), n + 1), np.float32)  # one more: past the last sample, always of weight 0
    weights[rows, low] = 1 - (positions - low)
    weights[rows, low + 1] = positions - low
    return torch.from_numpy(np.ascontiguousarray(weights[:, :n]))


def nearest(array: np.ndarray, index: torch.Tensor) -> np.ndarray:
    """Return `array` [k, j, i], any type, at the voxels nearest to `index` [3, ...]; clamped; halves round up."""
    flat = torch.zeros(index.shape[1:], dtype=torch.int64)
    for position, n in reversed(list(zip(index, reversed(array.shape), strict=True))):
        flat = flat * n + (position + 0.5).floor().clamp(0, n - 1).long()
    return array.reshape(-1).take(flat.numpy())


def sample(
    array: np.ndarray,
    source: Grid,
    target: Grid,
    *,
    transform: np.ndarray | None = None,
    order: int = 1,
    outside: float = 0.0,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Sample an array on another lattice.

    Parameters
    ----------
    array : ndarray, [k, j, i] or [C, k, j, i]
        On `source`.
    source, target : Grid
    transform : ndarray, 4x4, optional
        Target mm -> source mm (LPS); the identity if None.
    order : {1, 0}
        1 is trilinear and gives float32; 0 takes the nearest voxel and keeps the type.
    outside : float
        Value where the target leaves the source's voxels.
    device : str or torch.device
        Where order 1 is computed: "cpu" or a CUDA device.

    Returns
    -------
    ndarray, [k, j, i] or [C, k, j, i]
        On `target`.

    Examples
    --------
    >>> source = Grid((1, 1, 3), np.eye(4))
    >>> sample(np.array([[[0, 10, 20]]]), source, source.with_shape((1, 1, 6))).tolist()
    [[[0.0, 2.5, 7.5, 12.5, 17.5, 20.0]]]
    """
    matrix = voxel_to_voxel(source, target, transform)
    channels = array if array.ndim == 4 else array[None]
    result = np.empty((len(channels), *target.shape), np.float32 if order else array.dtype)
    volume = as_volume(channels, device) if order else None
    for slab in slabs(target.shape):
        index = affine_index(matrix, target.shape, slab, device if order else "cpu")
        if volume is None:
            result[:, slab] = [nearest(channel, index) for channel in channels]
        else:
            result[:, slab] = interpolate(volume, index).cpu().numpy()
        result[:, slab][:, ~inside(index, source.shape).cpu().numpy()] = outside
    return result if array.ndim == 4 else result[0]


def coverage(source: Grid, target: Grid, transform: np.ndarray | None = None) -> np.ndarray:
    """Tell which samples of `target` lie within the outer faces of the voxels of `source`: bool [k, j, i]."""
    matrix = voxel_to_voxel(source, target, transform)
    result = np.empty(target.shape, bool)
    for slab in slabs(target.shape):
        result[slab] = inside(affine_index(matrix, target.shape, slab), source.shape).numpy()
    return result


def smooth_for(array: np.ndarray, source: Grid, target: Grid, transform: np.ndarray | None = None) -> np.ndarray:
    """Smooth an array so that sampling it on a coarser lattice does not alias.

    A Gaussian along each axis gives the voxels the target's width: sigma^2 = (r^2 - 1) / (8 ln 2) voxels^2 where a
    step of the target is r > 1 voxels. Values repeat beyond the border.

    Parameters
    ----------
    array : ndarray, [k, j, i]
        On `source`.
    source, target : Grid
    transform : ndarray, 4x4, optional
        Target mm -> source mm (LPS); the identity if None.

    Returns
    -------
    ndarray, [k, j, i] float32
        On `source`; the array itself where the target is nowhere coarser.

    References
    ----------
    Cardoso et al., Scale factor point spread function matching, MICCAI 2015.
    """
    ratios = np.linalg.norm(voxel_to_voxel(source, target, transform)[:3, :3], axis=1)
    volume = as_volume(array)[0]
    for axis, ratio in zip((2, 1, 0), ratios, strict=True):
        if ratio > 1:
            volume = _gaussian_along(volume, axis, _sigma(ratio))
    return volume.numpy()


def sample_mask(mask: Image, target: Grid) -> np.ndarray:
    """Tell where on `target` a mask counts (is not 0): bool [k, j, i], nearest neighbour; False outside of it."""
    return sample((mask.array != 0).astype(np.uint8), mask.grid, target, order=0) > 0


def smooth_sample(array: np.ndarray, source: Grid, target: Grid, outside: float = 0.0) -> np.ndarray:
    """Smooth `array` [k, j, i] on `source` for `target` and sample it there: `smooth_for`, then `sample`; float32.

    Where the axes of both run alike and the target stays within the source's faces, both are one matrix per axis, and
    what is dropped along one axis is not smoothed along the next: five times faster for a lattice of a few mm.
    """
    matrix = voxel_to_voxel(source, target)
    reach = apply_affine(matrix, np.array([(0, 0, 0), np.array(target.size) - 1]))
    within = (reach > -0.5 - FACE_TOLERANCE) & (reach < np.array(source.size) - 0.5 + FACE_TOLERANCE)
    if not (within.all() and _runs_alike(matrix, target.shape)):
        return sample(smooth_for(array, source, target), source, target, outside=outside)
    along_k, along_j, along_i = (
        _smooth_weights(n, matrix[axis, axis], matrix[axis, axis] * np.arange(m) + matrix[axis, 3])
        for n, m, axis in zip(source.shape, target.shape, (2, 1, 0), strict=True)
    )
    rows = along_j @ (as_volume(array)[0] @ along_i.T)
    return (along_k @ rows.flatten(1)).reshape(target.shape).numpy()


def _smooth_weights(n: int, step: float, positions: np.ndarray) -> torch.Tensor:
    """Return the weights [m, n] of n samples in the values at m positions `step` apart, smoothed for that distance."""
    weights = _linear_weights(n, positions)
    return weights @ _gaussian_along(torch.eye(n), 0, _sigma(abs(step))) if abs(step) > 1 else weights


def _sigma(ratio: float) -> float:
    """Return sigma in voxels of the Gaussian that gives a voxel the width of `ratio` voxels."""
    return math.sqrt((ratio**2 - 1) / (8 * math.log(2)))


def _gaussian_along(volume: torch.Tensor, axis: int, sigma: float) -> torch.Tensor:
    """Convolve `volume` along one axis with a Gaussian of `sigma` voxels, cut at 3 sigma."""
    radius = max(1, math.ceil(3 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    n = volume.shape[axis]
    index = torch.arange(-radius, n + radius).clamp_(0, n - 1)
    padded = volume.index_select(axis, index)
    result = padded.narrow(axis, 0, n) * float(weights[0])
    for offset, weight in enumerate(weights[1:], start=1):
        result.add_(padded.narrow(axis, offset, n), alpha=float(weight))
    return result
