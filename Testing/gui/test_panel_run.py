"""A registration seen from the panel: it runs, it ends in one of many ways, and each time the panel is ready again."""

import os
import signal
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import qt
import slicer
from panel import CPU, Panel, ids, phantom, state_of, tick
from slicerharness import pick, process_until, settle

from IconRegistrationLib.mrml.registration import outputs_of, register_nodes, request_of
from IconRegistrationLib.mrml.scene import nodes_of_class
from IconRegistrationLib.mrml.transforms import field_from_node
from IconRegistrationLib.mrml.volumes import image_from_node
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import dependencies

VOLUMES = ("fixedVolume", "movingVolume")
MADE = ("forward", "backward", "warped_volume", "warped_segmentation", "warped_landmarks", "jacobian", "distrust")


def made_by(panel) -> dict:
    """The nodes of the result that is chosen, by the field of Outputs."""
    outputs = outputs_of(panel.parameters.result)
    return {name: getattr(outputs, name) for name in MADE if getattr(outputs, name) is not None}


def trust_rows(panel) -> int:
    return panel.ui.trustTable.rowCount


def is_ready(panel) -> bool:
    """The panel waits for the next click, with two volumes chosen."""
    settle()
    ui = panel.ui
    return (
        not panel.busy
        and ui.applyButton.enabled
        and ui.applyButton.text == "Apply"
        and not ui.progressBar.isVisibleTo(panel.page)
        and not list(panel.folder.glob("IconRegistration-*"))
    )


def grids(scene) -> list:
    return [node for node in nodes_of_class(scene, "vtkMRMLGridTransformNode") if node.GetSaveWithScene()]


# ------------------------------------------------------------------------------------------------ all goes well


def test_a_run_as_it_is_seen(panel):
    panel.choose_phantom()
    ui = panel.ui
    before = ids(panel.scene)
    panel.apply()
    assert (ui.applyButton.text, ui.applyButton.enabled) == ("Cancel", True)
    assert "scene stays as it is" in ui.applyButton.toolTip
    assert ui.progressBar.isVisibleTo(panel.page)
    assert (ui.progressBar.value, panel.status) == (0, "Starting...")
    assert not ui.runAgainButton.enabled
    panel.worker.ready()
    panel.worker.progress("alignment", 0.1)
    assert (ui.progressBar.value, panel.status) == (10, "Alignment")
    time.sleep(0.01)
    panel.worker.progress("alignment", 0.5)
    assert ui.progressBar.value == 50
    assert panel.status.startswith("Alignment, ")
    assert panel.status.endswith(" s left")
    panel.worker.progress("refinement", 0.51)
    assert panel.status == "Refinement", "another stage has another pace"
    assert ids(panel.scene) == before, "nothing before the end"
    assert len(list(panel.folder.glob("IconRegistration-*"))) == 1
    panel.worker.finish()
    assert is_ready(panel)
    assert panel.status == "Done."
    assert tuple(made_by(panel)) == MADE
    assert ui.resultSelector.currentNode() is panel.parameters.result
    assert panel.parameters.result.GetName() == "Phantom exhale to Phantom inhale"
    assert not ui.reviewSection.collapsed
    assert ui.runAgainButton.enabled
    assert trust_rows(panel) > 5
    assert {ui.trustTable.item(row, 3).text() for row in range(trust_rows(panel))} & {"good", "look closely"}


def test_results_lie_beside_their_inputs(panel):
    nodes = panel.choose_phantom()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(panel.scene)
    folders = {}
    for parameter in VOLUMES:
        folders[parameter] = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), parameter)
        hierarchy.CreateItem(folders[parameter], nodes[parameter])
    panel.apply()
    panel.worker.finish()
    made = made_by(panel)
    for name, parameter in (
        ("forward", "movingVolume"),
        ("backward", "fixedVolume"),
        ("warped_volume", "movingVolume"),
    ):
        assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(made[name])) == folders[parameter]


def test_a_plan_that_was_made_cheaper_is_told_to_the_end(panel):
    panel.choose_phantom(*VOLUMES)
    panel.apply()
    panel.worker.finish()
    plain = panel.ui.statusLabel.styleSheet
    panel.apply()
    said = "The GPU ran out of memory; trying again with the CPU, which takes longer."
    panel.worker.note(said)
    assert panel.status == said
    panel.worker.progress("alignment", 0.1)
    panel.worker.finish(notes=[said])
    assert panel.status == f"Done. {said}"
    assert panel.ui.statusLabel.styleSheet != plain
    panel.apply()
    panel.worker.finish()
    assert (panel.status, panel.ui.statusLabel.styleSheet) == ("Done.", plain), "it was said of the run before"


