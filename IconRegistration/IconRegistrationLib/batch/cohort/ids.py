"""Name the pairs of a cohort: check the ids that a manifest gives, and derive the others from file names."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from ...errors import InputError
from ...text import tr
from .rows import Row

#: Bytes of an id. It names a folder, and a hidden one that also contains a computer's name; file systems take 255.
MAX_ID_BYTES = 100

#: Characters that some file system does not allow in a name.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')
#: Windows reserves these for devices, whatever follows the first dot.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}

_IMAGE_SUFFIX = re.compile(r"(\.(nii|nrrd|nhdr|mha|mhd|hdr|img|mgh|mgz|vtk|tiff?))?(\.gz)?$", re.IGNORECASE)


def given_ids(rows: Sequence[Row]) -> tuple[dict[int, str], dict[int, str]]:
    """Return the valid ids of the rows, and the errors of the others.

    Returns
    -------
    ids, mistakes : dict
        Both by the index of the row.
    """
    ids: dict[int, str] = {}
    mistakes: dict[int, str] = {}
    taken: dict[str, str] = {}
    for index, row in enumerate(rows):
        if "id" not in row.cells:
            continue
        id = row.cells["id"]
        id = str(id) if type(id) is int else id
        mistake = _id_mistake(id)
        if mistake is None:
            first = taken.setdefault(_folded(id), row.position)
            if first != row.position:
                mistake = tr(
                    "the id {id!r} is already that of {first} (case does not distinguish them); choose another.",
                    id=id,
                    first=first,
                )
        if mistake is None:
            ids[index] = id
        else:
            mistakes[index] = mistake
    return ids, mistakes


def names_of(paths: Sequence[str]) -> list[str]:
    """Return a name for each file, derived as for pairs without an id: all different, and valid for a folder.

    Raises
    ------
    InputError
        If a file is listed twice.
    """
    names, repeated = derived_ids({n: Row("", {"image": path}) for n, path in enumerate(paths)}, ["image"], ())
    if repeated:
        raise InputError(tr("{path} is listed twice; remove one of them.", path=paths[min(repeated)]))
    return [names[n] for n in range(len(paths))]


def derived_ids(
    rows: Mapping[int, Row], columns: Sequence[str], given: Iterable[str]
) -> tuple[dict[int, str], dict[int, str]]:
    """Return ids for the rows that give none, and which of these rows repeat another.

    A name is that of the files; with the names of their folders where rows would otherwise share one; with a hash of
    all cells where that does not help. It does not depend on the order of the rows, so that adding a row changes no
    name except one that it would share.

    Parameters
    ----------
    rows : mapping
        Rows by index.
    columns : sequence of str
        The columns whose files make the name, in this order.
    given : iterable of str
        Ids that are taken.

    Returns
    -------
    ids, mistakes : dict
        Both by the index of the row.
    """
    ids: dict[int, str] = {}
    taken = set(map(_folded, given))
    pending = [index for index, row in rows.items() if "id" not in row.cells]
    for depth in (1, 2, 3):
        names = {index: _name([rows[index].cells[column] for column in columns], depth) for index in pending}
        folded = {index: _folded(name) for index, name in names.items()}
        count = Counter(folded.values())
        own = [index for index in pending if count[folded[index]] == 1 and folded[index] not in taken]
        ids |= {index: names[index] for index in own if _id_mistake(names[index]) is None}
        taken |= {folded[index] for index in own}
        pending = [index for index in pending if index not in ids]
    mistakes: dict[int, str] = {}
    for index in pending:
        cells = rows[index].cells
        name = _name([cells[column] for column in columns], 1).replace(".", "_") or "pair"
        digest = hashlib.sha256(json.dumps(cells, sort_keys=True).encode()).hexdigest()[:12]
        ids[index] = f"{name.encode()[: MAX_ID_BYTES - 20].decode(errors='ignore')}-{digest}"
        if _folded(ids[index]) in taken:
            mistakes[index] = tr("it repeats another; remove it, or give both an id.")
        taken.add(_folded(ids[index]))
    return ids, mistakes


def _id_mistake(id) -> str | None:
    """Say why a folder cannot have this name on every system; None if it can."""
    if not isinstance(id, str):
        return tr("the id {id!r} is not text; quote it.", id=id)
    if len(id.encode()) > MAX_ID_BYTES:
        return tr("the id {id!r} is longer than {limit} bytes; shorten it.", id=id, limit=MAX_ID_BYTES)
    if id.startswith(".") or id.endswith("."):
        return tr("the id {id!r} begins or ends with a dot; it names a folder, so omit the dot.", id=id)
    forbidden = _FORBIDDEN.search(id)
    if forbidden:
        return tr("the id {id!r} contains {character}; it names a folder, so omit that.", id=id, character=forbidden[0])
    if not id.isprintable():
        return tr("the id {id!r} contains an invisible character; it names a folder, so omit that.", id=id)
    if id.partition(".")[0].strip().lower() in _RESERVED:
        return tr("the id {id!r} is a name that Windows reserves for a device; choose another.", id=id)
    return None


def _folded(id: str) -> str:
    """Return the same text for two ids that are one folder on some file system."""
    return unicodedata.normalize("NFC", id).casefold()


def _name(paths: Sequence[str], depth: int) -> str:
    """Join the last parts of each path, as "moving_to_fixed"."""
    names = []
    for path in paths:
        parts = [part for part in re.split(r"[/\\]", path) if part.strip(".")]
        names.append(_IMAGE_SUFFIX.sub("", "_".join(parts[-depth:])))
    return re.sub(r"[^\w+.-]+", "_", unicodedata.normalize("NFC", "_to_".join(names))).strip("._")
