"""Show a part of the deformation."""

from __future__ import annotations

from typing import Annotated

from slicer.parameterNodeWrapper import WithinRange

from ...mrml import review as scene_review
from ...mrml.registration import RegistrationRequest, ResultNodes
from ..control import Control, View
from ..reviewing import Review

#: What the slider and its parameter call all of the deformation.
FULL_WARP = 100.0


def _possible_amount(view: View, request: RegistrationRequest, nodes: ResultNodes) -> float:
    """Return all of it unless something is transformed live: only that can be warped in part."""
    return 1.0 if view.shown == "resampled" and not view.labels else view.amount


def set_amount(review: Review) -> None:
    """Scale what is shown under the transforms."""
    for transform in review.copies.values():
        scene_review.set_warp_amount(transform, review.view.amount)


CONTROLS = (
    Control(
        name="amount",
        parameter="warpAmount",
        kind=Annotated[float, WithinRange(0, FULL_WARP)],
        default=FULL_WARP,
        widget="warpAmountSlider",
        value=lambda percent: percent / FULL_WARP,
        possible=_possible_amount,
        enabled=lambda view, request, nodes: view.shown == "live" or bool(view.labels),
        show=set_amount,
    ),
)
