"""A registration seen from the panel: it runs, it ends in one of many ways, and each time the panel is ready again."""

import time
from dataclasses import replace

import pytest
import qt
import slicer
from panel import CPU, ENDS, MADE, VOLUMES, ids, is_ready, made_by, phantom, state_of, tick, trust_rows
from slicerharness import pick, settle

from IconRegistrationLib.mrml.registration import request_of
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import dependencies

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
