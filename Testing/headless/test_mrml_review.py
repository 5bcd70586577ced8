"""The Review section's controls: each changes the node property that it must, is seen in the views, and is undone."""

import math
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from grids import places

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.quality.report import Row
from IconRegistrationLib.quality.verdicts import Verdict
from IconRegistrationLib.spatial.geometry import (
    Grid,
    Image,
    Segment,
    Segmentation,
    apply_affine,
    flip_affine,
    flip_vectors,
)

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
vtk = pytest.importorskip("vtk")

from IconRegistrationLib.mrml import pictures, review, segmentations, transforms, volumes  # noqa: E402
from IconRegistrationLib.mrml.scene import load_scene, nodes_of_class, save_scene  # noqa: E402
from IconRegistrationLib.spatial.displacement import DisplacementField  # noqa: E402

SIZE = 160
SHIFT = np.array([20.0, 0.0, 0.0])  # fixed -> moving, LPS: what is at x in the moving image is drawn at x - 20
GRID = Grid.from_parts((50, 50, 50), (2, 2, 2), (-49, -49, -49))


def a_turn(degrees, axis: int) -> np.ndarray:
    first, second = [n for n in range(3) if n != axis]
    angle, turn = np.deg2rad(degrees), np.eye(3)
    turn[first, first] = turn[second, second] = np.cos(angle)
    turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
    return turn


#: Anisotropic, turned by 20 degrees about z, with two axes flipped and swapped; centred on the origin.
ODD = a_turn(20, 2)[:, [1, 0, 2]] * (-1, 1, -1)
OBLIQUE = Grid.from_parts((60, 50, 30), (1.5, 2, 3.5), -ODD @ (np.array([59, 49, 29]) * (1.5, 2, 3.5) / 2), ODD)


@pytest.fixture
def before(scene):
    return review.SceneRestorePoint(scene)


def ball(centre, radius: float, grid=GRID) -> np.ndarray:
    return np.linalg.norm(places(grid) - centre, axis=-1) < radius


def a_volume(scene, array, name="volume", grid=GRID, window=(1000, 500)):
    node = volumes.node_from_image(scene, Image(np.asarray(array), grid), name)
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(*window)
    return node


def a_field_node(scene, displacement=SHIFT, name="moving to fixed"):
    vectors = np.broadcast_to(np.asarray(displacement, np.float32), (*GRID.shape, 3)).copy()
    return transforms.node_from_field(scene, DisplacementField(vectors, GRID), name)


def a_linear_node(scene, affine, name="scanner"):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(transforms.matrix_from_array(flip_affine(affine) @ flip_affine(np.eye(4))))
    return node


def a_ball_node(scene, centres, color=(1, 0, 0), radius=12.0, names="abc"):
    layer = sum((n * ball(c, radius)).astype(np.uint8) for n, c in enumerate(centres, 1))
    segments = tuple(
        Segment(name, n, color=color, identifier=f"id_{name}") for n, name in enumerate(names[: len(centres)], 1)
    )
    return segmentations.node_from_segmentation(scene, Segmentation((layer,), segments, GRID), "balls")


@pytest.fixture
def views(scene):
    """Three slice views through the origin, about 100 mm wide, and how they are looked at."""
    if pictures.can_render():
        pytest.skip(pictures.can_render())
    with ExitStack() as stack:
        base = a_volume(scene, np.zeros(GRID.shape, np.int16), "base")
        windows = [
            pictures._slice_view(stack, scene, orientation, base, None, 0, np.zeros(3), SIZE)
            for orientation in pictures.ORIENTATIONS
        ]

        def look() -> dict:
            """[row from the top, column, 3] in [0, 1] per orientation."""
            return {
                orientation: pictures._pixels(window)[::-1] / 255
                for orientation, window in zip(pictures.ORIENTATIONS, windows, strict=True)
            }

        yield SimpleNamespace(
            look=look,
            composites=nodes_of_class(scene, "vtkMRMLSliceCompositeNode"),
            slices=nodes_of_class(scene, "vtkMRMLSliceNode"),
        )


def composites_of(scene, count=2) -> list:
    return [scene.AddNewNodeByClass("vtkMRMLSliceCompositeNode", f"view {n}") for n in range(count)]


def right_of_centre(mask) -> float:
    """Column of the centre of gravity in mm, right of the view's middle (views are 100 mm wide)."""
    return (np.argwhere(mask)[:, 1].mean() / SIZE - 0.5) * 100


