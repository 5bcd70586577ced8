"""The Review section: what each control does to nodes and views."""

import re

import numpy as np
import pytest
import slicer
from reviewed import (
    UPPER,
    Reviewed,
    assert_as_before,
    composite,
    composites,
    ids,
    layers,
    observers,
    results,
    scale,
    voxels,
    world_of,
)
from slicerharness import pick, process_until, settle
from vtk.util.numpy_support import vtk_to_numpy

from IconRegistrationLib.mrml.scene import nodes_of_class
from IconRegistrationLib.mrml.transforms import field_from_node
from IconRegistrationLib.mrml.volumes import image_from_node
from IconRegistrationLib.spatial.geometry import flip_vectors
from IconRegistrationLib.ui.review_controls.images import CARRIED_COLOR, STILL_COLOR


@pytest.fixture
def reviewed(panel):
    return Reviewed(panel)


# -------------------------------------------------------------------------------------------------------------- opening


def test_a_result_is_shown_over_the_fixed_volume(reviewed):
    n, ui = reviewed.n, reviewed.ui
    for node in composites():
        assert layers(node) == ids(n.fixed, n.warped_volume)
        assert node.GetForegroundOpacity() == 0.5
    # both CT: one window
    shown = n.fixed.GetDisplayNode(), n.warped_volume.GetDisplayNode()
    assert len({(display.GetWindow(), display.GetLevel()) for display in shown}) == 1
    assert n.moving.GetParentTransformNode() is None
    # no filled segment hides the images; landmarks that should coincide are seen, without names
    for segmentation in (n.fixed_segmentation, n.moving_segmentation, n.warped_segmentation):
        assert not segmentation.GetDisplayNode().GetVisibility2D()
    seen = [node.GetDisplayNode() for node in (n.fixed_landmarks, n.warped_landmarks)]
    assert [display.GetVisibility() for display in seen] == [True, True]
    assert [display.GetPointLabelsVisibility() for display in seen] == [False, False]
    assert [display.GetSelectedColor() for display in seen] == [STILL_COLOR, CARRIED_COLOR]
    assert not n.moving_landmarks.GetDisplayNode().GetVisibility()
    # what does nothing now is disabled
    assert reviewed.enabled("shownComboBox", "swapCheckBox", "compareComboBox", "blendSlider") == [True] * 4
    assert reviewed.enabled("warpAmountSlider", "hardenButton", "lineWidthSpinBox") == [False] * 3
    assert ui.reviewSection.collapsed  # the user chose the result; nothing opens by itself


def test_without_a_result_nothing_can_be_pressed(reviewed):
    pick(reviewed.ui.resultSelector, "None")
    settle()
    names = ("runAgainButton", "shownComboBox", "compareComboBox", "blendSlider", "outlinesCheckBox", "labelsList")
    assert not any(reviewed.enabled(*names, "exportCsvButton", "linkedCursorCheckBox", "deformationComboBox"))
    assert_as_before(reviewed)


# ----------------------------------------------------------------------------------------------------------- the images


def test_the_warp_amount_is_the_displacement_scale_of_live_data(reviewed):
    n = reviewed.n
    label = "liver, right lower tip"
    start, end = world_of(n.moving_landmarks, label), world_of(n.warped_landmarks, label)
    assert np.linalg.norm(end - start) > 5
    reviewed.choose("shownComboBox", "Live, under the transform")
    shown = reviewed.shown_under(n.forward)
    assert all(node.GetParentTransformNode() is shown for node in (n.moving, n.moving_segmentation, n.moving_landmarks))
    assert layers(composite()) == ids(n.fixed, n.moving)
    assert n.moving_landmarks.GetDisplayNode().GetVisibility()
    assert not n.warped_landmarks.GetDisplayNode().GetVisibility()
    found = field_from_node(n.forward).transform_points(flip_vectors(world_of(n.moving_landmarks, label)))
    np.testing.assert_allclose(flip_vectors(found), start, atol=0.1)
    reviewed.drag("warpAmountSlider", 0)
    assert reviewed.amount == 0
    np.testing.assert_allclose(world_of(n.moving_landmarks, label), start, atol=1e-6)
    reviewed.drag("warpAmountSlider", 25)
    assert reviewed.amount == 0.25
    assert scale(reviewed.shown_under(n.backward)) == 0.25
    reviewed.choose("shownComboBox", "Resampled")
    assert reviewed.amount == 1  # nothing lies under it
    assert n.moving.GetParentTransformNode() is None
    assert not reviewed.ui.warpAmountSlider.enabled


