"""Segmentations, to and from segmentation nodes.

Names, colours, tags and overlap are kept; nothing is resampled that lies on one lattice.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ..errors import InputError
from ..spatial.geometry import Grid, Segment, Segmentation, flip_affine
from ..text import tr
from .transforms import array_from_matrix, matrix_from_array, world_matrix
from .volumes import vtk_image


def segmentation_from_node(node: Any) -> Segmentation:
    """Return the Segmentation of a segmentation node, in world coordinates: its linear parents are part of the grid.

    The grid is the node's reference geometry, extended where segments reach beyond it. Layers are Slicer's shared label
    maps. A segmentation of closed surfaces is voxelised first, in a copy: the node stays as it is.

    Raises
    ------
    InputError
        If the segmentation is empty, or for a non-linear parent transform.
    """
    source = _with_label_maps(node)
    geometry = slicer.vtkOrientedImageData()
    mode = slicer.vtkSegmentation.EXTENT_UNION_OF_EFFECTIVE_SEGMENTS_AND_REFERENCE_GEOMETRY
    if not source.SetImageGeometryFromCommonLabelmapGeometry(geometry, None, mode) or geometry.GetNumberOfPoints() == 0:
        raise InputError(tr("The segmentation {name!r} is empty; draw or import segments first.", name=node.GetName()))
    to_world = vtk.vtkMatrix4x4()
    geometry.GetImageToWorldMatrix(to_world)
    low, high = np.array(geometry.GetExtent()).reshape(3, 2).T
    lattice = Grid((high + 1)[::-1] - low[::-1], flip_affine(array_from_matrix(to_world))).box(low, high + 1)

    layers = tuple(_layer(source, n, geometry, lattice.shape) for n in range(source.GetNumberOfLayers(_label_maps())))
    segments = tuple(_segment(source, identifier) for identifier in source.GetSegmentIDs())
    return Segmentation(layers, segments, lattice.moved(world_matrix(node)), node.GetName())


def _label_maps() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _closed_surfaces() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()


def _with_label_maps(node):
    """Return the node's vtkSegmentation, or a copy of it with label maps where it has none."""
    source = node.GetSegmentation()
    if source.GetNumberOfSegments() == 0:
        raise InputError(
            tr("The segmentation {name!r} has no segments; draw or import some first.", name=node.GetName())
        )
    if source.ContainsRepresentation(_label_maps()):
        return source
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(source)
    if not copy.CreateRepresentation(_label_maps()):
        raise InputError(
            tr(
                "The segmentation {name!r} could not be converted to label maps; create its "
                "binary labelmap representation in the Segmentations module.",
                name=node.GetName(),
            )
        )
    return copy


def _layer(source, number: int, geometry, shape) -> np.ndarray:
    """Return one shared label map on the common lattice, [k, j, i]."""
    stored = slicer.vtkOrientedImageData.SafeDownCast(source.GetLayerDataObject(number, _label_maps()))
    if stored is None or stored.GetNumberOfPoints() == 0:  # a segment in which nothing is drawn yet
        return np.zeros(shape, np.uint8)
    layer = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(stored, geometry, layer, False)
    return vtk_to_numpy(layer.GetPointData().GetScalars()).reshape(shape)


def _segment(source, identifier: str) -> Segment:
    segment = source.GetSegment(identifier)
    return Segment(
        name=segment.GetName() or identifier,
        value=segment.GetLabelValue(),
        layer=source.GetLayerIndex(identifier, _label_maps()),
        color=tuple(segment.GetColor()),
        identifier=identifier,
        tags=_tags(segment),
    )


def _tags(segment) -> dict[str, str]:
    """Return all tags of a vtkSegment. Python cannot ask for their names; VTK prints them as `name: value`."""
    tags = {}
    for line in str(segment).partition("  Tags:\n")[2].splitlines():
        for colon in re.finditer(":", line):
            name = line[: colon.start()].strip()
            if segment.HasTag(name):
                value = vtk.reference("")
                segment.GetTag(name, value)
                tags[name] = value.get()
                break
    return tags


def node_from_segmentation(
    scene: Any, segmentation: Segmentation, name: str, node: Any = None, reference: Any = None
) -> Any:
    """Return a segmentation node with the segments of `segmentation`, in world coordinates.

    Names, colours, tags, identifiers and layers stay what they are: segments of one layer share a label map,
    overlapping ones are in several. To Slicer the grey (0.5, 0.5, 0.5), Segment's default, means that it chooses.

    Parameters
    ----------
    scene : vtkMRMLScene
        Where a new node is added.
    segmentation : Segmentation
        Layers [k, j, i], LPS.
    name : str
        Name of a new node.
    node : vtkMRMLSegmentationNode, optional
        Updated in place: it keeps its display nodes and its name, and leaves its parent transform.
    reference : vtkMRMLVolumeNode, optional
        The volume that becomes the reference geometry; without it the segmentation's own grid does.
    """
    is_new = node is None
    if is_new:
        node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
    target = node.GetSegmentation()
    had_surfaces = target.ContainsRepresentation(_closed_surfaces())
    images = [_oriented_image(layer, segmentation.grid) for layer in segmentation.layers]

    modified = node.StartModify()
    node.SetAndObserveTransformNodeID(None)
    target.RemoveAllSegments()
    target.SetSourceRepresentationName(_label_maps())
    if reference is not None:
        node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    elif images:
        converter = slicer.vtkSegmentationConverter
        geometry = converter.SerializeImageGeometry(images[0])
        target.SetConversionParameter(converter.GetReferenceImageGeometryParameterName(), geometry)
    for entry in segmentation.segments:
        segment = slicer.vtkSegment()
        segment.SetName(entry.name)
        segment.SetColor(entry.color)
        for tag, value in entry.tags.items():
            segment.SetTag(tag, value)
        segment.SetLabelValue(entry.value)
        segment.AddRepresentation(_label_maps(), images[entry.layer])
        target.AddSegment(segment, entry.identifier)
    if had_surfaces:
        node.CreateClosedSurfaceRepresentation()
    node.EndModify(modified)
    return node


def _oriented_image(layer: np.ndarray, grid: Grid):
    image = vtk_image(layer, slicer.vtkOrientedImageData())
    image.SetImageToWorldMatrix(matrix_from_array(flip_affine(grid.affine)))
    return image
