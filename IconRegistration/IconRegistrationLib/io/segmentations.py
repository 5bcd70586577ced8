"""Read and write segmentations: label maps and .seg.nrrd files."""

from __future__ import annotations

import gzip
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image, Segment, Segmentation
from ..text import tr
from .formats import Format, format_of, reader_of, stem_of, suffixes_of, writer_of
from .images import IMAGE_FORMATS, read_image, write_image
from .integrity import check_voxels
from .paths import existing_path
from .sitk_images import ImageFile, grid_of, open_image
from .writing import atomic_file, writable

#: More distinct values than any atlas has: an image, not a label map.
MOST_LABELS = 5000


def read_segmentation(path: str | os.PathLike[str]) -> Segmentation:
    """Read a segmentation of Slicer or a label map.

    Parameters
    ----------
    path : str or path-like
        A file of `SEGMENTATION_FORMATS`, or any image that is a label map, whose segments are named "label N".

    Raises
    ------
    InputError
        If it is missing, damaged, or an image that is not a label map.
    """
    found, _ = existing_path(path)
    read = reader_of(found, SEGMENTATION_FORMATS)
    if read is None:
        return _read_labels(path)
    return replace(read(found), name=stem_of(found, SEGMENTATION_FORMATS))


def write_segmentation(segmentation: Segmentation, path: str | os.PathLike[str]) -> None:
    """Write a segmentation: .seg.nrrd keeps everything, a file of `IMAGE_FORMATS` is a label map.

    Label values stay as they are, or become 1..N where two layers use the same value.

    Raises
    ------
    InputError
        If segments overlap, which a label map cannot hold, or where `write_image` raises it.
    OSError
        If the disk does not take it.
    """
    if format_of(path, SEGMENTATION_FORMATS, written=True) is None:
        writable(path, segmentation_suffixes(), segmentation.grid, segmentation.name)
        write_image(label_map(segmentation), path)
        return
    path = writable(path, segmentation_suffixes(), segmentation.grid, segmentation.name)
    with atomic_file(path) as partial:
        writer_of(path, SEGMENTATION_FORMATS)(segmentation, partial)


def segmentation_suffixes() -> tuple[str, ...]:
    """Return the endings of files that `write_segmentation` writes: segmentations and label maps."""
    return suffixes_of([*SEGMENTATION_FORMATS, *IMAGE_FORMATS], written=True)


def _read_labels(path: str | os.PathLike[str]) -> Segmentation:
    """Read a label map; an NRRD that names segments is a segmentation of Slicer, whatever it is called."""
    found, _ = existing_path(path)
    if found.name.lower().endswith(".nrrd"):
        file = open_image(found)
        if not {"Segment0_ID", "Segment0_Name"}.isdisjoint(file.metadata):
            return replace(_read_seg_nrrd(file), name=stem_of(found, IMAGE_FORMATS))
    return segmentation_from_labels(read_image(path), str(found))


def segmentation_from_labels(image: Image, source: str | None = None) -> Segmentation:
    """Make a segmentation of a label map; segments are named "label N".

    Parameters
    ----------
    image : Image
        Whole numbers, 0 is background; of any type.
    source : str, optional
        What messages call it: the image's name if None.

    Raises
    ------
    InputError
        If it is not a label map.
    """
    _refuse_unlabelled(image, source or image.name)
    labels = image.array
    if labels.dtype.kind == "f":
        labels = labels.astype(np.int32)
    return Segmentation.from_labels(Image(labels, image.grid, image.name))


def _refuse_unlabelled(image: Image, path: str) -> None:
    array = image.array
    if array.dtype.kind == "f" and not (np.isfinite(array).all() and np.array_equal(array, np.rint(array))):
        raise InputError(
            tr("{path} is not a label map: it holds values that are not whole numbers; give a segmentation.", path=path)
        )
    if array.size and array.min() < 0:
        raise InputError(
            tr(
                "{path} is not a label map: it holds {lowest}; labels are 0 (background) and above.",
                path=path,
                lowest=array.min(),
            )
        )
    if array.size and array.max() > MOST_LABELS and (n := len(np.unique(array))) > MOST_LABELS:
        raise InputError(
            tr("{path} is not a label map: it holds {count} different values; give a segmentation.", path=path, count=n)
        )


