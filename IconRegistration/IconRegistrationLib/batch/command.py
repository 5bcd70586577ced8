"""The command `icon-registration`: files in, a folder of results out.

Nothing heavy is imported at the top: `--help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .. import __version__
from ..core.errors import Cancelled, DeviceMemoryError, InputError
from .outputs import FILES, check_folder, output_folder, region_of, write_results
from .progress import Progress

if TYPE_CHECKING:
    import numpy as np

    from ..core.results import Inputs
    from ..core.settings import Settings

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


class _Terminated(BaseException):
    """SIGTERM, as an exception: everything that was begun is cleared away."""


class _Parser(argparse.ArgumentParser):
    """Reports wrong usage as every other wrong input: one sentence, exit code 2."""

    def error(self, message: str):
        raise InputError(f"{message}; see {self.prog} --help.")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code (docs/command.md)."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        args = build_parser().parse_args(arguments)
        with _termination_as_exception():
            args.run(args)
        return 0
    except InputError as error:
        return _failed(2, str(error), debug)
    except DeviceMemoryError as error:
        return _failed(1, str(error), debug)
    except MemoryError:
        return _failed(1, "This machine ran out of memory; crop or resample the images.", debug)
    except (KeyboardInterrupt, Cancelled):
        return _failed(130, "stopped; nothing was written.", debug)
    except _Terminated:
        return _failed(143, "terminated; nothing was written.", debug)
    except Exception as error:
        reason = " ".join(str(error).split())
        hint = "" if debug else "; run again with --debug to see where"
        return _failed(1, f"unexpected {type(error).__name__}: {reason}{hint}.", debug)


def _failed(code: int, sentence: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"icon-registration: {' '.join(sentence.split())}", file=sys.stderr)
    return code


@contextmanager
def _termination_as_exception() -> Iterator[None]:
    """SIGTERM unwinds the stack as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # Python's rule for signal handlers
        yield
        return

    def stop(number, frame):
        raise _Terminated

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# ----------------------------------------------------------------------------------------------------------- options


def build_parser() -> argparse.ArgumentParser:
    """The parser; `run` of what it parses is the function to call."""
    parser = _Parser(prog="icon-registration", description="Deformable registration of volumes.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the whole traceback of an error")

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        result = commands.add_parser(name, parents=[common], help=text, description=text, allow_abbrev=False)
        result.set_defaults(run=run)
        return result

    _add_register(command("register", run_register, "Register a moving volume to a fixed one."))
    _add_warp(command("warp", run_warp, "Apply a saved transform to a volume, a segmentation or landmarks."))
    models = command("models", run_models, "List the models, and where their weights are.")
    models.add_argument("name", nargs="?", metavar="NAME", help="only this one")
    models.add_argument("--download", action="store_true", help="fetch the weights of NAME now")
    models.add_argument("--weights-dir", metavar="DIR", help="where weights are and go (default: the user's cache)")
    models.add_argument("--json", action="store_true", help="one JSON object on stdout")
    demo = command("demo", run_demo, "Make a phantom of a breathing torso, register it, show how well that worked.")
    demo.add_argument("--out", metavar="DIR", type=Path, default=Path("demo"), help="folder to write (default: demo)")
    demo.add_argument("--size", metavar="N", type=int, default=144, help="about N^3 voxels (default: 144)")
    demo.add_argument("--overwrite", action="store_true", help="replace the results of an earlier demo")
    return parser


def _add_register(parser: argparse.ArgumentParser) -> None:
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
    how = parser.add_argument_group("settings", "defaults suit a first try; auto decides from the images")
    for name, (metavar, text, more) in SETTINGS.items():
        option = "--" + name.replace("_", "-")
        how.add_argument(option, metavar=metavar, help=text, default=argparse.SUPPRESS, **more)
    out = parser.add_argument_group("outputs")
    out.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write, whole or not at all")
    out.add_argument("--overwrite", action="store_true", help="replace the results of an earlier run")
    out.add_argument("--moving-resolution", action="store_true", help="also warp at the moving volume's resolution")
    out.add_argument("--no-scene", action="store_true", help="write no scene.mrb")
    out.add_argument("--no-pictures", action="store_true", help="draw no pictures")
    out.add_argument("--json", action="store_true", help="progress and results as JSON objects on stdout")


