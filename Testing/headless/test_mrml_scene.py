"""Scenes as files: what was saved warps, is named and is coloured as before."""

import os

import numpy as np
import pytest
from grids import places

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation

slicer = pytest.importorskip("slicer", reason="needs slicer-core")

from IconRegistrationLib.mrml import markups, segmentations, transforms, volumes  # noqa: E402
from IconRegistrationLib.mrml.scene import load_scene, nodes_of_class, save_scene, temporary_nodes  # noqa: E402
from IconRegistrationLib.spatial.displacement import DisplacementField  # noqa: E402

ROTATION = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
GRID = Grid.from_parts((12, 10, 8), (2, 3, 4), (10, -20, 30), ROTATION)


def named(scene, class_name: str, name: str):
    (node,) = [node for node in nodes_of_class(scene, class_name) if node.GetName() == name]
    return node


def a_field(grid: Grid = GRID) -> DisplacementField:
    """Rough enough for linear and cubic interpolation to differ by millimetres."""
    noise = np.random.default_rng(0).normal(size=(*grid.shape, 3)) * 3
    return DisplacementField(noise.astype(np.float32), grid)


def test_a_sheared_transform_survives_a_scene_file(scene, tmp_path):
    shear = np.eye(4)
    shear[0, 1] = 0.3
    field = a_field(GRID.moved(shear))
    with temporary_nodes(scene):
        transforms.node_from_field(scene, field, "warp")
        path = save_scene(scene, tmp_path / "scene.mrb")
    load_scene(scene, path)
    back = transforms.field_from_node(named(scene, "vtkMRMLGridTransformNode", "warp"))
    assert back.grid.is_close(field.grid)
    assert np.abs(back.displacement - field.displacement).max() < 1e-5


def test_a_transform_is_saved_compressed(scene, tmp_path):
    grid = GRID.with_shape((40, 40, 40))
    field = DisplacementField(np.sin(places(grid) / 30).astype(np.float32), grid)
    without = save_scene(scene, tmp_path / "empty.mrb").stat().st_size
    with temporary_nodes(scene):
        transforms.node_from_field(scene, field, "warp")
        assert save_scene(scene, tmp_path / "scene.mrb").stat().st_size < without + 0.99 * field.displacement.nbytes


def test_a_reloaded_scene_warps_as_before(scene, tmp_path):
    points = GRID.to_world(np.random.default_rng(1).uniform(0, np.array(GRID.size) - 1, (500, 3)))
    labels = np.zeros(GRID.shape, np.uint8)
    labels[2:6, 2:7, 2:9] = 1
    inside = np.zeros(GRID.shape, np.uint8)
    inside[3:5, 3:6, 3:8] = 7
    segments = (
        Segment("liver", 1, 0, (0.8, 0.4, 0.2), "liver-id", {"TerminologyEntry": "a~b"}),
        Segment("lesion", 7, 1, (1, 1, 0), "lesion-id", {"TerminologyEntry": "c~d"}),
    )
    field = a_field()
    with temporary_nodes(scene):
        node = transforms.node_from_field(scene, field, "warp")
        node.SetAndObserveTransformNodeID(scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "parent").GetID())
        before = transforms.transform_points(node, points)
        given = Segmentation((labels, inside), segments, GRID, "organs")
        segmentation = segmentations.node_from_segmentation(scene, given, "organs")
        volume = volumes.node_from_image(scene, Image(labels, GRID), "volume")
        for child in (segmentation, volume):
            child.SetAndObserveTransformNodeID(node.GetID())
        markups.node_from_landmarks(scene, Landmarks(points[:3], ("a", "b", "c")), "points")
        path = save_scene(scene, tmp_path / "scene.mrb")
    load_scene(scene, path)

    node = named(scene, "vtkMRMLGridTransformNode", "warp")
    assert np.abs(transforms.transform_points(node, points) - before).max() < 1e-3
    node.SetAndObserveTransformNodeID(None)
    back = transforms.field_from_node(node)
    assert back.grid.is_close(GRID, 1e-3)
    assert np.abs(back.displacement - field.displacement).max() < 1e-5
    for name, class_name in {"organs": "vtkMRMLSegmentationNode", "volume": "vtkMRMLScalarVolumeNode"}.items():
        child = named(scene, class_name, name)
        assert child.GetParentTransformNode() is node
        child.SetAndObserveTransformNodeID(None)
    read = segmentations.segmentation_from_node(named(scene, "vtkMRMLSegmentationNode", "organs"))
    assert [(s.name, s.identifier, s.tags["TerminologyEntry"]) for s in read.segments] == [
        ("liver", "liver-id", "a~b"),
        ("lesion", "lesion-id", "c~d"),
    ]
    for segment, original in zip(read.segments, given.segments, strict=True):
        assert segment.color == pytest.approx(original.color, abs=1e-3)
        assert np.array_equal(read.mask(segment), given.mask(original))
    image = volumes.image_from_node(named(scene, "vtkMRMLScalarVolumeNode", "volume"))
    assert image.grid.is_close(GRID, 1e-3)
    listed = markups.landmarks_from_node(named(scene, "vtkMRMLMarkupsFiducialNode", "points"))
    assert listed.points == pytest.approx(points[:3], abs=1e-3)


