"""Displacement fields and linear transforms, to and from transform nodes.

Direction, everywhere: a transform of ours maps fixed points to moving points, ITK's resampling direction. On a node
that is TransformFromParent, and the node is the one under which MOVING data is placed: Slicer resamples a volume with
from-parent as it is, and moves points (markups, models) with its inverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..errors import InputError
from ..spatial.geometry import Grid, flip_affine, flip_vectors, flip_world_transform
from ..text import tr

if TYPE_CHECKING:
    from ..spatial.displacement import DisplacementField

#: Marks the grid transforms whose displacement is linear between the samples: a file does not say it.
LINEAR_ATTRIBUTE = "IconRegistration.linearInterpolation"


def array_from_matrix(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    """Return a matrix of VTK as an array, 4x4 float64."""
    return np.array([[matrix.GetElement(i, j) for j in range(4)] for i in range(4)])


def matrix_from_array(array: np.ndarray) -> vtk.vtkMatrix4x4:
    """Return a new vtkMatrix4x4 of a 4x4 array."""
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy([float(x) for x in np.asarray(array).ravel()])
    return matrix


def _linear_to_world(transform) -> np.ndarray:
    """Return the 4x4, LPS mm, of a transform node and its parents; raises InputError that names a non-linear one."""
    matrix = vtk.vtkMatrix4x4()
    if not transform.IsTransformToWorldLinear() or not transform.GetMatrixTransformToWorld(matrix):
        culprit = transform
        while culprit.IsLinear() and culprit.GetParentTransformNode():
            culprit = culprit.GetParentTransformNode()
        raise InputError(
            tr(
                "The transform {name!r} is not linear and cannot be part of a 4x4 matrix; "
                "harden it first or remove it.",
                name=culprit.GetName(),
            )
        )
    return flip_world_transform(array_from_matrix(matrix))


def world_matrix(node: Any) -> np.ndarray:
    """Return the 4x4, LPS mm, from a node's own coordinates through its linear parents to the world.

    Raises InputError if a parent is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    try:
        return _linear_to_world(parent)
    except InputError as error:
        raise InputError(tr("{name} is transformed by a parent. {error}", name=node.GetName(), error=error)) from None


def linear_from_node(node: Any) -> np.ndarray:
    """Return the 4x4, fixed mm -> moving mm in LPS, of the node under which the MOVING image lies on the fixed one.

    The node (with its parents) maps moving points to the world, where the fixed image is; this is its inverse.
    Raises InputError if it is not linear.
    """
    return np.linalg.inv(_linear_to_world(node))


def node_from_field(scene: Any, field: DisplacementField, name: str, node: Any = None) -> Any:
    """Return a grid transform node whose TransformFromParent is `field` (fixed -> moving), sample for sample, linear.

    Any grid will do, oblique, left-handed, sheared. The node is saved as .nii.gz, where a grid allows it.

    Parameters
    ----------
    scene : vtkMRMLScene
        Where a new node is added.
    field : DisplacementField
        In mm, LPS, world coordinates.
    name : str
        Name of a new node.
    node : vtkMRMLGridTransformNode, optional
        Updated in place, and taken out of its parent transform.
    """
    affine = flip_affine(field.grid.affine)
    spacing = field.grid.spacing
    direction = np.eye(4)
    direction[:3, :3] = affine[:3, :3] / spacing

    image = vtk.vtkImageData()
    image.SetDimensions(field.grid.size)
    image.SetSpacing(spacing)
    image.SetOrigin(affine[:3, 3])
    vectors = flip_vectors(field.displacement.astype(np.float32, copy=False))
    scalars = numpy_to_vtk(vectors.reshape(-1, 3), deep=True)
    scalars.SetName("displacement")
    image.GetPointData().SetScalars(scalars)

    transform = slicer.vtkOrientedGridTransform()
    transform.SetGridDirectionMatrix(matrix_from_array(direction))
    transform.SetDisplacementGridData(image)
    transform.SetInterpolationModeToLinear()

    node = node or scene.AddNewNodeByClass("vtkMRMLGridTransformNode", name)
    node.SetAndObserveTransformNodeID(None)
    node.SetAndObserveTransformFromParent(transform)
    node.SetAttribute(LINEAR_ATTRIBUTE, "1")
    # .h5, Slicer's default, holds uncompressed doubles; NIfTI compresses, but has no sheared axes
    node.AddDefaultStorageNode()
    node.GetStorageNode().SetDefaultWriteFileExtension("nii.gz" if field.grid.is_orthogonal else "h5")
    return node


