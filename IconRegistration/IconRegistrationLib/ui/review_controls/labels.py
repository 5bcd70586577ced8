"""Warp ticked segments of the moving segmentation live."""

from __future__ import annotations

from ...mrml import review as scene_review
from ...mrml.registration import RegistrationRequest, ResultNodes
from ..choices import chosen_segments
from ..control import Control, View
from ..reviewing import Review

_KEY = "live segments"


def _possible_labels(view: View, request: RegistrationRequest, nodes: ResultNodes) -> tuple[str, ...]:
    """Return the segments that exist; none in the other direction."""
    if view.swap or request.moving_segmentation is None:
        return ()
    there = request.moving_segmentation.GetSegmentation().GetSegmentIDs()
    return tuple(identifier for identifier in view.labels if identifier in there)


def show_labels(review: Review) -> None:
    """Show the ticked segments under the forward transform."""
    identifiers = list(review.view.labels)
    if identifiers:
        review.kept[_KEY] = scene_review.live_segments(
            review.restore_point,
            review.request.moving_segmentation,
            identifiers,
            review.copies["forward"],
            review.kept.get(_KEY),
        )
    elif _KEY in review.kept:
        review.restore_point.remove_hidden_nodes(review.kept.pop(_KEY))


CONTROLS = (
    Control(
        name="labels",
        parameter="labels",
        kind=str,
        default="",
        widget="labelsList",
        value=lambda text: tuple(chosen_segments(text) or ()),
        possible=_possible_labels,
        enabled=lambda view, request, nodes: request.moving_segmentation is not None and not view.swap,
        show=show_labels,
    ),
)