def _add_warp(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Volumes and segmentations of the moving side are warped by transform.*, those of the fixed side by inverse.*; "
        "points go the other way: moving landmarks are carried to the fixed image by inverse.*."
    )
    parser.add_argument("--input", required=True, metavar="FILE", help="what is warped")
    parser.add_argument(
        "--transform", required=True, metavar="FILE", help=".nii.gz, .h5 or .tfm, from this or from ITK"
    )
    parser.add_argument("--out", required=True, metavar="FILE", type=Path, help="the warped file")
    parser.add_argument("--reference", metavar="FILE", help="volume on whose grid the result lies; not for landmarks")
    parser.add_argument("--kind", choices=("auto", *WARPERS), default="auto", help="auto goes by the name of the file")
    parser.add_argument(
        "--interpolation",
        choices=("linear", "cubic", "nearest", "label"),
        help="default: linear for an image, else nearest; label smooths the borders of labels",
    )
    parser.add_argument("--background", type=float, metavar="V", help="outside of an image (default: its own air)")


# ---------------------------------------------------------------------------------------------------------- register


def run_register(args: argparse.Namespace) -> None:
    """Check, register, write."""
    paths = [args.fixed, args.moving, args.fixed_segmentation, args.moving_segmentation, args.fixed_mask]
    paths += [args.moving_mask, args.initial, args.region, *(args.landmarks or [])]
    folder = check_folder(args.out, args.overwrite, [path for path in paths if path])
    _check_files([path for path in paths if path])
    settings = _settings(args)
    inputs = _read_inputs(args)

    from ..core.pipeline import compute

    progress = Progress(args.json)
    try:
        with output_folder(folder) as partial:
            results = compute(
                inputs,
                settings,
                guide=args.guide,
                moving_resolution=args.moving_resolution,
                progress=lambda stage, fraction: progress(stage, 0.95 * fraction),
            )
            progress("writing", 0.95)
            notes = write_results(partial, inputs, results, scene=not args.no_scene, pictures=not args.no_pictures)
    finally:
        progress.close()
    files = _files_in(folder)
    if args.json:
        result = {"folder": str(folder), "files": files, "notes": notes, "report": results.report.to_dict()}
        print(json.dumps({"result": result}), flush=True)
        return
    print(results.report.table())
    _print_files(folder, files, notes)


def _files_in(folder: Path) -> list[str]:
    return [name for name in FILES if (folder / name).is_file()]


def _print_files(folder: Path, files: list[str], notes: list[str]) -> None:
    print(f"\nOpen this, in {folder}:")
    for name in files:
        print(f"  {name:<30}{FILES[name]}")
    for note in notes:
        print(f"Note: {note}")


def _settings(args: argparse.Namespace) -> Settings:
    """Settings of the options that were given; InputError if device or weights are not there."""
    from ..core.catalog import find_card
    from ..core.network import choose_device
    from ..core.settings import Settings

    given = {name: value for name, value in vars(args).items() if name in SETTINGS}
    settings = Settings.from_plain(given)
    choose_device(settings.device)
    find_card(settings.model)
    return settings


def _check_files(paths: list[str]) -> None:
    from ..core.files import SERIES_SEPARATOR

    for path in paths:
        if not Path(path.partition(SERIES_SEPARATOR)[0]).expanduser().exists():
            raise InputError(f"{path} does not exist; check the path.")


