"""Outline the segments that should coincide."""

from __future__ import annotations

from typing import Any

from ...mrml import review as scene_review
from ...mrml.registration import RegistrationRequest, ResultNodes
from ..control import Control, View
from ..reviewing import Review, displays_of


def outlined(view: View, request: RegistrationRequest, nodes: ResultNodes) -> tuple[Any, Any]:
    """Return the two segmentation nodes to be outlined over the images; None for a missing one."""
    if view.swap:
        return request.moving_segmentation, request.fixed_segmentation
    if view.shown == "live":
        return request.fixed_segmentation, request.moving_segmentation
    return request.fixed_segmentation, nodes.warped_segmentation


def _can_be_outlined(view: View, request: RegistrationRequest, nodes: ResultNodes) -> bool:
    return None not in outlined(view, request, nodes)


def show_outlines(review: Review) -> None:
    """Show outlines in the slice views, or nothing; filled segments would hide the images."""
    request, nodes = review.request, review.nodes
    for display in displays_of(request.fixed_segmentation, request.moving_segmentation, nodes.warped_segmentation):
        review.restore_point.restore(display)
        review.restore_point.change(display, "Visibility2D", False)
    if review.view.outlines:
        scene_review.show_outlines(review.restore_point, *outlined(review.view, request, nodes))


CONTROLS = (
    Control(
        name="outlines",
        parameter="outlines",
        kind=bool,
        default=False,
        widget="outlinesCheckBox",
        possible=lambda view, request, nodes: view.outlines and _can_be_outlined(view, request, nodes),
        enabled=_can_be_outlined,
        show=show_outlines,
        follows=("shown", "swap"),
    ),
)
