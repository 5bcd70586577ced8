"""Read and write transforms: displacement images and ITK transform files."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from .images import _open
from .integrity import _check_voxels
from .itk_images import IMAGE_SUFFIXES, _existing, _grid_of, _itk_errors, _set_grid, _write_picture
from .writing import replacing, writable

if TYPE_CHECKING:
    from ..spatial.displacement import DisplacementField

TRANSFORM_SUFFIXES = (".h5", ".hdf5", ".tfm")


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

    from ..spatial.displacement import DisplacementField

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
