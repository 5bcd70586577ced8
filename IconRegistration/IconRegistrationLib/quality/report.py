"""Report on a registration: numbers before and after, verdicts; as a table, JSON and CSV.

quality/measures.py measures it. No torch here: Slicer's own process shows reports.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, field

import numpy as np

from ..io.writing import atomic_file, writable
from ..plain import from_plain, to_plain
from ..text import Sentence, english, tr
from .values import Change, Deformation, LandmarkQuality, SegmentQuality, Similarity, mean_change, pair_of
from .verdicts import Verdict

#: Rows per group that a terminal gets to see, the worst first.
TABLE_ROWS = 20


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
        return mean_change(s.dice for s in self.segments)

    @property
    def hd95(self) -> Change:
        """Mean over the segments, mm."""
        return mean_change(s.hd95 for s in self.segments)

    @property
    def target_registration_error(self) -> Change:
        """Mean over the landmarks, mm."""
        return mean_change(landmark.error for landmark in self.landmarks)

    def rows(self) -> list[Row]:
        """Return every number once, in the order of the table."""
        images, segments, landmarks, deformation = tr("Images"), tr("Segments"), tr("Landmarks"), tr("Map")
        mean, median, maximum = tr("mean"), tr("median"), tr("max")
        dice, hd95, error = tr("Dice"), tr("HD95"), tr("target registration error")
        rows = [
            Row(images, "", tr("correlation"), "", *pair_of(self.similarity.ncc)),
            Row(images, "", tr("normalised mutual information"), "", *pair_of(self.similarity.mutual_information)),
            Row(images, "", tr("overlap"), "", *pair_of(self.similarity.overlap)),
        ]
        if self.segments:
            rows += [
                Row(segments, mean, dice, "", *pair_of(self.dice)),
                Row(segments, mean, hd95, "mm", *pair_of(self.hd95)),
            ]
        for s in self.segments:
            rows += [
                Row(segments, s.name, dice, "", *pair_of(s.dice)),
                Row(segments, s.name, hd95, "mm", *pair_of(s.hd95)),
                Row(segments, s.name, tr("volume, fixed and mapped"), "mm3", s.fixed_mm3, s.mapped_mm3),
                Row(segments, s.name, tr("volume ratio"), "", None, s.volume_ratio),
                Row(segments, s.name, tr("volume in the moving segmentation"), "mm3", None, s.moving_mm3),
            ]
        if self.landmarks:
            errors = np.array([pair_of(landmark.error) for landmark in self.landmarks])
            for name, function in ((mean, np.mean), (median, np.median), (maximum, np.max)):
                before, after = (float(v) for v in function(errors, axis=0))
                rows.append(Row(landmarks, name, error, "mm", before, after))
        for landmark in self.landmarks:
            rows.append(Row(landmarks, landmark.label, error, "mm", *pair_of(landmark.error)))
        d = self.deformation
        rows += [
            Row(deformation, "", tr("folding, share"), "", None, d.folding.share),
            Row(deformation, "", tr("folding, lattice points"), "", None, d.folding.count),
            Row(deformation, "", tr("smallest Jacobian"), "", None, d.folding.minimum),
            Row(deformation, "", tr("spread of the log Jacobian"), "", None, d.log_jacobian_sd),
        ]
        spreads = ((tr("displacement"), d.displacement), (tr("inverse consistency"), d.inverse_consistency))
        for measure, spread in spreads:
            for name, value in zip((mean, median, tr("95 %"), maximum), vars(spread).values(), strict=True):
                rows.append(Row(deformation, name, measure, "mm", None, value))
        return rows

    def table(self) -> str:
        """Return text for a terminal: per group the means, then the worst segments and landmarks."""
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
                    numbers = [_text(v, 8) for v in (*pair_of(dice), *pair_of(hd95))]
                    lines.append(f"  {name[:30]:<30}{'  '.join(numbers)}  {'' if ratio is None else _text(ratio, 7)}")
        if self.landmarks:
            lines.append(f"Landmarks ({len(self.landmarks)}), target registration error")
            means = [row for row in self.rows() if english(row.group) == "Landmarks"][:3]
            worst = sorted(self.landmarks, key=lambda landmark: -landmark.error.after)
            for name, error, _, _ in _limited(
                [
                    (row.name, Change(math.nan if row.before is None else row.before, row.after), None, None)
                    for row in means
                ],
                [(landmark.label, landmark.error, None, None) for landmark in worst],
            ):
                lines.append(f"  {error}" if name is None else _line(name, "mm", *pair_of(error)))
        lines.append("Map")
        for row in self.rows():
            if english(row.group) == "Map":
                lines.append(_line(f"{row.measure} {row.name}".strip(), row.unit, row.before, row.after))
        if self.deformation.folding.count:
            x, y, z = self.deformation.folding.place
            lines.append(f"  worst folding at ({x:.1f}, {y:.1f}, {z:.1f}) mm, LPS")
        lines.append("Verdict")
        lines += [f"  {v.level.upper():<6}{v.measure}: {v.meaning}" for v in self.verdicts]
        return "\n".join(lines)

    __str__ = table

    @classmethod
    def from_plain(cls, plain: dict) -> Report:
        """Make a report of what `plain.to_plain` made of it, in the language of this process; NaN and infinity stay.

        0.1 wrote strings in place of sentences; they stay what they are.
        """
        return from_plain(cls, plain)

    def to_dict(self) -> dict:
        """Return nested values that JSON can hold: NaN and infinity become None."""
        d = self.deformation
        return to_plain(
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
                "verdicts": [_verdict_to_dict(v) for v in self.verdicts],
                "provenance": self.provenance,
            },
            strict=True,
        )

    def write_json(self, path) -> None:
        """Write `to_dict` as JSON. Raises InputError if the path cannot be written to."""
        path = writable(path, (".json",))
        with atomic_file(path) as partial:
            partial.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")

    def write_csv(self, path) -> None:
        """Write a line per measure and segment or landmark: group, name, measure, unit, before, after."""
        path = writable(path, (".csv",))
        with atomic_file(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["group", "name", "measure", "unit", "before", "after"])
            for row in self.rows():
                values = ["" if v is None or not math.isfinite(v) else repr(float(v)) for v in (row.before, row.after)]
                words = (english(word) for word in (row.group, row.name, row.measure))
                writer.writerow([*words, row.unit, *values])


def _verdict_to_dict(verdict: Verdict) -> dict:
    """Return the fields; "sentence" holds template and values of the meaning, for translations."""
    sentence = {"sentence": verdict.meaning.to_plain()} if isinstance(verdict.meaning, Sentence) else {}
    return vars(verdict) | sentence


def _worst_dice_first(segment: SegmentQuality) -> float:
    return segment.dice.after if math.isfinite(segment.dice.after) else 2.0


def _limited(summary: list[tuple], rows: list[tuple]) -> list[tuple]:
    """Keep all of the summary, the first of the rows, and a line (with None for a name) that counts the rest."""
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
