"""The line below the Apply button: progress, notes, and how something ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import slicer

from ..errors import InputError, words_of
from ..text import tr
from ..workflow.pace import duration

#: Light enough for black letters, and seen beside Slicer's light and its dark theme.
LEVEL_COLORS = {"green": "#43b266", "amber": "#e0a800", "red": "#ec6a5e"}


def level_style(level: str | None) -> str:
    """Return the style sheet of a bar before a text; the letters keep the theme's colour, which can be read."""
    return f"border: none; border-left: 5px solid {LEVEL_COLORS[level]}; padding-left: 5px" if level else ""


class StatusLine:
    """Shows sentences and the progress bar.

    Attributes
    ----------
    notes : list of str
        What the present run changed in order to go on; repeated at its end.
    """

    def __init__(self, label: Any, bar: Any, is_busy: Callable[[], bool], refresh: Callable[[], None]):
        self._label, self._bar, self._is_busy, self._refresh = label, bar, is_busy, refresh
        self.notes: list[str] = []
        bar.setVisible(False)
        label.setVisible(False)

    def show(self, sentence: str, level: str | None = None) -> None:
        """Show a sentence; level: "green", "amber", "red" or None."""
        self._label.text = sentence
        self._label.setVisible(bool(sentence))
        self._label.styleSheet = level_style(level)

    def start(self) -> None:
        """Show that something has begun."""
        self._bar.value = 0
        self._bar.setVisible(True)
        self.show(tr("Starting..."))
        self._refresh()

    def progress(self, stage: str, fraction: float, seconds_left: float | None) -> None:
        """Show how far it is. fraction: of all that is done."""
        self._bar.value = round(100 * fraction)
        stage = f"{stage[:1].upper()}{stage[1:]}"
        if seconds_left is None:
            self.show(stage)
        else:
            self.show(tr("{stage}, {time} left", stage=stage, time=duration(seconds_left)))

    def note(self, sentence: str) -> None:
        """Show a note on a changed setting, and keep it until the end of the run."""
        self.notes.append(sentence)
        self.show(sentence, "amber")

    def done(self) -> None:
        """Show that all went well, with the notes."""
        self.end(" ".join([tr("Done."), *self.notes]), "amber" if self.notes else "green")

    def end(self, sentence: str, level: str, details: str = "") -> None:
        """Show how something ended. details: the tooltip."""
        self._bar.setVisible(self._is_busy())  # the end may be of something else
        self.show(sentence, level)
        self._label.toolTip = details
        self._refresh()

    @contextmanager
    def reporting(self) -> Iterator[None]:
        """Wrap one user action: show input errors in the status line, any other error as one of Slicer's."""
        with slicer.util.tryWithErrorDisplay(tr("ICON Registration failed unexpectedly."), waitCursor=False):
            try:
                yield
            except InputError as error:
                self.end(words_of(error), "red")
