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

from .align import joint_histogram, normalised_mutual_information, robust_range
from .field import folding, inverse_consistency_error, jacobian_determinant, mapped_index, warp_segmentation
from .geometry import Grid, Image, Landmarks, Segmentation, apply_affine
from .report import (
    AMBER,
    GREEN,
    RED,
    Change,
    Deformation,
    Folding,
    LandmarkQuality,
    Report,
    SegmentQuality,
    Similarity,
    Spread,
    Verdict,
    mean_change,
)
from .sampling import affine_index, as_volume, coverage, inside, interpolate, sample, slabs, voxel_to_voxel

if TYPE_CHECKING:
    from .displacement import DisplacementField

BINS = 64


def assess(
    fixed: Image,
    moving: Image,
    forward: DisplacementField,
    backward: DisplacementField,
    *,
    fixed_segmentation: Segmentation | None = None,
    moving_segmentation: Segmentation | None = None,
    fixed_landmarks: Landmarks | None = None,
    moving_landmarks: Landmarks | None = None,
    initial: np.ndarray | None = None,
    jacobian: np.ndarray | None = None,
    distrust: np.ndarray | None = None,
    provenance: dict | None = None,
) -> Report:
    """Measure a registration at the images' own resolution.

    forward, backward: fixed mm -> moving mm, and back.
    Segments are matched by name, landmarks by label; what has no partner is left out of the agreement.
    initial: 4x4, fixed mm -> moving mm: what "before" means; world coordinates as they are if None.
    jacobian, distrust: `jacobian_determinant(forward)` and `inverse_consistency_error(forward, backward)` where the
    caller has them already.
    """
    initial = np.eye(4) if initial is None else np.asarray(initial, dtype=np.float64)
    jacobian = jacobian_determinant(forward) if jacobian is None else jacobian
    distrust = inverse_consistency_error(forward, backward) if distrust is None else distrust
    similarity = _similarity(fixed, moving, forward, initial)
    segments = _segments(fixed.grid, fixed_segmentation, moving_segmentation, forward, initial, jacobian)
    landmarks = _landmarks(fixed_landmarks, moving_landmarks, forward, initial)
    deformation = _deformation(fixed.grid, forward, jacobian, distrust)
    verdicts = _verdicts(similarity, segments, landmarks, deformation, float(fixed.grid.spacing.max()))
    return Report(similarity, segments, landmarks, deformation, verdicts, provenance or {})


# ------------------------------------------------------------------------------------------------------ intensities


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
    """Correlation, normalised mutual information and overlap, in one pass over slabs of the fixed image."""
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


# --------------------------------------------------------------------------------------------------------- segments


def _segments(
    grid: Grid,
    fixed: Segmentation | None,
    moving: Segmentation | None,
    forward: DisplacementField,
    initial: np.ndarray,
    jacobian: np.ndarray,
) -> tuple[SegmentQuality, ...]:
    """In the order of the fixed segmentation; on its own grid, or on the fixed image's where only the moving exists."""
    if fixed is None and moving is None:
        return ()
    where = fixed.grid if fixed is not None else grid
    after = None if moving is None else warp_segmentation(moving, forward, where)
    before = None
    if fixed is not None and moving is not None:
        layers = [sample(layer, moving.grid, where, transform=initial, order=0) for layer in moving.layers]
        before = Segmentation(tuple(layers), moving.segments, where)
    reference = fixed if fixed is not None else after
    change = sample(jacobian, forward.grid, where, outside=np.nan)
    moving_volumes = {} if moving is None else _volumes(moving)
    boxes = [None if s is None else _boxes(s) for s in (reference, before, after)]
    result = []
    for name in reference.by_name():
        if not boxes[0][name]:
            continue  # an empty segment has no measure
        box = _union(b.get(name) for b in boxes if b is not None)
        mask = _crop(reference, name, box)
        local = change[box][mask]
        dice = hd95 = Change(math.nan, math.nan)
        if before is not None and name in before.by_name() and moving_volumes[name]:
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
    """mm3 by name."""
    counts = [np.unique(layer, return_counts=True) for layer in segmentation.layers]
    counts = [dict(zip(values.tolist(), numbers.tolist(), strict=True)) for values, numbers in counts]
    voxel = segmentation.grid.voxel_volume
    return {name: counts[s.layer].get(s.value, 0) * voxel for name, s in segmentation.by_name().items()}


def _boxes(segmentation: Segmentation) -> dict[str, tuple[slice, ...] | None]:
    """Bounding boxes (slices of k, j, i) of all segments in one pass over every layer; None where empty."""
    found: list[dict[int, tuple[slice, ...]]] = []
    for layer in segmentation.layers:
        index = np.stack(layer.nonzero())
        values = layer[tuple(index)]
        order = np.argsort(values, kind="stable")
        values, index = values[order], index[:, order]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if values.size else np.zeros(0, int)
        if starts.size:
            low, high = (f.reduceat(index, starts, axis=1).T for f in (np.minimum, np.maximum))
        else:
            low = high = []
        found.append(
            {
                int(value): tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
                for value, first, last in zip(values[starts], low, high, strict=True)
            }
        )
    return {name: found[s.layer].get(s.value) for name, s in segmentation.by_name().items()}


