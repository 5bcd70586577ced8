"""The phantom: its truth is a diffeomorphism, and both images, their labels and landmarks obey it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from IconRegistrationLib.demo.anatomy import SEGMENTS
from IconRegistrationLib.demo.phantom import make_phantom
from IconRegistrationLib.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def a_phantom():
    return make_phantom(size=56)


def values_at(image_or_layer, grid, points):
    """Nearest voxel's value at points (n, 3) mm, and which points lie inside."""
    inside = grid.contains(points)
    i, j, k = np.rint(grid.to_index(points[inside])).astype(int).clip(0, np.array(grid.size) - 1).T
    return image_or_layer[k, j, i], inside


def body_points(phantom, count=20000):
    body = phantom.fixed_segmentation.mask(phantom.fixed_segmentation.by_name()["body"])
    kji = np.random.default_rng(1).permutation(np.argwhere(body))[:count]
    return phantom.fixed.grid.to_world(kji[:, ::-1])


@pytest.mark.slow
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_the_motion_never_folds_and_stays_below_20_mm(seed):
    motion = make_phantom(seed=seed, size=16).motion
    assert motion.lipschitz_bound() < 1  # identity plus a contraction: a diffeomorphism of the whole space
    axis = np.arange(-176.0, 177.0, 16.0)
    points = np.stack(np.meshgrid(axis, axis, axis), -1).reshape(-1, 3)
    length = np.linalg.norm(motion(points) - points, axis=1).max()
    assert 10 < length < 20
    step = 1e-3
    columns = [(motion(points + step * e) - motion(points - step * e)) / (2 * step) for e in np.eye(3)]
    determinant = np.linalg.det(np.stack(columns, axis=-1))
    assert determinant.min() > 0.3
    assert np.abs(motion(motion.inverse(points)) - points).max() < 1e-9


def test_landmarks_obey_the_truth_and_lie_in_both_images(a_phantom):
    assert a_phantom.fixed_landmarks.labels == a_phantom.moving_landmarks.labels
    assert np.abs(a_phantom.truth(a_phantom.fixed_landmarks.points) - a_phantom.moving_landmarks.points).max() < 1e-6
    assert a_phantom.fixed.grid.contains(a_phantom.fixed_landmarks.points).all()
    assert a_phantom.moving.grid.contains(a_phantom.moving_landmarks.points).all()


@pytest.mark.parametrize(
    ("landmark", "organ"),
    [
        ("spleen, middle", "spleen"),
        ("left ventricle, middle", "heart"),
        ("portal bifurcation", "liver"),
        ("stomach, middle", "stomach"),
        ("aortic arch", "aorta"),
        ("vertebra, upper", "spine"),
    ],
)
def test_landmarks_lie_in_the_organ_that_they_are_named_after(a_phantom, landmark, organ):
    for segmentation, landmarks in (
        (a_phantom.fixed_segmentation, a_phantom.fixed_landmarks),
        (a_phantom.moving_segmentation, a_phantom.moving_landmarks),
    ):
        segment = segmentation.by_name()[organ]
        point = landmarks.points[[landmarks.labels.index(landmark)]]
        value, _ = values_at(segmentation.layers[segment.layer], segmentation.grid, point)
        assert value == [segment.value]


def test_labels_and_intensities_agree_under_the_truth_and_not_without(a_phantom):
    points = body_points(a_phantom)

    def compare(places):
        seen, inside = values_at(a_phantom.moving.array, a_phantom.moving.grid, places)
        labels, _ = values_at(a_phantom.moving_segmentation.layers[0], a_phantom.moving.grid, places)
        own, _ = values_at(a_phantom.fixed.array, a_phantom.fixed.grid, points[inside])
        own_labels, _ = values_at(a_phantom.fixed_segmentation.layers[0], a_phantom.fixed.grid, points[inside])
        return np.corrcoef(seen, own)[0, 1], (labels == own_labels).mean()

    correlation, agreement = compare(a_phantom.truth(points))
    assert correlation > 0.93  # what is missing is noise and half a voxel of 5 mm
    assert agreement > 0.93
    correlation_before, agreement_before = compare(points)
    assert correlation_before < 0.75
    assert agreement_before < 0.75


