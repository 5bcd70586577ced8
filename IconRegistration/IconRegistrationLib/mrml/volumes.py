"""Images, to and from volume nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from ..errors import InputError
from ..spatial.geometry import Grid, Image, flip_affine
from ..text import tr
from .scene import place_beside
from .transforms import array_from_matrix, matrix_from_array, world_matrix


def image_from_node(node: Any) -> Image:
    """Return the Image of a scalar or label map volume node in world coordinates: linear parents are part of the grid.

    Parameters
    ----------
    node : vtkMRMLScalarVolumeNode or vtkMRMLLabelMapVolumeNode
        The volume.

    Returns
    -------
    Image
        [k, j, i], LPS. The array is a view of the node's voxels, not a copy: treat it as read-only.

    Raises
    ------
    InputError
        If the node has no voxels, several components per voxel, or a non-linear parent transform.
    """
    voxels = node.GetImageData()
    scalars = voxels.GetPointData().GetScalars() if voxels else None
    if scalars is None or scalars.GetNumberOfTuples() == 0:
        raise InputError(tr("The volume {name!r} has no voxels; load or choose another one.", name=node.GetName()))
    if scalars.GetNumberOfComponents() != 1:
        raise InputError(
            tr(
                "The volume {name!r} has {count} components per voxel; convert "
                "it to a scalar volume, or extract one frame or channel.",
                name=node.GetName(),
                count=scalars.GetNumberOfComponents(),
            )
        )
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    grid = Grid(voxels.GetDimensions()[::-1], flip_affine(array_from_matrix(matrix)))
    return Image(vtk_to_numpy(scalars).reshape(grid.shape), grid.moved(world_matrix(node)), node.GetName())


def storable(array: np.ndarray) -> np.ndarray:
    """Return `array` in a type that a volume node can hold AND save: no bool, int8, int64, uint64 or float16.

    Integers keep their values (float64 where they exceed 32 bits).
    """
    array = np.asarray(array)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return array.astype(np.uint8)
    if kind == "i" and size == 1:
        return array.astype(np.int16)
    if kind in "iu" and size == 8:
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        for dtype in (np.int32, np.uint32):
            if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
                return array.astype(dtype)
        return array.astype(np.float64)
    if kind == "f" and size not in (4, 8):
        return array.astype(np.float32 if size == 2 else np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def vtk_image(array: np.ndarray, image: vtk.vtkImageData | None = None) -> vtk.vtkImageData:
    """Return a vtkImageData with a copy of `array` [k, j, i], unit spacing, origin 0; `image` is filled if given."""
    image = image or vtk.vtkImageData()
    image.SetDimensions(array.shape[::-1])
    scalars = numpy_to_vtk(storable(array).ravel(), deep=True)
    scalars.SetName("ImageScalars")
    image.GetPointData().SetScalars(scalars)
    return image


def node_from_image(scene: Any, image: Image, name: str, node: Any = None, like: Any = None) -> Any:
    """Return a volume node that holds `image`, in world coordinates.

    A sheared grid (only a shearing parent transform makes one) is held exactly by the node; of the file formats, nrrd
    keeps it and nii.gz cannot.

    Parameters
    ----------
    scene : vtkMRMLScene
        Where a new node is added.
    image : Image
        [k, j, i], LPS.
    name : str
        Name of a new node.
    node : vtkMRMLVolumeNode, optional
        Updated in place: its display and its name stay; it leaves its parent transform.
    like : vtkMRMLVolumeNode, optional
        The volume whose class (scalar or label map), window, level and colours a new node takes, and beside which it is
        placed in the subject hierarchy.
    """
    is_new = node is None
    if is_new:
        is_labels = like is not None and like.IsA("vtkMRMLLabelMapVolumeNode")
        node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode" if is_labels else "vtkMRMLScalarVolumeNode", name)
    modified = node.StartModify()
    node.SetAndObserveTransformNodeID(None)
    node.SetIJKToRASMatrix(matrix_from_array(flip_affine(image.grid.affine)))
    node.SetAndObserveImageData(vtk_image(image.array))
    node.EndModify(modified)
    if is_new:
        node.CreateDefaultDisplayNodes()
        if like is not None:
            _copy_display(like, node)
            place_beside(scene, node, like)
    return node


def _copy_display(source, target) -> None:
    """Copy window, level, colours and interpolation of one volume to another."""
    shown, display = source.GetDisplayNode(), target.GetDisplayNode()
    if shown is None:
        return
    display.SetAndObserveColorNodeID(shown.GetColorNodeID())
    if isinstance(shown, slicer.vtkMRMLScalarVolumeDisplayNode):
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(shown.GetWindow(), shown.GetLevel())
        display.SetInterpolate(shown.GetInterpolate())