def world_of_point(node) -> np.ndarray:
    point = [0.0] * 3
    node.GetNthControlPointPositionWorld(0, point)
    return np.array(point)


# ------------------------------------------------------------------------------------------------ how much is warped


def test_the_warp_amount_moves_what_lies_under_the_node_both_ways(scene):
    forward = a_field_node(scene)
    point = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    point.AddControlPoint([0, 0, 0])
    point.SetAndObserveTransformNodeID(forward.GetID())
    heard, event = [], slicer.vtkMRMLTransformableNode.TransformModifiedEvent
    observers = [(node, node.AddObserver(event, lambda caller, _: heard.append(caller))) for node in (forward, point)]
    for amount in (0.5, 0.0, 1.0):
        heard.clear()
        review.set_warp_amount(forward, amount)
        assert forward in heard
        assert point in heard
        assert transforms.transform_points(forward, np.zeros((1, 3)))[0] == pytest.approx(amount * SHIFT)
        assert transforms.transform_points(forward, np.zeros((1, 3)), True)[0] == pytest.approx(-amount * SHIFT)
        assert flip_vectors(world_of_point(point)) == pytest.approx(-amount * SHIFT)
        assert transforms.field_from_node(forward).displacement[3, 4, 5] == pytest.approx(amount * SHIFT)
    with pytest.raises(InputError, match=r"1\.5"):
        review.set_warp_amount(forward, 1.5)
    with pytest.raises(InputError, match="'straight'"):
        review.set_warp_amount(scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "straight"), 0.5)
    for node, observer in observers:  # a node on its way out of the scene is not one to keep
        node.RemoveObserver(observer)


def test_a_copy_shows_half_while_the_transform_keeps_all(scene, before, tmp_path):
    forward = a_field_node(scene)
    copy = review.viewing_copy(before, forward)
    review.set_warp_amount(copy, 0.5)
    assert transforms.transform_points(copy, np.zeros((1, 3)))[0] == pytest.approx(SHIFT / 2)
    assert transforms.transform_points(forward, np.zeros((1, 3)))[0] == pytest.approx(SHIFT)
    images = [node.GetTransformFromParent().GetDisplacementGrid() for node in (forward, copy)]
    assert images[0] is images[1]
    path = save_scene(scene, tmp_path / "scene.mrb")
    before.restore()
    scene.RemoveNode(forward)
    load_scene(scene, path)
    (loaded,) = nodes_of_class(scene, "vtkMRMLGridTransformNode")
    assert transforms.transform_points(loaded, np.zeros((1, 3)))[0] == pytest.approx(SHIFT, abs=1e-4)


def test_volume_and_segments_follow_the_warp_amount_in_the_views(scene, before, views):
    fixed = a_volume(scene, np.zeros(GRID.shape, np.int16), "fixed")
    moving = a_volume(scene, (1000 * ball(SHIFT, 10)).astype(np.int16), "moving")
    organ = a_ball_node(scene, [SHIFT], radius=10)
    forward = a_field_node(scene)
    for node in (moving, organ):
        review.put_under(before, node, forward)
    review.show_comparison(before, views.composites, fixed, moving, 1)
    moving.GetDisplayNode().SetWindowLevel(1000, 500)
    for amount in (1.0, 0.5, 0.0):
        review.set_warp_amount(forward, amount)
        picture = views.look()["Axial"]
        for seen in (picture[..., 0] > 0.3, (picture[..., 0] > 0.3) & (picture[..., 1] < 0.3)):
            if seen.any():  # the second: the segment's outline
                assert right_of_centre(seen) == pytest.approx((1 - amount) * 20, abs=1.5)
        assert (picture[..., 0] > picture[..., 1] + 0.2).any()


# ------------------------------------------------------------------------------------------------ parents


