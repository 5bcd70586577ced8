"""`icon-registration propagate`: transfer the labels of one or several atlases to many images.

Every atlas is registered to every image by the cohort's runner, in a folder that is a cohort's:

    DIR/pairs/<image>_from_<atlas>/     a registration, as `register` writes it
    DIR/segmentations/<image>.seg.nrrd  the labels of an image, fused if there are several atlases
    DIR/segmentations/<image>.json      the registrations they were made of: unchanged ones are not fused again
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import FolderError, InputError
from ...io.writing import write_error_message
from ...registration.settings import Settings
from ...text import tr
from ..cohort.entries import Entry, with_absolute_paths
from ..cohort.ids import MAX_ID_BYTES, names_of
from ..cohort.job import ROW, read_row, write_row
from ..options import add_settings, settings_of
from ..pair import OutputOptions, PairFiles, check_files
from .cohort import add_execution, check_execution, run_entries

MAJORITY, LOCAL = "majority", "local"


@dataclass(frozen=True)
class Target:
    """An image (its name and path) and its registrations to the atlases."""

    name: str
    image: str
    entries: tuple[Entry, ...]


HELP = "Transfer the labels of one or several atlases to many images."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `propagate`."""
    parser.epilog = "Run again with the same DIR, it continues where it stopped. See docs/cohort.md."
    what = parser.add_argument_group("inputs")
    what.add_argument(
        "--atlas",
        action="append",
        nargs=2,
        required=True,
        metavar=("IMAGE", "SEGMENTATION"),
        help="an atlas and its labels; give it again for further ones",
    )
    what.add_argument("--images", nargs="+", required=True, metavar="FILE", help="what gets the labels")
    add_settings(parser)
    out = parser.add_argument_group("outputs")
    out.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder to write; may be an unfinished one")
    out.add_argument(
        "--fusion",
        choices=(MAJORITY, LOCAL),
        default=LOCAL,
        help="each atlas has one vote, or as much as its image resembles the other there (default: local)",
    )
    out.add_argument("--agreement", action="store_true", help="also write which share of the vote won")
    out.add_argument("--no-pictures", action="store_true", help="draw no pictures of the registrations")
    out.add_argument("--json", action="store_true", help="progress and result as JSON objects on stdout")
    add_execution(parser)


def run(args: argparse.Namespace) -> int:
    """Transfer the labels and return the exit code.

    It is 0 if every image has the labels of every atlas, 3 if some pairs could not be registered, 1 as for `cohort`.
    """
    check_execution(args)
    targets = targets_of(args.images, args.atlas, with_absolute_paths(settings_of(args)))
    args.out = args.out.expanduser().resolve()
    entries = [entry for target in targets for entry in target.entries]
    code = run_entries(args, entries, (), OutputOptions(scene=False, pictures=not args.no_pictures))
    if code == 1:
        return code
    written = 0
    try:
        for target in targets:
            written += write_segmentation_of(target, args.out, args.fusion, args.agreement)
    except BaseException as stop:
        if isinstance(stop, Exception):
            raise
        counts = {"written": written, "total": len(targets)}
        raise type(stop)(
            tr("Stopped; {written} of {total} images have labels. The same command continues.", **counts)
        ) from None
    folder = args.out / "segmentations"
    if args.json:
        print(json.dumps({"segmentations": {"folder": str(folder), "written": written}}), flush=True)
    else:
        counts = {"written": written, "total": len(targets)}
        print(tr("{written} of {total} images have labels now, in {folder}", **counts, folder=folder))
    return code


def targets_of(images: Sequence[str], atlases: Sequence[Sequence[str]], settings: Settings) -> list[Target]:
    """Return the images with their registrations to all atlases.

    Parameters
    ----------
    images : sequence of str
        Paths of the images that get labels.
    atlases : sequence of (str, str)
        Paths of image and segmentation of each.
    settings : Settings

    Raises
    ------
    InputError
        If a file does not exist.
    """
    check_files(path for atlas in atlases for path in atlas)
    check_files(images)
    images, atlases = _absolute(images), [_absolute(atlas) for atlas in atlases]
    atlas_names = names_of([image for image, _ in atlases])
    same = set(images) & {image for image, _ in atlases}
    if same:
        raise InputError(tr("{path} is an atlas and already has labels; omit it from --images.", path=min(same)))
    return [
        Target(
            name,
            image,
            tuple(
                Entry(_id(name, atlas_name), PairFiles(image, atlas, moving_segmentation=labels, settings=settings))
                for atlas_name, (atlas, labels) in zip(atlas_names, atlases, strict=True)
            ),
        )
        for name, image in zip(names_of(images), images, strict=True)
    ]


def _absolute(paths: Sequence[str]) -> list[str]:
    """Return absolute paths, which workers elsewhere need; "folder::UID" of a DICOM series stays one."""
    return [str(Path(path).expanduser().absolute()) for path in paths]


def _id(image: str, atlas: str) -> str:
    """Return the id of the pair; one that is too long for a folder ends in a hash of it."""
    name = f"{image}_from_{atlas}"
    if len(name.encode()) <= MAX_ID_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name.encode()[: MAX_ID_BYTES - 13].decode(errors='ignore')}-{digest}"


def write_segmentation_of(target: Target, folder: Path, fusion: str, agreement: bool) -> bool:
    """Write the segmentation that the registered atlases give an image, unless it exists; return whether there is one.

    Parameters
    ----------
    target : Target
    folder : Path
        Folder of the cohort.
    fusion : str
        "majority" or "local".
    agreement : bool
        Also write the share of the vote that won.

    Raises
    ------
    FolderError
        If the disk is full or cannot be written to.
    """
    from ...io.images import write_image
    from ...io.segmentations import write_segmentation

    pairs = {entry.id: folder / "pairs" / entry.id for entry in target.entries}
    rows = {name: read_row(place / ROW) for name, place in pairs.items()}
    keys = {name: row["key"] for name, row in rows.items() if row and not (folder / "failed" / f"{name}.json").exists()}
    if not keys:
        return False
    result, note, shares = (
        folder / "segmentations" / f"{target.name}{end}" for end in (".seg.nrrd", ".json", "_agreement.nii.gz")
    )
    made_of = {"registrations": keys, "fusion": fusion if len(keys) > 1 else None}
    if _read(note) == made_of and result.exists() and (shares.exists() or not agreement):
        return True
    fused = _fused(target, [pairs[name] for name in keys], fusion)
    try:
        result.parent.mkdir(exist_ok=True)
        for former in (note, shares):
            former.unlink(missing_ok=True)
        write_segmentation(fused.segmentation, result)
        if agreement:
            write_image(fused.agreement, shares)
        write_row(note, made_of)
    except OSError as error:
        raise FolderError(write_error_message(result.parent, error)) from None
    return True


def _read(note: Path) -> dict | None:
    try:
        return json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None


def _fused(target: Target, places: Sequence[Path], fusion: str):
    """Fuse the segmentations in the folders of the registrations."""
    from ...io.images import read_image
    from ...io.segmentations import read_segmentation
    from ...quality.fusion import fuse, vote_weights

    segmentations = [read_segmentation(place / "warped_segmentation.seg.nrrd") for place in places]
    weights = None
    if fusion == LOCAL and len(places) > 1:
        image = read_image(target.image)
        weights = [vote_weights(read_image(place / "warped.nii.gz"), image) for place in places]
    return fuse(segmentations, weights)
