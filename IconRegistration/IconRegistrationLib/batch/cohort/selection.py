"""Select the pairs that the command-line options name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ...errors import InputError
from ...registration.settings import Settings
from ...text import tr
from ..options import add_roles, roles_of
from ..pair import check_files, is_there
from .bids import bids_entries
from .entries import Entry, absolute_path
from .manifest import read_manifest
from .rows import COMPANIONS, abbreviate


def add_entries(parser: argparse.ArgumentParser) -> None:
    """Add the options that `entries_of` reads."""
    pairs = parser.add_argument_group("pairs", "a row of the manifest is a pair: columns fixed, moving and others")
    pairs.add_argument("manifest", nargs="?", metavar="MANIFEST", help=".csv or .json; its paths start at its folder")
    pairs.add_argument("--bids", metavar="DIR", help="instead: every subject's later sessions, each to the first")
    pairs.add_argument("--bids-suffix", default="T1w", metavar="SUFFIX", help="of the images in DIR (default: T1w)")
    pairs.add_argument("--to-atlas", metavar="IMAGE", help="bring every image (column: image) to this one")
    pairs.add_argument("--from-atlas", metavar="IMAGE", help="bring this one to every image (column: image)")
    for kind in COMPANIONS:
        pairs.add_argument(f"--atlas-{kind}", metavar="FILE", help=f"{kind} of the atlas")
    add_roles(pairs)


def entries_of(args: argparse.Namespace, defaults: Settings) -> tuple[list[Entry], list[str]]:
    """Return the pairs that the options name, and notes to show before they run.

    A missing file fails its own pair and no other, but is noted; the atlas must exist.

    Parameters
    ----------
    args : argparse.Namespace
        Parsed options of `add_entries`.
    defaults : Settings
        Settings of the pairs that do not give their own.

    Raises
    ------
    InputError
        For options that exclude each other, and as `read_manifest` and `bids_entries` do.
    """
    if (args.manifest is None) == (args.bids is None):
        raise InputError(tr("A cohort is a manifest or a BIDS folder; give either MANIFEST or --bids DIR."))
    atlas = _atlas_of(args)
    if args.bids is None:
        entries = read_manifest(args.manifest, defaults, roles_of(args), atlas)
        notes: list[str] = []
    else:
        entries, notes = bids_entries(args.bids, args.bids_suffix, defaults, roles_of(args), atlas)
    return entries, notes + _missing_files(entries)


def _atlas_of(args: argparse.Namespace) -> dict[str, str]:
    """Return the files of the atlas by role; empty without one."""
    if args.to_atlas and args.from_atlas:
        raise InputError(tr("--to-atlas and --from-atlas exclude each other; choose one direction."))
    image = args.to_atlas or args.from_atlas
    given = {kind: getattr(args, f"atlas_{kind}") for kind in COMPANIONS if getattr(args, f"atlas_{kind}")}
    if given and not image:
        kind, path = next(iter(given.items()))
        raise InputError(
            tr(
                "--atlas-{kind} {path} lacks its image; give --to-atlas IMAGE or --from-atlas IMAGE.",
                kind=kind,
                path=path,
            )
        )
    if not image:
        return {}
    side = "fixed" if args.to_atlas else "moving"
    atlas = {side: image, **{f"{side}_{kind}": path for kind, path in given.items()}}
    check_files(atlas.values())
    return {role: absolute_path(os.getcwd(), path) for role, path in atlas.items()}


def _missing_files(entries: Sequence[Entry]) -> list[str]:
    """Return a note that lists them, if there are any."""
    first_user: dict[str, str] = {}
    for entry in entries:
        for path in entry.pair.files.values():
            first_user.setdefault(path, entry.id)
    missing = [tr("{path} (pair {id})", path=path, id=id) for path, id in first_user.items() if not is_there(path)]
    if not missing:
        return []
    files = abbreviate(missing)
    return [tr("These files do not exist: {files}. Their pairs will fail; the others will run.", files=files)]
