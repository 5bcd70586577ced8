"""Volumes, segmentations, landmarks and transforms from files and to files.

Everything is read into world coordinates in mm, LPS. Nothing is ever left half written under its final name. ITK does
the reading; what it reads wrongly without complaint (a truncated NIfTI, a sheared sform, a DICOM series with missing
slices) is caught here.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import gzip
import hashlib
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .checks import physical_memory
from .errors import InputError
from .geometry import Grid, Image, Landmarks, Segment, Segmentation, flip_vectors

if TYPE_CHECKING:
    from .displacement import DisplacementField

IMAGE_SUFFIXES = (".nrrd", ".nii.gz", ".nii", ".mha")
TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm")
#: Between a DICOM folder and the UID of one of its series.
SERIES_SEPARATOR = "::"
#: Bytes that are read, or unpacked, at once.
_BLOCK = 1 << 22
#: zlib's word for: a zlib or a gzip stream, as its first bytes say.
_ZLIB_OR_GZIP = 47
#: NIfTI's codes of voxel types with one value -> numpy's.
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
#: Byte of the first voxel in the NIfTI files that ITK writes.
_NIFTI_START = 352
#: More distinct values than any atlas has: an image, not a label map.
MOST_LABELS = 5000


# ---------------------------------------------------------------------------------------------------------- images


@dataclass(frozen=True)
class ImageHeader:
    """What a file holds, read without its voxels. shape: (k, j, i).  bytes: of the voxels in memory."""

    shape: tuple[int, int, int]
    dtype: np.dtype
    bytes: int


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


# --------------------------------------------------------------------------------------- what ITK does not check


@dataclass(frozen=True)
class _Stored:
    """Where the voxels of an image are on the disk.

    path, start: the file that holds them, and the byte at which they begin there, or the stream that packs them.
    packed: as zlib's or gzip's stream.  ahead: bytes of that stream before the first voxel.
    itemsize: bytes of a value, which ITK may rescale to a wider type.
    floats: numpy's type where what is not a number would be read as 0, else None.
    """

    path: Path
    start: int
    packed: bool
    itemsize: int
    ahead: int = 0
    floats: np.dtype | None = None


def _check_voxels(path: Path, io) -> None:
    """Raises InputError for what ITK reads over without a word: voxels that are missing (a truncated NIfTI) or fail
    their checksum (all that is compressed), and NaN, which become 0 in NIfTI files. And for what no memory holds.
    """
    there, needed = physical_memory(), int(io.GetImageSizeInBytes())
    if there is not None and needed > there:
        raise InputError(
            f"The header of {path} promises {needed / 2**30:.0f} GiB of voxels and this machine has "
            f"{there / 2**30:.0f} GiB of memory; repair the header, or crop the image."
        )
    with _damage(path):
        stored = _stored(path, io)
        if stored is None:
            return
        needed = int(io.GetImageSizeInComponents()) * stored.itemsize
        held, wrong = _held(stored, needed)
    if held < needed:
        raise InputError(f"{path} is truncated: {held} of {needed} bytes of its voxels are there; copy it again.")
    if wrong:
        raise InputError(
            f"{path} has {wrong} voxels that are not a number (NaN or infinite); replace them, for instance by the "
            "background value."
        )


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """What Python says of a damaged file as InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, struct.error, ValueError, OverflowError) as error:
        raise InputError(f"{path} cannot be read ({error}); is it damaged? Copy it again.") from error


def _held(stored: _Stored, needed: int) -> tuple[int, int]:
    """(bytes of voxels that are there, up to `needed` or a little more; how many of them are not a number)."""
    if not stored.packed and stored.floats is None:
        return max(stored.path.stat().st_size - stored.start, 0), 0
    held, wrong, rest = -stored.ahead, 0, b""
    with open(stored.path, "rb") as file:
        file.seek(stored.start)
        for block in _inflated(file) if stored.packed else iter(lambda: file.read(_BLOCK), b""):
            fresh = block[max(-held, 0) :][: max(needed - max(held, 0), 0)]
            held += len(block)
            if stored.floats is not None:
                rest += fresh
                whole = len(rest) - len(rest) % stored.itemsize
                wrong += np.count_nonzero(~np.isfinite(np.frombuffer(rest[:whole], stored.floats)))
                rest = rest[whole:]
            if held > needed:  # what follows was not promised, and may be without end
                break
    return max(held, 0), wrong


