"""The public face: names that cost nothing to import, one registration in every form, and what a result can do."""

import ast
import base64
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from phantoms import phantom
from test_convert import ARRAYS, FLIP, as_array, as_itk, as_nibabel, as_sitk

import IconRegistrationLib as library
from IconRegistrationLib import (
    Grid,
    Image,
    Landmarks,
    Settings,
    read_image,
    read_segmentation,
    register,
    warp,
    warp_image,
    warp_labels,
    write_image,
    write_landmarks,
    write_segmentation,
)
from IconRegistrationLib.errors import InputError
from IconRegistrationLib.registration.intensity import background_value
from IconRegistrationLib.workflow.notebook import png_of
from IconRegistrationLib.workflow.outputs import files_in
from IconRegistrationLib.workflow.roles import segments_mask

STUB = Path(library.__file__).with_suffix(".pyi")
QUICK = Settings(align="centre", steps=1, device="cpu")
RIGID = Settings(align="rigid", refine="off", device="cpu")


# --- names ---


def test_importing_the_library_imports_nothing_else():
    code = (
        "import sys; before = set(sys.modules); import IconRegistrationLib; "
        "print(sorted(set(sys.modules) - before - {'IconRegistrationLib'}))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_there():
    for name in library.__all__:
        assert getattr(library, name) is not None
        assert name in dir(library)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = library.nonsense


def test_type_checkers_see_the_same_names():
    tree = ast.parse(STUB.read_text(encoding="utf-8"))
    imported = {
        alias.name: f"IconRegistrationLib.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*imported, "__version__"} == set(library.__all__)
    (listed,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert sorted(listed) == sorted(library.__all__)
    for name, module in imported.items():
        assert getattr(sys.modules[module], name) is getattr(library, name)


# --- one registration in every form ---

#: Fixed mm -> moving mm, LPS: a rotation by 7 degrees about an oblique axis, and a shift.
AXIS = np.array([2.0, -1.0, 2.0]) / 3
ANGLE = np.radians(7)


def known_motion():
    cross = np.cross(np.eye(3), AXIS)
    motion = np.eye(4)
    motion[:3, :3] = np.eye(3) - np.sin(ANGLE) * cross + (1 - np.cos(ANGLE)) * cross @ cross
    motion[:3, 3] = 6.0, -4.0, 3.0
    return motion


#: Axes permuted, one of them flipped (left-handed), all oblique.
OBLIQUE, _ = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))
DIRECTION = OBLIQUE[:, [2, 0, 1]] * [1, -np.linalg.det(OBLIQUE[:, [2, 0, 1]]), 1]


def a_blob(points):
    """A body with three lobes of different brightness: one pose looks like no other."""
    centres = np.array([[0, 0, 0], [22, 6, -4], [-8, 20, 14]])
    return sum(
        height * np.exp(-(((points - centre) / width) ** 2).sum(-1))
        for centre, height, width in zip(centres, (100, 60, 80), ((26, 20, 16), (10, 12, 9), (9, 8, 12)), strict=True)
    )


def world_of(grid):
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij")[::-1], -1)
    return index @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def centred(size, spacing, direction):
    grid = Grid.from_parts(size, spacing, direction=direction)
    return Grid.from_parts(size, spacing, -grid.centre, direction)


@pytest.fixture(scope="module")
def a_moved_pair():
    """One body seen twice; between the two it has moved as `known_motion` says."""
    fixed, moving = centred((36, 30, 22), (2.5, 3.0, 4.5), DIRECTION), centred((34, 38, 24), (2.7, 2.5, 4.0), None)
    back = np.linalg.inv(known_motion())
    seen = world_of(moving) @ back[:3, :3].T + back[:3, 3]
    return (fixed, a_blob(world_of(fixed)).astype(np.float32)), (moving, a_blob(seen).astype(np.float32))


@pytest.fixture(scope="module")
def the_rigid_result(a_moved_pair):
    return register(*(Image(array, grid) for grid, array in a_moved_pair), RIGID)


def error_of(field):
    points = np.random.default_rng(5).uniform(-20, 20, (50, 3))
    expected = points @ known_motion()[:3, :3].T + known_motion()[:3, 3]
    return np.linalg.norm(field.transform_points(points) - expected, axis=1).max()


def test_a_known_motion_is_found(the_rigid_result):
    points = np.random.default_rng(5).uniform(-20, 20, (50, 3))
    moved = np.linalg.norm(points @ known_motion()[:3, :3].T + known_motion()[:3, 3] - points, axis=1)
    assert moved.min() > 3
    assert error_of(the_rigid_result.forward) < 0.5


@pytest.mark.parametrize("form", [as_sitk, as_itk, as_nibabel], ids=["SimpleITK", "ITK", "nibabel"])
def test_images_of_libraries_are_registered_alike(form, a_moved_pair, the_rigid_result):
    result = register(*(form(grid, array) for grid, array in a_moved_pair), RIGID)
    assert error_of(result.forward) < 0.5
    check_same(result, the_rigid_result)


@pytest.mark.parametrize("make", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize(("order", "world"), ARRAYS)
def test_arrays_are_registered_alike(make, order, world, a_moved_pair, the_rigid_result):
    images = (as_array(grid, array, order, world, make) for grid, array in a_moved_pair)
    result = register(*images, RIGID, order=order, world=world)
    assert error_of(result.forward) < 0.5
    check_same(result, the_rigid_result)


def test_files_are_registered_alike(a_moved_pair, the_rigid_result, tmp_path):
    for name, (grid, array) in zip(("fixed", "moving"), a_moved_pair, strict=True):
        write_image(Image(array, grid), tmp_path / f"{name}.nrrd")
    result = register(tmp_path / "fixed.nrrd", str(tmp_path / "moving.nrrd"), RIGID)
    check_same(result, the_rigid_result)


def check_same(result, reference):
    """To 0.01 mm: the matrices of the forms differ in their last bits, and an optimiser follows."""
    assert result.forward.grid.shape == reference.forward.grid.shape
    points = np.random.default_rng(5).uniform(-30, 30, (50, 3))
    difference = result.forward.transform_points(points) - reference.forward.transform_points(points)
    assert np.abs(difference).max() < 0.01


def test_a_known_start_in_every_form(a_moved_pair):
    """Nothing is optimised: what `initial` says is what comes out."""
    import SimpleITK as sitk

    images = [Image(array, grid) for grid, array in a_moved_pair]
    motion = known_motion()
    of_sitk = sitk.AffineTransform(motion[:3, :3].ravel().tolist(), motion[:3, 3].tolist())
    still = Settings(align="none", refine="off", device="cpu")
    for initial, world in ((motion, "LPS"), (FLIP @ motion @ FLIP, "RAS"), (of_sitk, None)):
        result = register(*images, still, initial=initial, world=world)
        assert error_of(result.forward) < 1e-3


def test_arrays_without_their_words_are_refused(a_moved_pair):
    (grid, array), moving = a_moved_pair
    with pytest.raises(InputError, match=r"fixed image: an array has no position in space; give \(array, affine\)"):
        register(array, moving[1])
    with pytest.raises(InputError, match="does not say the order of its axes"):
        register((array, grid.affine), Image(moving[1], moving[0]), world="LPS")
    with pytest.raises(InputError, match='give world="LPS" or world="RAS"'):
        register((array, grid.affine), Image(moving[1], moving[0]), order="kji")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": {"steps": 1}}, r"settings is {'steps': 1}; give Settings\(...\)"),
        ({"settings": "mine"}, r"settings is 'mine'; give Settings\(...\)"),
        ({"roles": {"guide": "no"}}, "The role guide is 'no'; give True or False."),
        ({"roles": ["guide"]}, r"roles is \['guide'\]; give each role's name with True or False"),
    ],
)
def test_settings_and_roles_of_a_wrong_type_are_refused(options, words, a_moved_pair):
    with pytest.raises(InputError, match=words):
        register(*(Image(array, grid) for grid, array in a_moved_pair), **options)


