"""The displacement field against ITK, VTK, icon_registration's own transform and closed forms."""

import sys
import types

import numpy as np
import pytest
import torch

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.quality.measures import folding
from IconRegistrationLib.spatial.field import (
    DisplacementField,
    compose_displacements,
    displacement_from_phi,
    inverse_consistency_error,
    jacobian_determinant,
    warp_image,
    warp_labels,
    warp_segmentation,
)
from IconRegistrationLib.spatial.geometry import (
    Grid,
    Image,
    Segment,
    Segmentation,
    apply_affine,
    flip_affine,
    flip_vectors,
)
from IconRegistrationLib.spatial.sampling import sample


def rotation(seed, left_handed=False):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q * [np.sign(np.linalg.det(q)) * (-1 if left_handed else 1), 1, 1]


def matrix_near_identity(seed, shift=5.0):
    rng = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] += rng.uniform(-0.1, 0.1, (3, 3))
    matrix[:3, 3] = rng.uniform(-shift, shift, 3)
    return matrix


#: Oblique, anisotropic, permuted, flipped and shifted; fixed and moving differ in everything.
FIXED = Grid.from_parts((34, 27, 19), (1.1, 1.3, 2.9), (-20, 50, -100), rotation(1)[:, [2, 0, 1]] * [1, -1, 1])
MOVING = Grid.from_parts((29, 33, 23), (1.3, 0.9, 2.3), (210, -130, 20), rotation(2, left_handed=True))
SHAPE = (15, 18, 16)
FIXED_LATTICE, MOVING_LATTICE = FIXED.with_shape(SHAPE), MOVING.with_shape(SHAPE)


def unit_nodes(shape):
    axes = [torch.linspace(0, 1, n, dtype=torch.float64) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


def a_phi(shape=SHAPE, amplitude=0.02, seed=0):
    """A map [1, 3, D, H, W]: identity plus noise that does not vanish at the border."""
    noise = torch.from_numpy(np.random.default_rng(seed).normal(0, amplitude, (1, 3, *shape)))
    return (unit_nodes(shape) + noise).float()


def smooth_phi(shape=SHAPE, amplitude=0.02):
    unit = unit_nodes(shape)
    return (unit + amplitude * torch.sin(5 * unit.flip(1) + torch.tensor([0.3, 1, 2]).view(1, 3, 1, 1, 1))).float()


def by_definition(phi, points, fixed_lattice, moving_lattice, linear=None):
    """T at fixed points (n, 3), one by one: the linear map plus the residual against it, trilinear and clamped."""
    shape = fixed_lattice.shape
    to_moving = moving_lattice.unit_to_world()
    if linear is None:
        linear = to_moving @ np.linalg.inv(fixed_lattice.unit_to_world())
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    places = np.moveaxis(phi[0].double().numpy(), 0, -1)
    residual = apply_affine(to_moving, places) - apply_affine(linear, fixed_lattice.to_world(nodes[..., ::-1]))
    results = []
    for point in points:
        index = np.clip(fixed_lattice.to_index(point)[::-1], 0, np.array(shape) - 1)
        low = np.minimum(index.astype(int), np.array(shape) - 2)
        value = apply_affine(linear, point)
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, index - low, 1 - index + low))
            value = value + weight * residual[tuple(low + corner)]
        results.append(value)
    return np.array(results)


def itk_points(transform, points):
    return np.array([list(transform.TransformPoint(p.tolist())) for p in points])


def itk_image(array, grid):
    import itk

    image = itk.image_from_array(np.ascontiguousarray(array))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))
    return image


def itk_resample(array, grid, transform, target, outside=0, interpolator="Linear"):
    import itk

    image = itk_image(array, grid)
    interpolator = getattr(itk, f"{interpolator}InterpolateImageFunction")[type(image), itk.D].New()
    return itk.array_from_image(
        itk.resample_image_filter(
            image,
            transform=transform,
            interpolator=interpolator,
            size=target.size,
            output_spacing=target.spacing,
            output_origin=target.origin,
            output_direction=itk.matrix_from_array(np.ascontiguousarray(target.direction)),
            default_pixel_value=outside,
        )
    )


