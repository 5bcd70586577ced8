"""Landmarks, to and from point lists; regions from ROI boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Grid, Landmarks, flip_affine, flip_vectors
from ..text import tr
from .transforms import array_from_matrix, world_matrix


def landmarks_from_node(node: Any) -> Landmarks:
    """Return the placed points of a markups node (point list, curve, ...) in world coordinates.

    Points that are not placed, or marked as missing, are omitted. Parent transforms of any kind are applied.

    Returns
    -------
    Landmarks
        (n, 3), mm, LPS.
    """
    numbers = [
        n
        for n in range(node.GetNumberOfControlPoints())
        if node.GetNthControlPointPositionStatus(n) == node.PositionDefined
    ]
    points = np.zeros((len(numbers), 3))
    for row, n in zip(points, numbers, strict=True):
        node.GetNthControlPointPositionWorld(n, row)
    return Landmarks(flip_vectors(points), tuple(node.GetNthControlPointLabel(n) for n in numbers), node.GetName())


def node_from_landmarks(scene: Any, landmarks: Landmarks, name: str, node: Any = None) -> Any:
    """Return a point list node with `landmarks`, in world coordinates.

    Parameters
    ----------
    scene : vtkMRMLScene
        Where a new node is added.
    landmarks : Landmarks
        (n, 3), mm, LPS.
    name : str
        Name of a new node.
    node : vtkMRMLMarkupsFiducialNode, optional
        Updated in place: it keeps its display and lock, and leaves its parent transform.
    """
    is_new = node is None
    if is_new:
        node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        node.CreateDefaultDisplayNodes()
    modified = node.StartModify()
    node.SetAndObserveTransformNodeID(None)
    node.RemoveAllControlPoints()
    for point, label in zip(flip_vectors(np.asarray(landmarks.points, float)), landmarks.labels, strict=True):
        node.AddControlPoint(point, label)
    node.EndModify(modified)
    return node


def region_from_node(node: Any) -> Grid:
    """Return the box of a markups ROI node in the world as a grid of one voxel, the whole box.

    Raises
    ------
    InputError
        If the box is flat, or for a non-linear parent transform.
    """
    if not node.IsA("vtkMRMLMarkupsROINode"):
        raise InputError(
            tr(
                "{name!r} is a {class_name}; draw the region as a markups ROI.",
                name=node.GetName(),
                class_name=node.GetClassName(),
            )
        )
    size = np.array(node.GetSize())
    if size.min() <= 0:
        raise InputError(
            tr(
                "The region {name!r} measures {size} mm; draw a box with a volume.",
                name=node.GetName(),
                size=size.tolist(),
            )
        )
    box = array_from_matrix(node.GetObjectToNodeMatrix()) @ np.diag([*size, 1.0])
    return Grid((1, 1, 1), world_matrix(node) @ flip_affine(box))
