"""The lists of segments with a box to tick, and the roles of the segments."""

from __future__ import annotations

from functools import partial
from typing import Any

from . import choices
from .panel import Panel
from .role_boxes import enable_role_boxes
from .tick_list import fill_ticks, segment_names, ticks


class SegmentLists:
    """Shows the segments of both segmentations and of the labels that are warped live, ticked as remembered."""

    def __init__(self, panel: Panel):
        self._panel, ui = panel, panel.ui
        #: Parameter that remembers ticked segments -> the list that shows them.
        self._lists = {
            "fixedSegments": ui.fixedSegmentsList,
            "movingSegments": ui.movingSegmentsList,
            "labels": ui.labelsList,
        }
        self._is_filling = False
        for parameter, widget in self._lists.items():
            widget.setMaximumHeight(110)
            widget.connect("itemChanged(QListWidgetItem*)", partial(self.on_ticked, parameter))
        for parameter, selector in (
            ("fixedSegments", ui.fixedSegmentationSelector),
            ("movingSegments", ui.movingSegmentationSelector),
        ):
            selector.connect("nodeActivated(vtkMRMLNode*)", partial(self.on_segmentation_chosen, parameter))

    def refresh(self) -> None:
        """Show the segments that there are, and the roles that they can have."""
        p, ui = self._panel.parameters, self._panel.ui
        self._is_filling = True
        try:
            for parameter, node in (
                ("fixedSegments", p.fixedSegmentation),
                ("movingSegments", p.movingSegmentation),
                ("labels", self._panel.review.labelled),
            ):
                names = segment_names(node)
                chosen = choices.chosen_segments(getattr(p, parameter))
                if chosen is None:
                    chosen = [] if parameter == "labels" else list(names)
                fill_ticks(self._lists[parameter], names, chosen)
        finally:
            self._is_filling = False
        has_segments = p.fixedSegmentation is not None or p.movingSegmentation is not None
        for widget in (ui.segmentsLabel, ui.fixedSegmentsList, ui.movingSegmentsList, ui.rolesLabel, ui.rolesWidget):
            widget.setVisible(has_segments)
        enable_role_boxes(ui, p.fixedSegmentation is not None, p.movingSegmentation is not None)

    def on_segmentation_chosen(self, parameter: str, node: Any = None) -> None:
        """Take all segments; the ticks were those of another segmentation."""
        setattr(self._panel.parameters, parameter, "")

    def on_ticked(self, parameter: str, item: Any = None) -> None:
        """Remember the ticked segments."""
        if self._is_filling:
            return
        there, ticked = ticks(self._lists[parameter])
        meaning_of_empty = [] if parameter == "labels" else there
        setattr(self._panel.parameters, parameter, choices.remembered_segments(ticked, meaning_of_empty))
