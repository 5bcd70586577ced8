"""Where voxels are: the one place that knows LPS and RAS.

Arrays are indexed [k, j, i]; points and vectors are (x, y, z) in mm, LPS (ITK's and DICOM's world) unless a name
says otherwise; an affine is 4x4 float64 and maps a voxel (i, j, k) to mm.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import InputError

#: LPS <-> RAS. Its own inverse.
LPS_RAS_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def flip_affine(affine: np.ndarray) -> np.ndarray:
    """A 4x4 affine voxel -> mm in LPS from one in RAS, or the other way round."""
    return LPS_RAS_FLIP @ np.asarray(affine, dtype=np.float64)


def flip_world_transform(matrix: np.ndarray) -> np.ndarray:
    """A 4x4 transform mm -> mm between LPS worlds from one between RAS worlds, or the other way round."""
    return LPS_RAS_FLIP @ np.asarray(matrix, dtype=np.float64) @ LPS_RAS_FLIP


def flip_vectors(vectors: np.ndarray) -> np.ndarray:
    """Points or displacements (..., 3) in mm, LPS from RAS or the other way round; keeps the dtype."""
    return vectors * np.array([-1, -1, 1], dtype=vectors.dtype)


def apply_affine(affine: np.ndarray, points: np.ndarray) -> np.ndarray:
    """`affine` (4x4) applied to points (..., 3)."""
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

    shape: samples along (k, j, i), the shape of an array that lies on it.
    affine: 4x4 float64, (i, j, k) -> mm, LPS. Any invertible matrix: oblique, flipped, permuted, left-handed, and
    sheared where a linear parent transform shears.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray = field(repr=False)

    def __post_init__(self):
        affine = np.array(self.affine, dtype=np.float64)
        shape = tuple(int(n) for n in self.shape)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            raise InputError(f"The affine must be a finite 4x4 matrix, not {affine.tolist()}; repair the header.")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)  # of micrometres too: the axes count, not their steps
        if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-9:
            raise InputError(f"The affine {affine[:3, :3].tolist()} is singular: two axes coincide; repair the header.")
        if len(shape) != 3 or min(shape) < 1:
            raise InputError(f"A grid has three axes of at least one sample, not shape {shape}.")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", shape)

    @classmethod
    def from_parts(cls, size, spacing=(1, 1, 1), origin=(0, 0, 0), direction=None) -> Grid:
        """From ITK's words: size (i, j, k), spacing in mm, origin in mm LPS, direction 3x3 (columns are the axes)."""
        affine = np.eye(4)
        affine[:3, :3] = (np.eye(3) if direction is None else np.asarray(direction, float)) * np.asarray(spacing, float)
        affine[:3, 3] = origin
        return cls(tuple(reversed([int(n) for n in size])), affine)

    def __eq__(self, other) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape and np.array_equal(self.affine, other.affine)

    __hash__ = None

    def is_close(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Same shape, and no corner farther than `tolerance_mm` from the other's."""
        return self.shape == other.shape and float(np.abs(self.corners() - other.corners()).max()) <= tolerance_mm

    @property
    def size(self) -> tuple[int, int, int]:
        """Samples along (i, j, k), ITK's order."""
        return self.shape[::-1]

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

    def to_world(self, ijk) -> np.ndarray:
        """Voxel coordinates (..., 3) as (i, j, k), fractions allowed, to mm, LPS."""
        return apply_affine(self.affine, np.asarray(ijk, dtype=np.float64))

    def to_index(self, points) -> np.ndarray:
        """Points (..., 3) in mm, LPS to voxel coordinates (i, j, k)."""
        return apply_affine(np.linalg.inv(self.affine), np.asarray(points, dtype=np.float64))

    def corners(self, faces: bool = False) -> np.ndarray:
        """The eight corners (8, 3) in mm, LPS: the centres of the corner voxels, or their outer faces."""
        low, high = (-0.5, -0.5) if faces else (0.0, -1.0)
        ends = [(low, n + high) for n in self.size]
        return self.to_world([(i, j, k) for k in ends[2] for j in ends[1] for i in ends[0]])

    def contains(self, points) -> np.ndarray:
        """Which points (..., 3) in mm, LPS lie within the outer faces of the voxels."""
        ijk = self.to_index(points)
        return ((ijk >= -0.5) & (ijk <= np.array(self.size) - 0.5)).all(axis=-1)

    def with_shape(self, shape) -> Grid:
        """Another lattice of `shape` (k, j, i) that fills the same box, outer face to outer face.

        Sample n of N' lies at voxel (n + 1/2) N/N' - 1/2: the convention of torch.nn.functional.interpolate with
        align_corners=False, hence of icon_registration's network input.
        """
        new = np.array(tuple(reversed(tuple(shape))), dtype=np.float64)
        step = np.array(self.size) / new
        change = np.eye(4)
        change[:3, :3] = np.diag(step)
        change[:3, 3] = step / 2 - 0.5
        return Grid(tuple(shape), self.affine @ change)

    def box(self, low, high) -> Grid:
        """The part from voxel `low` up to and without `high`, both (i, j, k) integers; may reach beyond the grid."""
        low, high = np.asarray(low, dtype=int), np.asarray(high, dtype=int)
        affine = self.affine.copy()
        affine[:3, 3] = self.to_world(low)
        return Grid(tuple(reversed([int(n) for n in high - low])), affine)

    def box_around(self, array: np.ndarray) -> Grid:
        """Return the part that holds every voxel of `array` [k, j, i] that is not 0; there must be one."""
        low, high = index_range(array != 0)
        return self.box(low, high + 1)

    def padded(self, margin: float) -> Grid:
        """With as many further samples on every side as reach `margin` mm."""
        samples = np.ceil(margin / self.spacing - 1e-6).astype(int)
        return self.box(-samples, np.array(self.size) + samples)

    def moved(self, transform: np.ndarray) -> Grid:
        """The same lattice after a 4x4 transform mm -> mm of the world."""
        return Grid(self.shape, np.asarray(transform, dtype=np.float64) @ self.affine)

    def unit_to_world(self) -> np.ndarray:
        """4x4: coordinates of `phi` (axis order k, j, i; 0 and 1 at the first and last sample centres) -> mm, LPS."""
        scale = np.zeros((4, 4))
        for axis, n in enumerate(self.shape):  # component `axis` of phi counts samples of index 2 - axis
            scale[2 - axis, axis] = n - 1
        scale[3, 3] = 1
        return self.affine @ scale

    def faces_to_world(self) -> np.ndarray:
        """4x4: (x, y, z) of torch's grid_sample with align_corners=False -> mm, LPS.

        -1 and 1 are the outer faces of the first and last sample along i, j, k: the box, whatever its resolution.
        """
        half = np.array(self.size) / 2
        scale = np.diag([*half, 1.0])
        scale[:3, 3] = half - 0.5
        return self.affine @ scale


@dataclass(frozen=True)
class Image:
    """A scalar volume in space.

    array: [k, j, i], any real dtype.
    grid: its lattice, world coordinates (a linear parent transform is already part of it).
    name: what messages and reports call it.
    """

    array: np.ndarray = field(repr=False)
    grid: Grid
    name: str = "image"

    def __post_init__(self):
        if self.array.shape != self.grid.shape:
            raise InputError(f"{self.name}: the array has shape {self.array.shape}, its grid {self.grid.shape}.")


@dataclass(frozen=True)
class Segment:
    """One structure of a segmentation: where its voxels are and how it is called and drawn.

    layer, value: its voxels are `layers[layer] == value`; values of one layer do not overlap.
    color: RGB in [0, 1].  tags: Slicer's segment tags, terminology among them.
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

    layers: integer arrays [k, j, i] on `grid`; 0 is background.
    """

    layers: tuple[np.ndarray, ...] = field(repr=False)
    segments: tuple[Segment, ...]
    grid: Grid
    name: str = "segmentation"

    def __post_init__(self):
        for layer in self.layers:
            if layer.shape != self.grid.shape:
                raise InputError(f"{self.name}: a layer has shape {layer.shape}, its grid {self.grid.shape}.")

    @classmethod
    def from_labels(cls, image: Image, names: dict[int, str] | None = None) -> Segmentation:
        """From a label map; segments are named by `names` or "label N"."""
        values = [int(v) for v in np.unique(image.array) if v != 0]
        names = names or {}
        segments = tuple(Segment(names.get(v, f"label {v}"), v, identifier=f"Segment_{v}") for v in values)
        return cls((image.array,), segments, image.grid, image.name)

    def mask(self, segment: Segment) -> np.ndarray:
        """Boolean [k, j, i] of one segment."""
        return self.layers[segment.layer] == segment.value

    def only(self, identifiers) -> Segmentation:
        """The same lattice with the segments of these identifiers alone. Raises InputError if one is not there."""
        there = {segment.identifier: segment for segment in self.segments}
        missing = [identifier for identifier in identifiers if identifier not in there]
        if missing:
            raise InputError(f"{self.name} has no segment {missing[0]!r} any more; choose the segments again.")
        return replace(self, segments=tuple(there[identifier] for identifier in identifiers))

    def by_name(self) -> dict[str, Segment]:
        """Segments by name; of two with one name, the first."""
        return {s.name: s for s in reversed(self.segments)}


@dataclass(frozen=True)
class Landmarks:
    """Points in space. points: (n, 3) mm, LPS, world.  labels: n names, by which lists are matched."""

    points: np.ndarray = field(repr=False)
    labels: tuple[str, ...]
    name: str = "landmarks"
