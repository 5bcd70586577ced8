"""Linear alignment before the deformable registration: centres, rigid, similarity or affine.

The optimisation is ITK's registration framework (ImageRegistrationMethodv4 with Mattes' mutual information: Mattes et
al., IEEE TMI 2003) on two isotropic levels. What is added here: a choice of starting points, and the promise that the
result is never worse than the best of them, judged by one measure on the same samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

from .errors import InputError
from .geometry import Grid, Image
from .sampling import sample, smooth_for
from .settings import ALIGNMENTS

#: Samples of the fixed image at the coarse and the fine level: what a rigid alignment of a head needs in seconds.
COARSE_VOXELS = 20_000
FINE_VOXELS = 100_000
#: Least share of the smaller image that must overlap for a starting point to be considered.
LEAST_OVERLAP = 0.2
BINS = 32
#: Iterations at the coarse level, where they cost little, and at the fine one, which starts close to the goal.
COARSE_ITERATIONS = {"rigid": 20, "similarity": 40, "affine": 40}
FINE_ITERATIONS = 10
#: Rounds of the coarse optimisation of a stretching map, and the gain in mutual information that a next one needs.
MOST_ROUNDS = 4
LEAST_GAIN = 1e-3


@dataclass(frozen=True)
class Alignment:
    """A linear map and how it came about.

    matrix: 4x4 float64, fixed mm -> moving mm, LPS.
    kind: what was asked for.
    start: where the optimisation began ("header", "centre", "mass" or "initial"); with "kept" or "rigid kept" where
        that was better than what the optimisation made of it.
    before, after: normalised mutual information at the headers (or the given initial transform) and at the result.
    """

    matrix: np.ndarray
    kind: str
    start: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.kind} from {self.start}: normalised mutual information {self.before:.4f} -> {self.after:.4f}"


def joint_histogram(first: np.ndarray, second: np.ndarray, bins: int = BINS) -> np.ndarray:
    """[bins, bins] counts of value pairs; first, second: values in [0, 1] at the same places."""
    a, b = (np.clip(values * bins, 0, bins - 1).astype(np.int64).ravel() for values in (first, second))
    return np.bincount(a * bins + b, minlength=bins * bins).reshape(bins, bins)


def normalised_mutual_information(joint: np.ndarray) -> float:
    """(H(A) + H(B)) / H(A, B) in [1, 2], from a joint histogram (Studholme et al., Pattern Recognition 1999)."""
    joint = joint / joint.sum()
    whole = _entropy(joint)
    return (_entropy(joint.sum(0)) + _entropy(joint.sum(1))) / whole if whole > 0 else 1.0


def _entropy(p: np.ndarray) -> float:
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


@dataclass(frozen=True)
class _Level:
    """An image on an isotropic, right-angled lattice, values in [0, 1], and where it counts."""

    array: np.ndarray
    grid: Grid
    mask: np.ndarray | None


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
    """The linear map from fixed to moving, mm, LPS.

    kind: "none" (world coordinates as they are), "centre" (centres of the grids), "mass" (centres of the bright
        matter), "rigid", "similarity" or "affine". The last three start at the best of header, centres and centres of
        mass, each also turned about its axes, or at `initial` (4x4, fixed mm -> moving mm) if given.
    fixed_mask, moving_mask: where the images count (non-zero), on grids of their own.
    progress: called with the done fraction; may raise to stop.
    Raises InputError for an unknown kind, and where no starting point makes the images overlap.
    """
    if kind not in ALIGNMENTS:
        raise InputError(f"No alignment is called {kind!r}; choose one of {', '.join(ALIGNMENTS)}.")
    coarse = _levels(fixed, moving, fixed_mask, moving_mask, COARSE_VOXELS)
    if initial is not None:
        starts = {"initial": np.array(initial, dtype=np.float64)}
    else:
        starts = {
            "header": np.eye(4),
            "centre": _translation(moving.grid.centre - fixed.grid.centre),
            "mass": _translation(_centre_of_mass(coarse[1]) - _centre_of_mass(coarse[0])),
        }
    header = next(iter(starts.values()))
    if kind in ("none", "centre", "mass"):
        start = kind if kind in starts else next(iter(starts))
        return Alignment(starts[start], kind, start, _score(*coarse, header), _score(*coarse, starts[start]))

    distinct: dict[str, np.ndarray] = {}  # where the images overlap, and farther than 1 mm from each other
    for name, start in starts.items():
        apart = all(np.abs(start - other).max() > 1 for other in distinct.values())
        if apart and np.isfinite(_score(*coarse, start)):
            distinct[name] = start
    starts = distinct
    if not starts:
        raise InputError(
            f"{fixed.name} and {moving.name} do not overlap even with their centres on each other; "
            "check that they show the same region, or give an initial transform."
        )
    steps = _Steps(len(starts) + (2 if kind == "rigid" else 2 + MOST_ROUNDS), progress)
    rigid = {name: _optimise("rigid", *coarse, matrix, steps.next()) for name, matrix in starts.items()}
    start = max(rigid, key=lambda name: _score(*coarse, rigid[name]))
    turned, step = _best_turn(*coarse, rigid[start]), steps.next()
    matrix = rigid[start] if turned is None else _optimise("rigid", *coarse, turned, step)
    fine = _levels(fixed, moving, fixed_mask, moving_mask, FINE_VOXELS)
    candidates = {f"{name}, kept": place for name, place in starts.items()}
    if kind == "rigid":
        candidates[start] = _optimise(kind, *fine, matrix, steps.next(), FINE_ITERATIONS)
    else:
        candidates[f"{start}, rigid kept"] = matrix
        stretched, reached = matrix, _score(*coarse, matrix)
        for _ in range(MOST_ROUNDS):  # a line search that has run dry often finds more from where it stopped
            further = _optimise(kind, *coarse, stretched, steps.next())
            gain, reached = _score(*coarse, further) - reached, _score(*coarse, further)
            if gain > 0:
                stretched = further
            if gain < LEAST_GAIN:
                break
        stretched = _optimise(kind, *fine, stretched, steps.last(), FINE_ITERATIONS)
        if _is_plausible(stretched @ np.linalg.inv(matrix)):
            candidates[start] = stretched
    final = {name: _score(*fine, place) for name, place in candidates.items()}
    start = max(final, key=final.get)
    return Alignment(candidates[start], kind, start, _score(*fine, header), final[start])


def _is_plausible(matrix: np.ndarray) -> bool:
    """Whether a map stretches by no more than a factor of two: what a partial overlap can drive an affine map to."""
    stretches = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(stretches.min() > 0.5 and stretches.max() < 2)


class _Steps:
    """Divides the progress of a run evenly among `count` steps."""

    def __init__(self, count: int, progress: Callable[[float], None] | None):
        self._count, self._done, self._progress = count, -1, progress

    def last(self) -> Callable[[float], None]:
        """The last step, whether or not all before it were needed."""
        self._done = self._count - 2
        return self.next()

    def next(self) -> Callable[[float], None]:
        self._done += 1
        begun = self._done
        return lambda part: self._progress and self._progress((begun + part) / self._count)


# ----------------------------------------------------------------------------------------------------------- levels


def _levels(fixed, moving, fixed_mask, moving_mask, voxels: int) -> tuple[_Level, _Level]:
    """Both images at the spacing at which the smaller one has about `voxels`."""
    volume = min(np.prod(image.grid.extent) for image in (fixed, moving))
    finest = min(image.grid.spacing.min() for image in (fixed, moving))
    spacing = max((volume / voxels) ** (1 / 3), finest)
    return _level(fixed, fixed_mask, spacing), _level(moving, moving_mask, spacing)


def _level(image: Image, mask: Image | None, spacing: float) -> _Level:
    grid = _isotropic(image.grid, spacing)
    low, high = robust_range(image.array)
    array = np.clip(np.nan_to_num(image.array, nan=low).astype(np.float32), low, high)
    array = sample(smooth_for(array, image.grid, grid), image.grid, grid, outside=low)
    inside = None if mask is None else sample((mask.array != 0).astype(np.uint8), mask.grid, grid, order=0) > 0
    return _Level((array - np.float32(low)) / np.float32(max(high - low, 1e-6)), grid, inside)


def robust_range(array: np.ndarray) -> tuple[float, float]:
    """Where the histogram lies without its tails: metal and noise spikes would eat most of the bins."""
    values = array.ravel()[:: max(1, array.size // 1_000_000)]
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.quantile(values, [0.001, 0.999])
    return float(low), float(high if high > low else values.max())


def _isotropic(grid: Grid, spacing: float) -> Grid:
    """A right-angled lattice of `spacing` mm over the box of `grid`, along its axes (or nearly so where it shears)."""
    left, _, right = np.linalg.svd(grid.direction)
    axes = left @ right
    corners = grid.corners(faces=True) @ axes
    low, high = corners.min(0), corners.max(0)
    size = np.maximum(np.rint((high - low) / spacing), 4).astype(int)
    step = (high - low) / size
    return Grid.from_parts(size, step, axes @ (low + step / 2), axes)


def _centre_of_mass(level: _Level) -> np.ndarray:
    """Centre of what is brighter than the background, mm: intensities above their mean, within the mask."""
    weights = level.array if level.mask is None else level.array * level.mask
    weights = np.maximum(weights - weights.mean(), 0).astype(np.float64)
    if not weights.sum() > 0:
        return level.grid.centre
    index = [
        (weights.sum(axis=tuple(a for a in range(3) if a != axis)) * np.arange(n)).sum() / weights.sum()
        for axis, n in enumerate(weights.shape)
    ]
    return level.grid.to_world(index[::-1])


def _translation(shift: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = shift
    return matrix


def _rotation(vector: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """4x4 rotation about `centre` by |vector| degrees around `vector` (Rodrigues' formula)."""
    angle = np.radians(np.linalg.norm(vector))
    x, y, z = np.asarray(vector, float) / np.linalg.norm(vector)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    matrix[:3, 3] = centre - matrix[:3, :3] @ centre
    return matrix


# ----------------------------------------------------------------------------------------------------- optimisation


def _score(fixed: _Level, moving: _Level, matrix: np.ndarray) -> float:
    """Normalised mutual information where both images are, or -inf where they hardly overlap."""
    values = sample(moving.array, moving.grid, fixed.grid, transform=matrix, outside=-1.0)
    both = values >= 0
    if both.sum() * fixed.grid.voxel_volume < LEAST_OVERLAP * min(
        np.prod(fixed.grid.extent), np.prod(moving.grid.extent) / abs(np.linalg.det(matrix[:3, :3]))
    ):
        return -np.inf
    if fixed.mask is not None:
        both &= fixed.mask
    if moving.mask is not None:
        both &= sample(moving.mask.astype(np.uint8), moving.grid, fixed.grid, transform=matrix, order=0) > 0
    return normalised_mutual_information(joint_histogram(fixed.array[both], values[both])) if both.any() else -np.inf


def _best_turn(fixed: _Level, moving: _Level, matrix: np.ndarray) -> np.ndarray | None:
    """`matrix` turned by up to 40 degrees, where that is better by itself: the optimiser was in another valley."""
    centre = _centre_of_mass(fixed)
    best, found = _score(fixed, moving, matrix), None
    for axis, angle in product(np.eye(3), (-40, -20, 20, 40)):
        turned = matrix @ _rotation(axis * angle, centre)
        if (score := _score(fixed, moving, turned)) > best:
            best, found = score, turned
    return found


def _itk_image(array: np.ndarray, grid: Grid):
    import itk

    image = itk.image_from_array(np.ascontiguousarray(array))
    image.SetSpacing([float(s) for s in grid.spacing])
    image.SetOrigin([float(o) for o in grid.origin])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))
    return image