def test_data_goes_under_the_transform_and_comes_back_to_the_parent_it_had(scene, before):
    forward = a_field_node(scene)
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = a_turn(30, 1), (5, -10, 15)
    outer = a_linear_node(scene, affine, "table")
    parent = a_linear_node(scene, np.diag([1, 1, 1.2, 1]), "scanner")
    parent.SetAndObserveTransformNodeID(outer.GetID())
    data = [
        scene.AddNewNodeByClass(f"vtkMRML{kind}Node", kind) for kind in ("MarkupsFiducial", "Segmentation", "Model")
    ]
    sibling = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "sibling")
    free = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "free")
    data[0].AddControlPoint([1, 2, 3])
    for node in (*data, sibling):
        node.SetAndObserveTransformNodeID(parent.GetID())
    at_rest = world_of_point(data[0])
    transforms_before = set(nodes_of_class(scene, "vtkMRMLTransformNode"))
    for node in (*data, free):
        review.put_under(before, node, forward)
        review.put_under(before, node, forward)  # twice is once
    assert world_of_point(data[0]) == pytest.approx(at_rest - flip_vectors(SHIFT), abs=1e-4)
    assert free.GetParentTransformNode() is forward
    assert sibling.GetParentTransformNode() is parent
    assert parent.GetParentTransformNode() is outer
    assert len(set(nodes_of_class(scene, "vtkMRMLTransformNode")) - transforms_before) == 1  # shared
    for node in (*data, free):
        review.take_out(before, node)
    assert [node.GetParentTransformNode() for node in (*data, sibling, free)] == [parent] * 4 + [None]
    assert set(nodes_of_class(scene, "vtkMRMLTransformNode")) == transforms_before
    review.take_out(before, data[0])  # nothing of ours any more
    assert data[0].GetParentTransformNode() is parent


def test_the_original_parent_is_known_in_a_reloaded_scene(scene, before, tmp_path):
    others = len(nodes_of_class(scene, "vtkMRMLLinearTransformNode"))  # slice views have some
    forward, parent = a_field_node(scene), a_linear_node(scene, np.diag([1, 1, 1.2, 1]))
    point = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    point.AddControlPoint([1, 2, 3])
    point.SetAndObserveTransformNodeID(parent.GetID())
    review.put_under(before, point, forward)
    where = world_of_point(point)
    path = save_scene(scene, tmp_path / "scene.mrb")
    for node in (point, point.GetParentTransformNode(), forward, parent):
        scene.RemoveNode(node)
    load_scene(scene, path)
    (loaded,) = nodes_of_class(scene, "vtkMRMLMarkupsFiducialNode")
    assert world_of_point(loaded) == pytest.approx(where, abs=1e-3)
    review.take_out(review.SceneRestorePoint(scene), loaded)
    assert loaded.GetParentTransformNode().GetName() == "scanner"
    assert len(nodes_of_class(scene, "vtkMRMLLinearTransformNode")) == others + 1


def test_another_registration_replaces_the_first_and_bent_parents_are_refused(scene, before):
    first, second = a_field_node(scene, name="first"), a_field_node(scene, -SHIFT, "second")
    point = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    review.put_under(before, point, first)
    review.put_under(before, point, second)
    assert point.GetParentTransformNode() is second
    assert second.GetParentTransformNode() is None
    bent = scene.AddNewNodeByClass("vtkMRMLGridTransformNode", "bent")
    bent.SetAndObserveTransformFromParent(second.GetTransformFromParent())
    foreign = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "foreign")
    foreign.SetAndObserveTransformNodeID(bent.GetID())
    with pytest.raises(InputError, match="'bent'"):
        review.put_under(before, foreign, first)
    assert foreign.GetParentTransformNode() is bent


def test_the_other_direction_is_shown_and_back(scene, before):
    fixed, moving = (a_volume(scene, np.zeros(GRID.shape, np.int16), name) for name in ("fixed", "moving"))
    points = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    forward, backward = a_field_node(scene), a_field_node(scene, -SHIFT, "fixed to moving")
    composites = composites_of(scene)
    for still, carried, transform in (
        ([fixed], [moving, points], forward),
        ([moving, points], [fixed], backward),
        ([fixed], [moving, points], forward),
    ):
        review.show_carried(before, composites, still, carried, transform)
        assert all(node.GetParentTransformNode() is transform for node in carried)
        assert all(node.GetParentTransformNode() is None for node in still)
        for composite in composites:
            assert composite.GetBackgroundVolumeID() == still[0].GetID()
            assert composite.GetForegroundVolumeID() == carried[0].GetID()


# ------------------------------------------------------------------------------------------------ one over the other


def test_window_and_level_correspond(scene, before):
    rng = np.random.default_rng(1)
    texture = rng.uniform(0, 1000, GRID.shape)
    mr = a_volume(scene, texture.astype(np.float32), "mr", window=(400, 300))
    other = a_volume(scene, (3 * texture + 50).astype(np.uint16), "other scale")
    review.match_window(before, mr, other)
    assert other.GetDisplayNode().GetWindow() == pytest.approx(1200, rel=0.01)
    assert other.GetDisplayNode().GetLevel() == pytest.approx(950, rel=0.01)
    assert (mr.GetDisplayNode().GetWindow(), mr.GetDisplayNode().GetLevel()) == (400, 300)
    ct = a_volume(scene, (texture - 600).astype(np.int16), "ct", window=(350, 40))
    denser = a_volume(scene, (1.5 * texture - 900).astype(np.int16), "contrast", window=(10, 5))
    review.match_window(before, ct, denser)  # Hounsfield units are the same in both
    assert (denser.GetDisplayNode().GetWindow(), denser.GetDisplayNode().GetLevel()) == (350, 40)
    before.restore(denser.GetDisplayNode())
    assert (denser.GetDisplayNode().GetWindow(), denser.GetDisplayNode().GetLevel()) == (10, 5)


