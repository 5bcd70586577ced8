"""Show segment outlines, and segments that warp live."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk

from .before import Before, _display, _own_parent, put_under


def show_outlines(before: Before, fixed, moving) -> None:
    """Outline two segmentation nodes, without filling: the fixed one in thick lines, the moving one in thin ones.

    A moving segment has the colour of the fixed segment of its name, lightened so that it is seen on the thick line.
    `before.restore(*outline_displays(fixed, moving))` takes it away.
    """
    colors = {segment.GetName(): segment.GetColor() for _, segment in _segments(fixed)}
    for display, thickness in zip(outline_displays(fixed, moving), (4, 2), strict=True):
        before.change(display, "Visibility", True)
        before.change(display, "Visibility2D", True)
        before.change(display, "Visibility2DFill", False)
        before.change(display, "Visibility2DOutline", True)
        before.change(display, "Opacity2DOutline", 1.0)
        before.change(display, "SliceIntersectionThickness", thickness)
    display = _display(moving)
    for identifier, segment in _segments(moving):
        color = np.array(colors.get(segment.GetName(), segment.GetColor()))
        lighter = vtk.vtkVector3d(*(color + 0.55 * (1 - color)))
        before.change(display, "SegmentOverrideColor", lighter, identifier)


def outline_displays(fixed, moving) -> list:
    """The display nodes that `show_outlines` changes."""
    return [_display(fixed), _display(moving)]


def live_segments(before: Before, source, identifiers: list[str], transform, node=None):
    """A segmentation node with some of a segmentation's segments, under `transform`: seen warped at once, in 2D and 3D.

    The light node holds those segments alone, each cropped to its extent: ticking one leaves the others be. A linear
    parent of the source counts. `node`, of an earlier call, is brought up to date. The source itself stays where it is;
    `before.discard(node)` takes the light one away.
    """
    if node is None:
        node = before.add("vtkMRMLSegmentationNode", f"{source.GetName()}, warped live")
        node.GetDisplayNode().SetOpacity2DFill(0.25)  # the images are to be seen through them
        node.GetSegmentation().SetSourceRepresentationName(source.GetSegmentation().GetSourceRepresentationName())
        parent = _own_parent(source)
        node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
    put_under(before, node, transform)
    target = node.GetSegmentation()
    for identifier in set(target.GetSegmentIDs()) - set(identifiers):
        target.RemoveSegment(identifier)
    for identifier in identifiers:
        if target.GetSegment(identifier) is None:
            target.AddSegment(_lone_segment(source, identifier), identifier)
    node.CreateClosedSurfaceRepresentation()
    return node


def _lone_segment(source, identifier: str):
    """A vtkSegment with a label map of its own: a view draws every value of a shared one, whosever it is."""
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
