"""What happens to scene and module during a run, between runs and when the module is reloaded."""

import os
import sys

import numpy as np
import pytest
import slicer
from panel import ENDS, MADE, VOLUMES, grids, ids, is_ready, made_by, trust_rows
from slicerharness import settle

from IconRegistrationLib.mrml.registration import request_of
from IconRegistrationLib.mrml.transforms import field_from_node

# ------------------------------------------------------------------------------------------------ meanwhile


@pytest.mark.parametrize("parameter", VOLUMES)
def test_a_volume_is_deleted_during_the_run(panel, parameter):
    nodes = panel.choose_phantom()
    panel.apply()
    panel.scene.RemoveNode(nodes[parameter])
    settle()
    before = ids(panel.scene)
    assert panel.ui.applyButton.text == "Cancel"
    panel.worker.finish()
    assert f"The {parameter.removesuffix('Volume')} volume was deleted" in panel.status
    assert ids(panel.scene) == before
    assert not panel.busy
    assert "Choose a" in panel.ui.applyButton.toolTip


@pytest.mark.parametrize("focus", [False, True])
def test_everything_but_the_volumes_is_deleted_during_the_run(panel, focus):
    nodes = panel.choose_phantom()
    if focus:
        panel.ui.focusCheckBox.click()
    panel.apply()
    for parameter, node in nodes.items():
        if parameter not in VOLUMES:
            panel.scene.RemoveNode(node)
    panel.worker.finish()
    assert is_ready(panel)
    assert panel.status == "Done."
    assert {"forward", "backward", "warped_volume", "warped_segmentation"} <= set(made_by(panel))
    assert request_of(panel.parameters.result).moving_segmentation is None
    assert trust_rows(panel) > 5


def test_the_result_to_be_updated_is_deleted_during_the_run(panel):
    panel.register()
    old = made_by(panel)
    panel.apply()
    for node in (old["forward"], old["warped_volume"]):
        panel.scene.RemoveNode(node)
    settle()
    panel.worker.finish()
    assert is_ready(panel)
    new = made_by(panel)
    assert tuple(new) == MADE
    assert new["backward"] is old["backward"]
    assert new["forward"].GetScene() is panel.scene


def test_the_scene_is_closed_during_the_run(panel):
    panel.choose_phantom()
    panel.apply()
    worker = panel.worker
    panel.scene.Clear(False)
    settle()
    assert worker.stopped
    assert not panel.busy
    assert not list(panel.folder.glob("IconRegistration-*"))
    assert "scene was closed" in panel.status
    assert panel.ui.applyButton.toolTip == "Choose a fixed and a moving volume."
    assert not panel.ui.progressBar.isVisibleTo(panel.page)
    panel.register()
    assert panel.worker is not worker


def test_the_scene_is_closed_while_a_result_is_improved(panel, monkeypatch):
    panel.register()
    panel.apply()
    shown = []
    monkeypatch.setattr(panel.review, "show", lambda *_: shown.append(1))
    panel.scene.Clear(False)
    settle()
    assert not shown, "of a scene that is being closed"
    assert "scene was closed" in panel.status
    assert trust_rows(panel) == 0


def test_the_scene_is_closed_while_nothing_runs(panel):
    panel.register()
    panel.scene.Clear(False)
    settle()
    assert not panel.worker.stopped, "it stays warm"
    assert panel.parameters.result is None
    assert trust_rows(panel) == 0
    assert not panel.ui.runAgainButton.enabled
    panel.register()
    assert len(panel.workers) == 1


@pytest.mark.parametrize("where", ["away", "back"])
def test_the_module_is_left_during_the_run(panel, where):
    nodes = panel.choose_phantom()
    panel.apply()
    panel.worker.progress("alignment", 0.3)
    panel.page.exit()
    panel.worker.progress("alignment", 0.6)
    if where == "back":
        panel.page.enter()
        assert panel.ui.applyButton.text == "Cancel"
        assert panel.ui.progressBar.value == 60
    panel.worker.finish()
    if where == "away":
        panel.page.enter()
    assert is_ready(panel)
    assert panel.status == "Done."
    assert request_of(panel.parameters.result).moving is nodes["movingVolume"]
    assert trust_rows(panel) > 5
    assert panel.ui.runAgainButton.enabled


def test_a_run_fails_while_the_module_is_left(panel):
    panel.choose_phantom(*VOLUMES)
    panel.apply()
    panel.page.exit()
    panel.worker.fail("memory", ENDS["memory"])
    panel.page.enter()
    assert is_ready(panel)
    assert panel.status == ENDS["memory"]


def test_the_scene_is_closed_while_the_module_is_left(panel):
    panel.choose_phantom(*VOLUMES)
    panel.apply()
    panel.page.exit()
    panel.scene.Clear(False)
    settle()
    assert not panel.busy
    assert not list(panel.folder.glob("IconRegistration-*"))
    panel.page.enter()
    assert panel.ui.applyButton.toolTip == "Choose a fixed and a moving volume."


# ------------------------------------------------------------------------------------------------ reload, scenes


@pytest.fixture
def library():
    """The library's modules again as the other tests imported them, after a reload of the module forgot them."""
    kept = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "IconRegistrationLib"}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "IconRegistrationLib"]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.mark.parametrize("state", ["idle", "running", "done"])