def _itk_mask(level: _Level):
    import itk

    mask = itk.ImageMaskSpatialObject[3].New()
    mask.SetImage(_itk_image(level.mask.astype(np.uint8), level.grid))
    mask.Update()
    return mask


def _itk_affine(matrix: np.ndarray):
    import itk

    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    transform.SetTranslation([float(t) for t in matrix[:3, 3]])
    return transform


def _optimise(
    kind: str,
    fixed: _Level,
    moving: _Level,
    start: np.ndarray,
    progress: Callable[[float], None],
    iterations: int | None = None,
) -> np.ndarray:
    """`start` improved by a map of `kind`, applied before it: x -> start(map(x)). All voxels are used: no chance."""
    import itk

    iterations = iterations or COARSE_ITERATIONS[kind]
    image_type = itk.Image[itk.F, 3]
    transform = {
        "rigid": itk.VersorRigid3DTransform[itk.D],
        "similarity": itk.Similarity3DTransform[itk.D],
        "affine": itk.AffineTransform[itk.D, 3],
    }[kind].New()
    transform.SetCenter([float(c) for c in _centre_of_mass(fixed)])
    chain = itk.CompositeTransform[itk.D, 3].New()  # the transform added last is applied first
    chain.AddTransform(_itk_affine(start))
    chain.AddTransform(transform)
    chain.SetOnlyMostRecentTransformToOptimizeOn()

    metric = itk.MattesMutualInformationImageToImageMetricv4[image_type, image_type].New()
    metric.SetNumberOfHistogramBins(BINS)
    metric.SetFixedImage(_itk_image(fixed.array, fixed.grid))
    metric.SetMovingImage(_itk_image(moving.array, moving.grid))
    metric.SetMovingTransform(chain)
    metric.SetUseFixedImageGradientFilter(False)
    metric.SetUseMovingImageGradientFilter(False)
    masks = [None if level.mask is None else _itk_mask(level) for level in (fixed, moving)]
    if masks[0] is not None:
        metric.SetFixedImageMask(masks[0])
    if masks[1] is not None:
        metric.SetMovingImageMask(masks[1])
    metric.SetMaximumNumberOfWorkUnits(1)  # several would add in the order in which they end: not the same result twice
    metric.Initialize()

    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New()
    scales.SetMetric(metric)
    # A line search: steps of set lengths zigzag along the valley between turning and shifting and end before its floor.
    optimizer = itk.ConjugateGradientLineSearchOptimizerv4Template[itk.D].New()
    optimizer.SetMetric(metric)
    optimizer.SetScalesEstimator(scales)
    optimizer.SetDoEstimateLearningRateOnce(False)
    optimizer.SetDoEstimateLearningRateAtEachIteration(True)
    optimizer.SetMaximumStepSizeInPhysicalUnits(float(fixed.grid.spacing.mean()))
    optimizer.SetLowerLimit(0)
    optimizer.SetUpperLimit(2)
    optimizer.SetEpsilon(0.3)
    optimizer.SetMaximumLineSearchIterations(6)
    optimizer.SetConvergenceWindowSize(5)
    optimizer.SetMinimumConvergenceValue(1e-6)
    optimizer.SetNumberOfIterations(iterations)

    raised: list[BaseException] = []

    def iterated():
        try:
            progress(min(1.0, optimizer.GetCurrentIteration() / iterations))
        except BaseException as error:  # ITK would print it and go on: stop, and raise it outside
            raised.append(error)
            optimizer.StopOptimization()

    optimizer.AddObserver(itk.IterationEvent(), iterated)
    try:
        optimizer.StartOptimization()
    except RuntimeError:  # the images have lost each other; the start stays
        return start
    if raised:
        raise raised[0]
    return _matrix_of(start, transform)


def _matrix_of(start: np.ndarray, transform) -> np.ndarray:
    import itk

    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = list(transform.GetOffset())
    return start @ matrix
