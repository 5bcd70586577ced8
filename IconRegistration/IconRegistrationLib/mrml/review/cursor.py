"""Show the corresponding point in the undeformed moving scan."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..transforms import array_from_matrix
from .amount import whole_transform
from .scene_restore_point import SceneRestorePoint


def corresponding_point(forward: Any, point: Any) -> np.ndarray:
    """Return where a point of the fixed image lies in the undeformed moving scan; both (x, y, z) in mm, RAS, world.

    By the whole map, whatever amount of it is shown. The world is where the moving scan is with its own linear
    parents, if it has any: that place was registered.
    """
    whole = whole_transform(forward)
    return np.array(whole.TransformPoint([float(x) for x in point]))


def cursor_marker(restore_point: SceneRestorePoint, slice_nodes: Any) -> Any:
    """Return a locked point without a label, seen only in the given slice views (those of the moving scan)."""
    marker = restore_point.add_hidden_node("vtkMRMLMarkupsFiducialNode", "Corresponding point")
    marker.SetLocked(True)
    display = marker.GetDisplayNode()
    display.SetPointLabelsVisibility(False)
    display.SetSelectedColor(1, 0.85, 0.1)
    display.SetViewNodeIDs([node.GetID() for node in slice_nodes])
    return marker


def place_cursor(marker: Any, point: Any, slice_nodes: Any) -> None:
    """Put the marker to `point` (mm, RAS, world) and the slice views on it, panned only where it were out of view."""
    point = [float(x) for x in point]
    if marker.GetNumberOfControlPoints() == 0:
        marker.AddControlPointWorld(point)
    else:
        marker.SetNthControlPointPositionWorld(0, point)
    for node in slice_nodes:
        node.JumpSliceByOffsetting(*point)
        if not _in_view(node, point):
            node.JumpSliceByCentering(*point)


def _in_view(slice_node, point) -> bool:
    pixel = np.linalg.inv(array_from_matrix(slice_node.GetXYToRAS())) @ [*point, 1]
    width, height, _ = slice_node.GetDimensions()
    return bool(0 <= pixel[0] < width and 0 <= pixel[1] < height)
