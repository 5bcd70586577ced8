"""Images, fields, points and matrices of other libraries, against what those libraries say of them themselves."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from IconRegistrationLib import Image, Landmarks, Segment, Segmentation, read_image, write_image
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.io.convert import (
    as_field,
    as_image,
    as_landmarks,
    as_linear,
    as_segmentation,
    in_form_of,
    points_in_form_of,
    to_itk,
    to_nibabel,
    to_sitk,
)
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid

#: LPS from RAS, spelt out apart from the library.
FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])
ARRAYS = [(order, world) for order in ("kji", "ijk") for world in ("LPS", "RAS")]


@st.composite
def grids(draw):
    """Draw oblique, left-handed, permuted and anisotropic grids of a few voxels."""
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(random.normal(size=(3, 3)))  # either handedness
    if draw(st.booleans()):
        rotation = np.rint(np.eye(3))[:, random.permutation(3)] * random.choice([-1, 1], 3)
    spacing = np.array(draw(st.tuples(*[st.floats(0.2, 6.0)] * 3)))
    size = draw(st.tuples(*[st.integers(2, 7)] * 3))
    return Grid.from_parts(size, spacing, random.uniform(-300, 300, 3), rotation)


def an_array(grid, dtype=np.float32):
    """Every voxel has a value of its own."""
    return np.arange(np.prod(grid.shape)).reshape(grid.shape).astype(dtype)


def voxels(grid):
    return itertools.product(*[(0, n - 1) for n in grid.size])


def as_sitk(grid, array):
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(grid.direction.ravel().tolist())
    return image


def as_itk(grid, array):
    import itk

    image = itk.image_from_array(array)
    image.SetSpacing(grid.spacing.tolist())
    image.SetOrigin(grid.origin.tolist())
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(grid.direction)))
    return image


def as_nibabel(grid, array):
    import nibabel

    return nibabel.Nifti1Image(array.transpose(2, 1, 0), FLIP @ grid.affine)


def as_array(grid, array, order, world, library=np.asarray):
    affine = FLIP @ grid.affine if world == "RAS" else grid.affine
    return library(np.array(array.transpose(2, 1, 0) if order == "ijk" else array)), affine


@settings(max_examples=40)
@given(grids())
def test_images_of_simpleitk_and_itk_are_where_these_say(grid):
    array = an_array(grid)
    for foreign in (as_sitk(grid, array), as_itk(grid, array)):
        image = as_image(foreign)
        assert np.array_equal(image.array, array)
        for index in voxels(grid):
            there = foreign.TransformIndexToPhysicalPoint(list(index))
            assert np.allclose(image.grid.to_world(index), list(there), atol=1e-6)


@settings(max_examples=40)
@given(grids())
def test_images_of_nibabel_are_where_it_says(grid):
    from nibabel.affines import apply_affine

    foreign = as_nibabel(grid, an_array(grid))
    image = as_image(foreign)
    for index in voxels(grid):
        assert image.array[index[::-1]] == foreign.dataobj[index]
        ras = apply_affine(foreign.affine, index)
        assert np.allclose(image.grid.to_world(index), ras * [-1, -1, 1], atol=1e-6)


@settings(max_examples=40)
@given(grids(), st.sampled_from(ARRAYS), st.sampled_from([np.asarray, torch.from_numpy]))
def test_arrays_are_where_their_affine_and_order_say(grid, form, library):
    order, world = form
    array = an_array(grid)
    given_array, affine = as_array(grid, array, order, world, library)
    image = as_image((given_array, affine), order=order, world=world)
    assert np.array_equal(image.array, array)
    assert np.allclose(image.grid.affine, grid.affine)


@settings(max_examples=30)
@given(grids())
def test_there_and_back_through_every_library(grid):
    image = Image(an_array(grid), grid)
    for convert in (to_sitk, to_itk, to_nibabel):
        again = as_image(convert(image))
        assert np.array_equal(again.array, image.array)
        assert again.array.dtype == image.array.dtype
        assert np.allclose(again.grid.affine, grid.affine, atol=1e-9)
    for (order, world), library in itertools.product(ARRAYS, (np.asarray, torch.from_numpy)):
        value = as_array(grid, image.array, order, world, library)
        array, affine = in_form_of(image, value, order=order, world=world)
        assert type(array) is type(value[0])
        assert np.array_equal(array, value[0])
        assert np.allclose(affine, value[1])


@settings(max_examples=20)
@given(grids())
def test_a_field_displaces_alike_in_every_library(grid):
    """Also as read by ITK from nibabel's file: the intent says that its vectors are RAS."""
    from nibabel.affines import apply_affine

    displacement = np.random.default_rng(1).normal(0, 5, (*grid.shape, 3)).astype(np.float32)
    field = DisplacementField(displacement, grid)
    sitk, itk, nibabel = to_sitk(field), to_itk(field), to_nibabel(field)
    assert nibabel.shape == (*grid.size, 1, 3)
    for index in voxels(grid):
        point = grid.to_world(index)
        expected = point + displacement[index[::-1]]
        if all(0 < i < n - 1 for i, n in zip(index, grid.size, strict=True)):
            assert np.allclose(list(itk.TransformPoint(point.tolist())), expected, atol=1e-3)
            assert np.allclose(sitk.TransformPoint(point.tolist()), expected, atol=1e-3)
        ras = apply_affine(nibabel.affine, index) + np.asarray(nibabel.dataobj)[index][0]
        assert np.allclose(ras * [-1, -1, 1], expected, atol=1e-3)
    for transform in (sitk, itk):
        again = as_field(transform, grid)
        assert np.allclose(again.displacement, displacement, atol=1e-4)
        assert np.allclose(again.grid.affine, grid.affine, atol=1e-6)
    assert as_field(field, grid) is field