def test_blend_and_flicker(scene, before, views):
    low = a_volume(scene, np.full(GRID.shape, 200, np.int16), "low")
    high = a_volume(scene, np.full(GRID.shape, 800, np.int16), "high")
    review.show_comparison(before, views.composites, low, high, 0.25)
    high.GetDisplayNode().SetWindowLevel(1000, 500)

    def grey():
        return views.look()["Coronal"][SIZE // 2, SIZE // 2].mean()

    assert grey() == pytest.approx(0.35, abs=0.02)
    seen = []
    for _ in range(4):
        review.flicker(before, views.composites)
        seen.append(round(grey(), 1))
    assert seen == [0.8, 0.2, 0.8, 0.2]
    review.blend(before, views.composites, 0.5)
    assert grey() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16", "int32", "float32", "float64"])
def test_holes_are_clear_in_volumes_of_every_type(scene, before, views, dtype):
    """Half of the picture is the fixed volume's grey, untouched, right up to the other half: no dark seam."""
    fixed = a_volume(scene, np.full(GRID.shape, 60, np.int16), "fixed", window=(250, 125))
    warped = a_volume(scene, np.full(GRID.shape, 200, dtype), "warped", window=(250, 125))
    volumes.image_from_node(warped).array[0, 0, 0] = 0  # the lowest value is nothing special
    cut = review.cut_volume(before, warped)
    review.show_comparison(before, views.composites, fixed, cut.node, 1)
    cut.node.GetDisplayNode().SetWindowLevel(250, 125)
    review.curtain(cut, "R-L", 0.5)
    pictured = views.look()
    for view in ("Axial", "Coronal"):  # the patient's right is left
        row = pictured[view][SIZE // 2, 5:-5].mean(axis=-1)
        low, high = np.abs(row - 60 / 250) < 0.01, np.abs(row - 200 / 250) < 0.01
        assert (low | high).all()
        assert high[:60].all()
        assert low[-60:].all()


def test_label_maps_are_cut_to_background(scene, before):
    node = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    node.CreateDefaultDisplayNodes()
    volumes.node_from_image(scene, Image(np.full(GRID.shape, 3, np.uint8), GRID), "", node)
    cut = review.cut_volume(before, node)
    review.curtain(cut, "S-I", 0.5)
    assert cut.node.IsA("vtkMRMLLabelMapVolumeNode")
    array = volumes.image_from_node(cut.node).array
    assert array.dtype == np.uint8
    assert (array[25:] == 3).all()  # the upper half
    assert (array[:25] == 0).all()


@pytest.mark.parametrize(("direction", "axis", "sign"), [("R-L", 0, 1), ("A-P", 1, 1), ("S-I", 2, -1)])
def test_the_curtain_hangs_along_the_body_on_an_oblique_flipped_grid(scene, before, direction, axis, sign):
    source = a_volume(scene, np.full(OBLIQUE.shape, 100, np.int16), grid=OBLIQUE)
    cut = review.cut_volume(before, source)
    along = sign * places(OBLIQUE)[..., axis]
    for fraction in (0.3, 0.8, 0.45, 0.0, 1.0, 0.5):  # forth and back: what is written is what changes
        review.curtain(cut, direction, fraction)
        shown = volumes.image_from_node(cut.node).array == 100
        assert shown.mean() == pytest.approx(fraction, abs=0.02)
        if 0 < fraction < 1:
            assert along[shown].mean() < along[~shown].mean() - 15
    review.checkerboard(cut, 4)
    review.curtain(cut, direction, 0.5)  # nothing of the other pattern stays
    assert (volumes.image_from_node(cut.node).array == 100).mean() == pytest.approx(0.5, abs=0.02)
    with pytest.raises(InputError, match="'L-R'"):
        review.curtain(cut, "L-R", 0.5)


def test_checkerboard_cells_are_cubes_in_mm(scene, before, views):
    source = a_volume(scene, np.full(OBLIQUE.shape, 100, np.uint8), grid=OBLIQUE)
    cut = review.cut_volume(before, source)
    review.checkerboard(cut, 7)
    shown = volumes.image_from_node(cut.node).array == 100
    assert shown.mean() == pytest.approx(0.5, abs=0.05)
    cell = 105 / 7  # of the longest edge, k
    for axis, spacing in enumerate(OBLIQUE.spacing[::-1]):
        line = np.moveaxis(shown, axis, 0)[:, 0, 0]
        changes = np.flatnonzero(np.diff(line)) + 1
        assert np.abs(np.diff(changes) * spacing - cell).max() < spacing + 1e-6
    fixed = a_volume(scene, np.zeros(GRID.shape, np.int16), "fixed", window=(200, 100))
    plain = review.cut_volume(before, a_volume(scene, np.full(GRID.shape, 200, np.int16), "w", window=(200, 100)))
    review.checkerboard(plain, 5)  # the views cut through the middle of cells
    review.show_comparison(before, views.composites, fixed, plain.node, 1)
    plain.node.GetDisplayNode().SetWindowLevel(200, 100)
    for picture in views.look().values():
        assert set(np.unique(picture.round(2))) == {0.0, 1.0}
        assert picture.mean() == pytest.approx(0.5, abs=0.1)


def test_the_cut_volume_is_neither_saved_nor_listed(scene, before):
    cut = review.cut_volume(before, a_volume(scene, np.zeros(GRID.shape, np.int16)))
    display = cut.node.GetDisplayNode()
    assert not cut.node.GetSaveWithScene()
    assert not display.GetSaveWithScene()
    assert cut.node.GetHideFromEditors()
    before.remove_hidden_nodes(cut.node)
    assert display.GetScene() is None
    assert before.added == []


# ------------------------------------------------------------------------------------------------ deformation, segments


@pytest.mark.parametrize("style", ["grid", "glyphs", "contours"])
def test_the_deformation_is_drawn_in_slices_and_taken_away(scene, before, views, style):
    wave = np.zeros((*GRID.shape, 3))
    wave[..., 0] = 6 * np.sin(places(GRID)[..., 1] / 12)
    transform = a_field_node(scene, wave)
    fixed = a_volume(scene, np.zeros(GRID.shape, np.int16), "fixed")
    review.show_comparison(before, views.composites, fixed, fixed, 0)

    def drawn():
        return float((views.look()["Axial"].max(axis=-1) > 0.2).mean())

    assert drawn() == 0
    review.show_deformation(before, transform, style, fixed)
    display = transform.GetDisplayNode()
    assert display.GetNodeReference("region") is fixed
    thin = drawn()
    assert thin > 0.01
    spacing = 2 * review.deformation_spacing(style, fixed, transform)
    review.show_deformation(before, transform, style, fixed, spacing=spacing)
    assert 0 < drawn() < thin
    if style == "grid":
        assert display.GetGridSpacingMm() == spacing
        review.show_deformation(before, transform, style, fixed, line_width=1)
        thin = drawn()
        review.show_deformation(before, transform, style, fixed, line_width=3)
        assert drawn() > 1.8 * thin
    review.show_deformation(before, transform, style, fixed, in_slices=False, in_3d=True)
    assert drawn() == 0
    assert display.GetVisibility3D()
    before.restore(display)
    assert drawn() == 0
    assert not display.GetVisibility()


def test_lines_that_lie_far_apart_are_thicker(scene):
    volume = volumes.node_from_image(
        scene, Image(np.zeros((9, 9, 9), np.int16), Grid.from_parts((9, 9, 9), (2, 1, 4))), "v"
    )
    assert [review.deformation_line_width(spacing, volume) for spacing in (1, 8, 16, 24, 100)] == [1, 1, 2, 3, 3]


def test_spacings_follow_the_image_and_the_displacement(scene):
    assert [review.grid_spacing(width) for width in (40, 100, 250, 300, 480)] == [2, 5, 10, 10, 20]
    for width in np.geomspace(5, 5000, 40):
        assert 15 <= width / review.grid_spacing(width) <= 40
    fixed = a_volume(scene, np.zeros(GRID.shape, np.int16))
    for longest, step in ((20, 2), (5, 0.5)):
        transform = a_field_node(scene, (longest, 0, 0))
        assert review.deformation_spacing("contours", fixed, transform) == pytest.approx(step)
        assert review.deformation_spacing("grid", fixed, transform) == 5
    with pytest.raises(InputError, match="'arrows'"):
        review.show_deformation(review.SceneRestorePoint(scene), transform, "arrows", fixed)


def test_outlines_in_matching_colours_and_back(scene, before, views):
    fixed = a_ball_node(scene, [(-20, 0, 0), (20, 0, 0)], (0, 0.6, 0), names="ab")
    moving = a_ball_node(scene, [(-15, 0, 0), (25, 0, 0)], (0, 0, 1), names="ax")
    moving.GetDisplayNode().SetVisibility(False)
    review.show_outlines(before, fixed, moving)
    shown = [node.GetDisplayNode() for node in (fixed, moving)]
    assert review.outline_displays(fixed, moving) == shown
    thick, thin = (display.GetSliceIntersectionThickness() for display in shown)
    assert thick > thin
    assert not any(display.GetVisibility2DFill() for display in shown)
    matched, lone = (list(shown[1].GetSegmentOverrideColor(f"id_{name}")) for name in "ax")
    assert matched[1] > matched[0] + 0.1  # the fixed one's green, lighter; not its own blue
    assert matched[1] > 0.6
    assert lone[2] > lone[1] + 0.1
    picture = views.look()["Axial"]
    green = picture[..., 1] > picture[..., 2] + 0.1
    blue = picture[..., 2] > picture[..., 1] + 0.1
    assert right_of_centre(green & (np.arange(SIZE) < SIZE // 2)) == pytest.approx(-18, abs=3)
    assert right_of_centre(blue) == pytest.approx(25, abs=3)
    assert picture[SIZE // 2, int(SIZE * 0.3)].max() < 0.1  # no fill
    before.restore(*shown)
    assert [d.GetVisibility2DFill() for d in shown] == [True, True]
    assert [d.GetVisibility() for d in shown] == [True, False]
    assert list(shown[1].GetSegmentOverrideColor("id_a")) == [-1, -1, -1]


def test_ticked_segments_are_seen_warped_at_once(scene, before, views):
    source = a_ball_node(scene, [(20, -30, 0), (20, 0, 0), (20, 30, 0)], (1, 0, 0), names="abc")
    parent = a_linear_node(scene, np.eye(4))
    source.SetAndObserveTransformNodeID(parent.GetID())
    source.GetDisplayNode().SetVisibility(False)
    forward = a_field_node(scene)
    node = review.live_segments(before, source, ["id_a", "id_b"], forward)
    assert list(node.GetSegmentation().GetSegmentIDs()) == ["id_a", "id_b"]
    assert [node.GetSegmentation().GetSegment(i).GetName() for i in ("id_a", "id_b")] == ["a", "b"]
    assert not node.GetSaveWithScene()

    def seen():
        """Which balls are drawn, by rows: front, middle, back."""
        picture = views.look()["Axial"]
        filled = picture[..., 0] > picture[..., 1] + 0.2
        if filled.any():
            assert right_of_centre(filled) == pytest.approx(0, abs=2)  # 20 mm from where the source is
        return [bool(filled[int(SIZE * (0.5 + y / 100)), SIZE // 2]) for y in (-30, 0, 30)]

    assert seen() == [True, True, False]
    surface = node.GetSegmentation().GetSegment("id_b").GetRepresentation("Closed surface")
    assert np.array(surface.GetBounds()).reshape(3, 2).mean(axis=1) == pytest.approx([-20, 0, 0], abs=1)
    assert review.live_segments(before, source, ["id_b", "id_c"], forward, node) is node
    assert seen() == [False, True, True]
    assert source.GetParentTransformNode() is parent
    before.remove_hidden_nodes(node)
    assert seen() == [False, False, False]
    under = [node.GetParentTransformNode() for node in nodes_of_class(scene, "vtkMRMLTransformNode")]
    assert forward not in under  # no stand-in is left


# ------------------------------------------------------------------------------------------------ overlays


def test_distrust_is_seen_in_steps_and_trusted_tissue_stays_clear(scene, before, views):
    coarse = Grid.from_parts((26, 26, 26), (4, 4, 4), (-50, -50, -50))
    error = np.full(coarse.shape, 0.2, np.float32)
    error[..., 17:] = 4  # the patient's left
    error[:, :9, 17:] = 40
    error[..., :4] = np.nan
    jacobian = np.ones(coarse.shape, np.float32)
    jacobian[:, 20:, 10:15] = -0.5
    nodes = [volumes.node_from_image(scene, Image(array, coarse), "map") for array in (error, jacobian)]
    fixed = a_volume(scene, np.full(GRID.shape, 500, np.int16), "fixed")
    review.show_comparison(before, views.composites, fixed, fixed, 0)
    overlay = review.trust_overlay(before, *nodes)
    review.show_overlay(before, views.composites, overlay, 1)
    assert overlay.IsA("vtkMRMLLabelMapVolumeNode")
    table = overlay.GetDisplayNode().GetColorNode()
    names = [table.GetColorName(n) for n in range(8)]
    assert names[1:4] == ["1 - 2 mm", "2 - 3 mm", "3 - 5 mm"]
    assert names[5:] == ["more than 10 mm", "no counterpart in the moving image", "folded"]
    image = volumes.image_from_node(overlay)

    def name_at(point):
        i, j, k = image.grid.to_index(point).round().astype(int)
        return names[image.array[k, j, i]]

    def color_at(point):
        x, y, _ = point
        return views.look()["Axial"][int(SIZE * (0.5 + y / 100)), int(SIZE * (0.5 + x / 100))]

    expected = {(0, 0, 0): "trusted", (35, 10, 0): names[3], (35, -35, 0): names[5], (-44, 0, 0): names[6]}
    expected[(-2, 40, 0)] = "folded"
    for point, name in expected.items():
        assert name_at(point) == name
        color = np.zeros(4)
        table.GetColor(names.index(name), color)
        wanted = [0.5, 0.5, 0.5] if name == "trusted" else color[:3]
        assert color_at(point) == pytest.approx(wanted, abs=0.02)
    review.show_overlay(before, views.composites, None)
    assert color_at((35, 10, 0)) == pytest.approx([0.5] * 3, abs=0.02)
    folding = review.trust_overlay(before, None, nodes[1])
    assert set(np.unique(volumes.image_from_node(folding).array)) == {0, 7}
    elsewhere = volumes.node_from_image(scene, Image(jacobian, GRID.with_shape(jacobian.shape)), "another run's")
    with pytest.raises(InputError, match="another run's"):
        review.trust_overlay(before, nodes[0], elsewhere)


# ------------------------------------------------------------------------------------------------ cursor, table


def test_the_corresponding_point_lies_on_the_undeformed_scan_under_its_parent(scene, before):
    """A voxel of a moving scan with a turned parent: the cursor at its registered place finds it in the world."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = a_turn(30, 2), (40, 0, 0)
    moving = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "tip")
    moving.AddControlPoint([4, 5, 6])
    moving.SetAndObserveTransformNodeID(a_linear_node(scene, affine).GetID())
    undeformed = world_of_point(moving)
    assert undeformed == pytest.approx(flip_vectors(apply_affine(affine, flip_vectors(np.array([4.0, 5, 6])))))
    wave = np.zeros((*GRID.shape, 3))
    wave[..., 1] = 4 * np.sin(places(GRID)[..., 0] / 15)
    forward = a_field_node(scene, wave + SHIFT)
    review.put_under(before, moving, forward)
    registered = world_of_point(moving)
    assert np.linalg.norm(registered - undeformed) > 15
    for amount in (1.0, 0.3, 0.0):  # the whole map's answer, however much is shown
        review.set_warp_amount(forward, amount)
        assert review.corresponding_point(forward, registered) == pytest.approx(undeformed, abs=0.01)
        assert forward.GetTransformFromParent().GetDisplacementScale() == amount


def test_the_cursor_is_a_locked_point_in_the_moving_scans_views(scene, before):
    nodes = [scene.AddNewNodeByClass("vtkMRMLSliceNode", orientation) for orientation in ("Axial", "Coronal")]
    for node, orientation in zip(nodes, ("Axial", "Coronal"), strict=True):
        node.SetOrientation(orientation)
        node.SetDimensions(100, 100, 1)
        node.SetFieldOfView(100, 100, 1)
    marker = review.cursor_marker(before, nodes)
    assert marker.GetLocked()
    assert not marker.GetSaveWithScene()
    assert list(marker.GetDisplayNode().GetViewNodeIDs()) == [node.GetID() for node in nodes]
    for point in ([1, 2, 3], [10, -20, 30]):
        review.place_cursor(marker, point, nodes)
        assert marker.GetNumberOfControlPoints() == 1
        assert world_of_point(marker) == pytest.approx(point)
        assert nodes[0].GetSliceOffset() == pytest.approx(point[2])
        assert nodes[1].GetSliceOffset() == pytest.approx(point[1])
        assert nodes[0].GetSliceToRAS().GetElement(0, 3) == 0  # in view: not panned
    review.place_cursor(marker, [80, 0, 0], nodes)
    assert nodes[0].GetSliceToRAS().GetElement(0, 3) == pytest.approx(80)


def test_the_trust_card_is_a_table(scene):
    rows = [
        Row("Segments", "liver", "Dice", "", 0.5, 0.9),
        Row("Segments", "liver", "HD95", "mm", math.inf, math.nan),
        Row("Map", "mean", "displacement", "mm", None, 3.25),
    ]
    verdicts = (Verdict("Folding", 0.0, "green", "none"),)
    report = SimpleNamespace(rows=lambda: rows, verdicts=verdicts)
    node = review.report_table(scene, report, "trust")
    assert node.GetNumberOfRows() == 4
    titles = ["Group", "Name", "Measure", "Unit", "Before", "After", "Meaning"]
    assert [node.GetColumnName(column) for column in range(7)] == titles
    text = [[node.GetCellText(row, column) for column in range(7)] for row in range(4)]
    assert text[0] == ["Verdict", "green", "Folding", "", "", "0", "none"]
    assert text[1] == ["Segments", "liver", "Dice", "", "0.5", "0.9", ""]
    assert text[2] == ["Segments", "liver", "HD95", "mm", "inf", "", ""]
    assert text[3] == ["Map", "mean", "displacement", "mm", "", "3.25", ""]
    rows.pop()
    assert review.report_table(scene, report, "", node) is node
    assert (node.GetNumberOfRows(), node.GetName()) == (3, "trust")


# ------------------------------------------------------------------------------------------------ all back


def test_leaving_puts_everything_back(scene, before):
    fixed, moving = (a_volume(scene, np.zeros(GRID.shape, np.int16), name, window=(7, 5)) for name in ("f", "m"))
    labels = [a_ball_node(scene, [(0, 0, 0)]) for _ in range(2)]
    forward, parent = a_field_node(scene), a_linear_node(scene, np.eye(4))
    forward.CreateDefaultDisplayNodes()
    moving.SetAndObserveTransformNodeID(parent.GetID())
    composites = composites_of(scene)
    composites[0].SetBackgroundVolumeID(moving.GetID())
    composites[1].SetForegroundVolumeID(fixed.GetID())
    composites[1].SetForegroundOpacity(0.7)
    ids = {node.GetID() for node in nodes_of_class(scene, "vtkMRMLNode")}

    review.show_carried(before, composites, [fixed, labels[0]], [moving, labels[1]], forward)
    review.show_comparison(before, composites, fixed, review.cut_volume(before, fixed).node, 1)
    review.show_overlay(before, composites, review.trust_overlay(before, fixed))
    review.show_outlines(before, *labels)
    review.show_deformation(before, forward, "grid", fixed)
    review.live_segments(before, labels[1], ["id_a"], forward)
    review.cursor_marker(before, [])
    before.restore()

    left = [node for node in nodes_of_class(scene, "vtkMRMLNode") if node.GetID() not in ids]
    assert left == [forward.GetDisplayNode().GetColorNode()]  # the transform's display keeps its colours
    assert moving.GetParentTransformNode() is parent
    assert labels[1].GetParentTransformNode() is None
    assert [composite.GetBackgroundVolumeID() for composite in composites] == [moving.GetID(), None]
    assert [composite.GetForegroundVolumeID() for composite in composites] == [None, fixed.GetID()]
    assert [composite.GetLabelVolumeID() for composite in composites] == [None, None]
    assert composites[1].GetForegroundOpacity() == 0.7
    assert (moving.GetDisplayNode().GetWindow(), moving.GetDisplayNode().GetLevel()) == (7, 5)
    assert all(node.GetDisplayNode().GetVisibility2DFill() for node in labels)
    assert not forward.GetDisplayNode().GetVisibility()
    assert (before.values, before.added, before.moved) == ({}, [], [])


def test_what_was_deleted_meanwhile_is_left_alone(scene, before):
    fixed, moving, old = (a_volume(scene, np.zeros(GRID.shape, np.int16), name) for name in ("f", "m", "old"))
    forward, composites = a_field_node(scene), composites_of(scene)
    composites[0].SetBackgroundVolumeID(old.GetID())
    review.put_under(before, moving, forward)
    review.show_comparison(before, composites, fixed, review.cut_volume(before, fixed).node)
    for node in (old, forward, composites[1], moving):
        scene.RemoveNode(node)
    before.restore()
    assert composites[0].GetBackgroundVolumeID() is None
    assert before.added == []