def _inflated(file) -> Iterator[bytes]:
    """The blocks of a zlib stream, or of gzip members one after the other. Raises zlib.error, also for a wrong
    checksum, and EOFError where it ends too early."""
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    while packed := file.read(_BLOCK):
        while packed:
            if stream.eof:
                if packed[:1] != b"\x1f":  # padding
                    return
                stream = zlib.decompressobj(_ZLIB_OR_GZIP)
            yield stream.decompress(packed, _BLOCK)
            packed = stream.unconsumed_tail or stream.unused_data
    yield stream.flush()
    if not stream.eof:
        raise EOFError("the compressed voxels end too early")


def _stored(path: Path, io) -> _Stored | None:
    """None for formats and encodings in which ITK notices itself what is missing, or which are not known here."""
    if io.GetNameOfClass() == "NiftiImageIO":
        return _stored_nifti(path)
    if io.GetNameOfClass() not in ("NrrdImageIO", "MetaImageIO"):
        return None
    with open(path, "rb") as file:
        fields = _header_fields(file)
        start = file.tell()
    packed = fields.get("encoding") in ("gzip", "gz") or fields.get("compresseddata", "").lower() == "true"
    if not packed or {"line skip", "byte skip", "lineskip", "byteskip", "headersize"} & set(fields):
        return None
    elsewhere = fields.get("data file") or fields.get("datafile") or fields.get("elementdatafile", "LOCAL")
    if elsewhere != "LOCAL":
        path, start = path.parent / elsewhere, 0
        if not path.is_file():  # a list or a pattern of files, or ITK says it
            return None
    return _Stored(path, start, True, io.GetComponentSize())


def _header_fields(file) -> dict[str, str]:
    """The lines "key: value" of an NRRD or "key = value" of a MetaImage; leaves `file` where the header ends."""
    fields = {}
    while "elementdatafile" not in fields and (line := file.readline(_BLOCK).decode("latin-1").strip()):
        key, _, value = line.partition("=" if re.match(r"\w+\s*=", line) else ":")
        fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _stored_nifti(path: Path) -> _Stored:
    header = _nifti_header(path)
    voxels = path
    if not header.single_file:
        voxels = path.with_name(re.sub(r"\.hdr(\.gz)?$", r".img\1", path.name, flags=re.IGNORECASE))
    packed = _is_gzip(voxels)
    start, ahead = (0, header.start) if packed else (header.start, 0)
    floats = header.dtype if header.dtype.kind == "f" else None
    return _Stored(voxels, start, packed, header.dtype.itemsize, ahead, floats)


@dataclass(frozen=True)
class _NiftiHeader:
    """What ITK does not tell. start: byte of the first voxel.  dtype: of the values as stored.  sform: (3, 4), RAS."""

    start: int
    dtype: np.dtype
    single_file: bool
    sform: np.ndarray