def test_dragging_resamples_nothing(reviewed):
    reviewed.choose("shownComboBox", "Live, under the transform")
    there = voxels(reviewed.panel.scene)
    reviewed.drag("warpAmountSlider", *range(0, 101, 10))
    reviewed.drag("blendSlider", *range(0, 101, 10))
    assert voxels(reviewed.panel.scene) == there
    assert composite().GetForegroundOpacity() == 1


def test_live_data_changes_neither_the_preflight_nor_apply(reviewed):
    ui = reviewed.ui
    said = ui.preflightLabel.text
    assert "overlap" in said
    reviewed.choose("shownComboBox", "Live, under the transform")
    reviewed.drag("warpAmountSlider", 60)
    assert (ui.preflightLabel.text, ui.applyButton.enabled) == (said, True)
    # another question about the same data, which is looked at where it was registered
    ui.spacingSpinBox.value = 9.0
    settle()
    assert "overlap" in ui.preflightLabel.text
    assert ui.applyButton.enabled
    assert reviewed.n.moving.GetParentTransformNode() is reviewed.shown_under(reviewed.n.forward)
    assert reviewed.amount == 0.6


def test_the_other_direction_is_live(reviewed):
    n = reviewed.n
    reviewed.click("swapCheckBox")
    shown = reviewed.shown_under(n.backward)
    assert all(node.GetParentTransformNode() is shown for node in (n.fixed, n.fixed_segmentation, n.fixed_landmarks))
    assert layers(composite()) == ids(n.moving, n.fixed)
    label = "liver, right lower tip"
    apart = np.linalg.norm(world_of(n.fixed_landmarks, label) - world_of(n.moving_landmarks, label))
    assert apart < results().report.target_registration_error.before / 2
    assert reviewed.enabled("shownComboBox", "labelsList", "warpAmountSlider") == [False, False, True]
    reviewed.drag("warpAmountSlider", 50)
    assert scale(shown) == 0.5
    reviewed.click("swapCheckBox")
    assert n.fixed.GetParentTransformNode() is None
    assert layers(composite()) == ids(n.fixed, n.warped_volume)


def test_blend(reviewed):
    reviewed.drag("blendSlider", 80)
    assert [node.GetForegroundOpacity() for node in composites()] == [0.8] * 3


