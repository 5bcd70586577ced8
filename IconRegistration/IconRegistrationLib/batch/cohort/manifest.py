"""Which pairs a cohort registers: a table, a JSON file or a BIDS folder; image to image, or all with one atlas."""

from __future__ import annotations

import csv
import difflib
import functools
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...registration.settings import Settings
from .entries import _SETTINGS, Entry, _changed, _entries
from .rows import _Mistakes, _needed, _read_text, _roles, _Row


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