def test_nibabel_s_field_is_read_by_itk_in_lps(tmp_path):
    import nibabel
    import SimpleITK as sitk

    grid = Grid.from_parts((4, 5, 6), (1.0, 2.0, 3.0), (10, 20, 30), np.eye(3)[:, [1, 2, 0]] * [1, -1, 1])
    displacement = np.random.default_rng(1).normal(0, 5, (*grid.shape, 3)).astype(np.float32)
    nibabel.save(to_nibabel(DisplacementField(displacement, grid)), tmp_path / "field.nii.gz")
    read = sitk.ReadImage(str(tmp_path / "field.nii.gz"))
    assert np.allclose(sitk.GetArrayFromImage(read), displacement, atol=1e-4)
    assert np.allclose(read.GetOrigin(), grid.origin, atol=1e-4)


def test_nibabel_agrees_with_the_file_it_writes(tmp_path):
    """Millimetres of a header in micrometres, a fourth axis of one, scaled values."""
    import nibabel

    grid = Grid.from_parts((4, 5, 6), (0.5, 0.7, 1.1), (-3, 2, 5), np.eye(3)[:, [2, 0, 1]] * [1, 1, -1])
    array = an_array(grid, np.int16)
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0)[..., None], np.diag([1e3, 1e3, 1e3, 1]) @ FLIP @ grid.affine)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "image.nii")
    of_file, of_memory = read_image(tmp_path / "image.nii"), as_image(nibabel.load(tmp_path / "image.nii"))
    assert np.array_equal(of_memory.array, of_file.array)
    assert np.allclose(of_memory.grid.affine, of_file.grid.affine, atol=1e-4)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float16, np.float64, ">i2", ">f4"])
def test_types_of_voxels_keep_their_values(dtype):
    grid = Grid((2, 3, 2), np.eye(4))
    array = (an_array(grid) % 2).astype(dtype)
    image = as_image((array, np.eye(4)), order="kji", world="LPS")
    assert image.array.dtype.isnative
    for convert in (to_sitk, to_itk, to_nibabel):
        assert np.array_equal(as_image(convert(image)).array, array.astype(float))