def _nifti_header(path: Path) -> _NiftiHeader:
    """Of NIfTI's first version (ITK reads no second), or of Analyze, from which it descends. Raises struct.error."""
    path = path.with_name(re.sub(r"\.img(\.gz)?$", r".hdr\1", path.name, flags=re.IGNORECASE))
    with gzip.open(path) if _is_gzip(path) else open(path, "rb") as file:
        header = file.read(348)
    order = next((order for order in "<>" if struct.unpack(order + "i", header[:4])[0] == 348), None)
    if order is None:
        raise InputError(f"{path} has no valid length of its NIfTI header; copy it again.")

    def field(kind: str, place: int) -> tuple:
        return struct.unpack_from(order + kind, header, place)

    (code,), (start,), (magic,) = field("h", 70), field("f", 108), field("4s", 344)
    dtype = np.dtype(_NIFTI_TYPES.get(code, "u1")).newbyteorder(order)
    return _NiftiHeader(max(int(start), 0), dtype, magic[:2] == b"n+", np.reshape(field("12f", 280), (3, 4)))


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _refuse_sheared_nifti(path: Path, grid: Grid, io) -> None:
    """Where ITK had to straighten the sform: no corner may have moved by more than half a voxel."""
    if not getattr(io, "GetSFORM_Permissive", lambda: False)():
        return
    affine = np.vstack([_nifti_header(path).sform, [0, 0, 0, 1]])
    affine[:2] *= -1  # RAS -> LPS
    if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(f"{path} has a singular sform {affine[:3, :3].tolist()}; repair the header.")
    moved = float(np.linalg.norm(Grid(grid.shape, affine).corners() - grid.corners(), axis=1).max())
    if moved > grid.spacing.min() / 2:
        raise InputError(
            f"{path} has a sform whose axes are not at right angles (straightening it moves a corner by {moved:.1f} mm)"
            " and no qform; resample it to a rectangular grid."
        )


# ------------------------------------------------------------------------------------------------------------ DICOM


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


# ---------------------------------------------------------------------------------------------------- segmentations


def read_segmentation(path) -> Segmentation:
    """A .seg.nrrd of Slicer with its names, colours, terminology and layers, or any label map ("label N").

    Raises InputError for an image that is no label map.
    """
    path, _ = _existing(path)
    if path.name.lower().endswith(".nrrd"):
        io = _open(path)
        if any(key == "Segment0_ID" or key == "Segment0_Name" for key in _metadata(io)):
            return _read_seg_nrrd(path, io)
    image = read_image(path)
    _refuse_unlabelled(image, path)
    labels = image.array
    if labels.dtype.kind == "f":
        labels = labels.astype(np.int32)
    return Segmentation.from_labels(Image(labels, image.grid, image.name))


def write_segmentation(segmentation: Segmentation, path) -> None:
    """.seg.nrrd keeps everything; .nii.gz, .nrrd or .mha is a label map (InputError where segments overlap).

    Label values stay as they are, or become 1..N where two layers use the same value.
    """
    if Path(path).name.lower().endswith(".seg.nrrd"):
        _write_seg_nrrd(segmentation, path)
    else:
        write_image(Image(_one_layer(segmentation), segmentation.grid, segmentation.name), path)


def _refuse_unlabelled(image: Image, path: Path) -> None:
    array = image.array
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and np.array_equal(array, np.rint(array))):
        raise InputError(f"{path} is no label map: it holds values that are not whole numbers; give a segmentation.")
    if array.size and array.min() < 0:
        raise InputError(f"{path} is no label map: it holds {array.min()}; labels are 0 (background) and above.")
    if array.size and array.max() > MOST_LABELS and (n := len(np.unique(array))) > MOST_LABELS:
        raise InputError(f"{path} is no label map: it holds {n} different values; give a segmentation.")


def _metadata(io) -> dict[str, str]:
    dictionary = io.GetMetaDataDictionary()
    keys = [key for key in dictionary.GetKeys() if key.startswith("Segment") and key.isascii()]
    # bytes that are no UTF-8 become lone surrogates, which no file of ours could hold
    return {key: _readable(dictionary[key]) for key in keys if isinstance(dictionary[key], str)}


