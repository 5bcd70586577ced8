"""A torso in two breathing states with a known deformation: data for the demo, the tests and for measuring error.

The anatomy is a function of body coordinates (x, y, z) in mm: x to the left, y to the back, z to the head, the
origin in the middle of the trunk at the height of the diaphragm. The moving image samples that function where its
voxels are; the fixed image samples it at `u(p)`, u the known deformation. Each image is therefore crisp at its own
resolution, and nothing is interpolated twice. Between body and world stands one rigid pose per image, so that the two
geometries differ as those of two scanners do:

    truth = moving_pose o u o fixed_pose^-1,  fixed mm -> moving mm, LPS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Grid, Image, Landmarks, Segmentation, apply_affine
from ..text import tr
from ..workflow.results import Inputs
from .anatomy import LANDMARKS, SEGMENTS, TISSUES, anatomy


@dataclass(frozen=True)
class _Motion:
    """u(p) = p + sum of Gaussian pushes: body mm of the fixed image -> body mm of the moving image.

    centres, widths, pushes: (n, 3) mm. The Lipschitz constant of the sum is below one, hence u is a diffeomorphism.
    """

    centres: np.ndarray
    widths: np.ndarray
    pushes: np.ndarray

    def __call__(self, points: np.ndarray) -> np.ndarray:
        moved = points.copy()
        for centre, width, push in zip(self.centres, self.widths, self.pushes, strict=True):
            distance = (((points - centre.astype(points.dtype)) / width.astype(points.dtype)) ** 2).sum(
                -1, keepdims=True
            )
            moved += np.exp(-0.5 * distance) * push.astype(points.dtype)
        return moved

    def inverse(self, points: np.ndarray) -> np.ndarray:
        """Return the same points in the fixed image, by Banach's fixed-point iteration: u - id contracts."""
        places = points.copy()
        for _ in range(100):
            places = places + points - self(places)
        return places

    def lipschitz_bound(self) -> float:
        """Bound |u(p) - u(q) - (p - q)| / |p - q|; the steepest slope of a Gaussian is e^-0.5 / width."""
        return float((np.linalg.norm(self.pushes, axis=1) / self.widths.min(axis=1)).sum() * np.exp(-0.5))


@dataclass(frozen=True)
class Phantom:
    """A pair and everything that is known about it.

    fixed_landmarks, moving_landmarks: matched by label, moving = truth(fixed).
    fixed_pose, moving_pose: 4x4, body mm -> world mm, rigid.
    """

    fixed: Image
    moving: Image
    fixed_segmentation: Segmentation
    moving_segmentation: Segmentation
    fixed_landmarks: Landmarks
    moving_landmarks: Landmarks
    fixed_pose: np.ndarray = field(repr=False)
    moving_pose: np.ndarray = field(repr=False)
    motion: _Motion = field(repr=False)

    @property
    def inputs(self) -> Inputs:
        """Inputs of a registration, without the ground truth."""
        return Inputs(
            self.fixed,
            self.moving,
            self.fixed_segmentation,
            self.moving_segmentation,
            self.fixed_landmarks,
            self.moving_landmarks,
        )

    def truth(self, points: np.ndarray) -> np.ndarray:
        """Apply the known transform: points (..., 3) fixed mm -> moving mm, LPS."""
        body = apply_affine(np.linalg.inv(self.fixed_pose), np.asarray(points, dtype=np.float64))
        return apply_affine(self.moving_pose, self.motion(body))

    def end_point_error(self, transform_points: Callable[[np.ndarray], np.ndarray], step: int = 2) -> np.ndarray:
        """Return the distances in mm of a transform (points, fixed -> moving) from the truth, inside the body.

        step: every how many voxels of the fixed image along each axis.
        """
        body = self.fixed_segmentation.mask(self.fixed_segmentation.by_name()["body"])
        kji = np.argwhere(body[::step, ::step, ::step]) * step
        points = self.fixed.grid.to_world(kji[:, ::-1])
        return np.linalg.norm(transform_points(points) - self.truth(points), axis=1)


def _breathing(rng: np.random.Generator) -> _Motion:
    """Move the domes of the diaphragm by 13 mm, the belly by 6 mm to the front, and add five small pushes by seed."""
    centres = [(-62, -25, 5), (72, -25, -5), (0, -105, -55)]
    widths = [(85, 62, 80), (75, 62, 75), (80, 55, 75)]
    pushes = [(1, 1, 12.5), (-1, 2, 7.5), (0, 6, 0)]
    count = 5
    directions = rng.normal(size=(count, 3))
    return _Motion(
        np.vstack([centres, rng.uniform((-90, -60, -100), (90, 50, 90), (count, 3))]),
        np.vstack([widths, np.full((count, 3), 42.0)]),
        np.vstack([pushes, 3 * directions / np.linalg.norm(directions, axis=1, keepdims=True)]),
    )


