"""What Slicer would show in a window of its own is written down here instead, and answered."""

from __future__ import annotations

import logging
from dataclasses import dataclass


@dataclass(frozen=True)
class Popup:
    """level: "info", "warning" or "error".  details: what the user unfolds."""

    level: str
    text: str
    details: str = ""


#: Everything shown since the last clear.
shown: list[Popup] = []

#: Answers to the next confirmations, in their order; when it is empty they are confirmed.
answers: list[bool] = []


def _confirmed() -> bool:
    return answers.pop(0) if answers else True


def install(util) -> None:
    """Replace the blocking functions of slicer.util; tryWithErrorDisplay then works as it is."""

    def display(level):
        def show(text, windowTitle=None, parent=None, standardButtons=None, detailedText="", **_options):
            shown.append(Popup(level, str(text), detailedText))
            logging.getLogger("popup").log(getattr(logging, level.upper()), text)

        return show

    def confirm(level):
        def ask(text, windowTitle=None, parent=None, detailedText="", **_options):
            shown.append(Popup(level, str(text), detailedText))
            return _confirmed()

        return ask

    util.infoDisplay, util.warningDisplay, util.errorDisplay = display("info"), display("warning"), display("error")
    util.confirmOkCancelDisplay = util.confirmYesNoDisplay = confirm("info")
    util.confirmRetryCloseDisplay = confirm("error")
    util.delayDisplay = lambda message, autoCloseMsec=1000, parent=None, **_options: display("info")(message)
    util.messageBox = _refuse


def _refuse(text, parent=None, **_options):
    raise AssertionError(f"slicer.util.messageBox would block: use a display or confirm function for {text!r}")