def test_loading_leaves_foreign_transforms_cubic(scene, tmp_path):
    with temporary_nodes(scene):
        node = transforms.node_from_field(scene, a_field(), "theirs")
        node.RemoveAttribute(transforms.LINEAR_ATTRIBUTE)
        path = save_scene(scene, tmp_path / "scene.mrb")
    load_scene(scene, path)
    transform = named(scene, "vtkMRMLGridTransformNode", "theirs").GetTransformFromParent()
    assert transform.GetInterpolationModeAsString() == "Cubic"


def test_files_leave_the_working_directory_as_it_is(scene, tmp_path):
    here = os.getcwd()
    load_scene(scene, save_scene(scene, tmp_path / "scene.mrb"))
    (tmp_path / "damaged.mrb").write_bytes(b"not a zip archive")
    with pytest.raises(InputError):
        load_scene(scene, tmp_path / "damaged.mrb")
    assert os.getcwd() == here


def test_clear_replaces_the_scene(scene, tmp_path):
    transforms.node_from_field(scene, a_field(), "saved")
    path = save_scene(scene, tmp_path / "scene.mrb")
    transforms.node_from_field(scene, a_field(), "not saved")
    load_scene(scene, path, clear=True)
    assert [node.GetName() for node in nodes_of_class(scene, "vtkMRMLGridTransformNode")] == ["saved"]


def test_paths_that_cannot_be_used_are_named(scene, tmp_path):
    with pytest.raises(InputError, match=r"scene\.mrml"):
        save_scene(scene, tmp_path / "scene.mrml")
    with pytest.raises(InputError, match="absent does not exist"):
        save_scene(scene, tmp_path / "absent" / "scene.mrb")
    with pytest.raises(InputError, match=r"no scene file .*missing\.mrb"):
        load_scene(scene, tmp_path / "missing.mrb")
    (tmp_path / "damaged.mrb").write_bytes(b"not a zip archive")
    with pytest.raises(InputError, match=r"damaged\.mrb could not be read"):
        load_scene(scene, tmp_path / "damaged.mrb")


def test_temporary_nodes_take_their_display_nodes_along(scene):
    before = scene.GetNumberOfNodes()
    with temporary_nodes(scene):
        volumes.node_from_image(scene, Image(np.zeros(GRID.shape, np.float32), GRID), "volume")
        assert scene.GetNumberOfNodes() > before + 1
    assert scene.GetNumberOfNodes() == before
    with temporary_nodes(scene, only_on_error=True):
        kept = transforms.node_from_field(scene, a_field(), "kept")

    def fail_halfway():
        with temporary_nodes(scene, only_on_error=True):
            transforms.node_from_field(scene, a_field(), "lost")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        fail_halfway()
    assert nodes_of_class(scene, "vtkMRMLGridTransformNode") == [kept]
