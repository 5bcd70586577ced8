"""Positions of voxels: the one place that knows LPS and RAS.

Arrays are indexed [k, j, i]; points and vectors are (x, y, z) in mm, LPS (ITK's and DICOM's world) unless a name
says otherwise; an affine is 4x4 float64 and maps a voxel (i, j, k) to mm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from ..errors import InputError
from ..text import tr

#: LPS <-> RAS. Its own inverse.
LPS_RAS_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def flip_affine(affine: ArrayLike) -> np.ndarray:
    """Turn an affine of voxels from RAS to LPS, or back.

    Parameters
    ----------
    affine : array_like, 4x4
        Voxel (i, j, k) -> mm, in LPS or RAS.

    Returns
    -------
    ndarray, 4x4 float64
        The same in the other world.

    Examples
    --------
    >>> flip_affine(np.diag([2.0, 2.0, 3.0, 1.0])).diagonal().tolist()
    [-2.0, -2.0, 3.0, 1.0]
    """
    return LPS_RAS_FLIP @ np.asarray(affine, dtype=np.float64)


def flip_world_transform(matrix: ArrayLike) -> np.ndarray:
    """Turn a linear transform of the world from RAS to LPS, or back.

    Parameters
    ----------
    matrix : array_like, 4x4
        mm -> mm, both in LPS or both in RAS.

    Returns
    -------
    ndarray, 4x4 float64
        The same in the other world.
    """
    return LPS_RAS_FLIP @ np.asarray(matrix, dtype=np.float64) @ LPS_RAS_FLIP


def flip_vectors(vectors: np.ndarray) -> np.ndarray:
    """Turn points or displacements from RAS to LPS, or back.

    Parameters
    ----------
    vectors : ndarray, (..., 3)
        (x, y, z) in mm, LPS or RAS.

    Returns
    -------
    ndarray, (..., 3)
        The same in the other world and in the same type.

    Examples
    --------
    >>> flip_vectors(np.array([1.0, 2.0, 3.0])).tolist()
    [-1.0, -2.0, 3.0]
    """
    return vectors * np.array([-1, -1, 1], dtype=vectors.dtype)


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply `affine` (4x4) to points (..., 3)."""
    return points @ affine[:3, :3].T + affine[:3, 3]


def index_range(inside: np.ndarray) -> np.ndarray:
    """Return the first and the last (i, j, k), int [2, 3], at which `inside` [k, j, i] is not 0; it must be somewhere.

    Examples
    --------
    >>> inside = np.zeros((4, 5, 6), bool)
    >>> inside[1:3, 2, 3:] = True
    >>> index_range(inside).tolist()
    [[3, 2, 1], [5, 2, 2]]
    """
    spans = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in (2, 1, 0)]
    return np.array(spans).T


