"""Show segment outlines, and segments that warp live."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk

from .scene_restore_point import SceneRestorePoint, display_of, own_parent, put_under


def show_outlines(restore_point: SceneRestorePoint, fixed: Any, moving: Any) -> None:
    """Outline two segmentation nodes, without filling: the fixed one in thick lines, the moving one in thin ones.

    A moving segment has the colour of the fixed segment of its name, lightened so that it is seen on the thick line.
    `restore_point.restore(*outline_displays(fixed, moving))` takes it away.
    """
    colors = {segment.GetName(): segment.GetColor() for _, segment in _segments(fixed)}
    for display, thickness in zip(outline_displays(fixed, moving), (4, 2), strict=True):
        restore_point.change(display, "Visibility", True)
        restore_point.change(display, "Visibility2D", True)
        restore_point.change(display, "Visibility2DFill", False)
        restore_point.change(display, "Visibility2DOutline", True)
        restore_point.change(display, "Opacity2DOutline", 1.0)
        restore_point.change(display, "SliceIntersectionThickness", thickness)
    display = display_of(moving)
    for identifier, segment in _segments(moving):
        color = np.array(colors.get(segment.GetName(), segment.GetColor()))
        lighter = vtk.vtkVector3d(*(color + 0.55 * (1 - color)))
        restore_point.change(display, "SegmentOverrideColor", lighter, identifier)


def outline_displays(fixed: Any, moving: Any) -> list:
    """Return the display nodes that `show_outlines` changes."""
    return [display_of(fixed), display_of(moving)]


def live_segments(
    restore_point: SceneRestorePoint, source: Any, identifiers: list[str], transform: Any, node: Any = None
) -> Any:
    """Return a segmentation node with some segments of another, under `transform`: seen warped at once, in 2D and 3D.

    The light node holds those segments alone, each cropped to its extent: ticking one leaves the others be. A linear
    parent of the source counts. `node`, of an earlier call, is brought up to date. The source itself stays where it is;
    `restore_point.remove_hidden_nodes(node)` takes the light one away.
    """
    if node is None:
        node = restore_point.add_hidden_node("vtkMRMLSegmentationNode", f"{source.GetName()}, warped live")
        node.GetDisplayNode().SetOpacity2DFill(0.25)  # the images are to be seen through them
        node.GetSegmentation().SetSourceRepresentationName(source.GetSegmentation().GetSourceRepresentationName())
        parent = own_parent(source)
        node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
    put_under(restore_point, node, transform)
    target = node.GetSegmentation()
    for identifier in set(target.GetSegmentIDs()) - set(identifiers):
        target.RemoveSegment(identifier)
    for identifier in identifiers:
        if target.GetSegment(identifier) is None:
            target.AddSegment(_lone_segment(source, identifier), identifier)
    node.CreateClosedSurfaceRepresentation()
    return node


def _lone_segment(source, identifier: str):
    """Return a vtkSegment with a label map of its own: a view draws every value of a shared one, whosever it is."""
    name = source.GetSegmentation().GetSourceRepresentationName()
    original, segment = source.GetSegmentation().GetSegment(identifier), slicer.vtkSegment()
    segment.DeepCopyMetadata(original)
    if name == slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName():
        image, extent = slicer.vtkOrientedImageData(), [0] * 6
        source.GetBinaryLabelmapRepresentation(identifier, image)
        if slicer.vtkOrientedImageDataResample.CalculateEffectiveExtent(image, extent):
            slicer.vtkOrientedImageDataResample.CopyImage(image, image, extent)
        segment.SetLabelValue(1)
        segment.AddRepresentation(name, image)
    else:
        segment.AddRepresentation(name, original.GetRepresentation(name))
    return segment


def _segments(node) -> list[tuple[str, Any]]:
    segmentation = node.GetSegmentation()
    return [(identifier, segmentation.GetSegment(identifier)) for identifier in segmentation.GetSegmentIDs()]
