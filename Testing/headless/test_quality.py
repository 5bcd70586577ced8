"""quality/measures.py against SimpleITK, scipy, brute force and closed forms, on oblique and anisotropic grids."""

import csv
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from IconRegistrationLib.quality import measures
from IconRegistrationLib.quality.assess import assess
from IconRegistrationLib.quality.report import Report
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.geometry import Grid, Image, Landmarks, Segment, Segmentation, apply_affine

itk = pytest.importorskip("itk")
sitk = pytest.importorskip("SimpleITK")

AXES = np.linalg.qr(np.random.default_rng(4).normal(size=(3, 3)))[0]


def a_grid(size=(26, 22, 18), spacing=(1.0, 1.5, 2.5), origin=(-20.0, 5.0, 300.0)) -> Grid:
    return Grid.from_parts(size, spacing, origin, AXES)


def indices(grid: Grid) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")[::-1], -1)


def smooth(points: np.ndarray) -> np.ndarray:
    x, y, z = np.moveaxis(points, -1, 0)
    return 100 * np.sin(x / 9) * np.cos(y / 11) + 40 * np.cos(z / 7)


def an_image(grid: Grid, function=smooth, name="image") -> Image:
    return Image(function(grid.to_world(indices(grid))), grid, name)


def linear_field(matrix: np.ndarray, grid: Grid) -> DisplacementField:
    places = grid.to_world(indices(grid))
    return DisplacementField((apply_affine(matrix, places) - places).astype(np.float32), grid)


def shift(*vector) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = vector
    return matrix


def box(grid: Grid, low, high, value=1) -> np.ndarray:
    """A box of voxels, low and high as (k, j, i)."""
    mask = np.zeros(grid.shape, np.uint8)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = value
    return mask


def identity_report(fixed: Image, moving: Image, **inputs) -> Report:
    field = linear_field(np.eye(4), fixed.grid)
    return assess(fixed, moving, field, field, **inputs)


# ------------------------------------------------------------------------------------------------------ intensities


def test_correlation_and_information_agree_with_numpy_and_scipy():
    stats = pytest.importorskip("scipy.stats")
    fixed = an_image(a_grid())
    rng = np.random.default_rng(1)
    moving = Image(3 * fixed.array + rng.normal(scale=60, size=fixed.array.shape) + 1e5, fixed.grid)
    found = identity_report(fixed, moving).similarity
    expected = np.corrcoef(fixed.array.ravel(), moving.array.ravel())[0, 1]
    assert found.ncc.before == pytest.approx(expected, abs=1e-4)
    assert found.ncc.after == pytest.approx(expected, abs=1e-4)
    assert found.overlap.before == found.overlap.after == 1

    def binned(array):
        low, high = np.quantile(array, [0.001, 0.999])
        return np.clip((array.ravel() - low) / (high - low) * 64, 0, 63).astype(int)

    joint = np.histogram2d(binned(fixed.array), binned(moving.array.astype(np.float32)), 64, ((0, 64), (0, 64)))[0]
    entropies = stats.entropy(joint.sum(0)) + stats.entropy(joint.sum(1))
    assert found.mutual_information.after == pytest.approx(entropies / stats.entropy(joint.ravel()), abs=2e-3)
    assert identity_report(fixed, fixed).similarity.mutual_information.after == pytest.approx(2)


def test_before_is_the_headers_or_the_initial_transform_and_after_is_the_field():
    fixed, truth = an_image(a_grid()), shift(6, -4, 5)
    grid = fixed.grid.moved(truth)
    moving = Image(fixed.array, grid)  # the fixed image carried along: it fits perfectly after the shift
    inverse = np.linalg.inv(truth)
    forward, backward = linear_field(truth, fixed.grid), linear_field(inverse, grid)
    report = assess(fixed, moving, forward, backward)
    assert report.similarity.ncc.after == pytest.approx(1, abs=1e-5)
    assert report.similarity.ncc.before < 0.9
    assert report.similarity.overlap.after == pytest.approx(1)
    assert report.similarity.overlap.before == pytest.approx(fixed_share(fixed.grid, grid), abs=1e-3)
    assert assess(fixed, moving, forward, backward, initial=truth).similarity.ncc.before == pytest.approx(1, abs=1e-5)
    assert report.deformation.displacement.mean == pytest.approx(np.linalg.norm([6, -4, 5]), abs=1e-4)
    assert report.deformation.inverse_consistency.maximum == pytest.approx(0, abs=1e-4)