def test_half_precision_of_torch():
    tensor = torch.ones(2, 3, 4, dtype=torch.bfloat16, requires_grad=True)
    assert as_image((tensor, np.eye(4)), order="kji", world="LPS").array.dtype == np.float32


def test_paths_and_images(tmp_path):
    image = Image(np.zeros((2, 3, 4), np.int16), Grid((2, 3, 4), np.eye(4)), "an image")
    assert as_image(image) is image
    write_image(image, tmp_path / "image.nrrd")
    for path in (tmp_path / "image.nrrd", str(tmp_path / "image.nrrd")):
        assert np.array_equal(as_image(path).array, image.array)
        assert in_form_of(image, path) is image


def test_label_maps_become_segmentations(tmp_path):
    grid = Grid((2, 3, 4), np.eye(4))
    labels = an_array(grid, np.int64) % 3
    for form in (as_sitk(grid, labels), as_nibabel(grid, labels.astype(np.float32)), Image(labels, grid)):
        segmentation = as_segmentation(form)
        assert [s.name for s in segmentation.segments] == ["label 1", "label 2"]
        assert np.array_equal(segmentation.layers[0], labels)
        assert np.array_equal(as_image(to_sitk(segmentation)).array, labels)
        assert as_segmentation(segmentation) is segmentation
    overlapping = Segmentation((labels, labels), (Segment("a", 1), Segment("b", 1, layer=1)), grid)
    with pytest.raises(InputError, match="overlaps another"):
        to_nibabel(overlapping)
    with pytest.raises(InputError, match="not a label map"):
        as_segmentation(Image(labels + 0.5, grid))


@pytest.mark.parametrize("world", ["LPS", "RAS"])
def test_points(world):
    sign = [-1, -1, 1] if world == "RAS" else [1, 1, 1]
    points = np.array([[1.0, 2, 3], [4, 5, 6]])
    for form in (points * sign, torch.tensor(points * sign), (points * sign).tolist()):
        landmarks = as_landmarks(form, world=world)
        assert np.array_equal(landmarks.points, points)
        assert landmarks.labels == ("1", "2")
        assert np.array_equal(points_in_form_of(landmarks, form, world=world), form)
    named = {"a": points[0] * sign, "b": points[1] * sign}
    landmarks = as_landmarks(named, world=world)
    assert landmarks.labels == ("a", "b")
    assert list(points_in_form_of(landmarks, named, world=world)) == ["a", "b"]
    assert as_landmarks(landmarks) is landmarks
    assert points_in_form_of(landmarks, landmarks) is landmarks


def test_linear_transforms(tmp_path):
    import itk
    import SimpleITK as sitk

    matrix = np.eye(4)
    matrix[:3, :3] += 0.1 * np.random.default_rng(0).normal(size=(3, 3))
    matrix[:3, 3] = 3, -4, 5
    of_sitk = sitk.AffineTransform(matrix[:3, :3].ravel().tolist(), matrix[:3, 3].tolist(), (7.0, 8.0, 9.0))
    of_sitk.SetCenter((0, 0, 0))
    of_itk = itk.AffineTransform[itk.D, 3].New()
    of_itk.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    of_itk.SetTranslation(matrix[:3, 3].tolist())
    sitk.WriteTransform(of_sitk, str(tmp_path / "affine.tfm"))
    for form in (of_sitk, of_itk, tmp_path / "affine.tfm"):
        assert np.allclose(as_linear(form), matrix, atol=1e-9)
    assert np.allclose(as_linear(FLIP @ matrix @ FLIP, world="RAS"), matrix)
    assert np.array_equal(as_linear(matrix, world="LPS"), matrix)
    with pytest.raises(InputError, match="not linear"):
        as_linear(to_sitk(DisplacementField(np.zeros((2, 2, 2, 3)), Grid((2, 2, 2), np.eye(4)))))