# --- what a result can do ---


@pytest.fixture(scope="module")
def the_result():
    """Everything that can be given."""
    made = phantom(24)
    mask = (np.ones(made.fixed.grid.shape, np.uint8), FLIP @ made.fixed.grid.affine)
    return register(
        made.fixed,
        as_nibabel(made.moving.grid, made.moving.array),
        QUICK,
        fixed_segmentation=made.fixed_segmentation,
        moving_segmentation=made.moving_segmentation,
        fixed_landmarks=dict(zip(made.fixed_landmarks.labels, made.fixed_landmarks.points * [-1, -1, 1], strict=True)),
        moving_landmarks=dict(
            zip(made.moving_landmarks.labels, made.moving_landmarks.points * [-1, -1, 1], strict=True)
        ),
        fixed_mask=mask,
        region=mask,
        order="kji",
        world="RAS",
        moving_resolution=True,
    )


def test_everything_given_is_used(the_result):
    made, report = phantom(24), the_result.report
    assert len(report.landmarks) == len(made.fixed_landmarks.labels)
    assert report.segments
    assert report.provenance["fixed"]["masked"]
    assert the_result.inputs.region is not None
    assert np.allclose(the_result.inputs.moving_landmarks.points, made.moving_landmarks.points)
    assert np.allclose(the_result.inputs.moving.grid.affine, made.moving.grid.affine)


