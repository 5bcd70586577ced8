"""Check a folder of results, and write it atomically."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import InputError
from ..io.writing import atomic_folder, remove_stale_partials
from .outputs import FILES


def check_folder(path: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> Path:
    """The absolute path of a folder that can be written; InputError otherwise.

    An existing folder is replaced only if `overwrite`, and if it holds nothing but results of this command and none of
    the `inputs`.
    """
    path = Path(path).expanduser().resolve()
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; create it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"The folder {path.parent} cannot be written to; choose another --out.")
    if not path.exists():
        return path
    if not path.is_dir():
        raise InputError(f"{path} is a file, not a folder; choose another --out.")
    if not any(path.iterdir()):
        return path
    if not overwrite:
        raise InputError(f"The folder {path} is not empty; choose another --out, or replace it with --overwrite.")
    used = next((source for source in inputs if Path(source).expanduser().resolve().is_relative_to(path)), None)
    if used is not None:
        raise InputError(f"The input {used} lies in the folder {path} that would be replaced; choose another --out.")
    files = (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink())
    foreign = next((file for file in files if file.relative_to(path).as_posix() not in FILES), None)
    if foreign is not None:
        raise InputError(
            f"The folder {path} holds {foreign.relative_to(path)}, which this command did not write; choose another "
            "--out, or move that file away."
        )
    return path


@contextmanager
def output_folder(path: Path) -> Iterator[Path]:
    """Remove what a killed run left beside `path`, then yield a folder that takes its place (`atomic_folder`)."""
    remove_stale_partials(path.parent, path.name)
    with atomic_folder(path) as partial:
        yield partial