def test_reload(panel, library, state):
    nodes = panel.choose_phantom()
    panel.ui.stepsSpinBox.value = 9
    if state != "idle":
        panel.apply()
    if state == "done":
        panel.worker.finish()
    old = panel.widget
    session = sys.modules["IconRegistrationLib.ui.session"]
    panel.widget.onReload()
    settle()
    assert panel.widget is not old
    assert sys.modules["IconRegistrationLib.ui.session"] is not session, "its files were read again"
    assert all(worker.stopped for worker in panel.workers)
    assert not list(panel.folder.glob("IconRegistration-*"))
    assert panel.ui.fixedVolumeSelector.currentNode() is nodes["fixedVolume"]
    assert panel.ui.stepsSpinBox.value == 9
    assert is_ready(panel)
    assert (panel.parameters.result is not None) == (state == "done")
    assert (trust_rows(panel) > 5) == (state == "done")


def save(scene, path):
    """File > Save, as one file."""
    folder = os.getcwd()
    try:
        assert scene.WriteToMRB(str(path), None, slicer.vtkMRMLMessageCollection())
    finally:
        os.chdir(folder)


def load(scene, path, clear=True):
    """File > Load."""
    folder = os.getcwd()
    try:
        assert scene.ReadFromMRB(str(path), clear, slicer.vtkMRMLMessageCollection())
    finally:
        os.chdir(folder)
    settle()


@pytest.mark.parametrize("is_open", [True, False])
def test_a_scene_with_a_result_is_saved_and_loaded(panel, tmp_path, is_open):
    panel.ui.stepsSpinBox.value = 9
    panel.register()
    rows = trust_rows(panel)
    displacement = field_from_node(panel.parameters.result).displacement.copy()
    save(panel.scene, tmp_path / "scene.mrb")
    if not is_open:
        panel.page.exit()
    load(panel.scene, tmp_path / "scene.mrb")
    panel.page.enter()
    settle()
    assert is_ready(panel)
    result = panel.parameters.result
    assert result.GetScene() is panel.scene
    assert panel.ui.resultSelector.currentNode() is result
    assert tuple(made_by(panel)) == MADE
    assert trust_rows(panel) == rows
    linear = slicer.vtkOrientedGridTransform.SafeDownCast(result.GetTransformFromParent())
    assert linear.GetInterpolationMode() == linear.VTK_LINEAR if hasattr(linear, "VTK_LINEAR") else True
    assert linear.GetInterpolationModeAsString() == "Linear"
    np.testing.assert_allclose(field_from_node(result).displacement, displacement, atol=1e-5)
    assert panel.ui.stepsSpinBox.value == 9
    assert panel.ui.fixedVolumeSelector.currentNode().GetName() == "Phantom inhale"
    panel.ui.runAgainButton.click()
    assert panel.busy, panel.status
    panel.worker.finish()
    assert panel.parameters.result is result


def test_another_scene_is_loaded_instead(panel, tmp_path):
    nodes = panel.choose_phantom(*VOLUMES)
    nodes["fixedVolume"].SetName("of the other scene")
    panel.ui.stepsSpinBox.value = 9
    save(panel.scene, tmp_path / "other.mrb")
    panel.scene.Clear(False)
    settle()
    assert panel.ui.stepsSpinBox.value == 0
    panel.register()
    load(panel.scene, tmp_path / "other.mrb")
    assert is_ready(panel)
    assert panel.ui.fixedVolumeSelector.currentNode().GetName() == "of the other scene"
    assert panel.ui.stepsSpinBox.value == 9
    assert panel.parameters.result is None
    assert trust_rows(panel) == 0
    panel.apply()
    assert panel.worker.inputs.fixed.name == "of the other scene"
    assert panel.worker.settings.steps == 9


def test_another_scene_is_loaded_during_the_run(panel, tmp_path):
    panel.choose_phantom(*VOLUMES)
    save(panel.scene, tmp_path / "other.mrb")
    panel.apply()
    load(panel.scene, tmp_path / "other.mrb")
    assert panel.workers[0].stopped
    assert is_ready(panel)
    assert grids(panel.scene) == []


def test_a_scene_is_added_during_the_run(panel, tmp_path):
    """File > Add data: nothing is closed, so the run goes on."""
    panel.choose_phantom(*VOLUMES)
    save(panel.scene, tmp_path / "other.mrb")
    panel.apply()
    load(panel.scene, tmp_path / "other.mrb", clear=False)
    assert panel.busy
    panel.worker.finish()
    assert panel.status == "Done."
    assert len(grids(panel.scene)) == 2


def test_a_scene_is_saved_during_the_run(panel, tmp_path):
    panel.choose_phantom(*VOLUMES)
    panel.apply()
    save(panel.scene, tmp_path / "scene.mrb")
    panel.worker.finish()
    assert panel.status == "Done."


def test_another_parameter_node_is_made_where_a_script_removes_the_panels(panel):
    nodes = panel.choose_phantom(*VOLUMES)
    panel.scene.RemoveNode(panel.parameters.parameterNode)
    assert panel.ui.fixedVolumeSelector.currentNode() is None
    panel.choose(fixedVolume=nodes["fixedVolume"])
    assert panel.parameters.fixedVolume is nodes["fixedVolume"]