def fixed_share(fixed: Grid, moving: Grid) -> float:
    return float(moving.contains(fixed.to_world(indices(fixed))).mean())


def test_images_that_do_not_meet_have_no_similarity():
    fixed = an_image(a_grid())
    moving = Image(fixed.array, fixed.grid.moved(shift(1000, 0, 0)))
    found = identity_report(fixed, moving).similarity
    assert found.overlap.after == 0
    assert math.isnan(found.ncc.after)
    assert math.isnan(found.mutual_information.after)


# --------------------------------------------------------------------------------------------------------- segments


def surface_distances(a: np.ndarray, b: np.ndarray, grid: Grid) -> np.ndarray:
    """From every surface voxel of a to the nearest of b, mm, by comparing all pairs in the world."""

    def surface(mask):
        padded = np.pad(mask, 1)
        inner = np.ones_like(mask)
        for axis in range(3):
            for step in (0, 2):
                window = [slice(1, -1)] * 3
                window[axis] = slice(step, step + mask.shape[axis])
                inner &= padded[tuple(window)]
        return grid.to_world(np.argwhere(mask & ~inner)[:, ::-1])

    return np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=-1).min(1)


@pytest.mark.parametrize("seed", range(4))
def test_dice_and_hd95_agree_with_simpleitk_and_with_brute_force(seed):
    """Random blobs, one of them cut by the border of the image."""
    rng = np.random.default_rng(seed)
    grid = a_grid((18, 16, 12))
    places = grid.to_world(indices(grid))

    def blob():
        centre = grid.to_world(rng.uniform(1, np.array(grid.size) - 2))
        return np.linalg.norm((places - centre) / rng.uniform(5, 11, 3), axis=-1) < 1

    fixed, moving = blob(), blob()
    segments = (Segment("a", 3),)
    report = identity_report(
        an_image(grid),
        an_image(grid),
        fixed_segmentation=Segmentation((3 * fixed.astype(np.int16),), segments, grid),
        moving_segmentation=Segmentation((3 * moving.astype(np.int16),), segments, grid),
    )
    (found,) = report.segments
    images = [sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (fixed, moving)]
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*images)
    assert found.dice.after == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-9)
    assert found.dice.before == found.dice.after
    there, back = surface_distances(fixed, moving, grid), surface_distances(moving, fixed, grid)
    assert found.hd95.after == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-4)
    assert found.fixed_mm3 == pytest.approx(fixed.sum() * 3.75)
    assert found.mapped_mm3 == pytest.approx(found.fixed_mm3, rel=1e-5)
    assert found.moving_mm3 == pytest.approx(moving.sum() * 3.75)