def _union(boxes: Iterable[tuple[slice, ...] | None]) -> tuple[slice, ...]:
    boxes = [box for box in boxes if box is not None]
    return tuple(slice(min(s.start for s in axis), max(s.stop for s in axis)) for axis in zip(*boxes, strict=True))


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    whole = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / whole if whole else math.nan


def _hausdorff95(mask: np.ndarray, others: list[np.ndarray], spacing: np.ndarray) -> Iterator[float]:
    """HD95 in mm of `mask` with each of `others`; infinite where one of the two is empty.

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
    """Distance in mm of every voxel centre from the nearest surface voxel of `mask`; 0 on the surface."""
    import itk

    padded = np.pad(mask, 1).astype(np.uint8)  # the border of the crop is no surface, what touches it has one there
    inner = padded.copy()
    for axis in range(3):
        for shift in (1, -1):
            inner &= np.roll(padded, shift, axis)
    image = itk.image_view_from_array(padded - inner)
    image.SetSpacing([float(s) for s in spacing])
    maurer = itk.SignedMaurerDistanceMapImageFilter[type(image), itk.Image[itk.F, 3]].New(image)
    maurer.SetSquaredDistance(False)
    maurer.SetUseImageSpacing(True)
    maurer.SetNumberOfWorkUnits(1)  # the boxes are small: starting threads costs more than they save
    maurer.Update()
    distance = np.maximum(itk.array_from_image(maurer.GetOutput()), 0)[1:-1, 1:-1, 1:-1]
    distance[(padded != inner)[1:-1, 1:-1, 1:-1]] = 0
    return distance


# -------------------------------------------------------------------------------------------- landmarks and the map


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


def _deformation(fixed: Grid, forward: DisplacementField, jacobian: np.ndarray, distrust: np.ndarray) -> Deformation:
    within = coverage(fixed, forward.grid)
    if not within.any():  # a lattice coarser than the image is small
        within = np.ones_like(within)
    positive = jacobian[within & (jacobian > 0)]
    return Deformation(
        folding(jacobian, forward.grid, within),
        float(np.log(positive).std(dtype=np.float64)) if positive.size else math.nan,
        Spread.of(forward.magnitude()[within]),
        Spread.of(distrust[within]),
    )


# --------------------------------------------------------------------------------------------------------- verdicts


def _verdicts(
    similarity: Similarity,
    segments: tuple[SegmentQuality, ...],
    landmarks: tuple[LandmarkQuality, ...],
    deformation: Deformation,
    voxel: float,
) -> tuple[Verdict, ...]:
    """voxel: the longest edge of a fixed voxel in mm."""
    limit = max(voxel, 2.0)
    result = [_folding_verdict(deformation.folding)]
    consistency = deformation.inverse_consistency.percentile95
    if math.isfinite(consistency):
        level = _level(consistency, limit)
        text = f"both directions agree within {consistency:.2f} mm for 95 % of the points (limit {limit:.1f} mm)"
        result.append(Verdict("Inverse consistency", consistency, level, text))
    result.append(_progress_verdict("Mutual information", similarity.mutual_information, rising=True))
    error = mean_change(landmark.error for landmark in landmarks)
    if math.isfinite(error.after):
        level = RED if error.after > error.before else _level(error.after, limit)
        text = f"mean {error.before:.2f} -> {error.after:.2f} mm at the landmarks (limit {limit:.1f} mm)"
        result.append(Verdict("Target registration error", error.after, level, text, error.before))
    dice = mean_change(s.dice for s in segments)
    if math.isfinite(dice.after):
        level = GREEN if dice.after >= 0.8 else AMBER if dice.after >= 0.7 else RED
        level = RED if dice.after < dice.before else level
        text = f"mean {dice.before:.3f} -> {dice.after:.3f} (0.8: as experts among themselves; 0.7: good)"
        result.append(Verdict("Dice", dice.after, level, text, dice.before))
        result.append(_progress_verdict("HD95", mean_change(s.hd95 for s in segments), rising=False))
    return tuple(v for v in result if v is not None)


def _level(value: float, limit: float) -> str:
    return GREEN if value <= limit else AMBER if value <= 2 * limit else RED


def _folding_verdict(found: Folding) -> Verdict:
    if not found.count:
        return Verdict("Folding", 0.0, GREEN, f"none; the smallest Jacobian is {found.minimum:.2f}")
    x, y, z = found.place
    text = (
        f"{found.share:.3%} of the points fold, worst at ({x:.0f}, {y:.0f}, {z:.0f}) mm LPS: do not trust the map there"
    )
    return Verdict("Folding", found.share, AMBER if found.share < 1e-3 else RED, text)


def _progress_verdict(measure: str, change: Change, rising: bool) -> Verdict | None:
    if not (math.isfinite(change.before) and math.isfinite(change.after)):
        return None
    gain = (change.after - change.before) * (1 if rising else -1)
    level, word = (GREEN, "better") if gain > 0 else (AMBER, "unchanged") if gain == 0 else (RED, "worse")
    return Verdict(measure, change.after, level, f"{word}: {change.before:.3f} -> {change.after:.3f}", change.before)
