"""Compare the two images: which data, which direction, and blend, checkerboard, flicker or curtain."""

from __future__ import annotations

from typing import Annotated

import qt
from slicer.parameterNodeWrapper import WithinRange

from ...mrml import review as scene_review
from ...mrml.registration import RegistrationRequest, ResultNodes
from ...text import tr
from ..choices import Choice
from ..control import Control, View
from ..reviewing import Review, displays_of

#: Milliseconds for which flicker shows each image.
FLICKER_MS = 500
#: Of landmarks of the image that stays and of the one that is carried.
STILL_COLOR, CARRIED_COLOR = (1.0, 0.85, 0.1), (0.3, 0.9, 1.0)
#: Comparisons with a copy of the resampled volume into which holes are cut.
_CUT = ("checkerboard", "curtain")
_CUT_KEY, _TIMER_KEY = "cut volume", "flicker timer"


class Shown(Choice):
    """What of the moving data is shown."""

    RESAMPLED = "resampled", tr("Resampled")
    LIVE = "live", tr("Live, under the transform")


class Comparison(Choice):
    """How two images are laid over each other."""

    BLEND = "blend", tr("Blend")
    CHECKERBOARD = "checkerboard", tr("Checkerboard")
    FLICKER = "flicker", tr("Flicker")
    CURTAIN = "curtain", tr("Curtain")


class CurtainDirection(Choice):
    """From where to where the curtain is drawn."""

    RIGHT_LEFT = "R-L", tr("right to left")
    ANTERIOR_POSTERIOR = "A-P", tr("front to back")
    SUPERIOR_INFERIOR = "S-I", tr("top to bottom")


def _is_bound(view: View) -> bool:
    """Return whether the view needs the moving scan where it was, or its resampled volume."""
    return view.linked_cursor or view.comparison in _CUT


def _possible_comparison(view: View, request: RegistrationRequest, nodes: ResultNodes) -> str:
    return "blend" if nodes.warped_volume is None and view.comparison in _CUT else view.comparison


def _possible_swap(view: View, request: RegistrationRequest, nodes: ResultNodes) -> bool:
    return view.swap and nodes.backward is not None and not _is_bound(view)


def _possible_data(view: View, request: RegistrationRequest, nodes: ResultNodes) -> str:
    """Return the possible choices; nothing is resampled in the other direction: it is live."""
    if nodes.warped_volume is None or view.swap:
        return "live"
    return "resampled" if _is_bound(view) else view.shown


def lay_over(review: Review) -> None:
    """Lay the two images and their landmarks over each other."""
    still, carried = review.sides()
    if review.view.shown == "live":
        scene_review.show_carried(review.restore_point, review.composites(), still, carried, review.transform)
    else:
        for node in (*still, *carried):
            scene_review.take_out(review.restore_point, node)
        volumes = review.request.fixed, review.nodes.warped_volume
        scene_review.show_comparison(review.restore_point, review.composites(), *volumes)
    _show_landmarks(review)


def _show_landmarks(review: Review) -> None:
    """Show those that should coincide, in two colours; without names, which would hide the images."""
    request, nodes = review.request, review.nodes
    still, carried = request.fixed_landmarks, nodes.warped_landmarks
    if review.view.swap:
        still, carried = request.moving_landmarks, request.fixed_landmarks
    elif review.view.shown == "live":
        carried = request.moving_landmarks
    for display in displays_of(request.fixed_landmarks, request.moving_landmarks, nodes.warped_landmarks):
        node = display.GetDisplayableNode()
        review.restore_point.restore(display)
        review.restore_point.change(display, "Visibility", node in (still, carried))
        review.restore_point.change(display, "PointLabelsVisibility", False)
        review.restore_point.change(display, "SelectedColor", CARRIED_COLOR if node is carried else STILL_COLOR)
        if node is carried:
            review.restore_point.change(display, "GlyphScale", 0.6 * display.GetGlyphScale())  # both are seen


