"""The Review section: trust card, labels and their export; and everything goes back as it was."""

import csv
import re

import numpy as np
import pytest
import qt
import slicer
from panel import Panel, phantom, tick
from reviewed import (
    Reviewed,
    assert_as_before,
    composite,
    differences,
    grid,
    ids,
    layers,
    looks,
    observers,
    results,
    scale,
)
from slicerharness import pick, process_until, settle
from vtk.util.numpy_support import vtk_to_numpy

from IconRegistrationLib.mrml.scene import load_scene, nodes_of_class, save_scene
from IconRegistrationLib.mrml.segmentations import segmentation_from_node
from IconRegistrationLib.mrml.transforms import field_from_node
from IconRegistrationLib.mrml.volumes import image_from_node
from IconRegistrationLib.spatial.field import warp_segmentation


@pytest.fixture
def reviewed(panel):
    return Reviewed(panel)


# ----------------------------------------------------------------------------------------------------------- trust card


def test_the_trust_card_says_every_number_and_its_verdict(reviewed):
    from IconRegistrationLib.ui.status import LEVEL_COLORS

    table, report = reviewed.ui.trustTable, results().report
    assert table.rowCount == len(report.verdicts) + len(report.rows())
    for row, verdict in enumerate(report.verdicts):
        assert table.item(row, 0).text() == verdict.measure
        assert float(table.item(row, 2).text()) == pytest.approx(verdict.value, rel=1e-3)
        assert table.item(row, 0).toolTip() == verdict.meaning != ""
        assert table.item(row, 3).background().color().name() == LEVEL_COLORS[verdict.level]
        assert table.item(row, 3).text() != ""
    tre = next(row for row, v in enumerate(report.verdicts) if v.measure == "Target registration error")
    assert float(table.item(tre, 1).text()) == pytest.approx(report.target_registration_error.before, rel=1e-3)
    heights = {table.rowHeight(row) for row in range(table.rowCount)}
    assert len(heights) == 1


def test_the_trust_card_as_csv(reviewed, monkeypatch, tmp_path):
    path = tmp_path / "card.csv"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: str(path))
    reviewed.click("exportCsvButton")
    rows = list(csv.reader(path.open(encoding="utf-8")))
    text = path.read_text(encoding="utf-8")
    assert len(rows) > len(results().report.rows())
    assert all(row.measure in text for row in results().report.rows())
    assert str(path) in reviewed.panel.status
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *_: "")
    path.unlink()
    reviewed.click("exportCsvButton")
    assert not path.exists()


def test_the_trust_card_as_a_table_node(reviewed):
    reviewed.click("exportTableButton")
    (table,) = nodes_of_class(slicer.mrmlScene, "vtkMRMLTableNode")
    report = results().report
    assert table.GetNumberOfRows() == len(report.verdicts) + len(report.rows())
    assert table.GetCellText(0, 2) == report.verdicts[0].measure
    assert table.GetCellText(0, 1) == report.verdicts[0].level
    reviewed.click("exportTableButton")
    assert nodes_of_class(slicer.mrmlScene, "vtkMRMLTableNode") == [table]


# -------------------------------------------------------------------------------------------------------- label warping


def live_labels():
    hidden = [s for s in nodes_of_class(slicer.mrmlScene, "vtkMRMLSegmentationNode") if s.GetHideFromEditors()]
    return hidden[0] if hidden else None


def names_in(node) -> list[str]:
    segmentation = node.GetSegmentation()
    return [segmentation.GetSegment(identifier).GetName() for identifier in segmentation.GetSegmentIDs()]


def test_ticked_labels_are_warped_at_once(reviewed):
    n, ui = reviewed.n, reviewed.ui
    tick(ui.labelsList, "liver")
    tick(ui.labelsList, "spleen")
    settle()
    live = live_labels()
    assert sorted(names_in(live)) == ["liver", "spleen"]
    assert live.GetParentTransformNode() is reviewed.shown_under(n.forward)
    assert n.moving_segmentation.GetParentTransformNode() is None
    source = n.moving_segmentation.GetSegmentation()
    identifier = source.GetSegmentIdBySegmentName("liver")
    name = slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()
    segments = [segmentation.GetSegment(identifier) for segmentation in (source, live.GetSegmentation())]
    drawn = [vtk_to_numpy(each.GetRepresentation(name).GetPointData().GetScalars()) for each in segments]
    counts = [(voxels == each.GetLabelValue()).sum() for voxels, each in zip(drawn, segments, strict=True)]
    assert counts[0] == counts[1] > 0  # nothing is resampled
    bounds = {}
    for amount in (0, 100):
        reviewed.drag("warpAmountSlider", amount)
        assert reviewed.amount == amount / 100
        bounds[amount] = [0.0] * 6
        live.GetRASBounds(bounds[amount])
    assert np.abs(np.subtract(bounds[0], bounds[100])).max() > 3
    tick(ui.labelsList, "liver", on=False)
    assert names_in(live) == ["spleen"]
    tick(ui.labelsList, "spleen", on=False)
    settle()
    assert live_labels() is None
    assert not ui.hardenButton.enabled