def test_roles_of_segmentations():
    made = phantom(24)

    def registered(roles, **more):
        sides = {f"{side}_segmentation": getattr(made, f"{side}_segmentation") for side in ("fixed", "moving")}
        return register(made.fixed, made.moving, QUICK, **sides, **more, roles=roles)

    plain, guided, focused = (registered(roles) for roles in (None, {"guide": True}, {"focus": True, "carry": False}))
    assert not np.array_equal(guided.forward.displacement, plain.forward.displacement), "the segments have a weight"
    assert not plain.report.provenance["fixed"]["masked"]
    masks = {side: segments_mask(getattr(made, f"{side}_segmentation")) for side in ("fixed", "moving")}
    masked = registered(None, fixed_mask=masks["fixed"], moving_mask=masks["moving"])
    assert np.array_equal(focused.forward.displacement, masked.forward.displacement)
    assert focused.report.provenance["fixed"]["masked"]
    assert focused.warped_segmentation is None is not masked.warped_segmentation
    assert not registered({"compare": False}).report.segments


def test_roles_that_cannot_be_are_refused():
    made = phantom(24)
    with pytest.raises(InputError, match="Segments have no role 'lead'; choose from carry, compare, focus, guide"):
        register(made.fixed, made.moving, roles={"lead": True})
    with pytest.raises(InputError, match="The role 'guide' needs segmentations of both images; give fixed_seg"):
        register(made.fixed, made.moving, fixed_segmentation=made.fixed_segmentation, roles={"guide": True})


def test_the_transforms_of_a_result_agree(the_result):
    import nibabel
    import SimpleITK as sitk

    points = the_result.inputs.fixed.grid.to_world(np.random.default_rng(0).uniform(3, 15, (20, 3)))
    for what, field in (("forward", the_result.forward), ("backward", the_result.backward)):
        expected = field.transform_points(points)
        for transform in (the_result.to_sitk(what), the_result.to_itk(what)):
            mapped = [list(transform.TransformPoint(p.tolist())) for p in points]
            assert np.allclose(mapped, expected, atol=1e-3)
        stored = the_result.to_nibabel(what)
        assert isinstance(stored, nibabel.Nifti1Image)
        assert stored.header.get_intent()[0] == "displacement vector"
    warped = the_result.to_sitk("warped")
    assert isinstance(warped, sitk.Image)
    assert np.array_equal(sitk.GetArrayFromImage(warped), the_result.warped.array)
    assert the_result.to_nibabel("warped_fine").shape == the_result.warped_fine.array.shape[::-1]
    with pytest.raises(InputError, match="overlaps another"):
        the_result.to_nibabel("warped_segmentation")
    with pytest.raises(InputError, match=r"has no 'nonsense'; choose backward, .*forward, .*warped_fine"):
        the_result.to_itk("nonsense")


