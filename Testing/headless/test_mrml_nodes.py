"""Volumes, segmentations, landmarks and transforms as MRML nodes: Slicer's own answers against ITK's."""

import numpy as np
import pytest
from grids import places

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation, flip_world_transform

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
vtk = pytest.importorskip("vtk")
itk = pytest.importorskip("itk")

from IconRegistrationLib.mrml import embedded, markups, segmentations, transforms, volumes  # noqa: E402
from IconRegistrationLib.spatial.displacement import DisplacementField  # noqa: E402


def rotation(seed: int) -> np.ndarray:
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    return q * np.sign(np.linalg.det(q))


SHEAR = np.array([[1, 0.3, -0.1], [0, 1, 0.2], [0, 0, 1]])
DIRECTIONS = {
    "axis-aligned": np.eye(3),
    "oblique": rotation(1),
    "flipped": np.diag([-1, -1, 1]),
    "left-handed": rotation(2) @ np.diag([1, 1, -1]),
    "permuted": np.eye(3)[[2, 0, 1]],
    "sheared": rotation(3) @ SHEAR / np.linalg.norm(SHEAR, axis=0),
}
ORTHOGONAL = [name for name in DIRECTIONS if name != "sheared"]


def a_grid(direction: str, size=(14, 11, 9)) -> Grid:
    return Grid.from_parts(size, (2.0, 3.0, 4.5), (-31, 52, 17), DIRECTIONS[direction])


def an_image(grid: Grid, seed: int = 0) -> Image:
    """Smooth, so that interpolation is well conditioned."""
    points = places(grid)
    waves = np.random.default_rng(seed).normal(size=(4, 3)) / 25
    return Image((100 * np.sin(points @ waves.T).sum(-1)).astype(np.float32), grid, "image")


def a_field(direction: str, seed: int = 0) -> DisplacementField:
    """A few mm of smooth, invertible displacement and a shift."""
    grid = a_grid(direction, (12, 9, 7))
    points = places(grid) - grid.centre
    waves = np.random.default_rng(seed).normal(size=(3, 3)) / 40
    return DisplacementField((3 * np.sin(points @ waves.T) + (1.5, -2, 0.5)).astype(np.float32), grid)


def points_in(grid: Grid, count: int = 300) -> np.ndarray:
    """Random points within the sample centres, and the eight corners pulled in by a hair."""
    ijk = np.random.default_rng(5).uniform(0, np.array(grid.size) - 1, size=(count, 3))
    return np.concatenate([grid.to_world(ijk), grid.centre + (grid.corners() - grid.centre) * (1 - 1e-9)])


