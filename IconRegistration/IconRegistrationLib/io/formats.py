"""The seam of file formats: a plain list of `Format` per kind of data, to which one appends.

The lists are `images.IMAGE_FORMATS`, `segmentations.SEGMENTATION_FORMATS`, `landmarks.LANDMARK_FORMATS` and
`transforms.TRANSFORM_FORMATS`. Readers, writers, the help of the commands, the sentences of errors and the table in
docs/command.md follow them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Format:
    """One file format of one kind of data.

    Attributes
    ----------
    title : str
        One line for tables and help, as "NRRD".
    suffixes : tuple of str
        Endings of its files, lower case, with their dots.
    read : callable, optional
        ``read(path)`` returns the value or raises InputError; None where it is only written.
    write : callable, optional
        ``write(value, path)`` writes a file under a temporary name of the same ending; None where it is only read.
    header : callable, optional
        Of images: ``header(path)`` returns an `ImageHeader` without reading the voxels; without it they are read.
    """

    title: str
    suffixes: tuple[str, ...]
    read: Callable[[Path], Any] | None = None
    write: Callable[[Any, Path], None] | None = None
    header: Callable[[Path], Any] | None = None


def format_of(path: str | os.PathLike[str], formats: Iterable[Format], *, written: bool = False) -> Format | None:
    """Return the format of a file by its name; None for an unknown ending.

    Parameters
    ----------
    path : str or path-like
    formats : iterable of Format
        The longest ending wins, of equal ones the one that was appended last.
    written : bool
        Whether it is to be written, else read.
    """
    name = Path(path).name.lower()
    found = [
        (len(suffix), number, item)
        for number, item in enumerate(formats)
        if (item.write if written else item.read) is not None
        for suffix in item.suffixes
        if name.endswith(suffix)
    ]
    return max(found, key=lambda entry: entry[:2])[2] if found else None


def reader_of(path: str | os.PathLike[str], formats: Iterable[Format]) -> Callable[[Path], Any] | None:
    """Return what reads a file, by its name; None for an unknown ending."""
    chosen = format_of(path, formats)
    return None if chosen is None else chosen.read


def writer_of(path: str | os.PathLike[str], formats: Iterable[Format]) -> Callable[[Any, Path], None]:
    """Return what writes a file, by its name, whose ending is one of ``suffixes_of(formats, written=True)``."""
    chosen = format_of(path, formats, written=True)
    assert chosen is not None and chosen.write is not None  # noqa: PT018
    return chosen.write


def suffixes_of(formats: Iterable[Format], *, written: bool = False) -> tuple[str, ...]:
    """Return the endings of the files that can be read, or `written`, in the order of the list."""
    usable = (item for item in formats if (item.write if written else item.read) is not None)
    return tuple(dict.fromkeys(suffix for item in usable for suffix in item.suffixes))


def listed(suffixes: Iterable[str]) -> str:
    """Join endings for a sentence.

    Examples
    --------
    >>> listed((".h5", ".tfm", ".nrrd"))
    '.h5, .tfm or .nrrd'
    """
    *first, last = suffixes
    return f"{', '.join(first)} or {last}" if first else last


def stem_of(path: Path, formats: Iterable[Format]) -> str:
    """Return the name of a file without its ending, of which some have two parts; ".seg" before it goes, too."""
    endings = [suffix for item in formats for suffix in item.suffixes if path.name.lower().endswith(suffix)]
    return path.name[: len(path.name) - max(map(len, endings), default=0)].removesuffix(".seg")