def test_moving_images_are_warped_as_simpleitk_resamples_them(the_result):
    import SimpleITK as sitk

    fixed, moving = the_result.inputs.fixed, the_result.inputs.moving
    image = as_sitk(moving.grid, moving.array.astype(np.float32))
    ours = the_result.warp(image)
    theirs = sitk.Resample(
        image,
        as_sitk(fixed.grid, fixed.array),
        the_result.to_sitk(),
        sitk.sitkLinear,
        background_value(moving),
    )
    assert isinstance(ours, sitk.Image)
    assert ours.GetOrigin() == theirs.GetOrigin()
    difference = np.abs(sitk.GetArrayFromImage(ours) - sitk.GetArrayFromImage(theirs))
    assert (difference > 1).mean() < 0.01  # at the outer faces tools differ by design
    assert np.median(difference) < 1e-3


def test_warp_gives_back_what_it_got(the_result):
    import nibabel
    import SimpleITK as sitk

    moving = the_result.inputs.moving
    expected = the_result.warped
    assert np.array_equal(the_result.warp(moving).array, expected.array)
    for form, kind in ((as_sitk, sitk.Image), (as_nibabel, nibabel.Nifti1Image), (as_itk, None)):
        given = form(moving.grid, moving.array)
        warped = the_result.warp(given)
        assert isinstance(warped, kind or type(given))
    for order, world in ARRAYS:
        array, affine = the_result.warp(
            as_array(moving.grid, moving.array, order, world, torch.from_numpy), order=order, world=world
        )
        assert isinstance(array, torch.Tensor)
        assert np.array_equal(array.numpy().transpose(2, 1, 0) if order == "ijk" else array, expected.array)
        assert np.allclose(FLIP @ affine if world == "RAS" else affine, expected.grid.affine)


def test_labels_keep_their_values(the_result):
    made = phantom(24)
    labels = Image(made.moving_segmentation.layers[0].astype(np.int16), made.moving_segmentation.grid)
    fixed = the_result.inputs.fixed.grid
    for interpolation, method in ((None, "nearest"), ("nearest", "nearest"), ("label", "linear")):
        warped = the_result.warp(labels, labels=True, interpolation=interpolation)
        assert np.array_equal(warped.array, warp_labels(labels, the_result.forward, fixed, method).array)
    of_library = the_result.warp(as_sitk(labels.grid, labels.array), labels=True)
    assert np.array_equal(library.as_image(of_library).array, warp_labels(labels, the_result.forward, fixed).array)
    segmentation = the_result.warp(made.moving_segmentation)
    assert segmentation.segments == made.moving_segmentation.segments
    assert np.array_equal(segmentation.layers[0], the_result.warped_segmentation.layers[0])


def test_points_go_with_the_anatomy(the_result):
    made = phantom(24)
    expected = the_result.warped_landmarks.points
    assert np.allclose(the_result.warp(made.moving_landmarks).points, expected)
    assert np.allclose(the_result.warp(made.moving_landmarks.points, world="LPS"), expected)
    ras = the_result.warp(made.moving_landmarks.points * [-1, -1, 1], world="RAS")
    assert np.allclose(ras * [-1, -1, 1], expected)
    there = the_result.warp(the_result.warp(made.fixed_landmarks, to="moving"))
    assert np.abs(there.points - made.fixed_landmarks.points).max() < 3 * made.fixed.grid.spacing.max()


def test_fixed_data_go_to_the_moving_image(the_result):
    moving, fixed = the_result.inputs.moving, the_result.inputs.fixed
    warped = the_result.warp(fixed, to="moving", outside=-7, interpolation="nearest")
    assert warped.grid == moving.grid
    assert np.array_equal(warped.array, warp_image(fixed, the_result.backward, moving.grid, 0, -7).array)
    with pytest.raises(InputError, match='choose "fixed" or "moving"'):
        the_result.warp(fixed, to="somewhere")
    with pytest.raises(InputError, match="interpolation is 'label'; choose linear or cubic or nearest"):
        the_result.warp(fixed, interpolation="label")


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("image", {"outside": "air"}, "outside is 'air'; it must be a number."),
        ("image", {"labels": True, "outside": 3}, "outside is for images; omit 3 for labels."),
        ("segmentation", {"outside": 3}, "omit 3 for segmentations."),
        ("landmarks", {"outside": 3}, "omit 3 for points."),
        ("landmarks", {"interpolation": "linear"}, "Points are not interpolated; omit interpolation 'linear'."),
        ("landmarks", {"labels": True}, "Points are no label map; omit labels."),
        ("nan", {}, "1 voxels that are not a number"),
    ],
)
def test_warp_refuses_what_does_not_apply(kind, options, words, the_result):
    inputs = the_result.inputs
    array = inputs.moving.array.astype(np.float32)
    array[2, 2, 2] = np.nan
    values = {
        "image": inputs.moving,
        "segmentation": inputs.moving_segmentation,
        "landmarks": inputs.moving_landmarks,
        "nan": Image(array, inputs.moving.grid),
    }
    with pytest.raises(InputError, match=words):
        the_result.warp(values[kind], **options)
    with pytest.raises(InputError, match=words):
        library.warp(values[kind], the_result.forward, inputs.fixed, **options)


