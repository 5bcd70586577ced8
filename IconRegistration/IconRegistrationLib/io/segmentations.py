"""Read and write segmentations: label maps and .seg.nrrd files."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image, Segment, Segmentation
from .images import _open, read_image, write_image
from .integrity import _check_voxels
from .itk_images import _COMPONENTS, _existing, _grid_of, _itk_errors, _stem
from .writing import replacing, writable

#: More distinct values than any atlas has: an image, not a label map.
MOST_LABELS = 5000


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
