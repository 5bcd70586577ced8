"""What Review shows and enables, decided without a scene: what excludes each other, what has no data, what is said."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from IconRegistrationLib.mrml.registration import RegistrationRequest, ResultNodes
from IconRegistrationLib.quality.report import Row
from IconRegistrationLib.quality.verdicts import Verdict
from IconRegistrationLib.ui import choices
from IconRegistrationLib.ui.reviewing import TrustRow, View, controls, possible, trust_card, view_of


def segmentation(*identifiers):
    """Of a segmentation node, what is asked: which segments there are."""
    return SimpleNamespace(GetSegmentation=lambda: SimpleNamespace(GetSegmentIDs=lambda: identifiers))


REQUEST = RegistrationRequest(
    "fixed", "moving", fixed_segmentation=segmentation("a"), moving_segmentation=segmentation("a", "b")
)
OUTPUTS = ResultNodes(
    forward="forward",
    backward="backward",
    warped_volume="warped",
    warped_segmentation=segmentation("a"),
    jacobian="jacobian",
    distrust="distrust",
    report=SimpleNamespace(),
)
#: Everything at once, as far as it goes together.
ALL = View(shown="live", amount=0.3, deformation="grid", overlay="folding", outlines=True, labels=("a", "b"))


def shown(view, request=REQUEST, outputs=OUTPUTS) -> View:
    return possible(view, request, outputs)


def test_what_goes_together_is_left_as_it_is():
    assert shown(View()) == View()
    assert shown(ALL) == ALL


@pytest.mark.parametrize("wanted", [{"linked_cursor": True}, {"comparison": "checkerboard"}, {"comparison": "curtain"}])
def test_what_needs_the_moving_scan_in_its_place_shows_resampled_data(wanted):
    view = shown(View(shown="live", swap=True, amount=0.5, **wanted))
    assert view == View(shown="resampled", amount=1.0, **wanted)


def test_the_other_direction_is_live_and_carries_no_labels():
    view = shown(View(shown="resampled", swap=True, amount=0.5, labels=("a",)))
    assert view == View(shown="live", swap=True, amount=0.5)


def test_the_amount_acts_on_what_lies_under_the_transform():
    assert shown(View(amount=0.5)).amount == 1
    assert shown(View(amount=0.5, labels=("a",))).amount == 0.5
    assert shown(View(amount=0.5, shown="live")).amount == 0.5


def test_segments_that_are_gone_are_not_shown():
    assert shown(View(labels=("a", "gone"))).labels == ("a",)
    assert shown(View(labels=("a",)), replace(REQUEST, moving_segmentation=None)).labels == ()


def test_without_resampled_data_everything_is_live():
    bare = replace(OUTPUTS, warped_volume=None)
    for comparison in ("checkerboard", "curtain"):
        view = shown(View(comparison=comparison, linked_cursor=True), outputs=bare)
        assert view == View(shown="live", comparison="blend")
    assert shown(View(comparison="flicker"), outputs=bare).comparison == "flicker"


@pytest.mark.parametrize(
    ("name", "wanted", "left"),
    [
        ("backward", {"swap": True}, View()),
        ("distrust", {"overlay": "distrust"}, View()),
        ("jacobian", {"overlay": "folding"}, View()),
        ("jacobian", {"overlay": "distrust"}, View(overlay="distrust")),
        ("warped_segmentation", {"outlines": True}, View()),
        ("warped_segmentation", {"outlines": True, "shown": "live"}, View(outlines=True, shown="live")),
    ],
)
def test_what_has_no_data_is_not_shown(name, wanted, left):
    assert shown(View(**wanted), outputs=replace(OUTPUTS, **{name: None})) == left


def test_whatever_is_wanted_what_is_possible_stays_possible():
    for without in (None, "backward", "warped_volume", "warped_segmentation", "jacobian", "distrust"):
        outputs = replace(OUTPUTS, **{without: None}) if without else OUTPUTS
        for comparison in choices.Comparison:
            for data in choices.Shown:
                for cursor in (False, True):
                    for swap in (False, True):
                        wanted = replace(ALL, shown=data.word, comparison=comparison.word)
                        view = shown(replace(wanted, linked_cursor=cursor, swap=swap), outputs=outputs)
                        assert shown(view, outputs=outputs) == view
                        assert not (view.linked_cursor and view.shown == "live")
                        assert not (view.swap and view.shown == "resampled")


def test_controls_that_would_do_nothing_are_disabled():
    assert not any(controls(None, None, ResultNodes()).values())
    every = controls(shown(ALL), REQUEST, OUTPUTS)
    assert all(every.values())
    assert not controls(shown(View()), REQUEST, OUTPUTS)["warpAmountSlider"]
    assert not controls(shown(View()), REQUEST, OUTPUTS)["lineWidthSpinBox"]
    bound = controls(shown(View(linked_cursor=True)), REQUEST, OUTPUTS)
    assert (bound["shownComboBox"], bound["swapCheckBox"], bound["linkedCursorCheckBox"]) == (False, False, True)
    swapped = controls(shown(View(swap=True)), REQUEST, OUTPUTS)
    assert (swapped["shownComboBox"], swapped["swapCheckBox"], swapped["labelsList"]) == (False, True, False)
    bare = ResultNodes(forward="forward", warped_volume="warped")
    few = controls(shown(View(), outputs=bare), RegistrationRequest("fixed", "moving"), bare)
    on = {name for name, enabled in few.items() if enabled}
    assert on == {
        *("runAgainButton", "shownComboBox", "compareComboBox", "blendSlider", "cellsSlider", "curtainSlider"),
        *("curtainComboBox", "linkedCursorCheckBox", "deformationComboBox"),
    }


def test_the_panels_parameters_as_a_view():
    panel = SimpleNamespace(
        shown=choices.Shown.LIVE,
        swap=True,
        warpAmount=40.0,
        comparison=choices.Comparison.CURTAIN,
        blend=25.0,
        cells=7.6,
        curtainDirection=choices.CurtainDirection.SUPERIOR_INFERIOR,
        curtain=10.0,
        linkedCursor=True,
        deformation=choices.Deformation.GLYPHS,
        deformationSpacing=3.0,
        lineWidth=2,
        deformationIn3D=True,
        overlay=choices.Overlay.DISTRUST,
        outlines=True,
        labels='["a"]',
    )
    seen = View(
        "live", True, 0.4, "curtain", 0.25, 8, "S-I", 0.1, True, "glyphs", 3.0, 2, True, "distrust", True, ("a",)
    )
    assert view_of(panel) == seen


def test_the_trust_card_says_verdicts_first_and_leaves_out_what_is_unknown():
    verdicts = [
        Verdict("Folding", 3.0, "red", "No voxel may be folded."),
        Verdict("Dice", 0.91234, "amber", "Above 0.95 is good.", before=0.5),
    ]
    rows = [Row("segments", "liver", "Dice", "", 0.5, 0.9), Row("landmarks", "", "mean", "mm", math.nan, 1.5)]
    card = trust_card(SimpleNamespace(verdicts=verdicts, rows=lambda: rows))
    assert card == [
        TrustRow(("Folding", "", "3", "do not trust"), "red", "No voxel may be folded."),
        TrustRow(("Dice", "0.5", "0.9123", "look closely"), "amber", "Above 0.95 is good."),
        TrustRow(("liver: Dice", "0.5", "0.9", "")),
        TrustRow(("mean [mm]", "", "1.5", "")),
    ]
    assert trust_card(None) == []