def _readable(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_seg_nrrd(path: Path, io) -> Segmentation:
    import itk

    components = io.GetNumberOfComponents()
    pixel = {"uint8": itk.UC, "int16": itk.SS, "uint16": itk.US}.get(
        _COMPONENTS.get(io.GetComponentTypeAsString(io.GetComponentType()), ""), itk.D
    )
    _check_voxels(path, io)
    with _itk_errors(path, "a segmentation"):
        reader = itk.ImageFileReader[itk.VectorImage[pixel, 3]].New(FileName=str(path), ImageIO=io)
        reader.Update()
    image = reader.GetOutput()
    values = itk.array_from_image(image).reshape((*itk.array_view_from_image(image).shape[:3], components))
    if pixel == itk.D:
        values = values.astype(np.int32)
    layers = tuple(np.ascontiguousarray(values[..., c]) for c in range(components))

    fields = _metadata(io)
    numbers = sorted({int(m[1]) for key in fields if (m := re.match(r"Segment(\d{1,6})_", key))})
    segments = []
    for n in numbers:
        entry = {key.partition("_")[2]: text for key, text in fields.items() if key.startswith(f"Segment{n}_")}
        try:
            segments.append(_segment(n, entry))
        except ValueError as error:
            raise InputError(f"{path}: segment {n} cannot be read ({error}); save it again from Slicer.") from None
        if not 0 <= segments[-1].layer < components:
            raise InputError(
                f"{path}: segment {segments[-1].name!r} is in layer {segments[-1].layer}, but the file has "
                f"{components}; save it again from Slicer."
            )
    return Segmentation(layers, tuple(segments), _grid_of(image), _stem(path))


def _segment(n: int, entry: dict[str, str]) -> Segment:
    """The n-th segment of a .seg.nrrd. Raises ValueError."""
    color = tuple(float(c) for c in entry.get("Color", "0.5 0.5 0.5").split()[:3])
    if len(color) != 3 or not all(0 <= c <= 1 for c in color):
        raise ValueError(f"its colour is {entry['Color']!r}")
    return Segment(
        name=entry.get("Name", entry.get("ID", f"Segment_{n + 1}")),
        value=int(entry.get("LabelValue", 1)),  # before Slicer 4.11 every segment had a layer of its own
        layer=int(entry.get("Layer", n)),
        color=color,
        identifier=entry.get("ID", f"Segment_{n + 1}"),
        tags=dict(tag.split(":", 1) for tag in entry.get("Tags", "").split("|") if ":" in tag),
    )


def _write_seg_nrrd(segmentation: Segmentation, path) -> None:
    """NRRD as Slicer's segmentation storage node writes it: layers along a "list" axis, segments as key:=value lines.

    Written here because ITK writes several layers as a vector image, which Slicer does not take for layers.
    """
    path = writable(path, (".seg.nrrd",), segmentation.grid, segmentation.name)
    layers = segmentation.layers or (np.zeros(segmentation.grid.shape, np.uint8),)
    highest = max(int(layer.max(initial=0)) for layer in layers)
    dtype = np.dtype(np.uint8 if highest < 2**8 else "<i2" if highest < 2**15 else "<i4")
    grid, several = segmentation.grid, len(layers) > 1
    sizes = [*([len(layers)] if several else []), *grid.size]
    directions = [f"({','.join(repr(float(c)) for c in column)})" for column in grid.affine[:3, :3].T]
    lines = [
        "NRRD0004",
        f"type: {dtype.name}",
        f"dimension: {len(sizes)}",
        "space: left-posterior-superior",
        f"sizes: {' '.join(map(str, sizes))}",
        f"space directions: {'none ' if several else ''}{' '.join(directions)}",
        f"kinds: {'list ' if several else ''}domain domain domain",
        "endian: little",
        "encoding: gzip",
        f"space origin: ({','.join(repr(float(c)) for c in grid.origin)})",
    ]
    extent = " ".join(f"0 {n - 1}" for n in grid.size)
    for n, segment in enumerate(segmentation.segments):
        entry = {
            "Color": " ".join(f"{c:.6g}" for c in segment.color),
            "ColorAutoGenerated": "0",
            "Extent": extent,
            "ID": segment.identifier or f"Segment_{n + 1}",
            "LabelValue": str(segment.value),
            "Layer": str(segment.layer),
            "Name": segment.name,
            "NameAutoGenerated": "0",
            "Tags": "".join(f"{key}:{value}|" for key, value in segment.tags.items()),
        }
        lines += [f"Segment{n}_{key}:={_one_line(value)}" for key, value in entry.items()]
    lines += [
        "Segmentation_ContainedRepresentationNames:=Binary labelmap|",
        "Segmentation_MasterRepresentation:=Binary labelmap",
        "Segmentation_ReferenceImageExtentOffset:=0 0 0",
    ]
    voxels = np.stack(layers, axis=-1) if several else layers[0]  # the list axis is the fastest
    with replacing(path) as partial, open(partial, "wb") as file:
        file.write("\n".join(lines).encode() + b"\n\n")
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=4, mtime=0) as compressed:
            compressed.write(np.ascontiguousarray(voxels, dtype=dtype))


