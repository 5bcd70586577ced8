"""The Slicer module. It only wires: what it wires lives in IconRegistrationLib.

torch and itk are imported nowhere here: the worker process has them (IconRegistrationLib/worker),
and the console's `IconRegistrationLogic.register` imports them when it is called.
"""

import logging
import sys
from contextlib import contextmanager
from functools import partial
from typing import Annotated

import ctk
import qt
import slicer
import vtk
from slicer.i18n import tr as _
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.mrml.registration import (
    REPORT_ATTRIBUTE,
    RegistrationRequest,
    ResultNodes,
    outputs_of,
    request_of,
)
from IconRegistrationLib.ui import choices, dependencies, presets
from IconRegistrationLib.ui.checking import EVENTS, Checker, apply_state
from IconRegistrationLib.ui.controls import fill_ticks, segment_names, ticks
from IconRegistrationLib.ui.reviewing import Review, trust_card, view_of
from IconRegistrationLib.ui.session import Session
from IconRegistrationLib.workflow.pace import duration
from IconRegistrationLib.workflow.preflight import Preflight, updated_speed

#: Keys of what belongs to the computer and not to the scene, in Slicer's user settings.
PYTHON_KEY, FOLDER_KEY, SPEED_KEY = (f"IconRegistration/{name}" for name in ("python", "workingFolder", "speed"))
#: Where a result remembers the table node of its trust card.
TABLE_REFERENCE = "IconRegistration.table"
#: Light enough for black letters, and seen beside Slicer's light and its dark theme.
LEVEL_COLORS = {"green": "#43b266", "amber": "#e0a800", "red": "#ec6a5e"}


class IconRegistration(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("ICON Registration")
        parent.categories = ["Registration"]
        parent.dependencies = []
        parent.contributors = ["IconRegistration developers"]
        parent.helpText = _(
            "Deformable registration of two volumes, with ICON networks or without any, on a GPU or the CPU. "
            "Segmentations, models and landmarks follow the transform live. Choose a fixed and a moving volume and "
            "press Apply; Review shows how far the result can be trusted. From the Python console: "
            "<tt>IconRegistration.IconRegistrationLogic().register(fixed, moving)</tt>."
        )
        parent.acknowledgementText = _(
            "If you use a network, cite Tian et al., GradICON (CVPR 2023) and uniGradICON (MICCAI 2024), or Demir et "
            "al., multiGradICON (WBIR 2024). For research; not a medical device."
        )
        slicer.app.connect("startupCompleted()", onStartupCompleted)


def onStartupCompleted():
    """What the module does for scenes and samples without being opened."""
    from IconRegistrationLib.ui.samples import register_samples

    register_samples()
    slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, onSceneImported)


def onSceneImported(scene, event):
    from IconRegistrationLib.mrml.transforms import set_linear_interpolation

    set_linear_interpolation(scene)  # Slicer reads our transforms as cubic ones


def _levelStyle(level):
    """A bar before a text; the letters keep the theme's colour, which can be read."""
    return f"border: none; border-left: 5px solid {LEVEL_COLORS[level]}; padding-left: 5px" if level else ""


