"""Linear alignment before the deformable registration: centres, rigid, similarity or affine.

Maximised is mutual information from Parzen windows (Thevenaz and Unser, IEEE TIP 2000; Mattes et al., IEEE TMI 2003),
on two isotropic levels, over all voxels. Each image is sampled where the other's voxels are, and both directions count
alike: what interpolation blurs in one of them it blurs in the other, and fixed and moving may be swapped. Steps are
Levenberg's and Marquardt's, with the outer product of the gradients of single voxels for the curvature: mutual
information is a mean log-likelihood (Berndt et al., Annals of Economic and Social Measurement 1974). The optimisation
begins at several starting points, and the result is never worse than the best of them, by one measure on the same
samples.

Runs agree to the bit; with another number of threads sums are added in another order, and maps agree to a hundredth of
a millimetre.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F

from ..errors import InputError
from ..machine import map_both_directions
from ..spatial.geometry import Grid, Image
from ..spatial.sampling import coverage, sample_mask, smooth_sample
from ..text import tr
from .mutual_information import (
    BINS,
    PARZEN,
    PARZEN_SLOPE,
    REFINEMENT,
    entropy_of,
    normalised_mutual_information,
    robust_range,
)
from .settings import ALIGNMENTS

#: Samples of the smaller image at the coarse and the fine level: what a rigid alignment of a head needs.
COARSE_VOXELS = 20_000
FINE_VOXELS = 100_000
FINEST_VOXELS = 400_000
#: Most samples of the larger image, in multiples of the smaller one's: a crop's spacing would make too many of a body.
MOST_TIMES_AS_MANY = 16
#: Least share of the smaller image that must overlap for a starting point to be considered.
LEAST_OVERLAP = 0.2
#: Steps at one level; half of them are rarely needed.
MOST_STEPS = 30
#: The longest step and the one not worth taking, in voxels of the level.
LONGEST_STEP = 2.0
SHORTEST_STEP = 0.01


@dataclass(frozen=True)
class Alignment:
    """A linear map and how it was found.

    Attributes
    ----------
    matrix : np.ndarray
        4x4 float64, fixed mm -> moving mm (LPS).
    kind : str
        What was asked for.
    start : str
        Where the optimisation began ("header", "centre", "mass" or "initial"); with "kept" or "rigid kept" where that
        was better than the optimised map.
    before, after : float | None
        Normalised mutual information at the headers (or the given initial transform) and at the result, the mean of
        both directions; None where nothing was optimised.
    """

    matrix: np.ndarray
    kind: str
    start: str
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        """Return the alignment in one line of English."""
        if self.after is None:
            return f"{self.kind}: by the {self.start}"
        return f"{self.kind} from {self.start}: normalised mutual information {self.before:.4f} -> {self.after:.4f}"


def align(
    fixed: Image,
    moving: Image,
    kind: str = "affine",
    *,
    initial: np.ndarray | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    progress: Callable[[float], None] | None = None,
) -> Alignment:
    """Find the linear map from the fixed to the moving image.

    Parameters
    ----------
    fixed, moving : Image
        Volumes [k, j, i]; their affines map voxels (i, j, k) to mm (LPS).
    kind : str
        "none" (world coordinates as they are), "centre" (centres of the grids), "mass" (centres of the bright matter),
        "rigid", "similarity" or "affine". The last three start at the best of header, centres and centres of mass, each
        also rotated about its axes, or at `initial` if given.
    initial : np.ndarray, optional
        4x4, fixed mm -> moving mm (LPS).
    fixed_mask, moving_mask : Image, optional
        Where the images count (non-zero), on grids of their own.
    progress : Callable[[float], None], optional
        Called with the done fraction; may raise to stop.

    Returns
    -------
    Alignment
        The map and how it was found.

    Raises
    ------
    InputError
        For an unknown kind, and where no starting point makes the images overlap.

    References
    ----------
    Mattes et al., IEEE TMI 2003; Thevenaz and Unser, IEEE TIP 2000.
    """
    if kind not in ALIGNMENTS:
        raise InputError(
            tr("No alignment is called {kind}; choose one of {kinds}.", kind=repr(kind), kinds=", ".join(ALIGNMENTS))
        )
    if kind == "none" and initial is None:
        return Alignment(np.eye(4), kind, "header")
    if kind == "none":
        return Alignment(np.array(initial, np.float64), kind, "initial")
    images = fixed, moving
    masks = [
        None if mask is None else sample_mask(mask, image.grid)
        for image, mask in zip(images, (fixed_mask, moving_mask), strict=True)
    ]
    limits = [
        robust_range(image.array if mask is None else image.array[mask])
        for image, mask in zip(images, masks, strict=True)
    ]

    def level(voxels: int) -> _ImagePair:
        grids = _lattices(fixed.grid, moving.grid, voxels)
        return _ImagePair(*(_LatticeImage.of(*side) for side in zip(images, masks, limits, grids, strict=True)))

    coarse = level(COARSE_VOXELS)
    if initial is not None:
        starts = {"initial": np.array(initial, dtype=np.float64)}
    else:
        starts = {
            "header": np.eye(4),
            "centre": _translation(moving.grid.centre - fixed.grid.centre),
            "mass": _translation(coarse.moving.centre_of_mass() - coarse.fixed.centre_of_mass()),
        }
    header = next(iter(starts.values()))
    if kind in ("centre", "mass"):
        start = kind if kind in starts else next(iter(starts))
        return Alignment(starts[start], kind, start, coarse.score(header), coarse.score(starts[start]))

    distinct: dict[str, np.ndarray] = {}  # where the images overlap, and farther than 1 mm from each other
    for name, matrix in starts.items():
        apart = all(np.abs(matrix - other).max() > 1 for other in distinct.values())
        if apart and np.isfinite(coarse.score(matrix)):
            distinct[name] = matrix
    starts = distinct
    if not starts:
        raise InputError(
            tr(
                "{fixed} and {moving} do not overlap even with their centres on each other; check that they show the "
                "same region, or give an initial transform.",
                fixed=fixed.name,
                moving=moving.name,
            )
        )
    steps = _StepProgress(len(starts) + (3 if kind == "rigid" else 4), progress)
    rigid = {name: _optimise("rigid", coarse, matrix, steps.next()) for name, matrix in starts.items()}
    start = max(rigid, key=lambda name: coarse.score(rigid[name]))
    rotated, step = _best_rotation(coarse, rigid[start]), steps.next()
    matrix = rigid[start] if rotated is None else _optimise("rigid", coarse, rotated, step)
    candidates = {f"{name}, kept": kept for name, kept in starts.items()}
    stretched = matrix
    if kind != "rigid":
        candidates[f"{start}, rigid kept"] = matrix
        stretched = _optimise(kind, coarse, matrix, steps.next())
    fine = level(FINE_VOXELS)
    result = _optimise(kind, fine, stretched, steps.next())
    result = _optimise(kind, level(FINEST_VOXELS), result, steps.next())
    if _is_plausible(result @ np.linalg.inv(matrix)):
        candidates[start] = result
    final = {name: fine.score(candidate) for name, candidate in candidates.items()}
    start = max(final, key=lambda name: final[name])
    return Alignment(candidates[start], kind, start, fine.score(header), final[start])


def _is_plausible(matrix: np.ndarray) -> bool:
    """Return whether a map stretches at most twofold: a partial overlap can drive an affine map to more."""
    stretches = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(stretches.min() > 0.5 and stretches.max() < 2)


class _StepProgress:
    """Divides the progress of a run evenly among `count` steps."""

    def __init__(self, count: int, progress: Callable[[float], None] | None):
        self._count, self._done, self._progress = count, -1, progress

    def next(self) -> Callable[[float], None]:
        self._done += 1
        begun = self._done
        return lambda part: self._progress and self._progress((begun + part) / self._count)


# ----------------------------------------------------------------------------------------------------------- levels


def _lattices(fixed: Grid, moving: Grid, voxels: int) -> tuple[Grid, Grid]:
    """Make lattices over both images, at the spacing at which the smaller one has about `voxels` samples.

    The spacing is coarser if the larger one would have more than MOST_TIMES_AS_MANY times as many.
    """
    small, large = sorted(np.prod(grid.extent) for grid in (fixed, moving))
    finest = min(grid.spacing.min() for grid in (fixed, moving))
    spacing = max((max(small, large / MOST_TIMES_AS_MANY) / voxels) ** (1 / 3), finest)
    return _isotropic(fixed, spacing), _isotropic(moving, spacing)


def _isotropic(grid: Grid, spacing: float) -> Grid:
    """Make a right-angled lattice of `spacing` mm over the box of `grid`, along its axes, or nearly where it shears."""
    left, _, right = np.linalg.svd(grid.direction)
    axes = left @ right
    corners = grid.corners(faces=True) @ axes
    low, high = corners.min(0), corners.max(0)
    size = np.maximum(np.rint((high - low) / spacing), 4).astype(int)
    step = (high - low) / size
    return Grid.from_parts(size, step, axes @ (low + step / 2), axes)


@dataclass(frozen=True)
class _LatticeImage:
    """An image on an isotropic, right-angled lattice.

    array: [k, j, i] float32 in [0, 1].
    mask: bool [k, j, i], where it counts; None where every voxel does.
    voxels: [4, n] float32, (i, j, k, 1) of the voxels within the mask.
    bins: [n] int64, intensity bin index of each of these voxels, 0..BINS-1.
    volume: [1, 5, k, j, i] float32, zero outside the mask: value, one, and gradient along i, j and k. Interpolated with
        zeros around it and divided by the second, it mixes in nothing from beyond the mask or the image.
    """

    array: np.ndarray
    grid: Grid
    mask: np.ndarray | None
    voxels: torch.Tensor
    bins: torch.Tensor
    volume: torch.Tensor

    @classmethod
    def of(cls, image: Image, mask: np.ndarray | None, limits: tuple[float, float], grid: Grid) -> _LatticeImage:
        """Prepare an image. mask: on its grid; limits: the values that become 0 and 1."""
        low, high = limits
        array = (np.nan_to_num(image.array, nan=low).astype(np.float32).clip(low, high) - low) / max(high - low, 1e-6)
        if mask is None:
            inside = None
            array = smooth_sample(array, image.grid, grid)
        else:  # values outside the mask must not be smoothed into it
            share = smooth_sample(mask, image.grid, grid)
            inside = share > 0.5
            array = smooth_sample(array * mask, image.grid, grid) / np.maximum(share, 1e-6)
        values = torch.from_numpy(array)
        counts = torch.ones_like(values) if inside is None else torch.from_numpy(inside).float()
        k, j, i = counts.nonzero(as_tuple=True)
        slopes = [  # none at the mask's edge, where a neighbour is unknown
            slope * (edge == 0) for slope, edge in zip(torch.gradient(values), torch.gradient(counts), strict=True)
        ]
        return cls(
            array,
            grid,
            inside,
            torch.stack([i, j, k, torch.ones_like(i)]).float(),
            (values[k, j, i] * BINS).long().clamp_(0, BINS - 1),
            (torch.stack([values, torch.ones_like(values), *reversed(slopes)]) * counts)[None],
        )

    def centre_of_mass(self) -> np.ndarray:
        """Return the centre of mass in mm of the intensities above their mean, within the mask."""
        weights = self.array if self.mask is None else self.array * self.mask
        weights = np.maximum(weights - weights.mean(), 0).astype(np.float64)
        if not weights.sum() > 0:
            return self.grid.centre
        index = [
            (weights.sum(axis=tuple(a for a in range(3) if a != axis)) * np.arange(n)).sum() / weights.sum()
            for axis, n in enumerate(weights.shape)
        ]
        return self.grid.to_world(index[::-1])


def _translation(shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix


def _rotation(vector: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Return the 4x4 rotation about `centre` by |vector| degrees around `vector` (Rodrigues' formula)."""
    angle = np.radians(np.linalg.norm(vector))
    x, y, z = np.asarray(vector, float) / np.linalg.norm(vector)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


