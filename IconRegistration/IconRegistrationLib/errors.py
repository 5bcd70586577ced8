"""Exceptions that end a run early, and the sentence that a user reads of each."""

from __future__ import annotations

from .text import Sentence, one_line, tr


class InputError(ValueError):
    """What was given cannot be registered. One sentence that names the value and the remedy."""


class DeviceMemoryError(RuntimeError):
    """The device ran out of memory. One sentence that says how much and what to choose instead."""


class FolderError(Exception):
    """The folder of results takes no more: disk full, folder removed, read-only. One sentence."""


class Cancelled(Exception):
    """Raised by a progress callback to stop a run; nothing has been written when it arrives."""


def explain(error: BaseException) -> tuple[str, str]:
    """Return the kind of an exception and the sentence that a user reads of it.

    Parameters
    ----------
    error : BaseException
        Whatever ended a run.

    Returns
    -------
    kind : str
        "input", "memory", "folder", "cancelled", "dependency" (a package is missing), or "unexpected": a bug, of which
        the traceback is worth showing.
    sentence : str
        A `text.Sentence` where its origin made one; it may have several lines where the error's own words have.

    Examples
    --------
    >>> explain(InputError("The image is empty; choose another."))
    ('input', 'The image is empty; choose another.')
    >>> explain(KeyError("lattice"))
    ('unexpected', "Unexpected KeyError: 'lattice'.")
    """
    if isinstance(error, (InputError, DeviceMemoryError, FolderError)):
        kinds = {"input": InputError, "memory": DeviceMemoryError}
        kind = next((kind for kind, raised in kinds.items() if isinstance(error, raised)), "folder")
        return kind, words_of(error)
    if isinstance(error, (Cancelled, KeyboardInterrupt)):
        return "cancelled", words_of(error) or tr("Cancelled; nothing was changed.")
    if isinstance(error, MemoryError):
        return "memory", tr(
            "This machine ran out of memory; crop or resample the images, run fewer at a time, or use a larger one."
        )
    if isinstance(error, ModuleNotFoundError):
        return "dependency", tr(
            "The package {package} is not installed; press Apply in Slicer's module once, or run "
            "pip install slicer-icon-registration.",
            package=error.name or "?",
        )
    words = one_line(words_of(error))
    reason = words if isinstance(words, Sentence) else words.rstrip(".") or tr("it says no more")
    return "unexpected", tr("Unexpected {kind}: {reason}.", kind=type(error).__name__, reason=reason)


def words_of(error: BaseException) -> str:
    """Return the message of an exception; a Sentence stays one, which `str` would not let it."""
    return error.args[0] if len(error.args) == 1 and isinstance(error.args[0], Sentence) else str(error)
