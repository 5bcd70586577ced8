"""Read the pairs of a cohort from a table or a JSON file."""

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
from typing import Any

from ...registration.settings import Settings
from ...text import tr
from ...workflow.roles import SEGMENT_ROLES
from .entries import SETTING_TYPES, Entry, entries_from_rows, override_settings
from .rows import Row, RowError, read_text_file, required_columns, roles_by_column


def read_manifest(
    path: str | Path,
    defaults: Settings,
    segment_roles: Mapping[str, bool] | None = None,
    atlas: Mapping[str, str] | None = None,
) -> list[Entry]:
    """Return the pairs of a CSV or JSON file, in its order. docs/cohort.md describes the file for users.

    Parameters
    ----------
    path : str or Path
        A table (comma, semicolon or tab), or JSON: a list of objects, or ``{"pairs": [...], "settings": {...}}``.
        Columns, or names in the objects, are id, the roles of `PairFiles`, those of segments, and the fields of
        `Settings`. Paths in the file start at its folder.
    defaults : Settings
        A row overrides the file's settings, and these override `defaults`.
    segment_roles : mapping, optional
        Roles of the segments that are switched on or off in the pairs that do not say.
    atlas : mapping, optional
        Files of the atlas by role. With one, the columns image, segmentation, landmarks and mask name the files of the
        other side.

    Raises
    ------
    InputError
        Lists the mistakes, each with its row and remedy.
    """
    path = Path(os.path.expanduser(path))
    text = read_text_file(path)
    folder = os.path.abspath(path.parent)
    roles = roles_by_column(atlas)
    read = _json_rows if path.suffix.lower() == ".json" else _table_rows
    rows, settings = read(text, {"id", *roles, *SEGMENT_ROLES, *SETTING_TYPES}, required_columns(roles))
    try:
        defaults = override_settings(defaults, folder, json.dumps(settings))
    except RowError as found:
        rows = [Row(tr("the settings"), {}, found.args), *rows]
    return entries_from_rows(str(path), rows, folder, defaults, segment_roles, atlas)


def _table_rows(text: str, columns: set[str], required: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a table, whose first line gives the columns and the separator; it has no settings."""
    header: list[str | None] | None = None
    rows: list[Row] = []
    line = 1
    separator = max(",;\t", key=text.lstrip().partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for record in reader:
            first_line, line = line, reader.line_num + 1
            cells = [cell.strip() for cell in record]
            if not any(cells):
                continue
            if header is None:
                header, mistakes = _known(cells, columns)
                missing = [name for name in required if name not in header]
                mistakes += [tr("the column {name!r} is missing; add it.", name=name) for name in missing]
                if mistakes:
                    return [Row(tr("row {line}, the header", line=first_line), {}, mistakes)], {}
            elif len(cells) < len(header) or any(cells[len(header) :]):
                mistake = tr(
                    "it has {count} cells, but the header has {expected}; quote a cell that contains {separator!r}.",
                    count=len(cells),
                    expected=len(header),
                    separator=separator,
                )
                rows.append(Row(tr("row {line}", line=first_line), {}, [mistake]))
            else:
                rows.append(Row(tr("row {line}", line=first_line), _filled(header, cells)))
    except csv.Error as error:
        mistake = tr("its quotes do not match ({reason}); close them, and double a quote within quotes.", reason=error)
        rows.append(Row(tr("row {line}", line=line), {}, [mistake]))
    return rows, {}


def _json_rows(text: str, columns: set[str], required: Sequence[str]) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows and settings of a JSON file."""
    expected = tr('write a list of objects, or {{"pairs": [...], "settings": {{...}}}}')

    def refused(mistake: str) -> tuple[list[Row], dict[str, Any]]:
        return [Row(tr("the file"), {}, [mistake])], {}

    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return refused(tr("it is not JSON ({reason}); {expected}.", reason=error, expected=expected))
    if isinstance(content, list):
        content = {"pairs": content}
    if not isinstance(content, dict) or not {"pairs"} <= content.keys() <= {"pairs", "settings"}:
        return refused(tr("it does not hold pairs; {expected}.", expected=expected))
    pairs, settings = content["pairs"], content.get("settings", {})
    if not isinstance(pairs, list) or not isinstance(settings, dict):
        return refused(tr("its pairs are not a list, or its settings not an object; {expected}.", expected=expected))
    known = functools.cache(lambda names: _known(names, columns))  # most objects have the same names
    rows = []
    for number, pair in enumerate(pairs, start=1):
        position = tr("pair {number}", number=number)
        if not isinstance(pair, dict):
            mistake = tr("it is not an object; write one with the keys {names}.", names=", ".join(required))
            rows.append(Row(position, {}, [mistake]))
            continue
        header, mistakes = known(tuple(pair))
        cells = [value.strip() if isinstance(value, str) else value for value in pair.values()]
        mistakes = mistakes or [
            tr("{value!r} contains something that is not a character; correct it.", value=cell)
            for cell in cells
            if not _is_text(cell)
        ]
        rows.append(Row(position, {} if mistakes else _filled(header, cells), mistakes))
    return rows, settings


def _is_text(cell: Any) -> bool:
    """Return False for a string that cannot name a file: JSON can write halves of a character, and zeros."""
    try:
        return not isinstance(cell, str) or b"\0" not in cell.encode()
    except UnicodeEncodeError:
        return False


def _known(names: Sequence[str], columns: set[str]) -> tuple[list[str | None], list[str]]:
    """Return names as the columns are called, None for ignored ones (unnamed, or marked with #); and the mistakes."""
    found: list[str | None] = []
    mistakes: list[str] = []
    for written in names:
        name = re.sub(r"[\s-]+", "_", written.strip()).lower()
        if not name or name.startswith("#"):
            found.append(None)
            continue
        if name not in columns:
            mistakes.append(_unknown_column(written, name, sorted(columns)))
        elif name in found:
            mistakes.append(tr("the column {name!r} appears twice; remove one.", name=name))
        found.append(name)
    return found, mistakes


def _unknown_column(written: str, name: str, columns: Sequence[str]) -> str:
    """Return the sentence about a column that nobody reads."""
    near = difflib.get_close_matches(name, columns, n=1)
    if near:
        hint = tr("did you mean {column!r}?", column=near[0])
    else:
        hint = tr("choose from {columns}.", columns=", ".join(columns))
    return tr(
        "no column is called {written!r}; {hint} To ignore it, start its name with #.", written=written, hint=hint
    )


def _filled(header: Sequence[str | None], cells: Sequence[Any]) -> dict[str, Any]:
    """Return the cells that have a name and a value."""
    return {name: cell for name, cell in zip(header, cells, strict=False) if name and cell is not None and cell != ""}
