"""Interpret the paths that a user gives: files, folders, and one series of a DICOM folder."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from ..text import tr

#: Between a DICOM folder and the UID of one of its series.
SERIES_SEPARATOR = "::"


def existing_path(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Return the path of an existing file or folder, and the UID of a series where one is named.

    Parameters
    ----------
    path : str or path-like
        A file, a folder, or "folder::UID"; a leading "~" is the user's home.

    Returns
    -------
    path : Path
    series : str or None

    Raises
    ------
    InputError
        If nothing of that name exists.
    """
    text, _, series = str(path).partition(SERIES_SEPARATOR)
    found = Path(text).expanduser()
    if not found.exists():
        raise InputError(tr("{path} does not exist; check the path.", path=found))
    return found, series or None
