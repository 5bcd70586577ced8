"""Convert between ITK images and our values, and turn ITK's errors into sentences."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Grid

IMAGE_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")

#: Between a DICOM folder and the UID of one of its series.
SERIES_SEPARATOR = "::"

#: Byte of the first voxel in the NIfTI files that ITK writes.
_NIFTI_START = 352


@dataclass(frozen=True)
class ImageHeader:
    """What a file holds, read without its voxels. shape: (k, j, i).  bytes: of the voxels in memory."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    bytes: int


def _write_picture(picture, path: Path) -> None:
    """By ITK. Raises OSError for a compressed NIfTI that was not written to its end: on a full disk ITK says nothing.

    The last word of a gzip file is its length without compression (RFC 1952).
    """
    import itk

    itk.imwrite(picture, str(path), compression=True)
    if path.name.endswith(".nii.gz"):
        length = _NIFTI_START + itk.array_view_from_image(picture).nbytes
        with open(path, "rb") as file:
            file.seek(-min(4, path.stat().st_size), os.SEEK_END)
            if file.read(4) != struct.pack("<I", length % 2**32):
                raise OSError(errno.ENOSPC, "was not written to its end", str(path))


def _existing(path) -> tuple[Path, str | None]:
    text, _, series = str(path).partition(SERIES_SEPARATOR)
    path = Path(text).expanduser()
    if not path.exists():
        raise InputError(f"{path} does not exist; check the path.")
    return path, series or None


def _stem(path: Path) -> str:
    return re.sub(r"(\.seg)?\.(nrrd|nhdr|nii|nii\.gz|mha|mhd|mrk\.json|fcsv|csv|vtk)$", "", path.name)


def _pixel_types() -> dict:
    """ITK's wrapped pixel types -> the names of numpy's."""
    import itk

    return {
        itk.UC: "uint8",
        itk.SS: "int16",
        itk.US: "uint16",
        itk.SI: "int32",
        itk.UI: "uint32",
        itk.F: "float32",
        itk.D: "float64",
    }


#: ITK's names of component types -> numpy's ("long" is 64 bits in files: NIfTI's, NRRD's and MetaImage's int64).
_COMPONENTS = {
    "unsigned_char": "uint8",
    "char": "int8",
    "unsigned_short": "uint16",
    "short": "int16",
    "unsigned_int": "uint32",
    "int": "int32",
    "unsigned_long": "uint64",
    "long": "int64",
    "unsigned_long_long": "uint64",
    "long_long": "int64",
    "float": "float32",
    "double": "float64",
}


@contextlib.contextmanager
def _itk_errors(path: Path, what: str = "an image") -> Iterator[None]:
    """ITK's exceptions as InputError, and its warnings silenced."""
    import itk

    shown = itk.Object.GetGlobalWarningDisplay()
    itk.Object.SetGlobalWarningDisplay(False)
    try:
        yield
    except (RuntimeError, MemoryError, IndexError, UnicodeDecodeError) as error:
        # the last where ITK quotes bytes of the file that are no text
        said = error.object.decode("utf-8", "replace") if isinstance(error, UnicodeDecodeError) else str(error)
        reason = (said.strip().splitlines() or ["out of memory"])[-1].removeprefix("ITK ERROR:").strip()
        raise InputError(f"{path} cannot be read as {what} ({reason}); is it damaged or of another type?") from error
    finally:
        itk.Object.SetGlobalWarningDisplay(shown)


def _image_header(size, dtype: np.dtype) -> ImageHeader:
    shape = tuple(int(n) for n in reversed(size))
    return ImageHeader(shape, dtype, int(np.prod(shape, dtype=object)) * dtype.itemsize)


def _grid_of(image) -> Grid:
    import itk

    return Grid.from_parts(
        itk.size(image), itk.spacing(image), itk.origin(image), itk.array_from_matrix(image.GetDirection())
    )


def _set_grid(image, grid: Grid) -> None:
    import itk

    image.SetSpacing([float(s) for s in grid.spacing])
    image.SetOrigin([float(o) for o in grid.origin])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))


def _storable(array: np.ndarray) -> np.ndarray:
    """`array` in the nearest type that ITK writes and Slicer reads, values unchanged; contiguous, native bytes."""
    dtype = np.dtype({"bool": "uint8", "int8": "int16", "float16": "float32"}.get(array.dtype.name, array.dtype))
    if dtype.kind in "iu" and dtype.itemsize == 8:
        low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
        fits = [t for t in (np.int32, np.uint32) if np.iinfo(t).min <= low and high <= np.iinfo(t).max]
        dtype = np.dtype(fits[0] if fits else np.float64)
    elif dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    return np.ascontiguousarray(array, dtype=dtype.newbyteorder("="))
