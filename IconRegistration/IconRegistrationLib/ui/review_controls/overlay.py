"""Lay over the images where the result cannot be trusted."""

from __future__ import annotations

from ...mrml import review as scene_review
from ...mrml.registration import RegistrationRequest, ResultNodes
from ...text import tr
from ..choices import Choice
from ..control import Control, View
from ..reviewing import Review

#: Overlay -> the result node that it is made of, by the name of the argument of `trust_overlay` and of `ResultNodes`.
_VOLUMES = {"distrust": "distrust", "folding": "jacobian"}
_KEY = "overlay"


class Overlay(Choice):
    """What is laid over the images."""

    NONE = "none", tr("None")
    DISTRUST = "distrust", tr("Local distrust [mm]")
    FOLDING = "folding", tr("Folding")


def _possible_overlay(view: View, request: RegistrationRequest, nodes: ResultNodes) -> str:
    has_data = view.overlay in _VOLUMES and getattr(nodes, _VOLUMES[view.overlay]) is not None
    return view.overlay if has_data else "none"


def show_overlay(review: Review) -> None:
    """Show the overlay of the view; its label map is made once."""
    kind = review.view.overlay
    if kind != "none" and (_KEY, kind) not in review.kept:
        volumes = {_VOLUMES[kind]: getattr(review.nodes, _VOLUMES[kind])}
        review.kept[_KEY, kind] = scene_review.trust_overlay(review.restore_point, **volumes)
    scene_review.show_overlay(review.restore_point, review.composites(), review.kept.get((_KEY, kind)))


CONTROLS = (
    Control(
        name="overlay",
        parameter="overlay",
        kind=Overlay,
        default=Overlay.NONE,
        widget="overlayComboBox",
        value=lambda choice: choice.word,
        possible=_possible_overlay,
        enabled=lambda view, request, nodes: nodes.distrust is not None or nodes.jacobian is not None,
        show=show_overlay,
        follows=("linked_cursor",),
    ),
)
