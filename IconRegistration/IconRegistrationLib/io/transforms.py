"""Read and write transforms: displacement images and ITK transform files."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..spatial.displacement import DisplacementField
from ..text import tr
from .formats import Format, listed, reader_of, suffixes_of, writer_of
from .integrity import check_voxels
from .paths import existing_path
from .sitk_images import grid_of, open_image, read_errors, sitk_image, write_sitk_image
from .writing import atomic_file, writable

if TYPE_CHECKING:
    import SimpleITK

    from ..spatial.geometry import Grid

#: ITK's name of a 3D transform in a file, as AffineTransform_double_3_3.
_NAME = re.compile(rb"Transform(?:Base)?_(?:double|float)_3_3")


def write_field(field: DisplacementField, path: str | os.PathLike[str]) -> None:
    """Write a displacement field (fixed -> moving, mm, LPS) that Slicer and ITK load as a transform.

    Parameters
    ----------
    field : DisplacementField
    path : str or path-like
        A file of `TRANSFORM_FORMATS`: .nii.gz (compressed float32, NIfTI's vector intent 1007), .nrrd or .mha is a
        displacement image; .h5 or .tfm an ITK transform (double, larger).

    Raises
    ------
    InputError
        If the type of the file is unknown, its folder does not exist, or files cannot hold the grid.
    OSError
        If the disk does not take it.
    """
    path = writable(path, suffixes_of(TRANSFORM_FORMATS, written=True), field.grid, tr("The field"))
    with atomic_file(path) as partial:
        writer_of(path, TRANSFORM_FORMATS)(field, partial)


def read_transform(path: str | os.PathLike[str]) -> SimpleITK.Transform:
    """Read a transform or a displacement image.

    Parameters
    ----------
    path : str or path-like
        A file of `TRANSFORM_FORMATS`, or any other that SimpleITK reads as a transform. Several transforms of a text
        file become a composite in ITK's order (the last is applied first).

    Returns
    -------
    SimpleITK.Transform
        Maps fixed points to moving points (mm, LPS), as resampling does.

    Raises
    ------
    InputError
        If it is missing, damaged, not a 3D transform, or several in a file that is not text.
    """
    value = _read_any(path)
    return value.to_sitk() if isinstance(value, DisplacementField) else value


def read_field(path: str | os.PathLike[str], grid: Grid) -> DisplacementField:
    """Read a transform as a displacement field.

    Parameters
    ----------
    path : str or path-like
        As in `read_transform`.
    grid : Grid
        Where it is sampled, unless it has samples of its own, which are taken as they are.

    Raises
    ------
    InputError
        As `read_transform` does.
    """
    value = _read_any(path)
    if isinstance(value, DisplacementField):
        return value
    has_samples = hasattr(value, "GetDisplacementField")
    return DisplacementField.from_sitk(value, None if has_samples else grid)


def _read_any(path: str | os.PathLike[str]) -> DisplacementField | SimpleITK.Transform:
    found, _ = existing_path(path)
    if found.is_dir():
        raise InputError(
            tr(
                "{path} is a folder, not a transform; give {suffixes}.",
                path=found,
                suffixes=listed(suffixes_of(TRANSFORM_FORMATS)),
            )
        )
    read = reader_of(found, TRANSFORM_FORMATS) or _read_itk
    return read(found)


def _read_itk(path: Path) -> SimpleITK.Transform:
    import SimpleITK as sitk

    with read_errors(path, tr("a transform")), _as_one_transform(path) as readable:
        transform = sitk.ReadTransform(str(readable))
    if transform.GetDimension() != 3:
        raise InputError(
            tr("{path} holds a {name}, which is not 3D; give a 3D transform.", path=path, name=transform.GetName())
        )
    for part in _parts(transform):
        if hasattr(part, "GetDisplacementField"):
            _refuse_not_finite(path, sitk.GetArrayViewFromImage(part.GetDisplacementField()))
        elif not np.isfinite(np.array(part.TransformPoint([0.0, 0.0, 0.0]))).all():
            raise InputError(tr("{path} maps points to infinity; give another transform.", path=path))
    return transform


def _write_itk(field: DisplacementField, path: Path) -> None:
    import SimpleITK as sitk

    sitk.WriteTransform(field.to_sitk(), str(path))


def _parts(transform: SimpleITK.Transform) -> list[SimpleITK.Transform]:
    """Return the transforms that a composite is made of, or the transform itself."""
    import SimpleITK as sitk

    if not isinstance(transform, sitk.CompositeTransform):
        return [transform]
    flat = sitk.CompositeTransform(transform)
    flat.FlattenTransform()
    return [flat.GetNthTransform(n).Downcast() for n in range(flat.GetNumberOfTransforms())]


def _refuse_not_finite(path: Path, displacement: np.ndarray) -> None:
    if not np.isfinite(displacement).all():
        raise InputError(
            tr("{path} has displacements that are not a number (NaN or infinite); make it again.", path=path)
        )


def _write_image(field: DisplacementField, path: Path) -> None:
    vectors = np.ascontiguousarray(field.displacement, dtype=np.float32)
    write_sitk_image(sitk_image(vectors, field.grid, vectors=True), path)


def _read_image(path: Path) -> DisplacementField:
    import SimpleITK as sitk

    file = open_image(path)
    if file.components != 3 or len(file.size) < 3 or any(n > 1 for n in file.size[3:]) or file.dtype is None:
        raise InputError(
            tr(
                "{path} is not a displacement field: it has {count} values per voxel, not 3.",
                path=path,
                count=file.components,
            )
        )
    check_voxels(file)
    image = file.read(tr("a displacement field"))
    field = DisplacementField(sitk.GetArrayViewFromImage(image).astype(np.float32), grid_of(image))
    _refuse_not_finite(path, field.displacement)
    return field


@contextlib.contextmanager
def _as_one_transform(path: Path) -> Iterator[Path]:
    """Yield a file with one transform: of several in a text file a composite; SimpleITK reads the first alone.

    Raises InputError for several in a binary file, and for a lattice without its samples.
    """
    if path.suffix.lower() not in (".txt", ".tfm"):
        _refuse_several(path)
        yield path
        return
    content = path.read_bytes()
    _refuse_promised_lattice(path, content)
    kinds = re.findall(rb"^Transform:\s*(\w+)", content, re.MULTILINE)
    if len(kinds) < 2 or kinds[0].startswith(b"CompositeTransform"):
        yield path
        return
    header, first, rest = content.partition(b"#Transform 0")
    composite = b"#Transform 0\nTransform: CompositeTransform_double_3_3\nParameters:\nFixedParameters:\n"
    with tempfile.TemporaryDirectory() as folder:
        joined = Path(folder) / "transform.tfm"
        joined.write_bytes(header + composite + first + rest)
        yield joined


def _refuse_several(path: Path) -> None:
    """Refuse an HDF5 or MATLAB file that names several 3D transforms, none of them a composite of the others."""
    if not path.stat().st_size:
        return
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content.find(b"CompositeTransform") >= 0:
            return
        if len(_NAME.findall(content)) > 1:
            raise InputError(
                tr("{path} holds several transforms side by side; write them as one composite transform.", path=path)
            )


def _refuse_promised_lattice(path: Path, content: bytes) -> None:
    """Refuse a text transform whose lattice lacks samples: ITK allocates the declared size regardless."""
    held = len(content.split())
    for fixed in re.findall(rb"^FixedParameters:(.*)$", content, re.MULTILINE):
        size = fixed.split()[:3]
        if len(fixed.split()) >= 18 and all(n.isdigit() for n in size) and 3 * math.prod(map(int, size)) > held:
            raise InputError(
                tr(
                    "{path} promises {size} displacements and does not hold them; copy it again.",
                    path=path,
                    size=b" x ".join(size).decode(),
                )
            )


#: Formats of transforms, fixed -> moving points. What has another ending is read as SimpleITK finds it.
#: Readers return a `DisplacementField` or a transform of SimpleITK; writers take a `DisplacementField`.
TRANSFORM_FORMATS = [
    Format("displacement image", (".nii.gz", ".nii", ".nrrd", ".mha"), _read_image, _write_image),
    Format("displacement image with voxels in another file", (".nhdr", ".mhd"), _read_image),
    Format("transform of ITK", (".h5", ".hdf5", ".tfm"), _read_itk, _write_itk),
    Format("transform of ITK as text, or of ANTs", (".txt", ".mat"), _read_itk),
]
