"""Grids: voxel <-> mm for any invertible affine, against ITK, torch and the definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.spatial.geometry import (
    Grid,
    Image,
    Segment,
    Segmentation,
    apply_affine,
    flip_affine,
    flip_vectors,
    flip_world_transform,
)

modest = settings(deadline=None, max_examples=50)
number = st.floats(-200, 200)
shapes = st.tuples(*[st.integers(1, 12)] * 3)


@st.composite
def grids(draw, sheared=True):
    """Rotated, flipped, permuted, anisotropic, shifted and (unless told otherwise) sheared lattices."""
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    direction, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    direction = direction[:, rng.permutation(3)] * rng.choice([-1, 1], 3)
    if sheared and draw(st.booleans()):
        direction = (np.eye(3) + np.triu(rng.uniform(-0.4, 0.4, (3, 3)), 1)) @ direction
    affine = np.eye(4)
    affine[:3, :3] = direction * [draw(st.floats(0.2, 6)) for _ in range(3)]
    affine[:3, 3] = [draw(number) for _ in range(3)]
    return Grid(draw(shapes), affine)


points = st.lists(st.tuples(number, number, number), min_size=1, max_size=5).map(np.array)


@modest
@given(grids(), points)
def test_index_and_world_are_inverse(grid, ijk):
    assert np.allclose(grid.to_index(grid.to_world(ijk)), ijk, atol=1e-8)


@modest
@given(grids(sheared=False), points)
def test_world_is_itk_s_physical_point(grid, ijk):
    import itk

    image = itk.Image[itk.UC, 3].New()
    image.SetRegions(grid.size)
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))
    expected = []
    for point in ijk:
        index = itk.ContinuousIndex[itk.D, 3]()
        for axis in range(3):
            index[axis] = float(point[axis])
        expected.append(list(image.TransformContinuousIndexToPhysicalPoint(index)))
    assert np.allclose(grid.to_world(ijk), expected, atol=1e-8)


@modest
@given(grids())
def test_parts_give_the_grid_back(grid):
    again = Grid.from_parts(grid.size, grid.spacing, grid.origin, grid.direction)
    assert again.is_close(grid, 1e-8)
    assert again.voxel_volume == pytest.approx(grid.voxel_volume)
    assert grid.voxel_volume == pytest.approx(grid.spacing.prod() * abs(np.linalg.det(grid.direction)))


@modest
@given(grids(), shapes)
def test_with_shape_samples_where_torch_interpolate_does(grid, shape):
    """Resizing an image of the voxels' own coordinates gives the coordinates of the new samples (inside the border)."""
    coordinates = np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in grid.shape], indexing="ij"))
    resized = F.interpolate(torch.from_numpy(coordinates)[None], size=shape, mode="trilinear", align_corners=False)
    lattice = grid.with_shape(shape)
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)[..., ::-1]
    index = grid.to_index(lattice.to_world(nodes))
    clamped = np.clip(index, 0, np.array(grid.size) - 1)  # interpolate clamps the outermost half voxel
    assert np.allclose(clamped[..., ::-1], np.moveaxis(resized[0].numpy(), 0, -1), atol=1e-6)


@modest
@given(grids(), shapes)
def test_with_shape_fills_the_same_box(grid, shape):
    lattice = grid.with_shape(shape)
    assert np.allclose(lattice.corners(faces=True), grid.corners(faces=True), atol=1e-8)
    assert np.allclose(lattice.extent, grid.extent)
    assert np.allclose(lattice.centre, grid.centre)
    assert lattice.with_shape(grid.shape).is_close(grid, 1e-8)


@modest
@given(grids(), st.tuples(*[st.integers(-5, 5)] * 3), st.tuples(*[st.integers(1, 6)] * 3))
def test_box_keeps_the_voxels_in_place(grid, low, size):
    part = grid.box(low, np.add(low, size))
    assert part.size == size
    assert np.allclose(part.to_world([0, 0, 0]), grid.to_world(low))
    assert np.allclose(part.corners()[-1], grid.to_world(np.add(low, size) - 1))


