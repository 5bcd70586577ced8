"""Open image files with SimpleITK, convert between its images and our values, and turn its errors into sentences."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Grid
from ..text import Sentence, tr
from .writing import BLOCK

if TYPE_CHECKING:
    import SimpleITK

#: SimpleITK's description of a component -> numpy's type.
COMPONENT_TYPES: dict[str, np.dtype] = {
    "8-bit unsigned integer": np.dtype(np.uint8),
    "8-bit signed integer": np.dtype(np.int8),
    "16-bit unsigned integer": np.dtype(np.uint16),
    "16-bit signed integer": np.dtype(np.int16),
    "32-bit unsigned integer": np.dtype(np.uint32),
    "32-bit signed integer": np.dtype(np.int32),
    "64-bit unsigned integer": np.dtype(np.uint64),
    "64-bit signed integer": np.dtype(np.int64),
    "32-bit float": np.dtype(np.float32),
    "64-bit float": np.dtype(np.float64),
}

#: Byte of the first voxel in the NIfTI files that ITK writes.
_NIFTI_START = 352

#: Set to "1", ITK straightens an sform whose axes are not at right angles.
_STRAIGHTEN_SFORM = "ITK_NIFTI_SFORM_PERMISSIVE"


@dataclass(frozen=True)
class ImageFile:
    """An image file whose header has been read.

    Attributes
    ----------
    path : Path
    format : str
        ITK's name of what reads it, as "NiftiImageIO".
    size : tuple of int
        Samples along (i, j, k) and further axes.
    components : int
        Values per voxel.
    kind : str
        SimpleITK's description of a voxel, as "vector of 8-bit unsigned integer".
    dtype : numpy.dtype or None
        Type of a value; None for what is not a real number.
    metadata : dict of str
        What the file says beside the image; keys that are not ASCII are omitted.
    is_straightened : bool
        Whether ITK had to straighten a sheared sform of NIfTI.
    """

    path: Path
    format: str
    size: tuple[int, ...]
    components: int
    kind: str
    dtype: np.dtype | None
    metadata: dict[str, str]
    is_straightened: bool = False

    @property
    def values(self) -> int:
        """Number of values in the whole file; Python's integers, so that no header makes it overflow."""
        count = self.components
        for length in self.size:
            count *= length
        return count

    @property
    def bytes(self) -> int:
        """Bytes of the voxels in memory."""
        return self.values * (self.dtype.itemsize if self.dtype is not None else 1)

    def read(self, what: Sentence | None = None) -> SimpleITK.Image:
        """Read the voxels as a 3D image; further axes must have the length 1.

        Parameters
        ----------
        what : Sentence, optional
            What it should be, for the message: "an image" if None.

        Raises
        ------
        InputError
            If ITK cannot read it.
        """
        import SimpleITK as sitk

        with read_errors(self.path, what), _straightened_sform(self.is_straightened):
            reader = sitk.ImageFileReader()
            reader.SetFileName(str(self.path))
            if len(self.size) > 3:
                reader.SetExtractSize([*self.size[:3], *[0] * (len(self.size) - 3)])
            return reader.Execute()


