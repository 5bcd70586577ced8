"""The lattices of the maps lie on what the images share, for any two geometries."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.spatial.geometry import Grid
from IconRegistrationLib.spatial.lattice import (
    FEWEST_SAMPLES,
    linear_between,
    network_lattices,
    refinement_lattices,
    region_box,
)


def a_rotation(angles):
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        a, b = [n for n in range(3) if n != axis]
        turn = np.eye(3)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        result = turn @ result
    return result


@st.composite
def grids(draw, centre=(0.0, 0.0, 0.0)):
    """Oblique, permuted, flipped, anisotropic grids around a common centre."""
    size = draw(st.tuples(*(st.integers(12, 60),) * 3))
    spacing = np.array(draw(st.tuples(*(st.floats(0.5, 4),) * 3)))
    order = draw(st.permutations(range(3)))
    signs = np.array(draw(st.tuples(*(st.sampled_from([-1, 1]),) * 3)))
    direction = (a_rotation(draw(st.tuples(*(st.floats(-0.5, 0.5),) * 3))) * signs)[:, order]
    grid = Grid.from_parts(size, spacing, direction=direction)
    return grid.moved(shifted(np.array(centre) - grid.centre))


def shifted(by):
    matrix = np.eye(4)
    matrix[:3, 3] = by
    return matrix


@given(grids(), grids(centre=(100.0, -30.0, 20.0)), st.floats(1.5, 6))
@settings(deadline=None, max_examples=60)
def test_lattices_have_one_shape_and_cover_the_overlap(fixed, moving, spacing):
    linear = shifted([100, -30, 20])
    here, there = refinement_lattices(fixed, moving, linear, spacing=spacing)
    assert here.shape == there.shape
    shared = fixed.to_world(np.random.default_rng(0).uniform(-0.5, np.array(fixed.size) - 0.5, (500, 3)))
    shared = shared[moving.contains(shared + linear[:3, 3])]
    assert here.contains(shared).all()
    assert there.contains(shared + linear[:3, 3]).all()
    # no axis runs against its counterpart: the maps start near the identity
    agreement = np.einsum("ai,ai->i", here.direction, there.direction)
    assert (agreement > 0.0).all()
    finest = min(spacing, fixed.spacing.min(), moving.spacing.min())
    assert (np.maximum(here.spacing, there.spacing) >= 0.7 * finest).all()


@given(grids(), st.integers(2_000, 200_000))
@settings(deadline=None, max_examples=40)
def test_the_budget_is_kept_and_used(grid, voxels):
    here, there = refinement_lattices(grid, grid, np.eye(4), voxels=voxels)
    assert here.is_close(there)
    count = np.prod(here.shape)
    full = np.prod(grid.shape)
    if full > voxels and min(here.shape) > FEWEST_SAMPLES:
        assert count <= voxels
        # one sample per axis less than it might be is what rounding costs
        assert np.prod(np.array(here.shape) + 2) > voxels or min(here.shape) <= 8


def test_permuted_axes_meet_their_counterparts():
    fixed = Grid.from_parts((40, 30, 20), (1, 1, 3))
    permuted = Grid((40, 20, 30), fixed.affine @ np.array([[0, 0, -1, 39], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]]))
    here, there = refinement_lattices(fixed, permuted, np.eye(4), spacing=1.0)
    assert here.shape == (20, 30, 40)
    assert here.is_close(there)
    np.testing.assert_allclose(linear_between(here, there), np.eye(4), atol=1e-9)


def test_a_region_confines_the_lattice_and_must_touch_the_image():
    grid = Grid.from_parts((50, 50, 50), (1, 1, 1))
    region = Grid.from_parts((20, 10, 10), (1, 1, 1), (10, 20, 30))
    box = region_box(grid, region)
    assert box.size == (20, 10, 10)
    np.testing.assert_allclose(box.origin, [10, 20, 30])
    with pytest.raises(InputError, match="do not overlap"):
        region_box(grid, region.moved(shifted([100, 0, 0])))


def test_images_far_apart_are_refused_with_the_remedy():
    fixed = Grid.from_parts((20, 20, 20))
    with pytest.raises(InputError, match="align"):
        refinement_lattices(fixed, fixed.moved(shifted([0, 25, 0])), np.eye(4))


def test_network_lattices_are_the_stretched_boxes():
    fixed, moving = Grid.from_parts((40, 30, 20), (1, 1, 3)), Grid.from_parts((64, 64, 64), (2, 2, 2), (5, 6, 7))
    here, there = network_lattices(fixed, moving, (16, 16, 16))
    linear = linear_between(here, there)
    corners = np.c_[fixed.corners(faces=True), np.ones(8)] @ linear.T
    np.testing.assert_allclose(corners[:, :3], moving.corners(faces=True), atol=1e-9)