@modest
@given(grids(), grids(), points)
def test_moved_moves_every_voxel(grid, other, ijk):
    transform = other.affine
    assert np.allclose(grid.moved(transform).to_world(ijk), apply_affine(transform, grid.to_world(ijk)), rtol=1e-9)


@modest
@given(grids())
def test_unit_coordinates_end_at_the_outermost_centres(grid):
    matrix = grid.unit_to_world()
    assert np.allclose(apply_affine(matrix, np.zeros(3)), grid.origin)
    assert np.allclose(apply_affine(matrix, np.ones(3)), grid.to_world(np.array(grid.size) - 1))
    # component 0 of phi runs along k
    assert np.allclose(apply_affine(matrix, np.array([1.0, 0, 0])), grid.to_world([0, 0, grid.shape[0] - 1]))


@modest
@given(grids(), points)
def test_contains_ends_at_the_faces(grid, ijk):
    near = ijk / 40
    expected = ((near >= -0.5) & (near <= np.array(grid.size) - 0.5)).all(-1)
    on_a_face = (np.abs(near + 0.5) < 1e-6) | (np.abs(near - np.array(grid.size) + 0.5) < 1e-6)
    assert (grid.contains(grid.to_world(near)) == expected)[~on_a_face.any(-1)].all()


@modest
@given(grids(), grids(), points)
def test_lps_and_ras_flips_are_involutions_and_agree(grid, other, ijk):
    assert np.array_equal(flip_affine(flip_affine(grid.affine)), grid.affine)
    assert np.array_equal(flip_world_transform(flip_world_transform(other.affine)), other.affine)
    world = grid.to_world(ijk)
    assert np.array_equal(flip_vectors(flip_vectors(world)), world)
    in_ras = apply_affine(flip_affine(grid.affine), ijk)
    assert np.allclose(in_ras, flip_vectors(world))
    moved_in_ras = apply_affine(flip_world_transform(other.affine), in_ras)
    assert np.allclose(moved_in_ras, flip_vectors(apply_affine(other.affine, world)), rtol=1e-9)


def test_a_flip_keeps_the_dtype():
    assert flip_vectors(np.ones((2, 3), np.float32)).dtype == np.float32


def test_orthogonality_is_seen():
    assert Grid.from_parts((3, 3, 3), (1, 2, 3)).is_orthogonal
    sheared = np.eye(4)
    sheared[0, 1] = 0.01
    assert not Grid((3, 3, 3), sheared).is_orthogonal


@pytest.mark.parametrize(
    ("shape", "affine", "word"),
    [
        ((3, 3, 3), np.diag([1, 0, 1, 1.0]), "singular"),
        ((3, 3, 3), np.full((4, 4), np.nan), "finite"),
        ((3, 3, 3), np.eye(3), "4x4"),
        ((3, 3), np.eye(4), "three axes"),
        ((3, 0, 3), np.eye(4), "three axes"),
    ],
)
def test_impossible_grids_are_refused(shape, affine, word):
    with pytest.raises(InputError, match=word):
        Grid(shape, affine)


def test_arrays_must_fit_their_grid():
    grid = Grid.from_parts((4, 3, 2))
    with pytest.raises(InputError, match="thing"):
        Image(np.zeros((4, 3, 2)), grid, "thing")
    with pytest.raises(InputError, match="layer"):
        Segmentation((np.zeros((4, 3, 2), int),), (), grid)


def test_a_label_map_becomes_segments():
    array = np.zeros((2, 3, 4), np.int16)
    array[0, 0, 0], array[1] = 7, 2
    segmentation = Segmentation.from_labels(Image(array, Grid.from_parts((4, 3, 2)), "x"), {7: "liver"})
    assert [(s.name, s.value) for s in segmentation.segments] == [("label 2", 2), ("liver", 7)]
    assert segmentation.mask(segmentation.by_name()["liver"]).sum() == 1


def test_of_two_segments_with_one_name_the_first_counts():
    segments = (Segment("a", 1), Segment("a", 2))
    segmentation = Segmentation((np.zeros((1, 1, 1), int),), segments, Grid.from_parts((1, 1, 1)))
    assert segmentation.by_name()["a"].value == 1