def icon_composite(phi):
    """icon_registration's own three-part transform of this phi; its image_A is the moving image, image_B the fixed."""
    try:
        import tqdm  # noqa: F401
    except ImportError:  # the progress bar of its training, which nothing here touches
        sys.modules["tqdm"] = types.ModuleType("tqdm")
    wrapper = pytest.importorskip("icon_registration.itk_wrapper", reason="icon_registration cannot be imported")
    fixed_image, moving_image = (itk_image(np.zeros(g.shape, np.float32), g) for g in (FIXED, MOVING))
    identity = unit_nodes(phi.shape[2:]).float()
    return wrapper.create_itk_transform(phi, identity, moving_image, fixed_image)


def border_voxels(grid):
    """World places of every voxel centre on the surface of a grid."""
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1).reshape(-1, 3)
    on_surface = ((nodes == 0) | (nodes == np.array(grid.shape) - 1)).any(-1)
    return grid.to_world(nodes[on_surface][:, ::-1])


@pytest.fixture(scope="module")
def a_field():
    return displacement_from_phi(a_phi(), FIXED_LATTICE, MOVING_LATTICE, cover=FIXED)


# --- flattening ---


def points_inside(lattice, number, seed=0):
    unit = np.random.default_rng(seed).uniform(0, 1, (number, 3))
    return apply_affine(lattice.unit_to_world(), unit)


def test_flattening_agrees_with_icon_registration(a_field):
    """10,000 points inside the lattice, against the three-part composite that `register_pair` returns."""
    composite = icon_composite(a_phi())
    points = points_inside(FIXED_LATTICE, 10_000)
    assert np.abs(a_field.transform_points(points) - itk_points(composite, points)).max() < 1e-3


@pytest.mark.parametrize("linear", [None, matrix_near_identity(7)], ids=["lattice map", "initial transform"])
def test_border_voxels_follow_the_extension_rule_in_itk(linear):
    field = displacement_from_phi(a_phi(), FIXED_LATTICE, MOVING_LATTICE, cover=FIXED, linear=linear)
    points = np.vstack([border_voxels(FIXED), FIXED.corners(faces=True)])
    expected = by_definition(a_phi(), points, FIXED_LATTICE, MOVING_LATTICE, linear)
    # Between lattice and padding the extension is a ramp along each axis: exact in the trilinear field.
    assert np.abs(itk_points(field.to_itk(), points) - expected).max() < 1e-3
    assert np.abs(field.transform_points(points) - expected).max() < 1e-3
    assert field.grid.contains(FIXED.corners(faces=True)).all()


