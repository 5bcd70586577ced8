"""Read and write scalar volumes: NRRD, NIfTI, MetaImage and whatever else ITK reads."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image
from .dicom import _dicom_header, _dicom_slices, _read_dicom
from .integrity import _check_voxels, _header_fields, _refuse_sheared_nifti
from .itk_images import (
    _COMPONENTS,
    IMAGE_SUFFIXES,
    ImageHeader,
    _existing,
    _grid_of,
    _image_header,
    _itk_errors,
    _pixel_types,
    _set_grid,
    _stem,
    _storable,
    _write_picture,
)
from .writing import replacing, writable


def image_header(path) -> ImageHeader:
    """Shape and pixel type of a scalar volume; loads no voxels (of a DICOM folder it reads one slice's header).

    Raises InputError where `read_image` would refuse the file for what it holds: 2D, 4D, colours, vectors.
    """
    path, series = _existing(path)
    if path.is_dir():
        return _dicom_header(path, _dicom_slices(path, series))
    return _header(path, _open(path))


def read_image(path) -> Image:
    """A scalar volume: NRRD, NIfTI, MetaImage, anything else that ITK reads, or a folder with one DICOM series.

    A folder with several series is read as "folder::UID". Voxels keep their type (DICOM is rescaled, CT to HU).
    NIfTI: ITK's rule (sform, or qform where the sform shears); a sheared sform alone is straightened where that moves
    no corner by more than half a voxel. Raises InputError.
    """
    path, series = _existing(path)
    if path.is_dir():
        return _read_dicom(path, _dicom_slices(path, series))
    import itk

    io = _open(path)
    header = _header(path, io)
    _check_voxels(path, io)
    pixel = {"int8": itk.SS, "int64": itk.D, "uint64": itk.D}.get(header.dtype.name)  # not wrapped in Python
    pixel = pixel or {v: k for k, v in _pixel_types().items()}[header.dtype.name]
    with _itk_errors(path):
        reader = itk.ImageFileReader[itk.Image[pixel, 3]].New(FileName=str(path), ImageIO=io)
        reader.Update()
    image = reader.GetOutput()
    grid = _grid_of(image)
    _refuse_sheared_nifti(path, grid, io)
    return Image(itk.array_from_image(image).astype(header.dtype, copy=False), grid, _stem(path))


def write_image(image: Image, path) -> None:
    """Compressed .nrrd, .nii.gz or .mha. bool, int8, float16 and 64-bit integers become types that viewers read."""
    import itk

    path = writable(path, IMAGE_SUFFIXES, image.grid, image.name)
    picture = itk.image_view_from_array(_storable(image.array))
    _set_grid(picture, image.grid)
    with replacing(path) as partial:
        _write_picture(picture, partial)


def _open(path: Path):
    """The ITK reader of a file, its header read."""
    import itk

    io = itk.ImageIOFactory.CreateImageIO(str(path), itk.CommonEnums.IOFileMode_ReadMode)
    if io is None:
        raise InputError(
            f"{path} is empty, damaged or no image that is read; give NRRD, NIfTI-1, MetaImage or a DICOM folder."
        )
    io.SetFileName(str(path))
    if io.GetNameOfClass() == "MetaImageIO":
        _check_meta_dimensions(path)
    with _itk_errors(path):
        try:
            io.ReadImageInformation()
        except RuntimeError as error:
            if "orthonormal" not in str(error):
                raise
            io = itk.NiftiImageIO.New(SFORM_Permissive=True)
            io.SetFileName(str(path))
            io.ReadImageInformation()
    _check_geometry(path, io)
    return io


def _check_meta_dimensions(path: Path) -> None:
    """MetaIO writes beyond its arrays, which have ten places, and the process is gone."""
    with open(path, "rb") as file:
        count = _header_fields(file).get("ndims", "")
    if not re.fullmatch(r"\d|10", count):
        raise InputError(f"{path} has {count[:20] or 'no'} dimensions; repair the header.")


def _check_geometry(path: Path, io) -> None:
    """Raises InputError for what no scanner writes: ITK never comes back from some of it (a direction of 1e308)."""
    axes = range(io.GetNumberOfDimensions())
    direction = np.array([io.GetDirection(axis) for axis in axes])
    if not (np.abs(direction) < 1.01).all():
        raise InputError(f"{path} has axes along {direction.tolist()}, which are no unit vectors; repair the header.")
    spacing, origin = ([of(axis) for axis in axes] for of in (io.GetSpacing, io.GetOrigin))
    if not all(1e-9 < step < 1e9 for step in spacing) or not np.isfinite(origin).all():
        raise InputError(f"{path} has voxels {spacing} mm apart from {origin} on; repair the header.")


def _header(path: Path, io) -> ImageHeader:
    size = [io.GetDimensions(d) for d in range(io.GetNumberOfDimensions())]
    described = " x ".join(map(str, size))
    if len(size) < 3 or min(size[:3]) < 2:
        raise InputError(f"{path} is a single slice ({described}); give a volume, or the folder of a DICOM series.")
    if any(n > 1 for n in size[3:]):
        raise InputError(f"{path} has {len(size)} dimensions ({described}); extract one volume first.")
    pixel, component = io.GetPixelType(), io.GetComponentTypeAsString(io.GetComponentType())
    if io.GetNumberOfComponents() != 1 or component not in _COMPONENTS:
        kind = io.GetPixelTypeAsString(pixel)
        raise InputError(
            f"{path} holds {io.GetNumberOfComponents()} values per voxel ({kind}, {component}), not one; "
            "extract one channel first."
        )
    return _image_header(size[:3], np.dtype(_COMPONENTS[component]))