def open_image(path: Path) -> ImageFile:
    """Read the header of an image file.

    Raises
    ------
    InputError
        If it is no image, or damaged, or has a geometry that no scanner writes.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    with read_errors(path):
        name = reader.GetImageIOFromFileName(str(path))
    if not name:
        raise InputError(
            tr(
                "{path} is empty, damaged or no image that is read; give NRRD, NIfTI-1, MetaImage or a DICOM folder.",
                path=path,
            )
        )
    if name == "MetaImageIO":
        _check_meta_dimensions(path)
    reader.SetFileName(str(path))
    is_straightened = False
    with read_errors(path):
        try:
            reader.ReadImageInformation()
        except RuntimeError as error:
            if "orthonormal" not in str(error):
                raise
            is_straightened = True
            with _straightened_sform(True):
                reader.ReadImageInformation()
        metadata = {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys() if key.isascii()}
    _check_geometry(path, reader)
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    return ImageFile(
        path,
        name,
        tuple(reader.GetSize()),
        reader.GetNumberOfComponents(),
        kind,
        COMPONENT_TYPES.get(kind.removeprefix("vector of ")),
        metadata,
        is_straightened,
    )


def header_fields(file: BinaryIO) -> dict[str, str]:
    """Read the lines "key: value" of an NRRD or "key = value" of a MetaImage; leaves `file` where the header ends."""
    fields: dict[str, str] = {}
    while "elementdatafile" not in fields and (line := file.readline(BLOCK).decode("latin-1").strip()):
        key, _, value = line.partition("=" if re.match(r"\w+\s*=", line) else ":")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _check_meta_dimensions(path: Path) -> None:
    """Refuse what makes MetaIO write beyond its arrays of ten places, which ends the process."""
    with open(path, "rb") as file:
        count = header_fields(file).get("ndims", "")
    if not re.fullmatch(r"\d|10", count):
        raise InputError(
            tr("{path} has {count} dimensions; repair the header.", path=path, count=count[:20] or tr("no"))
        )


def _check_geometry(path: Path, reader: SimpleITK.ImageFileReader) -> None:
    """Refuse what no scanner writes: ITK does not return from some of it (a direction of 1e308)."""
    direction = np.array(reader.GetDirection()).reshape(reader.GetDimension(), -1)
    if not (np.abs(direction) < 1.01).all():
        raise InputError(
            tr(
                "{path} has axes along {direction}, which are no unit vectors; repair the header.",
                path=path,
                direction=str(direction.T.tolist()),
            )
        )
    spacing, origin = reader.GetSpacing(), reader.GetOrigin()
    if not all(1e-9 < step < 1e9 for step in spacing) or not np.isfinite(origin).all():
        raise InputError(
            tr(
                "{path} has a voxel spacing of {spacing} mm and its origin at {origin}; repair the header.",
                path=path,
                spacing=str(spacing),
                origin=str(origin),
            )
        )


@contextlib.contextmanager
def _straightened_sform(wanted: bool) -> Iterator[None]:
    """Let ITK's NIfTI readers straighten a sheared sform; they ask the environment when they are made."""
    if not wanted:
        yield
        return
    before = os.environ.get(_STRAIGHTEN_SFORM)
    os.environ[_STRAIGHTEN_SFORM] = "1"
    try:
        yield
    finally:
        del os.environ[_STRAIGHTEN_SFORM]
        if before is not None:
            os.environ[_STRAIGHTEN_SFORM] = before


@contextlib.contextmanager
def read_errors(path: Path, what: Sentence | None = None) -> Iterator[None]:
    """Raise ITK's exceptions as InputError, and silence its warnings.

    Parameters
    ----------
    path : Path
        What is read.
    what : Sentence, optional
        What it should be: "an image" if None.
    """
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    except (RuntimeError, MemoryError, IndexError, UnicodeDecodeError) as error:
        # the last where ITK quotes bytes of the file that are no text
        said = error.object.decode("utf-8", "replace") if isinstance(error, UnicodeDecodeError) else str(error)
        reason = re.sub(r"^(ITK |sitk::)ERROR:\s*", "", (said.strip().splitlines() or [tr("out of memory")])[-1])
        raise InputError(
            tr(
                "{path} cannot be read as {what} ({reason}); is it damaged or of another type?",
                path=path,
                what=what or tr("an image"),
                reason=reason.strip(),
            )
        ) from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def grid_of(image: SimpleITK.Image) -> Grid:
    """Return the grid of a 3D image of SimpleITK."""
    direction = np.reshape(image.GetDirection(), (3, 3))
    return Grid.from_parts(image.GetSize(), image.GetSpacing(), image.GetOrigin(), direction)


def sitk_image(array: np.ndarray, grid: Grid, vectors: bool = False) -> SimpleITK.Image:
    """Make an image of SimpleITK, which holds its own copy of the voxels.

    Parameters
    ----------
    array : ndarray, [k, j, i] or [k, j, i, component]
    grid : Grid
    vectors : bool
        Whether the last axis counts components.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array, isVector=vectors)
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    return image


def write_sitk_image(image: SimpleITK.Image, path: Path) -> None:
    """Write a compressed image file.

    Raises
    ------
    OSError
        For a compressed NIfTI that is incomplete: on a full disk ITK says nothing. The last word of a gzip file is its
        length without compression (RFC 1952).
    """
    import SimpleITK as sitk

    sitk.WriteImage(image, str(path), True)
    if path.name.endswith(".nii.gz"):
        values = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel()
        length = _NIFTI_START + values * image.GetSizeOfPixelComponent()
        with open(path, "rb") as file:
            file.seek(-min(4, path.stat().st_size), os.SEEK_END)
            if file.read(4) != struct.pack("<I", length % 2**32):
                raise OSError(errno.ENOSPC, "was not written to its end", str(path))


def storable(array: np.ndarray) -> np.ndarray:
    """Return `array` in the nearest type that Slicer reads, values unchanged; contiguous, in native byte order."""
    dtype = np.dtype({"bool": "uint8", "int8": "int16", "float16": "float32"}.get(array.dtype.name, array.dtype))
    if dtype.kind in "iu" and dtype.itemsize == 8:
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        fits = [t for t in (np.int32, np.uint32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max]
        dtype = np.dtype(fits[0] if fits else np.float64)
    elif dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))