def test_what_may_be_raised_is_public():
    for name in ("Cancelled", "DeviceMemoryError", "FolderError", "InputError"):
        assert issubclass(getattr(library, name), Exception)
        assert name in library.__all__


def test_save_writes_what_the_command_writes(the_result, tmp_path):
    folder = the_result.save(tmp_path / "result")
    assert set(files_in(folder)) == {
        *(f"{name}.{kind}" for name in ("transform", "inverse") for kind in ("nii.gz", "h5")),
        *(f"report.{kind}" for kind in ("txt", "json", "csv")),
        "warped.nii.gz",
        "warped_fine.nii.gz",
        "warped_segmentation.seg.nrrd",
        "warped_landmarks.mrk.json",
    }
    assert np.array_equal(read_image(folder / "warped.nii.gz").array, the_result.warped.array)
    with pytest.raises(InputError, match="not empty"):
        the_result.save(folder)
    assert the_result.save(folder, overwrite=True) == folder
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.fixture(scope="module")
def a_saved_result(the_result, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    made = phantom(24)
    write_image(made.moving, folder / "moving.nii.gz")
    write_segmentation(made.moving_segmentation, folder / "moving.seg.nrrd")
    write_landmarks(made.moving_landmarks, folder / "moving.mrk.json")
    return the_result.save(folder / "result")


def test_warp_with_saved_transforms(the_result, a_saved_result):
    """By the function, the files of a result and those of the moving image: what the result itself gives."""
    made, folder = phantom(24), a_saved_result.parent
    transform = a_saved_result / "transform.h5"
    for value in (made.moving, folder / "moving.nii.gz"):
        warped = warp(value, transform, made.fixed)
        assert isinstance(warped, Image)
        assert np.abs(warped.array.astype(float) - the_result.warped.array).max() <= 1
    organs = warp(folder / "moving.seg.nrrd", the_result.to_itk(), a_saved_result / "warped.nii.gz")
    assert (organs.layers[0] != the_result.warped_segmentation.layers[0]).mean() < 1e-3
    for inverse in (a_saved_result / "inverse.nii.gz", the_result.backward, the_result.to_sitk("backward")):
        landmarks = warp(folder / "moving.mrk.json", inverse)
        assert isinstance(landmarks, Landmarks)
        assert np.allclose(landmarks.points, the_result.warped_landmarks.points, atol=1e-3)
    with pytest.raises(InputError, match="give the fixed image as reference"):
        warp(made.moving, transform)
    assert read_segmentation(a_saved_result / "warped_segmentation.seg.nrrd").segments == organs.segments


def test_a_notebook_shows_verdicts_and_a_picture(the_result):
    html = the_result._repr_html_()
    for verdict in the_result.report.verdicts:
        assert f"<b>{verdict.measure}</b>" in html
    assert {"good", "look closely", "do not trust"} & set(re.findall(r">([^<]+)</td>", html))
    (encoded,) = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert len(encoded) < 300_000
    assert "color:" not in html.split("<table")[0], "the page's own colour, light or dark"
    picture = pytest.importorskip("matplotlib.image")
    import io

    pixels = picture.imread(io.BytesIO(base64.b64decode(encoded)), format="png")
    assert pixels.shape[1] > pixels.shape[0]
    assert pixels.std() > 0.1


def test_pixels_survive_the_png():
    import io

    picture = pytest.importorskip("matplotlib.image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = picture.imread(io.BytesIO(png_of(pixels)), format="png")
    assert np.array_equal(np.rint(read[..., :3] * 255), pixels)
