"""What Review shows and enables, decided without a scene: what excludes each other, what has no data, what is said."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from IconRegistrationLib.mrml.registration import RegistrationRequest, ResultNodes
from IconRegistrationLib.quality.report import Row
from IconRegistrationLib.quality.verdicts import Verdict
from IconRegistrationLib.ui.control import View
from IconRegistrationLib.ui.review_controls import controls, deformation, images, overlay
from IconRegistrationLib.ui.reviewing import enabled_widgets, possible, view_of
from IconRegistrationLib.ui.trust_card import TrustRow, trust_card


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


def a_view(**values) -> View:
    """The view of the controls' defaults, with other values."""
    return view_of(SimpleNamespace(**{control.parameter: control.default for control in controls()})).but(**values)


#: Everything at once, as far as it goes together.
ALL = a_view(shown="live", amount=0.3, deformation="grid", overlay="folding", outlines=True, labels=("a", "b"))


def shown(view, request=REQUEST, outputs=OUTPUTS) -> View:
    return possible(view, request, outputs)


def test_what_goes_together_is_left_as_it_is():
    assert shown(a_view()) == a_view()
    assert shown(ALL) == ALL


@pytest.mark.parametrize("wanted", [{"linked_cursor": True}, {"comparison": "checkerboard"}, {"comparison": "curtain"}])
def test_what_needs_the_moving_scan_in_its_place_shows_resampled_data(wanted):
    view = shown(a_view(shown="live", swap=True, amount=0.5, **wanted))
    assert view == a_view(shown="resampled", amount=1.0, **wanted)


def test_the_other_direction_is_live_and_carries_no_labels():
    view = shown(a_view(shown="resampled", swap=True, amount=0.5, labels=("a",)))
    assert view == a_view(shown="live", swap=True, amount=0.5)


def test_the_amount_acts_on_what_lies_under_the_transform():
    assert shown(a_view(amount=0.5)).amount == 1
    assert shown(a_view(amount=0.5, labels=("a",))).amount == 0.5
    assert shown(a_view(amount=0.5, shown="live")).amount == 0.5


def test_segments_that_are_gone_are_not_shown():
    assert shown(a_view(labels=("a", "gone"))).labels == ("a",)
    assert shown(a_view(labels=("a",)), replace(REQUEST, moving_segmentation=None)).labels == ()


def test_without_resampled_data_everything_is_live():
    bare = replace(OUTPUTS, warped_volume=None)
    for comparison in ("checkerboard", "curtain"):
        view = shown(a_view(comparison=comparison, linked_cursor=True), outputs=bare)
        assert view == a_view(shown="live", comparison="blend")
    assert shown(a_view(comparison="flicker"), outputs=bare).comparison == "flicker"


@pytest.mark.parametrize(
    ("name", "wanted", "left"),
    [
        ("backward", {"swap": True}, a_view()),
        ("distrust", {"overlay": "distrust"}, a_view()),
        ("jacobian", {"overlay": "folding"}, a_view()),
        ("jacobian", {"overlay": "distrust"}, a_view(overlay="distrust")),
        ("warped_segmentation", {"outlines": True}, a_view()),
        ("warped_segmentation", {"outlines": True, "shown": "live"}, a_view(outlines=True, shown="live")),
    ],
)
def test_what_has_no_data_is_not_shown(name, wanted, left):
    assert shown(a_view(**wanted), outputs=replace(OUTPUTS, **{name: None})) == left


def test_whatever_is_wanted_what_is_possible_stays_possible():
    for without in (None, "backward", "warped_volume", "warped_segmentation", "jacobian", "distrust"):
        outputs = replace(OUTPUTS, **{without: None}) if without else OUTPUTS
        for comparison in images.Comparison:
            for data in images.Shown:
                for cursor in (False, True):
                    for swap in (False, True):
                        wanted = ALL.but(shown=data.word, comparison=comparison.word)
                        view = shown(wanted.but(linked_cursor=cursor, swap=swap), outputs=outputs)
                        assert shown(view, outputs=outputs) == view
                        assert not (view.linked_cursor and view.shown == "live")
                        assert not (view.swap and view.shown == "resampled")


def test_controls_that_would_do_nothing_are_disabled():
    assert not any(enabled_widgets(None, None, ResultNodes()).values())
    every = enabled_widgets(shown(ALL), REQUEST, OUTPUTS)
    assert all(every.values())
    assert not enabled_widgets(shown(a_view()), REQUEST, OUTPUTS)["warpAmountSlider"]
    assert not enabled_widgets(shown(a_view()), REQUEST, OUTPUTS)["lineWidthSpinBox"]
    bound = enabled_widgets(shown(a_view(linked_cursor=True)), REQUEST, OUTPUTS)
    assert (bound["shownComboBox"], bound["swapCheckBox"], bound["linkedCursorCheckBox"]) == (False, False, True)
    swapped = enabled_widgets(shown(a_view(swap=True)), REQUEST, OUTPUTS)
    assert (swapped["shownComboBox"], swapped["swapCheckBox"], swapped["labelsList"]) == (False, True, False)
    bare = ResultNodes(forward="forward", warped_volume="warped")
    few = enabled_widgets(shown(a_view(), outputs=bare), RegistrationRequest("fixed", "moving"), bare)
    on = {name for name, enabled in few.items() if enabled}
    assert on == {
        *("runAgainButton", "shownComboBox", "compareComboBox", "blendSlider", "cellsSlider", "curtainSlider"),
        *("curtainComboBox", "linkedCursorCheckBox", "deformationComboBox"),
    }


def test_the_panels_parameters_as_a_view():
    panel = SimpleNamespace(
        shown=images.Shown.LIVE,
        swap=True,
        warpAmount=40.0,
        comparison=images.Comparison.CURTAIN,
        blend=25.0,
        cells=7.6,
        curtainDirection=images.CurtainDirection.SUPERIOR_INFERIOR,
        curtain=10.0,
        linkedCursor=True,
        deformation=deformation.Deformation.GLYPHS,
        deformationSpacing=3.0,
        lineWidth=2,
        deformationIn3D=True,
        overlay=overlay.Overlay.DISTRUST,
        outlines=True,
        labels='["a"]',
    )
    assert view_of(panel) == View(
        shown="live",
        swap=True,
        amount=0.4,
        comparison="curtain",
        blend=0.25,
        cells=8,
        curtain_direction="S-I",
        curtain=0.1,
        linked_cursor=True,
        deformation="glyphs",
        deformation_spacing=3.0,
        line_width=2,
        deformation_in_3d=True,
        overlay="distrust",
        outlines=True,
        labels=("a",),
    )


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
