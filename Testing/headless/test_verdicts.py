"""quality/verdicts.py: the table of verdicts is the seam; what reads a report follows, in every language."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib import text
from IconRegistrationLib.plain import to_plain
from IconRegistrationLib.quality import verdicts
from IconRegistrationLib.quality.report import Report
from IconRegistrationLib.quality.values import (
    Change,
    Deformation,
    Folding,
    LandmarkQuality,
    SegmentQuality,
    Similarity,
    Spread,
)
from IconRegistrationLib.quality.verdicts import AMBER, GREEN, RED, VERDICTS, Measured, Verdict, VerdictEntry
from IconRegistrationLib.text import Sentence, tr

NOTHING = Change(math.nan, math.nan)
SOME = Change(1.0, 1.5)
GOOD = Spread(0.5, 0.5, 1.0, 2.0)


def measured(folds=0.0, error=1.0, information=SOME, tre=None, dice=None, hd95=NOTHING, voxel=1.0) -> Measured:
    folding = Folding(math.ceil(1e4 * folds), folds, 0.5, (1.0, 2.0, 3.0))
    return Measured(
        Similarity(NOTHING, information, NOTHING),
        () if dice is None else (SegmentQuality("a", dice, hd95, 1.0, 1.0, 1.0),),
        () if tre is None else (LandmarkQuality("a", tre),),
        Deformation(folding, 0.1, GOOD, replace(GOOD, percentile95=error)),
        voxel,
    )


def levels(found: Measured) -> dict[str, str]:
    return {verdict.measure: verdict.level for verdict in verdicts.verdicts_of(found)}


def report_of(found: Measured) -> Report:
    return Report(found.similarity, found.segments, found.landmarks, found.deformation, verdicts.verdicts_of(found))


@pytest.mark.parametrize(
    ("measure", "changed", "level"),
    [
        ("Folding", {}, GREEN),
        ("Folding", {"folds": 0.0009}, AMBER),
        ("Folding", {"folds": 0.001}, RED),
        ("Inverse consistency", {"error": 2.0}, GREEN),
        ("Inverse consistency", {"error": 2.1}, AMBER),
        ("Inverse consistency", {"error": 2.1, "voxel": 3.0}, GREEN),
        ("Inverse consistency", {"error": 4.1}, RED),
        ("Inverse consistency", {"error": math.nan}, None),
        ("Mutual information", {"information": Change(1.0, 1.0)}, AMBER),
        ("Mutual information", {"information": Change(1.5, 1.0)}, RED),
        ("Mutual information", {"information": NOTHING}, None),
        ("Target registration error", {"tre": Change(5.0, 2.0)}, GREEN),
        ("Target registration error", {"tre": Change(5.0, 4.0)}, AMBER),
        ("Target registration error", {"tre": Change(5.0, 4.5)}, RED),
        ("Target registration error", {"tre": Change(1.0, 1.5)}, RED),
        ("Target registration error", {}, None),
        ("Dice", {"dice": Change(0.5, 0.8)}, GREEN),
        ("Dice", {"dice": Change(0.5, 0.7)}, AMBER),
        ("Dice", {"dice": Change(0.5, 0.69)}, RED),
        ("Dice", {"dice": Change(0.95, 0.9)}, RED),
        ("HD95", {"dice": SOME, "hd95": Change(3.0, 2.0)}, GREEN),
        ("HD95", {"dice": SOME, "hd95": Change(3.0, 3.0)}, AMBER),
        ("HD95", {"dice": SOME, "hd95": Change(2.0, 3.0)}, RED),
        ("HD95", {}, None),
    ],
)
def test_limits(measure, changed, level):
    assert levels(measured(**changed)).get(measure) == level


def test_the_table_of_the_documentation_is_that_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "quality.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", page, re.MULTILINE)[1:]
    assert rows == [(measure, entry.green, entry.amber) for measure, entry in VERDICTS.items()]


def test_every_verdict_has_the_name_of_its_entry():
    found = measured(tre=SOME, dice=SOME, hd95=SOME)
    assert [v.measure for v in verdicts.verdicts_of(found)] == list(VERDICTS)


def test_a_verdict_of_ones_own_is_in_every_report(monkeypatch, tmp_path):
    """A limit for the displacement, by one entry of the table."""

    def judge(found: Measured) -> Verdict:
        largest = found.deformation.displacement.maximum
        return Verdict(tr("Displacement"), largest, AMBER, tr("up to {largest:.1f} mm", largest=largest))

    monkeypatch.setitem(VERDICTS, "Displacement", VerdictEntry("never", "always", judge))
    report = report_of(measured())
    assert "AMBER Displacement: up to 2.0 mm" in report.table()
    report.write_json(tmp_path / "report.json")
    last = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["verdicts"][-1]
    assert (last["measure"], last["level"], last["meaning"]) == ("Displacement", "amber", "up to 2.0 mm")
    assert last["sentence"]["template"] == "up to {largest:.1f} mm"
    assert last["sentence"]["values"] == {"largest": 2.0}


def test_a_report_is_sent_in_english_and_read_in_the_language_of_the_reader():
    report = report_of(measured(tre=SOME, dice=SOME, hd95=SOME))
    sent = json.dumps(to_plain(report))
    text.set_translator(lambda context, template: f"<{template}>")
    try:
        read = Report.from_plain(json.loads(sent))
        assert all(v.measure.startswith("<") and v.meaning.startswith("<") for v in read.verdicts)
        assert "<worse: 1.000 -> 1.500>" in [v.meaning for v in read.verdicts]
        assert all(row.measure.startswith("<") for row in read.rows())
        assert verdicts.level_in_words(RED) == "<do not trust>"
        assert read.to_dict()["verdicts"] == report.to_dict()["verdicts"]  # English for programs
        assert read.table()
    finally:
        text.set_translator(None)
    again = Report.from_plain(json.loads(sent))
    assert again.verdicts == report.verdicts
    assert all(isinstance(v.meaning, Sentence) for v in again.verdicts)


def test_the_csv_is_english_in_every_language(tmp_path):
    report = report_of(measured(tre=SOME, dice=SOME))
    report.write_csv(tmp_path / "english.csv")
    text.set_translator(lambda context, template: f"<{template}>")
    try:
        report.write_csv(tmp_path / "other.csv")
    finally:
        text.set_translator(None)
    assert (tmp_path / "other.csv").read_bytes() == (tmp_path / "english.csv").read_bytes()


def test_a_report_of_0_1_still_loads():
    """It held plain strings, as asdict and JSON made them."""
    plain = to_plain(report_of(measured()))
    for verdict in plain["verdicts"]:
        verdict.update(measure="Folding", meaning="none; the smallest Jacobian is 0.50")
    read = Report.from_plain(json.loads(json.dumps(plain)))
    assert {v.meaning for v in read.verdicts} == {"none; the smallest Jacobian is 0.50"}
    assert np.isfinite(read.deformation.folding.minimum)
