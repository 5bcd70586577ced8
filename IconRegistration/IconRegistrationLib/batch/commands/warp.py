"""`icon-registration warp`: a saved transform, applied to a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ...errors import InputError
from ...io.formats import format_of, listed, suffixes_of
from ...io.images import IMAGE_FORMATS
from ...io.landmarks import LANDMARK_FORMATS
from ...io.segmentations import SEGMENTATION_FORMATS, segmentation_suffixes
from ...io.transforms import TRANSFORM_FORMATS
from ...text import tr
from ..pair import check_files, check_outputs

HELP = "Apply a saved transform to a volume, a label map, a segmentation or landmarks."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `warp`."""
    parser.epilog = (
        "Volumes and segmentations of the moving side are warped by transform.*, those of the fixed side by inverse.*; "
        "points go the other way: moving landmarks are carried to the fixed image by inverse.*."
    )
    inputs = suffixes_of([*IMAGE_FORMATS, *SEGMENTATION_FORMATS, *LANDMARK_FORMATS])
    parser.add_argument("--input", required=True, metavar="FILE", help=f"what is warped: {listed(inputs)}")
    parser.add_argument(
        "--transform",
        required=True,
        metavar="FILE",
        help=f"{listed(suffixes_of(TRANSFORM_FORMATS))}, from this or from ITK",
    )
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="the warped file")
    parser.add_argument("--reference", metavar="FILE", help="volume on whose grid the result lies; not for landmarks")
    parser.add_argument("--kind", choices=("auto", *WARPERS), default="auto", help="auto goes by the name of the file")
    parser.add_argument(
        "--interpolation",
        metavar="NAME",
        help="linear (default), cubic or nearest for an image; nearest (default) or label, which smooths borders, "
        "for labels and segmentations",
    )
    parser.add_argument("--background", type=float, metavar="V", help="outside of an image (default: its own air)")


def run(args: argparse.Namespace) -> None:
    """Read, warp, write one file."""
    kind = _kind_of(args.input) if args.kind == "auto" else args.kind
    files = [path for path in (args.input, args.transform, args.reference) if path]
    check_files(files)
    check_outputs([args.out], files)
    allowed = _interpolations(kind)
    if args.interpolation and args.interpolation not in allowed:
        wanted = ", ".join(allowed) or "-"
        raise InputError(
            tr(
                "--interpolation {given} does not suit {kind}; choose from: {choices}.",
                given=args.interpolation,
                kind=kind,
                choices=wanted,
            )
        )
    if kind == "landmarks" and args.reference:
        raise InputError(tr("Landmarks have no grid: omit --reference {path}.", path=args.reference))
    if kind != "landmarks" and not args.reference:
        raise InputError(tr("To warp {kind}, a grid is needed; give the fixed volume as --reference.", kind=kind))
    if args.background is not None and kind != "image":
        raise InputError(
            tr("--background {value:g} is for images; omit it for {kind}.", value=args.background, kind=kind)
        )
    args.method = allowed[args.interpolation or next(iter(allowed))] if allowed else None
    WARPERS[kind](args)
    print(args.out)


def _kind_of(path: str) -> str:
    if format_of(path, LANDMARK_FORMATS):
        return "landmarks"
    return "segmentation" if format_of(path, SEGMENTATION_FORMATS) else "image"


def _warp_landmarks(args: argparse.Namespace) -> None:
    import dataclasses

    import numpy as np

    from ...io.landmarks import read_landmarks, write_landmarks
    from ...io.transforms import read_transform
    from ...io.writing import writable

    writable(args.out, suffixes_of(LANDMARK_FORMATS, written=True))
    landmarks, transform = read_landmarks(args.input), read_transform(args.transform)
    moved = np.array([transform.TransformPoint(point.tolist()) for point in landmarks.points])
    write_landmarks(dataclasses.replace(landmarks, points=moved), args.out)


def _warp_segmentation(args: argparse.Namespace) -> None:
    from ...io.segmentations import read_segmentation, write_segmentation
    from ...io.writing import writable
    from ...spatial.field import warp_segmentation

    writable(args.out, segmentation_suffixes())
    segmentation, (field, grid) = read_segmentation(args.input), _field_and_grid(args)
    write_segmentation(warp_segmentation(segmentation, field, grid, args.method), args.out)


def _warp_labels(args: argparse.Namespace) -> None:
    from ...io.images import read_image, write_image
    from ...io.writing import writable
    from ...spatial.field import warp_labels

    writable(args.out, suffixes_of(IMAGE_FORMATS, written=True))
    labels, (field, grid) = read_image(args.input), _field_and_grid(args)
    write_image(warp_labels(labels, field, grid, args.method), args.out)


def _warp_image(args: argparse.Namespace) -> None:
    from ...io.images import read_image, write_image
    from ...io.writing import writable
    from ...registration.checks import check_image
    from ...registration.intensity import background_value
    from ...spatial.field import in_type_of, warp_image

    writable(args.out, suffixes_of(IMAGE_FORMATS, written=True))
    image, (field, grid) = read_image(args.input), _field_and_grid(args)
    check_image(image)
    outside = background_value(image) if args.background is None else args.background
    write_image(in_type_of(image, warp_image(image, field, grid, args.method, outside)), args.out)


def _field_and_grid(args: argparse.Namespace):
    """Read the transform as a field, and the grid of the reference."""
    from ...io.images import read_image
    from ...io.transforms import read_field

    grid = read_image(args.reference).grid
    return read_field(args.transform, grid), grid


def _interpolations(kind: str) -> dict[str, Any]:
    """Return what a kind may be interpolated by, the default first, and what the arithmetic calls it."""
    from ...workflow.api import IMAGE_INTERPOLATIONS, LABEL_INTERPOLATIONS

    return {"image": IMAGE_INTERPOLATIONS, "landmarks": {}}.get(kind, LABEL_INTERPOLATIONS)


WARPERS = {
    "image": _warp_image,
    "labels": _warp_labels,
    "segmentation": _warp_segmentation,
    "landmarks": _warp_landmarks,
}