def test_checkerboard_and_curtain_cut_a_copy(reviewed):
    n, ui = reviewed.n, reviewed.ui
    reviewed.choose("compareComboBox", "Checkerboard")
    cut = slicer.mrmlScene.GetNodeByID(composite().GetForegroundVolumeID())
    assert cut not in (n.warped_volume, n.moving)
    assert composite().GetForegroundOpacity() == 1
    assert cut.GetHideFromEditors()
    assert not cut.GetSaveWithScene()
    source = image_from_node(n.warped_volume).array

    def kept():
        return image_from_node(cut).array == source

    # cubes by turns: half of them; more cells, more changes along a line
    assert 0.4 < kept().mean() < 0.6
    line = kept()[source.shape[0] // 2, source.shape[1] // 2]
    reviewed.drag("cellsSlider", 16)
    finer = kept()[source.shape[0] // 2, source.shape[1] // 2]
    assert np.abs(np.diff(finer.astype(int))).sum() > np.abs(np.diff(line.astype(int))).sum()
    assert not ui.shownComboBox.enabled
    # (isVisibleTo: the section is collapsed)
    assert [bar.isVisibleTo(ui.imagesGroup) for bar in (ui.blendSlider, ui.cellsSlider, ui.curtainSlider)] == [
        False,
        True,
        False,
    ]
    reviewed.choose("compareComboBox", "Curtain")
    assert composite().GetForegroundVolumeID() == cut.GetID()
    for direction, axis in (("right to left", 2), ("front to back", 1), ("top to bottom", 0)):
        reviewed.choose("curtainComboBox", direction)
        reviewed.drag("curtainSlider", 30)
        planes = kept().mean(axis=tuple({0, 1, 2} - {axis}))
        assert planes.shape[0] * 0.3 == pytest.approx((planes == 1).sum(), abs=1), direction
        assert set(np.unique(planes)) == {0, 1}, direction
    reviewed.choose("compareComboBox", "Blend")
    assert layers(composite()) == ids(n.fixed, n.warped_volume)
    assert composite().GetForegroundOpacity() == 0.5
    assert cut.GetScene() is None


def test_flicker_changes_by_the_clock_and_stops(reviewed):
    reviewed.choose("compareComboBox", "Flicker")
    timer = reviewed.panel.review.kept["flicker timer"]
    timer.interval = 1
    seen = set()

    def both():
        seen.add(composite().GetForegroundOpacity())
        return {0.0, 1.0} <= seen

    process_until(both)
    reviewed.choose("compareComboBox", "Blend")
    assert not timer.isActive()
    assert composite().GetForegroundOpacity() == 0.5


# --------------------------------------------------------------------------------------------- deformation and overlays


def test_deformation_is_drawn_by_the_transforms_display(reviewed):
    n = reviewed.n
    reviewed.choose("deformationComboBox", "Grid")
    display = reviewed.shown_under(n.forward).GetDisplayNode()
    assert (display.GetVisibility(), display.GetVisibility2D(), display.GetVisibility3D()) == (True, True, False)
    assert display.GetVisualizationMode() == display.VIS_MODE_GRID
    assert display.GetRegionNode() is n.fixed
    assert display.GetGridSpacingMm() in (5, 10, 20)  # of a volume of 35 cm
    assert display.GetSliceIntersectionThickness() == 1
    reviewed.put("deformationSpacingSpinBox", 25)
    reviewed.put("lineWidthSpinBox", 3)
    reviewed.click("deformationIn3DCheckBox")
    assert display.GetGridSpacingMm() == 25
    assert display.GetSliceIntersectionThickness() == 3
    assert display.GetVisibility3D()
    for text, mode in (("Arrows", display.VIS_MODE_GLYPH), ("Contours", display.VIS_MODE_CONTOUR)):
        reviewed.choose("deformationComboBox", text)
        assert display.GetVisualizationMode() == mode
        assert display.GetVisibility()
    assert display.GetGlyphSpacingMm() == 25
    # the other direction has its own
    reviewed.click("swapCheckBox")
    assert not display.GetVisibility()
    other = reviewed.shown_under(n.backward).GetDisplayNode()
    assert other.GetVisibility()
    assert other.GetRegionNode() is n.moving
    reviewed.choose("deformationComboBox", "Hidden")
    assert not other.GetVisibility()
    assert reviewed.enabled("deformationSpacingSpinBox", "lineWidthSpinBox", "deformationIn3DCheckBox") == [False] * 3


def test_segment_outlines(reviewed):
    n = reviewed.n

    def shown():
        nodes = (n.fixed_segmentation, n.moving_segmentation, n.warped_segmentation)
        displays = [node.GetDisplayNode() for node in nodes]
        return [display.GetVisibility() and display.GetVisibility2D() for display in displays]

    reviewed.click("outlinesCheckBox")
    assert shown() == [True, False, True]
    for node in (n.fixed_segmentation, n.warped_segmentation):
        assert not node.GetDisplayNode().GetVisibility2DFill()
        assert node.GetDisplayNode().GetVisibility2DOutline()
    thick, thin = (
        node.GetDisplayNode().GetSliceIntersectionThickness() for node in (n.fixed_segmentation, n.warped_segmentation)
    )
    assert thick > thin
    segments = n.fixed_segmentation.GetSegmentation(), n.warped_segmentation.GetSegmentation()
    identifier = segments[1].GetSegmentIdBySegmentName("liver")
    color = np.array(n.warped_segmentation.GetDisplayNode().GetSegmentOverrideColor(identifier))
    assert (color > segments[0].GetSegment(segments[0].GetSegmentIdBySegmentName("liver")).GetColor()).all()  # lighter
    reviewed.choose("shownComboBox", "Live, under the transform")
    assert shown() == [True, True, False]
    reviewed.click("swapCheckBox")
    assert shown() == [True, True, False]
    reviewed.click("swapCheckBox")
    reviewed.choose("shownComboBox", "Resampled")
    reviewed.click("outlinesCheckBox")
    assert shown() == [False, False, False]


def test_overlays_say_where_not_to_trust(reviewed):
    n = reviewed.n
    errors = image_from_node(n.distrust)
    vtk_to_numpy(n.distrust.GetImageData().GetPointData().GetScalars())[0] = -1.0  # the corner is unknown
    vtk_to_numpy(n.jacobian.GetImageData().GetPointData().GetScalars())[-1] = -0.5  # and the other one is folded
    reviewed.choose("overlayComboBox", "Local distrust [mm]")
    overlay = slicer.mrmlScene.GetNodeByID(composite().GetLabelVolumeID())
    names = overlay.GetDisplayNode().GetColorNode()
    labels = image_from_node(overlay)

    def said(point) -> str:
        i, j, k = np.rint(labels.grid.to_index(point)).astype(int)
        return names.GetColorName(int(labels.array[k, j, i]))

    assert said(errors.grid.to_world(np.zeros(3))) == "no counterpart in the moving image"
    k, j, i = np.unravel_index(errors.array.argmax(), errors.array.shape)
    worst = errors.array.max()
    low, *high = map(float, re.findall(r"[\d.]+", said(errors.grid.to_world(np.array([i, j, k], float)))))
    assert low <= worst <= (high or [np.inf])[0]  # "1 - 2 mm", or "more than 10 mm"
    assert not overlay.GetSaveWithScene()
    reviewed.choose("overlayComboBox", "Folding")
    folding = slicer.mrmlScene.GetNodeByID(composite().GetLabelVolumeID())
    marked = image_from_node(folding).array
    assert marked[-1, -1, -1] > 0
    assert marked[0, 0, 0] == 0
    reviewed.choose("overlayComboBox", "None")
    assert composite().GetLabelVolumeID() is None
    # another look at it makes no other label map
    there = set(voxels(reviewed.panel.scene))
    reviewed.choose("overlayComboBox", "Local distrust [mm]")
    assert set(voxels(reviewed.panel.scene)) == there


# -------------------------------------------------------------------------------------------------------- linked cursor


def lower_views() -> list:
    manager = slicer.app.layoutManager()
    logics = [manager.sliceWidget(name).sliceLogic() for name in manager.sliceViewNames() if name not in UPPER]
    return [logic for logic in logics if logic.GetSliceNode().IsMappedInLayout()]


def test_the_linked_cursor_shows_the_corresponding_point_of_the_undeformed_scan(reviewed):
    n, manager = reviewed.n, slicer.app.layoutManager()
    layout = manager.layout
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    watching, mode = observers(crosshair), crosshair.GetCrosshairMode()
    reviewed.choose("shownComboBox", "Live, under the transform")
    reviewed.click("linkedCursorCheckBox")
    assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutThreeOverThreeView
    assert n.moving.GetParentTransformNode() is None
    lower = lower_views()
    assert len(lower) == 3
    for logic in lower:
        assert logic.GetSliceCompositeNode().GetBackgroundVolumeID() == n.moving.GetID()
        assert logic.GetSliceCompositeNode().GetForegroundVolumeID() is None
        above = logic.GetSliceNode().GetLayoutName().rstrip("+")
        assert logic.GetSliceNode().GetOrientation() == manager.sliceWidget(above).mrmlSliceNode().GetOrientation()
    assert all(layers(node) == ids(n.fixed, n.warped_volume) for node in composites())
    (marker,) = [m for m in nodes_of_class(slicer.mrmlScene, "vtkMRMLMarkupsFiducialNode") if m.GetHideFromEditors()]
    assert set(marker.GetDisplayNode().GetViewNodeIDs()) == set(ids(*(logic.GetSliceNode() for logic in lower)))
    field = field_from_node(n.forward)
    for point in np.array([[10.0, 20.0, -30.0], [-50.0, -20.0, 40.0]]):
        crosshair.SetCrosshairRAS(*flip_vectors(point))
        expected = flip_vectors(field.transform_points(point))
        place = np.zeros(3)
        marker.GetNthControlPointPositionWorld(0, place)
        np.testing.assert_allclose(place, expected, atol=0.05)
        for logic in lower:  # each slice goes through the point
            node = logic.GetSliceNode()
            matrix = np.array([[node.GetSliceToRAS().GetElement(r, c) for c in range(4)] for r in range(4)])
            assert abs((np.linalg.inv(matrix) @ [*expected, 1])[2]) < 0.05
    assert reviewed.enabled("shownComboBox", "swapCheckBox") == [False, False]
    reviewed.click("linkedCursorCheckBox")
    assert manager.layout == layout
    assert (observers(crosshair), crosshair.GetCrosshairMode()) == (watching, mode)
    assert marker.GetScene() is None
    assert [logic.GetSliceCompositeNode().GetBackgroundVolumeID() for logic in lower] == [None] * 3
    assert n.moving.GetParentTransformNode() is reviewed.shown_under(n.forward)  # as the control above says
    # other views that were opened once are not in the way
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutThreeByThreeSliceView)
    manager.setLayout(layout)
    reviewed.click("linkedCursorCheckBox")
    assert len(lower_views()) == 3
    pick(reviewed.ui.resultSelector, "None")
    settle()
    assert_as_before(reviewed)
    assert manager.layout == layout