def vtk_points(field, points):
    """The field as Slicer's grid transform (RAS), evaluated at points in LPS."""
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    vtk = pytest.importorskip("vtk")
    from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

    affine = flip_affine(field.grid.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = vtk.vtkImageData()
    image.SetDimensions(*field.grid.size)
    image.SetSpacing(spacing)
    image.SetOrigin(affine[:3, 3])
    image.GetPointData().SetScalars(numpy_to_vtk(flip_vectors(field.displacement).reshape(-1, 3), deep=True))
    direction = vtk.vtkMatrix4x4()
    for row in range(3):
        for column in range(3):
            direction.SetElement(row, column, affine[row, column] / spacing[column])
    transform = slicer.vtkOrientedGridTransform()
    transform.SetGridDirectionMatrix(direction)
    transform.SetDisplacementGridData(image)
    given, moved = vtk.vtkPoints(), vtk.vtkPoints()
    for p in (given, moved):
        p.SetDataTypeToDouble()
    given.SetData(numpy_to_vtk(flip_vectors(points), deep=True))
    transform.TransformPoints(given, moved)
    return flip_vectors(vtk_to_numpy(moved.GetData()))


def test_itk_and_vtk_agree_on_every_border_voxel(a_field):
    points = np.vstack([border_voxels(FIXED), FIXED.corners()])
    assert np.abs(vtk_points(a_field, points) - itk_points(a_field.to_itk(), points)).max() < 1e-3


def test_far_outside_points_move_as_in_vtk(a_field):
    points = FIXED.centre + 2.5 * (FIXED.corners() - FIXED.centre)
    assert np.abs(vtk_points(a_field, points) - a_field.transform_points(points)).max() < 1e-3


def test_the_map_is_continuous_across_the_border_of_the_image(a_field):
    """A step of 0.01 mm through the outer face moves its image by no more than the local stretch allows."""
    corners = FIXED.corners(faces=True)
    inward = (FIXED.centre - corners) * (0.01 / np.linalg.norm(FIXED.centre - corners, axis=1, keepdims=True))
    before, after = a_field.transform_points(corners + inward), a_field.transform_points(corners - inward)
    assert np.linalg.norm(before - after, axis=1).max() < 0.2


def test_a_lattice_over_a_part_is_padded_to_the_whole_image():
    """A region of interest: more than one sample per side, still the extension rule at every voxel of the image."""
    region = FIXED.box((10, 8, 5), (24, 20, 14)).with_shape(SHAPE)
    linear = matrix_near_identity(8, shift=2)
    moving = region.moved(linear)
    field = displacement_from_phi(a_phi(), region, moving, cover=FIXED, linear=linear)
    assert max(field.grid.shape) > max(SHAPE) + 2
    points = np.vstack([border_voxels(FIXED)[::5], FIXED.corners(), points_inside(region, 100)])
    expected = by_definition(a_phi(), points, region, moving, linear)
    # Where lattices are of one shape over boxes that `linear` maps onto each other, both rules are one.
    assert np.abs(expected - by_definition(a_phi(), points, region, moving)).max() < 1e-6
    assert np.abs(itk_points(field.to_itk(), points) - expected).max() < 1e-3


def test_without_cover_the_lattice_stays(a_field):
    field = displacement_from_phi(a_phi(), FIXED_LATTICE, MOVING_LATTICE)
    assert field.grid == FIXED_LATTICE
    assert a_field.grid.shape == tuple(np.add(SHAPE, 2))
    assert np.array_equal(a_field.displacement[1:-1, 1:-1, 1:-1], field.displacement)


def test_padding_by_nothing_where_the_lattice_covers_the_image():
    assert displacement_from_phi(
        a_phi(), FIXED_LATTICE, MOVING_LATTICE, cover=FIXED_LATTICE.box((1, 1, 1), (15, 17, 14))
    ).grid == (FIXED_LATTICE)


def test_resampling_on_a_reference_image_agrees(a_field):
    """ITK's own flattening (transform_to_displacement_field) of the composite, inside the lattice."""
    resampled = DisplacementField.from_itk(icon_composite(a_phi()), FIXED)
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in FIXED.shape], indexing="ij"), -1)
    world = FIXED.to_world(nodes[..., ::-1]).reshape(-1, 3)
    direct = a_field.transform_points(world) - world
    covered = (np.abs(FIXED_LATTICE.to_index(world) / (np.array(SHAPE[::-1]) - 1) - 0.5) <= 0.5).all(-1)
    assert covered.mean() > 0.6
    assert np.abs(resampled.displacement.reshape(-1, 3) - direct)[covered].max() < 1e-3


def test_an_identity_map_between_boxes_is_affine():
    """phi = identity maps box onto box: corners to corners, and no residue of float32 above a micron or so."""
    field = displacement_from_phi(unit_nodes(SHAPE).float(), FIXED_LATTICE, MOVING_LATTICE, cover=FIXED)
    assert np.abs(field.transform_points(FIXED.corners(True)) - MOVING.corners(True)).max() < 1e-3
    itself = displacement_from_phi(unit_nodes(SHAPE).float(), FIXED_LATTICE, FIXED_LATTICE, cover=FIXED)
    assert itself.magnitude().max() < 1e-4


def test_a_map_of_the_wrong_shape_is_refused():
    with pytest.raises(InputError, match="phi has shape"):
        displacement_from_phi(a_phi((4, 5, 6)), FIXED_LATTICE, MOVING_LATTICE)
    with pytest.raises(InputError, match="displacement has shape"):
        DisplacementField(np.zeros((3, 4, 5, 6)), Grid.from_parts((6, 5, 4)))


# --- direction ---


