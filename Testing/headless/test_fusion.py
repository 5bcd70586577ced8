"""Label fusion: votes as SimpleITK counts them, weights as a loop computes them, and what a bad atlas does."""

from dataclasses import replace

import numpy as np
import phantoms
import pytest

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.quality import fusion
from IconRegistrationLib.spatial.displacement import DisplacementField
from IconRegistrationLib.spatial.field import warp_image, warp_segmentation
from IconRegistrationLib.spatial.geometry import Grid, Image, Segment, Segmentation

GRID = Grid((13, 7, 6), np.diag([2.0, 1.0, 3.0, 1.0]))


def an_atlas(labels, names=("a", "b", "c"), values=(1, 2, 3), **more):
    segments = tuple(Segment(name, value, **more) for name, value in zip(names, values, strict=True))
    return Segmentation((np.asarray(labels, np.uint8),), segments, GRID, "atlas")


def random_labels(seed, high=4):
    return np.random.default_rng(seed).integers(0, high, GRID.shape, dtype=np.uint8)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_majority_is_that_of_simpleitk(number):
    sitk = pytest.importorskip("SimpleITK")
    maps = [random_labels(seed) for seed in range(number)]
    undecided = 255
    expected = sitk.GetArrayFromImage(sitk.LabelVoting([sitk.GetImageFromArray(m) for m in maps], undecided))
    fused = fusion.fuse([an_atlas(m) for m in maps])
    ours = fused.segmentation.layers[0]
    decided = expected != undecided
    assert decided.any()
    np.testing.assert_array_equal(ours[decided], expected[decided])
    counts = np.stack([sum(m == label for m in maps) for label in range(4)])
    np.testing.assert_array_equal(ours, counts.argmax(0))  # a tie: the background, else the first
    np.testing.assert_allclose(fused.agreement.array, counts.max(0) / number, rtol=1e-6)


def test_structures_are_matched_by_name_whatever_their_values():
    labels = random_labels(1)
    other = np.array([0, 30, 10, 20], np.uint8)[labels]
    atlases = [an_atlas(labels), an_atlas(other, ("b", "c", "a"), (10, 20, 30))]
    fused = fusion.fuse(atlases).segmentation
    assert [s.name for s in fused.segments] == ["a", "b", "c"]
    np.testing.assert_array_equal(fused.layers[0], labels)


def test_names_colours_and_terminology_stay():
    tags = {"TerminologyEntry": "Anatomy~liver"}
    atlas = an_atlas(random_labels(2, 2), ("liver",), (7,), color=(0.1, 0.2, 0.3), tags=tags)
    (segment,) = fusion.fuse([atlas, atlas]).segmentation.segments
    assert (segment.name, segment.color, segment.tags) == ("liver", (0.1, 0.2, 0.3), tags)


def test_what_overlaps_in_one_atlas_is_fused_apart():
    body, liver = np.zeros(GRID.shape, np.uint8), np.zeros(GRID.shape, np.uint8)
    body[1:8], liver[2:3] = 1, 1
    segments = (Segment("body", 1, 0), Segment("liver", 1, 1))
    atlas = Segmentation((body, liver), segments, GRID)
    one_layer = an_atlas(body + liver, ("body", "liver"), (1, 2))  # another atlas draws them side by side
    fused = fusion.fuse([atlas, atlas, one_layer]).segmentation
    by_name = fused.by_name()
    np.testing.assert_array_equal(fused.mask(by_name["body"]), body == 1)
    np.testing.assert_array_equal(fused.mask(by_name["liver"]), liver == 1)


def test_an_atlas_without_a_structure_has_no_say_in_it():
    labels = random_labels(3, 3)
    only_a = np.where(labels == 1, 1, 0)
    fused = fusion.fuse([an_atlas(labels, ("a", "b"), (1, 2)), *[an_atlas(only_a, ("a",), (1,))] * 3]).segmentation
    assert ((fused.layers[0] == 1) == (labels == 1)).all()
    # at b the first atlas, the only one to know it, has the whole vote; three see background: 3/4
    assert ((fused.layers[0] == 2) == (labels == 2)).all()