def test_harden_resamples_once_whatever_is_shown(reviewed):
    n, panel = reviewed.n, reviewed.panel
    reviewed.choose("shownComboBox", "Live, under the transform")
    tick(reviewed.ui.labelsList, "liver")
    tick(reviewed.ui.labelsList, "left kidney")
    reviewed.drag("warpAmountSlider", 40)
    there = set(nodes_of_class(panel.scene, "vtkMRMLSegmentationNode"))
    reviewed.click("hardenButton")
    assert panel.busy, panel.status
    assert panel.worker.request["request"] == "warp_segmentation"
    # the look at the result goes on while the worker works
    assert reviewed.amount == 0.4
    assert n.moving_segmentation.GetParentTransformNode() is reviewed.shown_under(n.forward)
    panel.worker.ready()
    assert reviewed.amount == 0.4
    assert n.moving_segmentation.GetParentTransformNode() is reviewed.shown_under(n.forward)
    panel.worker.finish()
    settle()
    (made,) = set(nodes_of_class(panel.scene, "vtkMRMLSegmentationNode")) - there
    assert_hardened(reviewed, made, ["liver", "left kidney"])
    assert made.GetName() in panel.status


def assert_hardened(reviewed, made, names):
    n = reviewed.n
    given = phantom().moving_segmentation
    identifiers = [given.by_name()[name].identifier for name in names]
    expected = warp_segmentation(given.only(identifiers), results().registration.forward, phantom().fixed.grid)
    got = segmentation_from_node(made)
    assert sorted(got.by_name()) == sorted(names)
    assert got.grid.is_close(image_from_node(n.fixed).grid)
    for name in names:
        mask = expected.mask(expected.by_name()[name])
        assert mask.sum() > 50
        np.testing.assert_array_equal(got.mask(got.by_name()[name]), mask)


def test_harden_by_the_real_worker(scene, monkeypatch, tmp_path):
    panel = Panel(monkeypatch, tmp_path, real_worker=True)
    try:
        reviewed = Reviewed(panel)
        tick(reviewed.ui.labelsList, "liver")
        there = set(nodes_of_class(scene, "vtkMRMLSegmentationNode"))
        reviewed.click("hardenButton")
        process_until(lambda: not panel.busy)
        (made,) = set(nodes_of_class(scene, "vtkMRMLSegmentationNode")) - there
        assert_hardened(reviewed, made, ["liver"])
    finally:
        panel.close()
    assert not list(tmp_path.glob("IconRegistration-*"))


# ------------------------------------------------------------------------------------------------- everything goes back


def look_at_everything(reviewed):
    """Change what can be changed."""
    reviewed.choose("shownComboBox", "Live, under the transform")
    reviewed.drag("warpAmountSlider", 30)
    reviewed.drag("blendSlider", 70)
    reviewed.choose("deformationComboBox", "Grid")
    reviewed.click("deformationIn3DCheckBox")
    reviewed.choose("overlayComboBox", "Local distrust [mm]")
    reviewed.click("outlinesCheckBox")
    tick(reviewed.ui.labelsList, "liver")
    settle()


def look_at_the_rest(reviewed):
    reviewed.choose("overlayComboBox", "Folding")
    reviewed.choose("deformationComboBox", "Contours")
    reviewed.click("outlinesCheckBox")
    tick(reviewed.ui.labelsList, "spleen")
    reviewed.choose("compareComboBox", "Curtain")
    reviewed.click("linkedCursorCheckBox")
    reviewed.choose("compareComboBox", "Flicker")


@pytest.mark.parametrize("look", [look_at_everything, look_at_the_rest])
def test_leaving_keeps_what_is_looked_at_and_choosing_no_result_takes_it_away(reviewed, look):
    panel = reviewed.panel
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    watching = observers(crosshair)
    look(reviewed)
    assert differences(reviewed.before, looks(panel.scene)) != []
    shown, watched = layers(composite()), observers(crosshair)
    panel.page.exit()  # another module: what is looked at stays
    settle()
    assert layers(composite()) == shown
    panel.page.enter()
    settle()
    assert layers(composite()) == shown
    assert observers(crosshair) == watched
    timers = [kept for kept in panel.review.kept.values() if isinstance(kept, qt.QTimer)]
    assert len(timers) == (look is look_at_the_rest)
    panel.parameters.result = None
    settle()
    assert_as_before(reviewed)
    assert observers(crosshair) == watching
    assert not any(timer.isActive() for timer in timers)


