"""Read a folder with one DICOM series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image
from ..text import tr
from .paths import SERIES_SEPARATOR
from .sitk_images import grid_of, read_errors

if TYPE_CHECKING:
    import SimpleITK

_READER = "GDCMImageIO"

#: The tag "Image Position (Patient)": the centre of a slice's first voxel in mm, LPS.
_POSITION = "0020|0032"


def dicom_slices(folder: Path, series: str | None) -> list[str]:
    """List the files of one series in a folder, sorted along the normal of the slices.

    Parameters
    ----------
    folder : Path
    series : str or None
        Its UID or the beginning of it; None where the folder holds one series.

    Raises
    ------
    InputError
        If the folder holds no series, or several of that name.
    """
    import SimpleITK as sitk

    with read_errors(folder, tr("a DICOM series")):
        names = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder), True)
        found = {
            name: list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), name, True))
            for name in names
            if series is None or name.startswith(series)
        }
    if not names:
        raise InputError(
            tr("{folder} holds no DICOM series; give the folder that directly contains the slices.", folder=folder)
        )
    if len(found) == 1:
        return next(iter(found.values()))
    listed = "; ".join(tr("{uid} ({count} slices)", uid=uid, count=len(files)) for uid, files in sorted(found.items()))
    raise InputError(
        tr(
            "{folder} holds several DICOM series or none of the name {series}: {listed}; choose one as {example}.",
            folder=folder,
            series=repr(series),
            listed=listed or tr("none"),
            example=f'"{folder}{SERIES_SEPARATOR}UID"',
        )
    )


def dicom_header(folder: Path, files: list[str]) -> tuple[int, int, int]:
    """Return the samples along (i, j, k) of a series; reads the header of one slice.

    Raises
    ------
    InputError
        If it is a single slice, or in colour.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READER)
    reader.SetFileName(files[0])
    with read_errors(folder, tr("a DICOM series")):
        reader.ReadImageInformation()
    i, j, *further = reader.GetSize()
    slices = len(files) if len(files) > 1 else next(iter(further), 1)
    if slices < 2:
        raise InputError(tr("{folder} holds one slice; give the folder of a whole DICOM series.", folder=folder))
    if reader.GetNumberOfComponents() != 1:
        raise InputError(tr("{folder} holds colour images; give a series of scalar slices.", folder=folder))
    return i, j, slices


def read_dicom(folder: Path, files: list[str]) -> Image:
    """Read a series, or an enhanced object of several frames, rescaled as the files say (CT to HU).

    Returns
    -------
    Image
        int16 where all values are whole and fit, else float32.

    Raises
    ------
    InputError
        If it cannot be read, or its slices are at uneven distances.
    """
    import SimpleITK as sitk

    dicom_header(folder, files)
    with read_errors(folder, tr("a DICOM series")):
        if len(files) == 1:  # an enhanced, multi-frame object
            image, deviation = sitk.ReadImage(files[0], sitk.sitkFloat32, imageIO=_READER), 0.0
        else:
            reader = sitk.ImageSeriesReader()
            reader.SetImageIO(_READER)
            reader.SetFileNames(files)
            reader.SetOutputPixelType(sitk.sitkFloat32)
            reader.MetaDataDictionaryArrayUpdateOn()
            image = reader.Execute()
            deviation = _spacing_deviation(reader, len(files), image.GetSpacing()[2])
    grid = grid_of(image)
    if deviation > 0.1 * grid.spacing[2]:
        raise InputError(
            tr(
                "{folder} has slices at uneven distances (off by {deviation:.2f} mm at a mean spacing of "
                "{spacing:.2f} mm); a slice is missing, or two series are mixed.",
                folder=folder,
                deviation=deviation,
                spacing=float(grid.spacing[2]),
            )
        )
    array = sitk.GetArrayFromImage(image)
    is_whole = np.array_equal(array, np.rint(array)) and np.abs(array).max() < 2**15
    return Image(array.astype(np.int16) if is_whole else array, grid, folder.name)


def _spacing_deviation(reader: SimpleITK.ImageSeriesReader, count: int, spacing: float) -> float:
    """Return by how many mm a distance of neighbouring slices differs at most from the mean `spacing`."""
    if not all(reader.HasMetaDataKey(n, _POSITION) for n in range(count)):
        return 0.0
    try:
        positions = np.array([[float(c) for c in reader.GetMetaData(n, _POSITION).split("\\")] for n in range(count)])
    except ValueError as error:  # damaged: not numbers, or not three everywhere
        raise RuntimeError("the position of a slice is damaged") from error
    distances = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    return float(np.abs(distances - spacing).max())