def _read_inputs(args: argparse.Namespace) -> Inputs:
    """Everything that is registered, checked as far as it can be before work begins."""
    import numpy as np

    from ..core import checks
    from ..core.files import image_header, read_image, read_landmarks, read_segmentation
    from ..core.geometry import Grid
    from ..core.results import Inputs

    if args.guide and not (args.fixed_segmentation and args.moving_segmentation):
        raise InputError("--guide needs segments of both images; give --fixed-segmentation and --moving-segmentation.")
    # by the headers alone: a file can claim any size
    grids = [Grid(image_header(path).shape, np.eye(4)) for path in (args.fixed, args.moving)]
    checks.check_memory(*grids)
    for path in filter(None, (args.fixed_mask, args.moving_mask, args.region)):
        checks.check_memory(Grid(image_header(path).shape, np.eye(4)), grids[0])

    def read(path, reader):
        return None if path is None else reader(path)

    fixed, moving = read_image(args.fixed), read_image(args.moving)
    inputs = Inputs(
        fixed,
        moving,
        read(args.fixed_segmentation, read_segmentation),
        read(args.moving_segmentation, read_segmentation),
        *((read_landmarks(path) for path in args.landmarks) if args.landmarks else (None, None)),
        read(args.fixed_mask, read_image),
        read(args.moving_mask, read_image),
        read(args.initial, _read_linear),
    )
    for segmentation, image in ((inputs.fixed_segmentation, fixed), (inputs.moving_segmentation, moving)):
        if segmentation is not None:
            checks.check_overlap(segmentation, image)
    if args.landmarks:
        checks.check_landmarks(inputs.fixed_landmarks, inputs.moving_landmarks)
    if args.region is None:
        return inputs
    mask = read_image(args.region)
    checks.check_mask(mask, fixed)
    return Inputs(**{**vars(inputs), "region": region_of(mask.grid, mask.array)})


def _read_linear(path: str) -> np.ndarray:
    """4x4, fixed mm -> moving mm, of a linear transform file."""
    import numpy as np

    from ..core.files import read_transform

    transform = read_transform(path)
    if not transform.IsLinear():
        raise InputError(f"{path} holds a {type(transform).__name__}, which is not linear; give an affine transform.")
    matrix = np.eye(4)
    matrix[:3, 3] = transform.TransformPoint([0.0, 0.0, 0.0])
    for axis in range(3):
        matrix[:3, axis] = np.array(transform.TransformPoint(np.eye(3)[axis].tolist())) - matrix[:3, 3]
    return matrix


# -------------------------------------------------------------------------------------------------------------- warp


def run_warp(args: argparse.Namespace) -> None:
    """Read, warp, write one file."""
    kind = _kind_of(args.input) if args.kind == "auto" else args.kind
    _check_files([path for path in (args.input, args.transform, args.reference) if path])
    allowed = INTERPOLATIONS[kind]
    if args.interpolation and args.interpolation not in allowed:
        wanted = " or ".join(allowed) or "none"
        raise InputError(f"--interpolation {args.interpolation} does not suit {kind}; choose {wanted}.")
    if kind == "landmarks" and args.reference:
        raise InputError(f"Landmarks have no grid: leave --reference {args.reference} away.")
    if kind != "landmarks" and not args.reference:
        raise InputError(f"A warped {kind} needs a grid; give the fixed volume as --reference.")
    if args.background is not None and kind != "image":
        raise InputError(f"--background {args.background:g} is for images; leave it away for {kind}.")
    WARPERS[kind](args)
    print(args.out)


def _kind_of(path: str) -> str:
    name = path.lower()
    if name.endswith((".json", ".fcsv", ".csv", ".vtk")):
        return "landmarks"
    return "segmentation" if name.endswith(".seg.nrrd") else "image"


def _warp_landmarks(args: argparse.Namespace) -> None:
    import dataclasses

    import numpy as np

    from ..core.files import read_landmarks, read_transform, writable, write_landmarks

    writable(args.out, (".mrk.json",))
    landmarks, transform = read_landmarks(args.input), read_transform(args.transform)
    moved = np.array([transform.TransformPoint(point.tolist()) for point in landmarks.points])
    write_landmarks(dataclasses.replace(landmarks, points=moved), args.out)


def _warp_segmentation(args: argparse.Namespace) -> None:
    from ..core.field import warp_segmentation
    from ..core.files import IMAGE_SUFFIXES, read_segmentation, writable, write_segmentation

    writable(args.out, IMAGE_SUFFIXES)
    segmentation, (field, grid) = read_segmentation(args.input), _field_and_grid(args)
    write_segmentation(warp_segmentation(segmentation, field, grid, _label_method(args)), args.out)


def _warp_labels(args: argparse.Namespace) -> None:
    from ..core.field import warp_labels
    from ..core.files import IMAGE_SUFFIXES, read_image, writable, write_image

    writable(args.out, IMAGE_SUFFIXES)
    labels, (field, grid) = read_image(args.input), _field_and_grid(args)
    write_image(warp_labels(labels, field, grid, _label_method(args)), args.out)