def test_the_devices_of_the_worker_are_in_the_preflight(panel):
    panel.choose_phantom(*VOLUMES)
    panel.apply()
    gpu = {"name": "cuda:0", "title": "Imaginary GPU", "memory": 24 << 30, "free": 20 << 30}
    panel.worker.ready([gpu, CPU])
    panel.worker.finish()
    assert "Imaginary GPU" in panel.ui.preflightLabel.text
    assert len(panel.workers) == 1
    panel.ui.releaseButton.click()
    assert panel.worker.released == 1
    panel.apply()
    panel.ui.releaseButton.click()
    assert panel.worker.released == 1, "it is at work"
    assert len(panel.workers) == 1, "one warm worker for all runs"


def test_what_is_changed_meanwhile_counts_for_the_next_run(panel):
    nodes = panel.choose_phantom()
    panel.apply()
    panel.choose(fixedVolume=nodes["movingVolume"], movingVolume=nodes["fixedVolume"], movingSegmentation=None)
    panel.ui.stepsSpinBox.value = 9
    panel.ui.jacobianCheckBox.click()
    nodes["movingVolume"].SetName("renamed")
    settle()
    assert panel.ui.applyButton.text == "Cancel"
    panel.worker.finish()
    request = request_of(panel.parameters.result)
    assert (request.fixed, request.moving) == (nodes["fixedVolume"], nodes["movingVolume"])
    assert request.settings.steps is None or request.settings.steps != 9
    assert "jacobian" in made_by(panel)
    assert panel.parameters.fixedVolume is nodes["movingVolume"], "the choices are the user's"
    panel.apply()
    assert panel.worker.settings.steps == 9
    assert panel.worker.inputs.fixed.name == "renamed"


def test_a_volume_can_be_registered_to_itself(panel):
    nodes = panel.add_phantom()
    panel.choose(fixedVolume=nodes["fixedVolume"], movingVolume=nodes["fixedVolume"])
    assert "are one volume" in panel.ui.preflightLabel.text
    panel.apply()
    panel.worker.finish()
    assert panel.status == "Done."


def test_what_else_goes_wrong_during_the_run_does_not_hide_it(panel, monkeypatch):
    panel.choose_phantom(*VOLUMES)
    panel.apply()
    monkeypatch.setattr(qt.QInputDialog, "getText", lambda *_: "uniGradICON")
    panel.ui.savePresetButton.click()
    assert "is built in" in panel.status
    assert panel.ui.progressBar.isVisibleTo(panel.page)
    assert panel.ui.applyButton.text == "Cancel"
    panel.worker.finish()
    assert is_ready(panel)


def test_segments_are_hardened_one_job_at_a_time(panel):
    panel.register()
    tick(panel.ui.labelsList, phantom().moving_segmentation.segments[0].name)
    panel.ui.hardenButton.click()
    assert panel.busy, panel.status
    assert panel.worker.request["request"] == "warp_segmentation"
    assert panel.ui.applyButton.text == "Cancel"
    assert not panel.ui.hardenButton.enabled
    assert not panel.ui.runAgainButton.enabled
    panel.worker.finish()
    assert is_ready(panel)
    assert "The segments are in" in panel.status
    assert panel.ui.hardenButton.enabled
    assert panel.ui.runAgainButton.enabled


# ------------------------------------------------------------------------------------------------ it does not go well

ENDS = {
    "memory": "This machine ran out of memory; crop or resample the images, run fewer at a time, or use a larger one.",
    "input": "Phantom inhale is constant: every voxel is 0. Choose a volume with content.",
    "worker": "The worker ended by a crash (SIGSEGV) in the middle of its work; try again, or choose another device.",
    "unexpected": "Unexpected ValueError: 1.",
    "cancelled": "Cancelled; nothing was changed.",
}


@pytest.mark.parametrize("kind", ENDS)
def test_a_run_that_fails_leaves_everything_as_it_was(panel, popups, kind):
    nodes = panel.choose_phantom()
    before, states = ids(panel.scene), state_of(nodes.values())
    panel.apply()
    panel.worker.ready()
    panel.worker.progress("alignment", 0.3)
    panel.worker.fail(kind, ENDS[kind], "Traceback: where it was")
    assert is_ready(panel)
    assert panel.status == ENDS[kind]
    assert panel.ui.statusLabel.toolTip == "Traceback: where it was"
    assert (ids(panel.scene), state_of(nodes.values())) == (before, states)
    assert panel.parameters.result is None
    assert not popups.shown
    panel.apply()
    panel.worker.finish()
    assert panel.status == "Done."
    assert panel.ui.statusLabel.toolTip == ""
    assert len(panel.workers) == 1


