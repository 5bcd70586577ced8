"""Check that an image file holds all the voxels that its header promises, undamaged."""

from __future__ import annotations

import contextlib
import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import InputError
from ..machine import physical_memory
from ..spatial.geometry import Grid
from ..text import tr
from .sitk_images import ImageFile, header_fields
from .writing import BLOCK

#: zlib's code of either a zlib or a gzip stream, as its first bytes say.
_ZLIB_OR_GZIP = 47

#: NIfTI's codes of voxel types with one value -> numpy's.
_NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


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


def check_voxels(file: ImageFile) -> None:
    """Check that all voxels of an image file are there, and that memory holds them.

    ITK says nothing of voxels that are missing (a truncated NIfTI) or fail their checksum (all that is compressed), nor
    of NaN, which becomes 0 in NIfTI files.

    Raises
    ------
    InputError
        If voxels are missing or damaged, are not a number, or do not fit into this machine's memory.
    """
    path, memory = file.path, physical_memory()
    if memory is not None and file.bytes > memory:
        raise InputError(
            tr(
                "The header of {path} promises {needed:.0f} GiB of voxels and this machine has {memory:.0f} GiB of "
                "memory; repair the header, or crop the image.",
                path=path,
                needed=file.bytes / 2**30,
                memory=memory / 2**30,
            )
        )
    with _damage(path):
        stored = _stored(file)
        if stored is None:
            return
        needed = file.values * stored.itemsize
        held, wrong = _held(stored, needed)
    if held < needed:
        raise InputError(
            tr(
                "{path} is truncated: {held} of {needed} bytes of its voxels are there; copy it again.",
                path=path,
                held=held,
                needed=needed,
            )
        )
    if wrong:
        raise InputError(
            tr(
                "{path} has {count} voxels that are not a number (NaN or infinite); replace them, for instance by the "
                "background value.",
                path=path,
                count=wrong,
            )
        )


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Raise Python's exceptions at a damaged file as InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, EOFError, zlib.error, struct.error, ValueError, OverflowError) as error:
        raise InputError(
            tr("{path} cannot be read ({reason}); is it damaged? Copy it again.", path=path, reason=str(error))
        ) from error


def _held(stored: _Stored, needed: int) -> tuple[int, int]:
    """Count the existing bytes of voxels, up to `needed` or a little more, and those that are not a number."""
    if not stored.packed and stored.floats is None:
        return max(stored.path.stat().st_size - stored.start, 0), 0
    held, wrong, rest = -stored.ahead, 0, b""
    with open(stored.path, "rb") as file:
        file.seek(stored.start)
        for block in _inflated(file) if stored.packed else iter(lambda: file.read(BLOCK), b""):
            fresh = block[max(-held, 0) :][: max(needed - max(held, 0), 0)]
            held += len(block)
            if stored.floats is not None:
                rest += fresh
                whole = len(rest) - len(rest) % stored.itemsize
                wrong += int(np.count_nonzero(~np.isfinite(np.frombuffer(rest[:whole], stored.floats))))
                rest = rest[whole:]
            if held > needed:  # what follows was not promised, and may be without end
                break
    return max(held, 0), wrong


def _inflated(file) -> Iterator[bytes]:
    """Unpack a zlib stream, or gzip members one after the other, block by block.

    Raises zlib.error, also for a wrong checksum, and EOFError where it ends too early.
    """
    stream = zlib.decompressobj(_ZLIB_OR_GZIP)
    while packed := file.read(BLOCK):
        while packed:
            if stream.eof:
                if packed[:1] != b"\x1f":  # padding
                    return
                stream = zlib.decompressobj(_ZLIB_OR_GZIP)
            yield stream.decompress(packed, BLOCK)
            packed = stream.unconsumed_tail or stream.unused_data
    yield stream.flush()
    if not stream.eof:
        raise EOFError("the compressed voxels end too early")


def _stored(image: ImageFile) -> _Stored | None:
    """Find the voxels; None for formats and encodings in which ITK itself detects missing data, or unknown ones."""
    path = image.path
    if image.format == "NiftiImageIO":
        return _stored_nifti(path)
    if image.format not in ("NrrdImageIO", "MetaImageIO") or image.dtype is None:
        return None
    with open(path, "rb") as file:
        fields = header_fields(file)
        start = file.tell()
    packed = fields.get("encoding") in ("gzip", "gz") or fields.get("compresseddata", "").lower() == "true"
    if not packed or {"line skip", "byte skip", "lineskip", "byteskip", "headersize"} & set(fields):
        return None
    elsewhere = fields.get("data file") or fields.get("datafile") or fields.get("elementdatafile", "LOCAL")
    if elsewhere != "LOCAL":
        path, start = path.parent / elsewhere, 0
        if not path.is_file():  # a list or a pattern of files, or ITK says it
            return None
    return _Stored(path, start, True, image.dtype.itemsize)


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
    """The fields that ITK does not tell.

    start: byte of the first voxel.  dtype: of the values as stored.  sform: (3, 4), voxel (i, j, k) -> mm, RAS.
    """

    start: int
    dtype: np.dtype
    single_file: bool
    sform: np.ndarray


def _nifti_header(path: Path) -> _NiftiHeader:
    """Read a header of NIfTI's first version (ITK reads no second) or of Analyze, its ancestor. Raises struct.error."""
    path = path.with_name(re.sub(r"\.img(\.gz)?$", r".hdr\1", path.name, flags=re.IGNORECASE))
    with gzip.open(path) if _is_gzip(path) else open(path, "rb") as file:
        header = file.read(348)
    orders: tuple[Literal["<", ">"], ...] = ("<", ">")
    order = next((order for order in orders if struct.unpack(order + "i", header[:4])[0] == 348), None)
    if order is None:
        raise InputError(tr("{path} has no valid length of its NIfTI header; copy it again.", path=path))

    def field(kind: str, place: int) -> tuple:
        return struct.unpack_from(order + kind, header, place)

    (code,), (start,), (magic,) = field("h", 70), field("f", 108), field("4s", 344)
    dtype = np.dtype(_NIFTI_TYPES.get(code, "u1")).newbyteorder(order)
    return _NiftiHeader(max(int(start), 0), dtype, magic[:2] == b"n+", np.reshape(field("12f", 280), (3, 4)))


def _is_gzip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def refuse_sheared_nifti(file: ImageFile, grid: Grid) -> None:
    """Refuse a NIfTI whose sform ITK had to straighten by more than half a voxel at a corner of `grid`.

    Raises
    ------
    InputError
    """
    if not file.is_straightened:
        return
    path, affine = file.path, np.vstack([_nifti_header(file.path).sform, [0, 0, 0, 1]])
    affine[:2] *= -1  # RAS -> LPS
    if abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise InputError(
            tr("{path} has a singular sform {sform}; repair the header.", path=path, sform=str(affine[:3, :3].tolist()))
        )
    moved = float(np.linalg.norm(Grid(grid.shape, affine).corners() - grid.corners(), axis=1).max())
    if moved > grid.spacing.min() / 2:
        raise InputError(
            tr(
                "{path} has a sform whose axes are not at right angles (straightening it moves a corner by "
                "{moved:.1f} mm) and no qform; resample it to a rectangular grid.",
                path=path,
                moved=moved,
            )
        )
