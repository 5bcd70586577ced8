"""Read and write scalar volumes: NRRD, NIfTI, MetaImage and whatever else SimpleITK reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image
from ..text import tr
from .dicom import dicom_header, dicom_slices, read_dicom
from .integrity import check_voxels, refuse_sheared_nifti
from .paths import existing_path, stem_of
from .sitk_images import ImageFile, grid_of, open_image, sitk_image, storable, write_sitk_image
from .writing import replacing, writable

IMAGE_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")


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
        size = dicom_header(found, dicom_slices(found, series))
        return ImageHeader.of(size, np.dtype(np.float32))
    return _scalar_header(open_image(found))


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a scalar volume.

    Voxels keep their type (DICOM is rescaled, CT to HU). NIfTI follows ITK's rule (the sform, or the qform where the
    sform shears); a sheared sform alone is straightened where that moves no corner by more than half a voxel.

    Parameters
    ----------
    path : str or path-like
        NRRD, NIfTI, MetaImage, anything else that SimpleITK reads, or a folder with one DICOM series. A folder with
        several series is read as "folder::UID".

    Returns
    -------
    Image
        Array [k, j, i] and grid (mm, LPS).

    Raises
    ------
    InputError
        If it is missing, damaged, or no scalar volume.
    """
    found, series = existing_path(path)
    if found.is_dir():
        return read_dicom(found, dicom_slices(found, series))
    import SimpleITK as sitk

    file = open_image(found)
    header = _scalar_header(file)
    check_voxels(file)
    image = file.read()
    grid = grid_of(image)
    refuse_sheared_nifti(file, grid)
    return Image(sitk.GetArrayFromImage(image).astype(header.dtype, copy=False), grid, stem_of(found))


def write_image(image: Image, path: str | os.PathLike[str]) -> None:
    """Write a compressed .nrrd, .nii.gz or .mha, or a .nii.

    bool, int8, float16 and 64-bit integers become types that viewers read.

    Raises
    ------
    InputError
        If the type of the file is unknown, its folder does not exist, or files cannot hold the grid.
    OSError
        If the disk does not take it.
    """
    path = writable(path, IMAGE_SUFFIXES, image.grid, image.name)
    picture = sitk_image(storable(image.array), image.grid)
    with replacing(path) as partial:
        write_sitk_image(picture, partial)


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
