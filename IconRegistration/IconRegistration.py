"""The Slicer module. It only wires: what it wires lives in IconRegistrationLib.

torch and itk are imported nowhere here: the worker process has them (IconRegistrationLib/worker),
and the console's `IconRegistrationLogic.register` imports them when it is called.
"""

import sys
from typing import Annotated, Any

import slicer
import vtk
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from IconRegistrationLib import text
from IconRegistrationLib.ui import choices
from IconRegistrationLib.ui.machine_settings import MachineSettings
from IconRegistrationLib.ui.panel import Panel
from IconRegistrationLib.ui.preflight_line import PreflightLine
from IconRegistrationLib.ui.preset_bar import PresetBar
from IconRegistrationLib.ui.review_section import ReviewSection
from IconRegistrationLib.ui.reviewing import Review, with_review_parameters
from IconRegistrationLib.ui.role_boxes import add_role_boxes, with_role_parameters
from IconRegistrationLib.ui.runs import Runs
from IconRegistrationLib.ui.segment_lists import SegmentLists
from IconRegistrationLib.ui.session import Session
from IconRegistrationLib.ui.status import StatusLine

text.set_translator(translate)


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
    """Register samples and watch for loaded scenes, before the module is opened."""
    from IconRegistrationLib.ui.samples import register_samples

    register_samples()
    slicer.mrmlScene.AddObserver(slicer.vtkMRMLScene.EndImportEvent, onSceneImported)


def onSceneImported(scene, event):
    from IconRegistrationLib.mrml.transforms import set_linear_interpolation

    set_linear_interpolation(scene)  # Slicer reads our transforms as cubic ones


def purgeLibrary():
    """Forget the library, so that a reload of the module reads its files again."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "IconRegistrationLib"]:
        del sys.modules[name]


@parameterNodeWrapper
@with_role_parameters
@with_review_parameters
class IconRegistrationParameterNode:
    """Everything that the panel shows, saved with the scene; ui/role_boxes and ui/review_controls add theirs."""

    fixedVolume: slicer.vtkMRMLScalarVolumeNode
    movingVolume: slicer.vtkMRMLScalarVolumeNode
    fixedSegmentation: slicer.vtkMRMLSegmentationNode
    movingSegmentation: slicer.vtkMRMLSegmentationNode
    fixedSegments: str  # choices.chosen_segments
    movingSegments: str
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


class IconRegistrationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """Connects page, parameter node and scene with the parts of the panel, which live in IconRegistrationLib.ui."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: Any = None
        self.panel: Any = None
        self._guiTag = None
        self._isRefreshing = False

    # ----------------------------------------------------------------------------------------------- Slicer calls these

    def setup(self):
        super().setup()
        page = slicer.util.loadUI(self.resourcePath("UI/IconRegistration.ui"))
        self.layout.addWidget(page)
        self.ui = slicer.util.childWidgetVariables(page)
        page.setMRMLScene(slicer.mrmlScene)
        add_role_boxes(self.ui)
        self.logic = IconRegistrationLogic()
        self.panel = self._makePanel()
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

    def _makePanel(self):
        ui, panel = self.ui, Panel(self.ui, slicer.mrmlScene)
        panel.status = StatusLine(ui.statusLabel, ui.progressBar, lambda: panel.session.busy, self.refresh)
        panel.review = Review(slicer.mrmlScene)
        machine = MachineSettings(ui)
        self._segments = SegmentLists(panel)
        self._presets = PresetBar(panel)
        self._preflight = PreflightLine(panel, self.refresh)
        self._reviewSection = ReviewSection(panel, self._preflight)
        runs = Runs(panel, self._preflight, self._presets, self._reviewSection, self._unboundParameterNode)
        panel.session = Session(slicer.mrmlScene, runs, python=machine.python, working_folder=machine.working_folder)
        return panel

    def cleanup(self):
        self._reviewSection.close()
        self.panel.session.close()
        self._disconnectParameterNode()
        self.removeObservers()

    def enter(self):
        self.initializeParameterNode()

    def exit(self):
        self._disconnectParameterNode()  # the display stays, for instance for placing landmarks

    def onReload(self):
        purgeLibrary()
        super().onReload()

    # ------------------------------------------------------------------------------------------------------ the scene

    def onSceneStartClose(self, caller, event):
        self._reviewSection.close()
        self._disconnectParameterNode()
        if self.panel.session.busy:
            self.panel.session.close()
            self.panel.status.end(_("The scene was closed; the registration was stopped."), "amber")

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
        p = self.panel.parameters
        for name in IconRegistrationParameterNode.__annotations__ if p is not None else ():
            if getattr(p, name) is node:
                setattr(p, name, None)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeRemoved(self, caller, event, node):
        if self.panel.parameters is not None and node is self.panel.parameters.parameterNode:
            self._disconnectParameterNode()
            if not caller.IsClosing():
                self.initializeParameterNode()
        if self.panel.review.shows(node):
            self._reviewSection.close()
            self.refresh()

    # ------------------------------------------------------------------------------------------------- parameter node

    def _unboundParameterNode(self):
        return IconRegistrationParameterNode(self.logic.getParameterNode())  # type: ignore[call-arg]

    def initializeParameterNode(self):
        """Bind the controls to the scene's parameter node."""
        if self.panel.parameters is not None:
            return
        self.panel.parameters = self._unboundParameterNode()
        named = {widget.property("SlicerParameterName"): widget for widget in vars(self.ui).values()}
        named.pop(None, None)
        # connectGui would find the same widgets, but does not return the tag that disconnectGui needs (Slicer #7547)
        self._guiTag = self.panel.parameters.connectParametersToGui(named)
        self.addObserver(self.panel.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
        self.refresh()

    def _disconnectParameterNode(self):
        if self.panel.parameters is None:
            return
        self.panel.parameters.disconnectGui(self._guiTag)
        self.removeObserver(self.panel.parameters.parameterNode, vtk.vtkCommand.ModifiedEvent, self.refresh)
        self._preflight.forget()
        self._reviewSection.forget()
        self.panel.parameters = None

    def refresh(self, caller=None, event=None):
        """Show everything that follows from the parameters and is not bound to one control."""
        if self._isRefreshing or self.panel.parameters is None:
            return
        self._isRefreshing = True
        try:
            with self._preflight.paused():
                self._presets.refresh()
                self._preflight.refresh()
                self._reviewSection.refresh()
                self._segments.refresh()
        finally:
            self._isRefreshing = False


class IconRegistrationLogic(ScriptedLoadableModuleLogic):
    """The console's door."""

    def register(self, fixed, moving, **options):
        """Register nodes: `IconRegistrationLib.mrml.registration.register_nodes`, documented there.

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
