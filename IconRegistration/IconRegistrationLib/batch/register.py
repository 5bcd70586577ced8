"""`icon-registration register`: two volumes in, a folder of results out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from ..core.errors import InputError
from ..core.settings import Settings
from .outputs import check_folder, files_in, list_files, output_folder
from .pair import ROLES, Outputs, Pair, check_files, check_settings, compute_pair, read_inputs, register_pair
from .progress import Progress

#: Options of `register` that are fields of core.settings.Settings, which also checks their values: (metavar, help,
#: what argparse needs besides). An option that is not given leaves the field's default.
SETTINGS = {
    "align": ("KIND", "linear alignment first: auto, none, centre, mass, rigid, similarity, affine", {}),
    "model": ("MODEL", "none, builtin, unigradicon, multigradicon, or a weights file (default: none)", {}),
    "refine": ("WHAT", "auto, field, network, off", {}),
    "steps": ("N", "refinement steps", {"type": int}),
    "similarity": ("NAME", "auto, lncc, lncc2, mind", {}),
    "device": ("DEVICE", "auto, cpu, cuda, cuda:N, mps", {}),
    "precision": ("PRECISION", "auto, float32, mixed: of the network's arithmetic", {}),
    "fixed_modality": ("MODALITY", "auto, ct, mri", {}),
    "moving_modality": ("MODALITY", "auto, ct, mri", {}),
    "ct_window": (("LOW", "HIGH"), "HU that become 0 and 1", {"type": float, "nargs": 2}),
    "quantile_range": (("LOW", "HIGH"), "MR quantiles that become 0 and 1", {"type": float, "nargs": 2}),
    "label_weight": ("WEIGHT", "of the segments with --guide", {"type": float}),
    "padding": ("MM", "by which the transforms reach beyond the images", {"type": float}),
    "spacing": ("MM", "between the samples of the refinement's lattice", {"type": float}),
    "weights_dir": ("DIR", "folder with weights files that were placed there", {}),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `register`."""
    images = parser.add_argument_group("inputs", "NRRD, NIfTI, MetaImage, or the folder of a DICOM series")
    images.add_argument("--fixed", required=True, metavar="FILE", help="stays where it is")
    images.add_argument("--moving", required=True, metavar="FILE", help="is brought to the fixed volume")
    for side in ("fixed", "moving"):
        images.add_argument(f"--{side}-segmentation", metavar="FILE", help=".seg.nrrd or a label map")
        images.add_argument(f"--{side}-mask", metavar="FILE", help="only voxels that are not 0 in it count")
    images.add_argument("--landmarks", nargs=2, metavar=("FIXED", "MOVING"), help=".mrk.json, .fcsv or .csv")
    images.add_argument("--guide", action="store_true", help="segments of one name guide the registration")
    images.add_argument("--initial", metavar="TRANSFORM", help="linear, fixed -> moving, as ITK writes it: the start")
    images.add_argument("--region", metavar="MASK", help="register only within the box of what is not 0 in it")
    add_settings(parser)
    out = parser.add_argument_group("outputs")
    out.add_argument("--out", metavar="DIR", type=Path, help="folder to write, whole or not at all")
    out.add_argument("--transform-out", metavar="FILE", type=Path, help="the transform alone: .h5, .tfm, .nii.gz")
    out.add_argument("--warped-out", metavar="FILE", type=Path, help="the warped volume alone")
    out.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    add_outputs(out)
    out.add_argument("--json", action="store_true", help="progress and results as JSON objects on stdout")


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that are fields of Settings, for `settings_of`."""
    how = parser.add_argument_group("settings", "defaults suit a first try; auto decides from the images")
    for name, (metavar, text, more) in SETTINGS.items():
        option = "--" + name.replace("_", "-")
        how.add_argument(option, metavar=metavar, help=text, default=argparse.SUPPRESS, **more)


def add_outputs(group) -> None:
    """The options for `outputs_of`."""
    group.add_argument("--moving-resolution", action="store_true", help="also warp at the moving volume's resolution")
    group.add_argument("--no-scene", action="store_true", help="write no scene.mrb")
    group.add_argument("--no-pictures", action="store_true", help="draw no pictures")


def settings_of(args: argparse.Namespace) -> Settings:
    """Settings of the options that were given."""
    return Settings.from_plain({name: value for name, value in vars(args).items() if name in SETTINGS})


def outputs_of(args: argparse.Namespace) -> Outputs:
    """Which files are wanted."""
    return Outputs(not args.no_scene, not args.no_pictures, args.moving_resolution)


def pair_of(args: argparse.Namespace) -> Pair:
    """What the options say is to be registered."""
    args.fixed_landmarks, args.moving_landmarks = args.landmarks or (None, None)
    return Pair(**{role: getattr(args, role) for role in ROLES}, guide=args.guide, settings=settings_of(args))


def run(args: argparse.Namespace) -> None:
    """Check, register, write."""
    pair, outputs, notes = pair_of(args), outputs_of(args), []
    folder = check_folder(args.out, args.overwrite, pair.files.values()) if args.out else None
    single = _single_files(args, pair.files.values())
    if folder is None and not single:
        raise InputError("Nothing would be written; give --out DIR, --transform-out FILE or --warped-out FILE.")
    check_files(pair.files.values())
    check_settings(pair.settings)
    progress = Progress(args.json)
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
    """Files beside the folder of results, or instead of it, and what writes them; each appears whole.

    Raises InputError for one that cannot be written, or that is an input.
    """
    from ..core.files import IMAGE_SUFFIXES, TRANSFORM_SUFFIXES, writable, write_field, write_image

    wanted = {}
    if args.transform_out:
        path = writable(args.transform_out, IMAGE_SUFFIXES + TRANSFORM_SUFFIXES)
        wanted[path] = lambda results, path: write_field(results.registration.forward, path)
    if args.warped_out:
        path = writable(args.warped_out, IMAGE_SUFFIXES)
        wanted[path] = lambda results, path: write_image(results.warped, path)
    replaced = {path.resolve() for path in wanted} & {Path(source).expanduser().resolve() for source in inputs}
    if replaced:
        raise InputError(f"{min(replaced)} is an input and would be replaced; choose another name.")
    return wanted