def _one_line(text: str) -> str:
    """NRRD's escapes: a value ends with its line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _one_layer(segmentation: Segmentation) -> np.ndarray:
    """All segments in one label map [k, j, i]."""
    values = [s.value for s in segmentation.segments]
    if len(set(values)) < len(values):
        values = range(1, len(values) + 1)
    labels = np.zeros(segmentation.grid.shape, np.int32 if max(values, default=0) >= 2**15 else np.int16)
    for segment, value in zip(segmentation.segments, values, strict=True):
        mask = segmentation.mask(segment)
        if labels[mask].any():
            raise InputError(
                f"{segmentation.name}: segment {segment.name!r} overlaps another, which a label map cannot hold; "
                "write .seg.nrrd."
            )
        labels[mask] = value
    return labels


# -------------------------------------------------------------------------------------------------------- landmarks


def read_landmarks(path) -> Landmarks:
    """Points of Slicer's .mrk.json and .fcsv, of a .csv, or of a legacy ASCII .vtk; mm, LPS.

    .csv: a header line with "label" and either "l,p,s", "r,a,s" (Slicer's table export) or "x,y,z" (LPS).
    .vtk: taken as LPS, labelled "1", "2", ... in order. Points without a position are left out. Raises InputError.
    """
    path, _ = _existing(path)
    readers = {".json": _points_of_json, ".fcsv": _points_of_fcsv, ".csv": _points_of_csv, ".vtk": _points_of_vtk}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path} is no list of landmarks; give .mrk.json, .fcsv, .csv or .vtk.")
    try:
        labels, points = reader(path)
        points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    except InputError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, csv.Error, OSError) as error:
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(f"{path} cannot be read as landmarks ({reason}); export it again from Slicer.") from error
    if not len(points):
        raise InputError(f"{path} holds no landmark with a position; place at least one.")
    if not np.isfinite(points).all():
        raise InputError(f"{path}: landmark {labels[int(np.argmin(np.isfinite(points).all(1)))]!r} is not finite.")
    return Landmarks(points, tuple(labels), _stem(path))


def write_landmarks(landmarks: Landmarks, path) -> None:
    """Slicer's .mrk.json, a point list in LPS."""
    path = writable(path, (".mrk.json",))
    points = [
        {"id": str(n + 1), "label": label, "position": [float(c) for c in point], "positionStatus": "defined"}
        for n, (label, point) in enumerate(zip(landmarks.labels, landmarks.points, strict=True))
    ]
    schema = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    document = {"@schema": schema + "markups-schema-v1.0.3.json#", "markups": [markup]}
    with replacing(path) as partial:
        partial.write_text(json.dumps(document, indent=1, ensure_ascii=False), encoding="utf-8")


def _to_lps(points, system: str) -> np.ndarray:
    """From Slicer's names of coordinate systems: words, or 0 and 1 in older files."""
    points = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    if system.upper() in ("LPS", "1"):
        return points
    if system.upper() in ("RAS", "0"):
        return flip_vectors(points)
    raise ValueError(f"coordinate system {system!r}")


def _points_of_json(path: Path):
    markups = json.loads(path.read_text(encoding="utf-8-sig"))["markups"]
    if len(markups) != 1:
        raise InputError(f"{path} holds {len(markups)} markups; give a file with one point list.")
    points = [p for p in markups[0]["controlPoints"] if p.get("positionStatus", "defined") == "defined"]
    labels = [str(p.get("label", n + 1)) for n, p in enumerate(points)]
    return labels, _to_lps([p["position"] for p in points], str(markups[0].get("coordinateSystem", "RAS")))


def _points_of_fcsv(path: Path):
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    header = dict(line[1:].split("=", 1) for line in lines if line.startswith("#") and "=" in line)
    header = {key.strip(): value.strip() for key, value in header.items()}
    columns = header.get("columns", "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID").split(",")
    rows = list(csv.reader(line for line in lines if line.strip() and not line.startswith("#")))
    label, first = columns.index("label"), columns.index("x")
    labels = [row[label] if len(row) > label else str(n + 1) for n, row in enumerate(rows)]
    return labels, _to_lps([row[first : first + 3] for row in rows], header.get("CoordinateSystem", "RAS"))


def _points_of_csv(path: Path):
    rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
    rows = [{key.strip().lower(): value for key, value in row.items() if key} for row in rows]
    rows = [row for row in rows if row.get("defined", "1") not in ("0", "False", "false")]
    axes = next((a for a in ("lps", "ras", "xyz") if rows and all(c in rows[0] for c in a)), None)
    if axes is None:
        raise InputError(
            f"{path} needs a header line with the columns label,l,p,s or label,r,a,s and at least one row."
        )
    labels = [row.get("label") or str(n + 1) for n, row in enumerate(rows)]
    return labels, _to_lps([[row[c] for c in axes] for row in rows], "RAS" if axes == "ras" else "LPS")


def _points_of_vtk(path: Path):
    if b"\nASCII" not in path.read_bytes()[:512]:
        raise InputError(f"{path} is no legacy ASCII .vtk file; convert the points to .mrk.json.")
    text = path.read_text(encoding="ascii", errors="replace")
    match = re.search(r"^POINTS\s+(\d+)\s+\w+\s", text, re.MULTILINE)
    if match is None:
        raise InputError(f"{path} holds no POINTS; convert the points to .mrk.json.")
    count = int(match[1])
    numbers = text[match.end() :].split()[: 3 * count]
    points = np.array(numbers, dtype=np.float64).reshape(count, 3)
    return [str(n + 1) for n in range(count)], points


# ------------------------------------------------------------------------------------------------------- transforms


def write_field(field: DisplacementField, path) -> None:
    """A displacement field for Slicer and ITK: fixed -> moving, mm, LPS.

    .nii.gz (compressed float32, NIfTI's vector intent 1007), .nrrd or .mha is a displacement image; .h5 or .tfm an ITK
    transform (double, larger). Slicer loads both as a transform.
    """
    import itk

    path = writable(path, IMAGE_SUFFIXES + TRANSFORM_SUFFIXES, field.grid, "The field")
    with replacing(path) as partial:
        if path.name.endswith(TRANSFORM_SUFFIXES):
            itk.transformwrite([field.to_itk()], str(partial))
        else:
            vectors = np.ascontiguousarray(field.displacement, dtype=np.float32)
            image = itk.image_view_from_array(vectors, is_vector=True)
            _set_grid(image, field.grid)
            _write_picture(image, partial)


def read_transform(path):
    """Any transform that ITK reads (.h5, .tfm, .txt, .mat) or a displacement image, as one itk transform.

    It maps fixed points to moving points (mm, LPS), as resampling does; several in one file become a composite in
    ITK's order (the last is applied first). Raises InputError.
    """
    import itk

    path, _ = _existing(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a transform; give a .h5, .tfm or a displacement image.")
    if path.name.lower().endswith((*IMAGE_SUFFIXES, ".nhdr", ".mhd")):
        return _read_displacement_image(path)
    with _itk_errors(path, "a transform"), _with_constructible_names(path) as readable:
        transforms = list(itk.transformread(str(readable)))
    for transform in transforms:
        if not hasattr(transform, "TransformPoint") or transform.GetInputSpaceDimension() != 3:
            raise InputError(f"{path} holds a {type(transform).__name__}, which is not 3D; give a 3D transform.")
        if hasattr(transform, "GetDisplacementField"):
            _refuse_not_finite(path, itk.array_view_from_image(transform.GetDisplacementField()))
        elif not np.isfinite(np.array(transform.TransformPoint([0.0, 0.0, 0.0]))).all():
            raise InputError(f"{path} maps points to infinity; give another transform.")
    if len(transforms) == 1:
        return transforms[0]
    composite = itk.CompositeTransform[itk.D, 3].New()
    for transform in transforms:
        composite.AddTransform(transform)
    return composite


def _refuse_not_finite(path: Path, displacement: np.ndarray) -> None:
    if not np.isfinite(displacement).all():
        raise InputError(f"{path} has displacements that are not a number (NaN or infinite); make it again.")


def _read_displacement_image(path: Path):
    import itk

    from .displacement import DisplacementField

    io = _open(path)
    if io.GetNumberOfComponents() != 3 or io.GetNumberOfDimensions() < 3:
        raise InputError(
            f"{path} is no displacement field: it has {io.GetNumberOfComponents()} values per voxel, not 3."
        )
    _check_voxels(path, io)
    with _itk_errors(path, "a displacement field"):
        reader = itk.ImageFileReader[itk.Image[itk.Vector[itk.F, 3], 3]].New(FileName=str(path), ImageIO=io)
        reader.Update()
    image = reader.GetOutput()
    _refuse_not_finite(path, itk.array_view_from_image(image))
    return DisplacementField(itk.array_from_image(image), _grid_of(image)).to_itk()


@contextlib.contextmanager
def _with_constructible_names(path: Path) -> Iterator[Path]:
    """A text transform whose type only ITK's C++ programs construct, under the name of the same affine map.

    Elastix, BRAINS and older ANTs write "MatrixOffsetTransformBase", which ITK's Python factory does not know; the
    parameters are those of an AffineTransform.
    """
    import tempfile

    if path.suffix.lower() not in (".txt", ".tfm"):
        yield path
        return
    content = path.read_bytes()
    _refuse_promised_lattice(path, content)
    if b"MatrixOffsetTransformBase" not in content:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        renamed = Path(folder) / "transform.tfm"
        renamed.write_bytes(content.replace(b"MatrixOffsetTransformBase", b"AffineTransform"))
        yield renamed


def _refuse_promised_lattice(path: Path, content: bytes) -> None:
    """A text transform with a lattice has its samples: ITK makes room for what is promised, whatever there is."""
    held = len(content.split())
    for fixed in re.findall(rb"^FixedParameters:(.*)$", content, re.MULTILINE):
        size = fixed.split()[:3]
        if len(fixed.split()) >= 18 and all(n.isdigit() for n in size) and 3 * math.prod(map(int, size)) > held:
            promised = b" x ".join(size).decode()
            raise InputError(f"{path} promises {promised} displacements and does not hold them; copy it again.")


# ------------------------------------------------------------------------------------------------------------ paths


def writable(path, suffixes: tuple[str, ...], grid: Grid | None = None, name: str = "") -> Path:
    """A path that can be written: known type, existing folder, and a grid that files can hold."""
    path = Path(path).expanduser()
    if not path.name.lower().endswith(suffixes):
        raise InputError(f"{path} has a type that cannot be written; name it {' or '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; create it first.")
    if grid is not None and not grid.is_orthogonal:
        raise InputError(f"{name}: the axes of its grid are not at right angles, which files cannot hold; resample it.")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; it becomes `path` when all went well and vanishes when not."""
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256_of(paths: Iterable[Path]) -> str:
    """Of the contents of files, one after the other. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()