class _Texture:
    """Smooth random functions of body coordinates, unit variance: texture that distinguishes pieces of tissue."""

    _SPACING = 5.0
    _COUNT = 88

    def __init__(self, rng: np.random.Generator, wavelengths_mm: tuple[float, ...]):
        frequency = np.fft.fftfreq(self._COUNT, self._SPACING)
        half = np.fft.rfftfreq(self._COUNT, self._SPACING)
        squared = frequency[:, None, None] ** 2 + frequency[None, :, None] ** 2 + half[None, None, :] ** 2
        fields = []
        for wavelength in wavelengths_mm:
            noise = np.fft.rfftn(rng.normal(size=(self._COUNT,) * 3))
            noise *= np.exp(-2 * squared * (wavelength / 2) ** 2)
            smooth = np.fft.irfftn(noise, s=(self._COUNT,) * 3, axes=(0, 1, 2))
            fields.append(smooth / smooth.std())
        self._samples = np.stack(fields, -1).astype(np.float32).reshape(-1, len(fields))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Interpolate at (n, 3) mm -> (fields, n): trilinear between the samples, mirrored beyond them."""
        last = np.float32(self._COUNT - 1)
        places = np.abs(points / np.float32(self._SPACING) + last / 2) % (2 * last)
        places = last - np.abs(last - places)
        low = np.minimum(places.astype(np.intp), self._COUNT - 2)
        x, y, z = (places - low).astype(np.float32).T[..., None]
        step_y, step_z = self._COUNT, self._COUNT**2

        def along_x(at):
            start = self._samples[at]
            return start + x * (self._samples[at + 1] - start)

        def along_y(at):
            start = along_x(at)
            return start + y * (along_x(at + step_y) - start)

        corner = low @ (1, step_y, step_z)
        start = along_y(corner)
        return (start + z * (along_y(corner + step_z) - start)).T


def _paint(
    grid: Grid, to_body: Callable[[np.ndarray], np.ndarray], texture: _Texture, column: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return noise-free intensities [k, j, i] float32 and the three label layers of the anatomy on `grid`.

    to_body: world mm -> body mm.  column: 0 for CT, 1 for MR.  An edge is as wide as a voxel (partial volume).
    """
    values = {s.name: (s.layer, s.value) for s in SEGMENTS}
    edge = np.float32(1.2 * grid.voxel_volume ** (1 / 3))
    grain = np.float32((14.0, 22.0)[column])
    air = np.float32(TISSUES["air"][column])
    n_k, n_j, n_i = grid.shape
    intensity = np.empty((n_k, n_j * n_i), np.float32)
    layers = tuple(np.zeros((n_k, n_j * n_i), np.uint8) for _ in range(3))
    slice_ij = np.stack(np.meshgrid(np.arange(n_i), np.arange(n_j)), -1).reshape(-1, 2)
    for k in range(n_k):  # slice by slice: the working arrays stay in the processor's cache
        ijk = np.column_stack([slice_ij, np.full(len(slice_ij), k)])
        points = to_body(grid.to_world(ijk)).astype(np.float32)
        noise = texture(points)
        painted = np.full(len(points), air)
        body = None
        for distance, tissue, segment in anatomy(np.ascontiguousarray(points.T), noise):
            if body is None:
                body = np.clip(distance / edge + np.float32(0.5), 0, 1)
            if segment is not None:
                layer, value = values[segment]
                layers[layer][k][distance > 0] = value
            if segment != "thorax":  # a region, not a tissue
                share = np.clip(distance / edge + np.float32(0.5), 0, 1)
                painted += share * (np.float32(TISSUES[tissue][column]) - painted)
        intensity[k] = painted + grain * noise[4] * body
    return intensity.reshape(grid.shape), tuple(layer.reshape(grid.shape) for layer in layers)


def _acquire(intensity: np.ndarray, modality: str, rng: np.random.Generator) -> np.ndarray:
    """Add what a scanner adds: int16 with Gaussian noise in HU (CT), or Rician noise under a smooth bias field (MR)."""
    if modality == "ct":
        noisy = intensity + rng.normal(0, 16, intensity.shape).astype(np.float32)
        return np.clip(np.rint(noisy), -1024, 3071).astype(np.int16)
    k, j, i = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in intensity.shape), indexing="ij", sparse=True
    )
    a, b, c, d = rng.uniform(-0.18, 0.18, 4).astype(np.float32)
    biased = intensity * np.exp(a * i + b * j + c * k + d * (i * i + j * j))
    real, imaginary = (rng.normal(0, 14, intensity.shape).astype(np.float32) for _ in range(2))
    return np.rint(np.hypot(biased + real, imaginary)).astype(np.int16)


