"""Every control of the Review section, used in the panel, against the nodes that it must change and put back."""

import csv
import functools
import re
from types import SimpleNamespace

import numpy as np
import pytest
import qt
import slicer
from panel import Panel, phantom, tick
from slicerharness import pick, process_until, settle
from vtk.util.numpy_support import vtk_to_numpy

from IconRegistrationLib.mrml.registration import nodes_from_results, outputs_of
from IconRegistrationLib.mrml.scene import load_scene, nodes_of_class, save_scene
from IconRegistrationLib.mrml.segmentations import segmentation_from_node
from IconRegistrationLib.mrml.transforms import field_from_node
from IconRegistrationLib.mrml.volumes import image_from_node
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.spatial.field import warp_segmentation
from IconRegistrationLib.spatial.geometry import flip_vectors
from IconRegistrationLib.ui.review_controls.images import CARRIED_COLOR, STILL_COLOR
from IconRegistrationLib.workflow.pipeline import compute
from IconRegistrationLib.workflow.results import Inputs

UPPER = ("Red", "Green", "Yellow")


@functools.cache
def results():
    """Of the phantom, once for all tests: coarse, but with every output."""
    p = phantom()
    inputs = Inputs(
        p.fixed, p.moving, p.fixed_segmentation, p.moving_segmentation, p.fixed_landmarks, p.moving_landmarks
    )
    return compute(inputs, Settings(align="mass", spacing=12.0, steps=5, device="cpu"))


class Reviewed:
    """A panel with a result under review. `n`: its nodes by their names in RegistrationRequest and ResultNodes."""

    def __init__(self, panel, *without: str):
        self.panel, self.ui = panel, panel.ui
        chosen = panel.choose_phantom()
        names = ("fixed", "moving", *(f"{side}_{kind}" for kind in ("segmentation", "landmarks") for side in SIDES))
        show(panel.scene, chosen["fixedVolume"])
        self.before = looks(panel.scene)  # and then the result is there, and shown
        outputs = nodes_from_results(results(), panel.request())
        for name in without:
            panel.scene.RemoveNode(getattr(outputs, name))
        outputs = outputs_of(outputs.forward)
        self.outputs = outputs
        self.n = SimpleNamespace(**dict(zip(names, chosen.values(), strict=True)), **vars(outputs))
        self.before |= looks(panel.scene)
        panel.parameters.result = outputs.forward
        settle()

    def choose(self, name: str, text: str):
        box = getattr(self.ui, name)
        assert box.enabled, name
        pick(box, text)
        settle()

    def click(self, name: str):
        button = getattr(self.ui, name)
        assert button.enabled, name
        button.click()
        settle()

    def drag(self, name: str, *values: float):
        """Pull a slider over these values."""
        slider = getattr(self.ui, name)
        assert slider.enabled, name
        for value in values:
            share = (value - slider.minimum) / (slider.maximum - slider.minimum)
            slider._h_bar.sliderMoved.emit(round(1000 * share))
        settle()

    def put(self, name: str, value):
        box = getattr(self.ui, name)
        assert box.enabled, name
        box.value = value
        settle()

    def enabled(self, *names: str) -> list[bool]:
        return [getattr(self.ui, name).enabled for name in names]

    @property
    def amount(self) -> float:
        """The part of the displacement under which data is shown."""
        return scale(self.shown_under(self.n.forward))

    def shown_under(self, transform):
        """What data lies under where `transform` is looked at: a hidden node that shares its samples."""
        hidden = [t for t in nodes_of_class(slicer.mrmlScene, "vtkMRMLGridTransformNode") if t.GetHideFromEditors()]
        (copy,) = [t for t in hidden if grid(t) is grid(transform)]
        assert not copy.GetSaveWithScene()
        assert scale(transform) == 1  # always: it may be saved at any time
        return copy


SIDES = ("fixed", "moving")


@pytest.fixture
def reviewed(panel):
    return Reviewed(panel)


def scale(transform) -> float:
    return transform.GetTransformFromParent().GetDisplacementScale()


def grid(transform):
    return transform.GetTransformFromParent().GetDisplacementGrid()


def composite(name="Red"):
    return slicer.app.layoutManager().sliceWidget(name).sliceLogic().GetSliceCompositeNode()


def composites():
    return [composite(name) for name in UPPER]


def show(scene, volume):
    for node in composites():
        node.SetBackgroundVolumeID(volume.GetID())


def layers(node) -> tuple:
    return node.GetBackgroundVolumeID(), node.GetForegroundVolumeID()


def ids(*nodes) -> tuple:
    return tuple(node.GetID() for node in nodes)


def looks(scene) -> dict[str, list[str]]:
    """Properties of all nodes as VTK prints them, by ID."""
    nodes = [node for node in nodes_of_class(scene, "vtkMRMLNode") if not _is_a_views(node)]
    return {node.GetID(): _printed(node) for node in nodes}


def _is_a_views(node) -> bool:
    """What a view has: its position, which is the user's, and nodes that come with it when it is first seen."""
    kind, hidden = node.GetClassName(), node.GetHideFromEditors()
    if kind == "vtkMRMLSliceCompositeNode":
        return node.GetLayoutName() not in UPPER
    if kind in ("vtkMRMLLinearTransformNode", "vtkMRMLModelNode"):
        return hidden
    return kind in (
        *("vtkMRMLSliceNode", "vtkMRMLSliceDisplayNode", "vtkMRMLModelDisplayNode"),
        *("vtkMRMLScriptedModuleNode", "vtkMRMLSelectionNode", "vtkMRMLLayoutNode"),
    )


def _printed(node) -> list[str]:
    lines = [line for line in str(node).splitlines() if re.match(" {2,5}[^ ]", line)]
    return [line for line in lines if not re.search("MTime|Time:|Reference Count|0x|CrosshairRAS", line)]


def differences(before: dict, after: dict) -> list[str]:
    """What is not as it was, of nodes that are still there; and nodes that were not there."""
    found = [
        f"{name}: {line.strip()}"
        for name in before.keys() & after.keys()
        for line in set(after[name]) ^ set(before[name])
    ]
    return sorted(found + list(after.keys() - before.keys()))


def assert_as_before(reviewed):
    found = differences(reviewed.before, looks(reviewed.panel.scene))
    assert not found, "\n".join(found)


def observers(node) -> int:
    """Of modifications; a crosshair has none by itself."""
    return sum(node.HasObserver(event) for event in ("ModifiedEvent", "AnyEvent"))


def voxels(scene) -> dict[str, int]:
    """Volumes and when their voxels changed last."""
    nodes = nodes_of_class(scene, "vtkMRMLVolumeNode")
    return {node.GetID(): node.GetImageData().GetMTime() for node in nodes}


def world_of(node, label: str) -> np.ndarray:
    numbers = {node.GetNthControlPointLabel(n): n for n in range(node.GetNumberOfControlPoints())}
    point = np.zeros(3)
    node.GetNthControlPointPositionWorld(numbers[label], point)
    return point


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
