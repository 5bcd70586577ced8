"""Find the worker's Python, its environment and its private folder."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
from pathlib import Path

import slicer

from ..errors import InputError
from ..machine import process_is_alive
from ..text import tr

_FOLDER = "IconRegistration"

_ONE_DAY = 24 * 3600


def python_command(text: str) -> list[str]:
    """Return the command that a user named: an interpreter, with arguments or a wrapper; Slicer's own if empty.

    A path that exists is one word, spaces and all; of the folder of an environment it is the Python within. Other
    words are split as a shell does it. Raises InputError for a folder without Python and a quote that is not closed.
    """
    text = text.strip()
    if not text:
        return [shutil.which("PythonSlicer") or sys.executable]
    path = Path(text).expanduser()
    if path.is_file():
        return [str(path)]
    if path.is_dir():
        return [str(_python_in(path))]
    try:
        words = shlex.split(text, posix=os.name != "nt")
    except ValueError:
        raise InputError(tr("The Python {text!r} has a quote that is not closed; close it.", text=text)) from None
    words = [word.strip('"') for word in words] if os.name == "nt" else words  # where a backslash is no escape
    return [os.path.expanduser(words[0]), *words[1:]]


def _python_in(environment: Path) -> Path:
    """Return the interpreter of a conda or virtual environment."""
    for place in ("bin/python", "python.exe", "Scripts/python.exe"):
        if (environment / place).is_file():
            return environment / place
    raise InputError(
        tr(
            "The folder {folder} holds no Python; name the folder of an environment, or an interpreter.",
            folder=environment,
        )
    )


def worker_environment(own_python: bool) -> dict[str, str]:
    """Return the worker's variables: the library is found, and another Python than Slicer's gets none of Slicer's.

    own_python: whether the command runs Slicer's own Python, which needs what Slicer's launcher has set.
    """
    variables = dict(os.environ) if own_python else dict(slicer.util.startupEnvironment())
    library = str(Path(__file__).parents[2])
    paths = [library, *filter(None, [variables.get("PYTHONPATH")])]
    return {**variables, "PYTHONPATH": os.pathsep.join(paths)}


def private_folder(parent: str | Path) -> tempfile.TemporaryDirectory:
    """Make a folder in `parent` for this user only; `cleanup()` removes it, the end of this process at the latest.

    What processes that died left there is removed first. Raises InputError if nothing can be made in `parent`.
    """
    host = re.sub(r"[^\w.]", "_", platform.node())
    for folder in Path(parent).glob(f"{_FOLDER}-*-*-*"):
        if _is_leftover(folder, host):
            shutil.rmtree(folder, ignore_errors=True)
    prefix = f"{_FOLDER}-{host}-{os.getpid()}-"
    try:
        return tempfile.TemporaryDirectory(prefix=prefix, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(
            tr(
                "No folder can be made in {folder} ({reason}); choose another working folder.",
                folder=parent,
                reason=error.strerror,
            )
        ) from None


def _is_leftover(folder: Path, host: str) -> bool:
    """Return whether the process that made a folder is gone, or the folder is a day old and of another process."""
    match = re.fullmatch(rf"{_FOLDER}-(.*)-(\d+)-\w+", folder.name)
    if match is None or int(match[2]) == os.getpid():
        return False
    try:
        old = time.time() - folder.stat().st_mtime > _ONE_DAY
    except OSError:  # another process removes it right now
        return False
    return old or (match[1] == host and not process_is_alive(int(match[2])))
