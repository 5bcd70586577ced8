"""Sampling on other grids against ITK's resampler, whose semantics it promises."""

import numpy as np
import pytest
import torch

from IconRegistrationLib.spatial.geometry import Grid
from IconRegistrationLib.spatial.sampling import coverage, sample, smooth_for, smooth_sample


def rotation(seed, left_handed=False):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * [np.sign(np.linalg.det(q)) * (-1 if left_handed else 1), 1, 1]


def a_transform(source, target, seed=3):
    """Target mm -> source mm, centre to centre with a general linear part."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(seed) + np.random.default_rng(seed).uniform(-0.1, 0.1, (3, 3))
    matrix[:3, 3] = source.centre - matrix[:3, :3] @ target.centre
    return matrix


SOURCE = Grid.from_parts((23, 19, 17), (0.9, 1.4, 2.2), (30, -20, 400), rotation(1, left_handed=True)[:, [1, 2, 0]])
TARGETS = {
    "oblique": Grid.from_parts((21, 24, 18), (1.1, 1.3, 1.7), (-5, 8, 100), rotation(2)),
    "finer": SOURCE.with_shape((40, 41, 42)),
    "coarser": SOURCE.with_shape((5, 6, 7)),
    "shifted by half a voxel": Grid(SOURCE.shape, SOURCE.affine @ np.array(
        [[1, 0, 0, 0.5], [0, 1, 0, -0.5], [0, 0, 1, 0.25], [0, 0, 0, 1]]
    )),
    "larger": SOURCE.box((-4, -3, -2), (27, 22, 19)),
}  # fmt: skip


def itk_image(array, grid):
    import itk

    image = itk.image_from_array(np.ascontiguousarray(array))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))
    return image


def itk_resample(array, source, target, matrix, outside, interpolator=None):
    import itk

    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    transform.SetOffset(matrix[:3, 3].tolist())
    image = itk_image(array, source)
    kind = interpolator or itk.LinearInterpolateImageFunction
    return itk.array_from_image(
        itk.resample_image_filter(
            image,
            transform=transform,
            interpolator=kind[type(image), itk.D].New(),
            size=target.size,
            output_spacing=target.spacing,
            output_origin=target.origin,
            output_direction=itk.matrix_from_array(np.ascontiguousarray(target.direction)),
            default_pixel_value=outside,
        )
    )


@pytest.fixture(params=list(TARGETS))
def a_pair(request):
    target = TARGETS[request.param]
    matrix = a_transform(SOURCE, target) if request.param == "oblique" else np.eye(4)
    return target, matrix


def positions(target, matrix):
    """Voxel coordinates of the source under every sample of the target, [k, j, i, 3]."""
    k, j, i = np.meshgrid(*[np.arange(n) for n in target.shape], indexing="ij")
    world = target.to_world(np.stack([i, j, k], -1))
    return SOURCE.to_index(world @ matrix[:3, :3].T + matrix[:3, 3])


def off_faces(index):
    """Where a position is not on a face of the source's box, on which rounding decides."""
    size = np.array(SOURCE.size)
    return ~((np.abs(index + 0.5) < 1e-5) | (np.abs(index - size + 0.5) < 1e-5)).any(-1)


@pytest.mark.parametrize("threads", [1, 3])
def test_linear_is_itk_s(a_pair, threads):
    target, matrix = a_pair
    array = np.random.default_rng(0).normal(100, 30, SOURCE.shape).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = sample(array, SOURCE, target, transform=matrix, outside=-1000)
    finally:
        torch.set_num_threads(before)
    theirs = itk_resample(array, SOURCE, target, matrix, -1000)
    sure = off_faces(positions(target, matrix))
    assert ours.dtype == np.float32
    assert sure.mean() > 0.8
    assert np.array_equal((ours == -1000)[sure], (theirs == -1000)[sure])
    # float32 places: 1e-5 of a voxel times a gradient of 100 per voxel
    assert np.abs(ours - theirs)[sure].max() < 5e-3


def test_nearest_is_itk_s(a_pair):
    import itk

    target, matrix = a_pair
    array = np.random.default_rng(0).integers(1, 60000, SOURCE.shape).astype(np.uint16)
    ours = sample(array, SOURCE, target, transform=matrix, order=0, outside=0)
    theirs = itk_resample(array, SOURCE, target, matrix, 0, itk.NearestNeighborInterpolateImageFunction)
    index = positions(target, matrix)
    ties = (np.abs(index % 1 - 0.5) < 1e-6).any(-1)
    assert ours.dtype == np.uint16
    assert np.array_equal(ours[~ties], theirs[~ties])


def test_coverage_is_what_itk_does_not_fill(a_pair):
    target, matrix = a_pair
    filled = itk_resample(np.ones(SOURCE.shape, np.float32), SOURCE, target, matrix, 0) > 0
    sure = off_faces(positions(target, matrix))
    assert np.array_equal(coverage(SOURCE, target, matrix)[sure], filled[sure])


