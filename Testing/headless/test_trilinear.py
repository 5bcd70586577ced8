"""Trilinear values and their slopes against torch's grid_sample in double precision."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from IconRegistrationLib.spatial.trilinear import Frame, compared, trilinear


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n} threads", autouse=True)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def by_torch(values, places):
    """In double precision; places (x, y, z) in [-1, 1] from face to face."""
    grid = places.double().movedim(1, -1)
    return F.grid_sample(values.double(), grid, padding_mode="border", align_corners=False)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


SHAPES = [
    ((2, 3, 7, 8, 9), (5, 6, 4)),
    ((1, 2, 1, 5, 6), (3, 3, 3)),  # one plane
    ((2, 2, 5, 1, 1), (4, 4, 4)),  # one row
    ((1, 1, 2, 2, 2), (1, 1, 1)),
    ((2, 1, 12, 13, 14), (20, 19, 18)),
]


@pytest.mark.parametrize(("shape", "at"), SHAPES)
def test_values_are_those_of_grid_sample(shape, at):
    values, places = random(*shape), 2.6 * random(shape[0], 3, *at, seed=1) - 1.3
    torch.testing.assert_close(
        trilinear(values, places, Frame.faces(shape[2:])).double(), by_torch(values, places), rtol=0, atol=1e-4
    )


def test_unit_frames_count_from_sample_to_sample_in_axis_order():
    values, places = random(2, 3, 7, 8, 9), 1.4 * random(2, 3, 5, 6, 4, seed=1) - 0.2
    grid = (2 * places.flip(1) - 1).movedim(1, -1).double()
    expected = F.grid_sample(values.double(), grid, padding_mode="border", align_corners=True)
    torch.testing.assert_close(trilinear(values, places, Frame.unit((7, 8, 9))).double(), expected, rtol=0, atol=1e-4)


def test_nothing_of_one_plane_reaches_the_next():
    """Each plane has a value of its own; on its outermost rows a rounded place must not look into the neighbour."""
    values = (10.0 ** torch.arange(9)).view(1, 1, 9, 1, 1).expand(1, 1, 9, 31, 5).contiguous()
    z, y, x = torch.meshgrid(torch.arange(9.0), torch.tensor([0.0, 30.0]), torch.arange(5.0), indexing="ij")
    found = trilinear(values, torch.stack([z, y, x])[None], Frame((0, 1, 2), (1, 1, 1), (0, 0, 0)))
    torch.testing.assert_close(found[0, 0], 10.0**z, rtol=1e-5, atol=0)


@pytest.mark.parametrize("tolerance", [1e-6, 1e-5, 1e-4])
def test_rounding_stays_within_the_tolerance(tolerance):
    """On noise, the steepest there is, in which many rows make places uncertain."""
    values, places = random(1, 2, 40, 41, 20), random(1, 3, 12, 30, 30, seed=1)
    grid = (2 * places.flip(1) - 1).movedim(1, -1).double()
    expected = F.grid_sample(values.double(), grid, padding_mode="border", align_corners=True)
    error = (trilinear(values, places, Frame.unit((40, 41, 20)), tolerance).double() - expected).abs().max()
    by_grid_sample = (F.grid_sample(values, grid.float(), padding_mode="border", align_corners=True) - expected).abs()
    assert error <= max(tolerance, 2 * by_grid_sample.max())
    assert (trilinear(values, places, Frame.unit((40, 41, 20))).double() - expected).abs().max() > 1e-5  # without


@pytest.mark.parametrize(("shape", "at"), SHAPES)
def test_slopes_are_those_of_grid_sample(shape, at):
    """Of a mean squared difference, weighted: values of many channels become one number."""
    values, places = random(*shape), 2.6 * random(shape[0], 3, *at, seed=1) - 1.3
    target, weights = random(*shape[:2], *at, seed=2), random(shape[0], 1, *at, seed=3)

    def difference(warped, n, planes):
        off = warped - target[n][:, planes].reshape(warped.shape)
        return off.square().mean(0), off * (2 / len(off))

    mine, exact = places.clone().requires_grad_(), places.double().requires_grad_()
    found = compared(values, mine, Frame.faces(shape[2:]), difference)
    expected = (by_torch(values, exact) - target).square().mean(1, keepdim=True)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-4)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    apart = (mine.grad - exact.grad).abs()
    scale = exact.grad.abs().max().clamp_min(1e-6)
    # a place within rounding of a sample may count to either side of it, where slopes differ
    assert (apart > 1e-3 * scale).double().mean() < 0.005
    assert apart.median() < 1e-5 * scale


@settings(deadline=None, max_examples=40)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 7)] * 3), st.floats(0.1, 50))
def test_any_shape_and_any_reach(size, at, reach):
    values, places = random(2, 2, *size), reach * (2 * random(2, 3, *at, seed=1) - 1)
    found = trilinear(values, places, Frame.faces(size)).double()
    torch.testing.assert_close(found, by_torch(values, places), rtol=0, atol=1e-4)
    assert math.isfinite(found.sum())
