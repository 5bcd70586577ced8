"""Select the pairs that the command-line options name."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ...errors import InputError
from ...registration.settings import Settings
from ..pair import check_files, is_there
from .bids import bids_entries
from .entries import Entry, _path
from .manifest import read_manifest
from .rows import _KINDS, _few


def add_entries(parser: argparse.ArgumentParser) -> None:
    """The options for `entries_of`."""
    pairs = parser.add_argument_group("pairs", "a row of the manifest is a pair: columns fixed, moving and others")
    pairs.add_argument("manifest", nargs="?", metavar="MANIFEST", help=".csv or .json; its paths start at its folder")
    pairs.add_argument("--bids", metavar="DIR", help="instead: every subject's later sessions, each to the first")
    pairs.add_argument("--bids-suffix", default="T1w", metavar="SUFFIX", help="of the images in DIR (default: T1w)")
    pairs.add_argument("--to-atlas", metavar="IMAGE", help="bring every image (column: image) to this one")
    pairs.add_argument("--from-atlas", metavar="IMAGE", help="bring this one to every image (column: image)")
    for kind in _KINDS:
        pairs.add_argument(f"--atlas-{kind}", metavar="FILE", help=f"{kind} of the atlas")
    pairs.add_argument("--guide", action="store_true", help="segments of one name guide the registration")


def entries_of(args: argparse.Namespace, defaults: Settings) -> tuple[list[Entry], list[str]]:
    """The pairs that the options name, and what there is to say before they run, a sentence each.

    A file that is not there fails its own pair and no other, but is worth a sentence; the atlas has to be there.
    Raises InputError for options that do not go together, and as `read_manifest` and `bids_entries` do.
    """
    if (args.manifest is None) == (args.bids is None):
        raise InputError("A cohort is a manifest or a BIDS folder; give either MANIFEST or --bids DIR.")
    atlas = _atlas_of(args)
    if args.bids is None:
        entries, notes = read_manifest(args.manifest, defaults, args.guide, atlas), []
    else:
        entries, notes = bids_entries(args.bids, args.bids_suffix, defaults, args.guide, atlas)
    return entries, notes + _missing_files(entries)


def _atlas_of(args: argparse.Namespace) -> dict[str, str]:
    """Files of the atlas by their role; empty without one."""
    if args.to_atlas and args.from_atlas:
        raise InputError("--to-atlas and --from-atlas are two directions; choose one.")
    image = args.to_atlas or args.from_atlas
    given = {kind: getattr(args, f"atlas_{kind}") for kind in _KINDS if getattr(args, f"atlas_{kind}")}
    if given and not image:
        kind, path = next(iter(given.items()))
        raise InputError(f"--atlas-{kind} {path} lacks its image; give --to-atlas IMAGE or --from-atlas IMAGE.")
    if not image:
        return {}
    side = "fixed" if args.to_atlas else "moving"
    atlas = {side: image, **{f"{side}_{kind}": path for kind, path in given.items()}}
    check_files(atlas.values())
    return {role: _path(os.getcwd(), path) for role, path in atlas.items()}


def _missing_files(entries: Sequence[Entry]) -> list[str]:
    """A sentence if there are any."""
    first_user = {}
    for entry in entries:
        for path in entry.pair.files.values():
            first_user.setdefault(path, entry.id)
    missing = [f"{path} (of {id})" for path, id in first_user.items() if not is_there(path)]
    return [f"Files that do not exist: {_few(missing)}; their pairs will fail, the others run."] if missing else []
