"""`icon-registration register`: two volumes in, a folder of results out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ...errors import InputError
from ...io.formats import listed, suffixes_of
from ...io.images import IMAGE_FORMATS
from ...io.landmarks import LANDMARK_FORMATS
from ...io.segmentations import SEGMENTATION_FORMATS
from ...io.transforms import TRANSFORM_FORMATS
from ...text import tr
from ...workflow.folder import check_folder, output_folder
from ...workflow.outputs import files_in
from ...workflow.roles import complete_roles
from ..options import add_outputs, add_roles, add_settings, outputs_of, roles_of, settings_of
from ..outputs import list_files
from ..pair import (
    ROLES,
    PairFiles,
    check_files,
    check_outputs,
    check_settings,
    compute_pair,
    read_inputs,
    register_pair,
)
from ..progress import ProgressPrinter

HELP = "Register a moving volume to a fixed one, and write a folder of results."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `register`."""
    segmentations = listed(suffixes_of(SEGMENTATION_FORMATS))
    images = parser.add_argument_group(
        "inputs", f"images: {listed(suffixes_of(IMAGE_FORMATS))}, or the folder of a DICOM series"
    )
    images.add_argument("--fixed", required=True, metavar="FILE", help="stays where it is")
    images.add_argument("--moving", required=True, metavar="FILE", help="is brought to the fixed volume")
    for side in ("fixed", "moving"):
        images.add_argument(f"--{side}-segmentation", metavar="FILE", help=f"{segmentations} or a label map")
        images.add_argument(f"--{side}-mask", metavar="FILE", help="only voxels that are not 0 in it count")
    images.add_argument("--landmarks", nargs=2, metavar=("FIXED", "MOVING"), help=listed(suffixes_of(LANDMARK_FORMATS)))
    add_roles(images)
    images.add_argument("--initial", metavar="TRANSFORM", help="linear, fixed -> moving, as ITK writes it: the start")
    images.add_argument("--region", metavar="MASK", help="register only within the box of what is not 0 in it")
    add_settings(parser)
    out = parser.add_argument_group("outputs")
    out.add_argument("--out", metavar="DIR", type=Path, help="folder to write, whole or not at all")
    transforms = listed(suffixes_of(TRANSFORM_FORMATS, written=True))
    out.add_argument("--transform-out", metavar="FILE", type=Path, help=f"the transform alone: {transforms}")
    out.add_argument("--warped-out", metavar="FILE", type=Path, help="the warped volume alone")
    out.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    add_outputs(out)
    out.add_argument("--json", action="store_true", help="progress and results as JSON objects on stdout")


def pair_of(args: argparse.Namespace) -> PairFiles:
    """Return the files of the pair that the options name."""
    args.fixed_landmarks, args.moving_landmarks = args.landmarks or (None, None)
    files = {role: getattr(args, role) for role in ROLES}
    return PairFiles(**files, roles=complete_roles(roles_of(args)), settings=settings_of(args))


def run(args: argparse.Namespace) -> None:
    """Check, register, write."""
    pair, outputs = pair_of(args), outputs_of(args)
    notes: list[str] = []
    folder = check_folder(args.out, args.overwrite, map(Path, pair.files.values())) if args.out else None
    single = _single_files(args, pair.files.values())
    if folder is None and not single:
        raise InputError(tr("Nothing would be written; give --out DIR, --transform-out FILE or --warped-out FILE."))
    check_files(pair.files.values())
    check_settings(pair.settings)
    progress = ProgressPrinter(args.json)
    try:
        if folder is None:
            results = compute_pair(pair, read_inputs(pair), outputs, progress)
        else:
            with output_folder(folder) as partial:
                results, notes = register_pair(pair, partial, outputs, progress)
        for path, write in single.items():
            write(results, path)
    finally:
        progress.close()
    if args.json:
        written = {"folder": str(folder), "files": files_in(folder)} if folder else {}
        single_files = {"single_files": [str(path) for path in single]} if single else {}
        result = {**written, **single_files, "notes": notes, "report": results.report.to_dict()}
        print(json.dumps({"result": result}), flush=True)
        return
    print(results.report.table())
    if folder:
        print(list_files(folder, notes))
    for path in single:
        print(path)


def _single_files(args: argparse.Namespace, inputs: Iterable[str]) -> dict[Path, Callable]:
    """Return files beside the folder of results, or instead of it, and what writes them; each appears whole.

    Raises InputError for one that cannot be written, or that is an input or the other one.
    """
    from ...io.images import write_image
    from ...io.transforms import write_field
    from ...io.writing import writable

    check_outputs([path for path in (args.transform_out, args.warped_out) if path], inputs)
    wanted = {}
    if args.transform_out:
        path = writable(args.transform_out, suffixes_of(TRANSFORM_FORMATS, written=True))
        wanted[path] = lambda results, path: write_field(results.registration.forward, path)
    if args.warped_out:
        path = writable(args.warped_out, suffixes_of(IMAGE_FORMATS, written=True))
        wanted[path] = lambda results, path: write_image(results.warped, path)
    return wanted
