"""Nodes in, nodes out. A stand-in for `register`, with a known field, shows what becomes of its result."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import phantoms
import pytest
from grids import places

from IconRegistrationLib.errors import Cancelled, InputError
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation, flip_affine

slicer = pytest.importorskip("slicer", reason="needs slicer-core")

from IconRegistrationLib.mrml import markups, segmentations, transforms, volumes  # noqa: E402
from IconRegistrationLib.mrml.registration import (  # noqa: E402
    PROVENANCE_ATTRIBUTE,
    RegistrationRequest,
    ResultNodes,
    mask_from_node,
    outputs_of,
    register_nodes,
    request_of,
)
from IconRegistrationLib.mrml.scene import load_scene, nodes_of_class, save_scene  # noqa: E402
from IconRegistrationLib.registration.settings import Settings  # noqa: E402
from IconRegistrationLib.spatial.displacement import DisplacementField  # noqa: E402
from IconRegistrationLib.spatial.field import warp_image, warp_segmentation  # noqa: E402
from IconRegistrationLib.workflow.pipeline import grid_at_moving_resolution  # noqa: E402

SHIFT = np.array([4.0, -3.0, 5.0])
FIXED_GRID = Grid.from_parts((20, 18, 16), (2, 2, 3), (-20, -15, -25))
MOVING_GRID = Grid.from_parts((30, 26, 22), (1.5, 1.5, 2.5), (24, 20, -28), np.diag([-1, -1, 1]))


def a_blob(grid: Grid, centre, dtype=np.int16) -> Image:
    distance = np.linalg.norm(places(grid) - centre, axis=-1)
    return Image((1000 * np.exp(-((distance / 9) ** 2)) - 1000).astype(dtype), grid, "blob")


def a_shift_field(grid: Grid, shift) -> DisplacementField:
    return DisplacementField(np.broadcast_to(np.float32(shift), (*grid.shape, 3)).copy(), grid)


def a_register(fixed, moving, settings, *, progress, **given):
    """The true shift between the blobs, in the form of `register`'s result."""
    a_register.given = given
    for step in range(3):
        progress("refinement", step / 2)
    linear = np.eye(4)
    linear[:3, 3] = SHIFT
    return SimpleNamespace(
        forward=a_shift_field(fixed.grid, SHIFT),
        backward=a_shift_field(moving.grid, -SHIFT),
        linear=linear,
        outside=-1000.0,
        provenance={"fixed": {"name": fixed.name}, "seed": np.int64(3)},
    )


@pytest.fixture
def a_stand_in(monkeypatch):
    monkeypatch.setattr("IconRegistrationLib.workflow.pipeline.register", a_register)


