"""Read a folder with one DICOM series."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image
from .itk_images import SERIES_SEPARATOR, ImageHeader, _grid_of, _image_header, _itk_errors


def _dicom_slices(folder: Path, series: str | None) -> list[str]:
    """The files of one series in a folder, sorted along its normal."""
    import itk

    with _itk_errors(folder, "a DICOM series"):
        names = itk.GDCMSeriesFileNames.New()
        names.SetUseSeriesDetails(True)
        names.SetDirectory(str(folder))
        found = {uid: [str(f) for f in names.GetFileNames(uid)] for uid in names.GetSeriesUIDs()}
    if not found:
        raise InputError(f"{folder} holds no DICOM series; give the folder that directly contains the slices.")
    if series is not None:
        found = {uid: files for uid, files in found.items() if uid.startswith(series)}
    if len(found) == 1:
        return next(iter(found.values()))
    listed = "; ".join(f"{uid} ({len(files)} slices)" for uid, files in sorted(found.items())) or "none"
    raise InputError(
        f"{folder} holds several DICOM series or none of the name {series!r}: {listed}; "
        f'choose one as "{folder}{SERIES_SEPARATOR}UID".'
    )


def _dicom_header(folder: Path, files: list[str]) -> ImageHeader:
    import itk

    io = itk.GDCMImageIO.New(FileName=files[0])
    with _itk_errors(folder, "a DICOM series"):
        io.ReadImageInformation()
    slices = len(files) if len(files) > 1 else io.GetDimensions(2)
    if slices < 2:
        raise InputError(f"{folder} holds one slice; give the folder of a whole DICOM series.")
    if io.GetNumberOfComponents() != 1:
        raise InputError(f"{folder} holds colour images; give a series of scalar slices.")
    return _image_header([io.GetDimensions(0), io.GetDimensions(1), slices], np.dtype(np.float32))


def _read_dicom(folder: Path, files: list[str]) -> Image:
    import itk

    _dicom_header(folder, files)
    with _itk_errors(folder, "a DICOM series"):
        if len(files) == 1:  # an enhanced, multi-frame object
            reader = itk.ImageFileReader[itk.Image[itk.F, 3]].New(FileName=files[0], ImageIO=itk.GDCMImageIO.New())
        else:
            reader = itk.ImageSeriesReader[itk.Image[itk.F, 3]].New(FileNames=files, ImageIO=itk.GDCMImageIO.New())
        reader.Update()
    image = reader.GetOutput()
    grid = _grid_of(image)
    deviation = dict(image).get("ITK_non_uniform_sampling_deviation", 0.0)
    if deviation > 0.1 * grid.spacing[2]:
        raise InputError(
            f"{folder} has slices at uneven distances (off by {deviation:.2f} mm at a mean spacing of "
            f"{grid.spacing[2]:.2f} mm); a slice is missing, or two series are mixed."
        )
    array = itk.array_from_image(image)
    whole = np.array_equal(array, np.rint(array)) and np.abs(array).max() < 2**15
    return Image(array.astype(np.int16) if whole else array, grid, folder.name)
