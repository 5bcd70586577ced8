"""The other Python and the working folder: they belong to this computer and are kept in Slicer's settings."""

from __future__ import annotations

from typing import Any

import ctk
import slicer

#: Keys in Slicer's user settings.
PYTHON_KEY, FOLDER_KEY = "IconRegistration/python", "IconRegistration/workingFolder"


class MachineSettings:
    """Shows and keeps them."""

    def __init__(self, ui: Any):
        self._ui, settings = ui, slicer.app.userSettings()
        ui.workingFolderLineEdit.filters = ctk.ctkPathLineEdit.Dirs
        ui.pythonLineEdit.text = settings.value(PYTHON_KEY) or ""
        ui.workingFolderLineEdit.currentPath = settings.value(FOLDER_KEY) or ""
        ui.pythonLineEdit.connect("editingFinished()", self.keep)
        ui.workingFolderLineEdit.connect("currentPathChanged(QString)", self.keep)

    def python(self) -> str:
        """Return the other Python as the user wrote it, "" for Slicer's own."""
        return self._ui.pythonLineEdit.text.strip()

    def working_folder(self) -> str:
        """Return the folder in which volumes are exchanged, "" for the temporary folder."""
        return self._ui.workingFolderLineEdit.currentPath

    def keep(self) -> None:
        """Remember both."""
        settings = slicer.app.userSettings()
        settings.setValue(PYTHON_KEY, self.python())
        settings.setValue(FOLDER_KEY, self.working_folder())
