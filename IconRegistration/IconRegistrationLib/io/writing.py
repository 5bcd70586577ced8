"""Write a file or a folder atomically, completely or not at all, and hash what exists."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from ..errors import FolderError, InputError
from ..machine import process_is_alive
from ..spatial.geometry import Grid
from ..text import Sentence, tr
from .formats import listed

#: Bytes that are read, or unpacked, at once.
BLOCK = 1 << 22

#: Bytes that a disk which is not full still takes.
_ROOM = 1 << 26


def writable(path: str | os.PathLike[str], suffixes: Sequence[str], grid: Grid | None = None, name: str = "") -> Path:
    """Return the path of a file that can be written.

    Parameters
    ----------
    path : str or path-like
        A leading "~" is the user's home.
    suffixes : sequence of str
        The endings that are known.
    grid : Grid, optional
        The grid that the file must hold.
    name : str
        What lies on the grid, for the message.

    Raises
    ------
    InputError
        If the ending is unknown, the folder does not exist, or files cannot hold the grid.
    """
    path = Path(path).expanduser()
    if not path.name.lower().endswith(tuple(suffixes)):
        raise InputError(
            tr("{path} has a type that cannot be written; name it {suffixes}.", path=path, suffixes=listed(suffixes))
        )
    if not path.parent.is_dir():
        raise InputError(tr("The folder {folder} does not exist; create it first.", folder=path.parent))
    if grid is not None and not grid.is_orthogonal:
        raise InputError(
            tr("{name}: the axes of its grid are not at right angles, which files cannot hold; resample it.", name=name)
        )
    return path


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, of the same ending, for a file that is written whole or not at all.

    It becomes `path` when the block ends well and is removed after any exception.
    """
    partial = path.with_name(f".{os.getpid()}.partial.{path.name}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_text_file(path: Path, newline: str = "\n") -> Iterator[TextIO]:
    """Yield a text file (UTF-8) that becomes `path` once it is on the disk, and is removed after any exception.

    Names of files may hold bytes that are no UTF-8: lone surrogates, written as JSON and Python escape them.
    """
    with (
        atomic_file(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace", newline=newline) as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a private folder beside `path` that takes its place when the block ends well.

    After any exception `path` is what it was.

    Raises
    ------
    FolderError
        Where the disk is the reason.
    InputError
        If another process filled `path` meanwhile.
    """
    mark = f"{socket.gethostname()}-{os.getpid()}"
    partial, old = path.with_name(f".{path.name}.partial-{mark}"), path.with_name(f".{path.name}.old-{mark}")
    try:
        had_results = path.exists() and any(path.iterdir())
        partial.mkdir(mode=0o700)
    except OSError as error:
        raise FolderError(write_error_message(path.parent, error)) from None
    try:
        yield partial
        if not had_results and path.exists() and any(path.iterdir()):
            raise InputError(tr("Another run filled {folder} meanwhile; run again with another --out.", folder=path))
        _flush_to_disk(partial)
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o777 & ~mask)
        try:
            if path.exists():
                path.rename(old)
            partial.rename(path)
            _sync_folder(path.parent)
        except BaseException:
            if old.exists() and not path.exists():
                old.rename(path)
            raise
    except (OSError, RuntimeError) as error:  # the latter from ITK, which does not say why it could not write
        if not _has_room(partial):
            raise FolderError(write_error_message(path.parent, error)) from error
        raise
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _has_room(folder: Path) -> bool:
    """Return whether the disk has room for a large file; a writer that failed has removed its own."""
    probe = folder / ".room"
    try:
        with open(probe, "wb") as file:
            for _ in range(_ROOM >> 20):
                file.write(os.urandom(1 << 20))  # zeros may take no room
            os.fsync(file.fileno())
        probe.unlink()
    except OSError:
        return False
    return True


def write_error_message(folder: Path, error: Exception) -> Sentence:
    """Return why nothing can be written to `folder`, and what to do."""
    if not folder.is_dir():
        return tr(
            "The folder {folder} is not there any more; put it back, or its disk, and run the same again.",
            folder=folder,
        )
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return tr(
            "{folder} cannot be written to ({reason}); choose another --out, or repair it.",
            folder=folder,
            reason=error.strerror,
        )
    return tr("There is no room left for {folder}; free some, and run the same again.", folder=folder)


def remove_stale_partials(folder: Path, name: str | None = None) -> None:
    """Remove what ended processes left in `folder` beside `name`, and restore what they had moved aside.

    Parameters
    ----------
    folder : Path
    name : str, optional
        The name of a file or folder within. Without one the leftovers of every name are removed, also those of other
        computers; nobody else may then work in `folder`.
    """
    pattern = re.compile(r"\.(.+)\.(partial|old)-(.+)-(\d+)")
    for leftover in list(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(leftover.name)
        if match is None or name not in (None, match[1]):
            continue
        if name is not None and (match[3] != socket.gethostname() or _is_another_process(int(match[4]))):
            continue
        path = folder / match[1]
        if match[2] == "old" and not path.exists():  # killed between the two renames
            leftover.rename(path)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _is_another_process(pid: int) -> bool:
    """Return whether another process has this number; our own number may have been reused."""
    return pid != os.getpid() and process_is_alive(pid)


def _flush_to_disk(folder: Path) -> None:
    """Have the system write out every file, and where it can the folders, so that a power cut finds them complete."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    for path in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        _sync_folder(path)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sha256_of(paths: Iterable[Path]) -> str:
    """Return the SHA-256 of the contents of files, one after the other. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
