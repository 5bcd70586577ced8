"""The linked cursor: a second row of slice views, in which the moving scan lies where it was."""

from __future__ import annotations

from typing import Any

import slicer
import vtk

from ..mrml import review

#: The slice views of Slicer's usual layouts.
STANDARD_VIEWS = ("Red", "Green", "Yellow")


class LinkedCursor:
    """Each view of the lower row follows the crosshair to the point that corresponds; from being made until `end`.

    restore_point: remembers the views as they were.  moving: the volume node.  forward: the transform node.
    """

    def __init__(self, restore_point: review.SceneRestorePoint, moving: Any, forward: Any):
        self._restore_point, self._forward = restore_point, forward
        manager = slicer.app.layoutManager()
        self._layout = manager.layout  # the one to return to
        manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutThreeOverThreeView)
        upper_row, self._lower = (list(map(slice_logic, names)) for names in _rows())
        for logic, upper in zip(self._lower, upper_row, strict=True):
            node, composite = logic.GetSliceNode(), logic.GetSliceCompositeNode()
            restore_point.change(composite, "BackgroundVolumeID", moving.GetID())
            restore_point.change(composite, "ForegroundVolumeID", None)
            restore_point.change(composite, "LabelVolumeID", None)
            # Shift and the mouse move all views of a group to one point: these go to the corresponding one instead
            restore_point.change(node, "ViewGroup", 1)
            restore_point.change(node, "Orientation", upper.GetSliceNode().GetOrientation())
            logic.FitSliceToBackground()
        self._marker = review.cursor_marker(restore_point, self._slices())
        self._crosshair = restore_point.scene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        restore_point.change(self._crosshair, "CrosshairMode", slicer.vtkMRMLCrosshairNode.ShowBasic)
        self._observer = self._crosshair.AddObserver(vtk.vtkCommand.ModifiedEvent, self._follow)
        self._follow()

    def end(self) -> None:
        """Restore the views and the layout."""
        self._crosshair.RemoveObserver(self._observer)
        composites = [logic.GetSliceCompositeNode() for logic in self._lower]
        self._restore_point.restore(self._crosshair, *self._slices(), *composites)
        if self._marker.GetScene() is self._restore_point.scene:
            self._restore_point.remove_hidden_nodes(self._marker)
        slicer.app.layoutManager().setLayout(self._layout)

    def _follow(self, crosshair=None, event=None) -> None:
        point = review.corresponding_point(self._forward, self._crosshair.GetCrosshairRAS())
        review.place_cursor(self._marker, point, self._slices())

    def _slices(self) -> list:
        return [logic.GetSliceNode() for logic in self._lower]


def slice_logic(name: str) -> Any:
    """Return the slice logic of the view of that name."""
    return slicer.app.layoutManager().sliceWidget(name).sliceLogic()


def _rows() -> tuple[list[str], list[str]]:
    """Return the standard slice views of the present layout and the others, in its order: `sliceViewNames` has none."""
    nodes = slicer.app.layoutManager().layoutLogic().GetViewNodes()
    shown = [nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())]
    names = [node.GetLayoutName() for node in shown if node.IsA("vtkMRMLSliceNode")]
    return [n for n in names if n in STANDARD_VIEWS], [n for n in names if n not in STANDARD_VIEWS]