@dataclass(frozen=True)
class Grid:
    """A regular lattice in space.

    Parameters
    ----------
    shape : tuple of int
        Samples along (k, j, i), the shape of an array that lies on it.
    affine : array_like, 4x4
        (i, j, k) -> mm, LPS; kept as float64. Any invertible matrix: oblique, flipped, permuted, left-handed, and
        sheared where a linear parent transform shears.

    Raises
    ------
    InputError
        If the affine is not finite or not invertible, or the shape has not three axes.

    Examples
    --------
    >>> grid = Grid.from_parts(size=(4, 5, 6), spacing=(1, 1, 2.5), origin=(0, -10, 20))
    >>> grid.shape
    (6, 5, 4)
    >>> grid.to_world([3, 0, 2]).tolist()
    [3.0, -10.0, 25.0]
    >>> grid.to_index([0.0, -10.0, 21.25]).tolist()
    [0.0, 0.0, 0.5]
    """

    shape: tuple[int, int, int]
    affine: np.ndarray = field(repr=False)

    def __post_init__(self) -> None:
        """Check and copy the affine."""
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError(
                tr("The affine must be a finite 4x4 matrix, not {affine}; repair the header.", affine=affine.tolist())
            )
        lengths = np.linalg.norm(affine[:3, :3], axis=0)  # of micrometres too: the axes count, not their steps
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-9:
            raise InputError(
                tr(
                    "The affine {affine} is singular: two axes coincide; repair the header.",
                    affine=affine[:3, :3].tolist(),
                )
            )
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(tr("A grid has three axes of at least one sample, not shape {shape}.", shape=str(shape)))
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def from_parts(
        cls,
        size: Iterable[int],
        spacing: ArrayLike = (1, 1, 1),
        origin: ArrayLike = (0, 0, 0),
        direction: ArrayLike | None = None,
    ) -> Grid:
        """Make a grid of what ITK's images say.

        Parameters
        ----------
        size : sequence of int
            Samples along (i, j, k).
        spacing : array_like
            Along (i, j, k) in mm.
        origin : array_like
            Centre of the sample (0, 0, 0) in mm, LPS.
        direction : array_like, 3x3, optional
            Its columns are the unit vectors of i, j, k; those of the world if None.
        """
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) if direction is None else np.asarray(direction, float)) * np.asarray(spacing, float)
        affine[:3, 3] = origin
        return cls(_reversed(size), affine)

    def __eq__(self, other: object) -> bool:
        """Compare shape and affine exactly; `is_close` has a tolerance."""
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    __hash__ = None  # type: ignore[assignment]

    def is_close(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Tell whether both have one shape and no corner lies farther than `tolerance_mm` from the other's."""
        return self.shape == other.shape and float(np.abs(self.corners() - other.corners()).max()) <= tolerance_mm

    @property
    def size(self) -> tuple[int, int, int]:
        """Samples along (i, j, k), ITK's order."""
        k, j, i = self.shape
        return i, j, k

    @property
    def spacing(self) -> np.ndarray:
        """Distance of neighbours along i, j, k in mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    @property
    def origin(self) -> np.ndarray:
        """Centre of the sample (0, 0, 0) in mm, LPS."""
        return self.affine[:3, 3].copy()

    @property
    def direction(self) -> np.ndarray:
        """3x3, columns are the unit vectors of i, j, k (not orthogonal where the grid is sheared)."""
        return self.affine[:3, :3] / self.spacing

    @property
    def voxel_volume(self) -> float:
        """Volume of one cell in mm3."""
        return float(abs(np.linalg.det(self.affine[:3, :3])))

    @property
    def extent(self) -> np.ndarray:
        """Edge lengths along i, j, k in mm, from the outer face of the first voxel to that of the last."""
        return self.spacing * np.array(self.size)

    @property
    def centre(self) -> np.ndarray:
        """Middle of the grid in mm, LPS."""
        return self.to_world((np.array(self.size) - 1) / 2)

    @property
    def is_orthogonal(self) -> bool:
        """Whether the axes are at right angles (files such as NIfTI and .seg.nrrd can hold it)."""
        return bool(np.abs(self.direction.T @ self.direction - np.eye(3)).max() < 1e-4)

    def to_world(self, ijk: ArrayLike) -> np.ndarray:
        """Map voxel indices (..., 3) as (i, j, k), fractions allowed, to points in mm, LPS."""
        return apply_affine(self.affine, np.asarray(ijk, dtype=np.float64))

    def to_index(self, points: ArrayLike) -> np.ndarray:
        """Map points (..., 3) in mm, LPS to voxel indices (i, j, k) with fractions; the inverse of `to_world`."""
        return apply_affine(np.linalg.inv(self.affine), np.asarray(points, dtype=np.float64))

    def corners(self, faces: bool = False) -> np.ndarray:
        """Return the eight corners (8, 3) in mm, LPS: of the corner voxels the centres, or the outer `faces`."""
        low, high = (-0.5, -0.5) if faces else (0.0, -1.0)
        ends = [(low, n + high) for n in self.size]
        return self.to_world([(i, j, k) for k in ends[2] for j in ends[1] for i in ends[0]])

    def contains(self, points: ArrayLike) -> np.ndarray:
        """Tell which points (..., 3) in mm, LPS lie within the outer faces of the voxels: bool (...)."""
        ijk = self.to_index(points)
        return np.all((ijk >= -0.5) & (ijk <= np.array(self.size) - 0.5), axis=-1)

    def with_shape(self, shape: Sequence[int]) -> Grid:
        """Return another lattice of `shape` (k, j, i) that fills the same box, outer face to outer face.

        Sample n of N' lies at voxel (n + 1/2) N/N' - 1/2: the convention of torch.nn.functional.interpolate with
        align_corners=False, hence of icon_registration's network input.
        """
        new = np.array(tuple(reversed(tuple(shape))), dtype=np.float64)
        step = np.array(self.size) / new
        change = np.eye(4)
        change[:3, :3] = np.diag(step)
        change[:3, 3] = step / 2 - 0.5
        k, j, i = shape
        return Grid((k, j, i), self.affine @ change)

    def box(self, low: ArrayLike, high: ArrayLike) -> Grid:
        """Return the part from voxel `low` up to and without `high`, both integers (i, j, k).

        It may reach beyond the grid.
        """
        low, high = np.asarray(low, dtype=int), np.asarray(high, dtype=int)
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(low)
        return Grid(_reversed(high - low), affine)

    def box_around(self, array: np.ndarray) -> Grid:
        """Return the part that holds every voxel of `array` [k, j, i] that is not 0; there must be one."""
        low, high = index_range(array != 0)
        return self.box(low, high + 1)

    def padded(self, margin: float) -> Grid:
        """Return the grid with as many further samples on every side as reach `margin` mm."""
        samples = np.ceil(margin / self.spacing - 1e-6).astype(int)
        return self.box(-samples, np.array(self.size) + samples)

    def moved(self, transform: ArrayLike) -> Grid:
        """Return the lattice after a transform of the world, 4x4, mm -> mm."""
        return Grid(self.shape, np.asarray(transform, dtype=np.float64) @ self.affine)

    def unit_to_world(self) -> np.ndarray:
        """Return the 4x4 of phi's coordinates (order k, j, i; 0 and 1 at the outermost sample centres) -> mm, LPS."""
        scale = np.zeros((4, 4))
        for axis, n in enumerate(self.shape):  # component `axis` of phi counts samples of index 2 - axis
            scale[2 - axis, axis] = n - 1
        scale[3, 3] = 1
        return self.affine @ scale

    def faces_to_world(self) -> np.ndarray:
        """Return the 4x4 of coordinates (x, y, z) of torch's grid_sample with align_corners=False -> mm, LPS.

        -1 and 1 are the outer faces of the first and last sample along i, j, k: the box, whatever its resolution.
        """
        half = np.array(self.size) / 2
        scale = np.diag([*half, 1.0])
        scale[:3, 3] = half - 0.5
        return self.affine @ scale


def _reversed(numbers: Iterable[int]) -> tuple[int, int, int]:
    """Turn (i, j, k) into (k, j, i)."""
    i, j, k = (int(n) for n in numbers)
    return k, j, i


@dataclass(frozen=True)
class Image:
    """A scalar volume in space.

    Parameters
    ----------
    array : ndarray, [k, j, i]
        Voxels of any real type.
    grid : Grid
        Their positions in the world (a linear parent transform is already part of it).
    name : str
        What messages and reports call it.

    Raises
    ------
    InputError
        If the array has another shape than the grid.

    Examples
    --------
    >>> image = Image(np.zeros((6, 5, 4), np.int16), Grid.from_parts((4, 5, 6), spacing=(1, 1, 2.5)))
    >>> image.grid.extent.tolist()
    [4.0, 5.0, 15.0]
    """

    array: np.ndarray = field(repr=False)
    grid: Grid
    name: str = "image"

    def __post_init__(self) -> None:
        """Check the shape."""
        _check_shape(tr("{name}: the array", name=self.name), self.array, self.grid)


def _check_shape(what: str, array: np.ndarray, grid: Grid) -> None:
    if array.shape != grid.shape:
        raise InputError(
            tr("{what} has shape {shape}, its grid {grid}.", what=what, shape=str(array.shape), grid=str(grid.shape))
        )


@dataclass(frozen=True)
class Segment:
    """One structure of a segmentation: its voxels, name and colour.

    Parameters
    ----------
    name : str
        By which structures of two segmentations are matched.
    value, layer : int
        Its voxels are `layers[layer] == value`; values of one layer do not overlap.
    color : tuple of float
        RGB in [0, 1].
    identifier : str
        Slicer's segment ID.
    tags : dict of str
        Slicer's segment tags, terminology among them.
    """

    name: str
    value: int
    layer: int = 0
    color: tuple[float, float, float] = (0.5, 0.5, 0.5)
    identifier: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Segmentation:
    """Named structures on one grid; structures that overlap lie in different layers (as in .seg.nrrd files).

    Parameters
    ----------
    layers : tuple of ndarray, [k, j, i]
        Whole numbers on `grid`; 0 is background.
    segments : tuple of Segment
    grid : Grid
    name : str
        What messages call it.

    Raises
    ------
    InputError
        If a layer has another shape than the grid.
    """

    layers: tuple[np.ndarray, ...] = field(repr=False)
    segments: tuple[Segment, ...]
    grid: Grid
    name: str = "segmentation"

    def __post_init__(self) -> None:
        """Check the shapes."""
        for layer in self.layers:
            _check_shape(tr("{name}: a layer", name=self.name), layer, self.grid)

    @classmethod
    def from_labels(cls, image: Image, names: dict[int, str] | None = None) -> Segmentation:
        """Make a segmentation of a label map.

        Parameters
        ----------
        image : Image
            Whole numbers; 0 is background.
        names : dict of int to str, optional
            Names of the labels; others are called "label N".

        Examples
        --------
        >>> labels = Image(np.array([[[0, 1], [2, 2]]]), Grid((1, 2, 2), np.eye(4)))
        >>> [segment.name for segment in Segmentation.from_labels(labels, {1: "liver"}).segments]
        ['liver', 'label 2']
        """
        values = [int(v) for v in np.unique(image.array) if v != 0]
        names = names or {}
        segments = tuple(Segment(names.get(v, f"label {v}"), v, identifier=f"Segment_{v}") for v in values)
        return cls((image.array,), segments, image.grid, image.name)

    def mask(self, segment: Segment) -> np.ndarray:
        """Return the voxels of one segment, bool [k, j, i]."""
        return self.layers[segment.layer] == segment.value

    def only(self, identifiers: Sequence[str]) -> Segmentation:
        """Return the segmentation with the segments of these identifiers alone.

        Raises
        ------
        InputError
            If one does not exist.
        """
        existing = {segment.identifier: segment for segment in self.segments}
        missing = [identifier for identifier in identifiers if identifier not in existing]
        if missing:
            raise InputError(
                tr(
                    "{name} has no segment {segment} any more; choose the segments again.",
                    name=self.name,
                    segment=repr(missing[0]),
                )
            )
        return replace(self, segments=tuple(existing[identifier] for identifier in identifiers))

    def by_name(self) -> dict[str, Segment]:
        """Return the segments by name; of two with one name, the first."""
        return {s.name: s for s in reversed(self.segments)}


@dataclass(frozen=True)
class Landmarks:
    """Points in space.

    Parameters
    ----------
    points : ndarray, (n, 3)
        (x, y, z) in mm, LPS.
    labels : tuple of str
        Names of the points, used to match two lists.
    name : str
        What messages call them.
    """

    points: np.ndarray = field(repr=False)
    labels: tuple[str, ...]
    name: str = "landmarks"
