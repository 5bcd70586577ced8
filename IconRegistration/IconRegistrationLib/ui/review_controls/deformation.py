"""Draw the deformation as a grid, arrows or contours."""

from __future__ import annotations

from typing import Annotated

from slicer.parameterNodeWrapper import WithinRange

from ...mrml import review as scene_review
from ...mrml.registration import RegistrationRequest, ResultNodes
from ...text import tr
from ..choices import Choice
from ..control import Control, View
from ..reviewing import Review


class Deformation(Choice):
    """How the deformation is drawn."""

    NONE = "none", tr("Hidden")
    GRID = "grid", tr("Grid")
    GLYPHS = "glyphs", tr("Arrows")
    CONTOURS = "contours", tr("Contours")


def _is_drawn(view: View, request: RegistrationRequest, nodes: ResultNodes) -> bool:
    return view.deformation != "none"


def show_deformation(review: Review) -> None:
    """Draw the deformation as the view says, or not at all."""
    view = review.view
    for transform in review.copies.values():
        review.restore_point.restore(transform.GetDisplayNode())
    if view.deformation != "none":
        scene_review.show_deformation(
            review.restore_point,
            review.transform,
            view.deformation,
            review.sides()[0][0],
            spacing=view.deformation_spacing or None,
            line_width=view.line_width or None,
            in_3d=view.deformation_in_3d,
        )


CONTROLS = (
    Control(
        name="deformation",
        parameter="deformation",
        kind=Deformation,
        default=Deformation.NONE,
        widget="deformationComboBox",
        value=lambda choice: choice.word,
        show=show_deformation,
        follows=("swap",),
    ),
    Control(
        name="deformation_spacing",
        parameter="deformationSpacing",
        kind=Annotated[float, WithinRange(0, 100)],
        default=0.0,
        widget="deformationSpacingSpinBox",
        enabled=_is_drawn,
        show=show_deformation,
    ),
    Control(
        name="line_width",
        parameter="lineWidth",
        kind=Annotated[int, WithinRange(0, 10)],
        default=0,
        widget="lineWidthSpinBox",
        enabled=_is_drawn,
        show=show_deformation,
    ),
    Control(
        name="deformation_in_3d",
        parameter="deformationIn3D",
        kind=bool,
        default=False,
        widget="deformationIn3DCheckBox",
        enabled=_is_drawn,
        show=show_deformation,
    ),
)