def a_pair(scene):
    """Fixed and moving volume nodes in two folders of the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    nodes = []
    for name, grid, centre in (("CT 1", FIXED_GRID, np.zeros(3)), ("CT 2", MOVING_GRID, SHIFT)):
        node = volumes.node_from_image(scene, a_blob(grid, centre), name)
        hierarchy.CreateItem(hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), f"folder of {name}"), node)
        nodes.append(node)
    return nodes


def a_segmentation_node(scene, grid: Grid, centre, name="organs"):
    image = a_blob(grid, centre)
    layer = (image.array > -500).astype(np.uint8)
    core = (image.array > -100).astype(np.uint8)
    segments = (
        Segment("organ", 1, 0, (0.8, 0.4, 0.1), "organ", {"TerminologyEntry": "a~b"}),
        Segment("centre", 1, 1, (0, 0, 1), "centre", {"TerminologyEntry": "c~d"}),
    )
    return segmentations.node_from_segmentation(scene, Segmentation((layer, core), segments, grid, name), name)


def parent_name(scene, node) -> str:
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    return hierarchy.GetItemName(hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)))


def ids(scene) -> set:
    return {node.GetID() for node in nodes_of_class(scene, "vtkMRMLNode")}


def test_everything_that_was_asked_for_lands_beside_its_input(scene, a_stand_in):
    fixed, moving = a_pair(scene)
    organs = a_segmentation_node(scene, MOVING_GRID, SHIFT)
    truth = a_segmentation_node(scene, FIXED_GRID, np.zeros(3), "truth")
    lists = [
        markups.node_from_landmarks(scene, Landmarks(np.array([point]), ("tip",)), "points")
        for point in ([1.0, 2.0, 3.0], [5.0, -1.0, 8.0])
    ]
    stages = []
    outputs = register_nodes(
        fixed,
        moving,
        fixed_segmentation=truth,
        moving_segmentation=organs,
        fixed_landmarks=lists[0],
        moving_landmarks=lists[1],
        moving_resolution=True,
        progress=lambda stage, fraction: stages.append((stage, fraction)),
    )

    assert outputs.forward.GetName() == "CT 2 to CT 1"
    assert outputs.backward.GetName() == "CT 1 to CT 2"
    assert outputs.warped_volume.GetName() == "CT 2 registered to CT 1"
    assert outputs.warped_segmentation.GetName() == "organs registered to CT 1"
    assert parent_name(scene, outputs.forward) == parent_name(scene, outputs.warped_volume) == "folder of CT 2"
    assert parent_name(scene, outputs.backward) == parent_name(scene, outputs.warped_volume_fine) == "folder of CT 1"

    assert transforms.transform_points(outputs.forward, np.zeros((1, 3)))[0] == pytest.approx(SHIFT, abs=1e-5)
    assert transforms.transform_points(outputs.backward, np.zeros((1, 3)))[0] == pytest.approx(-SHIFT, abs=1e-5)

    warped = volumes.image_from_node(outputs.warped_volume)
    assert warped.grid.is_close(FIXED_GRID, 1e-6)
    assert warped.array.dtype == np.int16
    middle = (slice(3, -3),) * 3  # the moving image does not reach the fixed image's border everywhere
    assert np.abs(warped.array - volumes.image_from_node(fixed).array)[middle].max() < 25
    fine = volumes.image_from_node(outputs.warped_volume_fine)
    assert fine.grid.extent == pytest.approx(FIXED_GRID.extent)
    assert (fine.grid.spacing <= MOVING_GRID.spacing + 1e-9).all()

    read = segmentations.segmentation_from_node(outputs.warped_segmentation)
    original = segmentations.segmentation_from_node(organs)
    expected = warp_segmentation(original, a_shift_field(FIXED_GRID, SHIFT), FIXED_GRID)
    assert [(s.name, s.color, s.tags) for s in read.segments] == [(s.name, s.color, s.tags) for s in original.segments]
    for segment, source in zip(read.segments, expected.segments, strict=True):
        assert np.array_equal(read.mask(segment), expected.mask(source))

    assert outputs.report.dice.after > 0.85 > outputs.report.dice.before
    assert outputs.report.target_registration_error.after == pytest.approx(0, abs=1e-4)
    assert json.loads(outputs.forward.GetAttribute(PROVENANCE_ATTRIBUTE))["fixed"] == {"name": "CT 1"}
    assert outputs.forward.GetNodeReference("IconRegistration.moving") is moving
    assert outputs.backward.GetNodeReference("IconRegistration.moving") is moving
    fractions = [fraction for _, fraction in stages]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert a_register.given["fixed_labels"] is None  # compared, not used as a guide


def test_a_moving_volume_under_its_parent_and_the_forward_node_lies_on_the_fixed_one(scene, a_stand_in):
    fixed, moving = a_pair(scene)
    before = volumes.image_from_node(moving).grid
    parent = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "scanner")
    away = np.eye(4)
    away[:3, 3] = (100, 50, -30)
    local = np.linalg.inv(away) @ flip_affine(before.affine)
    moving.SetIJKToRASMatrix(transforms.matrix_from_array(local))
    parent.SetMatrixTransformToParent(transforms.matrix_from_array(away))
    moving.SetAndObserveTransformNodeID(parent.GetID())
    assert volumes.image_from_node(moving).grid.is_close(before, 1e-6)
    outputs = register_nodes(fixed, moving)
    parent.SetAndObserveTransformNodeID(outputs.forward.GetID())
    moving.HardenTransform()
    hardened = volumes.image_from_node(moving)
    blob = places(hardened.grid)[hardened.array > -300]
    assert blob.mean(axis=0) == pytest.approx([0, 0, 0], abs=0.5)


def test_outputs_of_an_earlier_run_are_updated_in_place(scene, a_stand_in):
    fixed, moving = a_pair(scene)
    organs = a_segmentation_node(scene, MOVING_GRID, SHIFT)
    first = register_nodes(fixed, moving, moving_segmentation=organs)
    before = ids(scene)
    second = register_nodes(fixed, moving, moving_segmentation=organs, outputs=first)
    assert second.forward is first.forward
    assert second.warped_segmentation is first.warped_segmentation
    assert ids(scene) == before
    third = register_nodes(fixed, moving)
    assert third.forward is not first.forward
    assert third.forward.GetName() != first.forward.GetName()


def test_a_cancelled_or_failed_run_leaves_the_scene_as_it_was(scene, a_stand_in, monkeypatch):
    fixed, moving = a_pair(scene)
    organs = a_segmentation_node(scene, MOVING_GRID, SHIFT)
    before = ids(scene)

    def cancel(stage, fraction):
        if fraction >= 0.9:
            raise Cancelled

    with pytest.raises(Cancelled):
        register_nodes(fixed, moving, moving_segmentation=organs, progress=cancel)
    assert ids(scene) == before

    def fail(*args, **options):
        raise MemoryError("no room for voxels")

    monkeypatch.setattr("IconRegistrationLib.mrml.registration.node_from_segmentation", fail)
    with pytest.raises(MemoryError):  # after the transforms and the volume had been made
        register_nodes(fixed, moving, moving_segmentation=organs)
    assert ids(scene) == before


def test_what_cannot_be_used_is_refused_before_the_registration(scene, monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("the registration was started")

    monkeypatch.setattr("IconRegistrationLib.workflow.pipeline.register", never)
    fixed, moving = a_pair(scene)
    empty = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "blank")
    linear = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "straight")
    bent = transforms.node_from_field(scene, a_shift_field(FIXED_GRID, SHIFT), "bent")
    with pytest.raises(InputError, match="'blank'"):
        register_nodes(fixed, moving, moving_segmentation=empty)
    with pytest.raises(InputError, match="'bent'"):
        register_nodes(fixed, moving, initial=bent)
    with pytest.raises(InputError, match="'straight' is none"):
        register_nodes(fixed, moving, outputs=ResultNodes(forward=linear))
    with pytest.raises(InputError, match="'CT 2' is an input"):
        register_nodes(fixed, moving, outputs=ResultNodes(warped_volume=moving))


def test_the_initial_transform_counts_once(scene, a_stand_in):
    fixed, moving = a_pair(scene)
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "initial")
    onto_fixed = np.eye(4)
    onto_fixed[:3, 3] = -SHIFT * (-1, -1, 1)
    node.SetMatrixTransformToParent(transforms.matrix_from_array(onto_fixed))
    register_nodes(fixed, moving, initial=node)
    assert a_register.given["initial"][:3, 3] == pytest.approx(SHIFT)
    moving.SetAndObserveTransformNodeID(node.GetID())
    register_nodes(fixed, moving, initial=node)
    assert a_register.given["initial"] is None


def test_masks_regions_and_guides_reach_the_registration(scene, a_stand_in):
    fixed, moving = a_pair(scene)
    organs = a_segmentation_node(scene, MOVING_GRID, SHIFT)
    truth = a_segmentation_node(scene, FIXED_GRID, np.zeros(3), "truth")
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    roi.SetCenter(1, 2, 3)
    roi.SetSize(20, 20, 20)
    register_nodes(
        fixed,
        moving,
        fixed_segmentation=truth,
        moving_segmentation=organs,
        fixed_mask=truth,
        moving_mask=moving,
        region=roi,
        guide=True,
    )
    given = a_register.given
    assert np.array_equal(given["fixed_mask"].array, (a_blob(FIXED_GRID, np.zeros(3)).array > -500).astype(np.uint8))
    assert np.array_equal(given["moving_mask"].array, (volumes.image_from_node(moving).array != 0).astype(np.uint8))
    assert given["region"].centre == pytest.approx([-1, -2, 3])
    assert [s.name for s in given["moving_labels"].segments] == ["organ", "centre"]
    assert mask_from_node(organs).array.max() == 1


def test_the_fine_grid_follows_the_moving_voxels_through_rotation_and_scale():
    moving = Grid.from_parts((10, 10, 10), (0.5, 1, 4), direction=np.eye(3)[[1, 2, 0]])
    linear = np.diag([2.0, 2.0, 2.0, 1.0])  # 1 mm in the fixed image is 2 mm in the moving one
    grid = grid_at_moving_resolution(FIXED_GRID, moving, linear)
    along_xyz = [1, 4, 0.5]  # the moving axis j runs along x, k along y, i along z
    assert np.abs(moving.affine[:3, :3]).sum(axis=1) == pytest.approx(along_xyz)
    assert grid.spacing == pytest.approx(np.array(along_xyz) / 2, rel=0.05)
    assert grid.corners(faces=True) == pytest.approx(FIXED_GRID.corners(faces=True))


def test_a_real_registration_of_a_phantom(scene):

    phantom = phantoms.phantom(48)
    fixed = volumes.node_from_image(scene, phantom.fixed, "inhale")
    moving = volumes.node_from_image(scene, phantom.moving, "exhale")
    organs = segmentations.node_from_segmentation(scene, phantom.moving_segmentation, "organs", reference=moving)
    truth = segmentations.node_from_segmentation(scene, phantom.fixed_segmentation, "truth", reference=fixed)
    outputs = register_nodes(
        fixed,
        moving,
        fixed_segmentation=truth,
        moving_segmentation=organs,
        settings=Settings(align="centre", spacing=9.0, steps=20, device="cpu"),
    )
    assert outputs.report.dice.after > outputs.report.dice.before + 0.1
    image = volumes.image_from_node(moving)
    field = transforms.field_from_node(outputs.forward)
    expected = warp_image(image, field, phantom.fixed.grid, outside=np.nan).array
    warped = volumes.image_from_node(outputs.warped_volume).array
    assert np.isfinite(expected).mean() > 0.5
    assert np.nanmax(np.abs(warped - expected)) < 0.51  # the node and the volume agree, whole Hounsfield units apart


def test_maps_and_landmarks_become_nodes_and_are_updated_in_place(scene, a_stand_in):
    """A shift changes no volume and undoes itself; where it leaves the moving image nothing is known: -1."""
    fixed, moving = a_pair(scene)
    points = markups.node_from_landmarks(scene, Landmarks(np.array([SHIFT]), ("tip",)), "points")
    asked = {"moving_landmarks": points, "jacobian": True, "distrust": True}
    outputs = register_nodes(fixed, moving, **asked)
    np.testing.assert_allclose(markups.landmarks_from_node(outputs.warped_landmarks).points, [[0, 0, 0]], atol=1e-4)
    assert parent_name(scene, outputs.warped_landmarks) == parent_name(scene, points)
    np.testing.assert_allclose(volumes.image_from_node(outputs.jacobian).array, 1, atol=1e-5)
    distrust = volumes.image_from_node(outputs.distrust)
    assert distrust.array[tuple(n // 2 for n in distrust.grid.shape)] == pytest.approx(0, abs=1e-5)
    assert set(np.unique(distrust.array[distrust.array < 0])) <= {-1.0}

    before = ids(scene)
    again = register_nodes(fixed, moving, **asked, outputs=outputs)
    assert ids(scene) == before
    assert again.jacobian is outputs.jacobian
    assert again.warped_landmarks is outputs.warped_landmarks


def test_only_the_chosen_segments_take_part(scene, a_stand_in):
    fixed, moving = a_pair(scene)
    organs = a_segmentation_node(scene, MOVING_GRID, SHIFT)
    truth = a_segmentation_node(scene, FIXED_GRID, np.zeros(3), "truth")
    asked = {"fixed_segmentation": truth, "moving_segmentation": organs, "moving_mask": organs}
    outputs = register_nodes(fixed, moving, **asked, moving_segments=["centre"])
    assert [s.name for s in segmentations.segmentation_from_node(outputs.warped_segmentation).segments] == ["centre"]
    assert [s.name for s in outputs.report.segments if np.isfinite(s.dice.after)] == ["centre"]
    whole, core = mask_from_node(organs).array, a_register.given["moving_mask"].array
    assert 0 < core.sum() < whole.sum()

    silent = register_nodes(fixed, moving, **asked, carry=False, compare=False)
    assert silent.warped_segmentation is None
    assert silent.report.segments == ()

    organs.GetSegmentation().RemoveSegment("centre")
    with pytest.raises(InputError, match="centre"):
        register_nodes(fixed, moving, **asked, moving_segments=["centre"])


def test_a_result_says_how_it_was_made_after_saving_and_loading(scene, tmp_path):
    """The real thing: the request is whole again, and the outputs are found, so that a run can be repeated."""
    phantom = phantoms.phantom(32)
    fixed = volumes.node_from_image(scene, phantom.fixed, "fixed")
    moving = volumes.node_from_image(scene, phantom.moving, "moving")
    organs = segmentations.node_from_segmentation(scene, phantom.moving_segmentation, "organs")
    chosen = [phantom.moving_segmentation.segments[0].identifier]
    settings = Settings(spacing=12.0, steps=2, align="centre", device="cpu")
    asked = {"moving_segmentation": organs, "moving_segments": chosen, "settings": settings, "distrust": True}
    outputs = register_nodes(fixed, moving, **asked)
    assert request_of(outputs.forward) == RegistrationRequest(fixed, moving, **asked)
    report = repr(replace(outputs.report, provenance={}))  # NaN is not equal to itself
    assert replace(outputs_of(outputs.forward), report=None) == replace(outputs, report=None)
    assert repr(outputs_of(outputs.forward).report) == report
    assert request_of(fixed) is None

    path = save_scene(scene, tmp_path / "scene.mrb")
    names = {name: node.GetName() for name, node in vars(outputs).items() if name != "report" and node is not None}
    scene.Clear(False)  # what a user closes: colour tables and views stay
    load_scene(scene, path)
    forward = next(n for n in nodes_of_class(scene, "vtkMRMLGridTransformNode") if n.GetName() == names["forward"])
    request, found = request_of(forward), outputs_of(forward)
    assert {name: node.GetName() for name, node in request.nodes.items()} == {
        "fixed": "fixed",
        "moving": "moving",
        "moving_segmentation": "organs",
    }
    assert request.moving_segments == chosen
    assert request.settings == settings
    assert request.distrust
    assert {name: getattr(found, name).GetName() for name in names} == names
    assert repr(found.report) == report

    scene.RemoveNode(request.moving)
    with pytest.raises(InputError, match="moving volume"):
        request_of(forward)