def test_a_second_run_starts_from_where_the_data_was_and_is_shown_as_the_first(reviewed):
    n, panel = reviewed.n, reviewed.panel
    look_at_everything(reviewed)
    panel.apply()
    assert_as_before(reviewed)
    assert panel.worker.inputs.moving.grid.is_close(phantom().moving.grid)
    panel.worker.finish()
    settle()
    assert panel.parameters.result is n.forward  # updated in place
    assert n.moving.GetParentTransformNode() is reviewed.shown_under(n.forward)
    assert reviewed.amount == pytest.approx(0.3)
    assert live_labels() is not None
    assert not panel.ui.reviewSection.collapsed
    panel.apply()
    panel.worker.fail("cancelled", "The registration was cancelled.")
    settle()
    assert n.moving.GetParentTransformNode() is reviewed.shown_under(n.forward)  # it is still there


def test_a_closed_scene_leaves_nothing_behind(reviewed):
    look_at_everything(reviewed)
    reviewed.click("linkedCursorCheckBox")
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    slicer.mrmlScene.Clear(False)
    settle()
    assert observers(crosshair) == 0
    assert nodes_of_class(slicer.mrmlScene, "vtkMRMLVolumeNode") == []
    assert nodes_of_class(slicer.mrmlScene, "vtkMRMLSegmentationNode") == []
    assert nodes_of_class(slicer.mrmlScene, "vtkMRMLGridTransformNode") == []
    assert not reviewed.ui.runAgainButton.enabled
    assert reviewed.panel.parameters.result is None


@pytest.mark.parametrize("which", ["forward", "moving", "fixed"])
def test_a_review_ends_with_what_it_needs(reviewed, which):
    look_at_everything(reviewed)
    node = getattr(reviewed.n, which)
    node_id = node.GetID()
    slicer.mrmlScene.RemoveNode(node)
    settle()
    found = differences(reviewed.before, looks(slicer.mrmlScene))
    found = [
        line
        for line in found
        if not re.search(f"SliceComposite|referenceImageGeometryRef|IconRegistration\\.|{node_id}", line)
    ]
    assert not found, "\n".join(found)  # that the node is gone is seen in others that refer to it
    assert live_labels() is None
    assert not reviewed.ui.compareComboBox.enabled
    if which != "forward":
        assert which in reviewed.panel.status  # which volume is gone


@pytest.mark.parametrize("which", ["warped_volume", "backward", "distrust", "moving_segmentation", "warped_landmarks"])
def test_a_review_goes_on_without_what_it_can_spare(reviewed, which):
    n = reviewed.n
    look_at_everything(reviewed)
    slicer.mrmlScene.RemoveNode(getattr(n, which))
    settle()
    assert layers(composite()) == ids(n.fixed, n.moving)
    assert n.moving.GetParentTransformNode() is reviewed.shown_under(n.forward)
    assert (composite().GetLabelVolumeID() is None) == (which == "distrust")
    assert (live_labels() is None) == (which == "moving_segmentation")
    assert reviewed.ui.swapCheckBox.enabled == (which != "backward")
    pick(reviewed.ui.resultSelector, "None")
    settle()
    assert n.moving.GetParentTransformNode() is None


def test_without_a_resampled_volume_the_moving_one_is_shown_live(panel):
    reviewed = Reviewed(panel, "warped_volume")
    n = reviewed.n
    assert layers(composite()) == ids(n.fixed, n.moving)
    assert n.moving.GetParentTransformNode() is reviewed.shown_under(n.forward)
    reviewed.choose("compareComboBox", "Curtain")  # nothing can be cut
    assert layers(composite()) == ids(n.fixed, n.moving)
    assert reviewed.enabled("shownComboBox", "linkedCursorCheckBox", "warpAmountSlider") == [False, False, True]


def test_saving_while_half_is_shown_loses_nothing(reviewed, tmp_path):
    n = reviewed.n
    whole = results().registration.forward
    look_at_everything(reviewed)
    reviewed.drag("warpAmountSlider", 50)
    path = save_scene(slicer.mrmlScene, tmp_path / "scene.mrb")
    assert reviewed.amount == 0.5
    name = n.forward.GetName()
    slicer.mrmlScene.Clear(False)
    load_scene(slicer.mrmlScene, path)
    settle()
    forward = slicer.util.getNode(name)
    saved = field_from_node(forward)
    np.testing.assert_allclose(saved.displacement, whole.displacement, atol=1e-3)
    # the panel shows it again as it was, and lets go of it as ever
    assert reviewed.panel.parameters.result is forward
    moving = slicer.util.getNode("Phantom exhale")
    assert grid(moving.GetParentTransformNode()) is grid(forward)
    assert scale(moving.GetParentTransformNode()) == 0.5
    pick(reviewed.ui.resultSelector, "None")
    settle()
    assert moving.GetParentTransformNode() is None
    assert live_labels() is None
