"""Name the pairs of a cohort."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ...errors import InputError
from .rows import _Row

#: Bytes of an id. It names a folder, and a hidden one that also bears a computer's name; file systems take 255.
_LONGEST_ID = 100

_NOT_IN_AN_ID = re.compile(r'[<>:"/\\|?*]')

#: Windows keeps these for devices, whatever follows the first dot.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}

_IMAGE_SUFFIX = re.compile(r"(\.(nii|nrrd|nhdr|mha|mhd|hdr|img|mgh|mgz|vtk|tiff?))?(\.gz)?$", re.IGNORECASE)


def _given_ids(rows: Sequence[_Row]) -> tuple[dict[int, str], dict[int, str]]:
    """By the number of their row: the ids, and what is wrong with others."""
    ids, mistakes, taken = {}, {}, {}
    for number, row in enumerate(rows):
        if "id" not in row.cells:
            continue
        id = row.cells["id"]
        id = str(id) if type(id) is int else id
        wrong = _id_mistake(id)
        if wrong is None:
            first = taken.setdefault(_folded(id), row.where)
            wrong = None if first == row.where else f"is that of {first} (upper and lower case are one); choose another"
        if wrong is None:
            ids[number] = id
        else:
            mistakes[number] = f"the id {id!r} {wrong}"
    return ids, mistakes


def names_of(paths: Sequence[str]) -> list[str]:
    """A name for each file, as pairs without an id get one: all different, and fit for a folder.

    Raises InputError for a file that is there twice.
    """
    names, repeated = _derived_ids({n: _Row("", {"image": path}) for n, path in enumerate(paths)}, ["image"], ())
    if repeated:
        raise InputError(f"{paths[min(repeated)]} is there twice; leave one away.")
    return [names[n] for n in range(len(paths))]


def _id_mistake(id) -> str | None:
    """Why a folder cannot have this name on every system."""
    if not isinstance(id, str):
        return "is no text; quote it"
    if len(id.encode()) > _LONGEST_ID:
        return f"is longer than {_LONGEST_ID} bytes; shorten it"
    if id.startswith(".") or id.endswith("."):
        return "begins or ends with a dot; it names a folder, leave the dot out"
    unsafe = _NOT_IN_AN_ID.search(id)
    if unsafe or not id.isprintable():
        return f"holds {unsafe.group() if unsafe else 'an invisible character'}; it names a folder, leave that out"
    if id.partition(".")[0].strip().lower() in _RESERVED:
        return "is a name that Windows keeps for a device; choose another"
    return None


def _folded(id: str) -> str:
    """The same for two ids that are one folder on some file system."""
    return unicodedata.normalize("NFC", id).casefold()


def _derived_ids(
    rows: Mapping[int, _Row], columns: Sequence[str], given: Iterable[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """By the number of their row: ids of those that were given none, and which of them repeat another.

    A name is that of the files; with their folders' where rows would else share one; with a hash of all cells where
    that does not help. It does not hang on the order of the rows, so that a row more changes no name but one it shares.
    """
    ids, taken = {}, set(map(_folded, given))
    pending = [number for number, row in rows.items() if "id" not in row.cells]
    for depth in (1, 2, 3):
        names = {number: _name([rows[number].cells[column] for column in columns], depth) for number in pending}
        folded = {number: _folded(name) for number, name in names.items()}
        count = Counter(folded.values())
        own = [number for number in pending if count[folded[number]] == 1 and folded[number] not in taken]
        ids |= {number: names[number] for number in own if _id_mistake(names[number]) is None}
        taken |= {folded[number] for number in own}
        pending = [number for number in pending if number not in ids]
    mistakes = {}
    for number in pending:
        cells = rows[number].cells
        name = _name([cells[column] for column in columns], 1).replace(".", "_") or "pair"
        digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:12]
        ids[number] = f"{name.encode()[: _LONGEST_ID - 20].decode(errors='ignore')}-{digest}"
        if _folded(ids[number]) in taken:
            mistakes[number] = "it repeats another; remove it, or give both an id"
        taken.add(_folded(ids[number]))
    return ids, mistakes


def _name(paths: Sequence[str], depth: int) -> str:
    """The last parts of each path, as "moving_to_fixed"."""
    names = []
    for path in paths:
        parts = [part for part in re.split(r"[/\\]", path) if part.strip(".")]
        names.append(_IMAGE_SUFFIX.sub("", "_".join(parts[-depth:])))
    return re.sub(r"[^\w+.-]+", "_", unicodedata.normalize("NFC", "_to_".join(names))).strip("._")
