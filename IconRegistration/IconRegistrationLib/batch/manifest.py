"""Which pairs a cohort registers: a table, a JSON file or a BIDS folder; image to image, or all with one atlas."""

from __future__ import annotations

import argparse
import csv
import difflib
import functools
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import NamedTuple

from ..core.errors import InputError
from ..core.settings import Settings
from .pair import ROLES, Pair, check_files, is_there

#: Fields of Settings and their annotated kinds, such as "float | None".
_SETTINGS = {field.name: field.type for field in fields(Settings)}
#: What an image may have besides itself: the ends of the roles.
_KINDS = ("segmentation", "landmarks", "mask")
#: Bytes of an id. It names a folder, and a hidden one that also bears a computer's name; file systems take 255.
_LONGEST_ID = 100
_NOT_IN_AN_ID = re.compile(r'[<>:"/\\|?*]')
#: Windows keeps these for devices, whatever follows the first dot.
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
_IMAGE_SUFFIX = re.compile(r"(\.(nii|nrrd|nhdr|mha|mhd|hdr|img|mgh|mgz|vtk|tiff?))?(\.gz)?$", re.IGNORECASE)
_YES, _NO = {"yes", "true", "1"}, {"no", "false", "0"}
_SHOWN = 10


@dataclass(frozen=True)
class Entry:
    """A pair of a cohort; `id` is the name of its folder of results."""

    id: str
    pair: Pair


# ------------------------------------------------------------------------------------------------------- the options


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