def a_linear_node(scene, name: str, seed: int = 7, scale=1.0):
    """A linear transform node and its 4x4 to its parent, LPS."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(seed) * scale
    matrix[:3, 3] = (12, -7, 30)
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(transforms.matrix_from_array(flip_world_transform(matrix)))
    return node, matrix


def under(node, parent):
    node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def itk_image(image: Image):
    result = itk.image_from_array(np.ascontiguousarray(image.array))
    result.SetSpacing(image.grid.spacing.tolist())
    result.SetOrigin(image.grid.origin.tolist())
    result.SetDirection(itk.matrix_from_array(np.ascontiguousarray(image.grid.direction)))
    return result


def grid_of(image) -> Grid:
    direction = itk.array_from_matrix(image.GetDirection())
    return Grid.from_parts(itk.size(image), itk.spacing(image), itk.origin(image), direction)


def itk_resampled(image: Image, field: DisplacementField, target: Grid, outside: float, nearest=False) -> np.ndarray:
    source = itk_image(image)
    kind = itk.NearestNeighborInterpolateImageFunction if nearest else itk.LinearInterpolateImageFunction
    result = itk.resample_image_filter(
        source,
        interpolator=kind.New(source),
        transform=field.to_itk(),
        size=target.size,
        output_spacing=target.spacing.tolist(),
        output_origin=target.origin.tolist(),
        output_direction=itk.matrix_from_array(np.ascontiguousarray(target.direction)),
        default_pixel_value=outside,
    )
    return itk.array_from_image(result)


def itk_points(field: DisplacementField, points: np.ndarray) -> np.ndarray:
    transform = field.to_itk()
    return np.array([list(transform.TransformPoint(point.tolist())) for point in points])


def test_boot_returns_the_scene_that_is_there(scene):
    assert embedded.boot() is scene is slicer.mrmlScene
    assert embedded.application_logic().GetMRMLScene() is scene


def test_boot_names_the_package_where_another_slicer_is_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "slicer", type("slicer", (), {}))
    with pytest.raises(InputError, match=r"slicer-icon-registration\[scene\]"):
        embedded.boot()


# volumes


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_volume_comes_back_as_it_was(scene, direction):
    image = an_image(a_grid(direction))
    node = volumes.node_from_image(scene, image, "volume")
    back = volumes.image_from_node(node)
    assert back.grid.is_close(image.grid, 1e-9)
    assert np.array_equal(back.array, image.array)
    assert back.name == "volume"


@pytest.mark.parametrize("direction", ORTHOGONAL)
def test_a_file_of_itk_lies_where_itk_says(scene, tmp_path, direction):
    image = an_image(a_grid(direction))
    itk.imwrite(itk_image(image), str(tmp_path / "volume.nrrd"))
    node = slicer.modules.volumes.logic().AddArchetypeVolume(str(tmp_path / "volume.nrrd"), "volume", 0, None)
    read = volumes.image_from_node(node)
    ijk = read.grid.to_index(places(image.grid))
    assert np.abs(ijk - np.rint(ijk)).max() < 1e-4  # Slicer reverses the slices of a left-handed file, place and all
    k, j, i = np.moveaxis(np.rint(ijk).astype(int)[..., ::-1], -1, 0)
    assert np.array_equal(read.array[k, j, i], image.array)


@pytest.mark.parametrize("direction", ORTHOGONAL)
def test_a_file_of_slicer_lies_where_the_image_lay(scene, tmp_path, direction):
    image = an_image(a_grid(direction))
    node = volumes.node_from_image(scene, image, "volume")
    node.AddDefaultStorageNode(str(tmp_path / "volume.nrrd"))
    assert node.GetStorageNode().WriteData(node)
    read = itk.imread(str(tmp_path / "volume.nrrd"))
    assert grid_of(read).is_close(image.grid, 1e-4)
    assert np.array_equal(itk.array_from_image(read), image.array)


def test_linear_parents_are_part_of_the_grid(scene):
    image = an_image(a_grid("oblique"))
    node = volumes.node_from_image(scene, image, "volume")
    inner, inner_matrix = a_linear_node(scene, "inner", 7)
    outer, outer_matrix = a_linear_node(scene, "outer", 8, scale=1.2)
    under(under(node, inner) and inner, outer)
    read = volumes.image_from_node(node)
    assert read.grid.is_close(image.grid.moved(outer_matrix @ inner_matrix), 1e-9)
    place = [0.0] * 3
    node.TransformPointToWorld(image.grid.to_world([3, 2, 1]) * (-1, -1, 1), place)
    assert read.grid.to_world([3, 2, 1]) == pytest.approx(np.array(place) * (-1, -1, 1), abs=1e-9)


def test_a_non_linear_parent_is_refused_by_its_name(scene):
    node = volumes.node_from_image(scene, an_image(a_grid("oblique")), "volume")
    linear, _ = a_linear_node(scene, "straight")
    warp = transforms.node_from_field(scene, a_field("oblique"), "bent")
    under(under(node, linear) and linear, warp)
    with pytest.raises(InputError, match=r"volume.*'bent'.*harden"):
        volumes.image_from_node(node)


def test_volumes_without_or_with_several_values_per_voxel_are_refused(scene):
    with pytest.raises(InputError, match=r"'nothing' has no voxels"):
        volumes.image_from_node(scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "nothing"))
    colours = scene.AddNewNodeByClass("vtkMRMLVectorVolumeNode", "colours")
    picture = vtk.vtkImageData()
    picture.SetDimensions(4, 3, 2)
    picture.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 3)
    colours.SetAndObserveImageData(picture)
    with pytest.raises(InputError, match=r"'colours' has 3 components"):
        volumes.image_from_node(colours)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (np.array([False, True]), np.uint8),
        (np.array([-128, 127], np.int8), np.int16),
        (np.array([-5, 2**31 - 1], np.int64), np.int32),
        (np.array([0, 2**32 - 1], np.uint64), np.uint32),
        (np.array([-1, 2**40], np.int64), np.float64),
        (np.array([-1.5, 1000], np.float16), np.float32),
        (np.array([-1024, 3071], ">i2"), np.int16),
    ],
)
def test_every_type_can_be_held_and_saved_with_its_values(scene, tmp_path, values, stored):
    image = Image(np.resize(values, (2, 3, 4)), a_grid("oblique", (4, 3, 2)))
    node = volumes.node_from_image(scene, image, "volume")
    node.AddDefaultStorageNode(str(tmp_path / "volume.nrrd"))
    assert node.GetStorageNode().WriteData(node)
    read = itk.array_from_image(itk.imread(str(tmp_path / "volume.nrrd")))
    assert volumes.image_from_node(node).array.dtype == stored
    assert np.array_equal(read, image.array)


def test_an_updated_volume_keeps_its_node_and_display_and_leaves_its_parent(scene):
    node = volumes.node_from_image(scene, an_image(a_grid("oblique")), "volume")
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(123, 45)
    under(node, a_linear_node(scene, "linear")[0])
    image = an_image(a_grid("left-handed", (5, 6, 7)), 3)
    assert volumes.node_from_image(scene, image, "another", node=node) is node
    read = volumes.image_from_node(node)
    assert read.grid.is_close(image.grid, 1e-9)
    assert np.array_equal(read.array, image.array)
    assert (node.GetName(), node.GetDisplayNode().GetWindow(), node.GetDisplayNode().GetLevel()) == ("volume", 123, 45)


def test_a_new_volume_looks_like_its_source_and_lies_beside_it(scene):
    source = volumes.node_from_image(scene, an_image(a_grid("oblique")), "source")
    source.GetDisplayNode().SetAutoWindowLevel(False)
    source.GetDisplayNode().SetWindowLevel(350, 40)
    source.GetDisplayNode().SetAndObserveColorNodeID("vtkMRMLColorTableNodeIron")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.CreateItem(study, source)
    node = volumes.node_from_image(scene, an_image(a_grid("oblique")), "result", like=source)
    display = node.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel()) == (350, 40, 0)
    assert display.GetColorNodeID() == "vtkMRMLColorTableNodeIron"
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    assert volumes.node_from_image(scene, an_image(a_grid("oblique")), "more", like=labels).IsA(labels.GetClassName())


# transforms


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_grid_transform_node_gives_itks_points(scene, direction):
    field = a_field(direction)
    node = transforms.node_from_field(scene, field, "warp")
    points = points_in(field.grid)
    assert np.abs(transforms.transform_points(node, points) - itk_points(field, points)).max() < 1e-4


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_field_comes_back_as_it_was(scene, direction):
    field = a_field(direction)
    node = transforms.node_from_field(scene, field, "warp")
    back = transforms.field_from_node(node)
    assert back.grid.is_close(field.grid, 1e-9)
    assert np.array_equal(back.displacement, field.displacement)
    assert node.GetTransformFromParent().GetDisplacementGrid().GetScalarType() == vtk.VTK_FLOAT


def test_any_transform_can_be_sampled_on_a_grid(scene):
    grid = a_grid("oblique")
    linear, matrix = a_linear_node(scene, "linear")
    with pytest.raises(InputError, match=r"'linear'.*give a grid"):
        transforms.field_from_node(linear)
    points = places(grid).reshape(-1, 3)
    moved = transforms.field_from_node(linear, grid).displacement.reshape(-1, 3) + points
    inverse = np.linalg.inv(matrix)
    assert np.abs(moved - (points @ inverse[:3, :3].T + inverse[:3, 3])).max() < 1e-4


def test_an_updated_transform_keeps_its_node_and_leaves_its_parent(scene):
    node = transforms.node_from_field(scene, a_field("oblique"), "warp")
    under(node, a_linear_node(scene, "linear")[0])
    field = a_field("left-handed", 4)
    assert transforms.node_from_field(scene, field, "another", node=node) is node
    points = points_in(field.grid, 20)
    assert np.abs(transforms.transform_points(node, points) - itk_points(field, points)).max() < 1e-4


def test_an_initial_transform_moves_the_moving_image_onto_the_fixed_one(scene):
    fixed = an_image(a_grid("oblique"))
    node, matrix = a_linear_node(scene, "initial")
    moving = volumes.node_from_image(
        scene, Image(fixed.array, fixed.grid.moved(np.linalg.inv(matrix)), "moving"), "moving"
    )
    under(moving, node)  # now the two coincide
    assert volumes.image_from_node(moving).grid.is_close(fixed.grid, 1e-6)
    assert fixed.grid.moved(transforms.linear_from_node(node)).is_close(
        fixed.grid.moved(np.linalg.inv(matrix)), 1e-9
    )  # fixed mm -> moving mm
    with pytest.raises(InputError, match="'bent' is not linear"):
        transforms.linear_from_node(transforms.node_from_field(scene, a_field("oblique"), "bent"))


@pytest.mark.parametrize("direction", ORTHOGONAL)
def test_a_volume_under_the_node_is_itks_resampled_volume(scene, direction):
    moving, field = an_image(a_grid("oblique", (16, 15, 14))), a_field(direction)
    field = DisplacementField(field.displacement, Grid(field.grid.shape, centred_on(field.grid, moving.grid)))
    node = under(volumes.node_from_image(scene, moving, "moving"), transforms.node_from_field(scene, field, "warp"))
    node.HardenTransform()
    hardened = volumes.image_from_node(node)
    carried = itk_points(field, places(hardened.grid).reshape(-1, 3))
    seen = field.grid.contains(places(hardened.grid)).ravel()
    index = moving.grid.to_index(carried)
    inside = seen & ((index > 0) & (index < np.array(moving.grid.size) - 1)).all(-1)
    outside = seen & ((index < -0.51) | (index > np.array(moving.grid.size) - 0.49)).any(-1)
    expected = itk_resampled(moving, field, hardened.grid, 0.0).ravel()
    assert inside.sum() > 500
    # VTK's reslice counts fractions of a voxel in 1/32768
    assert np.abs(hardened.array.ravel() - expected)[inside].max() < 2e-3 * np.abs(moving.array).max()
    assert not hardened.array.ravel()[outside].any()


def centred_on(grid: Grid, other: Grid) -> np.ndarray:
    affine = grid.affine.copy()
    affine[:3, 3] += other.centre - grid.centre
    return affine


@pytest.mark.parametrize("direction", ["oblique", "left-handed"])
def test_models_and_markups_under_the_node_move_by_the_inverse(scene, direction):
    field = a_field(direction)
    warp = transforms.node_from_field(scene, field, "warp")
    centre, extent = field.grid.centre, field.grid.extent
    there = centre + np.random.default_rng(1).uniform(-0.3, 0.3, (50, 3)) * extent.min()
    surface = vtk.vtkPolyData()
    surface.SetPoints(vtk.vtkPoints())
    for place in there:
        surface.GetPoints().InsertNextPoint(place * (-1, -1, 1))
    model = scene.AddNewNodeByClass("vtkMRMLModelNode", "model")
    model.SetAndObservePolyData(surface)
    under(model, warp).HardenTransform()
    moved = np.array([model.GetPolyData().GetPoint(n) for n in range(len(there))]) * (-1, -1, 1)
    landmarks = Landmarks(there, tuple(f"F-{n}" for n in range(len(there))))
    listed = markups.landmarks_from_node(under(markups.node_from_landmarks(scene, landmarks, "points"), warp))
    for points in (moved, listed.points):
        assert np.abs(points - there).max() > 2
        assert np.abs(itk_points(field, points) - there).max() < 5e-3  # Slicer's inverse stops at 1e-3 mm


# segmentations


def a_segmentation(grid: Grid) -> Segmentation:
    """Boxes in two layers that overlap, and an empty segment."""
    first, second = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.int64)
    for value in range(1, 7):
        first[1:-1, 1:-1, 2 * value - 1 : 2 * value + 1] = value
    second[2:-3, 3:-2, 2:-2] = 300
    segments = [
        Segment(f"part {v}", v, 0, (v / 8, 0.25, 1 - v / 8), f"Segment_{v}", {"TerminologyEntry": f"c~{v}^a: b~d"})
        for v in range(1, 7)
    ]
    whole = Segment("whole", 300, 1, (1, 0, 0), "whole-id", {"TerminologyEntry": "x~y", "Study: part": "a: b", "k": ""})
    return Segmentation((first, second), (*segments, whole), grid, "organs")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_segmentation_comes_back_as_it_was(scene, direction):
    given = a_segmentation(a_grid(direction))
    back = segmentations.segmentation_from_node(segmentations.node_from_segmentation(scene, given, "organs"))
    assert back.segments == given.segments
    assert back.grid.is_close(given.grid, 1e-6)
    assert all(np.array_equal(a, b) for a, b in zip(back.layers, given.layers, strict=True))


def test_slicers_label_values_are_those_of_the_segmentation(scene):
    given = a_segmentation(a_grid("left-handed"))
    node = segmentations.node_from_segmentation(scene, given, "organs")
    for segment in given.segments:
        identifier = node.GetSegmentation().GetSegmentIdBySegmentName(segment.name)
        assert identifier == segment.identifier
        mask = slicer.vtkOrientedImageData()
        assert node.GetBinaryLabelmapRepresentation(identifier, mask)
        voxels = vtk.util.numpy_support.vtk_to_numpy(mask.GetPointData().GetScalars())
        assert np.count_nonzero(voxels) == np.count_nonzero(given.mask(segment))


def test_cropped_label_maps_lie_on_the_reference_grid(scene):
    """Slicer keeps an edited segment in the smallest box; a second import brings a lattice of its own."""
    grid = a_grid("oblique")
    reference = volumes.node_from_image(scene, an_image(grid), "reference")
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn")
    node.SetReferenceImageGeometryParameterFromVolumeNode(reference)
    expected = {}
    for name, (low, high) in {"a": ((2, 3, 4), (6, 7, 8)), "b": ((4, 4, 3), (9, 9, 6))}.items():
        box = grid.box(low, high)
        image = volumes.vtk_image(np.ones(box.shape, np.uint8), slicer.vtkOrientedImageData())
        image.SetImageToWorldMatrix(transforms.matrix_from_array(np.diag([-1, -1, 1, 1]) @ box.affine))
        segment = slicer.vtkSegment()
        segment.SetName(name)
        segment.AddRepresentation("Binary labelmap", image)
        node.GetSegmentation().AddSegment(segment, name)
        expected[name] = np.zeros(grid.shape, bool)
        expected[name][tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))] = True
    node.GetSegmentation().AddEmptySegment("empty")
    read = segmentations.segmentation_from_node(node)
    assert read.grid.is_close(grid, 1e-4)
    assert len(read.segments) == 3
    for name, segment in read.by_name().items():
        assert np.array_equal(read.mask(segment), expected.get(name, np.zeros(grid.shape, bool))), name


def test_segments_beyond_the_reference_volume_are_kept(scene):
    grid = a_grid("oblique")
    given = a_segmentation(grid)
    small = volumes.node_from_image(scene, an_image(grid.box((3, 3, 3), (8, 8, 6))), "small")
    read = segmentations.segmentation_from_node(
        segmentations.node_from_segmentation(scene, given, "organs", reference=small)
    )
    for segment, back in zip(given.segments, read.segments, strict=True):
        inside = places(grid)[given.mask(segment)]
        ijk = np.rint(read.grid.to_index(inside)).astype(int)
        assert read.mask(back)[tuple(ijk.T[::-1])].all()
        assert read.mask(back).sum() == len(inside)


def test_linear_parents_move_a_segmentation_and_others_are_refused(scene):
    given = a_segmentation(a_grid("oblique"))
    node = segmentations.node_from_segmentation(scene, given, "organs")
    linear, matrix = a_linear_node(scene, "linear", scale=0.9)
    assert segmentations.segmentation_from_node(under(node, linear)).grid.is_close(given.grid.moved(matrix), 1e-6)
    warp = transforms.node_from_field(scene, a_field("oblique"), "bent")
    with pytest.raises(InputError, match="'bent'"):
        segmentations.segmentation_from_node(under(node, warp))


def test_a_segmentation_of_surfaces_is_voxelised_in_a_copy(scene):
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(10)
    sphere.SetCenter(-20, -30, 40)
    sphere.SetPhiResolution(40)
    sphere.SetThetaResolution(40)
    sphere.Update()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "surfaces")
    grid = Grid.from_parts((40, 40, 40), (0.8, 0.8, 0.8), (4, 14, 24), rotation(4))
    around = Grid(grid.shape, centred_on(grid, Grid.from_parts((1, 1, 1), origin=(20, 30, 40))))
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumes.node_from_image(scene, an_image(around), "around"))
    node.GetSegmentation().SetSourceRepresentationName("Closed surface")
    node.AddSegmentFromClosedSurfaceRepresentation(sphere.GetOutput(), "ball", (0, 1, 0))
    read = segmentations.segmentation_from_node(node)
    mask = read.mask(read.by_name()["ball"])
    assert mask.sum() * read.grid.voxel_volume == pytest.approx(4 / 3 * np.pi * 1000, rel=0.05)
    assert places(read.grid)[mask].mean(axis=0) == pytest.approx([20, 30, 40], abs=0.3)
    assert not node.GetSegmentation().ContainsRepresentation("Binary labelmap")


def test_empty_segmentations_are_refused(scene):
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "nothing")
    with pytest.raises(InputError, match="'nothing' has no segments"):
        segmentations.segmentation_from_node(node)
    node.GetSegmentation().AddEmptySegment("blank")
    with pytest.raises(InputError, match="'nothing' is empty"):
        segmentations.segmentation_from_node(node)


def test_an_updated_segmentation_has_only_the_new_segments_and_its_surfaces_again(scene):
    node = segmentations.node_from_segmentation(scene, a_segmentation(a_grid("oblique")), "organs")
    node.CreateClosedSurfaceRepresentation()
    under(node, a_linear_node(scene, "linear")[0])
    grid = a_grid("left-handed")
    labels = np.zeros(grid.shape, np.uint8)
    labels[2:5, 2:6, 2:7] = 4
    given = Segmentation((labels,), (Segment("only", 4, identifier="only", color=(0, 0, 1)),), grid, "one")
    assert segmentations.node_from_segmentation(scene, given, "one", node=node) is node
    read = segmentations.segmentation_from_node(node)
    assert [s.name for s in read.segments] == ["only"]
    assert read.grid.is_close(grid, 1e-6)
    assert np.array_equal(read.mask(read.segments[0]), labels == 4)
    assert node.GetClosedSurfaceInternalRepresentation("only").GetNumberOfPoints() > 0


def test_a_segmentation_under_the_node_is_itks_resampled_label_map(scene):
    grid, field = a_grid("oblique", (40, 32, 26)), a_field("oblique")
    grid = Grid(grid.shape, grid.affine @ np.diag([0.3, 0.3, 0.3, 1]))
    field = DisplacementField(field.displacement, Grid(field.grid.shape, centred_on(field.grid, grid)))
    labels = np.zeros(grid.shape, np.uint8)
    labels[6:20, 6:26, 6:34] = 1 + np.random.default_rng(0).integers(0, 20, (2, 2, 4)).repeat(7, 0).repeat(
        10, 1
    ).repeat(7, 2)
    given = Segmentation.from_labels(Image(labels, grid, "labels"))
    node = segmentations.node_from_segmentation(scene, given, "labels")
    under(node, transforms.node_from_field(scene, field, "warp")).HardenTransform()
    read = segmentations.segmentation_from_node(node)
    expected = itk_resampled(Image(labels, grid), field, read.grid, 0, nearest=True)
    assert len(read.layers) == 1
    values = {s.value: read.by_name()[s.name].value for s in given.segments}
    renamed = np.zeros_like(expected)
    for before, after in values.items():
        renamed[expected == before] = after
    wrong = (read.layers[0] != renamed).sum() / (renamed != 0).sum()
    assert (renamed != 0).sum() > 5000
    assert wrong < 0.01  # voxels in which the two differ about the nearest one


# markups


def test_landmarks_come_back_as_they_were(scene):
    given = Landmarks(np.random.default_rng(0).normal(size=(5, 3)) * 50, ("a", "b", "c", "d", "a b"), "points")
    node = markups.node_from_landmarks(scene, given, "points")
    back = markups.landmarks_from_node(node)
    assert back.points == pytest.approx(given.points, abs=1e-9)
    assert (back.labels, back.name) == (given.labels, "points")
    assert node.GetNthControlPointPositionVector(1)[0] == pytest.approx(-given.points[1, 0])
    assert markups.node_from_landmarks(scene, Landmarks(given.points[:2], ("x", "y")), "new", node=node) is node
    assert markups.landmarks_from_node(node).labels == ("x", "y")


def test_points_that_are_not_placed_are_left_out_and_parents_count(scene):
    given = Landmarks(np.arange(12.0).reshape(4, 3), ("a", "b", "c", "d"))
    node = markups.node_from_landmarks(scene, given, "points")
    node.SetLocked(True)
    node.UnsetNthControlPointPosition(1)
    node.SetNthControlPointPositionMissing(2)
    linear, matrix = a_linear_node(scene, "linear")
    read = markups.landmarks_from_node(under(node, linear))
    assert read.labels == ("a", "d")
    assert read.points == pytest.approx(given.points[[0, 3]] @ matrix[:3, :3].T + matrix[:3, 3])


def test_a_region_is_the_box_of_a_roi_in_the_world(scene):
    roi = scene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "box")
    roi.SetCenter(10, 20, 30)
    roi.SetSize(40, 20, 60)
    linear, matrix = a_linear_node(scene, "linear", scale=1.1)
    region = markups.region_from_node(under(roi, linear))
    corners = np.array([(x, y, z) for z in (0, 60) for y in (10, 30) for x in (-10, 30)]) * (-1, -1, 1)
    expected = corners @ matrix[:3, :3].T + matrix[:3, 3]
    found = region.corners(faces=True)
    assert np.abs(found[:, None] - expected[None]).sum(-1).min(axis=1).max() < 1e-6
    roi.SetSize(40, 0, 60)
    with pytest.raises(InputError, match="'box' measures"):
        markups.region_from_node(roi)
    with pytest.raises(InputError, match="vtkMRMLMarkupsFiducialNode"):
        markups.region_from_node(scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points"))