def test_the_field_takes_fixed_points_to_moving_points():
    """A ball whose truth is known: it lies at +6 mm along x in the moving image."""
    grid = Grid.from_parts((40, 30, 20), (1, 1.5, 2), (-20, -22, -20))
    k, j, i = np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")
    world = grid.to_world(np.stack([i, j, k], -1))

    def ball(centre):
        return np.exp(-0.5 * (np.linalg.norm(world - centre, axis=-1) / 3) ** 2).astype(np.float32)

    fixed, moving = ball([-3, 0, 0]), ball([3, 0, 0])
    phi = unit_nodes(SHAPE).float()
    lattice = grid.with_shape(SHAPE)
    # Component 2 runs along i; a unit is the distance between the first and last sample of the lattice.
    phi[0, 2] += 6 / ((SHAPE[2] - 1) * lattice.spacing[0])
    field = displacement_from_phi(phi, lattice, lattice, cover=grid)
    assert np.allclose(field.transform_points([[-3.0, 0, 0]]), [[3, 0, 0]], atol=1e-4)
    warped = warp_image(Image(moving, grid), field, grid)
    assert np.abs(warped.array - fixed).max() < 0.02
    assert np.abs(moving - fixed).max() > 0.8


# --- ITK and back ---


def test_itk_transform_round_trip(a_field):
    again = DisplacementField.from_itk(a_field.to_itk())
    assert again.grid.is_close(a_field.grid, 1e-9)
    assert np.array_equal(again.displacement, a_field.displacement)


def test_the_itk_transform_outlives_the_field():
    import gc

    field = displacement_from_phi(a_phi(), FIXED_LATTICE, MOVING_LATTICE)
    transform, expected = field.to_itk(), field.displacement.copy()
    del field
    gc.collect()
    assert np.array_equal(DisplacementField.from_itk(transform).displacement, expected)


def test_a_sheared_grid_goes_through_itk():
    """A parent transform may shear the world: ITK takes the non-orthogonal direction and evaluates it rightly."""
    shear = np.eye(4)
    shear[0, 1], shear[1, 2] = 0.3, -0.2
    field = displacement_from_phi(a_phi(), FIXED_LATTICE.moved(shear), MOVING_LATTICE)
    points = points_inside(field.grid, 200)
    assert not field.grid.is_orthogonal
    assert np.abs(itk_points(field.to_itk(), points) - field.transform_points(points)).max() < 1e-6
    assert np.abs(vtk_points(field, points) - field.transform_points(points)).max() < 1e-3
    assert DisplacementField.from_itk(field.to_itk()).grid.is_close(field.grid)


def test_any_itk_transform_is_sampled_on_a_grid():
    import itk

    matrix = matrix_near_identity(4)
    transform = itk.AffineTransform[itk.D, 3].New()
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    transform.SetOffset(matrix[:3, 3].tolist())
    field = DisplacementField.from_itk(transform, FIXED_LATTICE)
    points = points_inside(FIXED_LATTICE, 50)
    assert np.allclose(field.transform_points(points), apply_affine(matrix, points), atol=1e-3)
    with pytest.raises(InputError, match="give the grid"):
        DisplacementField.from_itk(transform)


# --- composition ---


def test_linear_parts_compose_exactly(a_field):
    matrix = matrix_near_identity(5, shift=30)
    points = points_inside(a_field.grid, 500)
    moved = a_field.transform_points(points)
    assert np.abs(a_field.after(matrix).transform_points(points) - apply_affine(matrix, moved)).max() < 1e-4
    starts = apply_affine(np.linalg.inv(matrix), points)
    before = a_field.before(matrix)
    assert np.abs(before.transform_points(starts) - moved).max() < 1e-4
    assert np.abs(itk_points(before.to_itk(), starts) - moved).max() < 1e-4


def test_composition_with_another_field(a_field):
    second = displacement_from_phi(a_phi(seed=1), MOVING_LATTICE, FIXED_LATTICE, cover=MOVING)
    both = compose_displacements(a_field, second)
    nodes = points_at_nodes(a_field.grid)
    expected = second.transform_points(a_field.transform_points(nodes))
    assert np.abs(both.transform_points(nodes) - expected).max() < 1e-3


def points_at_nodes(grid):
    nodes = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    return grid.to_world(nodes[..., ::-1]).reshape(-1, 3)


# --- warping ---


@pytest.fixture(params=["own grid", "other grid"])
def a_target(request):
    """The fixed image's own grid runs along the lattice; another, inside it, does not."""
    oblique = Grid.from_parts((25, 20, 15), (0.7, 0.8, 1.5), direction=rotation(9))
    centred = Grid(oblique.shape, oblique.affine + np.outer(np.append(FIXED.centre - oblique.centre, 0), [0, 0, 0, 1]))
    return {"own grid": FIXED, "other grid": centred}[request.param]