# ----------------------------------------------------------------------------------------------- mutual information


class _ImagePair:
    """Both images on their lattices, and how well a map (4x4, fixed mm -> moving mm) brings them together.

    frame: 4x4, coordinates about the fixed image's centre of mass, scaled by its radius -> fixed mm. In them rotations,
        stretches and shifts are of one size.
    """

    def __init__(self, fixed: _LatticeImage, moving: _LatticeImage):
        self.fixed, self.moving = fixed, moving
        self.radius = float(np.linalg.norm(fixed.grid.extent) / np.sqrt(12))
        self.frame = np.diag([self.radius, self.radius, self.radius, 1.0])
        self.frame[:3, 3] = fixed.centre_of_mass()

    def score(self, matrix: np.ndarray) -> float:
        """Return the normalised mutual information of both directions on average, or -inf where they hardly overlap."""
        shared = coverage(self.moving.grid, self.fixed.grid, matrix).sum() * self.fixed.grid.voxel_volume
        volumes = [np.prod(level.grid.extent) for level in (self.fixed, self.moving)]
        if shared < LEAST_OVERLAP * min(volumes[0], volumes[1] / abs(np.linalg.det(matrix[:3, :3]))):
            return -np.inf
        joints = map_both_directions(
            lambda *direction: _DirectedSamples(*direction).joint, *zip(*self._directions(matrix), strict=True)
        )
        if not all(joint.sum() > 0 for joint in joints):
            return -np.inf
        coarser = [joint.reshape(BINS, BINS, REFINEMENT).sum(2) for joint in joints]
        return float(np.mean([normalised_mutual_information(joint) for joint in coarser]))

    def ascent(self, matrix: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Normalised mutual information with Parzen windows, mean of both directions; how it changes with the map.

        The map is matrix @ frame @ (1 + change) @ frame^-1, `change` the 12 upper entries of a 4x4, row by row.
        Returns the value (-inf where nothing overlaps), its gradient [12] and the curvature [12, 12].
        """
        found = map_both_directions(
            lambda *direction: _DirectedSamples(*direction).ascent(), *zip(*self._directions(matrix), strict=True)
        )
        (value, gradient, curvature), (back, back_gradient, back_curvature) = found
        # seen from the moving image the frame's points move the other way
        return (value + back) / 2, (gradient - back_gradient) / 2, (curvature + back_curvature) / 2

    def _directions(self, matrix: np.ndarray) -> tuple[tuple, tuple]:
        """Return the arguments of `_DirectedSamples` for each of the two directions."""
        to_moving = np.linalg.inv(self.moving.grid.affine) @ matrix @ self.frame
        to_fixed = np.linalg.inv(self.fixed.grid.affine) @ self.frame
        return (
            (self.fixed, self.moving, np.linalg.inv(to_fixed), to_moving),
            (self.moving, self.fixed, np.linalg.inv(to_moving), to_fixed),
        )


class _DirectedSamples:
    """One image sampled at the other's voxels, which pass through a frame: `to_frame`, then `onwards` (4x4)."""

    def __init__(self, here: _LatticeImage, there: _LatticeImage, to_frame: np.ndarray, onwards: np.ndarray):
        to_unit = np.diag([*(2 / (np.array(there.grid.size) - 1)), 1.0])  # grid_sample: -1 and 1 at the outer centres
        to_unit[:3, 3] = -1
        points = _float32((to_unit @ onwards @ to_frame)[:3]) @ here.voxels
        sampled = F.grid_sample(there.volume, points.T[None, None, None], padding_mode="zeros", align_corners=True)
        value, self._weight, *slopes = sampled[0, :, 0, 0]
        seen = self._weight.clamp_min(1e-6)
        column = (value / seen * (BINS * REFINEMENT)).long().clamp_(0, BINS * REFINEMENT - 1)
        self._cell = here.bins * (BINS * REFINEMENT) + column
        self._slope = _float32(onwards[:3, :3].T) @ (torch.stack(slopes) / seen)
        self._frame_points = _float32(to_frame[:3]) @ here.voxels
        #: [BINS, BINS * REFINEMENT] float64: weights of value pairs, counted in the order of the voxels
        self.joint = np.bincount(self._cell.numpy(), self._weight.numpy(), minlength=BINS * BINS * REFINEMENT).reshape(
            BINS, BINS * REFINEMENT
        )

    def ascent(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Value, gradient and curvature: `_ImagePair.ascent` for one direction."""
        total = self.joint.sum()
        if not total > 0:
            return -np.inf, np.zeros(12), np.zeros((12, 12))
        joint = self.joint @ PARZEN / total
        value, entropy = normalised_mutual_information(joint), entropy_of(joint)
        # d value / d joint, but for a constant per row: the windows of a voxel's value sum to one wherever it goes
        gain = value * np.log(np.maximum(joint, 1e-12)) - np.log(np.maximum(joint.sum(0), 1e-12))
        rise = _float32((gain @ PARZEN_SLOPE.T).ravel() / max(entropy, 1e-12))[self._cell]  # d value / d a voxel's
        points = torch.cat([self._frame_points, torch.ones_like(rise)[None]])
        each = ((self._slope * rise)[:, None] * points[None]).reshape(12, -1)
        weighted = each * (self._weight / total)
        gradient = weighted.sum(1, dtype=torch.float64).numpy()
        return value, gradient, entropy * (weighted @ each.T).double().numpy()


def _float32(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


# ----------------------------------------------------------------------------------------------------- optimisation


def _best_rotation(pair: _ImagePair, matrix: np.ndarray) -> np.ndarray | None:
    """Rotate `matrix` by up to 40 degrees where that is better by itself: the optimiser was in a local maximum."""
    centre = pair.frame[:3, 3]
    best, found = pair.score(matrix), None
    for axis, angle in product(np.eye(3), (-40, -20, 20, 40)):
        rotated = matrix @ _rotation(axis * angle, centre)
        if (score := pair.score(rotated)) > best:
            best, found = score, rotated
    return found


def _generators(kind: str) -> np.ndarray:
    """Return, as [freedoms, 12], the small changes that a map of `kind` allows, upper rows of 4x4 matrices.

    Their sums exponentiate to the maps themselves: skew ones to rotations, the unit matrix to an even stretch.
    """
    unit = np.eye(12).reshape(3, 4, 3, 4)  # unit[:, :, a, b] has a one in row a, column b
    around = [(1, 2), (2, 0), (0, 1)]
    changes = [unit[:, :, b, a] - unit[:, :, a, b] for a, b in around] + [unit[:, :, a, 3] for a in range(3)]
    if kind == "similarity":
        changes.append(np.sum([unit[:, :, a, a] for a in range(3)], axis=0))
    if kind == "affine":
        changes += [unit[:, :, a, a] for a in range(3)]
        changes += [unit[:, :, b, a] + unit[:, :, a, b] for a, b in around]
    return np.stack(changes).reshape(-1, 12)


def _optimise(kind: str, pair: _ImagePair, start: np.ndarray, progress: Callable[[float], None]) -> np.ndarray:
    """Improve `start` by a map of `kind`, applied before it: x -> start(map(x))."""
    changes, voxel = _generators(kind), float(pair.fixed.grid.spacing.mean())
    back = np.linalg.inv(pair.frame)
    matrix, damping = start, 1e-2
    value, gradient, curvature = pair.ascent(matrix)
    for done in range(MOST_STEPS):
        progress(done / MOST_STEPS)
        slope, bend = changes @ gradient, changes @ curvature @ changes.T
        bend += np.diag(damping * np.diag(bend) + 1e-12)  # the latter where an image has no structure
        step = np.linalg.solve(bend, slope)
        length = float(np.linalg.norm(step)) * pair.radius / voxel
        step *= min(1.0, LONGEST_STEP / max(length, 1e-12))
        change = torch.zeros(4, 4, dtype=torch.float64)
        change[:3] = torch.from_numpy((step @ changes).reshape(3, 4))
        trial = matrix @ pair.frame @ torch.matrix_exp(change).numpy() @ back
        reached = pair.ascent(trial)
        if reached[0] > value:
            matrix, (value, gradient, curvature), damping = trial, reached, damping / 5
        else:
            damping *= 8
        if length < SHORTEST_STEP:
            break
    return matrix
