"""A torso in two breathing states with a known deformation: data for the demo, the tests and for measuring error.

The anatomy is a function of body coordinates (x, y, z) in mm: x to the left, y to the back, z to the head, the
origin in the middle of the trunk at the height of the diaphragm. The moving image samples that function where its
voxels are; the fixed image samples it at `u(p)`, u the known deformation. Each image is therefore crisp at its own
resolution, and nothing is interpolated twice. Between body and world stands one rigid pose per image, so that the two
geometries differ as those of two scanners do:

    truth = moving_pose o u o fixed_pose^-1,  fixed mm -> moving mm, LPS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation, apply_affine
from ..text import tr
from ..workflow.results import Inputs

#: Tissue -> (CT in HU with contrast agent, MR in arbitrary units).
_TISSUES = {
    "air": (-1000, 12),
    "fat": (-100, 820),
    "muscle": (55, 330),
    "lung": (-850, 55),
    "lung vessel": (60, 190),
    "liver": (112, 480),
    "liver vessel": (175, 330),
    "spleen": (130, 370),
    "kidney": (190, 420),
    "medulla": (125, 300),
    "myocardium": (100, 350),
    "blood": (230, 190),
    "vein": (165, 210),
    "cortical bone": (700, 90),
    "spongy bone": (260, 440),
    "disc": (85, 290),
    "cerebrospinal fluid": (12, 130),
    "cartilage": (120, 210),
    "water": (12, 150),
    "bowel": (45, 390),
}


def _terminology(code: str, meaning: str, side: str | None = None) -> dict[str, str]:
    """Return Slicer's segment tag for a SNOMED CT structure, with its laterality where it has one."""
    modifier = {None: "^^", "left": "SCT^7771000^Left", "right": "SCT^24028007^Right"}[side]
    entry = "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure"
    return {"TerminologyEntry": f"{entry}~SCT^{code}^{meaning}~{modifier}~Anatomic codes - DICOM master list~^^~^^"}


def _segment(name, value, layer, rgb, code, meaning, side=None) -> Segment:
    color = tuple(c / 255 for c in rgb)
    return Segment(name, value, layer, color, f"Segment_{layer}_{value}", _terminology(code, meaning, side))


#: Layer 0 holds the organs; the body and the thorax contain others and have layers of their own.
SEGMENTS = (
    _segment("right lung", 1, 0, (197, 165, 145), "39607008", "Lung", "right"),
    _segment("left lung", 2, 0, (215, 182, 160), "39607008", "Lung", "left"),
    _segment("heart", 3, 0, (206, 110, 84), "80891009", "Heart"),
    _segment("liver", 4, 0, (221, 130, 101), "10200004", "Liver"),
    _segment("spleen", 5, 0, (157, 108, 162), "78961009", "Spleen"),
    _segment("stomach", 6, 0, (216, 170, 105), "69695003", "Stomach"),
    _segment("right kidney", 7, 0, (185, 102, 83), "64033007", "Kidney", "right"),
    _segment("left kidney", 8, 0, (165, 82, 103), "64033007", "Kidney", "left"),
    _segment("aorta", 9, 0, (224, 67, 56), "15825003", "Aorta"),
    _segment("vena cava", 10, 0, (0, 151, 206), "64131007", "Inferior vena cava"),
    _segment("spine", 11, 0, (226, 202, 134), "421060004", "Vertebral column"),
    _segment("ribs", 12, 0, (253, 232, 158), "113197003", "Rib"),
    _segment("body", 1, 1, (177, 122, 101), "38266002", "Entire body"),
    _segment("thorax", 1, 2, (111, 184, 210), "51185008", "Thorax"),
)

#: Landmarks in body coordinates of the moving image, mm.
_LANDMARKS = {
    "right diaphragm dome": (-62, -15, 26),
    "left diaphragm dome": (66, -15, 10),
    "liver, right lower tip": (-88, 5, -88),
    "gallbladder": (-42, -58, -62),
    "portal bifurcation": (-40, -5, -35),
    "spleen, middle": (95, 24, -44),
    "stomach, middle": (60, -38, -28),
    "right kidney, upper pole": (-58, 40, -30),
    "right kidney, lower pole": (-66, 38, -118),
    "left kidney, upper pole": (58, 40, -18),
    "left kidney, lower pole": (66, 38, -106),
    "heart apex": (64, -58, 32),
    "left ventricle, middle": (38, -40, 44),
    "aortic arch": (14, 10, 118),
    "aorta at the diaphragm": (19, 42, 0),
    "carina": (0, 2, 92),
    "vertebra, upper": (0, 50, 98),
    "vertebra, lower": (0, 50, -98),
    "sternum, lower end": (0, -99, 12),
    "navel": (0, -108, -110),
}


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
    """Smooth random functions of body coordinates, unit variance: what tells one piece of tissue from another."""

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


# Shapes: arrays of coordinates in, approximate distance to the surface in mm out, positive inside.


def _superellipse(x, y, half_x, half_y, power=2.0):
    r = (np.abs(x / half_x) ** power + np.abs(y / half_y) ** power) ** (1 / power)
    return (1 - r) * np.minimum(half_x, half_y)


