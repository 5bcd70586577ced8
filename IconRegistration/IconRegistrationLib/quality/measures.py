"""How good a registration is: what changed from before to after, and whether the map itself can be trusted.

Limits of the verdicts are those of AAPM Task Group 132 (Brock et al., Med. Phys. 44:e43, 2017, table of tolerances)
where it names one: target registration error and consistency within the largest voxel edge (some 2-3 mm), Dice within
the uncertainty of contouring (0.8), no negative Jacobian. Dice above 0.7 counts as good agreement in Zijdenbos et al.
(IEEE TMI 13:716, 1994). A measure without a published limit is judged by whether it got better, or not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy import ndimage

from ..errors import InputError
from ..registration.mutual_information import joint_histogram, normalised_mutual_information, robust_range
from ..spatial.field import mapped_index, warp_segmentation
from ..spatial.geometry import Grid, Image, Landmarks, Segmentation, apply_affine
from ..spatial.sampling import affine_index, as_volume, coverage, inside, interpolate, sample, slabs, voxel_to_voxel
from ..text import tr
from .values import Change, Deformation, Folding, LandmarkQuality, SegmentQuality, Similarity, Spread

if TYPE_CHECKING:
    from ..spatial.displacement import DisplacementField


def folding(jacobian: np.ndarray, grid: Grid, mask: np.ndarray | None = None) -> Folding:
    """Measure the folding of a map by its Jacobian determinants [k, j, i] on `grid`, within `mask` (same shape)."""
    values = jacobian if mask is None else np.where(mask, jacobian, np.inf)
    number = jacobian.size if mask is None else int(np.count_nonzero(mask))
    if number == 0:
        raise InputError(tr("The mask for the folding is empty; draw it, or omit it."))
    count = int(np.count_nonzero(values <= 0))
    worst = np.unravel_index(np.argmin(values), values.shape)
    x, y, z = (float(v) for v in grid.to_world(worst[::-1]))
    return Folding(count, count / number, float(values[worst]), (x, y, z))


BINS = 64

#: find_objects keeps a box for each number up to the largest label; larger labels are renumbered first.
_MOST_LABELS = 2**16


def _similarity(fixed: Image, moving: Image, forward: DisplacementField, initial: np.ndarray) -> Similarity:
    shape = fixed.grid.shape
    matrix = voxel_to_voxel(moving.grid, fixed.grid, initial)
    before = ((slab, affine_index(matrix, shape, slab)) for slab in slabs(shape))
    measures = zip(
        _agreement(fixed, moving, before),
        _agreement(fixed, moving, mapped_index(forward, moving.grid, fixed.grid)),
        strict=True,
    )
    return Similarity(*(Change(*pair) for pair in measures))


def _agreement(fixed: Image, moving: Image, places: Iterable[tuple[slice, torch.Tensor]]) -> tuple[float, float, float]:
    """Measure correlation, normalised mutual information and overlap, in one pass over slabs of the fixed image."""
    volume = as_volume(moving.array)
    (low_f, high_f), (low_m, high_m) = robust_range(fixed.array), robust_range(moving.array)
    sums, joint, count = np.zeros(5), np.zeros((BINS, BINS), np.int64), 0
    for slab, index in places:
        values = interpolate(volume, index)[0].numpy()
        both = inside(index, moving.grid.shape).numpy() & np.isfinite(values)
        # In units of the range, so that no sum of squares loses its digits.
        a = (fixed.array[slab][both].astype(np.float64) - low_f) / max(high_f - low_f, 1e-12)
        b = (values[both].astype(np.float64) - low_m) / max(high_m - low_m, 1e-12)
        sums += a.sum(), b.sum(), (a * a).sum(), (b * b).sum(), (a * b).sum()
        joint += joint_histogram(a, b, BINS)
        count += a.size
    overlap = count / fixed.array.size
    if not count:
        return math.nan, math.nan, overlap
    mean_a, mean_b, square_a, square_b, product = sums / count
    variance = (square_a - mean_a**2) * (square_b - mean_b**2)
    correlation = float(product - mean_a * mean_b) / math.sqrt(variance) if variance > 0 else math.nan
    return correlation, normalised_mutual_information(joint), overlap


def _segments(
    grid: Grid,
    fixed: Segmentation | None,
    moving: Segmentation | None,
    forward: DisplacementField,
    initial: np.ndarray,
    jacobian: np.ndarray,
) -> tuple[SegmentQuality, ...]:
    """Compare segments on the grid of the fixed segmentation, in its order; without one, on the fixed image's."""
    if fixed is None and moving is None:
        return ()
    where = fixed.grid if fixed is not None else grid
    after = None if moving is None else warp_segmentation(moving, forward, where)
    before = None
    if fixed is not None and moving is not None:
        layers = [sample(layer, moving.grid, where, transform=initial, order=0) for layer in moving.layers]
        before = Segmentation(tuple(layers), moving.segments, where)
    reference = fixed if fixed is not None else after
    assert reference is not None
    change = sample(jacobian, forward.grid, where, outside=np.nan)
    moving_volumes = {} if moving is None else _volumes(moving)
    boxes = [_boxes(s) for s in (reference, before, after) if s is not None]
    result = []
    for name in reference.by_name():
        if not boxes[0][name]:
            continue  # an empty segment has no measure
        box = _union(b.get(name) for b in boxes)
        mask = _crop(reference, name, box)
        local = change[box][mask]
        dice = hd95 = Change(math.nan, math.nan)
        if before is not None and after is not None and name in before.by_name() and moving_volumes[name]:
            others = [_crop(s, name, box) for s in (before, after)]
            dice = Change(*(_dice(mask, other) for other in others))
            hd95 = Change(*_hausdorff95(mask, others, where.spacing))
        volume = float(mask.sum()) * where.voxel_volume
        ratio = float(np.nanmean(local)) if np.isfinite(local).any() else math.nan
        result.append(SegmentQuality(name, dice, hd95, volume, volume * ratio, moving_volumes.get(name, math.nan)))
    return tuple(result)


