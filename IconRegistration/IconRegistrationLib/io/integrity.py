"""Check that a file holds all the voxels that its header promises, undamaged."""

from __future__ import annotations

import contextlib
import gzip
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..machine import physical_memory
from ..spatial.geometry import Grid
from .writing import _BLOCK

#: zlib's word for: a zlib or a gzip stream, as its first bytes say.
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
