"""Hold a displacement field as a value: samples in mm on a lattice. spatial/field.py makes and uses it.

No torch at its top: Slicer's own process, which may have none, holds the results of a registration too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..text import tr
from .geometry import Grid

if TYPE_CHECKING:
    import SimpleITK
    import torch


@dataclass(frozen=True)
class DisplacementField:
    """A deformation sampled on a lattice, trilinear between the samples.

    Parameters
    ----------
    displacement : ndarray, [k, j, i, 3]
        (x, y, z) in mm, LPS, to be added to a fixed point to give the moving point; kept as float32.
    grid : Grid
        Positions of the samples.

    Raises
    ------
    InputError
        If the displacement has another shape than the grid.

    Notes
    -----
    Beyond the outermost samples the displacement of the nearest border point holds, as in VTK and Slicer; ITK's
    transform there gives zero. `displacement_from_phi` pads the lattice so that no voxel of the fixed image meets the
    difference.

    Examples
    --------
    >>> grid = Grid.from_parts((2, 2, 2), spacing=(10, 10, 10))
    >>> field = DisplacementField(np.full((2, 2, 2, 3), [1.0, 0.0, -2.0]), grid)
    >>> field.transform_points([5.0, 5.0, 5.0]).tolist()
    [6.0, 5.0, 3.0]
    """

    displacement: np.ndarray = field(repr=False)
    grid: Grid

    def __post_init__(self) -> None:
        """Check the shape."""
        if self.displacement.shape != (*self.grid.shape, 3):
            raise InputError(
                tr(
                    "The displacement has shape {shape}; this grid needs {needed}.",
                    shape=str(self.displacement.shape),
                    needed=str((*self.grid.shape, 3)),
                )
            )
        object.__setattr__(self, "displacement", np.asarray(self.displacement, dtype=np.float32))

    def volume(self, matrix: np.ndarray | None = None) -> torch.Tensor:
        """Return components first, [3, k, j, i] float32; each displacement multiplied by `matrix` (3x3) if given."""
        import torch

        matrix = np.eye(3) if matrix is None else matrix
        result = torch.empty((3, *self.grid.shape), dtype=torch.float32)
        flat, out = torch.from_numpy(np.require(self.displacement, None, ["C", "W"])).view(-1, 3), result.view(3, -1)
        torch.matmul(torch.as_tensor(matrix, dtype=torch.float32), flat.T, out=out)
        return result

    def magnitude(self) -> np.ndarray:
        """Return the length of the displacement in mm, float32 [k, j, i]."""
        return np.sqrt(np.einsum("kjic,kjic->kji", self.displacement, self.displacement))

    def transform_points(self, points: ArrayLike) -> np.ndarray:
        """Map fixed points to moving points.

        Parameters
        ----------
        points : array_like, (..., 3)
            In mm, LPS.

        Returns
        -------
        ndarray, (..., 3) float64
            In mm, LPS.
        """
        points = np.asarray(points, dtype=np.float64)
        last = np.array(self.grid.size) - 1
        index = np.clip(self.grid.to_index(points), 0, last)
        low = np.minimum(index.astype(np.int64), np.maximum(last - 1, 0))
        fraction = index - low
        flat = self.displacement.reshape(-1, 3)
        _, height, width = self.grid.shape
        moved = points.copy()
        for corner in np.ndindex(2, 2, 2):
            weight = np.where(corner, fraction, 1 - fraction).prod(axis=-1)
            i, j, k = np.moveaxis(np.minimum(low + corner, last), -1, 0)
            moved += weight[..., None] * flat[(k * height + j) * width + i]
        return moved

    def sampled_on(self, grid: Grid) -> DisplacementField:
        """Return the deformation with one sample per voxel of `grid`, clamped outside; larger, and no more exact."""
        from .sampling import interpolate_affine, slabs, voxel_to_voxel

        result = np.empty((*grid.shape, 3), np.float32)
        matrix, volume = voxel_to_voxel(self.grid, grid), self.volume()
        for slab in slabs(grid.shape):
            result[slab] = interpolate_affine(volume, matrix, grid.shape, slab).permute(1, 2, 3, 0).numpy()
        return DisplacementField(result, grid)

    def after(self, matrix: np.ndarray) -> DisplacementField:
        """Append a linear map: x -> matrix(T(x)), exact, on the same grid (`matrix` 4x4, moving mm -> mm)."""
        from .sampling import slabs

        matrix = np.asarray(matrix, dtype=np.float64)
        result = np.empty_like(self.displacement)
        for slab in slabs(self.grid.shape):
            linear = self.displacement[slab] @ matrix[:3, :3].T
            result[slab] = _affine_on(matrix - np.eye(4), self.grid, slab) + linear
        return DisplacementField(result, self.grid)

    def before(self, matrix: np.ndarray) -> DisplacementField:
        """Prepend a linear map: y -> T(matrix(y)), exact: the grid itself moves (`matrix` 4x4, mm -> fixed mm)."""
        from .sampling import slabs

        inverse = np.linalg.inv(np.asarray(matrix, dtype=np.float64))
        result = np.empty_like(self.displacement)
        for slab in slabs(self.grid.shape):
            result[slab] = self.displacement[slab] + _affine_on(np.eye(4) - inverse, self.grid, slab)
        return DisplacementField(result, self.grid.moved(inverse))

    def to_sitk(self) -> SimpleITK.DisplacementFieldTransform:
        """Convert to SimpleITK's transform of fixed points to moving points, which holds its own copy."""
        import SimpleITK as sitk

        image = sitk.Cast(sitk.GetImageFromArray(self.displacement, isVector=True), sitk.sitkVectorFloat64)
        image.SetSpacing(self.grid.spacing.tolist())
        image.SetOrigin(self.grid.origin.tolist())
        image.SetDirection(self.grid.direction.ravel().tolist())
        return sitk.DisplacementFieldTransform(image)

    @classmethod
    def from_sitk(cls, transform: SimpleITK.Transform, grid: Grid | None = None) -> DisplacementField:
        """Sample a transform of SimpleITK.

        Parameters
        ----------
        transform : SimpleITK.Transform
            Maps fixed points to moving points (mm, LPS).
        grid : Grid, optional
            Where to sample it. Without one a displacement-field transform gives its own samples as they are.

        Raises
        ------
        InputError
            If any other transform comes without a grid.
        """
        import SimpleITK as sitk

        transform = transform.Downcast()
        if grid is None:
            if not hasattr(transform, "GetDisplacementField"):
                raise _no_lattice(transform.GetName())
            image = transform.GetDisplacementField()
            direction = np.reshape(image.GetDirection(), (3, 3))
            grid = Grid.from_parts(image.GetSize(), image.GetSpacing(), image.GetOrigin(), direction)
        else:
            image = sitk.TransformToDisplacementField(
                transform,
                sitk.sitkVectorFloat32,
                grid.size,
                grid.origin.tolist(),
                grid.spacing.tolist(),
                grid.direction.ravel().tolist(),
            )
        return cls(sitk.GetArrayViewFromImage(image).astype(np.float32), grid)

    def to_itk(self):
        """Convert to itk.DisplacementFieldTransform[itk.D, 3], fixed points to moving points; it holds its own copy."""
        import itk

        image = itk.Image[itk.Vector[itk.D, 3], 3].New()
        image.SetRegions(self.grid.size)
        image.SetSpacing(self.grid.spacing)
        image.SetOrigin(self.grid.origin)
        image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(self.grid.direction)))
        image.Allocate()
        itk.array_view_from_image(image)[:] = self.displacement
        transform = itk.DisplacementFieldTransform[itk.D, 3].New()
        transform.SetDisplacementField(image)
        return transform

    @classmethod
    def from_itk(cls, transform, grid: Grid | None = None) -> DisplacementField:
        """Sample a transform of ITK.

        Parameters
        ----------
        transform : itk.Transform
            Maps fixed points to moving points (mm, LPS).
        grid : Grid, optional
            Where to sample it. Without one a displacement-field transform gives its own samples as they are.

        Raises
        ------
        InputError
            If any other transform comes without a grid.
        """
        import itk

        if grid is None:
            if not hasattr(transform, "GetDisplacementField"):
                raise _no_lattice(type(transform).__name__)
            image = transform.GetDisplacementField()
            direction = itk.array_from_matrix(image.GetDirection())
            size = itk.size(image)
            grid = Grid.from_parts(size, list(itk.spacing(image)), list(itk.origin(image)), direction)
        else:
            image_type = itk.Image[itk.Vector[itk.F, 3], 3]
            sampler = itk.TransformToDisplacementFieldFilter[image_type, itk.D].New()
            sampler.SetTransform(transform)
            sampler.SetSize(grid.size)
            sampler.SetOutputSpacing(grid.spacing)
            sampler.SetOutputOrigin(grid.origin)
            sampler.SetOutputDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))
            sampler.Update()
            image = sampler.GetOutput()
        return cls(itk.array_view_from_image(image).astype(np.float32), grid)


def _no_lattice(name: str) -> InputError:
    return InputError(tr("A {name} has no lattice of its own; give the grid to sample it on.", name=name))


def _affine_on(matrix: np.ndarray, grid: Grid, slab: slice) -> np.ndarray:
    """Apply `matrix` (3x4 or 4x4) to the points of a slab of samples: [k, j, i, 3] float64."""
    from .sampling import affine_index

    product = np.eye(4)
    product[:3] = matrix[:3] @ grid.affine
    return affine_index(product, grid.shape, slab).permute(1, 2, 3, 0).numpy()