def _crop(segmentation: Segmentation, name: str, box: tuple[slice, ...]) -> np.ndarray:
    segment = segmentation.by_name()[name]
    return segmentation.layers[segment.layer][box] == segment.value


def _volumes(segmentation: Segmentation) -> dict[str, float]:
    """Return the volume of each segment in mm3, by name."""
    counts = []
    for layer in segmentation.layers:
        values, numbers = np.unique(layer, return_counts=True)
        counts.append(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
    voxel = segmentation.grid.voxel_volume
    return {name: counts[s.layer].get(s.value, 0) * voxel for name, s in segmentation.by_name().items()}


def _boxes(segmentation: Segmentation) -> dict[str, tuple[slice, ...] | None]:
    """Return the bounding box (slices of k, j, i) of each segment by name; None where it is empty."""
    boxes: dict[tuple[int, int], tuple[slice, ...] | None] = {}
    for number, layer in enumerate(segmentation.layers):
        values = np.array(sorted({s.value for s in segmentation.segments if s.layer == number}))
        if not values.size:
            continue
        if values[0] < 1 or values[-1] > _MOST_LABELS:
            nearest = np.searchsorted(values, layer).clip(max=values.size - 1)
            layer, labels = np.where(values[nearest] == layer, nearest + 1, 0), np.arange(values.size) + 1
        else:
            labels = values
        found = ndimage.find_objects(layer, max_label=int(labels[-1]))
        boxes.update({(number, int(v)): found[label - 1] for v, label in zip(values, labels, strict=True)})
    return {name: boxes[s.layer, s.value] for name, s in segmentation.by_name().items()}


def _union(boxes: Iterable[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    boxes = [box for box in boxes if box is not None]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    whole = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / whole if whole else math.nan


def _hausdorff95(mask: np.ndarray, others: list[np.ndarray], spacing: np.ndarray) -> Iterator[float]:
    """Return the HD95 in mm of `mask` with each of `others`; infinite where one of the two is empty.

    spacing: (i, j, k). The surface are the voxels with a face to the outside; distances run between their centres.
    """
    from_mask = _distance_to_surface(mask, spacing)
    for other in others:
        if not other.any():
            yield math.inf
            continue
        from_other = _distance_to_surface(other, spacing)
        there, back = from_mask[from_other == 0], from_other[from_mask == 0]
        yield float(max(np.percentile(there, 95), np.percentile(back, 95)))


def _distance_to_surface(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Return the distance in mm of every voxel centre from the nearest surface voxel of `mask`; 0 on the surface."""
    surface = mask & ~ndimage.binary_erosion(mask)  # outside of the crop there is no mask
    return ndimage.distance_transform_edt(~surface, sampling=spacing[::-1])


def _landmarks(
    fixed: Landmarks | None, moving: Landmarks | None, forward: DisplacementField, initial: np.ndarray
) -> tuple[LandmarkQuality, ...]:
    if fixed is None or moving is None:
        return ()
    theirs = dict(zip(reversed(moving.labels), reversed(moving.points), strict=True))
    ours = dict(zip(reversed(fixed.labels), reversed(fixed.points), strict=True))
    labels = [label for label in dict.fromkeys(fixed.labels) if label in theirs]
    if not labels:
        return ()
    points = np.array([ours[label] for label in labels], dtype=np.float64)
    targets = np.array([theirs[label] for label in labels], dtype=np.float64)
    before = np.linalg.norm(apply_affine(initial, points) - targets, axis=1)
    after = np.linalg.norm(forward.transform_points(points) - targets, axis=1)
    return tuple(
        LandmarkQuality(label, Change(float(b), float(a))) for label, b, a in zip(labels, before, after, strict=True)
    )


def _deformation(
    fixed: Grid, forward: DisplacementField, jacobian: np.ndarray, consistency_error: np.ndarray
) -> Deformation:
    within = coverage(fixed, forward.grid)
    if not within.any():  # a lattice coarser than the image is small
        within = np.ones_like(within)
    positive = jacobian[within & (jacobian > 0)]
    return Deformation(
        folding(jacobian, forward.grid, within),
        float(np.log(positive).std(dtype=np.float64)) if positive.size else math.nan,
        Spread.of(forward.magnitude()[within]),
        Spread.of(consistency_error[within]),
    )