@given(
    mask=arrays(bool, array_shapes(min_dims=3, max_dims=3, max_side=9)).filter(np.any),
    spacing=st.tuples(*[st.floats(0.3, 6.0)] * 3),
)
@settings(max_examples=40, deadline=None)
def test_distances_to_a_surface_are_those_of_itk(mask, spacing):
    """ITK's Maurer filter on the surface as one object, any spacing (i, j, k); voxels at the border are surface."""
    padded = np.pad(mask, 1)
    inner = np.all([np.roll(padded, step, axis) for axis in range(3) for step in (1, -1)], axis=0) & padded
    image = itk.image_from_array((padded & ~inner).astype(np.uint8))
    image.SetSpacing(spacing)
    maurer = itk.SignedMaurerDistanceMapImageFilter[type(image), itk.Image[itk.F, 3]].New(image)
    maurer.SetSquaredDistance(False)
    maurer.SetUseImageSpacing(True)
    maurer.Update()
    expected = np.maximum(itk.array_from_image(maurer.GetOutput()), 0)
    expected[padded & ~inner] = 0
    found = measures._distance_to_surface(mask, np.array(spacing))
    assert np.allclose(found, expected[1:-1, 1:-1, 1:-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("values", [(1, 2), (3, 200), (7, 2**31 - 1), (-4, 5)])
def test_boxes_hold_their_segments_whatever_the_labels(values):
    """Two segments of one layer, one of another, an empty one; large and negative labels are no matter."""
    grid = a_grid()
    layer = box(grid, (3, 4, 5), (9, 10, 12)).astype(np.int64) * values[0]
    layer[10:12, 0:3, 20:] = values[1]
    layer[17, 21, 25] = 99  # the label of nobody
    other = box(grid, (0, 0, 0), (1, 2, 3), 5)
    segments = [Segment("a", values[0]), Segment("b", values[1]), Segment("c", 5, 1), Segment("empty", 6, 1)]
    boxes = measures._boxes(Segmentation((layer, other), tuple(segments), grid))
    assert boxes["a"] == (slice(3, 9), slice(4, 10), slice(5, 12))
    assert boxes["b"] == (slice(10, 12), slice(0, 3), slice(20, 26))
    assert boxes["c"] == (slice(0, 1), slice(0, 2), slice(0, 3))
    assert boxes["empty"] is None


def test_segments_are_matched_by_name_across_values_layers_and_grids():
    """The moving segmentation lies on the shifted grid, so the field brings its boxes exactly onto the fixed ones."""
    grid = a_grid()
    truth = shift(*grid.direction @ (2 * grid.spacing))  # two voxels along each axis
    one, two = box(grid, (3, 4, 5), (9, 10, 12)), box(grid, (8, 8, 3), (14, 15, 15), 2)
    fixed = Segmentation(
        (one, two), (Segment("liver", 1, 0), Segment("tumour", 2, 1), Segment("fixed only", 9, 0)), grid
    )
    moving = Segmentation(
        (np.where(two > 0, 7, 0).astype(np.int32), one),
        (Segment("tumour", 7, 0), Segment("liver", 1, 1), Segment("moving only", 4, 0)),
        grid.moved(truth),
    )
    field = linear_field(truth, a_grid((34, 30, 26), origin=grid.to_world((-4, -4, -4))))
    back = linear_field(np.linalg.inv(truth), a_grid((34, 30, 26), origin=grid.to_world((-4, -4, -4))))
    image = an_image(grid)
    report = assess(image, image, field, back, fixed_segmentation=fixed, moving_segmentation=moving)
    found = {s.name: s for s in report.segments}
    assert set(found) == {"liver", "tumour"}  # the one without voxels has no measure
    for name in found:
        assert found[name].dice.after == 1
        assert found[name].hd95.after == 0
        assert found[name].dice.before < 0.5
        assert found[name].hd95.before > 3
        assert found[name].moving_mm3 == pytest.approx(found[name].fixed_mm3)
    assert report.dice.after == 1
    assert report.dice.before == pytest.approx(np.mean([s.dice.before for s in report.segments]))


def test_a_segment_that_the_map_loses_has_dice_zero():
    grid = a_grid()
    segments = (Segment("a", 1),)
    fixed = Segmentation((box(grid, (3, 4, 5), (9, 10, 12)),), segments, grid)
    away = linear_field(shift(500, 0, 0), grid)
    report = assess(an_image(grid), an_image(grid), away, away, fixed_segmentation=fixed, moving_segmentation=fixed)
    assert report.segments[0].dice.after == 0
    assert report.segments[0].hd95.after == math.inf
    assert report.to_dict()["segments"]["a"]["hd95_mm"]["after"] is None


def test_one_segmentation_is_enough_for_volumes():
    """A map that grows everything by 20 % along one axis and 10 % along another: 1.32 times the volume."""
    grid = a_grid((26, 22, 18))
    centre = shift(*grid.centre)
    stretch = centre @ np.diag([1.2, 1.1, 1.0, 1.0]) @ np.linalg.inv(centre)
    forward, backward = linear_field(stretch, grid), linear_field(np.linalg.inv(stretch), grid)
    segmentation = Segmentation((box(grid, (6, 7, 8), (12, 14, 16)),), (Segment("a", 1),), grid)
    image = an_image(grid)
    for inputs in ({"fixed_segmentation": segmentation}, {"moving_segmentation": segmentation}):
        (found,) = assess(image, image, forward, backward, **inputs).segments
        assert found.volume_ratio == pytest.approx(1.32, rel=1e-4)
        assert found.mapped_mm3 == pytest.approx(1.32 * found.fixed_mm3, rel=1e-4)
        assert math.isnan(found.dice.after)
    assert found.moving_mm3 == pytest.approx(6 * 7 * 8 * 3.75)
    assert found.mapped_mm3 == pytest.approx(found.moving_mm3, rel=0.15)  # the warped box ends at whole voxels


# -------------------------------------------------------------------------------------------- landmarks and the map


def test_landmarks_are_matched_by_label():
    grid = a_grid()
    points = grid.to_world([(5, 5, 5), (9, 9, 9), (15, 12, 8)])
    fixed = Landmarks(points, ("a", "b", "alone"))
    moving = Landmarks(
        (points + np.array([3, 0, 4]))[[1, 0, 2]] + [[0, 0, 1], [0, 0, 0], [0, 0, 0]], ("b", "a", "other")
    )
    field, back = linear_field(shift(3, 0, 0), grid), linear_field(shift(-3, 0, 0), grid)
    report = assess(an_image(grid), an_image(grid), field, back, fixed_landmarks=fixed, moving_landmarks=moving)
    assert [landmark.label for landmark in report.landmarks] == ["a", "b"]
    assert [landmark.error.before for landmark in report.landmarks] == pytest.approx([5, math.hypot(3, 5)])
    assert [landmark.error.after for landmark in report.landmarks] == pytest.approx([4, 5], abs=1e-5)
    assert report.target_registration_error.after == pytest.approx(4.5, abs=1e-5)
    rows = {row.name: row for row in report.rows() if row.group == "Landmarks"}
    assert rows["max"].after == pytest.approx(5, abs=1e-5)
    assert rows["median"].after == pytest.approx(4.5, abs=1e-5)


def test_folding_is_counted_within_the_fixed_image_and_found():
    """One sample is pushed back over its neighbour; the lattice is wider than the image by four samples."""
    image = an_image(a_grid())
    lattice = a_grid((34, 30, 26), origin=image.grid.to_world((-4, -4, -4)))
    displacement = np.zeros((*lattice.shape, 3), np.float32)
    smoothly = linear_field(np.eye(4), lattice)
    assert assess(image, image, smoothly, smoothly).deformation.folding.count == 0
    step = lattice.affine[:3, 0]
    displacement[12, 14, 16] = -1.5 * step
    displacement[1, 1, 1] = -1.5 * step  # outside the image
    field = DisplacementField(displacement, lattice)
    found = assess(image, image, field, field).deformation.folding
    # Central differences see half of it at the two neighbours: 1 - 0.75 and 1 + 0.75.
    assert found.count == 0
    assert found.minimum == pytest.approx(0.25, abs=1e-3)
    field = DisplacementField(displacement * 2, lattice)
    found = assess(image, image, field, field).deformation.folding
    assert found.count == 1
    assert found.minimum == pytest.approx(-0.5, abs=1e-3)
    assert np.allclose(found.place, lattice.to_world((15, 14, 12)))
    assert found.share == pytest.approx(1 / np.prod(image.grid.shape))


def test_the_spread_of_the_log_jacobian_of_a_linear_map_is_zero_and_of_a_wave_is_known():
    grid = Grid.from_parts((41, 5, 5), (1, 1, 1))
    x = np.arange(41.0)
    displacement = np.zeros((*grid.shape, 3), np.float32)
    displacement[..., 0] = 2 * np.sin(x / 5)
    field = DisplacementField(displacement, grid)
    image = an_image(grid)
    found = assess(image, image, field, field).deformation
    expected = np.log(1 + np.gradient(2 * np.sin(x / 5))).std()
    assert found.log_jacobian_sd == pytest.approx(expected, rel=1e-4)
    magnitudes = np.abs(2 * np.sin(x / 5))
    assert found.displacement.mean == pytest.approx(magnitudes.mean(), rel=1e-4)
    assert found.displacement.median == pytest.approx(np.median(magnitudes), rel=1e-4)
    assert found.displacement.percentile95 == pytest.approx(np.percentile(np.tile(magnitudes, 25), 95), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- report


def a_full_report(segments=3) -> Report:
    grid = a_grid()
    truth = shift(1, 0.5, 0)
    labels = np.arange(np.prod(grid.shape)).reshape(grid.shape) * segments // np.prod(grid.shape) + 1
    segmentation = Segmentation(
        (labels.astype(np.int16),), tuple(Segment(f"structure {n + 1}", n + 1) for n in range(segments)), grid
    )
    landmarks = Landmarks(grid.to_world([(5, 5, 5), (9, 9, 9)]), ("a", "b"))
    return assess(
        an_image(grid),
        an_image(grid.moved(truth)),
        linear_field(truth, grid),
        linear_field(np.linalg.inv(truth), grid),
        fixed_segmentation=segmentation,
        moving_segmentation=segmentation,
        fixed_landmarks=landmarks,
        moving_landmarks=landmarks,
        provenance={"model": "none", "seconds": np.float32(1.5), "bad": math.nan, "shape": (1, 2)},
    )


def test_the_dictionary_is_json_and_carries_the_provenance(tmp_path):
    report = a_full_report()
    report.write_json(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    assert read == report.to_dict()
    assert read["provenance"] == {"model": "none", "seconds": 1.5, "bad": None, "shape": [1, 2]}
    assert read["means"]["dice"]["after"] == report.dice.after
    assert read["segments"]["structure 1"]["dice"]["before"] == 1
    assert {v["level"] for v in read["verdicts"]} <= {"green", "amber", "red"}
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]


def test_the_csv_has_every_number_once(tmp_path):
    report = a_full_report()
    report.write_csv(tmp_path / "r.csv")
    with open(tmp_path / "r.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [(r["group"], r["name"], r["measure"]) for r in rows]
    assert len(keys) == len(set(keys)) == len(report.rows())
    dice = next(r for r in rows if r["name"] == "structure 2" and r["measure"] == "Dice")
    assert float(dice["after"]) == report.segments[1].dice.after


def test_the_table_shows_the_worst_segments_and_counts_the_rest():
    text = str(a_full_report(segments=30))
    assert "... and 10 more" in text
    report = a_full_report(segments=30)
    worst = min(report.segments, key=lambda s: s.dice.after).name
    best = max(report.segments, key=lambda s: s.dice.after).name
    assert f" {worst} " in text
    assert f" {best} " not in text
    assert max(len(line) for line in text.splitlines()) <= 140


def verdict(report: Report, measure: str):
    return next(v for v in report.verdicts if v.measure == measure)


def test_verdicts_say_what_is_good_and_what_is_not():
    report = a_full_report()
    assert verdict(report, "Folding").level == "green"
    assert verdict(report, "Inverse consistency").level == "green"
    # identical segmentations and landmarks, moved away by the map: worse than before
    assert verdict(report, "Dice").level == "red"
    assert verdict(report, "Target registration error").level == "red"
    assert verdict(report, "HD95").level == "red"
    grid = a_grid()
    forward, nothing = linear_field(shift(4, 0, 0), grid), linear_field(np.eye(4), grid)
    inconsistent = assess(an_image(grid), an_image(grid), forward, nothing)
    assert verdict(inconsistent, "Inverse consistency").level == "amber"  # 4 mm, the limit is the voxel's 2.5 mm
    assert verdict(assess(an_image(grid), an_image(grid), forward, forward), "Inverse consistency").level == "red"