def _segment_fields(metadata: dict[str, str]) -> dict[str, str]:
    """Return the header's fields of segments, bytes that are no UTF-8 replaced: no file of ours could hold them."""
    fields = {key: text for key, text in metadata.items() if key.startswith("Segment")}
    return {key: text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for key, text in fields.items()}


def _read_seg_nrrd(file: ImageFile) -> Segmentation:
    import SimpleITK as sitk

    path, components = file.path, file.components
    check_voxels(file)
    image = file.read(tr("a segmentation"))
    values = sitk.GetArrayViewFromImage(image).reshape((*image.GetSize()[::-1], components))
    layer_type = values.dtype if values.dtype in (np.uint8, np.int16, np.uint16) else np.dtype(np.int32)
    layers = tuple(np.array(values[..., c], layer_type, order="C") for c in range(components))

    fields = _segment_fields(file.metadata)
    numbers = sorted({int(m[1]) for key in fields if (m := re.match(r"Segment(\d{1,6})_", key))})
    segments = []
    for n in numbers:
        entry = {key.partition("_")[2]: text for key, text in fields.items() if key.startswith(f"Segment{n}_")}
        try:
            segments.append(_segment(n, entry))
        except ValueError as error:
            raise InputError(
                tr(
                    "{path}: segment {number} cannot be read ({reason}); save it again from Slicer.",
                    path=path,
                    number=n,
                    reason=error.args[0],
                )
            ) from None
        if not 0 <= segments[-1].layer < components:
            raise InputError(
                tr(
                    "{path}: segment {name} is in layer {layer}, but the file has {count}; save it again from Slicer.",
                    path=path,
                    name=repr(segments[-1].name),
                    layer=segments[-1].layer,
                    count=components,
                )
            )
    return Segmentation(layers, tuple(segments), grid_of(image))


def _segment(n: int, entry: dict[str, str]) -> Segment:
    """Make the n-th segment of a .seg.nrrd of its fields. Raises ValueError."""
    color = tuple(float(c) for c in entry.get("Color", "0.5 0.5 0.5").split()[:3])
    if len(color) != 3 or not all(0 <= c <= 1 for c in color):
        raise ValueError(tr("its colour is {color}", color=repr(entry["Color"])))
    return Segment(
        name=entry.get("Name", entry.get("ID", f"Segment_{n + 1}")),
        value=int(entry.get("LabelValue", 1)),  # before Slicer 4.11 every segment had a layer of its own
        layer=int(entry.get("Layer", n)),
        color=color,
        identifier=entry.get("ID", f"Segment_{n + 1}"),
        tags=dict(tag.split(":", 1) for tag in entry.get("Tags", "").split("|") if ":" in tag),
    )


def _write_seg_nrrd(segmentation: Segmentation, path: Path) -> None:
    """Write NRRD as Slicer does: layers along a "list" axis, segments as key:=value lines.

    Written here because ITK writes several layers as a vector image, which Slicer does not take for layers.
    """
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
    with open(path, "wb") as file:
        file.write("\n".join(lines).encode() + b"\n\n")
        with gzip.GzipFile(fileobj=file, mode="wb", compresslevel=4, mtime=0) as compressed:
            compressed.write(np.ascontiguousarray(voxels, dtype=dtype).data)


def _one_line(text: str) -> str:
    """Escape as NRRD does, where a value ends with its line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def label_map(segmentation: Segmentation) -> Image:
    """Merge all segments into one label map.

    Label values stay as they are, or become 1..N where two layers use the same value.

    Raises
    ------
    InputError
        If segments overlap, which a label map cannot hold.
    """
    values = [s.value for s in segmentation.segments]
    if len(set(values)) < len(values):
        values = list(range(1, len(values) + 1))
    labels = np.zeros(segmentation.grid.shape, np.int32 if max(values, default=0) >= 2**15 else np.int16)
    for segment, value in zip(segmentation.segments, values, strict=True):
        mask = segmentation.mask(segment)
        if labels[mask].any():
            raise InputError(
                tr(
                    "{segmentation}: segment {name} overlaps another, which a label map cannot hold; write .seg.nrrd.",
                    segmentation=segmentation.name,
                    name=repr(segment.name),
                )
            )
        labels[mask] = value
    return Image(labels, segmentation.grid, segmentation.name)


#: Formats that hold names, colours and layers; label maps are files of `IMAGE_FORMATS`.
SEGMENTATION_FORMATS = [
    Format("segmentation of Slicer", (".seg.nrrd",), _read_labels, _write_seg_nrrd),
]
