"""Make displacement fields of maps, compose them, warp with them and measure them.

A `DisplacementField` is ITK's resampling direction: T(x) = x + displacement(x) takes points of the FIXED image to
points of the MOVING image, so it pulls moving data onto the fixed grid (Slicer: TransformFromParent of the node under
which moving data is placed). Displacements are (x, y, z) in mm, LPS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from ..errors import InputError
from ..text import tr
from .displacement import DisplacementField
from .geometry import Grid, Image, Segmentation
from .sampling import affine_index, as_volume, inside, interpolate, interpolate_affine, nearest, slabs, voxel_to_voxel


def displacement_from_phi(
    phi: torch.Tensor | np.ndarray,
    fixed_lattice: Grid,
    moving_lattice: Grid,
    cover: Grid | None = None,
    linear: np.ndarray | None = None,
) -> DisplacementField:
    """Turn a map in unit coordinates into a displacement field in mm: T(x) = M phi(F^-1 x).

    F and M are the lattices' `unit_to_world()`. The samples are exact, and the result is trilinear between them as the
    map is: no resampling takes place. Outside the lattice T(x) = A x + (T - A)(p), A the linear map and p the nearest
    lattice point.

    Parameters
    ----------
    phi : Tensor or ndarray, [1, 3, D, H, W]
        On `fixed_lattice`: positions on `moving_lattice`, components in the order of the axes (k, j, i), 0 and 1 at the
        first and last sample.
    fixed_lattice, moving_lattice : Grid
        Where the samples of phi lie, and what its values are relative to.
    cover : Grid, optional
        The fixed image. The lattice is extended by as many samples as it takes to hold every voxel of it, outer faces
        included.
    linear : ndarray, 4x4, optional
        Fixed mm -> moving mm: how points move far from the lattice. If None, the map M F^-1 of the lattices onto each
        other.

    Returns
    -------
    DisplacementField
        Fixed -> moving.

    Raises
    ------
    InputError
        If phi has another shape than its lattice.

    References
    ----------
    The rule outside the lattice is that of icon_registration's `as_function`, which clamps the displacement
    phi - identity (Greer et al., ICON, ICCV 2021).

    Examples
    --------
    >>> from IconRegistrationLib import identity_map
    >>> fixed = Grid.from_parts((4, 4, 4), spacing=(2.0, 2.0, 2.0))
    >>> moving = fixed.moved([[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    >>> field = displacement_from_phi(identity_map((4, 4, 4)), fixed, moving)
    >>> field.transform_points([1.0, 2.0, 3.0]).round(4).tolist()
    [6.0, 2.0, 3.0]
    """
    phi = torch.as_tensor(phi).detach().cpu()
    if tuple(phi.shape) != (1, 3, *fixed_lattice.shape):
        raise InputError(
            tr(
                "phi has shape {shape}; its lattice needs {needed}.",
                shape=str(tuple(phi.shape)),
                needed=str((1, 3, *fixed_lattice.shape)),
            )
        )
    to_moving = moving_lattice.unit_to_world()
    if linear is None:
        linear = to_moving @ np.linalg.inv(fixed_lattice.unit_to_world())
    linear = np.asarray(linear, dtype=np.float64)

    size = np.array(fixed_lattice.size)
    low, high = np.zeros(3, int), size
    if cover is not None:
        corners = fixed_lattice.to_index(cover.corners(faces=True))
        # 1e-6: a face that rounding puts just beyond a sample needs no further sample.
        low = np.minimum(np.floor(corners.min(0) + 1e-6).astype(int), 0)
        high = np.maximum(np.ceil(corners.max(0) - 1e-6).astype(int) + 1, size)
    grid = fixed_lattice.box(low, high)

    # displacement = M phi(p) - A p + (A - 1) x for node x and its nearest lattice point p; the affine terms are sums of
    # one vector per axis.
    steps = fixed_lattice.affine[:3, :3]
    node = [np.arange(a, b) for a, b in zip(low, high, strict=True)]
    inner = [np.clip(n, 0, s - 1) for n, s in zip(node, size, strict=True)]
    along = [
        np.outer(n, (linear[:3, :3] - np.eye(3)) @ step) - np.outer(p, linear[:3, :3] @ step)
        for n, p, step in zip(node, inner, steps.T, strict=True)
    ]
    plane = along[1][:, None] + along[0][None] + (to_moving[:3, 3] - fixed_lattice.origin)
    columns = np.ix_(inner[1], inner[0])
    matrix = torch.from_numpy(np.ascontiguousarray(to_moving[:3, :3]))

    result = np.empty((*grid.shape, 3), np.float32)
    for k in range(grid.shape[0]):
        positions = phi[0, :, inner[2][k]].to(torch.float64).reshape(3, -1)
        mapped = (positions.T @ matrix.T).reshape(*fixed_lattice.shape[1:], 3).numpy()
        result[k] = (mapped if cover is None else mapped[columns]) + (plane + along[2][k])
    return DisplacementField(result, grid)


def compose_displacements(first: DisplacementField, second: DisplacementField) -> DisplacementField:
    """Compose two deformations: x -> second(first(x)), sampled on the first's grid.

    Parameters
    ----------
    first, second : DisplacementField
        The moving side of the first is the fixed side of the second; in mm, LPS.

    Returns
    -------
    DisplacementField
        Exact at the samples, trilinear between them.
    """
    result = np.empty_like(first.displacement)
    volume = second.volume()
    for slab, index in mapped_index(first, second.grid, first.grid):
        result[slab] = first.displacement[slab] + interpolate(volume, index).permute(1, 2, 3, 0).numpy()
    return DisplacementField(result, first.grid)


def mapped_index(field: DisplacementField, source: Grid, target: Grid) -> Iterator[tuple[slice, torch.Tensor]]:
    """Map the samples of `target` (fixed side) to voxels of `source` (moving side), some planes at a time.

    Yields
    ------
    slab : slice
        Range of k in the target.
    index : Tensor, [3, k, j, i] float64
        Voxels (i, j, k) of the source, with fractions.
    """
    to_field = voxel_to_voxel(field.grid, target)
    to_source = voxel_to_voxel(source, target)
    in_voxels = field.volume(np.linalg.inv(source.affine[:3, :3]))
    for slab in slabs(target.shape):
        displacement = interpolate_affine(in_voxels, to_field, target.shape, slab)
        yield slab, affine_index(to_source, target.shape, slab).add_(displacement)


def warp_image(image: Image, field: DisplacementField, target: Grid, order: int = 1, outside: float = 0.0) -> Image:
    """Pull a moving image through a field onto another grid.

    Parameters
    ----------
    image : Image
        On the moving side, at its own resolution.
    field : DisplacementField
        Fixed -> moving.
    target : Grid
        Usually the fixed image's.
    order : {1, 3, 0}
        1 is trilinear, 3 cubic B-spline (both give float32), 0 the nearest voxel (keeps the type).
    outside : float
        Value where the field leads out of the image.

    Returns
    -------
    Image
        On `target`.

    Examples
    --------
    >>> grid = Grid.from_parts((4, 1, 1), spacing=(2.0, 1.0, 1.0))
    >>> shift = DisplacementField(np.full((1, 1, 1, 3), [2.0, 0.0, 0.0]), Grid((1, 1, 1), np.eye(4)))  # 2 mm along i
    >>> warp_image(Image(np.array([[[1, 2, 3, 4]]]), grid), shift, grid, outside=-1).array.tolist()
    [[[2.0, 3.0, 4.0, -1.0]]]
    """
    if order == 3:
        return Image(_warp_spline(image, field, target, outside), target, image.name)
    result = np.empty(target.shape, np.float32 if order else image.array.dtype)
    volume = as_volume(image.array) if order else None
    for slab, index in mapped_index(field, image.grid, target):
        result[slab] = nearest(image.array, index) if volume is None else interpolate(volume, index)[0].numpy()
        result[slab][~inside(index, image.grid.shape).numpy()] = outside
    return Image(result, target, image.name)


def _warp_spline(image: Image, field: DisplacementField, target: Grid, outside: float) -> np.ndarray:
    """Interpolate by ITK's cubic B-splines: [k, j, i] float32."""
    import SimpleITK as sitk

    moving = sitk.GetImageFromArray(np.asarray(image.array, dtype=np.float32))
    moving.SetSpacing(image.grid.spacing.tolist())
    moving.SetOrigin(image.grid.origin.tolist())
    moving.SetDirection(image.grid.direction.ravel().tolist())
    warped = sitk.Resample(
        moving,
        target.size,
        field.to_sitk(),
        sitk.sitkBSpline3,
        target.origin.tolist(),
        target.spacing.tolist(),
        target.direction.ravel().tolist(),
        float(outside),
    )
    return sitk.GetArrayFromImage(warped)


def in_type_of(image: Image, warped: Image) -> Image:
    """Return `warped` in the integer type of `image`, if it has one: rounded and clipped (cubic overshoots)."""
    if image.array.dtype.kind not in "iu":
        return warped
    limits = np.iinfo(image.array.dtype)
    values = np.rint(warped.array).clip(limits.min, limits.max).astype(image.array.dtype)
    return replace(warped, array=values)


def warp_labels(labels: Image, field: DisplacementField, target: Grid, method: str = "nearest") -> Image:
    """Pull a moving label map through a field onto another grid.

    Parameters
    ----------
    labels : Image
        Whole numbers, on the moving side.
    field : DisplacementField
        Fixed -> moving.
    target : Grid
        Usually the fixed image's.
    method : {"nearest", "linear"}
        The nearest voxel, or: every label's indicator is interpolated trilinearly and the largest wins (of equals the
        smallest label), which gives smoother borders.

    Returns
    -------
    Image
        On `target`, in its own type; 0 where the field leads out of the label map.

    Raises
    ------
    InputError
        If the method is unknown.
    """
    (result,) = _warp_layers((labels.array,), labels.grid, field, target, method)
    return Image(result, target, labels.name)


def warp_segmentation(
    segmentation: Segmentation, field: DisplacementField, target: Grid, method: str = "nearest"
) -> Segmentation:
    """Pull all layers of a moving segmentation through a field; names, colours, tags and values stay.

    Parameters
    ----------
    segmentation : Segmentation
        On the moving side.
    field, target, method
        As in `warp_labels`.

    Raises
    ------
    InputError
        If the method is unknown.
    """
    layers = _warp_layers(segmentation.layers, segmentation.grid, field, target, method)
    return replace(segmentation, layers=layers, grid=target)


def _warp_layers(layers, source: Grid, field: DisplacementField, target: Grid, method: str) -> tuple[np.ndarray, ...]:
    take = {"nearest": nearest, "linear": _majority}.get(method)
    if take is None:
        raise InputError(tr("Labels are not warped by {method}; choose nearest or linear.", method=repr(method)))
    results = tuple(np.empty(target.shape, layer.dtype) for layer in layers)
    for slab, index in mapped_index(field, source, target):
        is_inside = inside(index, source.shape).numpy()
        for layer, result in zip(layers, results, strict=True):
            result[slab] = take(layer, index) * is_inside
    return results


def _majority(labels: np.ndarray, index: torch.Tensor) -> np.ndarray:
    """Return the label with the largest trilinear weight at `index` [3, ...]; clamped at the border.

    Only the eight voxels around a position have weight, so eight gathers serve any number of labels; and where these
    eight agree, as nearly everywhere, no weights are needed.
    """
    last = np.array(labels.shape[::-1]) - 1
    positions = np.clip(index.numpy().reshape(3, -1), 0, last[:, None])
    low = positions.astype(np.int64)
    _, height, width = labels.shape
    strides = np.array([1, width, width * height])
    base = strides @ low
    flat = labels.reshape(-1)
    # At the last sample the fraction is 0 and the neighbour beyond has no weight: take the sample itself.
    ahead = [(low[axis] < last[axis]) * strides[axis] for axis in range(3)]
    corners = list(np.ndindex(2, 2, 2))

    def address(corner, of=slice(None)):
        return base[of] + sum(ahead[axis][of] for axis in range(3) if corner[axis])

    result = flat.take(base)
    mixed = np.zeros(result.shape, bool)
    for corner in corners[1:]:
        mixed |= flat.take(address(corner)) != result
    (mixed,) = mixed.nonzero()

    fraction = positions[:, mixed] - low[:, mixed]
    values = np.stack([flat.take(address(corner, mixed)) for corner in corners])
    weights = np.stack(
        [np.prod([f if c else 1 - f for f, c in zip(fraction, corner, strict=True)], axis=0) for corner in corners]
    )
    scores = np.zeros_like(weights)
    for a in range(8):
        for b in range(8):
            scores[a] += weights[b] * (values[a] == values[b])
    # Sums of the same weights in another order differ in the last bits; equals go to the smallest label.
    wins = scores >= scores.max(axis=0) - 1e-9
    largest = np.iinfo(labels.dtype).max if labels.dtype.kind in "iu" else np.inf
    result[mixed] = np.where(wins, values, largest).min(axis=0)
    return result.reshape(index.shape[1:])


def jacobian_determinant(field: DisplacementField) -> np.ndarray:
    """Compute det dT/dx at the samples: 1 keeps volume, below 0 the map folds.

    Central differences inside, one-sided at the border; in world units, so spacing, direction and shear of the grid
    have no influence.

    Parameters
    ----------
    field : DisplacementField

    Returns
    -------
    ndarray, [k, j, i] float32
        On the field's grid.

    Examples
    --------
    >>> grid = Grid.from_parts((3, 3, 3), spacing=(2.0, 2.0, 2.0))
    >>> still = DisplacementField(np.zeros((3, 3, 3, 3)), grid)
    >>> twice_as_large = still.after(np.diag([2.0, 2.0, 2.0, 1.0]))
    >>> float(jacobian_determinant(twice_as_large)[1, 1, 1])
    8.0
    """
    grid, displacement = field.grid, field.displacement
    steps = torch.as_tensor(np.ascontiguousarray(grid.affine[:3, :3]), dtype=torch.float32)
    depth = grid.shape[0]
    result = np.empty(grid.shape, np.float32)
    for slab in slabs(grid.shape):
        start, stop = max(slab.start - 1, 0), min(slab.stop + 1, depth)
        values = torch.from_numpy(np.moveaxis(displacement[start:stop], -1, 0).copy())  # [3, k, j, i]
        inner = slice(slab.start - start, slab.stop - start)
        # Columns of dT/d(i, j, k): the step of the grid plus the difference of the displacement along it.
        columns = [
            _difference(values[:, inner] if axis > 1 else values, axis)[:, inner if axis == 1 else slice(None)]
            + steps[:, 3 - axis].reshape(3, 1, 1, 1)
            for axis in (3, 2, 1)
        ]
        a, b, c = columns
        determinant = a[0] * (b[1] * c[2] - b[2] * c[1])
        determinant -= a[1] * (b[0] * c[2] - b[2] * c[0])
        determinant += a[2] * (b[0] * c[1] - b[1] * c[0])
        result[slab] = determinant.numpy()
    result /= np.linalg.det(grid.affine[:3, :3])
    return result


def _difference(values: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the change per sample along `axis`: central, one-sided at the ends; zero where there is one sample."""
    n = values.shape[axis]
    result = torch.zeros_like(values)
    if n > 2:
        inner = result.narrow(axis, 1, n - 2)
        torch.sub(values.narrow(axis, 2, n - 2), values.narrow(axis, 0, n - 2), out=inner).mul_(0.5)
    if n > 1:
        for end, low in ((0, 0), (n - 1, n - 2)):
            result.select(axis, end).copy_(values.select(axis, low + 1) - values.select(axis, low))
    return result


def inverse_consistency_error(forward: DisplacementField, backward: DisplacementField) -> np.ndarray:
    """Compute the inverse-consistency error ``|backward(forward(x)) - x|`` in mm.

    Parameters
    ----------
    forward : DisplacementField
        Fixed -> moving.
    backward : DisplacementField
        Moving -> fixed.

    Returns
    -------
    ndarray, [k, j, i] float32
        At the samples of `forward`; NaN where forward(x) leaves the backward field's lattice: nothing is known there.
    """
    result = np.empty(forward.grid.shape, np.float32)
    volume = backward.volume()
    for slab, index in mapped_index(forward, backward.grid, forward.grid):
        back = interpolate(volume, index).permute(1, 2, 3, 0).numpy()
        error = np.linalg.norm(forward.displacement[slab] + back, axis=-1)
        result[slab] = np.where(inside(index, backward.grid.shape).numpy(), error, np.nan)
    return result
