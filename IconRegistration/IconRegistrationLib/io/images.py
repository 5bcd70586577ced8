"""Read and write scalar volumes: NRRD, NIfTI, MetaImage and whatever else SimpleITK reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image
from ..text import tr
from .dicom import dicom_header, dicom_slices, read_dicom
from .formats import Format, format_of, reader_of, stem_of, suffixes_of, writer_of
from .integrity import check_voxels, refuse_sheared_nifti
from .paths import existing_path
from .sitk_images import ImageFile, grid_of, open_image, sitk_image, storable, write_sitk_image
from .writing import atomic_file, writable


@dataclass(frozen=True)
class ImageHeader:
    """The header of a scalar volume, read without its voxels.

    Attributes
    ----------
    shape : tuple of int
        Samples along (k, j, i).
    dtype : numpy.dtype
    bytes : int
        Of the voxels in memory.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    bytes: int

    @classmethod
    def of(cls, size: Sequence[int], dtype: np.dtype) -> ImageHeader:
        """Make the header of an image of `size` samples along (i, j, k)."""
        i, j, k = (int(n) for n in size)
        return cls((k, j, i), dtype, i * j * k * dtype.itemsize)


def image_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Read shape and type of a scalar volume without its voxels (of a DICOM folder the header of one slice).

    Parameters
    ----------
    path : str or path-like
        As in `read_image`.

    Raises
    ------
    InputError
        Where `read_image` would refuse the file for what it holds: 2D, 4D, colours, vectors.
    """
    found, series = existing_path(path)
    if found.is_dir():
        return ImageHeader.of(dicom_header(found, dicom_slices(found, series)), np.dtype(np.float32))
    chosen = format_of(found, IMAGE_FORMATS)
    if chosen is None:
        return _header(found)
    if chosen.header is not None:
        return chosen.header(found)
    image = read_image(found)
    return ImageHeader.of(image.grid.size, image.array.dtype)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a scalar volume.

    Voxels keep their type (DICOM is rescaled, CT to HU). NIfTI follows ITK's rule (the sform, or the qform where the
    sform shears); a sheared sform alone is straightened where that moves no corner by more than half a voxel.

    Parameters
    ----------
    path : str or path-like
        A file of `IMAGE_FORMATS`, anything else that SimpleITK reads, or a folder with one DICOM series. A folder with
        several series is read as "folder::UID".

    Returns
    -------
    Image
        Array [k, j, i] and grid (mm, LPS).

    Raises
    ------
    InputError
        If it is missing, damaged, or not a scalar volume.
    """
    found, series = existing_path(path)
    if found.is_dir():
        return read_dicom(found, dicom_slices(found, series))
    read = reader_of(found, IMAGE_FORMATS) or _read
    return replace(read(found), name=stem_of(found, IMAGE_FORMATS))


def write_image(image: Image, path: str | os.PathLike[str]) -> None:
    """Write a scalar volume in the format of `IMAGE_FORMATS` that the name says, compressed where it can be.

    bool, int8, float16 and 64-bit integers become types that viewers read.

    Raises
    ------
    InputError
        If the type of the file is unknown, its folder does not exist, or files cannot hold the grid.
    OSError
        If the disk does not take it.
    """
    path = writable(path, suffixes_of(IMAGE_FORMATS, written=True), image.grid, image.name)
    with atomic_file(path) as partial:
        writer_of(path, IMAGE_FORMATS)(image, partial)


def _read(path: Path) -> Image:
    import SimpleITK as sitk

    file = open_image(path)
    header = _scalar_header(file)
    check_voxels(file)
    image = file.read()
    grid = grid_of(image)
    refuse_sheared_nifti(file, grid)
    return Image(sitk.GetArrayFromImage(image).astype(header.dtype, copy=False), grid)


def _write(image: Image, path: Path) -> None:
    write_sitk_image(sitk_image(storable(image.array), image.grid), path)


def _header(path: Path) -> ImageHeader:
    return _scalar_header(open_image(path))


def _scalar_header(file: ImageFile) -> ImageHeader:
    """Return the header of a scalar volume; refuse anything else."""
    path, size = file.path, file.size
    described = " x ".join(map(str, size))
    if len(size) < 3 or min(size[:3]) < 2:
        raise InputError(
            tr(
                "{path} is a single slice ({size}); give a volume, or the folder of a DICOM series.",
                path=path,
                size=described,
            )
        )
    if any(n > 1 for n in size[3:]):
        raise InputError(
            tr(
                "{path} has {count} dimensions ({size}); extract one volume first.",
                path=path,
                count=len(size),
                size=described,
            )
        )
    if file.components != 1 or file.dtype is None:
        raise InputError(
            tr(
                "{path} holds {count} values per voxel ({kind}), not one; extract one channel first.",
                path=path,
                count=file.components,
                kind=file.kind,
            )
        )
    return ImageHeader.of(size[:3], file.dtype)


#: Formats of scalar volumes. What has another ending is read as SimpleITK finds it by its content.
IMAGE_FORMATS = [
    Format("NRRD", (".nrrd",), _read, _write, _header),
    Format("NIfTI-1", (".nii.gz", ".nii"), _read, _write, _header),
    Format("MetaImage", (".mha",), _read, _write, _header),
    Format("NRRD or MetaImage with voxels in another file", (".nhdr", ".mhd"), _read, None, _header),
]
