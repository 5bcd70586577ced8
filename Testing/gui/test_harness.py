"""The rules of Slicer's Qt binding and application on which our code, and its tests, rely."""

import enum
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import ctk
import pytest
import qt
import slicer
import slicerharness
from slicer.parameterNodeWrapper import Default, WithinRange, parameterNodeWrapper
from slicer.util import VTKObservationMixin
from waiting import PATIENCE


def take(errors):
    found = list(errors)
    errors.clear()
    return found


# ------------------------------------------------------------------------------------------------ PythonQt


def test_properties_are_attributes_and_convert():
    label, box, spin = qt.QLabel("text"), qt.QComboBox(), qt.QSpinBox()
    box.addItems(["a", "b"])
    assert (label.text, box.count, box.currentText) == ("text", 2, "a")
    spin.value = 3.9
    label.text = 5
    label.enabled = []
    assert (spin.value, label.text, label.enabled) == (3, "5", False)
    with pytest.raises(TypeError):
        label.text()
    with pytest.raises(AttributeError, match="not writable"):
        box.count = 3


def test_objects_of_cpp_take_no_new_attributes():
    button = qt.QPushButton()
    with pytest.raises(AttributeError, match="creating new attributes"):
        button.volumeNode = None
    with pytest.raises(AttributeError, match="overwritten"):
        button.click = None
    assert not hasattr(button, "volumeNode")


def test_what_a_slot_gets():
    got = []
    button = qt.QPushButton()
    button.clicked.connect(lambda: got.append("nothing"))
    button.clicked.connect(lambda x="mine": got.append(x))
    button.connect("clicked()", lambda *every: got.append(every))
    button.click()
    assert got == ["nothing", False, ()]


def test_a_slot_is_disconnected_by_its_function():
    got = []
    first, second = qt.QTimer(), qt.QTimer()
    for timer in (first, second):
        timer.timeout.connect(got.append)
    with pytest.raises(ValueError, match="does not exist"):
        first.connect("tick()", got.append)
    assert second.timeout.disconnect(got.append)
    assert second.receivers("2timeout()") == 0
    assert first.receivers("2timeout()") == 1


def test_an_exception_in_a_slot_is_reported_and_the_program_goes_on(errors):
    button = qt.QPushButton()
    after = []
    button.clicked.connect(lambda: 1 / 0)
    button.clicked.connect(lambda: after.append(1))
    button.click()
    assert [type(error) for error in take(errors)] == [ZeroDivisionError]
    assert after == [1]


def test_dialogs_do_not_block():
    with pytest.raises(AssertionError, match="would block"):
        qt.QFileDialog.getOpenFileName(None, "Weights")
    with pytest.raises(AssertionError, match="would block"):
        qt.QMessageBox().exec()


def test_a_timer_fires_once(errors):
    fired, timer = [], qt.QTimer()
    timer.singleShot = True
    timer.interval = 1
    timer.timeout.connect(lambda: fired.append("timer"))
    timer.start()
    qt.QTimer.singleShot(1, lambda: fired.append("static"))
    slicerharness.process_until(lambda: len(fired) == 2)
    assert not timer.active


def test_a_process_reports_its_end_with_code_and_status():
    process, ends = qt.QProcess(), []
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ends.append((code, status)))
    process.finished.connect(lambda code: ends.append(code))
    process.start(sys.executable, ["-c", "print('a'); raise SystemExit(3)"])
    slicerharness.process_until(lambda: len(ends) == 2)
    assert ends == [(3, qt.QProcess.NormalExit), 3]
    assert process.readAllStandardOutput().data().split() == [b"a"]


# ------------------------------------------------------------------------------------------------ .ui files

