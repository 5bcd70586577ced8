"""The rows of a manifest as they are written down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...errors import InputError
from ..pair import ROLES

#: What an image may have besides itself: the ends of the roles.
_KINDS = ("segmentation", "landmarks", "mask")


class _Row(NamedTuple):
    """A pair as it is written down, or what is wrong with how it is."""

    where: str  #: as the reader finds it: "row 7", the header is row 1
    cells: Mapping[str, object]  #: by column; what is left empty is not in it
    mistakes: Sequence[str] = ()


class _Mistakes(Exception):
    """What is wrong with one row: sentences without their full stop."""


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


def _few(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")