def test_cancel(panel):
    nodes = panel.choose_phantom()
    before, states = ids(panel.scene), state_of(nodes.values())
    panel.apply()
    panel.worker.progress("alignment", 0.3)
    panel.ui.applyButton.click()
    assert panel.worker.cancelled == 1
    assert not panel.ui.applyButton.enabled, "once is enough"
    assert panel.busy
    panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
    assert is_ready(panel)
    assert panel.status == "Cancelled; nothing was changed."
    assert (ids(panel.scene), state_of(nodes.values())) == (before, states)


def test_a_failure_leaves_the_earlier_result_under_review(panel):
    panel.register()
    made, rows = made_by(panel), trust_rows(panel)
    states = state_of(made.values())
    panel.apply()
    panel.worker.fail("worker", ENDS["worker"])
    assert is_ready(panel)
    assert made_by(panel) == made
    assert {i: s[2:] for i, s in state_of(made.values()).items()} == {i: s[2:] for i, s in states.items()}
    assert trust_rows(panel) == rows
    assert panel.ui.runAgainButton.enabled


def test_a_result_that_cannot_be_shown_hides_no_other_message(panel):
    nodes = panel.register()
    panel.scene.RemoveNode(nodes["movingVolume"])
    settle()
    assert "moving volume" in panel.status
    assert trust_rows(panel) == 0
    panel.choose(movingVolume=nodes["fixedVolume"])
    panel.apply()
    panel.worker.fail("worker", ENDS["worker"])
    assert panel.status == ENDS["worker"]
    panel.apply()
    panel.worker.finish()
    assert panel.status == "Done."
    assert trust_rows(panel) > 5


def test_a_result_that_cannot_be_read(panel, popups):
    nodes = panel.choose_phantom()
    before = ids(panel.scene)
    panel.apply()
    panel.worker.busy = False
    panel.worker.callbacks.result({"notes": []})  # but nothing was written
    assert is_ready(panel)
    assert "holds no complete exchange" in panel.status
    assert ids(panel.scene) == before
    panel.apply()
    results = panel.worker.computed()
    slicer.util.arrayFromVolume(nodes["fixedVolume"])
    panel.worker.computed = lambda: type(results)(**{**vars(results), "warped": None})
    panel.worker.finish()
    assert is_ready(panel)
    assert panel.status.startswith("The result could not be used")
    assert ids(panel.scene) == before, "what had been added is gone again"
    assert not popups.shown


def test_missing_packages_of_another_python(panel, tmp_path):
    panel.choose_phantom(*VOLUMES)
    said = "python3 cannot register: No module named 'torch'; install torch and SimpleITK for it, "
    said += "or choose another Python."
    python = tmp_path / "python3"
    python.touch()
    for text in (str(python), ""):
        panel.ui.pythonLineEdit.text = text
        panel.apply()
        panel.worker.fail("dependency", said, "Traceback")
        assert is_ready(panel)
        assert said in panel.status
        assert ("-m pip install" in panel.status) == bool(text)
        if text:
            assert dependencies.instruction(text) in panel.status


# ------------------------------------------------------------------------------------------------ packages, weights


def test_packages_are_installed_after_asking(panel, popups, monkeypatch):
    installed = []

    class Installer:
        def install_packages(self, requirements, constraints):
            installed.extend(requirements)
            monkeypatch.setattr(dependencies, "needed_packages", list)

    monkeypatch.setattr(dependencies, "needed_packages", lambda: ["nobody-has-this>=1"])
    monkeypatch.setattr(dependencies, "SlicerInstaller", Installer)
    panel.choose_phantom(*VOLUMES)
    popups.answers.append(False)
    panel.ui.applyButton.click()
    assert is_ready(panel)
    assert "Registration needs nobody-has-this>=1" in panel.status
    assert (len(popups.shown), installed, panel.workers) == (1, [], [])
    popups.answers.append(True)
    panel.apply()
    assert (len(popups.shown), installed) == (2, ["nobody-has-this>=1"])
    panel.worker.finish()
    assert panel.status == "Done."
    panel.apply()
    assert len(popups.shown) == 2


