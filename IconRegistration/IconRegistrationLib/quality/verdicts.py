"""Judge measured values: verdicts, their levels and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .values import Change, Deformation, Folding, LandmarkQuality, SegmentQuality, Similarity, mean_change

GREEN, AMBER, RED = "green", "amber", "red"

#: Words for the colours: not everybody tells them apart.
WORDS = {GREEN: "good", AMBER: "look closely", RED: "do not trust"}


@dataclass(frozen=True)
class Verdict:
    """What a number means. level: "green", "amber" or "red".  before: the number without the deformation, if any."""

    measure: str
    value: float
    level: str
    meaning: str
    before: float | None = None


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
