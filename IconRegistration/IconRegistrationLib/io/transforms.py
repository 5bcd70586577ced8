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
from .images import IMAGE_SUFFIXES
from .integrity import check_voxels
from .paths import existing_path
from .sitk_images import grid_of, open_image, read_errors, sitk_image, write_sitk_image
from .writing import replacing, writable

if TYPE_CHECKING:
    import SimpleITK

#: ITK's name of a 3D transform in a file, as AffineTransform_double_3_3.
_NAME = re.compile(rb"Transform(?:Base)?_(?:double|float)_3_3")

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm")


def write_field(field: DisplacementField, path: str | os.PathLike[str]) -> None:
    """Write a displacement field (fixed -> moving, mm, LPS) that Slicer and ITK load as a transform.

    Parameters
    ----------
    field : DisplacementField
    path : str or path-like
        .nii.gz (compressed float32, NIfTI's vector intent 1007), .nrrd or .mha is a displacement image; .h5 or .tfm an
        ITK transform (double, larger).

    Raises
    ------
    InputError
        If the type of the file is unknown, its folder does not exist, or files cannot hold the grid.
    OSError
        If the disk does not take it.
    """
    import SimpleITK as sitk

    path = writable(path, IMAGE_SUFFIXES + TRANSFORM_SUFFIXES, field.grid, "The field")
    with replacing(path) as partial:
        if path.name.endswith(TRANSFORM_SUFFIXES):
            sitk.WriteTransform(field.to_sitk(), str(partial))
        else:
            vectors = np.ascontiguousarray(field.displacement, dtype=np.float32)
            write_sitk_image(sitk_image(vectors, field.grid, vectors=True), partial)


def read_transform(path: str | os.PathLike[str]) -> SimpleITK.Transform:
    """Read any transform that SimpleITK reads, or a displacement image.

    Parameters
    ----------
    path : str or path-like
        .h5, .tfm, .txt, .mat, or a displacement image. Several transforms of a text file become a composite in ITK's
        order (the last is applied first).

    Returns
    -------
    SimpleITK.Transform
        Maps fixed points to moving points (mm, LPS), as resampling does.

    Raises
    ------
    InputError
        If it is missing, damaged, no 3D transform, or several in a file that is no text.
    """
    import SimpleITK as sitk

    found, _ = existing_path(path)
    if found.is_dir():
        raise InputError(
            tr("{path} is a folder, not a transform; give a .h5, .tfm or a displacement image.", path=found)
        )
    if found.name.lower().endswith((*IMAGE_SUFFIXES, ".nhdr", ".mhd")):
        return _read_displacement_image(found).to_sitk()
    with read_errors(found, tr("a transform")), _as_one_transform(found) as readable:
        transform = sitk.ReadTransform(str(readable))
    if transform.GetDimension() != 3:
        raise InputError(
            tr("{path} holds a {name}, which is not 3D; give a 3D transform.", path=found, name=transform.GetName())
        )
    for part in _parts(transform):
        if hasattr(part, "GetDisplacementField"):
            _refuse_not_finite(found, sitk.GetArrayViewFromImage(part.GetDisplacementField()))
        elif not np.isfinite(np.array(part.TransformPoint([0.0, 0.0, 0.0]))).all():
            raise InputError(tr("{path} maps points to infinity; give another transform.", path=found))
    return transform


def _parts(transform: SimpleITK.Transform) -> list[SimpleITK.Transform]:
    """Return the transforms that a composite is made of, or the transform itself."""
    if not hasattr(transform, "FlattenTransform"):
        return [transform]
    flat = type(transform)(transform)
    flat.FlattenTransform()
    return [flat.GetNthTransform(n).Downcast() for n in range(flat.GetNumberOfTransforms())]


def _refuse_not_finite(path: Path, displacement: np.ndarray) -> None:
    if not np.isfinite(displacement).all():
        raise InputError(
            tr("{path} has displacements that are not a number (NaN or infinite); make it again.", path=path)
        )


def _read_displacement_image(path: Path) -> DisplacementField:
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
    """Refuse a text transform whose lattice lacks samples: ITK allocates what is promised, whatever the file holds."""
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