FORM = """<ui version="4.0"><class>Form</class><widget class="qMRMLWidget" name="Form"><layout class="QVBoxLayout">
<item><widget class="qMRMLNodeComboBox" name="volume"><property name="nodeTypes"><stringlist>
<string>vtkMRMLScalarVolumeNode</string></stringlist></property><property name="noneEnabled"><bool>true</bool>
</property><property name="SlicerParameterName" stdset="0"><string>volume</string></property></widget></item>
<item><widget class="ctkCollapsibleButton" name="section"><property name="collapsed"><bool>true</bool></property>
<layout class="QVBoxLayout"><item><widget class="ctkSliderWidget" name="amount">
<property name="SlicerParameterName" stdset="0"><string>amount</string></property></widget></item>
<item><widget class="QComboBox" name="kind"><property name="SlicerParameterName" stdset="0"><string>kind</string>
</property></widget></item></layout></widget></item></layout></widget>
<connections><connection><sender>Form</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
<receiver>volume</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""


@pytest.fixture
def load(tmp_path):
    def load(text=FORM):
        path = tmp_path / "form.ui"
        path.write_text(text)
        return slicer.util.loadUI(str(path))

    return load


def test_a_form_is_loaded_with_its_connections(load, scene):
    form = load()
    ui = slicer.util.childWidgetVariables(form)
    form.setMRMLScene(scene)
    assert isinstance(ui.section, ctk.ctkCollapsibleButton)
    assert ui.section.collapsed
    assert not ui.amount.isVisibleTo(form)
    assert ui.volume.mrmlScene() is scene


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        ('name="collapsed"', 'name="collapsd"'),
        ('"ctkSliderWidget"', '"ctkSlider"'),
        ("mrmlSceneChanged(vtk", "sceneChanged(vtk"),
        ("setMRMLScene(vtk", "setScene(vtk"),
    ],
)
def test_a_form_with_a_wrong_name_is_refused(load, there, wrong):
    with pytest.raises((RuntimeError, ValueError)):
        load(FORM.replace(there, wrong))


# ------------------------------------------------------------------------------------------------ nodes


def test_a_node_selector_follows_the_scene(scene):
    selector, changes = slicer.qMRMLNodeComboBox(), []
    selector.nodeTypes, selector.noneEnabled = ["vtkMRMLScalarVolumeNode"], True
    selector.connect("currentNodeChanged(vtkMRMLNode*)", changes.append)
    selector.setMRMLScene(scene)
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    assert selector.currentNode() is None
    slicerharness.pick(selector, "CT")
    volume.SetName("thorax")
    slicerharness.pick(selector, "thorax")
    scene.RemoveNode(volume)
    assert selector.currentNode() is None
    assert changes == [volume, None]
    selector.deleteLater()
    slicerharness.settle()
    scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MR")  # the selector no longer listens


class Kind(enum.Enum):
    FAST = "fast"
    EXACT = "exact"

    def label(self):
        return self.value.title()


def test_a_parameter_node_and_its_widgets_follow_each_other(load, scene):
    @parameterNodeWrapper
    class Parameters:
        volume: slicer.vtkMRMLScalarVolumeNode
        kind: Kind = Kind.EXACT
        amount: Annotated[float, WithinRange(0, 100), Default(40.0)]
        steps: int = 5

    node = scene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    parameters = Parameters(node)
    form = load()
    form.setMRMLScene(scene)
    ui = slicer.util.childWidgetVariables(form)
    tag = parameters.connectParametersToGui({"amount": ui.amount, "kind": ui.kind, "volume": ui.volume})
    assert (ui.amount.value, ui.kind.currentText) == (40, "Exact")
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    ui.amount.value = 10
    slicerharness.pick(ui.kind, "Fast")
    slicerharness.pick(ui.volume, "CT")
    assert (parameters.amount, parameters.kind, parameters.volume) == (10, Kind.FAST, volume)
    assert node.GetParameter("kind") == "FAST"
    parameters.amount = 20
    parameters.volume = None
    assert (ui.amount.value, ui.volume.currentNode()) == (20, None)
    with pytest.raises(ValueError, match="within"):
        parameters.amount = 101
    with pytest.raises(TypeError):
        parameters.steps = 1.5
    unbound = Parameters(node)
    node.SetParameter("steps", "7")
    assert (parameters.steps, unbound.steps) == (7, 7)
    parameters.disconnectGui(tag)
    ui.amount.value = 30
    assert parameters.amount == 20
    assert Parameters(node).kind == Kind.FAST, "a second wrapper of the node keeps what is there"
    assert unbound.connectGui(ui) is None, "as in Slicer, which forgets to return the tag"


# ------------------------------------------------------------------------------------------------ application


def test_views_are_real_and_as_the_layout_needs_them(scene):
    layouts, manager = slicer.vtkMRMLLayoutNode, slicer.app.layoutManager()
    manager.setLayout(layouts.SlicerLayoutThreeOverThreeView)
    assert {"Red", "Green", "Yellow", "Red+", "Green+", "Yellow+"} <= set(manager.sliceViewNames())
    assert manager.sliceWidget("Red+").mrmlSliceNode().IsMappedInLayout()
    manager.setLayout(layouts.SlicerLayoutFourUpView)
    assert manager.layout == layouts.SlicerLayoutFourUpView
    assert not manager.sliceWidget("Red+").mrmlSliceNode().IsMappedInLayout()
    volume = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    slicer.util.setSliceViewerLayers(foreground=volume, foregroundOpacity=0.25, fit=True)
    composite = manager.sliceWidget("Yellow").sliceLogic().GetSliceCompositeNode()
    assert (composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()) == (volume.GetID(), 0.25)
    assert manager.sliceWidget("Yellow").mrmlSliceNode().GetOrientation() == "Sagittal"
    assert manager.threeDWidget(0).mrmlViewNode().IsA("vtkMRMLViewNode")


def test_what_pops_up_is_recorded_and_answered(popups):
    popups.answers[:] = [False]
    assert not slicer.util.confirmOkCancelDisplay("Install?")
    assert slicer.util.confirmYesNoDisplay("Download?")
    with pytest.raises(ZeroDivisionError), slicer.util.tryWithErrorDisplay("It failed."):
        _ = 1 / 0
    assert [(popup.level, popup.text) for popup in popups.shown] == [
        ("info", "Install?"),
        ("info", "Download?"),
        ("error", "It failed.\n\ndivision by zero"),
    ]
    assert "Traceback" in popups.shown[-1].details


def test_sample_data_is_registered_and_unknown_arguments_are_refused():
    from SampleData import SampleDataLogic

    one = {"uris": ["https://x.org/a"], "fileNames": ["a.nrrd"], "nodeNames": ["a"]}
    SampleDataLogic.registerCustomSampleDataSource(category="Test", sampleName="pair", **one)
    (source,) = slicer.modules.sampleDataSources.pop("Test")
    assert (source.sampleName, source.checksums) == ("pair", None)
    with pytest.raises(TypeError):
        SampleDataLogic.registerCustomSampleDataSource(sampleNames="pair")
    with pytest.raises(ValueError, match="same length"):
        SampleDataLogic.registerCustomSampleDataSource(category="Test", **one, checksums=[])


MODULE = """
from slicer.ScriptedLoadableModule import *
import slicer
from slicer.util import VTKObservationMixin
EVENTS = []
class Tiny(ScriptedLoadableModule):
    pass
class TinyWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
    def setup(self):
        self.logic = TinyLogic()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, lambda *_: EVENTS.append("closed"))
    def cleanup(self):
        self.removeObservers()
        EVENTS.append("cleaned")
class TinyLogic(ScriptedLoadableModuleLogic):
    pass
"""


def test_a_module_is_opened_reloaded_and_closed(tmp_path, scene):
    path = tmp_path / "Tiny.py"
    path.write_text(MODULE)
    module = slicerharness.load_module(path)
    first = module.widgetRepresentation().self()
    assert isinstance(first, VTKObservationMixin)
    assert first.logic.getParameterNode() is first.logic.getParameterNode()
    events = sys.modules["Tiny"].EVENTS
    slicer.util.reloadScriptedModule("Tiny")
    second = slicer.modules.tiny.widgetRepresentation().self()
    assert second is not first
    assert second is slicer.util.getModuleWidget("Tiny") is slicer.modules.TinyWidget
    assert events == ["cleaned"]
    scene.Clear(False)
    assert sys.modules["Tiny"].EVENTS == ["closed"]
    module.close()
    assert sys.modules["Tiny"].EVENTS == ["closed", "cleaned"]
    scene.Clear(False)
    assert sys.modules["Tiny"].EVENTS == ["closed", "cleaned"]


@pytest.mark.slow
def test_the_interpreter_ends_well():
    """Objects of Qt, VTK and Python are torn down in an order that nobody chose: it must not crash."""
    code = """
        import slicerharness
        slicerharness.install()
        import qt, slicer
        selector, timer = slicer.qMRMLNodeComboBox(), qt.QTimer()
        selector.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        selector.setMRMLScene(slicer.mrmlScene)
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
        timer.timeout.connect(lambda: None)
        timer.start(1)
        slicer.app.processEvents()
    """
    end = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (end.returncode, end.stderr) == (0, "")
