"""Linear alignment: known maps between analytic phantoms on unlike grids, and real pairs with a published reference."""

from pathlib import Path

import numpy as np
import pytest
import torch

from IconRegistrationLib.errors import Cancelled, InputError
from IconRegistrationLib.registration.align import Alignment, align
from IconRegistrationLib.registration.mutual_information import joint_histogram, normalised_mutual_information
from IconRegistrationLib.spatial.geometry import Grid, Image, apply_affine

DATA = Path(__file__).parents[3] / "shared" / "data"


def head(points: np.ndarray) -> np.ndarray:
    """A lopsided head about the origin at points (..., 3) mm: air 0, skull, brain and three inner organs."""

    def ball(centre, radii):
        return np.clip((1 - np.sqrt((((points - centre) / radii) ** 2).sum(-1))) * np.mean(radii) / 4, 0, 1)

    x, y, z = np.moveaxis(points, -1, 0)
    texture = np.sin(x / 7 + y / 23) * np.cos(y / 9 - z / 17) * np.sin(z / 8 + x / 31)
    value = 0.35 * ball((0, 0, 0), (52, 62, 48)) + (0.3 + 0.15 * texture) * ball((0, 4, 2), (44, 52, 40))
    value += 0.5 * ball((-18, 12, 8), (14, 20, 10)) + 0.4 * ball((20, -14, -6), (10, 12, 18))
    return value + 0.6 * ball((4, 48, -20), (10, 10, 8))


def other_contrast(value: np.ndarray) -> np.ndarray:
    """Neither rising nor falling: as another modality."""
    return np.sin(5 * value) + 0.4 * value


def axes(seed: int, handed: int = 1) -> np.ndarray:
    """Near a permutation of the axes, some 10 degrees oblique; determinant `handed`."""
    rng = np.random.default_rng(seed)
    matrix = np.linalg.qr(np.eye(3)[rng.permutation(3)] + rng.normal(scale=0.08, size=(3, 3)))[0]
    matrix[:, 0] *= np.sign(np.linalg.det(matrix)) * handed
    return matrix


def centred(size, spacing, direction, centre=(0, 0, 0)) -> Grid:
    middle = direction @ ((np.array(size) - 1) / 2 * spacing)
    return Grid.from_parts(size, spacing, np.asarray(centre) - middle, direction)


def fixed_head() -> Image:
    grid = centred((44, 50, 30), (3, 3, 4.5), axes(1))
    return Image(head(grid.to_world(_indices(grid))), grid, "fixed")


def moving_head(matrix: np.ndarray, contrast=lambda value: value, handed=-1, centre=None) -> Image:
    """The head after `matrix` (fixed mm -> moving mm), on a grid with other axes, about its middle or `centre`."""
    middle = matrix[:3, 3] + [6, -4, 3] if centre is None else centre
    grid = centred((40, 36, 48), (3.5, 4, 3.2), axes(2, handed), middle)
    return Image(contrast(head(apply_affine(np.linalg.inv(matrix), grid.to_world(_indices(grid))))), grid, "moving")


def _indices(grid: Grid) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij")[::-1], -1)