def test_weights_decide():
    first, second = an_atlas(np.full(GRID.shape, 1)), an_atlas(np.full(GRID.shape, 2))
    heavy = np.full(GRID.shape, 0.25)
    heavy[:, :3] = 0.75
    fused = fusion.fuse([first, second], [heavy, 1 - heavy])
    assert (fused.segmentation.layers[0][:, :3] == 1).all()
    assert (fused.segmentation.layers[0][:, 3:] == 2).all()
    np.testing.assert_allclose(fused.agreement.array, 0.75)


def test_weights_are_the_correlation_of_windows(monkeypatch):
    """Against a loop over voxels; in one slab, and in several that overlap."""
    random = np.random.default_rng(0)
    target, warped = (Image(random.normal(100, 30, GRID.shape).astype(np.float32), GRID) for _ in range(2))
    expected = np.empty(GRID.shape)
    reach = (2, 5, 2)  # 5 mm at spacings of 3, 1, 2 mm
    for place in np.ndindex(GRID.shape):
        box = tuple(slice(max(p - r, 0), p + r + 1) for p, r in zip(place, reach, strict=True))
        expected[place] = np.corrcoef(target.array[box].ravel(), warped.array[box].ravel())[0, 1]
    expected = np.maximum((expected**2) ** fusion.GAIN, 1e-3)
    np.testing.assert_allclose(fusion.vote_weights(warped, target), expected, atol=2e-3)
    monkeypatch.setattr(fusion, "SLAB_VOXELS", 1)
    np.testing.assert_allclose(fusion.vote_weights(warped, target), expected, atol=2e-3)


def test_weights_do_not_care_for_brightness_and_count_little_where_nothing_is_seen():
    random = np.random.default_rng(1)
    target = Image(random.normal(size=GRID.shape), GRID)
    inverted = Image(-1000 - 40 * target.array, GRID)
    assert fusion.vote_weights(inverted, target).min() > 0.99
    empty = Image(np.full(GRID.shape, -1000, np.int16), GRID)
    assert fusion.vote_weights(empty, target).max() < 2e-3


def test_atlases_on_different_grids_are_refused():
    other = replace(an_atlas(random_labels(1)), grid=GRID.moved(np.diag([1, 1, 2.0, 1])), name="other")
    with pytest.raises(InputError, match="other lies on another grid"):
        fusion.fuse([an_atlas(random_labels(1)), other])
    with pytest.raises(InputError, match="at least one atlas"):
        fusion.fuse([])


# ----------------------------------------------------------------------------------------------------------- accuracy


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def pushed(phantom, millimetres, seed):
    """The fixed side of a phantom after a smooth random displacement: an atlas that was registered this badly."""
    from scipy.ndimage import gaussian_filter

    grid = phantom.fixed.grid
    noise = np.random.default_rng(seed).normal(size=(*grid.shape, 3))
    noise = np.stack([gaussian_filter(noise[..., c], 3) for c in range(3)], -1)
    field = DisplacementField((noise * millimetres / np.abs(noise).mean()).astype(np.float32), grid)
    return warp_image(phantom.fixed, field, grid), warp_segmentation(phantom.fixed_segmentation, field, grid)


def mean_dice(segmentation, truth):
    ours, theirs = segmentation.by_name(), truth.by_name()
    return np.mean([dice(segmentation.mask(ours[n]), truth.mask(theirs[n])) for n in theirs])


@pytest.mark.parametrize(("errors", "gain"), [((2, 2, 2), 0.0), ((2, 12, 12), 0.03), ((2, 2, 25), 0.0)])
def test_local_weights_are_never_worse_and_forgive_bad_atlases(errors, gain):
    phantom = phantoms.phantom(40)
    images, segmentations = zip(*[pushed(phantom, error, seed) for seed, error in enumerate(errors)], strict=True)
    truth = phantom.fixed_segmentation
    majority = mean_dice(fusion.fuse(segmentations).segmentation, truth)
    weights = [fusion.vote_weights(image, phantom.fixed) for image in images]
    local = mean_dice(fusion.fuse(segmentations, weights).segmentation, truth)
    alone = [mean_dice(segmentation, truth) for segmentation in segmentations]
    print(f"{errors}: alone {np.round(alone, 3)}, majority {majority:.3f}, local {local:.3f}")
    assert local >= majority + gain - 0.002
