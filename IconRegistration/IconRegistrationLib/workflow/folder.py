"""Check a folder of results, and write it atomically."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..io.writing import atomic_folder, remove_stale_partials
from ..text import tr
from .outputs import FILES


def check_folder(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> Path:
    """Return the absolute path of a folder that can be written.

    Parameters
    ----------
    path : Path
        The folder; its parent exists.
    overwrite : bool
        Whether an existing folder is replaced, if it holds nothing but results of this command.
    inputs : iterable of Path
        Files that are read; none may lie in a folder that is replaced.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the folder cannot be written or replaced.
    """
    path = Path(path).expanduser().resolve()
    if not path.parent.is_dir():
        raise InputError(tr("The folder {path} does not exist; create it first.", path=path.parent))
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(tr("The folder {path} cannot be written to; choose another --out.", path=path.parent))
    if not path.exists():
        return path
    if not path.is_dir():
        raise InputError(tr("{path} is a file, not a folder; choose another --out.", path=path))
    if not any(path.iterdir()):
        return path
    if not overwrite:
        raise InputError(
            tr("The folder {path} is not empty; choose another --out, or replace it with --overwrite.", path=path)
        )
    used = next((source for source in inputs if Path(source).expanduser().resolve().is_relative_to(path)), None)
    if used is not None:
        raise InputError(
            tr(
                "The input {used} lies in the folder {path} that would be replaced; choose another --out.",
                used=used,
                path=path,
            )
        )
    files = (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
    foreign = next((file for file in files if file.relative_to(path).as_posix() not in FILES), None)
    if foreign is not None:
        raise InputError(
            tr(
                "The folder {path} holds {file}, which this command did not write; choose another --out, or move that "
                "file away.",
                path=path,
                file=foreign.relative_to(path),
            )
        )
    return path


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Remove what a killed run left beside `path`, then yield a folder that takes its place (`atomic_folder`)."""
    remove_stale_partials(path.parent, path.name)
    with atomic_folder(path) as partial:
        yield partial