def _rigid(degrees: tuple[float, float, float], translation=(0.0, 0.0, 0.0)) -> np.ndarray:
    """Return the 4x4 matrix of rotations about x, then y, then z, then a translation in mm."""
    matrix = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(4)
        a, b = (axis + 1) % 3, (axis + 2) % 3
        turn[[a, a, b, b], [a, b, a, b]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    matrix[:3, 3] = translation
    return matrix


def _scanner_grid(pose: np.ndarray, tilt, flips, spacing, field_of_view) -> Grid:
    """Return a grid around the body's origin, its axes tilted against the body's by `tilt` degrees."""
    direction = (pose @ _rigid(tilt))[:3, :3] * np.array(flips)
    size = np.maximum(np.rint(np.divide(field_of_view, spacing)), 4).astype(int)
    origin = pose[:3, 3] - direction * spacing @ (size - 1) / 2
    return Grid.from_parts(size, spacing, origin, direction)


def make_phantom(seed: int = 0, size: int = 144, modality: str = "ct") -> Phantom:
    """Make a fixed and a moving torso whose deformation is known.

    Parameters
    ----------
    seed : int
        Of texture, noise and the small part of the deformation; the same seed gives the same pair.
    size : int
        The images have about size^3 voxels; the field of view is always 350 x 250 x 300 mm.
    modality : {"ct", "mr", "ct-mr"}
        "ct-mr": fixed CT, moving MR.

    Returns
    -------
    Phantom

    Raises
    ------
    InputError
        For another modality or a size below 16.

    Examples
    --------
    >>> phantom = make_phantom(size=16)
    >>> errors = phantom.truth(phantom.fixed_landmarks.points) - phantom.moving_landmarks.points
    >>> float(abs(errors).max()) < 1e-6
    True
    """
    modalities = {"ct": ("ct", "ct"), "mr": ("mr", "mr"), "ct-mr": ("ct", "mr")}
    if modality not in modalities:
        raise InputError(
            tr(
                "The phantom has no modality {modality!r}; choose one of {modalities}.",
                modality=modality,
                modalities=", ".join(modalities),
            )
        )
    if size < 16:
        raise InputError(tr("A phantom of {size} voxels along an axis shows nothing; choose 16 or more.", size=size))
    rng = np.random.default_rng(seed)
    motion = _breathing(rng)
    texture = _Texture(rng, (30.0, 26.0, 26.0, 30.0, 8.0))

    fixed_pose, moving_pose = _rigid((2, 1, -3), (4, -10, 25)), _rigid((-1, -2, 2), (-6, 3, 17))
    coarseness = 144 / size
    fixed_grid = _scanner_grid(
        fixed_pose, (4, -3, 2), (1, 1, 1), np.multiply((2.0, 2.0, 2.2), coarseness), (350, 250, 300)
    )
    moving_grid = _scanner_grid(
        moving_pose, (-5, 2, -1), (-1, -1, 1), np.multiply((1.9, 1.9, 2.5), coarseness), (350, 250, 300)
    )

    def side(name: str, grid: Grid, to_body, kind: str) -> tuple[Image, Segmentation]:
        intensity, layers = _paint(grid, to_body, texture, ("ct", "mr").index(kind))
        return Image(_acquire(intensity, kind, rng), grid, name), Segmentation(layers, SEGMENTS, grid, f"{name} organs")

    from_fixed, from_moving = np.linalg.inv(fixed_pose), np.linalg.inv(moving_pose)
    fixed, fixed_segmentation = side(
        "fixed", fixed_grid, lambda p: motion(apply_affine(from_fixed, p)), modalities[modality][0]
    )
    moving, moving_segmentation = side(
        "moving", moving_grid, lambda p: apply_affine(from_moving, p), modalities[modality][1]
    )

    names, places = tuple(LANDMARKS), np.array(list(LANDMARKS.values()), dtype=float)
    return Phantom(
        fixed,
        moving,
        fixed_segmentation,
        moving_segmentation,
        Landmarks(apply_affine(fixed_pose, motion.inverse(places)), names, "fixed landmarks"),
        Landmarks(apply_affine(moving_pose, places), names, "moving landmarks"),
        fixed_pose,
        moving_pose,
        motion,
    )
