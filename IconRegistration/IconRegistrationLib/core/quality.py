"""How good a registration is: what changed from before to after, and whether the map itself can be trusted.

Limits of the verdicts are those of AAPM Task Group 132 (Brock et al., Med. Phys. 44:e43, 2017, table of tolerances)
where it names one: target registration error and consistency within the largest voxel edge (some 2-3 mm), Dice within
the uncertainty of contouring (0.8), no negative Jacobian. Dice above 0.7 counts as good agreement in Zijdenbos et al.
(IEEE TMI 13:716, 1994). A measure without a published limit is judged by whether it got better, or not at all.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from .align import joint_histogram, normalised_mutual_information, robust_range
from .field import folding, inverse_consistency_error, jacobian_determinant, mapped_index, warp_segmentation
from .files import replacing, writable
from .geometry import Grid, Image, Landmarks, Segmentation, apply_affine
from .sampling import affine_index, as_volume, coverage, inside, interpolate, sample, slabs, voxel_to_voxel

if TYPE_CHECKING:
    from .field import DisplacementField, Folding

BINS = 64
GREEN, AMBER, RED = "green", "amber", "red"
#: Rows per group that a terminal gets to see, the worst first.
TABLE_ROWS = 20


@dataclass(frozen=True)
class Change:
    """A measure without the deformation (world coordinates, or the initial transform) and with it; NaN: unknown."""

    before: float
    after: float


@dataclass(frozen=True)
class Similarity:
    """Of the intensities, over the fixed voxels that lie in the moving image.

    ncc: correlation coefficient.  mutual_information: normalised, (H(A) + H(B)) / H(A, B), in [1, 2].
    overlap: share of the fixed voxels that lie in the moving image.
    """

    ncc: Change
    mutual_information: Change
    overlap: Change


@dataclass(frozen=True)
class SegmentQuality:
    """One structure. Agreement is NaN where only one of the segmentations has it.

    hd95: larger of both directed 95th percentiles of surface distances in mm (Maier-Hein et al., Nature Methods 2024).
    fixed_mm3: its volume in the fixed image.  mapped_mm3: volume that the map gives it, by the Jacobian.
    moving_mm3: its volume in the moving segmentation.
    """

    name: str
    dice: Change
    hd95: Change
    fixed_mm3: float
    mapped_mm3: float
    moving_mm3: float

    @property
    def volume_ratio(self) -> float:
        """Mapped over fixed volume: above 1, the moving structure is larger."""
        return self.mapped_mm3 / self.fixed_mm3 if self.fixed_mm3 else math.nan


@dataclass(frozen=True)
class LandmarkQuality:
    """Target registration error of one pair of landmarks in mm."""

    label: str
    error: Change


@dataclass(frozen=True)
class Spread:
    """A distribution within the fixed image, in mm."""

    mean: float
    median: float
    percentile95: float
    maximum: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        values = values[np.isfinite(values)]
        if not values.size:
            return cls(*[math.nan] * 4)
        median, high = np.percentile(values, [50, 95])
        return cls(float(values.mean(dtype=np.float64)), float(median), float(high), float(values.max()))


@dataclass(frozen=True)
class Deformation:
    """The map itself, at its lattice points within the fixed image.

    folding: where the Jacobian determinant is 0 or less.  log_jacobian_sd: standard deviation of its logarithm where
    positive.  displacement: the whole map's, linear part included.  inverse_consistency: |backward(forward(x)) - x|.
    """

    folding: Folding
    log_jacobian_sd: float
    displacement: Spread
    inverse_consistency: Spread


@dataclass(frozen=True)
class Verdict:
    """What a number means. level: "green", "amber" or "red"."""

    measure: str
    value: float
    level: str
    meaning: str


@dataclass(frozen=True)
class Row:
    """One line of the tables; `before` is None where there is no such thing."""

    group: str
    name: str
    measure: str
    unit: str
    before: float | None
    after: float


@dataclass(frozen=True)
class Report:
    """Everything that was measured about one registration."""

    similarity: Similarity
    segments: tuple[SegmentQuality, ...]
    landmarks: tuple[LandmarkQuality, ...]
    deformation: Deformation
    verdicts: tuple[Verdict, ...]
    provenance: dict = field(default_factory=dict)

    @property
    def dice(self) -> Change:
        """Mean over the segments that both segmentations have."""
        return _mean(s.dice for s in self.segments)

    @property
    def hd95(self) -> Change:
        """Mean over the segments, mm."""
        return _mean(s.hd95 for s in self.segments)

    @property
    def target_registration_error(self) -> Change:
        """Mean over the landmarks, mm."""
        return _mean(landmark.error for landmark in self.landmarks)

    def rows(self) -> list[Row]:
        """Every number once, in the order of the table."""
        rows = [
            Row("Images", "", "correlation", "", *_pair(self.similarity.ncc)),
            Row("Images", "", "normalised mutual information", "", *_pair(self.similarity.mutual_information)),
            Row("Images", "", "overlap", "", *_pair(self.similarity.overlap)),
        ]
        if self.segments:
            rows += [
                Row("Segments", "mean", "Dice", "", *_pair(self.dice)),
                Row("Segments", "mean", "HD95", "mm", *_pair(self.hd95)),
            ]
        for s in self.segments:
            rows += [
                Row("Segments", s.name, "Dice", "", *_pair(s.dice)),
                Row("Segments", s.name, "HD95", "mm", *_pair(s.hd95)),
                Row("Segments", s.name, "volume, fixed and mapped", "mm3", s.fixed_mm3, s.mapped_mm3),
                Row("Segments", s.name, "volume ratio", "", None, s.volume_ratio),
                Row("Segments", s.name, "volume in the moving segmentation", "mm3", None, s.moving_mm3),
            ]
        if self.landmarks:
            errors = np.array([_pair(landmark.error) for landmark in self.landmarks])
            for name, function in (("mean", np.mean), ("median", np.median), ("max", np.max)):
                before, after = (float(v) for v in function(errors, axis=0))
                rows.append(Row("Landmarks", name, "target registration error", "mm", before, after))
        for landmark in self.landmarks:
            rows.append(Row("Landmarks", landmark.label, "target registration error", "mm", *_pair(landmark.error)))
        d = self.deformation
        rows += [
            Row("Map", "", "folding, share", "", None, d.folding.share),
            Row("Map", "", "folding, lattice points", "", None, d.folding.count),
            Row("Map", "", "smallest Jacobian", "", None, d.folding.minimum),
            Row("Map", "", "spread of the log Jacobian", "", None, d.log_jacobian_sd),
        ]
        for measure, spread in (("displacement", d.displacement), ("inverse consistency", d.inverse_consistency)):
            for name, value in zip(("mean", "median", "95 %", "max"), vars(spread).values(), strict=True):
                rows.append(Row("Map", name, measure, "mm", None, value))
        return rows

    def table(self) -> str:
        """For a terminal: per group the means, then the worst segments and landmarks."""
        lines = ["Registration quality" + " " * 26 + "     before      after"]
        lines += ["Images", *(_line(row.measure, row.unit, row.before, row.after) for row in self.rows()[:3])]
        if self.segments:
            lines.append(
                f"Segments ({len(self.segments)})" + " " * 20 + "Dice before, after   HD95 mm before, after  volume"
            )
            for name, dice, hd95, ratio in _limited(
                [("mean", self.dice, self.hd95, None)],
                [(s.name, s.dice, s.hd95, s.volume_ratio) for s in sorted(self.segments, key=_worst_dice_first)],
            ):
                if name is None:
                    lines.append(f"  {dice}")
                else:
                    numbers = [_text(v, 8) for v in (*_pair(dice), *_pair(hd95))]
                    lines.append(f"  {name[:30]:<30}{'  '.join(numbers)}  {'' if ratio is None else _text(ratio, 7)}")
        if self.landmarks:
            lines.append(f"Landmarks ({len(self.landmarks)}), target registration error")
            means = [row for row in self.rows() if row.group == "Landmarks"][:3]
            worst = sorted(self.landmarks, key=lambda landmark: -landmark.error.after)
            for name, error, _, _ in _limited(
                [(row.name, Change(row.before, row.after), None, None) for row in means],
                [(landmark.label, landmark.error, None, None) for landmark in worst],
            ):
                lines.append(f"  {error}" if name is None else _line(name, "mm", *_pair(error)))
        lines.append("Map")
        for row in self.rows():
            if row.group == "Map":
                lines.append(_line(f"{row.measure} {row.name}".strip(), row.unit, row.before, row.after))
        if self.deformation.folding.count:
            x, y, z = self.deformation.folding.place
            lines.append(f"  worst folding at ({x:.1f}, {y:.1f}, {z:.1f}) mm, LPS")
        lines.append("Verdict")
        lines += [f"  {v.level.upper():<6}{v.measure}: {v.meaning}" for v in self.verdicts]
        return "\n".join(lines)

    __str__ = table

    def to_dict(self) -> dict:
        """Nested, with nothing that JSON lacks: NaN and infinity become None."""
        d = self.deformation
        return _plain(
            {
                "similarity": {name: vars(change) for name, change in vars(self.similarity).items()},
                "segments": {
                    s.name: {
                        "dice": vars(s.dice),
                        "hd95_mm": vars(s.hd95),
                        "volume": {
                            "fixed_mm3": s.fixed_mm3,
                            "mapped_mm3": s.mapped_mm3,
                            "moving_mm3": s.moving_mm3,
                            "ratio": s.volume_ratio,
                        },
                    }
                    for s in self.segments
                },
                "landmarks_mm": {landmark.label: vars(landmark.error) for landmark in self.landmarks},
                "means": {
                    "dice": vars(self.dice),
                    "hd95_mm": vars(self.hd95),
                    "target_registration_error_mm": vars(self.target_registration_error),
                },
                "deformation": {
                    "folding": vars(d.folding),
                    "log_jacobian_sd": d.log_jacobian_sd,
                    "displacement_mm": vars(d.displacement),
                    "inverse_consistency_mm": vars(d.inverse_consistency),
                },
                "verdicts": [vars(v) for v in self.verdicts],
                "provenance": self.provenance,
            }
        )

    def write_json(self, path) -> None:
        path = writable(path, (".json",))
        with replacing(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")

    def write_csv(self, path) -> None:
        """One line per measure and segment or landmark: group, name, measure, unit, before, after."""
        path = writable(path, (".csv",))
        with replacing(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["group", "name", "measure", "unit", "before", "after"])
            for row in self.rows():
                values = ["" if v is None or not math.isfinite(v) else repr(float(v)) for v in (row.before, row.after)]
                writer.writerow([row.group, row.name, row.measure, row.unit, *values])


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
    provenance: dict | None = None,
) -> Report:
    """Measure a registration at the images' own resolution.

    forward, backward: fixed mm -> moving mm, and back.
    Segments are matched by name, landmarks by label; what has no partner is left out of the agreement.
    initial: 4x4, fixed mm -> moving mm: what "before" means; world coordinates as they are if None.
    """
    initial = np.eye(4) if initial is None else np.asarray(initial, dtype=np.float64)
    jacobian = jacobian_determinant(forward)
    similarity = _similarity(fixed, moving, forward, initial)
    segments = _segments(fixed.grid, fixed_segmentation, moving_segmentation, forward, initial, jacobian)
    landmarks = _landmarks(fixed_landmarks, moving_landmarks, forward, initial)
    deformation = _deformation(fixed.grid, forward, backward, jacobian)
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
    correlation = (product - mean_a * mean_b) / math.sqrt(variance) if variance > 0 else math.nan
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


def _deformation(
    fixed: Grid, forward: DisplacementField, backward: DisplacementField, jacobian: np.ndarray
) -> Deformation:
    within = coverage(fixed, forward.grid)
    if not within.any():  # a lattice coarser than the image is small
        within = np.ones_like(within)
    positive = jacobian[within & (jacobian > 0)]
    return Deformation(
        folding(jacobian, forward.grid, within),
        float(np.log(positive).std(dtype=np.float64)) if positive.size else math.nan,
        Spread.of(forward.magnitude()[within]),
        Spread.of(inverse_consistency_error(forward, backward)[within]),
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
    error = _mean(landmark.error for landmark in landmarks)
    if math.isfinite(error.after):
        level = RED if error.after > error.before else _level(error.after, limit)
        text = f"mean {error.before:.2f} -> {error.after:.2f} mm at the landmarks (limit {limit:.1f} mm)"
        result.append(Verdict("Target registration error", error.after, level, text))
    dice = _mean(s.dice for s in segments)
    if math.isfinite(dice.after):
        level = GREEN if dice.after >= 0.8 else AMBER if dice.after >= 0.7 else RED
        level = RED if dice.after < dice.before else level
        text = f"mean {dice.before:.3f} -> {dice.after:.3f} (0.8: as experts among themselves; 0.7: good)"
        result.append(Verdict("Dice", dice.after, level, text))
        result.append(_progress_verdict("HD95", _mean(s.hd95 for s in segments), rising=False))
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
    return Verdict(measure, change.after, level, f"{word}: {change.before:.3f} -> {change.after:.3f}")


# ------------------------------------------------------------------------------------------------------------- text


def _pair(change: Change) -> tuple[float, float]:
    return change.before, change.after


def _mean(changes: Iterable[Change]) -> Change:
    """Over what is finite in both."""
    pairs = [_pair(c) for c in changes if math.isfinite(c.before) and math.isfinite(c.after)]
    return Change(*(float(v) for v in np.mean(pairs, axis=0))) if pairs else Change(math.nan, math.nan)


def _worst_dice_first(segment: SegmentQuality) -> float:
    return segment.dice.after if math.isfinite(segment.dice.after) else 2.0


def _limited(summary: list[tuple], rows: list[tuple]) -> list[tuple]:
    """All of the summary, the first of the rows, and a line (with None for a name) that counts the rest."""
    hidden = len(rows) - TABLE_ROWS
    return summary + rows[:TABLE_ROWS] + ([(None, f"... and {hidden} more", None, None)] if hidden > 0 else [])


def _line(name: str, unit: str, before: float | None, after: float) -> str:
    label = f"{name} [{unit}]" if unit else name
    return f"  {label[:44]:<44}{_text(before, 11)}{_text(after, 11)}"


def _text(value: float | None, width: int) -> str:
    if value is None:
        return " " * width
    if not math.isfinite(value):
        return f"{'-' if math.isnan(value) else 'inf':>{width}}"
    return f"{value:>{width}.4g}"


def _plain(value):
    """Only what JSON has: dict, list, str, int, float, bool, None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
