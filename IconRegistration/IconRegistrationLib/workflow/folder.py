"""Write a folder of results completely or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import FolderError, InputError
from .outputs import FILES

#: Bytes that a disk which is not full still takes.
_ROOM = 1 << 26


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
    """`written_whole`, once what a killed run left beside `path` is cleared away."""
    clear_remains(path.parent, path.name)
    with written_whole(path) as partial:
        yield partial


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A private folder beside `path` to write into; it takes the place of `path` when the block ends well.

    After any exception `path` is what it was. Raises FolderError where the disk is the reason.
    """
    mark = f"{socket.gethostname()}-{os.getpid()}"
    partial, old = path.with_name(f".{path.name}.partial-{mark}"), path.with_name(f".{path.name}.old-{mark}")
    try:
        had_results = path.exists() and any(path.iterdir())
        partial.mkdir(mode=0o700)
    except OSError as error:
        raise FolderError(trouble(path.parent, error)) from None
    try:
        yield partial
        if not had_results and path.exists() and any(path.iterdir()):
            raise InputError(f"Another run filled {path} meanwhile; run again with another --out.")
        _to_disk(partial)
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
        if not _takes_more(partial):
            raise FolderError(trouble(path.parent, error)) from error
        raise
    finally:
        for folder in (partial, old):
            shutil.rmtree(folder, ignore_errors=True)


def _takes_more(folder: Path) -> bool:
    """Whether the disk has room for a large file. (A writer that failed has taken its own away again.)"""
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


def trouble(folder: Path, error: Exception) -> str:
    """Why nothing can be written to `folder`, and what to do."""
    if not folder.is_dir():
        return f"The folder {folder} is not there any more; put it back, or its disk, and run the same again."
    if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder} cannot be written to ({error.strerror}); choose another --out, or mend it."
    return f"There is no room left for {folder}; free some, and run the same again."


def clear_remains(folder: Path, name: str | None = None) -> None:
    """Remove what runs that are no more left in `folder` beside `name`; put back what they had moved aside.

    Without a name: beside every name, and also what other computers left; nobody else may be at work in `folder`.
    """
    pattern = re.compile(r"\.(.+)\.(partial|old)-(.+)-(\d+)")
    for remains in list(folder.iterdir()) if folder.is_dir() else ():
        match = pattern.fullmatch(remains.name)
        if match is None or name not in (None, match[1]):
            continue
        if name is not None and (match[3] != socket.gethostname() or _is_running(int(match[4]))):
            continue
        path = folder / match[1]
        if match[2] == "old" and not path.exists():  # killed between the two renames
            remains.rename(path)
        else:
            shutil.rmtree(remains, ignore_errors=True)


def _is_running(pid: int) -> bool:
    """Whether another process has this number; our own was given to us anew."""
    if os.name == "nt":  # os.kill(pid, 0) would send Ctrl-C there
        return pid != os.getpid()
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _to_disk(folder: Path) -> None:
    """Have the system write out every file, and where it can the folders, so that a power cut finds them whole."""
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
