"""Convert between the values of this library and those of SimpleITK, ITK, nibabel, numpy and torch.

SimpleITK and ITK speak LPS, nibabel speaks RAS. numpy and torch know no world: an array is given as (array, affine),
with the order of its axes and the name of the affine's world, and neither has a default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..errors import InputError
from ..spatial.displacement import DisplacementField
from ..spatial.geometry import Grid, Image, Landmarks, Segmentation, flip_affine, flip_vectors, flip_world_transform
from ..text import Sentence, tr
from .arrays import affine_matrix, as_numpy
from .images import read_image
from .landmarks import read_landmarks
from .segmentations import label_map, read_segmentation, segmentation_from_labels
from .sitk_images import grid_of, sitk_image, storable
from .transforms import read_transform

if TYPE_CHECKING:
    import itk
    import nibabel
    import SimpleITK

#: A path, an `Image`, an image of SimpleITK, ITK or nibabel, or (array, affine) of numpy or torch.
ImageLike: TypeAlias = Any
#: What `ImageLike` is, as a label map; or a `Segmentation`.
SegmentationLike: TypeAlias = Any
#: A path, `Landmarks`, points (n, 3) of numpy or torch, or a mapping of labels to points.
LandmarksLike: TypeAlias = Any
#: A path, a 4x4 array, or a linear transform of ITK or SimpleITK.
LinearLike: TypeAlias = Any
#: A path, a `DisplacementField`, or a transform of ITK or SimpleITK.
TransformLike: TypeAlias = Any

ORDERS = ("kji", "ijk")
WORLDS = ("LPS", "RAS")

#: Libraries that are known, by the package in which their classes live; what ITK derives from numpy's is numpy's.
_LIBRARIES = ("numpy", "torch", "SimpleITK", "nibabel", "itk")
#: Millimetres of NIfTI's spatial units.
_UNITS = {"meter": 1000.0, "micron": 0.001}


def is_path(value: object) -> bool:
    """Tell whether a value names a file or a folder."""
    return isinstance(value, (str, os.PathLike))


def library_of(value: object) -> str:
    """Return the package that a value belongs to: "SimpleITK", "itk", "nibabel", "torch", "numpy", or "".

    Examples
    --------
    >>> library_of(np.zeros(3)), library_of([0.0, 0.0, 0.0])
    ('numpy', '')
    """
    packages = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    return next((name for name in _LIBRARIES if name in packages), "")


def image_from_array(array: Any, affine: Any, order: str | None, world: str | None, name: str = "image") -> Image:
    """Make an image of an array and the affine of its voxels.

    Parameters
    ----------
    array : ndarray or torch.Tensor, three axes
        Voxels, any real type.
    affine : array_like, 4x4
        Voxel (i, j, k) -> mm, whatever the order of the array's axes.
    order : {"kji", "ijk"}
        Axes of the array: "kji" is [slice, row, column], as SimpleITK, ITK and torch have it; "ijk" the reverse, as
        nibabel has it.
    world : {"LPS", "RAS"}
        World of the affine: LPS as in ITK and DICOM, RAS as in nibabel and Slicer.
    name : str
        What messages call it.

    Returns
    -------
    Image
        Array [k, j, i] and grid in LPS.

    Raises
    ------
    InputError
        If the order or the world is missing, or the array is not a scalar volume.

    Examples
    --------
    >>> affine = np.diag([1.0, 1.0, 2.5, 1.0])
    >>> image = image_from_array(np.zeros((40, 30, 20)), affine, order="ijk", world="RAS")
    >>> image.array.shape, image.grid.affine[0].tolist()
    ((20, 30, 40), [-1.0, 0.0, 0.0, 0.0])
    """
    _check_choice(
        order, ORDERS, tr('{name}: an array does not say the order of its axes; give order="kji" or "ijk".', name=name)
    )
    voxels = _scalar_volume(as_numpy(array), name)
    matrix = affine_matrix(affine, name)
    matrix = flip_affine(matrix) if _is_ras(world, name) else matrix
    voxels = np.ascontiguousarray(voxels.T) if order == "ijk" else voxels
    return Image(voxels, Grid(voxels.shape, matrix), name)


def as_image(value: ImageLike, *, order: str | None = None, world: str | None = None, name: str = "image") -> Image:
    """Convert an image of any supported library.

    Parameters
    ----------
    value : path, Image, SimpleITK.Image, itk.Image, nibabel image, or tuple of array and affine
        A 3D scalar volume.
    order, world : str, optional
        Of (array, affine), and needed there: see `image_from_array`.
    name : str
        What messages call what has no name of its own.

    Returns
    -------
    Image
        Array [k, j, i] and grid (mm, LPS); a copy, except of an Image or of a numpy array in the order "kji".

    Raises
    ------
    InputError
        If it is not a 3D scalar volume, or an array without affine, order or world.
    """
    if isinstance(value, Image):
        return value
    if is_path(value):
        return read_image(value)
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return image_from_array(value[0], value[1], order, world, name)
    if library_of(value) in ("numpy", "torch"):
        raise InputError(
            tr(
                '{name}: an array has no position in space; give (array, affine), with order="kji" or "ijk" and '
                'world="LPS" or "RAS".',
                name=name,
            )
        )
    reader = _READERS.get(library_of(value))
    if reader is None:
        raise InputError(
            tr(
                "{name}: a {kind} is not an image; give a path, an Image, an image of SimpleITK, ITK or nibabel, or "
                "(array, affine).",
                name=name,
                kind=type(value).__name__,
            )
        )
    return reader(value, name)


def as_segmentation(
    value: SegmentationLike, *, order: str | None = None, world: str | None = None, name: str = "segmentation"
) -> Segmentation:
    """Convert a segmentation: a Segmentation, the path of one, or a label map as `as_image` takes it.

    Labels that a label map does not name are called "label N".

    Raises
    ------
    InputError
        If it is not a label map, or cannot be read.
    """
    if isinstance(value, Segmentation):
        return value
    if is_path(value):
        return read_segmentation(value)
    return segmentation_from_labels(as_image(value, order=order, world=world, name=name))


def as_landmarks(value: LandmarksLike, *, world: str | None = None, name: str = "landmarks") -> Landmarks:
    """Convert landmarks.

    Parameters
    ----------
    value : path, Landmarks, array_like of shape (n, 3), or mapping of labels to points
        Points without labels are called "1", "2", ... in order.
    world : {"LPS", "RAS"}, optional
        Of points in mm; needed where they are neither Landmarks nor a file.
    name : str
        What messages call them.

    Raises
    ------
    InputError
        If they cannot be read, are not (n, 3), or come without a world.
    """
    if isinstance(value, Landmarks):
        return value
    if is_path(value):
        return read_landmarks(value)
    labels = tuple(map(str, value)) if isinstance(value, Mapping) else None
    points = np.array(list(value.values()) if isinstance(value, Mapping) else as_numpy(value), dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise InputError(
            tr("{name}: points have the shape (n, 3) and are finite, not {shape}.", name=name, shape=str(points.shape))
        )
    points = flip_vectors(points) if _is_ras(world, name) else points
    return Landmarks(points, labels or tuple(str(n + 1) for n in range(len(points))), name)


def as_linear(value: LinearLike, *, world: str | None = None, name: str = "initial transform") -> np.ndarray:
    """Convert a linear transform to a 4x4 matrix in mm, LPS.

    Parameters
    ----------
    value : path, array_like 4x4, or linear transform of ITK or SimpleITK
        Fixed mm -> moving mm.
    world : {"LPS", "RAS"}, optional
        Of an array, and needed there.
    name : str
        What messages call it.

    Raises
    ------
    InputError
        If it is not linear, is singular, or an array without a world.
    """
    if is_path(value):
        return as_linear(read_transform(value), name=os.fspath(value))
    if hasattr(value, "TransformPoint"):
        if not value.IsLinear():
            raise InputError(
                tr("{name} is a {kind}, which is not linear; give an affine transform.", name=name, kind=_title(value))
            )
        matrix = np.eye(4)
        matrix[:3, 3] = value.TransformPoint([0.0, 0.0, 0.0])
        for axis in range(3):
            matrix[:3, axis] = np.array(value.TransformPoint(np.eye(3)[axis].tolist())) - matrix[:3, 3]
        return affine_matrix(matrix, name)
    matrix = affine_matrix(value, name)
    return flip_world_transform(matrix) if _is_ras(world, name) else matrix


def as_field(value: TransformLike, grid: Grid) -> DisplacementField:
    """Convert a transform of fixed points to moving points to a displacement field.

    Parameters
    ----------
    value : path, DisplacementField, or transform of ITK or SimpleITK
        In mm, LPS.
    grid : Grid
        Where a transform is sampled that has no samples of its own.

    Raises
    ------
    InputError
        If it cannot be read, or is not a transform.
    """
    if isinstance(value, DisplacementField):
        return value
    value = read_transform(value) if is_path(value) else value
    if library_of(value) == "SimpleITK" and hasattr(value, "TransformPoint"):
        value = value.Downcast()
        return DisplacementField.from_sitk(value, None if hasattr(value, "GetDisplacementField") else grid)
    if library_of(value) == "itk" and hasattr(value, "TransformPoint"):
        return DisplacementField.from_itk(value, None if hasattr(value, "GetDisplacementField") else grid)
    raise InputError(
        tr(
            "A {kind} is not a transform; give a path, a DisplacementField, or a transform of ITK or SimpleITK.",
            kind=type(value).__name__,
        )
    )


def to_sitk(value: Image | Segmentation | DisplacementField) -> SimpleITK.Image | SimpleITK.Transform:
    """Convert to SimpleITK: an image in LPS, or the transform of fixed points to moving points in mm, LPS.

    Voxels keep their values; types that Slicer does not read (bool, int64, float16) become those that it does. Segments
    become a label map.

    Raises
    ------
    InputError
        If segments overlap, which a label map cannot hold.
    """
    if isinstance(value, DisplacementField):
        return value.to_sitk()
    image = _one_image(value)
    return sitk_image(storable(image.array), image.grid)


def to_itk(value: Image | Segmentation | DisplacementField) -> itk.Image | itk.Transform:
    """Convert to ITK: as `to_sitk`.

    Raises
    ------
    InputError
        If segments overlap, which a label map cannot hold.
    """
    if isinstance(value, DisplacementField):
        return value.to_itk()
    import itk

    image = _one_image(value)
    made = itk.image_from_array(storable(image.array))
    made.SetSpacing(image.grid.spacing.tolist())
    made.SetOrigin(image.grid.origin.tolist())
    made.SetDirection(itk.matrix_from_array(np.ascontiguousarray(image.grid.direction)))
    return made


def to_nibabel(value: Image | Segmentation | DisplacementField) -> nibabel.Nifti1Image:
    """Convert to nibabel: a NIfTI image with an affine in RAS, array [i, j, k].

    A displacement field becomes [i, j, k, 1, 3] in mm, RAS, of the intent "displacement vector" (NIfTI's 1006): added
    to a fixed point it gives the moving point. ITK, and so Slicer, reads such a file and turns it to LPS.

    Raises
    ------
    InputError
        If segments overlap, which a label map cannot hold.
    """
    import nibabel

    if isinstance(value, DisplacementField):
        vectors, grid = flip_vectors(value.displacement), value.grid
        array = np.ascontiguousarray(vectors.transpose(2, 1, 0, 3))[:, :, :, None]
    else:
        image = _one_image(value)
        array, grid = np.ascontiguousarray(storable(image.array).T), image.grid
    affine = flip_affine(grid.affine)
    made = nibabel.Nifti1Image(array, affine)
    made.set_sform(affine, 1)  # scanner coordinates
    made.set_qform(affine, 1)
    made.header.set_xyzt_units("mm")
    if isinstance(value, DisplacementField):
        made.header.set_intent("displacement vector")
    return made


def in_form_of(value: Image, given: ImageLike, *, order: str | None = None, world: str | None = None) -> ImageLike:
    """Convert an image to the library that `given` belongs to; (array, affine) in its order and world.

    Parameters
    ----------
    value : Image
    given : ImageLike
        What `as_image` took, with the same `order` and `world`.

    Returns
    -------
    ImageLike
        An Image where `given` is one, or a path.
    """
    if isinstance(given, (tuple, list)):
        array = np.ascontiguousarray(value.array.T) if order == "ijk" else value.array
        affine = flip_affine(value.grid.affine) if world == "RAS" else value.grid.affine
        if library_of(given[0]) == "torch":
            import torch

            return torch.from_numpy(np.require(array, requirements=["W"])), affine
        return array, affine
    writer = _WRITERS.get(library_of(given))
    return value if writer is None else writer(value)


def points_in_form_of(value: Landmarks, given: LandmarksLike, *, world: str | None = None) -> LandmarksLike:
    """Convert landmarks to what `as_landmarks` took, in its world; Landmarks where it was a path."""
    if isinstance(given, Landmarks) or is_path(given):
        return value
    points = flip_vectors(value.points) if world == "RAS" else value.points
    if isinstance(given, Mapping):
        return dict(zip(given, points, strict=True))
    if library_of(given) == "torch":
        import torch

        return torch.from_numpy(np.array(points)).to(given)
    return points


def _from_sitk(value: Any, name: str) -> Image:
    import SimpleITK as sitk

    if not isinstance(value, sitk.Image):
        raise InputError(tr("{name}: a {kind} is not an image.", name=name, kind=type(value).__name__))
    _check_scalar(name, value.GetNumberOfComponentsPerPixel(), value.GetSize())
    return Image(_scalar_volume(sitk.GetArrayFromImage(value), name), grid_of(value), name)


def _from_itk(value: Any, name: str) -> Image:
    import itk

    if not hasattr(value, "GetLargestPossibleRegion"):
        raise InputError(tr("{name}: a {kind} is not an image.", name=name, kind=type(value).__name__))
    value.UpdateOutputInformation()
    _check_scalar(name, value.GetNumberOfComponentsPerPixel(), tuple(itk.size(value)))
    grid = Grid.from_parts(
        itk.size(value), list(itk.spacing(value)), list(itk.origin(value)), itk.array_from_matrix(value.GetDirection())
    )
    return Image(_scalar_volume(itk.array_from_image(value), name), grid, name)


def _from_nibabel(value: Any, name: str) -> Image:
    if not hasattr(value, "dataobj") or value.affine is None:
        raise InputError(tr("{name}: a {kind} is not an image in space.", name=name, kind=type(value).__name__))
    if any(n > 1 for n in value.shape[3:]):
        _check_scalar(name, 1, value.shape)
    array = np.asanyarray(value.dataobj)
    array = array.reshape(array.shape[:3])
    units = getattr(value.header, "get_xyzt_units", lambda: ("mm",))()[0]
    affine = np.diag([*[_UNITS.get(units, 1.0)] * 3, 1.0]) @ value.affine
    return image_from_array(array, affine, order="ijk", world="RAS", name=name)


#: From the images of a library to ours, and back.
_READERS: dict[str, Callable[[Any, str], Image]] = {
    "SimpleITK": _from_sitk,
    "itk": _from_itk,
    "nibabel": _from_nibabel,
}
_WRITERS: dict[str, Callable[[Image], Any]] = {"SimpleITK": to_sitk, "itk": to_itk, "nibabel": to_nibabel}


def _one_image(value: Image | Segmentation) -> Image:
    return label_map(value) if isinstance(value, Segmentation) else value


def _scalar_volume(array: np.ndarray, name: str) -> np.ndarray:
    """Check that an array is a volume of real numbers; return it in native byte order, bool as uint8."""
    if array.ndim != 3:
        raise InputError(
            tr(
                "{name}: the array has the shape {shape}; give three axes, without batch, channel or time.",
                name=name,
                shape=str(array.shape),
            )
        )
    if array.dtype.kind not in "biuf":
        raise InputError(tr("{name} holds {kind}, not real numbers; convert it.", name=name, kind=str(array.dtype)))
    dtype = np.dtype(np.uint8) if array.dtype.kind == "b" else array.dtype.newbyteorder("=")
    return np.asarray(array, dtype=dtype)


def _check_scalar(name: str, components: int, size: tuple[int, ...]) -> None:
    if components != 1:
        raise InputError(
            tr(
                "{name} holds {count} values per voxel, not one; extract one channel first.",
                name=name,
                count=components,
            )
        )
    if len(size) != 3:
        described = " x ".join(map(str, size))
        raise InputError(
            tr("{name} has {count} axes ({size}); give one 3D volume.", name=name, count=len(size), size=described)
        )


def _is_ras(world: str | None, name: str) -> bool:
    _check_choice(
        world, WORLDS, tr('{name}: numbers do not say their world; give world="LPS" or world="RAS".', name=name)
    )
    return world == "RAS"


def _check_choice(value: str | None, choices: tuple[str, ...], missing: Sentence) -> None:
    if value is None:
        raise InputError(missing)
    if value not in choices:
        raise InputError(
            tr("{value} is unknown; choose {choices}.", value=repr(value), choices=" or ".join(map(repr, choices)))
        )


def _title(transform: Any) -> str:
    return transform.GetName() if hasattr(transform, "GetName") else type(transform).__name__