def a_map(degrees=(0, 0, 0), shift=(0, 0, 0), stretch=1.0) -> np.ndarray:
    matrix = np.eye(4)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        a, b = [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix[:3, :3] = turn @ matrix[:3, :3]
    matrix[:3, :3] = matrix[:3, :3] @ (stretch * np.eye(3) if np.isscalar(stretch) else stretch)
    matrix[:3, 3] = shift
    return matrix


def error(found: Alignment, truth: np.ndarray) -> float:
    """Largest distance in mm on the head's surface, where the map matters."""
    ends = np.array([(x, y, z) for x in (-50, 50) for y in (-60, 60) for z in (-45, 45)]) * 0.7
    return float(np.linalg.norm(apply_affine(found.matrix, ends) - apply_affine(truth, ends), axis=1).max())


SHEARED = np.array([[1.12, 0.04, 0], [0, 0.92, -0.05], [0.02, 0, 1.06]])


@pytest.mark.parametrize(
    ("kind", "truth"),
    [
        ("rigid", a_map((4, -7, 12), (35, -20, 900))),
        ("similarity", a_map((-6, 3, 8), (-8, 12, 5), 1.12)),
        ("affine", a_map((5, 6, -9), (14, -22, 9), SHEARED)),
    ],
)
@pytest.mark.parametrize(
    "contrast",
    [
        pytest.param(lambda value: value, id="alike"),
        pytest.param(other_contrast, id="other contrast", marks=pytest.mark.slow),
    ],
)
def test_a_known_map_between_unlike_grids_is_found(kind, truth, contrast):
    """Voxels are 3 to 4.5 mm wide."""
    found = align(fixed_head(), moving_head(truth, contrast), kind)
    assert error(found, truth) < 1.2
    assert found.after > found.before or found.before == -np.inf
    stretches = np.linalg.svd(found.matrix[:3, :3], compute_uv=False)
    if kind == "rigid":
        assert np.allclose(stretches, 1, atol=1e-9)
    if kind == "similarity":
        assert np.ptp(stretches) < 1e-9
    assert np.linalg.det(found.matrix[:3, :3]) > 0


def test_a_large_rotation_is_found():
    truth = a_map((35, 0, 10), (5, 0, 0))
    assert error(align(fixed_head(), moving_head(truth), "rigid"), truth) < 1.0


def test_aligned_images_stay_where_they_are():
    assert error(align(fixed_head(), moving_head(np.eye(4)), "rigid"), np.eye(4)) < 0.3


def test_a_sheared_grid_is_aligned_in_world_coordinates():
    """As under a linear parent transform that shears."""
    truth = a_map((3, -5, 6), (4, 9, -7))
    image = fixed_head()
    shear = np.eye(4)
    shear[0, 1] = 0.25
    grid = image.grid.moved(shear)
    sheared = Image(head(grid.to_world(_indices(grid))), grid, "sheared")
    assert error(align(sheared, moving_head(truth), "rigid"), truth) < 1.0


def test_the_simple_kinds_are_what_they_say():
    fixed, moving = fixed_head(), moving_head(a_map(shift=(30, 10, 5)))
    assert np.array_equal(align(fixed, moving, "none").matrix, np.eye(4))
    centres = align(fixed, moving, "centre").matrix
    assert np.allclose(apply_affine(centres, fixed.grid.centre), moving.grid.centre)
    assert np.array_equal(centres[:3, :3], np.eye(3))
    assert error(align(fixed, moving, "mass"), a_map(shift=(30, 10, 5))) < 2
    given = a_map((1, 2, 3), (4, 5, 6))
    assert np.array_equal(align(fixed, moving, "none", initial=given).matrix, given)


@pytest.mark.slow
def test_fixed_and_moving_may_be_swapped():
    """Both directions count alike: the maps of the two orders are each other's inverses."""
    pair = fixed_head(), moving_head(a_map((4, -6, 9), (12, -8, 5)), other_contrast)
    there, back = align(*pair, "affine"), align(*reversed(pair), "affine")
    assert error(there, np.linalg.inv(back.matrix)) < 0.2
    assert there.after == pytest.approx(back.after, abs=1e-3)


@pytest.mark.slow
def test_the_number_of_threads_does_not_matter():
    pair = fixed_head(), moving_head(a_map((3, 4, 5), (9, 0, 0)), other_contrast)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(align(*pair, "affine"))
    finally:
        torch.set_num_threads(threads)
    assert error(found[0], found[1].matrix) < 0.02


def test_an_initial_transform_is_where_the_search_begins():
    """A part of the true map is given, an affine one: what is left is rigid."""
    rest, given = a_map((5, -3, 4), (6, -2, 8)), a_map((20, 0, -15), (300, 0, 40), SHEARED)
    truth = given @ rest
    found = align(fixed_head(), moving_head(truth), "rigid", initial=given)
    assert found.start == "initial"
    assert error(found, truth) < 1.0


@pytest.mark.slow
def test_masks_shut_out_what_moves_otherwise():
    """A bright plate that lies elsewhere in the moving image pulls the alignment, unless both masks leave it out."""
    truth = a_map((3, 2, -6), (6, 3, -4))
    fixed, moving = fixed_head(), moving_head(truth)
    points = fixed.grid.to_world(_indices(fixed.grid)), moving.grid.to_world(_indices(moving.grid))
    plates = points[0][..., 1] < -52, points[1][..., 1] < -30
    fixed = Image(np.where(plates[0], 3.0, fixed.array), fixed.grid)
    moving = Image(np.where(plates[1], 3.0, moving.array), moving.grid)
    masks = [Image((~plate).astype(np.uint8), image.grid) for plate, image in zip(plates, (fixed, moving), strict=True)]
    without = error(align(fixed, moving, "rigid"), truth)
    masked = error(align(fixed, moving, "rigid", fixed_mask=masks[0], moving_mask=masks[1]), truth)
    assert masked < 0.5
    assert without > 2 * masked


def test_the_result_is_never_worse_than_the_start():
    rng = np.random.default_rng(0)
    grid = centred((20, 20, 20), (2, 2, 2), np.eye(3))
    for _ in range(3):
        pair = [Image(rng.normal(size=grid.shape), grid, "noise") for _ in range(2)]
        found = align(*pair, "affine")
        assert found.after >= found.before
        assert np.isfinite(found.matrix).all()


def test_images_without_contrast_stay_where_they_are():
    grid = centred((16, 16, 16), (2, 2, 2), np.eye(3))
    found = align(Image(np.zeros(grid.shape), grid), Image(np.ones(grid.shape), grid), "affine")
    assert np.array_equal(found.matrix, np.eye(4))


def test_nothing_to_align_is_refused():
    fixed = fixed_head()
    with pytest.raises(InputError, match=r"'stiff'.*rigid"):
        align(fixed, fixed, "stiff")
    with pytest.raises(InputError, match="overlap"):
        align(fixed, fixed, "rigid", initial=a_map(shift=(5000, 0, 0)))


def test_progress_rises_to_one_and_a_stop_comes_through():
    fixed, moving = fixed_head(), moving_head(a_map(shift=(9, 0, 0)))
    seen = []
    align(fixed, moving, "rigid", progress=seen.append)
    assert seen == sorted(seen)
    assert 0 <= seen[0] < 0.2
    assert seen[-1] <= 1

    def stop(done):
        if done > 0.3:
            raise Cancelled

    with pytest.raises(Cancelled):
        align(fixed, moving, "rigid", progress=stop)


@pytest.mark.slow
def test_the_same_pair_gives_the_same_bits():
    pair = fixed_head(), moving_head(a_map((3, 4, 5), (9, 0, 0)), other_contrast)
    assert np.array_equal(align(*pair, "affine").matrix, align(*pair, "affine").matrix)


def test_mutual_information_agrees_with_a_histogram_by_numpy():
    rng = np.random.default_rng(1)
    first = rng.uniform(size=5000)
    second = np.clip(first + rng.normal(scale=0.2, size=5000), 0, 1)
    joint = np.histogram2d(first, second, bins=16, range=((0, 1), (0, 1)))[0] / 5000

    def entropy(p):
        return -sum(v * np.log(v) for v in p.ravel() if v > 0)

    expected = (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)

    def measured(one, other, bins=32):
        return normalised_mutual_information(joint_histogram(one, other, bins))

    assert measured(first, second, 16) == pytest.approx(expected, rel=1e-12)
    assert measured(first, first) == pytest.approx(2)
    assert measured(first, rng.uniform(size=5000), 4) == pytest.approx(1, abs=2e-3)
    assert measured(np.zeros(9), np.ones(9)) == 1


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data beside the checkout are absent")
def test_two_visits_of_one_patient_meet_where_the_published_transforms_say():
    from IconRegistrationLib.io.images import read_image
    from IconRegistrationLib.io.transforms import read_transform

    folder = DATA / "1_brain_ms_longitudinal"
    found = align(read_image(folder / "study1_FLAIR.nii.gz"), read_image(folder / "study2_FLAIR.nii.gz"), "affine")
    first, second = (read_transform(folder / f"study{n}_FLAIR_to_common_space.txt") for n in (1, 2))
    brain = read_image(folder / "brainmask.nii.gz")
    common = brain.grid.to_world(np.argwhere(brain.array)[::5000, ::-1])
    points, theirs = (np.array([t.TransformPoint(list(p)) for p in common]) for t in (first, second))
    assert np.linalg.norm(theirs - points, axis=1).mean() > 8
    assert np.linalg.norm(theirs - apply_affine(found.matrix, points), axis=1).max() < 0.7