def moving_index(field, target):
    """Where each sample of the target lies in the moving image, in voxels (n, 3)."""
    return MOVING.to_index(field.transform_points(points_at_nodes(target)))


def off_faces(index):
    size = np.array(MOVING.size)
    return ~((np.abs(index + 0.5) < 1e-3) | (np.abs(index - size + 0.5) < 1e-3)).any(-1)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_warped_image_is_itk_s(a_field, a_target, order, threads):
    import itk

    array = np.random.default_rng(0).normal(0, 100, MOVING.shape).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours = warp_image(Image(array, MOVING, "T1"), a_field, a_target, order=order, outside=-5000)
    finally:
        torch.set_num_threads(before)
    if order == 3:
        sampler = itk.BSplineInterpolateImageFunction[itk.Image[itk.F, 3], itk.D, itk.F].New()
        sampler.SetInputImage(itk_image(array, MOVING))
        points = a_field.transform_points(points_at_nodes(a_target))[::37]
        inside = MOVING.contains(points)
        expected = [sampler.Evaluate(p.tolist()) for p in points[inside]]
        assert np.abs(ours.array.ravel()[::37][inside] - expected).max() < 0.05
        assert (ours.array.ravel()[::37][~inside] == -5000).all()
        return
    theirs = itk_resample(array, MOVING, a_field.to_itk(), a_target, -5000)
    sure = off_faces(moving_index(a_field, a_target)).reshape(a_target.shape)
    assert np.array_equal((ours.array == -5000)[sure], (theirs == -5000)[sure])
    # Places in float32 are good to 2e-5 voxel; noise of sigma 100 has gradients of hundreds per voxel.
    assert np.abs(ours.array - theirs)[sure].max() < 0.05
    assert ours.grid == a_target
    assert ours.name == "T1"


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_nearest_labels_are_itk_s(a_field, a_target, dtype):
    labels = np.random.default_rng(1).integers(1, 120, MOVING.shape).astype(dtype)
    ours = warp_labels(Image(labels, MOVING), a_field, a_target)
    theirs = itk_resample(labels.astype(np.int16), MOVING, a_field.to_itk(), a_target, 0, "NearestNeighbor")
    ties = (np.abs(moving_index(a_field, a_target) % 1 - 0.5) < 2e-4).any(-1).reshape(a_target.shape)
    assert ours.array.dtype == dtype
    assert ties.mean() < 0.01
    assert np.array_equal(ours.array[~ties], theirs[~ties])
    assert np.array_equal(ours.array, warp_image(Image(labels, MOVING), a_field, a_target, order=0).array)