def test_end_point_error_is_the_distance_to_the_truth(a_phantom):
    assert a_phantom.end_point_error(a_phantom.truth).max() == 0
    shifted = a_phantom.end_point_error(lambda points: a_phantom.truth(points) + np.array([3, 0, -4]))
    assert shifted == pytest.approx(5)
    assert 15 < a_phantom.end_point_error(lambda points: points).mean() < 25


def test_the_two_geometries_differ_and_are_oblique(a_phantom):
    fixed, moving = a_phantom.fixed.grid, a_phantom.moving.grid
    assert fixed.shape != moving.shape
    assert np.abs(fixed.spacing - moving.spacing).max() > 0.1
    for grid in (fixed, moving):
        assert grid.is_orthogonal
        assert np.sort(np.abs(grid.direction).max(axis=0))[0] < 0.9995  # not along the axes of the world
    assert np.abs(fixed.direction - moving.direction).max() > 1  # the moving image is stored from other corners
    assert fixed.extent == pytest.approx((350, 250, 300), abs=6)
    assert moving.extent == pytest.approx((350, 250, 300), abs=6)


def test_structures_are_named_coloured_and_all_there(a_phantom):
    assert len({s.name for s in SEGMENTS}) == len(SEGMENTS) == len({s.color for s in SEGMENTS})
    for segmentation in (a_phantom.fixed_segmentation, a_phantom.moving_segmentation):
        volumes = {s.name: segmentation.mask(s).sum() * segmentation.grid.voxel_volume / 1000 for s in SEGMENTS}
        assert min(volumes.values()) > 40  # ml
        thorax, body = (segmentation.mask(segmentation.by_name()[name]) for name in ("thorax", "body"))
        for side in ("left lung", "right lung"):
            lung = segmentation.mask(segmentation.by_name()[side])
            assert (lung & thorax).sum() > 0.98 * lung.sum()  # they overlap, hence lie in different layers
        assert not (thorax & ~body).any()


def test_segments_carry_a_terminology_that_slicer_reads(a_phantom):
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    tag = slicer.vtkSegment.GetTerminologyEntryTagName()
    for segment in SEGMENTS:
        entry = segment.tags[tag].split("~")
        assert len(entry) == 7
        assert [part.count("^") for part in entry] == [0, 2, 2, 2, 0, 2, 2]  # code triples: scheme^value^meaning


def test_a_seed_gives_one_pair_and_another_seed_another():
    first, again, other = (make_phantom(seed=seed, size=24) for seed in (3, 3, 4))
    assert np.array_equal(first.fixed.array, again.fixed.array)
    assert np.array_equal(first.moving.array, again.moving.array)
    assert not np.array_equal(first.moving.array, other.moving.array)
    points = body_points(first, 100)
    assert np.abs(first.truth(points) - other.truth(points)).max() > 0.5


@pytest.mark.parametrize(("modality", "ct"), [("ct", (True, True)), ("mr", (False, False)), ("ct-mr", (True, False))])
def test_intensities_are_those_of_the_modality(modality, ct):
    phantom = make_phantom(size=32, modality=modality)
    for image, segmentation, is_ct in (
        (phantom.fixed, phantom.fixed_segmentation, ct[0]),
        (phantom.moving, phantom.moving_segmentation, ct[1]),
    ):
        assert image.array.dtype == np.int16

        def median(name, image=image, segmentation=segmentation):
            return np.median(image.array[segmentation.mask(segmentation.by_name()[name])])

        air = np.median(image.array[segmentation.layers[1] == 0])
        if is_ct:
            assert air == pytest.approx(-1000, abs=15)
            assert median("liver") == pytest.approx(112, abs=20)
            assert -900 < median("left lung") < -750
        else:
            assert image.array.min() >= 0
            assert air < 60
            assert median("liver") > 3 * median("left lung")


@pytest.mark.parametrize(("wrong", "named"), [({"modality": "pet"}, "'pet'"), ({"size": 8}, "8 voxels")])
def test_wrong_arguments_are_named(wrong, named):
    with pytest.raises(InputError, match=named):
        make_phantom(**wrong)
