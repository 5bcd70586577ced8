"""The list of presets, and what follows from the chosen one."""

from __future__ import annotations

import qt
import slicer

from ..errors import InputError
from ..text import tr
from ..workflow.presets import CUSTOM_WEIGHTS, Preset, builtin_presets, settings_differ
from . import choices, presets
from .panel import Panel


class PresetBar:
    """Offers presets, saves and deletes the user's, and says whether the chosen one was modified."""

    def __init__(self, panel: Panel):
        self._panel, ui = panel, panel.ui
        ui.weightsPathLineEdit.nameFilters = [tr("Weights (*.trch *.pt *.pth)"), tr("All files (*)")]
        ui.presetComboBox.connect("activated(int)", self.on_chosen)
        ui.savePresetButton.connect("clicked()", self.on_save)
        ui.deletePresetButton.connect("clicked()", self.on_delete)
        ui.weightsPathLineEdit.connect("currentPathChanged(QString)", self.on_weights_path)
        self._fill()

    def all_presets(self) -> list[Preset]:
        """Return the built-in presets and the user's."""
        return [*builtin_presets(), *presets.user_presets(slicer.app.userSettings())]

    def refresh(self) -> None:
        """Show the preset of the parameters, and whether they still are what it says."""
        p, ui = self._panel.parameters, self._panel.ui
        preset = self._preset()
        ui.presetComboBox.currentIndex = ui.presetComboBox.findData(p.preset)
        ui.presetComboBox.toolTip = preset.tooltip if preset else ""
        ui.deletePresetButton.enabled = preset is not None and preset not in builtin_presets()
        is_custom = p.preset == CUSTOM_WEIGHTS
        ui.weightsPathLineEdit.enabled = is_custom
        if is_custom and ui.weightsPathLineEdit.currentPath != p.model:  # of a loaded scene, or an earlier run
            ui.weightsPathLineEdit.currentPath = p.model
        modified = self._is_modified(preset)
        ui.methodSection.text = tr("Model and effort (preset modified)") if modified else tr("Model and effort")

    def on_chosen(self, index: int) -> None:
        """Show the settings of the preset that was chosen."""
        p = self._panel.parameters
        with self._panel.status.reporting(), slicer.util.NodeModify(p.parameterNode):
            p.preset = self._panel.ui.presetComboBox.itemData(index)
            choices.with_preset(p, self._preset(), self._panel.ui.weightsPathLineEdit.currentPath)

    def on_save(self) -> None:
        """Keep the present settings as a preset of a name that the user types."""
        p = self._panel.parameters
        with self._panel.status.reporting():
            name = qt.QInputDialog.getText(slicer.util.mainWindow(), tr("Save preset"), tr("Name of the preset:"))
            if name:
                presets.save_preset(slicer.app.userSettings(), name, choices.settings_of(p))
                self._fill()
                p.preset = name.strip()

    def on_delete(self) -> None:
        """Delete the chosen preset of the user."""
        with self._panel.status.reporting():
            presets.delete_preset(slicer.app.userSettings(), self._panel.parameters.preset)
            self._fill()
            self._panel.parameters.preset = "none"

    def on_weights_path(self, path: str) -> None:
        """Take a weights file as the model of the preset for such files."""
        p = self._panel.parameters
        if p and p.preset == CUSTOM_WEIGHTS:
            p.model = path

    def _fill(self) -> None:
        box = self._panel.ui.presetComboBox
        box.clear()
        for preset in self.all_presets():
            box.addItem(preset.title, preset.name)
            box.setItemData(box.count - 1, preset.tooltip, qt.Qt.ToolTipRole)

    def _preset(self) -> Preset | None:
        """Return the chosen preset; None if the scene names one that this user does not have."""
        return next((preset for preset in self.all_presets() if preset.name == self._panel.parameters.preset), None)

    def _is_modified(self, preset: Preset | None) -> bool:
        try:
            return preset is not None and settings_differ(preset, choices.settings_of(self._panel.parameters))
        except InputError:  # the preflight says it
            return False