def test_nothing_is_installed_for_another_python(panel, popups, monkeypatch):
    monkeypatch.setattr(dependencies, "needed_packages", lambda: ["nobody-has-this>=1"])
    panel.choose_phantom(*VOLUMES)
    panel.ui.pythonLineEdit.text = sys.executable
    panel.apply()
    assert not popups.shown


def test_an_installation_that_fails(panel, popups, monkeypatch):
    class Installer:
        def install_packages(self, requirements, constraints):
            raise RuntimeError("no network")

    monkeypatch.setattr(dependencies, "needed_packages", lambda: ["nobody-has-this>=1"])
    monkeypatch.setattr(dependencies, "SlicerInstaller", Installer)
    panel.choose_phantom(*VOLUMES)
    panel.ui.applyButton.click()
    assert is_ready(panel)
    assert "no network" in panel.status
    assert len(popups.shown) == 1, "the question"


@pytest.fixture
def no_weights(monkeypatch, tmp_path):
    """A cache without weights, in which none appear."""
    monkeypatch.delenv(catalog.WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setattr(catalog, "cache_folder", lambda: tmp_path / "cache")


def test_a_download_that_is_declined(panel, popups, no_weights):
    panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    assert "MB) will be downloaded first" in panel.ui.preflightLabel.text
    popups.answers.append(False)
    panel.ui.applyButton.click()
    (question,) = popups.shown
    assert "MB from github.com" in question.text
    assert is_ready(panel)
    assert "were not downloaded" in panel.status
    assert not panel.workers


@pytest.mark.parametrize("leaves", [False, True])
def test_a_download_and_then_the_run(panel, no_weights, leaves):
    panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    panel.apply()
    assert panel.worker.request == {"request": "download", "model": "unigradicon", "weights_dir": None}
    assert panel.ui.applyButton.text == "Cancel"
    panel.worker.progress("download", 0.4)
    assert (panel.ui.progressBar.value, panel.status) == (40, "Download")
    if leaves:
        panel.page.exit()
    panel.worker.finish(path="/somewhere")
    assert panel.busy
    assert panel.worker.request["request"] == "register"
    assert panel.worker.settings == Settings(model="unigradicon")
    panel.worker.finish()
    if leaves:
        panel.page.enter()
    assert panel.parameters.result is not None
    assert panel.status == "Done."


def test_a_download_that_ends_early(panel, no_weights):
    panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    for kind, sentence in (("input", "github.com does not answer."), ("cancelled", "Cancelled; nothing was changed.")):
        panel.apply()
        panel.worker.fail(kind, sentence)
        assert is_ready(panel)
        assert panel.status == sentence
        assert len(panel.worker.requests) == ["input", "cancelled"].index(kind) + 1


def test_a_volume_that_is_deleted_during_the_download(panel, no_weights):
    nodes = panel.choose_phantom(*VOLUMES)
    pick(panel.ui.presetComboBox, "uniGradICON")
    panel.apply()
    panel.scene.RemoveNode(nodes["fixedVolume"])
    before = ids(panel.scene)
    panel.worker.finish(path="/somewhere")
    if panel.busy:
        panel.worker.finish()
    assert not panel.busy
    assert "fixed volume was deleted" in panel.status
    assert ids(panel.scene) == before


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


# ------------------------------------------------------------------------------------------------ again


def test_the_second_run_updates_the_same_nodes(panel):
    panel.register()
    first, before = made_by(panel), ids(panel.scene)
    voxels = first["warped_volume"].GetImageData()
    panel.ui.paddingSpinBox.value = 7
    panel.apply()
    panel.worker.finish()
    assert made_by(panel) == first
    assert ids(panel.scene) == before
    assert first["warped_volume"].GetImageData() is not voxels
    assert request_of(first["forward"]).settings.padding == 7


def test_a_second_result_beside_the_first(panel):
    panel.register()
    first = made_by(panel)
    panel.ui.updateCheckBox.click()
    panel.apply()
    panel.worker.finish()
    second = made_by(panel)
    assert tuple(second) == MADE
    assert not set(first.values()) & set(second.values())
    names = [node.GetName() for node in (*first.values(), *second.values())]
    assert len(set(names)) == len(names)
    pick(panel.ui.resultSelector, first["forward"].GetName())
    settle()
    assert made_by(panel) == first


def test_the_result_of_another_pair_is_not_overwritten(panel):
    nodes = panel.register()
    first = made_by(panel)
    panel.choose(fixedVolume=nodes["movingVolume"], movingVolume=nodes["fixedVolume"])
    panel.choose(fixedSegmentation=None, movingSegmentation=None, fixedLandmarks=None, movingLandmarks=None)
    panel.apply()
    panel.worker.finish()
    assert not set(first.values()) & set(made_by(panel).values())
    assert panel.parameters.result.GetName().startswith("Phantom inhale to Phantom exhale")


def test_the_warped_volume_can_be_registered_in_turn(panel):
    panel.register()
    first = made_by(panel)
    panel.choose(movingVolume=first["warped_volume"], movingSegmentation=None, movingLandmarks=None)
    panel.apply()
    panel.worker.finish()
    assert panel.status == "Done."
    assert not set(first.values()) & set(made_by(panel).values())


def test_what_the_second_run_did_not_make_is_not_part_of_its_result(panel):
    """Else the first run's segments and Jacobian would be shown with the second's transform."""
    panel.register()
    panel.ui.jacobianCheckBox.click()
    panel.choose(movingSegmentation=None, movingLandmarks=None)
    panel.apply()
    panel.worker.finish()
    assert set(made_by(panel)) == {"forward", "backward", "warped_volume", "distrust"}


def test_run_again_with_these_settings(panel, popups):
    nodes = panel.choose_phantom()
    panel.ui.stepsSpinBox.value = 5
    panel.ui.guideCheckBox.click()
    panel.apply()
    first = panel.worker.request
    panel.worker.finish()
    panel.ui.stepsSpinBox.value = 0
    panel.ui.guideCheckBox.click()
    panel.ui.presetComboBox.activated.emit(0)
    panel.choose(fixedSegmentation=None, fixedLandmarks=None, movingVolume=nodes["fixedVolume"])
    panel.ui.runAgainButton.click()
    assert panel.busy, panel.status
    again = panel.worker.request
    assert {**again, "folder": None, "settings": None} == {**first, "folder": None, "settings": None}
    assert panel.ui.fixedSegmentationSelector.currentNode() is nodes["fixedSegmentation"]
    assert panel.ui.movingVolumeSelector.currentNode() is nodes["movingVolume"]
    assert panel.ui.guideCheckBox.checked
    assert not popups.shown


def test_run_again_shows_the_preset_of_the_result(panel, tmp_path):
    panel.choose_phantom(*VOLUMES)
    file = tmp_path / "mine.trch"
    file.touch()
    pick(panel.ui.presetComboBox, "Custom weights")
    panel.ui.weightsPathLineEdit.currentPath = str(file)
    panel.apply()
    results = panel.worker.computed()
    registration = replace(results.registration, provenance={**results.registration.provenance})
    registration.provenance["settings"] = panel.worker.request["settings"]
    panel.worker.computed = lambda: replace(results, registration=registration)
    panel.worker.finish()
    panel.ui.weightsPathLineEdit.currentPath = str(tmp_path / "other.trch")
    pick(panel.ui.presetComboBox, "Offline, no download")
    panel.ui.runAgainButton.click()
    assert panel.busy, panel.status
    assert panel.worker.settings == Settings(model=str(file))
    assert panel.ui.presetComboBox.currentText == "Custom weights"
    assert panel.ui.weightsPathLineEdit.currentPath == str(file)
    assert panel.ui.methodSection.text == "Model and effort"


def test_run_again_without_the_volumes(panel, popups):
    nodes = panel.register()
    panel.scene.RemoveNode(nodes["movingVolume"])
    settle()
    if panel.ui.runAgainButton.enabled:
        panel.ui.runAgainButton.click()
        assert "moving volume" in panel.status
    assert not panel.busy
    assert not popups.shown


def test_the_time_of_one_run_improves_the_next_prediction(panel):
    panel.choose_phantom(*VOLUMES)
    before = panel.ui.preflightLabel.text
    panel.apply()
    panel.worker.ready()
    panel.worker.finish()
    assert panel.ui.preflightLabel.text != before
    assert float(slicer.app.userSettings().value("IconRegistration/speed")) < 1


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


# ------------------------------------------------------------------------------------------------ the real worker


class Clock:
    """Ticks while Qt's event loop runs: how often, for how many seconds, and the longest time that it did not."""

    def __init__(self):
        self.ticks, self.gap, self.seconds, self._last = 0, 0.0, 0.0, time.monotonic()
        self._timer = qt.QTimer()
        self._timer.interval = 20
        self._timer.timeout.connect(self._tick)
        self._timer.start()

    def _tick(self):
        now = time.monotonic()
        self.ticks, self.gap = self.ticks + 1, max(self.gap, now - self._last)
        self.seconds, self._last = self.seconds + now - self._last, now

    def stop(self):
        self._timer.stop()


@pytest.fixture
def real_panel(scene, monkeypatch, tmp_path):
    """The panel with the real worker process."""
    opened = Panel(monkeypatch, tmp_path, real_worker=True)
    yield opened
    opened.close()
    from IconRegistrationLib.ui import process

    process_until(lambda: not process._running)


def test_the_real_worker(real_panel):
    """One process: a run as in this process, a cancelled run, a killed one, and another process for the next."""
    panel = real_panel
    nodes = panel.choose_phantom(*VOLUMES, "movingSegmentation")  # no second one: comparing would only take time
    panel.ui.spacingSpinBox.value = 12
    panel.ui.stepsSpinBox.value = 3
    pick(panel.ui.alignmentComboBox, "Centre of mass")
    pick(panel.ui.deviceComboBox, "CPU")
    clock = Clock()
    panel.apply()
    process_until(lambda: not panel.busy)
    clock.stop()
    assert is_ready(panel)
    assert panel.status == "Done."
    assert clock.ticks > 20
    assert clock.gap < max(3, clock.seconds / 2), "the window did not react for so many seconds"
    made = made_by(panel)
    here = register_nodes(
        nodes["fixedVolume"],
        nodes["movingVolume"],
        moving_segmentation=nodes["movingSegmentation"],
        settings=Settings(spacing=12.0, steps=3, align="mass", device="cpu"),
    )
    for name in ("forward", "backward"):
        ours, theirs = field_from_node(made[name]), field_from_node(getattr(here, name))
        np.testing.assert_allclose(ours.grid.affine, theirs.grid.affine, atol=1e-6)
        np.testing.assert_allclose(ours.displacement, theirs.displacement, atol=1e-3)
    warped = image_from_node(made["warped_volume"]).array
    np.testing.assert_allclose(warped, image_from_node(here.warped_volume).array, atol=1)
    pid = panel.widget.panel.session._worker.info["pid"]

    def at_work():
        """A run that would take minutes, once it refines."""
        panel.ui.spacingSpinBox.value = 8
        panel.ui.stepsSpinBox.value = 2000
        panel.apply()
        process_until(lambda: panel.ui.progressBar.value > 0 and panel.status.startswith("Refine"))

    before, states = ids(panel.scene), state_of([*nodes.values(), *made.values()])
    at_work()
    assert panel.widget.panel.session._worker.info["pid"] == pid, "the same warm process"
    panel.ui.applyButton.click()
    process_until(lambda: not panel.busy)
    assert is_ready(panel)
    assert panel.status == "Cancelled; nothing was changed."

    at_work()
    os.kill(panel.widget.panel.session._worker.info["pid"], signal.SIGKILL)
    process_until(lambda: not panel.busy)
    assert is_ready(panel)
    assert "The system killed the worker" in panel.status
    assert ids(panel.scene) == before
    assert {i: s[2:] for i, s in state_of([*nodes.values(), *made.values()]).items()} == {
        i: s[2:] for i, s in states.items()
    }
    panel.apply()
    panel.ui.applyButton.click()
    process_until(lambda: not panel.busy)
    assert is_ready(panel)


def test_the_real_worker_of_a_python_without_torch(real_panel, tmp_path):
    """What a user sees who names a bare Python: which package is missing, and the line that installs it there."""
    panel = real_panel
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "torch.py").write_text("raise ImportError(\"No module named 'torch'\")")
    wrapper = tmp_path / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH="{bare}:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    wrapper.chmod(0o755)
    panel.choose_phantom(*VOLUMES)
    panel.ui.pythonLineEdit.text = str(wrapper)
    panel.apply()
    process_until(lambda: not panel.busy)
    assert is_ready(panel)
    assert "No module named 'torch'" in panel.status
    assert dependencies.instruction(str(wrapper)) in panel.status
    assert "Traceback" in panel.ui.statusLabel.toolTip


def test_another_parameter_node_is_made_where_a_script_removes_the_panels(panel):
    nodes = panel.choose_phantom(*VOLUMES)
    panel.scene.RemoveNode(panel.parameters.parameterNode)
    assert panel.ui.fixedVolumeSelector.currentNode() is None
    panel.choose(fixedVolume=nodes["fixedVolume"])
    assert panel.parameters.fixedVolume is nodes["fixedVolume"]