def _few(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------------------------------------ the manifest


class _Row(NamedTuple):
    """A pair as it is written down, or what is wrong with how it is."""

    where: str  #: as the reader finds it: "row 7", the header is row 1
    cells: Mapping[str, object]  #: by column; what is left empty is not in it
    mistakes: Sequence[str] = ()


class _Mistakes(Exception):
    """What is wrong with one row: sentences without their full stop."""


def read_manifest(
    path: str | Path, defaults: Settings, guide: bool = False, atlas: Mapping[str, str] | None = None
) -> list[Entry]:
    """The pairs of a CSV file (comma, semicolon or tab) or a JSON file, in its order.

    JSON is a list of objects, or {"pairs": [...], "settings": {...}}. Columns, and names in the objects: id, the roles
    of a `Pair`, guide, the fields of `Settings`. With an atlas (its files by their role) the columns image,
    segmentation, landmarks and mask name files of the other side. A row counts more than the file's settings, and
    these more than `defaults`. Paths start at the manifest's folder. docs/cohort.md describes all this for users.

    Raises InputError that lists the mistakes, each with its row and remedy.
    """
    path = Path(os.path.expanduser(path))
    text = _read_text(path)
    folder = os.path.abspath(path.parent)
    roles = _roles(atlas)
    read = _json_rows if path.suffix.lower() == ".json" else _table_rows
    rows, settings = read(text, {"id", *roles, "guide", *_SETTINGS}, _needed(roles))
    try:
        defaults = _changed(defaults, folder, json.dumps(settings))
    except _Mistakes as found:
        rows = [_Row("the settings", {}, found.args), *rows]
    return _entries(str(path), rows, folder, defaults, guide, atlas)


def _roles(atlas: Mapping[str, str] | None) -> dict[str, str]:
    """By the name of a column, the role of the file that it names."""
    if not atlas:
        return {role: role for role in ROLES}
    side = "moving" if "fixed" in atlas else "fixed"
    return {"image": side, **{kind: f"{side}_{kind}" for kind in _KINDS}, "initial": "initial", "region": "region"}


def _needed(roles: Mapping[str, str]) -> list[str]:
    """The columns that every row fills in."""
    return [column for column, role in roles.items() if role in ("fixed", "moving")]


def _read_text(path: Path) -> str:
    """A text file as spreadsheets write it: UTF-8, or UTF-16 with its mark. Its lines end with one character."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path} is not UTF-8 text (see line {line}); save it again, in a spreadsheet as 'CSV UTF-8'."
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(f"{path} is not text (a zero byte in line {line}); give a CSV or JSON file.")
    return text


def _table_rows(text: str, columns: set[str], needed: Sequence[str]) -> tuple[list[_Row], dict]:
    """Rows of a table, whose first line names the columns and tells the separator; no settings."""
    header, rows, line = None, [], 1
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for record in reader:
            where, line = f"row {line}", reader.line_num + 1
            cells = [cell.strip() for cell in record]
            if not any(cells):
                continue
            if header is None:
                header, found = _known(cells, columns)
                found += [f"the column {name!r} is missing; add it" for name in needed if name not in header]
                if found:
                    return [_Row(f"{where}, the header", {}, found)], {}
            elif len(cells) < len(header) or any(cells[len(header) :]):
                found = f"{len(cells)} cells, where the header has {len(header)}; quote what holds a {separator!r}"
                rows.append(_Row(where, {}, [found]))
            else:
                rows.append(_Row(where, _filled(header, cells)))
    except csv.Error as error:
        found = f"quotes that do not match ({error}); close them, and double a quote within quotes"
        rows.append(_Row(f"row {line}", {}, [found]))
    return rows, {}


def _json_rows(text: str, columns: set[str], needed: Sequence[str]) -> tuple[list[_Row], dict]:
    """Rows and settings of a JSON file."""
    expected = 'write a list of objects, or {"pairs": [...], "settings": {...}}'
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return [_Row("the file", {}, [f"it is not JSON ({error}); {expected}"])], {}
    if isinstance(content, list):
        content = {"pairs": content}
    if not isinstance(content, dict) or not {"pairs"} <= content.keys() <= {"pairs", "settings"}:
        return [_Row("the file", {}, [f"it does not hold pairs; {expected}"])], {}
    pairs, settings = content["pairs"], content.get("settings", {})
    if not isinstance(pairs, list) or not isinstance(settings, dict):
        return [_Row("the file", {}, [f"its pairs are no list, or its settings no object; {expected}"])], {}
    known = functools.cache(lambda names: _known(names, columns))  # most objects have the same names
    rows = []
    for number, pair in enumerate(pairs, start=1):
        if not isinstance(pair, dict):
            rows.append(_Row(f"pair {number}", {}, [f"it is no object; write one with {' and '.join(needed)}"]))
            continue
        header, found = known(tuple(pair))
        cells = [value.strip() if isinstance(value, str) else value for value in pair.values()]
        found = found or [f"{cell!r} holds what is no character; correct it" for cell in cells if not _is_text(cell)]
        rows.append(_Row(f"pair {number}", {} if found else _filled(header, cells), found))
    return rows, settings


def _is_text(cell) -> bool:
    """False for a string that no file can be called by: JSON can write halves of a character, and zeros."""
    try:
        return not isinstance(cell, str) or b"\0" not in cell.encode()
    except UnicodeEncodeError:
        return False


def _known(names: Sequence[str], columns: set[str]) -> tuple[list[str | None], list[str]]:
    """Names as the columns are called, None for what is not read (unnamed, or marked with #); and what is wrong."""
    found: list[str | None] = []
    mistakes = []
    for written in names:
        name = re.sub(r"[\s-]+", "_", written.strip()).lower()
        if not name or name.startswith("#"):
            found.append(None)
            continue
        if name not in columns:
            near = difflib.get_close_matches(name, sorted(columns), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(columns))}."
            mistakes.append(f"no column is called {written!r}; {hint} Begin its name with # if it is not to be read")
        elif name in found:
            mistakes.append(f"the column {name!r} is there twice; remove one")
        found.append(name)
    return found, mistakes


def _filled(header: Sequence[str | None], cells: Sequence) -> dict[str, object]:
    """The cells that have a name and a value."""
    return {name: cell for name, cell in zip(header, cells, strict=False) if name and cell is not None and cell != ""}


# ---------------------------------------------------------------------------------------------------- rows to entries


def _entries(
    source: str,
    rows: Sequence[_Row],
    folder: str,
    defaults: Settings,
    guide: bool,
    atlas: Mapping[str, str] | None,
) -> list[Entry]:
    """Entries of the rows of `source`; InputError that lists what is wrong with them."""
    if not rows:
        raise InputError(f"{source} holds no pairs; write a row for each, below a header that names the columns.")
    roles = _roles(atlas)
    settings_of = functools.cache(functools.partial(_changed, defaults, folder))
    pairs, mistakes = {}, defaultdict(list)
    for number, row in enumerate(rows):
        try:
            pairs[number] = _pair(row, roles, atlas or {}, folder, guide, settings_of)
        except _Mistakes as found:
            mistakes[number] += found.args
    ids, wrong = _given_ids(rows)
    derived, repeated = _derived_ids({number: rows[number] for number in pairs}, _needed(roles)[::-1], ids.values())
    for number, mistake in (wrong | repeated).items():
        mistakes[number].append(mistake)
    if mistakes:
        listed = [f"{rows[number].where}: {mistake}" for number in sorted(mistakes) for mistake in mistakes[number]]
        count = "a mistake" if len(listed) == 1 else f"{len(listed)} mistakes"
        rest = [f"and {len(listed) - _SHOWN} more"] if len(listed) > _SHOWN else []
        raise InputError("\n".join([f"{source} has {count}:", *map(_shortened, listed[:_SHOWN]), *rest]) + ".")
    ids |= derived
    return [Entry(ids[number], pair) for number, pair in pairs.items()]


def _shortened(mistake: str) -> str:
    """A cell can hold a page; where it is and the remedy stay."""
    return mistake if len(mistake) <= 400 else f"{mistake[:200]} ... {mistake[-180:]}"


def _pair(
    row: _Row,
    roles: Mapping[str, str],
    atlas: Mapping[str, str],
    folder: str,
    guide: bool,
    settings_of: Callable[[str], Settings],
) -> Pair:
    """The pair of a row, or `_Mistakes`."""
    if row.mistakes:
        raise _Mistakes(*row.mistakes)
    cells, files, mistakes = row.cells, dict(atlas), []
    for column, role in roles.items():
        path = cells.get(column)
        if isinstance(path, str):
            files[role] = _path(folder, path)
        elif path is not None:
            mistakes.append(f"{column} is {path!r}; write the path of a file")
        elif role in ("fixed", "moving"):
            mistakes.append(f"{column} is empty; name an image")
    if "fixed" in files and "moving" in files and os.path.normpath(files["fixed"]) == os.path.normpath(files["moving"]):
        mistakes.append(f"{files['fixed']} is both fixed and moving; name two images")
    word = str(cells.get("guide", guide)).lower()
    if word not in _YES | _NO:
        mistakes.append(f"guide is {cells['guide']!r}; write yes or no")
    if word in _YES and not {"fixed_segmentation", "moving_segmentation"} <= files.keys():
        mistakes.append("guide needs segmentations of both images; name them, or do without it")
    written = {column: value for column, value in cells.items() if column in _SETTINGS}
    try:
        settings = settings_of(json.dumps(written) if written else "{}")
    except _Mistakes as found:
        mistakes += found.args
    if mistakes:
        raise _Mistakes(*mistakes)
    return Pair(**files, guide=word in _YES, settings=settings)


def _path(folder: str, path: str) -> str:
    """Absolute, "~" expanded; the UID of a DICOM series stays at its end."""
    return os.path.join(folder, os.path.expanduser(path))


def _changed(defaults: Settings, folder: str, written: str) -> Settings:
    """The defaults with what a JSON object says, in which values may also be text as in a table; or `_Mistakes`."""
    values = {name: value for name, value in json.loads(written).items() if value is not None}
    mistakes = []
    for name, value in values.items():
        if isinstance(value, str):
            try:
                values[name] = _value(_SETTINGS.get(name, "str"), value)
            except ValueError as error:
                mistakes.append(f"{name} is {value!r}; write {error}")
    if mistakes:
        raise _Mistakes(*mistakes)
    try:
        settings = Settings.from_plain({**vars(defaults), **values})
        if "weights_dir" in values:
            settings = replace(settings, weights_dir=_path(folder, settings.weights_dir))
        if "model" in values:
            settings = replace(settings, model=_model(folder, settings.model))
    except InputError as error:
        raise _Mistakes(str(error).rstrip(".")) from None
    return settings


def _value(kind: str, text: str):
    """What a text means for a field of this kind; ValueError says what to write instead."""
    try:
        if kind.startswith("tuple"):
            low, high = re.split(r"[\s;]+", text)
            return float(low), float(high)
        if kind.startswith("int"):
            return int(text)
        return float(text) if kind.startswith("float") else text
    except ValueError:
        expected = {"tuple": "two numbers, such as -160 240", "int": "a whole number", "float": "a number, such as 2.5"}
        raise ValueError(next(words for start, words in expected.items() if kind.startswith(start))) from None


def everywhere(settings: Settings) -> Settings:
    """Settings that mean the same to a worker, whose working folder is another; InputError for an unknown model."""
    folder = os.getcwd()
    weights_dir = settings.weights_dir and _path(folder, settings.weights_dir)
    return replace(settings, model=_model(folder, settings.model), weights_dir=weights_dir)


def _model(folder: str, model: str) -> str:
    """A known name as it is, a weights file as an absolute path; InputError if it is neither."""
    from ..core.catalog import CARDS, find_card

    model = model if model in CARDS else _path(folder, model)
    find_card(model)
    return model


# --------------------------------------------------------------------------------------------------------------- ids


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


# -------------------------------------------------------------------------------------------------------------- BIDS


class _Scan(NamedTuple):
    """An image of a BIDS folder."""

    subject: str  #: "sub-01"
    session: str | None  #: "ses-01"
    image: str
    segmentation: str | None

    @property
    def name(self) -> str:
        return _joined(self.subject, self.session)


def bids_entries(
    folder: str | Path,
    suffix: str = "T1w",
    defaults: Settings | None = None,
    guide: bool = False,
    atlas: Mapping[str, str] | None = None,
) -> tuple[list[Entry], list[str]]:
    """Pairs of a BIDS folder, and what was left out and why.

    Every later session of a subject is brought to its first one; with an atlas, every image is one side of a pair.
    Images are sub-*/[ses-*/]anat/sub-*_<suffix>.nii[.gz]; a segmentation is the one sub-*_[ses-*_]*_dseg.nii[.gz] below
    derivatives in the image's own space. Sessions go by acq_time of sub-*_sessions.tsv where that has all of them,
    else by their names, in which numbers count as numbers.

    Raises InputError for a folder without such images, or with several of one session.
    """
    folder = Path(os.path.expanduser(folder))
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the root of a BIDS data set.")
    subjects, notes = _scans(folder, suffix)
    if atlas:
        rows = [_bids_row(scan.name, image=scan) for scans in subjects.values() for scan in scans]
    else:
        single = [subject for subject, scans in subjects.items() if len(scans) == 1]
        if len(single) == len(subjects):
            raise InputError(
                f"No subject of {folder} has two sessions with a *_{suffix} image; give --to-atlas or --from-atlas, or "
                "name the pairs in a manifest."
            )
        if single:
            notes.append(f"Left out, for having one session: {_few(single)}.")
        rows = [
            _bids_row(f"{later.name}_to_{scans[0].session}", fixed=scans[0], moving=later)
            for scans in subjects.values()
            for later in scans[1:]
        ]
    return _entries(str(folder), rows, "", defaults or Settings(), guide, atlas), notes


def _bids_row(id: str, **scans: _Scan) -> _Row:
    """A row as a manifest would have it; `scans` by column."""
    cells = {"id": id, **{column: scan.image for column, scan in scans.items()}}
    for column, scan in scans.items():
        if scan.segmentation:
            cells["segmentation" if column == "image" else f"{column}_segmentation"] = scan.segmentation
    return _Row(id, cells)


def _scans(folder: Path, suffix: str) -> tuple[dict[str, list[_Scan]], list[str]]:
    """Images by subject, the first session first, and a sentence on segmentations that are not used."""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", suffix):
        raise InputError(f"--bids-suffix is {suffix!r}; give the end of the images' names, such as T1w or run-1_T1w.")
    images = _by_session(
        path for where in ("sub-*/anat", "sub-*/ses-*/anat") for path in folder.glob(f"{where}/*_{suffix}.nii*")
    )
    if not images:
        raise InputError(
            f"{folder} holds no sub-*/[ses-*/]anat/sub-*_{suffix}.nii.gz; give the root of a BIDS data set, and with "
            "--bids-suffix what its images end with."
        )
    several = [_joined(*key) for key, paths in images.items() if len(paths) > 1]
    if several:
        raise InputError(
            f"{folder} holds several *_{suffix} images of one session: {_few(several)}; choose with --bids-suffix, "
            f"such as run-1_{suffix}, or name the pairs in a manifest."
        )
    segmentations = _by_session(
        path
        for path in (folder / "derivatives").rglob("sub-*_dseg.nii*")
        if not re.search(r"_space-(?!orig_)", path.name)
    )
    subjects, unclear = defaultdict(list), []
    for (subject, session), (image,) in sorted(images.items(), key=lambda item: _natural(_joined(*item[0]))):
        found = segmentations.get((subject, session), [])
        subjects[subject].append(_Scan(subject, session, image, found[0] if len(found) == 1 else None))
        if len(found) > 1:
            unclear.append(_joined(subject, session))
    for subject, scans in subjects.items():
        times = _acquisition_times(folder / subject / f"{subject}_sessions.tsv")
        if all(scan.session in times for scan in scans):
            scans.sort(key=lambda scan: times[scan.session])
    notes = [f"Segmentations not used, for there are several in derivatives: {_few(unclear)}."] if unclear else []
    return subjects, notes


def _by_session(paths: Iterable[Path]) -> dict[tuple[str, str | None], list[str]]:
    """NIfTI files by the subject and the session in their names."""
    found = defaultdict(list)
    for path in paths:
        match = re.fullmatch(r"(sub-[^_]+)_(?:(ses-[^_]+)_)?.+\.nii(\.gz)?", path.name)
        if match:
            found[match[1], match[2]].append(os.path.abspath(path))
    return found


def _joined(subject: str, session: str | None) -> str:
    return f"{subject}_{session}" if session else subject


def _natural(name: str) -> list:
    """A key by which ses-2 comes before ses-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name)]


def _acquisition_times(path: Path) -> dict[str, str]:
    """acq_time (ISO 8601) by session_id of a sessions.tsv; what is not there is left out."""
    if not path.is_file():
        return {}
    rows = csv.DictReader(io.StringIO(_read_text(path)), delimiter="\t", quoting=csv.QUOTE_NONE)
    times = {row.get("session_id"): row.get("acq_time") for row in rows}
    return {session: time for session, time in times.items() if time and time != "n/a"}