def compare(review: Review) -> None:
    """Show the comparison that the view asks for."""
    view, composites = review.view, review.composites()
    if view.comparison != "flicker":
        stop_flicker(review)
    if view.comparison in _CUT:
        _show_cut(review)
        return
    cut = review.kept.pop(_CUT_KEY, None)
    if cut is not None:
        review.restore_point.remove_hidden_nodes(cut.node)
    if view.comparison == "flicker":
        _start_flicker(review)
    else:
        scene_review.blend(review.restore_point, composites, view.blend)


def _show_cut(review: Review) -> None:
    view, composites = review.view, review.composites()
    if _CUT_KEY not in review.kept:
        review.kept[_CUT_KEY] = scene_review.cut_volume(review.restore_point, review.nodes.warped_volume)
    cut = review.kept[_CUT_KEY]
    if view.comparison == "checkerboard":
        scene_review.checkerboard(cut, view.cells)
    else:
        scene_review.curtain(cut, view.curtain_direction, view.curtain)
    for composite in composites:
        review.restore_point.change(composite, "ForegroundVolumeID", cut.node.GetID())
    scene_review.blend(review.restore_point, composites, 1.0)


def _start_flicker(review: Review) -> None:
    if _TIMER_KEY not in review.kept:
        timer = qt.QTimer()
        timer.interval = FLICKER_MS
        timer.connect("timeout()", lambda: scene_review.flicker(review.restore_point, review.composites()))
        timer.start()
        review.kept[_TIMER_KEY] = timer


def stop_flicker(review: Review) -> None:
    """End the flicker if there is one."""
    timer = review.kept.pop(_TIMER_KEY, None)
    if timer is not None:
        timer.stop()


CONTROLS = (
    Control(
        name="comparison",
        parameter="comparison",
        kind=Comparison,
        default=Comparison.BLEND,
        widget="compareComboBox",
        value=lambda choice: choice.word,
        possible=_possible_comparison,
    ),
    Control(
        name="swap",
        parameter="swap",
        kind=bool,
        default=False,
        widget="swapCheckBox",
        possible=_possible_swap,
        enabled=lambda view, request, nodes: nodes.backward is not None and not _is_bound(view),
    ),
    Control(
        name="shown",
        parameter="shown",
        kind=Shown,
        default=Shown.RESAMPLED,
        widget="shownComboBox",
        value=lambda choice: choice.word,
        possible=_possible_data,
        enabled=lambda view, request, nodes: nodes.warped_volume is not None and not _is_bound(view) and not view.swap,
        show=lay_over,
        follows=("swap", "comparison", "linked_cursor"),
    ),
    Control(
        name="blend",
        parameter="blend",
        kind=Annotated[float, WithinRange(0, 100)],
        default=50.0,
        widget="blendSlider",
        label="comparisonLabel",
        value=lambda percent: percent / 100,
        visible=lambda view: view.comparison == "blend",
        show=compare,
        follows=("comparison", "shown", "swap", "linked_cursor"),
        end=stop_flicker,
    ),
    Control(
        name="cells",
        parameter="cells",
        kind=Annotated[float, WithinRange(2, 32)],
        default=8.0,
        widget="cellsSlider",
        label="cellsLabel",
        value=round,
        visible=lambda view: view.comparison == "checkerboard",
        show=compare,
    ),
    Control(
        name="curtain_direction",
        parameter="curtainDirection",
        kind=CurtainDirection,
        default=CurtainDirection.RIGHT_LEFT,
        widget="curtainComboBox",
        value=lambda choice: choice.word,
        visible=lambda view: view.comparison == "curtain",
        show=compare,
    ),
    Control(
        name="curtain",
        parameter="curtain",
        kind=Annotated[float, WithinRange(0, 100)],
        default=50.0,
        widget="curtainSlider",
        label="curtainLabel",
        value=lambda percent: percent / 100,
        visible=lambda view: view.comparison == "curtain",
        show=compare,
    ),
)