def test_the_last_half_voxel_holds_the_edge_and_ends_exactly():
    source = Grid.from_parts((4, 1, 1))
    target = Grid.from_parts((9, 1, 1), spacing=(0.25, 1, 1), origin=(2.75, 0, 0))
    values = sample(np.arange(4.0).reshape(1, 1, 4), source, target, outside=-1)
    assert np.allclose(values.ravel(), [2.75, 3, 3, 3, -1, -1, -1, -1, -1])


def test_the_grid_itself_gives_the_array_back_to_the_faces():
    array = np.random.default_rng(1).integers(-1024, 3000, SOURCE.shape).astype(np.int16)
    assert np.abs(sample(array, SOURCE, SOURCE, outside=np.nan) - array).max() < 0.1
    assert np.array_equal(sample(array, SOURCE, SOURCE, order=0), array)
    halves = sample(array, SOURCE, SOURCE.with_shape(np.multiply(SOURCE.shape, 2)), order=0, outside=9999)
    assert np.array_equal(halves, array.repeat(2, 0).repeat(2, 1).repeat(2, 2))


def test_channels_are_sampled_together():
    stack = np.random.default_rng(2).normal(size=(3, *SOURCE.shape)).astype(np.float32)
    target = TARGETS["oblique"]
    together = sample(stack, SOURCE, target, transform=a_transform(SOURCE, target))
    apart = [sample(c, SOURCE, target, transform=a_transform(SOURCE, target)) for c in stack]
    assert np.array_equal(together, np.stack(apart))


@pytest.mark.parametrize("layout", ["big endian", "transposed", "read only", "bool"])
def test_any_array_a_reader_gives_is_taken(layout):
    array = np.random.default_rng(3).integers(0, 2, SOURCE.shape).astype(np.float32)
    given = {
        "big endian": array.astype(">f4"),
        "transposed": np.asfortranarray(array)[::-1][::-1],
        "read only": array.copy(),
        "bool": array > 0,
    }[layout]
    given.flags.writeable = False
    target = TARGETS["finer"]
    for order in (0, 1):
        expected = sample(array, SOURCE, target, order=order)
        assert np.allclose(sample(given, SOURCE, target, order=order), expected, atol=1e-6)


def test_a_coarser_target_gets_the_width_of_its_voxels():
    """A Gaussian of variance (r^2 - 1) / (8 ln 2) per axis, read off the response to one bright voxel."""
    source = Grid.from_parts((61, 61, 61), direction=rotation(4))
    array = np.zeros(source.shape, np.float32)
    array[30, 30, 30] = 1
    target = Grid.from_parts((10, 20, 61), (6, 3, 1), direction=rotation(4))
    response = smooth_for(array, source, target)
    offset = np.arange(61) - 30
    assert response.sum() == pytest.approx(1, abs=1e-5)
    for axis, ratio in ((2, 6), (1, 3), (0, 1)):
        profile = response.sum(tuple({0, 1, 2} - {axis}))
        expected = (ratio**2 - 1) / (8 * np.log(2))
        assert (profile * offset**2).sum() == pytest.approx(expected, rel=0.05, abs=1e-6)


def test_smoothing_follows_axes_through_a_rotation_and_leaves_fine_targets_alone():
    source = Grid.from_parts((20, 20, 20))
    array = np.random.default_rng(5).normal(size=source.shape).astype(np.float32)
    swapped = Grid.from_parts((5, 20, 20), (4, 1, 1), direction=np.eye(3)[:, [1, 0, 2]])  # 4 mm along the source's j
    plain = Grid.from_parts((20, 5, 20), (1, 4, 1))
    assert np.allclose(smooth_for(array, source, swapped), smooth_for(array, source, plain))
    assert np.array_equal(smooth_for(array, source, source.with_shape((30, 20, 25))), array)


def test_smoothing_keeps_a_constant_to_the_border():
    source = Grid.from_parts((9, 9, 9))
    assert np.allclose(smooth_for(np.full(source.shape, 7.0), source, source.with_shape((2, 2, 2))), 7)


@pytest.mark.parametrize("layout", ["coarser", "finer", "mirrored", "turned", "beyond"])
def test_smoothing_and_sampling_in_one_gives_the_same_values(layout):
    """Along the same axes by one matrix per axis, otherwise by the general way."""
    array = np.random.default_rng(6).normal(100, 30, SOURCE.shape).astype(np.float32)
    coarse = SOURCE.with_shape((7, 5, 9))
    target = {
        "coarser": coarse,
        "finer": SOURCE.with_shape((20, 40, 9)),
        "mirrored": Grid(
            coarse.shape, coarse.affine @ np.array([[-1, 0, 0, 8], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        ),
        "turned": TARGETS["oblique"],
        "beyond": coarse.box((-2, -1, 0), (9, 6, 7)),
    }[layout]
    expected = sample(smooth_for(array, SOURCE, target), SOURCE, target, outside=-7)
    assert np.abs(smooth_sample(array, SOURCE, target, outside=-7) - expected).max() < 1e-3