def purgeLibrary():
    """Forget the library, so that a reload of the module reads its files again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "IconRegistrationLib"]:
        del sys.modules[name]


@parameterNodeWrapper
class IconRegistrationParameterNode:
    """Everything that the panel shows; saved with the scene."""

    fixedVolume: slicer.vtkMRMLScalarVolumeNode
    movingVolume: slicer.vtkMRMLScalarVolumeNode
    fixedSegmentation: slicer.vtkMRMLSegmentationNode
    movingSegmentation: slicer.vtkMRMLSegmentationNode
    fixedSegments: str  # choices.chosen_segments
    movingSegments: str
    carry: bool = True
    compare: bool = True
    focus: bool = False
    guide: bool = False
    fixedLandmarks: slicer.vtkMRMLMarkupsFiducialNode
    movingLandmarks: slicer.vtkMRMLMarkupsFiducialNode
    alignment: choices.Alignment = choices.Alignment.AUTO
    initialTransform: slicer.vtkMRMLTransformNode

    preset: str = "none"
    model: str = "none"
    refinement: choices.Refinement = choices.Refinement.AUTO
    steps: Annotated[int, WithinRange(0, 2000)] = 0
    similarity: choices.SimilarityMeasure = choices.SimilarityMeasure.AUTO
    device: choices.Device = choices.Device.AUTO
    precision: choices.Precision = choices.Precision.AUTO
    region: slicer.vtkMRMLMarkupsROINode
    spacing: Annotated[float, WithinRange(0, 50)] = 0.0
    padding: Annotated[float, WithinRange(0, 999)] = 0.0
    otherSettings: str  # choices.settings_of

    update: bool = True
    movingResolution: bool = False
    jacobian: bool = True
    distrust: bool = True

    result: slicer.vtkMRMLGridTransformNode
    shown: choices.Shown = choices.Shown.RESAMPLED
    swap: bool = False
    warpAmount: Annotated[float, WithinRange(0, choices.FULL_WARP)] = choices.FULL_WARP
    comparison: choices.Comparison = choices.Comparison.BLEND
    blend: Annotated[float, WithinRange(0, 100)] = 50.0
    cells: Annotated[float, WithinRange(2, 32)] = 8.0
    curtainDirection: choices.CurtainDirection = choices.CurtainDirection.RIGHT_LEFT
    curtain: Annotated[float, WithinRange(0, 100)] = 50.0
    linkedCursor: bool = False
    deformation: choices.Deformation = choices.Deformation.NONE
    deformationSpacing: Annotated[float, WithinRange(0, 100)] = 0.0
    lineWidth: Annotated[int, WithinRange(0, 10)] = 0
    deformationIn3D: bool = False
    overlay: choices.Overlay = choices.Overlay.NONE
    outlines: bool = False
    labels: str  # choices.chosen_segments


class IconRegistrationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Connects controls, parameter node, session and review; what they mean is decided in IconRegistrationLib."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic = None
        self._parameterNode = None
        self._guiTag = None
        self._session = None
        self._review = None
        self._devices = None  # what the worker said that it has
        self._notes = []
        self._watched = []  # nodes whose changes change the preflight
        self._predicted = None  # seconds of the run, by the preflight
        self._checker = Checker()
        self._checked = None  # what the preflight was asked, and what it said
        self._trusted = None  # the report that the trust card shows
        self._unusable = None  # the result of which was said, once, why it cannot be shown
        self._refreshing = False

    # ----------------------------------------------------------------------------------------------- Slicer calls these

    def setup(self):
        super().setup()
        page = slicer.util.loadUI(self.resourcePath("UI/IconRegistration.ui"))
        self.layout.addWidget(page)
        self.ui = slicer.util.childWidgetVariables(page)
        page.setMRMLScene(slicer.mrmlScene)
        self.logic = IconRegistrationLogic()
        self._review = Review(slicer.mrmlScene)
        self._session = Session(
            slicer.mrmlScene,
            self,
            python=lambda: self.ui.pythonLineEdit.text.strip(),
            working_folder=lambda: self.ui.workingFolderLineEdit.currentPath,
        )
        self._arrangeControls()
        self._connectControls()
        scene = slicer.vtkMRMLScene
        for event, method in (
            (scene.StartCloseEvent, self.onSceneStartClose),
            (scene.EndCloseEvent, self.onSceneEndClose),
            (scene.EndImportEvent, self.onSceneEndImport),
            (scene.NodeRemovedEvent, self.onNodeRemoved),
        ):
            self.addObserver(slicer.mrmlScene, event, method)
        # before the selectors hear of it
        self.addObserver(slicer.mrmlScene, scene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved, priority=1.0)
        self.initializeParameterNode()

    def cleanup(self):
        self._closeReview()
        self._session.close()
        self._disconnectParameterNode()
        self.removeObservers()

    def enter(self):
        self.initializeParameterNode()

    def exit(self):
        self._disconnectParameterNode()  # what is looked at stays, for instance to set landmarks on it

    def onReload(self):
        purgeLibrary()
        super().onReload()

    # ------------------------------------------------------------------------------------------------------ the scene

    def onSceneStartClose(self, caller, event):
        self._closeReview()
        self._disconnectParameterNode()
        if self._session.busy:
            self._session.close()
            self._showEnd(_("The scene was closed; the registration was stopped."), "amber")

    def onSceneEndClose(self, caller, event):
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event):
        self._disconnectParameterNode()  # it was read before the nodes that it names
        if self.parent.isEntered:
            self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node):
        """Choose a node no more that is deleted; its selector would go on to a neighbour, as Qt's combo boxes do."""
        p = self._parameterNode
        for name in IconRegistrationParameterNode.__annotations__ if p is not None else ():
            if getattr(p, name) is node:
                setattr(p, name, None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller, event, node):
        if self._parameterNode is not None and node is self._parameterNode.parameterNode:
            self._disconnectParameterNode()
            if not caller.IsClosing():
                self.initializeParameterNode()
        if self._review.shows(node):
            self._closeReview()
            self.refresh()

    # ------------------------------------------------------------------------------------------------- parameter node

    def initializeParameterNode(self):
        """Bind the controls to the scene's parameter node."""
        if self._parameterNode is not None:
            return
        self._parameterNode = IconRegistrationParameterNode(self.logic.getParameterNode())
        named = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
        named.pop(None, None)
        # connectGui would find the same widgets, but does not return the tag that disconnectGui needs (Slicer #7547)
        self._guiTag = self._parameterNode.connectParametersToGui(named)
        self.addObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
        self.refresh()

    def _disconnectParameterNode(self):
        if self._parameterNode is None:
            return
        self._parameterNode.disconnectGui(self._guiTag)
        self.removeObserver(self._parameterNode.parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
        self._watch([])
        self._checker.forget()
        self._checked = self._unusable = None
        self._parameterNode = None

    # ------------------------------------------------------------------------------------------------------- controls

    def _arrangeControls(self):
        """What a .ui file cannot say."""
        ui, settings = self.ui, slicer.app.userSettings()
        for segments in self._segmentLists().values():
            segments.setMaximumHeight(110)
        ui.resultSelector.addAttribute("vtkMRMLGridTransformNode", REPORT_ATTRIBUTE)
        ui.weightsPathLineEdit.nameFilters = ["Weights (*.trch *.pt *.pth)", "All files (*)"]
        ui.workingFolderLineEdit.filters = ctk.ctkPathLineEdit.Dirs
        ui.pythonLineEdit.text = settings.value(PYTHON_KEY) or ""
        ui.workingFolderLineEdit.currentPath = settings.value(FOLDER_KEY) or ""
        ui.progressBar.setVisible(False)
        ui.statusLabel.setVisible(False)
        ui.trustTable.setColumnCount(4)
        ui.trustTable.setHorizontalHeaderLabels([_("Measure"), _("Before"), _("After"), _("Verdict")])
        ui.trustTable.setMinimumHeight(240)
        rows = ui.trustTable.verticalHeader()
        rows.setVisible(False)
        rows.defaultSectionSize = rows.minimumSectionSize
        ui.trustTable.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch)
        self._fillPresets()

    def _connectControls(self):
        ui = self.ui
        ui.applyButton.connect("clicked()", self.onApply)
        ui.runAgainButton.connect("clicked()", self.onRunAgain)
        ui.releaseButton.connect("clicked()", self._session.release)
        ui.presetComboBox.connect("activated(int)", self.onPreset)
        ui.savePresetButton.connect("clicked()", self.onSavePreset)
        ui.deletePresetButton.connect("clicked()", self.onDeletePreset)
        ui.weightsPathLineEdit.connect("currentPathChanged(QString)", self.onWeightsPath)
        ui.pythonLineEdit.connect("editingFinished()", self.onMachineSettings)
        ui.workingFolderLineEdit.connect("currentPathChanged(QString)", self.onMachineSettings)
        for which, widget in self._segmentLists().items():
            widget.connect("itemChanged(QListWidgetItem*)", partial(self.onSegmentsTicked, which))
        for which, selector in (
            ("fixedSegments", ui.fixedSegmentationSelector),
            ("movingSegments", ui.movingSegmentationSelector),
        ):
            selector.connect("nodeActivated(vtkMRMLNode*)", partial(self.onSegmentationChosen, which))
        ui.exportCsvButton.connect("clicked()", self.onExportCsv)
        ui.exportTableButton.connect("clicked()", self.onExportTable)
        ui.hardenButton.connect("clicked()", self.onHarden)

    def _segmentLists(self):
        """Parameter that remembers ticked segments -> the list that shows them."""
        ui = self.ui
        return {
            "fixedSegments": ui.fixedSegmentsList,
            "movingSegments": ui.movingSegmentsList,
            "labels": ui.labelsList,
        }

    def onMachineSettings(self):
        """The other Python and the working folder belong to this computer: they are kept in Slicer's settings."""
        settings = slicer.app.userSettings()
        settings.setValue(PYTHON_KEY, self.ui.pythonLineEdit.text.strip())
        settings.setValue(FOLDER_KEY, self.ui.workingFolderLineEdit.currentPath)

    def onWeightsPath(self, path):
        if self._parameterNode and self._parameterNode.preset == presets.CUSTOM_WEIGHTS:
            self._parameterNode.model = path

    # -------------------------------------------------------------------------------------------------------- presets

    def _fillPresets(self):
        box = self.ui.presetComboBox
        box.clear()
        for preset in self._presets():
            box.addItem(preset.title, preset.name)
            box.setItemData(box.count - 1, preset.tooltip, qt.Qt.ToolTipRole)

    def _presets(self):
        return [*presets.builtin_presets(), *presets.user_presets(slicer.app.userSettings())]

    def _preset(self):
        """The chosen preset; None if the scene names one that this user does not have."""
        return next((preset for preset in self._presets() if preset.name == self._parameterNode.preset), None)

    def onPreset(self, index):
        with self._reporting(), slicer.util.NodeModify(self._parameterNode.parameterNode):
            self._parameterNode.preset = self.ui.presetComboBox.itemData(index)
            choices.with_preset(self._parameterNode, self._preset(), self.ui.weightsPathLineEdit.currentPath)

    def onSavePreset(self):
        with self._reporting():
            name = qt.QInputDialog.getText(slicer.util.mainWindow(), _("Save preset"), _("Name of the preset:"))
            if name:
                presets.save_preset(slicer.app.userSettings(), name, choices.settings_of(self._parameterNode))
                self._fillPresets()
                self._parameterNode.preset = name.strip()

    def onDeletePreset(self):
        with self._reporting():
            presets.delete_preset(slicer.app.userSettings(), self._parameterNode.preset)
            self._fillPresets()
            self._parameterNode.preset = "none"

    # ------------------------------------------------------------------------------------------------------- refresh

    def _showPreflight(self):
        """The line under the selectors and what the Apply button says."""
        p, ui, flight = self._parameterNode, self.ui, None
        if p is None:
            return
        if None not in (p.fixedVolume, p.movingVolume) and not self._session.busy:
            flight = self._preflight()
            text = [flight.summary, *flight.warnings] if flight.problem is None else [flight.summary, flight.problem]
            ui.preflightLabel.text = "\n".join(filter(None, text))
            level = "red" if flight.problem else "amber" if flight.warnings else None
            ui.preflightLabel.styleSheet = _levelStyle(level)
        elif not self._session.busy:
            ui.preflightLabel.text = ""
        button = ui.applyButton
        button.enabled, button.text, button.toolTip = apply_state(
            p.fixedVolume is not None, p.movingVolume is not None, flight, self._session.busy
        )
        self._watch([] if p.fixedVolume is None and p.movingVolume is None else self._chosenNodes())

    def _preflight(self):
        try:
            request = self._request()
        except InputError as error:
            return Preflight("", str(error), (), 0.0, None, None)
        question = (request, self._devices, self._speed())
        if self._checked is None or self._checked[0] != question:
            with self._review.aside():
                self._checked = question, self._checker.check(*question)
        return self._checked[1]

    def _speed(self):
        return float(slicer.app.userSettings().value(SPEED_KEY) or 1.0)

    def _chosenNodes(self):
        p = self._parameterNode
        nodes = (
            *(p.fixedVolume, p.movingVolume, p.fixedSegmentation, p.movingSegmentation),
            *(p.fixedLandmarks, p.movingLandmarks, p.initialTransform, p.region),
        )
        return list(dict.fromkeys(node for node in nodes if node is not None))

    def _watch(self, nodes):
        """Refresh when one of these nodes changes, and no others."""
        if nodes == self._watched:
            return
        for node in self._watched:
            for event in EVENTS:
                self.removeObserver(node, event, self.onInputChanged)
        for node in nodes:
            for event in EVENTS:
                self.addObserver(node, event, self.onInputChanged)
        self._watched = nodes

    def onInputChanged(self, caller=None, event=None):
        if not self._refreshing:  # else it is the review that brings data under its transform
            self._checked = None
            self.refresh()

    def refresh(self, caller=None, event=None):
        """Everything that follows from the parameters and is not bound to one control."""
        if self._refreshing or self._parameterNode is None:
            return
        self._refreshing = True
        try:
            self._showPreset()
            self._showPreflight()
            self._showResult()
            self._showSegments()
        finally:
            self._refreshing = False

    def _showSegments(self):
        p, ui = self._parameterNode, self.ui
        for parameter, node in (
            ("fixedSegments", p.fixedSegmentation),
            ("movingSegments", p.movingSegmentation),
            ("labels", self._review.labelled),
        ):
            names = segment_names(node)
            chosen = choices.chosen_segments(getattr(p, parameter))
            if chosen is None:
                chosen = [] if parameter == "labels" else list(names)
            fill_ticks(self._segmentLists()[parameter], names, chosen)
        hasSegments = p.fixedSegmentation is not None or p.movingSegmentation is not None
        for widget in (ui.segmentsLabel, ui.fixedSegmentsList, ui.movingSegmentsList, ui.rolesLabel, ui.rolesWidget):
            widget.setVisible(hasSegments)
        ui.carryCheckBox.enabled = p.movingSegmentation is not None
        for box in (ui.compareCheckBox, ui.guideCheckBox):
            box.enabled = None not in (p.fixedSegmentation, p.movingSegmentation)

    def onSegmentationChosen(self, parameter, node=None):
        setattr(self._parameterNode, parameter, "")  # all segments; the ticks were those of another segmentation

    def onSegmentsTicked(self, parameter, item=None):
        if self._refreshing:
            return
        there, ticked = ticks(self._segmentLists()[parameter])
        unsaid = [] if parameter == "labels" else there  # what an empty parameter means
        setattr(self._parameterNode, parameter, choices.remembered_segments(ticked, unsaid))

    def _showPreset(self):
        p, ui = self._parameterNode, self.ui
        preset = self._preset()
        ui.presetComboBox.currentIndex = ui.presetComboBox.findData(p.preset)
        ui.presetComboBox.toolTip = preset.tooltip if preset else ""
        ui.deletePresetButton.enabled = preset is not None and preset not in presets.builtin_presets()
        isCustom = p.preset == presets.CUSTOM_WEIGHTS
        ui.weightsPathLineEdit.enabled = isCustom
        if isCustom and ui.weightsPathLineEdit.currentPath != p.model:  # of a loaded scene, or an earlier run
            ui.weightsPathLineEdit.currentPath = p.model
        ui.methodSection.text = _("Model and effort") + (_(" (preset modified)") if self._isModified(preset) else "")

    def _isModified(self, preset):
        try:
            return preset is not None and presets.settings_differ(preset, choices.settings_of(self._parameterNode))
        except InputError:  # the preflight says it
            return False

    # ----------------------------------------------------------------------------------------------------------- run

    def _request(self):
        """What the panel asks for. Raises InputError for choices that exclude each other."""
        p = self._parameterNode
        return RegistrationRequest(
            p.fixedVolume,
            p.movingVolume,
            fixed_segmentation=p.fixedSegmentation,
            moving_segmentation=p.movingSegmentation,
            fixed_landmarks=p.fixedLandmarks,
            moving_landmarks=p.movingLandmarks,
            fixed_mask=p.fixedSegmentation if p.focus else None,
            moving_mask=p.movingSegmentation if p.focus else None,
            initial=p.initialTransform,
            region=p.region,
            fixed_segments=choices.chosen_segments(p.fixedSegments, segment_names(p.fixedSegmentation)),
            moving_segments=choices.chosen_segments(p.movingSegments, segment_names(p.movingSegmentation)),
            settings=choices.settings_of(p),
            guide=p.guide and None not in (p.fixedSegmentation, p.movingSegmentation),
            carry=p.carry,
            compare=p.compare,
            moving_resolution=p.movingResolution,
            jacobian=p.jacobian,
            distrust=p.distrust,
        )

    def onApply(self):
        if self._session.busy:
            self.ui.applyButton.enabled = False  # until the worker has answered, within a second
            self._session.cancel()
            return
        with self._reporting():
            self._apply()

    def _apply(self):
        self._notes = []
        request = self._request()
        outputs = self._outputsToUpdate(request)
        self._predicted = self._preflight().seconds
        if not self.ui.pythonLineEdit.text.strip():
            self._installPackages()
        download = dependencies.needed_download(request.settings.model, request.settings.weights_dir)
        if download is None:
            self._register(request, outputs)
        elif slicer.util.confirmYesNoDisplay(download.question):
            then = partial(self._onDownloaded, request, outputs)
            self._session.download(request.settings.model, request.settings.weights_dir, then)
            self._showRunning()
        else:
            raise InputError(_("The weights were not downloaded; choose the offline preset, or Apply again."))

    def _installPackages(self):
        def say(sentence):
            self._showStatus(sentence)
            slicer.app.processEvents()

        self.ui.applyButton.enabled = False  # installing lets Qt work
        try:
            dependencies.ensure_packages(slicer.util.confirmYesNoDisplay, say)
        finally:
            self.ui.applyButton.enabled = True

    def _outputsToUpdate(self, request):
        """The nodes of the chosen result if it is one of the same volumes: no other pair's result is overwritten."""
        p = self._parameterNode
        try:
            earlier = request_of(p.result) if p.update and p.result is not None else None
        except InputError:  # one of its volumes was deleted
            earlier = None
        same = earlier is not None and (earlier.fixed, earlier.moving) == (request.fixed, request.moving)
        return outputs_of(p.result) if same else ResultNodes()

    def _onDownloaded(self, request, outputs, path):
        with self._reporting():
            self._register(request, outputs)

    def _register(self, request, outputs):
        self._closeReview()  # moving data goes back to where it was
        self._session.register(request, outputs, self._onRegistered)
        self._showRunning()

    def onRunAgain(self):
        with self._reporting():
            request = request_of(self._parameterNode.result)
            choices.show_request(self._parameterNode, request)
            self._parameterNode.preset = presets.preset_of(self._presets(), request.settings).name
            self._apply()

    def _onRegistered(self, outputs):
        self._learnSpeed(outputs)
        self._closeReview()  # of the nodes that have just been updated
        # the module may have been left meanwhile: then it is shown when the user comes back
        parameters = self._parameterNode or IconRegistrationParameterNode(self.logic.getParameterNode())
        parameters.result = outputs.forward
        self.ui.reviewSection.collapsed = False
        self._showEnd(" ".join([_("Done."), *self._notes]), "amber" if self._notes else "green")

    def _learnSpeed(self, outputs):
        """Later predictions go by how long this one took."""
        provenance = outputs.report.provenance
        if self._predicted and provenance["device"].startswith("cpu"):
            speed = updated_speed(self._speed(), self._predicted, provenance["seconds"]["total"])
            slicer.app.userSettings().setValue(SPEED_KEY, speed)

    # The session's listener.

    def on_ready(self, info):
        self._devices = info["devices"]
        self.refresh()

    def on_progress(self, stage, fraction, seconds_left):
        bar = self.ui.progressBar
        bar.value = round(100 * fraction)
        left = f", {duration(seconds_left)} left" if seconds_left is not None else ""
        self._showStatus(f"{stage[:1].upper()}{stage[1:]}{left}")

    def on_note(self, sentence):
        self._notes.append(sentence)
        self._showStatus(sentence, "amber")

    def on_failed(self, sentence, details, cancelled):
        if details:
            logging.error(details)
        self._showEnd(sentence, "amber" if cancelled else "red", details)

    def _showRunning(self):
        self.ui.progressBar.value = 0
        self.ui.progressBar.setVisible(True)
        self._showStatus(_("Starting..."))
        self.refresh()

    def _showEnd(self, sentence, level, details=""):
        self.ui.progressBar.setVisible(self._session.busy)  # the end may be of something else
        self._showStatus(sentence, level)
        self.ui.statusLabel.toolTip = details
        self.refresh()

    def _showStatus(self, sentence, level=None):
        self.ui.statusLabel.text = sentence
        self.ui.statusLabel.setVisible(bool(sentence))
        self.ui.statusLabel.styleSheet = _levelStyle(level)

    @contextmanager
    def _reporting(self):
        """One user action: what is wrong with the input is said in the panel; anything else is shown as an error."""
        with slicer.util.tryWithErrorDisplay(_("ICON Registration failed unexpectedly."), waitCursor=False):
            try:
                yield
            except InputError as error:
                self._showEnd(str(error), "red")

    # -------------------------------------------------------------------------------------------------------- review

    def _showResult(self):
        """The result that is chosen under Review, as the controls say."""
        p, ui = self._parameterNode, self.ui
        with self._reporting():
            if p.result is None or (self._session.busy and self._review.forward is not p.result):
                self._review.close()
            elif self._review.forward is p.result:
                self._review.apply(view_of(p))
            elif self._unusable is not p.result:
                self._review.close()
                self._unusable = p.result
                request = request_of(p.result)
                self._unusable = None
                if request is not None:
                    self._review.show(request, outputs_of(p.result), view_of(p))
        self._showTrust()
        for name, enabled in self._review.enabled().items():
            getattr(ui, name).enabled = enabled
        for button in (ui.runAgainButton, ui.hardenButton):
            button.enabled = button.enabled and not self._session.busy
        for label, bar, comparison in (
            (ui.comparisonLabel, ui.blendSlider, choices.Comparison.BLEND),
            (ui.cellsLabel, ui.cellsSlider, choices.Comparison.CHECKERBOARD),
            (ui.curtainLabel, ui.curtainSlider, choices.Comparison.CURTAIN),
        ):
            label.setVisible(p.comparison is comparison)
            bar.setVisible(p.comparison is comparison)
        ui.curtainComboBox.setVisible(p.comparison is choices.Comparison.CURTAIN)

    def _showTrust(self):
        if self._review.report is self._trusted:
            return
        self._trusted = self._review.report
        table = self.ui.trustTable
        rows = trust_card(self._trusted)
        table.setRowCount(len(rows))
        for number, row in enumerate(rows):
            for column, text in enumerate(row.cells):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(row.meaning)
                if row.level and column == 3:
                    item.setBackground(qt.QBrush(qt.QColor(LEVEL_COLORS[row.level])))
                    item.setForeground(qt.QBrush(qt.QColor("black")))
                table.setItem(number, column, item)
        for column in (1, 2, 3):
            table.resizeColumnToContents(column)

    @contextmanager
    def _unwatched(self):
        """The review moves data, which is no reason to look at anything again."""
        refreshing, self._refreshing = self._refreshing, True
        try:
            yield
        finally:
            self._refreshing = refreshing
            self._checked = None

    def _closeReview(self):
        with self._unwatched():
            self._review.close()

    def onExportCsv(self):
        with self._reporting():
            name = f"{self._review.forward.GetName()}, quality.csv"
            title = _("Save the trust card")
            path = qt.QFileDialog.getSaveFileName(slicer.util.mainWindow(), title, name, "CSV (*.csv)")
            if path:
                self._review.report.write_csv(path)
                self._showStatus(_("Saved: {path}").format(path=path), "green")

    def onExportTable(self):
        from IconRegistrationLib.mrml.review.trust import report_table
        from IconRegistrationLib.mrml.scene import place_beside

        with self._reporting():
            forward = self._review.forward
            node = forward.GetNodeReference(TABLE_REFERENCE)
            table = report_table(slicer.mrmlScene, self._review.report, f"Quality of {forward.GetName()}", node)
            if node is None:
                forward.SetNodeReferenceID(TABLE_REFERENCE, table.GetID())
                place_beside(slicer.mrmlScene, table, forward)
            self._showStatus(_("The table {name} is in the scene.").format(name=table.GetName()), "green")

    def onHarden(self):
        with self._reporting():
            self._notes = []
            with self._unwatched():
                self._review.harden(self._session, self._onHardened)
            self._showRunning()

    def _onHardened(self, node):
        self._showEnd(_("The segments are in {name}.").format(name=node.GetName()), "green")