def _ellipsoid(p, centre, radii):
    x, y, z = ((a - np.float32(c)) / np.float32(r) for a, c, r in zip(p, centre, radii, strict=True))
    return (1 - np.sqrt(x * x + y * y + z * z)) * np.float32(min(radii))


def _tube(p, path, radius):
    nearest = np.float32(np.inf)
    for first, last in pairwise(path):
        start, along = np.array(first, np.float32), np.subtract(last, first, dtype=np.float32)
        dx, dy, dz = (a - s for a, s in zip(p, start, strict=True))
        t = np.clip((dx * along[0] + dy * along[1] + dz * along[2]) / (along @ along), 0, 1)
        squared = (dx - t * along[0]) ** 2 + (dy - t * along[1]) ** 2 + (dz - t * along[2]) ** 2
        nearest = np.minimum(nearest, squared)
    return np.float32(radius) - np.sqrt(nearest)


def _repeat(z, period, half):
    """Repeat slabs of half thickness `half` along z, one of them centred at 0."""
    return np.float32(half) - np.abs((z + period / 2) % period - period / 2)


def _anatomy(p: np.ndarray, texture: np.ndarray) -> Iterator[tuple[np.ndarray, str, str | None]]:
    """Yield the torso in the order of painting: (distance, tissue, segment of layer 0 or None to keep what is there).

    p: (3, n) body coordinates, float32.  texture: (5, n).  First come "body" and "thorax", the segments of the other
    layers. All numbers are mm and were chosen by eye.
    """
    x, y, z = p
    t_coarse, t_tube_a, t_tube_b, t_bowel, _ = texture
    left = x > 0

    waist = 1 - 0.05 * np.exp(-(((z + 55) / 60) ** 2)) - 0.22 * np.clip((z - 80) / 90, 0, 1) ** 2
    body = _superellipse(x, y, 160 * waist, 112 * waist, 2.4)
    fat = 11 + 7 * np.clip(-z / 120, 0, 1) + t_coarse
    cavity = _superellipse(x, y + 16, 131 * waist, 79 * waist, 2.3)
    dome = -62 + 88 * np.exp(-(((x + 60) / 62) ** 2) - ((y + 15) / 66) ** 2)
    dome += 74 * np.exp(-(((x - 66) / 60) ** 2) - ((y + 15) / 66) ** 2)
    above, below = (z - dome) * np.float32(0.7), (dome - z) * np.float32(0.7)
    thorax = np.minimum(cavity, above)
    yield body, "fat", "body"
    yield thorax, "fat", "thorax"

    yield body - fat, "muscle", None
    yield cavity, "fat", None
    yield np.minimum(cavity, 2.5 - np.abs(z - dome) * np.float32(0.7)), "muscle", None

    # Bowel fills the lower cavity; gas collects at the front, for the patient lies on the back.
    loops = np.minimum(np.minimum(cavity - 7, below - 25), (t_bowel + 0.15) * 9)
    yield loops, "muscle", None
    yield loops - 2.5, "bowel", None
    yield np.minimum(loops - 4, (t_coarse - 0.5) * 14 - (y + 40) * np.float32(0.3)), "air", None
    for side in (-1, 1):
        yield _tube(p, [(22 * side, 56, -40), (36 * side, 52, -100), (50 * side, 40, -190)], 17), "muscle", None

    # Tubes where two random functions vanish together: the vessels of the lungs and of the liver.
    branches = 1 - (t_tube_a**2 + t_tube_b**2) * np.float32(9)
    heart = np.minimum(_ellipsoid(p, (20, -38, 50), (57, 46, 46)), above - 1)
    mediastinum = np.minimum(_superellipse(x - 4, y + 10, 27, 95), 200 - z)
    superior_cava = _tube(p, [(-24, -24, 70), (-22, -14, 180)], 9)
    lungs = np.minimum(np.minimum(thorax - 5, -mediastinum), -np.maximum(heart + 3, superior_cava + 1))
    for name, inside in (("right lung", np.where(left, -9, lungs)), ("left lung", np.where(left, lungs, -9))):
        yield inside, "lung", name
    yield np.minimum(lungs, branches * 4), "lung vessel", None
    yield heart, "myocardium", "heart"
    for centre, radii in (
        ((40, -40, 43), (24, 21, 28)),
        ((0, -58, 44), (22, 15, 28)),
        ((6, -10, 66), (32, 14, 18)),
        ((-22, -34, 56), (15, 18, 24)),
    ):
        yield np.minimum(_ellipsoid(p, centre, radii), heart - 3), "blood", None
    yield _tube(p, [(0, 6, 180), (0, 2, 92), (-34, 6, 70)], 8), "air", None
    yield _tube(p, [(0, 2, 92), (36, 8, 68)], 7), "air", None

    under = np.minimum(cavity - 4, below - 4)
    lobes = np.maximum(
        _ellipsoid(p, (-72, -12, -28), (72, 72, 74)), _ellipsoid(p, (0, -42, -16), (58, 38, 30)) + t_coarse
    )
    liver = np.minimum(under, lobes)
    yield liver, "liver", "liver"
    yield np.minimum(liver - 2, branches * 4), "liver vessel", None
    yield _tube(p, [(-4, 8, -62), (-40, -5, -35), (-78, -14, -24)], 6), "vein", None
    yield _ellipsoid(p, (-42, -58, -62), (13, 14, 22)), "water", None
    stomach = np.minimum(under - 1, _ellipsoid(p, (60, -38, -28), (37, 36, 36)))
    yield stomach, "muscle", "stomach"
    yield stomach - 4, "water", "stomach"
    yield np.minimum(stomach - 4, -52 - y), "air", "stomach"
    yield np.minimum(under, _ellipsoid(p, (94, 24, -42), (30, 46, 50))), "spleen", "spleen"
    for name, side, height in (("right kidney", -1, -74), ("left kidney", 1, -62)):
        q = (x - np.float32(62 * side) + side * (z - height) * np.float32(0.09), y - 40, z - height)
        kidney = _ellipsoid(q, (0, 0, 0), (27, 24, 50))
        yield kidney, "kidney", name
        yield np.minimum(kidney - 7, t_coarse * 8), "medulla", name
        yield _ellipsoid(q, (-12 * side, -3, 0), (15, 9, 22)), "fat", None

    aorta = _tube(p, [(6, -20, 84), (2, -18, 108), (14, 10, 119), (23, 38, 104), (22, 44, 60), (17, 40, -20)], 12.5)
    aorta = np.maximum(aorta, _tube(p, [(17, 40, -20), (8, 30, -100), (5, 28, -190)], 10))
    yield aorta, "blood", "aorta"
    cava = _tube(p, [(-21, 27, -190), (-24, 26, -80), (-22, 12, -10), (-18, -12, 42)], 11)
    yield np.minimum(cava, -heart), "vein", "vena cava"
    yield np.minimum(superior_cava, -heart), "vein", None

    # Spine: vertebrae 28 mm apart with a disc between two, arch, processes.
    front = y - 50
    vertebra = _superellipse(x, front, 21, 16, 2.4)
    level = _repeat(z - 98, 28, 11)
    yield vertebra, "disc", "spine"
    yield np.minimum(vertebra, level), "cortical bone", "spine"
    yield np.minimum(vertebra - 2.5, level - 2), "spongy bone", "spine"
    arch = np.minimum(14 - np.hypot(x, y - 73), _repeat(z - 98, 28, 12))
    spinous = np.minimum(np.minimum(3.5 - np.abs(x), 13 - np.abs(y - 91)), _repeat(z - 90, 28, 9))
    transverse = np.minimum(np.minimum(36 - np.abs(x), 5 - np.abs(y - 76)), _repeat(z - 98, 28, 6))
    yield np.maximum(np.maximum(arch, spinous), transverse), "cortical bone", "spine"
    yield 9 - np.hypot(x, y - 73), "cerebrospinal fluid", "spine"
    yield 5 - np.hypot(x, y - 73), "muscle", "spine"

    # Ribs slope down to the front within the wall of the chest and become cartilage beside the sternum.
    wall = 4.5 - np.abs(cavity + 4)
    slope = z - np.float32(0.42) * y
    rib = np.minimum(np.minimum(wall, _repeat(slope - 12, 27, 6)), np.minimum(slope + 88, np.abs(x) - 20))
    bony = np.maximum(y + 70, np.abs(x) - 62)
    yield rib, "cartilage", "ribs"
    yield np.minimum(rib, bony), "cortical bone", "ribs"
    yield np.minimum(rib - 2.2, bony), "spongy bone", "ribs"
    sternum = np.minimum(np.minimum(wall, 17 - np.abs(x)), np.minimum(-y, z - 6))
    yield sternum, "cortical bone", "ribs"
    yield sternum - 2, "spongy bone", "ribs"


def _paint(
    grid: Grid, to_body: Callable[[np.ndarray], np.ndarray], texture: _Texture, column: int
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return noise-free intensities [k, j, i] float32 and the three label layers of the anatomy on `grid`.

    to_body: world mm -> body mm.  column: 0 for CT, 1 for MR.  An edge is as wide as a voxel (partial volume).
    """
    values = {s.name: (s.layer, s.value) for s in SEGMENTS}
    edge = np.float32(1.2 * grid.voxel_volume ** (1 / 3))
    grain = np.float32((14.0, 22.0)[column])
    air = np.float32(_TISSUES["air"][column])
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
        for distance, tissue, segment in _anatomy(np.ascontiguousarray(points.T), noise):
            if body is None:
                body = np.clip(distance / edge + np.float32(0.5), 0, 1)
            if segment is not None:
                layer, value = values[segment]
                layers[layer][k][distance > 0] = value
            if segment != "thorax":  # a region, not a tissue
                share = np.clip(distance / edge + np.float32(0.5), 0, 1)
                painted += share * (np.float32(_TISSUES[tissue][column]) - painted)
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

    names, places = tuple(_LANDMARKS), np.array(list(_LANDMARKS.values()), dtype=float)
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