def _warp_image(args: argparse.Namespace) -> None:
    from ..core.checks import check_image
    from ..core.field import in_type_of, warp_image
    from ..core.files import IMAGE_SUFFIXES, read_image, writable, write_image
    from ..core.intensity import background_value

    writable(args.out, IMAGE_SUFFIXES)
    image, (field, grid) = read_image(args.input), _field_and_grid(args)
    check_image(image)
    order = {"linear": 1, "cubic": 3, "nearest": 0}[args.interpolation or "linear"]
    outside = background_value(image) if args.background is None else args.background
    write_image(in_type_of(image, warp_image(image, field, grid, order, outside)), args.out)


def _field_and_grid(args: argparse.Namespace):
    """The transform as a field, sampled on the reference's grid unless it has samples of its own; and that grid."""
    from ..core.displacement import DisplacementField
    from ..core.files import read_image, read_transform

    grid = read_image(args.reference).grid
    transform = read_transform(args.transform)
    has_samples = hasattr(transform, "GetDisplacementField")
    return DisplacementField.from_itk(transform, None if has_samples else grid), grid


def _label_method(args: argparse.Namespace) -> str:
    return "linear" if args.interpolation == "label" else "nearest"


WARPERS = {
    "image": _warp_image,
    "labels": _warp_labels,
    "segmentation": _warp_segmentation,
    "landmarks": _warp_landmarks,
}
INTERPOLATIONS = {
    "image": ("linear", "cubic", "nearest"),
    "labels": ("nearest", "label"),
    "segmentation": ("nearest", "label"),
    "landmarks": (),
}


# ---------------------------------------------------------------------------------------------------- models and demo


def run_models(args: argparse.Namespace) -> None:
    """What there is, under which licence, and where the weights are or would be."""
    from ..core.catalog import CARDS, cache_folder, fetch_weights, find_card, find_weights

    if args.download and not args.name:
        raise InputError("--download needs the name of a model; see icon-registration models.")
    cards = [find_card(args.name)] if args.name else list(CARDS.values())
    if args.download:
        progress = Progress(args.json)
        try:
            fetch_weights(cards[0], args.weights_dir, lambda done, total: progress("download", done / max(total, 1)))
        finally:
            progress.close()
    listed = []
    for card in cards:
        weights = find_weights(card, args.weights_dir)
        place = Path(args.weights_dir).expanduser() if args.weights_dir else cache_folder()
        listed.append(
            {
                "name": card.name,
                "title": card.title,
                "description": card.description,
                "licence": card.licence,
                "citation": card.citation,
                "training": card.training,
                "limits": card.limits,
                "results": card.results,
                "url": card.url,
                "megabytes": round(card.size / 1e6),
                "weights": str(weights or place / card.filename) if weights or card.url else None,
                "downloaded": weights is not None if card.url else None,
            }
        )
    if args.json:
        print(json.dumps({"models": listed}), flush=True)
        return
    for entry in listed:
        print(f"{entry['name']}: {entry['title']}\n  {entry['description']}")
        if entry["weights"]:
            absent = f"not downloaded yet ({entry['megabytes']} MB); goes to"
            state = {True: "here", False: absent, None: "shipped,"}[entry["downloaded"]]
            print(f"  Licence: {entry['licence']}\n  Cite: {entry['citation']}\n  Weights: {state} {entry['weights']}")
        for fact in ("training", "limits", "results"):
            if entry[fact]:
                print(f"  {fact.capitalize()}: {entry[fact]}")


def run_demo(args: argparse.Namespace) -> None:
    """The phantom, registered: table, error against the truth, and what to open."""
    from . import demo

    folder = check_folder(args.out, args.overwrite)
    progress = Progress()
    try:
        result = demo.run_demo(folder, args.size, progress)
    finally:
        progress.close()
    print(result.results.report.table())
    print("\nDistance to the known deformation within the body, mean and 95th percentile")
    for name, (mean, high) in (("before", result.before), ("after", result.after)):
        print(f"  {name:<8}{mean:7.2f} mm {high:7.2f} mm")
    _print_files(folder, _files_in(folder), result.notes)


if __name__ == "__main__":
    sys.exit(main())
