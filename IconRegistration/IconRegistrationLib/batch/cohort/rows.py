"""Describe the rows of a manifest as they are written, and read the text of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import InputError
from ...text import tr
from ..pair import ROLES

#: Kinds of files that belong to an image. With its side in front each is a role: fixed_mask.
COMPANIONS = ("segmentation", "landmarks", "mask")


class Row(NamedTuple):
    """A row of a manifest as it was read, with its mistakes.

    Attributes
    ----------
    position : str
        Where the reader finds it: "row 7"; the header is row 1.
    cells : mapping
        Values by column; empty ones are omitted.
    mistakes : sequence of str
        Sentences; a row that has some is not read further.
    """

    position: str
    cells: Mapping[str, Any]
    mistakes: Sequence[str] = ()


class RowError(Exception):
    """Mistakes in one row. Its arguments are the sentences."""


def roles_by_column(atlas: Mapping[str, str] | None) -> dict[str, str]:
    """Return the role of the file that each column names.

    Parameters
    ----------
    atlas : mapping, optional
        Files of the atlas by role. With one, the columns name the files of the other image.
    """
    if not atlas:
        return {role: role for role in ROLES}
    side = "moving" if "fixed" in atlas else "fixed"
    return {"image": side, **{kind: f"{side}_{kind}" for kind in COMPANIONS}, "initial": "initial", "region": "region"}


def required_columns(roles: Mapping[str, str]) -> list[str]:
    """Return the columns that every row must fill in."""
    return [column for column, role in roles.items() if role in ("fixed", "moving")]


def read_text_file(path: Path) -> str:
    """Return a text file as spreadsheets write it, with one character at the end of each line.

    Parameters
    ----------
    path : Path
        UTF-8, or UTF-16 with its byte order mark.

    Raises
    ------
    InputError
        If the file cannot be read, or is not text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            tr("{path} cannot be read ({reason}); check the path.", path=path, reason=error.strerror)
        ) from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(
            tr(
                "{path} is not UTF-8 text (see line {line}); save it again, in a spreadsheet as 'CSV UTF-8'.",
                path=path,
                line=data[: error.start].count(b"\n") + 1,
            )
        ) from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise InputError(
            tr("{path} is not text (a zero byte in line {line}); give a CSV or JSON file.", path=path, line=line)
        )
    return text


def abbreviate(names: Sequence[str]) -> str:
    """Return the first three names, and how many more there are."""
    first, more = ", ".join(names[:3]), len(names) - 3
    return tr("{first} and {more} more", first=first, more=more) if more > 0 else first
