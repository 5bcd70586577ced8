"""The verdicts of a report: an entry of this table is all that one needs.

The report, its JSON, the command's table, the panel's trust card, the cohort's page and the table in docs/quality.md
follow from it. No torch here: Slicer's own process shows verdicts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..text import Sentence, tr
from .values import Change, Deformation, LandmarkQuality, SegmentQuality, Similarity, mean_change

GREEN, AMBER, RED = "green", "amber", "red"


@dataclass(frozen=True)
class Verdict:
    """What a number means.

    Attributes
    ----------
    measure : str
        What was measured.
    value : float
        With the deformation.
    level : str
        "green", "amber" or "red".
    meaning : str
        The number and its limit as a sentence.
    before : float | None
        The number without the deformation, if there is one.
    """

    measure: str
    value: float
    level: str
    meaning: str
    before: float | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured of one registration, for verdicts.

    Attributes
    ----------
    similarity : Similarity
    segments : tuple[SegmentQuality, ...]
    landmarks : tuple[LandmarkQuality, ...]
    deformation : Deformation
    voxel : float
        Longest edge of a fixed voxel in mm.
    """

    similarity: Similarity
    segments: tuple[SegmentQuality, ...]
    landmarks: tuple[LandmarkQuality, ...]
    deformation: Deformation
    voxel: float

    @property
    def limit(self) -> float:
        """Distance in mm within which points agree: the longest voxel edge, at least 2 mm."""
        return max(self.voxel, 2.0)


@dataclass(frozen=True)
class VerdictEntry:
    """A verdict: what gets which colour, in words and as a function.

    Attributes
    ----------
    green, amber : str
        Limits, for the documentation; everything else is red.
    judge : Callable[[Measured], Verdict | None]
        None where nothing of the kind was measured.
    """

    green: str
    amber: str
    judge: Callable[[Measured], Verdict | None]


def level_in_words(level: str) -> Sentence:
    """Return words for a colour, because not everybody can distinguish the colours.

    Examples
    --------
    >>> level_in_words("amber")
    'look closely'
    """
    return {GREEN: tr("good"), AMBER: tr("look closely"), RED: tr("do not trust")}[level]


def verdicts_of(measured: Measured) -> tuple[Verdict, ...]:
    """Return the verdicts on the measures, in the order of the table."""
    verdicts = (entry.judge(measured) for entry in VERDICTS.values())
    return tuple(verdict for verdict in verdicts if verdict is not None)


def _folding(measured: Measured) -> Verdict:
    found = measured.deformation.folding
    if not found.count:
        meaning = tr("none; the smallest Jacobian is {minimum:.2f}", minimum=found.minimum)
        return Verdict(tr("Folding"), 0.0, GREEN, meaning)
    x, y, z = found.place
    meaning = tr(
        "{share:.3%} of the points fold, worst at ({x:.0f}, {y:.0f}, {z:.0f}) mm LPS: do not trust the map there",
        **{"share": found.share, "x": x, "y": y, "z": z},
    )
    return Verdict(tr("Folding"), found.share, AMBER if found.share < 1e-3 else RED, meaning)


def _inverse_consistency(measured: Measured) -> Verdict | None:
    error = measured.deformation.inverse_consistency.percentile95
    if not math.isfinite(error):
        return None
    meaning = tr(
        "both directions agree within {error:.2f} mm for 95 % of the points (limit {limit:.1f} mm)",
        error=error,
        limit=measured.limit,
    )
    return Verdict(tr("Inverse consistency"), error, _level_of_distance(error, measured.limit), meaning)


def _mutual_information(measured: Measured) -> Verdict | None:
    return _progress(tr("Mutual information"), measured.similarity.mutual_information, rising=True)


def _target_registration_error(measured: Measured) -> Verdict | None:
    error = mean_change(landmark.error for landmark in measured.landmarks)
    if not math.isfinite(error.after):
        return None
    level = RED if error.after > error.before else _level_of_distance(error.after, measured.limit)
    meaning = tr(
        "mean {before:.2f} -> {after:.2f} mm at the landmarks (limit {limit:.1f} mm)",
        before=error.before,
        after=error.after,
        limit=measured.limit,
    )
    return Verdict(tr("Target registration error"), error.after, level, meaning, error.before)


def _dice(measured: Measured) -> Verdict | None:
    dice = mean_change(segment.dice for segment in measured.segments)
    if not math.isfinite(dice.after):
        return None
    level = GREEN if dice.after >= 0.8 else AMBER if dice.after >= 0.7 else RED
    meaning = tr(
        "mean {before:.3f} -> {after:.3f} (0.8: as experts among themselves; 0.7: good)",
        before=dice.before,
        after=dice.after,
    )
    return Verdict(tr("Dice"), dice.after, RED if dice.after < dice.before else level, meaning, dice.before)


def _hd95(measured: Measured) -> Verdict | None:
    return _progress(tr("HD95"), mean_change(segment.hd95 for segment in measured.segments), rising=False)


def _level_of_distance(value: float, limit: float) -> str:
    return GREEN if value <= limit else AMBER if value <= 2 * limit else RED


def _progress(measure: Sentence, change: Change, rising: bool) -> Verdict | None:
    """Judge a measure without a published limit by whether it got better."""
    if not (math.isfinite(change.before) and math.isfinite(change.after)):
        return None
    numbers = {"before": change.before, "after": change.after}
    gain = (change.after - change.before) * (1 if rising else -1)
    if gain > 0:
        level, meaning = GREEN, tr("better: {before:.3f} -> {after:.3f}", **numbers)
    elif gain == 0:
        level, meaning = AMBER, tr("unchanged: {before:.3f} -> {after:.3f}", **numbers)
    else:
        level, meaning = RED, tr("worse: {before:.3f} -> {after:.3f}", **numbers)
    return Verdict(measure, change.after, level, meaning, change.before)


#: Every verdict by its measure, in the order of the report.
VERDICTS = {
    "Folding": VerdictEntry("no point", "fewer than 0.1 % of the points", _folding),
    "Inverse consistency": VerdictEntry(
        "95 % of the points within the longest voxel edge, at least 2 mm", "within twice that", _inverse_consistency
    ),
    "Mutual information": VerdictEntry("higher than before", "unchanged", _mutual_information),
    "Target registration error": VerdictEntry(
        "mean within the longest voxel edge, at least 2 mm, and not above before",
        "within twice that, and not above before",
        _target_registration_error,
    ),
    "Dice": VerdictEntry("mean at least 0.8, and not below before", "at least 0.7, and not below before", _dice),
    "HD95": VerdictEntry("mean lower than before", "unchanged", _hd95),
}