def block_labels(labels, seed):
    """Blocks of 4 voxels with random labels."""
    small = np.random.default_rng(seed).choice(labels, tuple(n // 4 + 1 for n in MOVING.shape))
    return small.repeat(4, 0).repeat(4, 1).repeat(4, 2)[tuple(slice(n) for n in MOVING.shape)].astype(np.int32)


def test_linear_labels_are_the_argmax_of_all_indicators(a_field, a_target):
    """Against brute force: warp every label's indicator, background included, and take the largest."""
    labels = block_labels([0, 0, 3, 4, 17, 200, 70000], seed=2)
    ours = warp_labels(Image(labels, MOVING), a_field, a_target, method="linear").array
    values = np.unique(labels)
    weights = np.stack(
        [warp_image(Image((labels == v).astype(np.float32), MOVING), a_field, a_target).array for v in values]
    )
    inside = weights.sum(0) > 0.5
    ranked = np.sort(weights, axis=0)
    clear = inside & (ranked[-1] - ranked[-2] > 1e-3)
    assert clear.mean() > 0.5 * inside.mean()
    assert np.array_equal(ours[clear], values[weights.argmax(0)][clear])
    assert (ours[~inside] == 0).all()


def test_of_equal_weights_the_smallest_label_wins():
    source = Grid.from_parts((2, 1, 1))
    between = Grid.from_parts((1, 1, 1), origin=(0.5, 0, 0))
    still = DisplacementField(np.zeros((1, 1, 1, 3)), between)
    for pair in ([9, 4], [4, 9]):
        labels = Image(np.array(pair).reshape(1, 1, 2), source)
        assert warp_labels(labels, still, between, "linear").array.item() == 4


def test_linear_labels_of_a_smooth_shape_are_closer_to_the_truth():
    """A ball sampled coarsely, asked for on a finer grid: label-wise linear beats nearest."""
    coarse = Grid.from_parts((16, 16, 16), (2, 2, 2))
    fine = coarse.with_shape((48, 48, 48))
    still = DisplacementField(np.zeros((2, 2, 2, 3)), coarse.with_shape((2, 2, 2)))

    def ball(grid):
        distance = np.linalg.norm(points_at_nodes(grid) - coarse.centre, axis=-1)
        return (distance < 10.3).reshape(grid.shape).astype(np.uint8)

    truth = ball(fine)
    wrong = {m: (warp_labels(Image(ball(coarse), coarse), still, fine, m).array != truth).sum() for m in METHODS}
    assert wrong["linear"] < 0.8 * wrong["nearest"]


METHODS = ("nearest", "linear")


@pytest.mark.parametrize("method", METHODS)
def test_a_segmentation_keeps_everything_but_its_grid(a_field, method):
    """Two layers that overlap are warped each for itself; names, colours, tags, values and identifiers stay."""
    layers = (block_labels([0, 1, 2], 3).astype(np.uint8), block_labels([0, 5], 4).astype(np.int16))
    segments = (
        Segment("liver", 1, 0, (0.8, 0.3, 0.2), "Segment_1", {"TerminologyEntry": "x~y"}),
        Segment("spleen", 2, 0, (0.1, 0.3, 0.2), "Segment_2"),
        Segment("lesion", 5, 1, (0.1, 0.9, 0.2), "Segment_3"),
    )
    warped = warp_segmentation(Segmentation(layers, segments, MOVING, "organs"), a_field, FIXED, method)
    assert warped.segments == segments
    assert (warped.name, warped.grid) == ("organs", FIXED)
    assert (warped.mask(segments[0]) & warped.mask(segments[2])).any()
    for before, after in zip(layers, warped.layers, strict=True):
        assert after.dtype == before.dtype
        assert np.array_equal(after, warp_labels(Image(before, MOVING), a_field, FIXED, method).array)
    with pytest.raises(InputError, match="choose nearest or linear"):
        warp_segmentation(warped, a_field, FIXED, "cubic")


def test_a_field_of_zeros_changes_nothing():
    labels = block_labels(range(140), seed=6)
    still = DisplacementField(np.zeros((2, 2, 2, 3)), MOVING.with_shape((2, 2, 2)))
    for method in METHODS:
        assert np.array_equal(warp_labels(Image(labels, MOVING), still, MOVING, method).array, labels)
    image = labels.astype(np.float32)
    assert np.abs(warp_image(Image(image, MOVING), still, MOVING).array - image).max() < 0.01


def test_warping_by_an_affine_field_is_sampling_through_its_matrix():
    matrix = matrix_near_identity(10, shift=3)
    matrix[:3, 3] += MOVING.centre - apply_affine(matrix, FIXED.centre)
    zero = DisplacementField(
        np.zeros((2, 2, 2, 3)), FIXED.with_shape((2, 2, 2)).box((-1, -1, -1), (3, 3, 3)).with_shape((2, 2, 2))
    )
    array = np.random.default_rng(7).normal(size=MOVING.shape).astype(np.float32)
    warped = warp_image(Image(array, MOVING), zero.after(matrix), FIXED, outside=-3).array
    assert np.abs(warped - sample(array, MOVING, FIXED, transform=matrix, outside=-3)).max() < 1e-3


# --- Jacobian, folding, inverse consistency ---


GRIDS = {
    "oblique": FIXED_LATTICE,
    "left-handed": MOVING_LATTICE,
    "sheared": FIXED_LATTICE.moved(np.array([[1, 0.3, 0, 0], [0, 1, -0.2, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])),
}


def field_of(function, grid):
    nodes = points_at_nodes(grid)
    return DisplacementField((function(nodes) - nodes).reshape(*grid.shape, 3), grid)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_jacobian_of_an_affine_map_is_its_determinant_to_the_border(grid):
    matrix = matrix_near_identity(11)
    jacobian = jacobian_determinant(field_of(lambda x: apply_affine(matrix, x), grid))
    assert np.abs(jacobian - np.linalg.det(matrix[:3, :3])).max() < 1e-4


@pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
def test_jacobian_of_a_quadratic_map(grid):
    """T(x) = x + c (n . (x - o))^2 has det = 1 + 2 (n . (x - o)) (n . c); central differences are exact on it."""
    n, c = np.array([0.01, 0.02, -0.015]), np.array([3.0, -2.0, 4.0])
    along = lambda x: (x - grid.centre) @ n  # noqa: E731
    jacobian = jacobian_determinant(field_of(lambda x: x + np.outer(along(x) ** 2, c), grid))
    expected = (1 + 2 * along(points_at_nodes(grid)) * (n @ c)).reshape(grid.shape)
    inner = (slice(1, -1),) * 3
    assert np.ptp(expected) > 0.1
    assert np.abs(jacobian - expected)[inner].max() < 1e-4
    assert np.abs(jacobian - expected).max() < 0.05  # one-sided at the border


def test_jacobian_is_itk_s_on_an_axis_aligned_grid():
    import itk

    grid = Grid.from_parts((20, 18, 90), (1.5, 2, 0.8))
    field = DisplacementField(np.random.default_rng(8).normal(0, 0.4, (*grid.shape, 3)), grid)
    image_type = itk.Image[itk.Vector[itk.F, 3], 3]
    image = itk.image_from_array(field.displacement, ttype=(image_type,))
    image.SetSpacing(grid.spacing)
    jacobian_filter = itk.DisplacementFieldJacobianDeterminantFilter[image_type, itk.F].New(image)
    jacobian_filter.Update()
    theirs = itk.array_from_image(jacobian_filter.GetOutput())
    inner = (slice(1, -1),) * 3
    assert np.abs(jacobian_determinant(field) - theirs)[inner].max() < 1e-5


def test_slabs_leave_no_seams(monkeypatch):
    from IconRegistrationLib.spatial import sampling

    field = displacement_from_phi(a_phi(), FIXED_LATTICE, MOVING_LATTICE)
    whole = jacobian_determinant(field)
    monkeypatch.setattr(sampling, "SLAB_VOXELS", 1)
    assert np.array_equal(jacobian_determinant(field), whole)


def test_folding_is_counted_and_placed():
    """A mirror fold at one node: the displacement there jumps beyond its neighbours along i."""
    grid = Grid.from_parts((11, 10, 9), (2, 2, 2), (5, 6, 7), rotation(3))
    displacement = np.zeros((*grid.shape, 3))
    displacement[4, 5, 6] = 5.0 * grid.direction[:, 0]  # 5 mm where neighbours are 4 mm apart
    field = DisplacementField(displacement, grid)
    jacobian = jacobian_determinant(field)
    found = folding(jacobian, grid)
    assert found.count == 1
    assert found.share == pytest.approx(1 / 990)
    assert found.minimum == pytest.approx(1 - 5 / 4, abs=1e-5)
    assert np.allclose(found.place, grid.to_world([7, 5, 4]), atol=1e-5)
    mask = np.zeros(grid.shape, bool)
    mask[:4] = True
    assert folding(jacobian, grid, mask).count == 0
    assert folding(jacobian, grid, mask).minimum == pytest.approx(1)
    with pytest.raises(InputError, match="empty"):
        folding(jacobian, grid, ~np.ones(grid.shape, bool))


def test_inverse_consistency_against_points(a_field):
    backward = displacement_from_phi(a_phi(seed=3), MOVING_LATTICE, FIXED_LATTICE, cover=MOVING)
    error = inverse_consistency_error(a_field, backward).ravel()
    nodes = points_at_nodes(a_field.grid)
    there = a_field.transform_points(nodes)
    expected = np.linalg.norm(backward.transform_points(there) - nodes, axis=-1)
    known = backward.grid.contains(there)
    assert np.array_equal(np.isnan(error), ~known)
    assert 0.3 < known.mean() < 1
    assert np.abs(error - expected)[known].max() < 1e-3


def test_inverse_maps_are_consistent():
    matrix = matrix_near_identity(12)
    forward = field_of(lambda x: apply_affine(matrix, x), FIXED_LATTICE)
    backward = field_of(
        lambda x: apply_affine(np.linalg.inv(matrix), x), FIXED_LATTICE.moved(matrix).box((-1, -1, -1), (20, 20, 20))
    )
    assert inverse_consistency_error(forward, backward).max() < 1e-4
