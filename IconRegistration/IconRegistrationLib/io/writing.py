"""Write a file completely or not at all, and hash what is there."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..errors import InputError
from ..spatial.geometry import Grid

#: Bytes that are read, or unpacked, at once.
BLOCK = 1 << 22


def writable(path, suffixes: tuple[str, ...], grid: Grid | None = None, name: str = "") -> Path:
    """A path that can be written: known type, existing folder, and a grid that files can hold."""
    path = Path(path).expanduser()
    if not path.name.lower().endswith(suffixes):
        raise InputError(f"{path} has a type that cannot be written; name it {' or '.join(suffixes)}.")
    if not path.parent.is_dir():
        raise InputError(f"The folder {path.parent} does not exist; create it first.")
    if grid is not None and not grid.is_orthogonal:
        raise InputError(f"{name}: the axes of its grid are not at right angles, which files cannot hold; resample it.")
    return path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name in the same folder to write to; it becomes `path` when all went well and vanishes when not."""
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sha256_of(paths: Iterable[Path]) -> str:
    """Of the contents of files, one after the other. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
