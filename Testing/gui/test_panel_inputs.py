"""What is chosen in the panel is what the worker is asked for; what cannot be registered is said at once."""

from dataclasses import replace

import numpy as np
import pytest
import qt
import slicer
from panel import Panel, phantom, tick, ticked
from slicerharness import pick, settle

from IconRegistrationLib.mrml.volumes import node_from_image
from IconRegistrationLib.networks import catalog
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.spatial.geometry import flip_vectors
from IconRegistrationLib.ui.choices import Alignment
from IconRegistrationLib.ui.python import python_command

VOLUMES = ("fixedVolume", "movingVolume")
SEGMENTATIONS = ("fixedSegmentation", "movingSegmentation")


def reason(panel) -> str:
    """Why the Apply button is disabled."""
    assert not panel.ui.applyButton.enabled
    assert panel.ui.applyButton.text == "Apply"
    return panel.ui.applyButton.toolTip


def names_of(segmentation) -> list[str]:
    return [segment.name for segment in segmentation.segments]


def select(box, choice):
    """The entry of a combo box that stands for a member of ui.choices."""
    pick(box, choice.label())


@pytest.fixture
def weights(monkeypatch, tmp_path):
    """A folder in which every network's weights lie, as far as a look at file names can tell."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for card in catalog.shipped_cards().values():
        if card.url:
            (folder / card.filename).touch()
    monkeypatch.setenv(catalog.WEIGHTS_VARIABLE, str(folder))
    return folder


# ------------------------------------------------------------------------------------------------ volumes


def test_apply_says_what_is_missing(panel):
    assert reason(panel) == "Choose a fixed and a moving volume."
    nodes = panel.add_phantom()
    assert reason(panel) == "Choose a fixed and a moving volume.", "nothing is chosen for the user"
    panel.choose(movingVolume=nodes["movingVolume"])
    assert reason(panel) == "Choose a fixed volume."
    assert panel.ui.preflightLabel.text == ""
    panel.choose(fixedVolume=nodes["fixedVolume"])
    assert panel.ui.applyButton.enabled
    assert "39 x 28 x 30" in panel.ui.preflightLabel.text
    assert panel.ui.applyButton.toolTip in panel.ui.preflightLabel.text
    panel.choose(movingVolume=None)
    assert reason(panel) == "Choose a moving volume."
    assert panel.ui.preflightLabel.text == ""


def test_two_volumes_are_enough(panel):
    nodes = panel.choose_phantom(*VOLUMES)
    panel.apply()
    inputs = panel.worker.inputs
    np.testing.assert_array_equal(inputs.fixed.array, phantom().fixed.array)
    np.testing.assert_array_equal(inputs.moving.array, phantom().moving.array)
    np.testing.assert_allclose(inputs.moving.grid.affine, phantom().moving.grid.affine, atol=1e-9)
    assert (inputs.fixed.name, inputs.moving.name) == tuple(nodes[name].GetName() for name in VOLUMES)
    others = {name: value for name, value in vars(inputs).items() if name not in ("fixed", "moving")}
    assert not [name for name, value in others.items() if value is not None]
    assert panel.worker.settings == Settings()
    assert panel.worker.request["options"] == {
        "guide": False,
        "carry": True,
        "compare": True,
        "moving_resolution": False,
    }


def test_every_node_that_is_chosen_arrives(panel):
    panel.choose_phantom()
    start = panel.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "roughly there")
    matrix = np.eye(4)
    matrix[:3, 3] = 3, 4, 5
    slicer.util.updateTransformMatrixFromArray(start, matrix)
    box = panel.scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "liver only")
    box.SetSize(100, 80, 60)
    box.SetCenter(10, 20, 30)
    settle()
    panel.choose(initialTransform=start, region=box)
    panel.apply()
    inputs = panel.worker.inputs
    assert names_of(inputs.fixed_segmentation) == names_of(phantom().fixed_segmentation)
    assert names_of(inputs.moving_segmentation) == names_of(phantom().moving_segmentation)
    assert inputs.fixed_landmarks.labels == phantom().fixed_landmarks.labels
    np.testing.assert_allclose(inputs.moving_landmarks.points, phantom().moving_landmarks.points, atol=1e-6)
    np.testing.assert_allclose(inputs.initial[:3, 3], -flip_vectors(matrix[:3, 3]))
    np.testing.assert_allclose(inputs.region.extent, (100, 80, 60))
    np.testing.assert_allclose(inputs.region.centre, flip_vectors(np.array([10.0, 20, 30])))
    assert (inputs.fixed_mask, inputs.moving_mask) == (None, None)


def test_nodes_can_be_unchosen_and_deleted(panel):
    nodes = panel.choose_phantom()
    panel.choose(fixedLandmarks=None, fixedSegmentation=None)
    panel.scene.RemoveNode(nodes["movingLandmarks"])
    panel.scene.RemoveNode(nodes["movingSegmentation"])
    settle()
    panel.apply()
    assert panel.worker.inputs.moving_landmarks is None
    assert panel.worker.inputs.fixed_segmentation is None
    assert not panel.ui.rolesWidget.isVisibleTo(panel.page)


def test_a_deleted_volume_is_chosen_no_more(panel):
    nodes = panel.choose_phantom(*VOLUMES)
    panel.scene.RemoveNode(nodes["fixedVolume"])
    settle()
    assert panel.ui.fixedVolumeSelector.currentNode() is None
    assert reason(panel) == "Choose a fixed volume."


# ------------------------------------------------------------------------------------------------ what cannot be used


def test_a_volume_without_voxels(panel):
    nodes = panel.choose_phantom(*VOLUMES)
    empty = panel.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing yet")
    settle()
    panel.choose(fixedVolume=empty)
    assert "'nothing yet' has no voxels" in reason(panel)
    assert reason(panel) in panel.ui.preflightLabel.text
    marked = panel.ui.preflightLabel.styleSheet
    assert marked
    empty.SetAndObserveImageData(nodes["fixedVolume"].GetImageData())
    settle()
    assert panel.ui.applyButton.enabled, "it has been loaded since"
    assert panel.ui.preflightLabel.styleSheet != marked


def test_a_segmentation_without_segments_and_its_first_segment(panel):
    panel.choose_phantom(*VOLUMES)
    empty = panel.scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "to be drawn")
    settle()
    panel.choose(fixedSegmentation=empty)
    assert "'to be drawn'" in reason(panel)
    assert ticked(panel.ui.fixedSegmentsList) == {}
    panel.choose(fixedSegmentation=None)
    assert panel.ui.applyButton.enabled


def test_landmarks_without_a_common_name(panel):
    nodes = panel.choose_phantom()
    points = nodes["movingLandmarks"]
    first, count = points.GetNthControlPointLabel(0), points.GetNumberOfControlPoints()
    for number in range(count):
        points.SetNthControlPointLabel(number, f"unknown {number}")
    settle()
    assert "No landmark has the same name" in reason(panel)
    points.SetNthControlPointLabel(0, first)
    settle()
    assert panel.ui.applyButton.enabled
    points.RemoveAllControlPoints()
    settle()
    assert "No landmark has the same name" in reason(panel)
    points.AddControlPoint([0, 0, 0], first)
    settle()
    assert panel.ui.applyButton.enabled


@pytest.mark.parametrize("parameter", ["fixedVolume", "movingVolume", "movingSegmentation"])
def test_a_parent_transform(panel, parameter):
    nodes = panel.choose_phantom()
    before = panel.ui.preflightLabel.text
    shift = panel.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "table shift")
    matrix = np.eye(4)
    matrix[:3, 3] = 60
    slicer.util.updateTransformMatrixFromArray(shift, matrix)
    nodes[parameter].SetAndObserveTransformNodeID(shift.GetID())
    settle()
    assert panel.ui.applyButton.enabled
    if parameter in VOLUMES:
        assert panel.ui.preflightLabel.text != before, "the overlap is another one"
    bend = panel.scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "bend")
    bend.SetAndObserveTransformFromParent(slicer.vtkOrientedBSplineTransform())
    nodes[parameter].SetAndObserveTransformNodeID(bend.GetID())
    settle()
    assert "'bend' is not linear" in reason(panel)
    nodes[parameter].SetAndObserveTransformNodeID(None)
    settle()
    assert panel.ui.preflightLabel.text == before


def test_an_initial_transform_that_bends(panel):
    panel.choose_phantom(*VOLUMES)
    bend = panel.scene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "bend")
    bend.SetAndObserveTransformFromParent(slicer.vtkOrientedBSplineTransform())
    settle()
    panel.choose(initialTransform=bend)
    assert "'bend' is not linear" in reason(panel)
    panel.choose(initialTransform=None)
    assert panel.ui.applyButton.enabled


def test_what_happens_to_the_nodes_after_they_were_chosen(panel):
    nodes = panel.choose_phantom()
    volume, before = nodes["movingVolume"], panel.ui.preflightLabel.text
    values = slicer.util.arrayFromVolume(volume)
    kept = values.copy()
    values[:] = 7
    slicer.util.arrayFromVolumeModified(volume)
    settle()
    assert "is constant" in reason(panel)
    values[:] = kept
    slicer.util.arrayFromVolumeModified(volume)
    settle()
    assert panel.ui.preflightLabel.text == before
    volume.SetSpacing(2, 2, 2)
    settle()
    assert "at 2 mm" in panel.ui.preflightLabel.text
    nodes["fixedVolume"].SetName("the night before")
    settle()
    panel.apply()
    assert panel.worker.inputs.fixed.name == "the night before"
    np.testing.assert_allclose(panel.worker.inputs.moving.grid.spacing, 2)


def test_the_volumes_of_another_result_are_not_looked_at_again_and_again(panel, monkeypatch):
    """A pass over all voxels at every change of a control would be felt."""
    from IconRegistrationLib.ui import checking

    looks = []
    facts = checking.ImageFacts
    monkeypatch.setattr(facts, "of", staticmethod(lambda image, of=facts.of: looks.append(image.name) or of(image)))
    panel.choose_phantom()
    assert len(looks) == 2
    panel.ui.stepsSpinBox.value = 7
    panel.ui.guideCheckBox.click()
    tick(panel.ui.movingSegmentsList, names_of(phantom().moving_segmentation)[0], on=False)
    settle()
    assert len(looks) == 2


# ------------------------------------------------------------------------------------------------ segments, roles


def test_segments_that_are_not_ticked_take_no_part(panel):
    panel.choose_phantom()
    all_names = names_of(phantom().fixed_segmentation)
    assert ticked(panel.ui.fixedSegmentsList) == dict.fromkeys(all_names, True)
    tick(panel.ui.fixedSegmentsList, all_names[0], on=False)
    tick(panel.ui.movingSegmentsList, all_names[1], on=False)
    panel.apply()
    assert names_of(panel.worker.inputs.fixed_segmentation) == all_names[1:]
    assert names_of(panel.worker.inputs.moving_segmentation) == [all_names[0], *all_names[2:]]
    panel.worker.finish()
    tick(panel.ui.fixedSegmentsList, all_names[0])
    panel.apply()
    assert names_of(panel.worker.inputs.fixed_segmentation) == all_names


def test_no_segment_is_ticked(panel):
    """Then there is nothing to carry and to compare; guidance and focus have nothing to go by."""
    panel.choose_phantom()
    for which in (panel.ui.fixedSegmentsList, panel.ui.movingSegmentsList):
        for name in ticked(which):
            tick(which, name, on=False)
    panel.apply()
    for segmentation in (panel.worker.inputs.fixed_segmentation, panel.worker.inputs.moving_segmentation):
        assert segmentation is None or not segmentation.segments
    panel.worker.finish()
    assert panel.status.startswith("Done")
    panel.ui.guideCheckBox.click()
    assert "has no segments" in reason(panel)
    panel.ui.guideCheckBox.click()
    panel.ui.focusCheckBox.click()
    assert "is empty" in reason(panel)


def test_the_preflight_follows_the_ticks(panel):
    panel.choose_phantom()
    panel.ui.guideCheckBox.click()
    assert panel.ui.applyButton.enabled
    for name in ticked(panel.ui.fixedSegmentsList):
        tick(panel.ui.fixedSegmentsList, name, on=False)
    assert "has no segments" in reason(panel)


def test_segments_that_are_drawn_later_take_part(panel):
    nodes = panel.choose_phantom()
    segmentation = nodes["fixedSegmentation"].GetSegmentation()
    first = segmentation.GetNthSegment(0).GetName()
    added = slicer.vtkSegment()
    added.DeepCopy(segmentation.GetNthSegment(1))
    added.SetName("drawn just now")
    segmentation.AddSegment(added)
    settle()
    assert ticked(panel.ui.fixedSegmentsList)["drawn just now"]
    segmentation.GetNthSegment(0).SetName("renamed")
    settle()
    assert first not in ticked(panel.ui.fixedSegmentsList)
    assert ticked(panel.ui.fixedSegmentsList)["renamed"]
    panel.apply()
    assert "drawn just now" in names_of(panel.worker.inputs.fixed_segmentation)


def test_a_ticked_segment_that_is_deleted(panel):
    nodes = panel.choose_phantom()
    names = names_of(phantom().fixed_segmentation)
    tick(panel.ui.fixedSegmentsList, names[0], on=False)
    segmentation = nodes["fixedSegmentation"].GetSegmentation()
    segmentation.RemoveSegment(segmentation.GetSegmentIdBySegmentName(names[1]))
    settle()
    assert ticked(panel.ui.fixedSegmentsList) == {names[0]: False, **dict.fromkeys(names[2:], True)}
    panel.apply()
    assert names_of(panel.worker.inputs.fixed_segmentation) == names[2:]


def test_another_segmentation_starts_with_all_of_its_segments(panel):
    nodes = panel.choose_phantom()
    names = names_of(phantom().fixed_segmentation)
    tick(panel.ui.fixedSegmentsList, names[0], on=False)
    panel.choose(fixedSegmentation=nodes["movingSegmentation"])
    assert ticked(panel.ui.fixedSegmentsList) == dict.fromkeys(names, True)
    assert panel.ui.applyButton.enabled


def test_roles_are_offered_where_they_can_be_played(panel):
    nodes = panel.choose_phantom(*VOLUMES)
    ui = panel.ui
    assert not ui.rolesWidget.isVisibleTo(panel.page)
    panel.choose(fixedSegmentation=nodes["fixedSegmentation"])
    assert ui.rolesWidget.isVisibleTo(panel.page)
    boxes = ("carryCheckBox", "compareCheckBox", "focusCheckBox", "guideCheckBox")
    assert [getattr(ui, name).enabled for name in boxes] == [False, False, True, False]
    panel.choose(movingSegmentation=nodes["movingSegmentation"])
    assert [getattr(ui, name).enabled for name in boxes] == [True] * 4


@pytest.mark.parametrize("role", ["guide", "carry", "compare"])
def test_a_role_is_an_option_of_the_request(panel, role):
    panel.choose_phantom()
    getattr(panel.ui, role + "CheckBox").click()
    panel.apply()
    plain = {"guide": False, "carry": True, "compare": True, "moving_resolution": False}
    assert panel.worker.request["options"] == {**plain, role: not plain[role]}


def test_focus_makes_masks_of_the_ticked_segments(panel):
    panel.choose_phantom(*VOLUMES, "movingSegmentation")
    names = names_of(phantom().moving_segmentation)
    for name in names[1:]:
        tick(panel.ui.movingSegmentsList, name, on=False)
    panel.ui.focusCheckBox.click()
    panel.apply()
    inputs, segmentation = panel.worker.inputs, phantom().moving_segmentation
    assert inputs.fixed_mask is None
    (first,) = [segment for segment in segmentation.segments if segment.name == names[0]]
    assert inputs.moving_mask.array.sum() == segmentation.mask(first).sum() > 0


def test_guidance_waits_for_the_second_segmentation(panel):
    panel.choose_phantom(*VOLUMES, *SEGMENTATIONS)
    panel.ui.guideCheckBox.click()
    panel.choose(fixedSegmentation=None)
    panel.apply()
    assert panel.worker.request["options"]["guide"] is False


# ------------------------------------------------------------------------------------------------ model and effort


def test_every_choice_of_every_list_reaches_the_worker(panel):
    from IconRegistrationLib.ui import choices

    panel.choose_phantom(*VOLUMES)
    lists = {
        "alignment": ("align", choices.Alignment),
        "refinement": ("refine", choices.Refinement),
        "similarity": ("similarity", choices.SimilarityMeasure),
        "device": ("device", choices.Device),
        "precision": ("precision", choices.Precision),
    }
    for control, (field, kind) in lists.items():
        box = getattr(panel.ui, control + "ComboBox")
        assert box.count == len(kind)
        for choice in kind:
            select(box, choice)
            if choice is choices.Refinement.NETWORK:
                assert "model is 'none'" in reason(panel)
                continue
            panel.apply()
            assert panel.worker.settings == replace(Settings(), **{field: choice.word})
            panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
        select(box, next(iter(kind)))


@pytest.mark.parametrize(
    ("control", "field", "value"), [("steps", "steps", 7), ("spacing", "spacing", 3.5), ("padding", "padding", 12.0)]
)
def test_every_number_reaches_the_worker(panel, control, field, value):
    panel.choose_phantom(*VOLUMES)
    box = getattr(panel.ui, control + "SpinBox")
    for number, wanted in ((value, value), (0, getattr(Settings(), field))):
        box.value = number
        panel.apply()
        assert panel.worker.settings == replace(Settings(), **{field: wanted})
        panel.worker.fail("cancelled", "Cancelled; nothing was changed.")


def test_a_gpu_that_the_worker_does_not_have(panel):
    from IconRegistrationLib.ui import choices

    panel.choose_phantom(*VOLUMES)
    select(panel.ui.deviceComboBox, choices.Device.CUDA)
    assert panel.ui.applyButton.enabled, "nobody knows yet"
    panel.apply()
    panel.worker.ready()
    panel.worker.fail("input", "There is no GPU here.")
    assert not panel.ui.applyButton.enabled
    select(panel.ui.deviceComboBox, choices.Device.CPU)
    assert panel.ui.applyButton.enabled


@pytest.mark.parametrize(("box", "output"), [("jacobianCheckBox", "Jacobian of"), ("distrustCheckBox", "distrust of")])
def test_volumes_that_nobody_asked_for_are_not_made(panel, box, output):
    def made():
        names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
        return [name for name in names if output in name]

    panel.choose_phantom(*VOLUMES)
    getattr(panel.ui, box).click()
    panel.apply()
    panel.worker.finish()
    assert made() == []
    getattr(panel.ui, box).click()
    panel.apply()
    panel.worker.finish()
    assert len(made()) == 1


def test_the_fine_volume_is_an_option(panel):
    panel.choose_phantom(*VOLUMES)
    panel.ui.fineCheckBox.click()
    panel.apply()
    assert panel.worker.request["options"]["moving_resolution"] is True
    panel.worker.finish()
    names = [node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]
    assert "Phantom exhale registered to Phantom inhale, fine" in names


# ------------------------------------------------------------------------------------------------ presets


def titles(panel) -> list[str]:
    return [panel.ui.presetComboBox.itemText(n) for n in range(panel.ui.presetComboBox.count)]


def is_modified(panel) -> bool:
    return "preset modified" in panel.ui.methodSection.text


def test_the_presets_that_are_promised(panel):
    promised = [
        "Offline, no download",
        "Built-in compact network",
        "uniGradICON",
        "uniGradICON + refinement",
        "multiGradICON: different modalities",
        "Custom weights",
    ]
    assert titles(panel) == promised
    assert panel.ui.presetComboBox.currentText == promised[0]
    assert panel.ui.advancedSection.collapsed
    assert not panel.ui.deletePresetButton.enabled
    for title in promised:
        pick(panel.ui.presetComboBox, title)
        assert len(panel.ui.presetComboBox.toolTip) > 40


@pytest.mark.parametrize(
    ("title", "settings"),
    [
        ("Offline, no download", Settings()),
        ("uniGradICON", Settings(model="unigradicon")),
        ("uniGradICON + refinement", Settings(model="unigradicon", refine="field")),
        ("multiGradICON: different modalities", Settings(model="multigradicon")),
    ],
)
def test_a_preset_is_what_runs(panel, weights, title, settings):
    panel.choose_phantom(*VOLUMES)
    panel.ui.stepsSpinBox.value = 9
    assert is_modified(panel)
    pick(panel.ui.presetComboBox, title)
    assert not is_modified(panel)
    panel.apply()
    assert panel.worker.settings == settings
    panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
    panel.ui.paddingSpinBox.value = 5
    assert is_modified(panel)
    assert panel.ui.presetComboBox.currentText == title


def test_custom_weights(panel, tmp_path):
    panel.choose_phantom(*VOLUMES)
    ui = panel.ui
    assert not ui.weightsPathLineEdit.enabled
    pick(ui.presetComboBox, "Custom weights")
    assert ui.weightsPathLineEdit.enabled
    assert "No weights file is chosen" in reason(panel)
    file = tmp_path / "mine.trch"
    file.touch()
    ui.weightsPathLineEdit.currentPath = str(file)
    settle()
    assert not is_modified(panel)
    panel.apply()
    assert panel.worker.settings == Settings(model=str(file))
    panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
    pick(ui.presetComboBox, "Offline, no download")
    panel.apply()
    assert panel.worker.settings == Settings()
    panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
    pick(ui.presetComboBox, "Custom weights")
    panel.apply()
    assert panel.worker.settings == Settings(model=str(file)), "the file is remembered"
    panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
    ui.weightsPathLineEdit.currentPath = str(tmp_path / "nowhere.trch")
    settle()
    assert "nowhere.trch" in reason(panel)


def test_own_presets_are_saved_used_and_deleted(panel, monkeypatch, popups):
    panel.choose_phantom(*VOLUMES)
    panel.ui.stepsSpinBox.value = 9
    monkeypatch.setattr(qt.QInputDialog, "getText", lambda *_: " Quick ")
    panel.ui.savePresetButton.click()
    assert titles(panel)[-1] == panel.ui.presetComboBox.currentText == "Quick"
    assert not is_modified(panel)
    pick(panel.ui.presetComboBox, "Offline, no download")
    assert panel.ui.stepsSpinBox.value == 0
    pick(panel.ui.presetComboBox, "Quick")
    panel.apply()
    assert panel.worker.settings == Settings(steps=9)
    panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
    panel.ui.deletePresetButton.click()
    assert "Quick" not in titles(panel)
    assert panel.ui.presetComboBox.currentText == "Offline, no download"
    assert not popups.shown


def test_a_preset_needs_a_name_of_its_own(panel, monkeypatch, popups):
    before = titles(panel)
    for name, said in (("", ""), ("uniGradICON", "is built in"), ("   ", "has no name")):
        monkeypatch.setattr(qt.QInputDialog, "getText", lambda *_, name=name: name)
        panel.ui.savePresetButton.click()
        assert said in panel.status
        assert titles(panel) == before
    assert not popups.shown


def test_own_presets_belong_to_the_user_and_not_to_the_scene(panel, monkeypatch):
    monkeypatch.setattr(qt.QInputDialog, "getText", lambda *_: "Quick")
    panel.ui.stepsSpinBox.value = 9
    panel.ui.savePresetButton.click()
    panel.scene.Clear(False)
    settle()
    assert "Quick" in titles(panel)
    assert panel.ui.presetComboBox.currentText == "Offline, no download"
    pick(panel.ui.presetComboBox, "Quick")
    panel.parameters.preset = "of a colleague"  # as a scene from another computer says
    settle()
    assert panel.ui.presetComboBox.currentIndex == -1
    assert panel.ui.stepsSpinBox.value == 9, "what it set is still there"
    assert not panel.ui.deletePresetButton.enabled


# ------------------------------------------------------------------------------------------------ this computer


def test_another_python_and_folder(panel, tmp_path, monkeypatch):
    python = tmp_path / "python of a colleague"
    python.touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    panel.choose_phantom(*VOLUMES)
    panel.ui.pythonLineEdit.text = f" {python} "
    panel.ui.pythonLineEdit.editingFinished.emit()
    panel.ui.workingFolderLineEdit.currentPath = str(elsewhere)
    panel.apply()
    assert panel.worker.command == [str(python)]
    assert panel.worker.folder.parent == elsewhere
    panel.worker.fail("cancelled", "Cancelled; nothing was changed.")
    assert list(elsewhere.iterdir()) == []

    stored = {key: slicer.app.userSettings().value(key) for key in slicer.app.userSettings().allKeys()}
    assert {str(python), str(elsewhere)} <= set(stored.values())
    first = panel.worker
    panel.ui.pythonLineEdit.text = ""
    panel.ui.pythonLineEdit.editingFinished.emit()
    panel.apply()
    assert first.stopped, "it is another Python's"
    assert panel.worker.command == python_command("")


def test_the_computer_s_settings_are_there_again(panel, monkeypatch, tmp_path):
    panel.ui.pythonLineEdit.text = "/opt/python"
    panel.ui.pythonLineEdit.editingFinished.emit()
    panel.page.exit()
    panel.widget.cleanup()
    panel.page.reload()
    assert panel.ui.pythonLineEdit.text == "/opt/python"
    assert panel.ui.workingFolderLineEdit.currentPath == str(tmp_path)


def test_the_controls_let_go_of_the_parameters_while_another_module_is_open(panel):
    pick(panel.ui.alignmentComboBox, "Centre of mass")
    panel.ui.stepsSpinBox.value = 7
    panel.page.exit()
    panel.ui.stepsSpinBox.value = 9
    panel.page.enter()
    assert panel.ui.stepsSpinBox.value == panel.parameters.steps == 7
    assert panel.parameters.alignment is Alignment.MASS


@pytest.mark.parametrize("text", ["/nowhere/at/all", "a 'b"])
def test_a_python_that_is_none(panel, text):
    """The process says the first when it is started, the panel the second at once."""
    panel.choose_phantom(*VOLUMES)
    panel.ui.pythonLineEdit.text = text
    panel.ui.applyButton.click()
    if panel.busy:
        assert panel.worker.command == [text]
        panel.worker.fail("worker", "The worker cannot be started.")
    else:
        assert "not closed" in panel.status
    assert panel.ui.applyButton.enabled


def test_a_working_folder_that_is_not_there(panel, tmp_path, popups):
    panel.choose_phantom(*VOLUMES)
    panel.ui.workingFolderLineEdit.currentPath = str(tmp_path / "nowhere")
    panel.ui.applyButton.click()
    assert not panel.busy
    assert str(tmp_path / "nowhere") in panel.status
    assert not popups.shown, "it is no unexpected failure"
    assert panel.ui.applyButton.enabled


def test_all_of_it_is_kept_with_the_scene(panel, monkeypatch, tmp_path):
    """The parameter node is the panel's only memory: another page shows the same and asks for the same."""
    panel.choose_phantom()
    names = names_of(phantom().fixed_segmentation)
    tick(panel.ui.fixedSegmentsList, names[0], on=False)
    panel.ui.guideCheckBox.click()
    (tmp_path / "mine.trch").touch()
    pick(panel.ui.presetComboBox, "Custom weights")
    panel.ui.weightsPathLineEdit.currentPath = str(tmp_path / "mine.trch")
    panel.ui.stepsSpinBox.value = 4
    request = panel.request()
    panel.close()
    again = Panel(monkeypatch, tmp_path)
    try:
        assert again.request() == request
        assert request.settings == Settings(steps=4, model=str(tmp_path / "mine.trch"))
        assert again.ui.weightsPathLineEdit.currentPath == str(tmp_path / "mine.trch")
        assert ticked(again.ui.fixedSegmentsList)[names[0]] is False
    finally:
        again.close()


def test_a_label_map_is_a_volume_too(panel):
    nodes = panel.choose_phantom(*VOLUMES)
    labels = node_from_image(panel.scene, phantom().moving, "labels", like=nodes["movingVolume"])
    settle()
    panel.choose(movingVolume=labels)
    panel.apply()
    assert panel.worker.inputs.moving.name == "labels"