class IconRegistrationLogic(ScriptedLoadableModuleLogic):
    """The console's door."""

    def register(self, fixed, moving, **options):
        """`IconRegistrationLib.mrml.registration.register_nodes`, documented there: nodes in, nodes and report out.

        It runs in Slicer's own process and waits for the end; the panel's worker is not needed.
        """
        from IconRegistrationLib.mrml.registration import register_nodes

        return register_nodes(fixed, moving, **options)


class IconRegistrationTest(ScriptedLoadableModuleTest):
    """The self-test: a small phantom, registered for real."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_phantom()

    def test_phantom(self):
        from IconRegistrationLib.registration.settings import Settings
        from IconRegistrationLib.ui.samples import add_phantom

        fixed, moving, fixedOrgans, movingOrgans, fixedPoints, movingPoints = add_phantom(slicer.mrmlScene, size=64)
        outputs = IconRegistrationLogic().register(
            fixed,
            moving,
            fixed_segmentation=fixedOrgans,
            moving_segmentation=movingOrgans,
            fixed_landmarks=fixedPoints,
            moving_landmarks=movingPoints,
            settings=Settings(spacing=4.5, device="cpu"),
        )
        error = outputs.report.target_registration_error
        self.assertLess(error.after, error.before / 3)
        self.assertEqual(outputs.report.deformation.folding.count, 0)
        self.delayDisplay(f"Landmarks: {error.before:.1f} -> {error.after:.1f} mm")