def _stored_grid_transform(node):
    """Return the vtkOrientedGridTransform that a node holds in from-parent direction, or None."""
    transform = slicer.vtkOrientedGridTransform.SafeDownCast(node.GetTransformFromParent())
    if transform is None or transform.GetInverseFlag() or not transform.GetDisplacementGrid():
        return None
    return transform


def field_from_node(node: Any, grid: Grid | None = None) -> DisplacementField:
    """Return the DisplacementField (fixed -> moving) of a transform node.

    Parameters
    ----------
    node : vtkMRMLTransformNode
        Without `grid`: a grid transform without a parent; its samples in from-parent direction are returned exactly.
    grid : Grid, optional
        Where any transform, from the world to the node's own space, is sampled; an inverse is then VTK's numerical one.

    Returns
    -------
    DisplacementField
        In mm, LPS, float32.

    Raises
    ------
    InputError
        Without `grid`, if the node holds anything else or has a parent.
    """
    from ..spatial.displacement import DisplacementField

    if grid is None:
        stored = _stored_grid_transform(node)
        if stored is None or node.GetParentTransformNode():
            raise InputError(
                tr(
                    "{name!r} does not hold one displacement field from the world; give a grid to sample it on.",
                    name=node.GetName(),
                )
            )
        image = stored.GetDisplacementGrid()
        affine = np.eye(4)
        affine[:3, :3] = array_from_matrix(stored.GetGridDirectionMatrix())[:3, :3] * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        grid = Grid(image.GetDimensions()[::-1], flip_affine(affine))
        vectors = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(*grid.shape, 3)
        vectors = vectors * stored.GetDisplacementScale() + stored.GetDisplacementShift()
        return DisplacementField(flip_vectors(vectors).astype(np.float32), grid)

    points = grid.to_world(np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij")[::-1], axis=-1))
    displacement = transform_points(node, points.reshape(-1, 3)).reshape(points.shape) - points
    return DisplacementField(displacement.astype(np.float32), grid)


def transform_points(node: Any, points: np.ndarray, to_world: bool = False) -> np.ndarray:
    """Transform points through a transform node and its parents.

    Parameters
    ----------
    node : vtkMRMLTransformNode
        The transform.
    points : numpy.ndarray
        (n, 3), mm, LPS.
    to_world : bool
        False: from the world (fixed -> moving; how volumes are resampled). True: how points under the node move.

    Returns
    -------
    numpy.ndarray
        (n, 3), mm, LPS.
    """
    transform = vtk.vtkGeneralTransform()
    (node.GetTransformToWorld if to_world else node.GetTransformFromWorld)(transform)
    given, moved = vtk.vtkPoints(), vtk.vtkPoints()
    given.SetData(numpy_to_vtk(flip_vectors(np.asarray(points, dtype=np.float64)), deep=True))
    moved.SetDataTypeToDouble()
    transform.TransformPoints(given, moved)
    return flip_vectors(vtk_to_numpy(moved.GetData()))


def set_linear_interpolation(scene: Any) -> None:
    """Set our grid transforms back to linear interpolation: Slicer reads every grid transform file as a cubic one."""
    nodes = scene.GetNodesByClass("vtkMRMLGridTransformNode")
    nodes.UnRegister(None)
    for node in (nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())):
        stored = _stored_grid_transform(node)
        if stored is not None and node.GetAttribute(LINEAR_ATTRIBUTE):
            stored.SetInterpolationModeToLinear()