AFFINE = np.eye(4)


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        (np.zeros((2, 3, 4)), {}, r"no position in space; give \(array, affine\)"),
        (torch.zeros(2, 3, 4), {"order": "kji", "world": "LPS"}, "no position in space"),
        ((np.zeros((2, 3, 4)), AFFINE), {"world": "LPS"}, 'give order="kji" or order="ijk"|order of its axes'),
        ((np.zeros((2, 3, 4)), AFFINE), {"order": "ijk"}, 'give world="LPS" or world="RAS"'),
        ((np.zeros((2, 3, 4)), AFFINE), {"order": "xyz", "world": "LPS"}, "'xyz' is unknown; choose 'kji' or 'ijk'"),
        ((np.zeros((2, 3, 4)), AFFINE), {"order": "kji", "world": "LAS"}, "'LAS' is unknown"),
        ((np.zeros((1, 2, 3, 4)), AFFINE), {"order": "kji", "world": "LPS"}, "without batch, channel or time"),
        ((np.zeros((2, 3, 4), complex), AFFINE), {"order": "kji", "world": "LPS"}, "complex128, not real numbers"),
        ((np.zeros((2, 3, 4)), np.eye(3)), {"order": "kji", "world": "LPS"}, r"4x4 matrix is needed.*\(3, 3\)"),
        ((np.zeros((2, 3, 4)), "eye"), {"order": "kji", "world": "LPS"}, "image: .*4x4 matrix is needed.*, not 'eye'"),
        ((np.zeros((2, 3, 4)), AFFINE * np.nan), {"order": "kji", "world": "LPS"}, "not one with NaN or infinite"),
        (7, {}, "a int is not an image; give a path"),
        ({"a": 1}, {}, "a dict is not an image"),
    ],
)
def test_what_is_missing_is_said(value, options, message):
    with pytest.raises(InputError, match=message):
        as_image(value, **options)


def test_colours_and_time_are_refused():
    import nibabel
    import SimpleITK as sitk

    for image in (sitk.Image([4, 4, 4], sitk.sitkVectorUInt8, 3), sitk.Image([4, 4], sitk.sitkUInt8)):
        with pytest.raises(InputError, match=r"one channel|one 3D volume"):
            as_image(image)
    with pytest.raises(InputError, match="4 axes"):
        as_image(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), AFFINE))
    with pytest.raises(InputError, match="is not an image"):
        as_image(sitk.Transform())


@pytest.mark.parametrize(
    ("matrix", "found"),
    [
        (np.diag([1.0, 1.0, 0.0, 1.0]), "a singular one"),
        (np.full((4, 4), np.nan), "one with NaN or infinite elements"),
        (np.eye(4) + np.eye(4)[[3, 1, 2, 0]], "one with the last row 1 0 0 1"),
        ([[1, 0], [0]], "not "),
    ],
)
def test_a_start_that_is_no_affine_motion_is_refused(matrix, found):
    with pytest.raises(InputError, match=f"initial transform: an invertible 4x4 matrix is needed.*{found}"):
        as_linear(matrix, world="LPS")


def test_points_and_matrices_need_a_world():
    with pytest.raises(InputError, match='give world="LPS" or world="RAS"'):
        as_landmarks(np.zeros((2, 3)))
    with pytest.raises(InputError, match='give world="LPS" or world="RAS"'):
        as_linear(np.eye(4))
    with pytest.raises(InputError, match=r"shape \(n, 3\)"):
        as_landmarks(np.zeros((2, 2)), world="LPS")
    with pytest.raises(InputError, match="is not a transform"):
        as_field(3, Grid((2, 2, 2), AFFINE))
    assert isinstance(as_landmarks([[1, 2, 3]], world="RAS"), Landmarks)
