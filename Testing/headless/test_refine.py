"""Field refinement: recovers known deformations, obeys its masks and labels, and its parts equal closed forms."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from IconRegistrationLib.errors import Cancelled, InputError
from IconRegistrationLib.registration import refine as room
from IconRegistrationLib.registration.objective import FieldRefinement, RefinementPair, Roughness
from IconRegistrationLib.registration.refine import contrast_agreement, linear_maps, refine, resample_maps
from IconRegistrationLib.registration.similarity import apply_along_axes
from IconRegistrationLib.registration.splines import bspline_matrix, cubic_matrix
from IconRegistrationLib.spatial.geometry import Grid, apply_affine
from IconRegistrationLib.spatial.lattice import linear_between

OBLIQUE = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])
SHAPE = (26, 30, 34)


def a_blurred_noise(seed=0, shape=SHAPE):
    noise = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(seed))
    for _ in range(3):
        noise = torch.nn.functional.avg_pool3d(torch.nn.functional.pad(noise, (1,) * 6, mode="replicate"), 3, 1)
    return (noise - noise.min()) / (noise.max() - noise.min())


def a_pair(fixed, moving, **changes):
    """Images on lattices that differ in spacing, orientation and place."""
    shape = tuple(fixed.shape[2:])
    lattices = (
        Grid.from_parts(shape[::-1], (1.0, 1.5, 2.0), (10, -20, 5)),
        Grid.from_parts(shape[::-1], (1.1, 1.4, 2.2), (-70, 3, 40), OBLIQUE),
    )
    ones = torch.ones_like(fixed)
    values = {"fixed_mask": ones, "moving_mask": ones, "linear": linear_between(*lattices)} | changes
    return RefinementPair(fixed, moving, fixed_lattice=lattices[0], moving_lattice=lattices[1], **values)


def a_known_map(shape=SHAPE, voxels=2.0):
    """Smooth phi [1, 3, D, H, W] with displacements of up to `voxels`, zero at the border."""
    unit = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, n) for n in shape), indexing="ij"))[None]
    bump = torch.sin(torch.pi * unit).prod(1, keepdim=True) ** 2
    push = torch.tensor([1.0, -0.8, 0.9]).view(1, 3, 1, 1, 1) * voxels
    return unit + bump * push / (torch.tensor(shape).view(1, 3, 1, 1, 1) - 1)


def a_warped(image, phi):
    grid = (2 * phi[0].flip(0) - 1).movedim(0, -1)[None]
    return torch.nn.functional.grid_sample(image, grid, align_corners=True, padding_mode="border")


def error_in_voxels(phi, truth):
    size = torch.tensor(phi.shape[2:]).view(1, 3, 1, 1, 1) - 1
    inner = (slice(None), slice(None), *(slice(4, -4),) * 3)
    return ((phi - truth) * size).norm(dim=1, keepdim=True)[inner].mean().item()


def test_an_unknown_similarity_is_refused_by_name():
    with pytest.raises(InputError, match=r"'ssd'.*lncc, lncc2, mind"):
        FieldRefinement(similarity="ssd")


@pytest.mark.parametrize("similarity", ["lncc", "lncc2", "mind"])
def test_a_known_deformation_is_found_in_both_directions(similarity):
    moving, truth = a_blurred_noise(), a_known_map()
    pair = a_pair(a_warped(moving, truth), moving)
    start = linear_maps(pair)
    options = FieldRefinement(similarity=similarity, steps=40, levels=(2, 1), diffusion=2e-4, inverse_consistency=0.1)
    phi_AB, phi_BA = refine(pair, *start, options=options)
    before = error_in_voxels(start[0], truth)
    assert before > 0.5
    assert error_in_voxels(phi_AB, truth) < 0.35 * before
    # the other direction is its inverse: there and back is the identity
    back = a_warped(phi_BA, phi_AB)
    assert error_in_voxels(back, start[0]) < 0.2


def test_noise_deforms_less_and_motion_more_than_under_a_fixed_weight():
    """A quadratic regulariser that lets noise deform nearly as little as ours does holds true motion back."""
    image, truth = a_blurred_noise(), a_known_map(voxels=3.0)
    noise = [0.02 * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    here = linear_maps(a_pair(image, image))[0]

    def error(fixed, moving, phi, **changes):
        pair = a_pair(fixed, moving)
        options = FieldRefinement(steps=30, levels=(2, 1), **changes)
        return error_in_voxels(refine(pair, *linear_maps(pair), options=options)[0], phi)

    def errors(**changes):
        still = error(image + noise[0], image + noise[1], here, **changes)
        return still, error(a_warped(image, truth), image, truth, **changes)

    ours = errors()
    fixed_weight = errors(diffusion=1e4, roughness=1e3)  # log(1 + x) of a small x is x: ten times |grad u|^2
    assert ours[0] < 0.95 * fixed_weight[0]
    assert ours[1] < 0.8 * fixed_weight[1]


def test_identical_images_stay_where_they_are():
    image = a_blurred_noise(3)
    pair = a_pair(image, image)
    maps = refine(pair, *linear_maps(pair), options=FieldRefinement(steps=30))
    for phi, start in zip(maps, linear_maps(pair), strict=True):
        assert error_in_voxels(phi, start) < 0.03


def test_a_given_start_is_kept_where_nothing_is_to_gain():
    """Without similarity and regularisation, the maps come back as they were: no level loses their detail."""
    image, phi = a_blurred_noise(1), a_known_map(voxels=1.5)
    pair = a_pair(image, image, fixed_mask=torch.zeros_like(image), moving_mask=torch.zeros_like(image))
    options = FieldRefinement(steps=2, diffusion=0, inverse_consistency=0)
    refined, other = refine(pair, phi, phi, options=options)
    torch.testing.assert_close(refined, phi, atol=2e-6, rtol=0)
    torch.testing.assert_close(other, phi, atol=2e-6, rtol=0)


def test_what_a_mask_hides_has_no_say():
    moving, truth = a_blurred_noise(), a_known_map()
    fixed = a_warped(moving, truth)
    mask = torch.ones_like(fixed)
    mask[..., : SHAPE[2] // 2] = 0
    spoilt = torch.where(mask > 0, fixed, 1 - fixed.flip(4))
    options = FieldRefinement(steps=15, levels=(1,), window=1.0)
    visible = (slice(None),) * 4 + (slice(SHAPE[2] // 2 + 6, -3),)

    def found(image):
        pair = a_pair(image, moving, fixed_mask=mask)
        return refine(pair, *linear_maps(pair), options=options)[0]

    clean, dirty = found(fixed), found(spoilt)
    size = torch.tensor(SHAPE).view(1, 3, 1, 1, 1) - 1
    assert ((clean - dirty) * size)[visible].abs().max() < 0.5


def test_labels_pull_structures_that_intensities_do_not_show():
    flat = a_blurred_noise(5) * 0.02
    ball = torch.zeros(1, 1, *SHAPE)
    ball[..., 8:18, 9:20, 8:18] = 1
    shifted = ball.roll(4, 4)

    def overlap(weight):
        pair = a_pair(flat, flat, fixed_labels=ball, moving_labels=shifted)
        options = FieldRefinement(steps=40, levels=(2, 1), label_weight=weight, diffusion=2e-4)
        phi, _ = refine(pair, *linear_maps(pair), options=options)
        warped = a_warped(shifted, phi)
        return (2 * (warped * ball).sum() / (warped.sum() + ball.sum())).item()

    assert overlap(0.0) < 0.7
    assert overlap(2.0) > 0.9


def test_progress_rises_to_one_and_can_cancel():
    image = a_blurred_noise()
    pair = a_pair(image, image)
    seen = []
    refine(pair, *linear_maps(pair), options=FieldRefinement(steps=2), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)

    def stop(fraction):
        raise Cancelled

    with pytest.raises(Cancelled):
        refine(pair, *linear_maps(pair), options=FieldRefinement(steps=2), progress=stop)


def test_contrast_agreement_tells_one_contrast_from_two():
    image = a_blurred_noise(2)
    maps = linear_maps(a_pair(image, image))
    assert contrast_agreement(a_pair(image, image**1.5), *maps) > 0.99
    assert contrast_agreement(a_pair(image, 1 - image), *maps) < -0.99
    folded = (image - image.median()).abs()
    assert abs(contrast_agreement(a_pair(image, folded), *maps)) < 0.7


def test_linear_maps_are_the_linear_alignment():
    turned = np.eye(4)
    turned[:3, :3] = OBLIQUE @ np.diag([1, 1, -1.05])
    turned[:3, 3] = [-60, 20, 30]
    pair = a_pair(a_blurred_noise(), a_blurred_noise(), linear=turned)
    phi_AB, phi_BA = linear_maps(pair)
    fixed, moving = pair.fixed_lattice, pair.moving_lattice
    for phi, here, there, matrix in (
        (phi_AB, fixed, moving, turned),
        (phi_BA, moving, fixed, np.linalg.inv(turned)),
    ):
        kji = np.array([[0, 0, 0], [3, 29, 1], [25, 4, 33]])
        points = phi[0, :, kji[:, 0], kji[:, 1], kji[:, 2]].T.double().numpy()
        expected = apply_affine(matrix, here.to_world(kji[:, ::-1]))
        np.testing.assert_allclose(apply_affine(there.unit_to_world(), points), expected, atol=2e-3)


def test_a_carried_map_goes_where_it_went_on_the_lattices_it_comes_from():
    """An affine map that is not the alignment: its displacement is interpolated exactly."""
    image = a_blurred_noise()
    coarse = a_pair(image, image)
    fine = replace(
        coarse,
        fixed=torch.zeros(1, 1, 40, 44, 48),
        moving=torch.zeros(1, 1, 40, 44, 48),
        fixed_lattice=coarse.fixed_lattice.box((4, 3, 3), (30, 28, 23)).with_shape((40, 44, 48)),
        moving_lattice=coarse.moving_lattice.box((3, 4, 3), (31, 26, 22)).with_shape((40, 44, 48)),
    )
    bend = np.eye(4)
    bend[:3] += 0.03 * np.random.default_rng(0).standard_normal((3, 4))
    forward = coarse.linear @ bend

    def mapped(matrix, domain, target):
        """phi of a 4x4 in mm, from the samples of `domain`."""
        n = np.array(domain.shape)
        index = np.stack(np.meshgrid(*map(np.arange, n), indexing="ij"), -1)[..., ::-1].reshape(-1, 3)
        points = target.to_index(apply_affine(matrix, domain.to_world(index)))
        return torch.tensor(points[:, ::-1] / (n - 1)).float().T.reshape(1, 3, *n)

    def both(pair):
        lattices = pair.fixed_lattice, pair.moving_lattice
        return mapped(forward, *lattices), mapped(np.linalg.inv(forward), *reversed(lattices))

    for result, truth in zip(resample_maps(*both(coarse), coarse, fine), both(fine), strict=True):
        torch.testing.assert_close(result, truth, rtol=0, atol=2e-6)


def roughness(space, displacement):
    """Mean squared derivative in mm per mm, sample by sample."""
    in_mm = torch.einsum("nij,njdhw->nidhw", space.target_to_mm, displacement)
    distances = space.edges.view(2, 3, 1, 1, 1, 1) / torch.tensor(displacement.shape[2:]).view(3, 1, 1, 1, 1)
    return sum((in_mm.diff(dim=2 + n) / distances[:, n]).square().mean() for n in range(3))


def test_the_regularisers_equal_their_closed_forms():
    """A linear displacement has a constant gradient; two maps that undo each other have no inconsistency."""
    pair = a_pair(a_blurred_noise(), a_blurred_noise())
    space = room.BoxGeometry(pair)
    gradient = np.array([[0.02, 0.01, 0.0], [0.0, -0.03, 0.01], [0.01, 0.0, 0.02]])  # mm per mm along x, y, z of LPS
    fields = []
    for here, there in ((pair.fixed_lattice, pair.moving_lattice), (pair.moving_lattice, pair.fixed_lattice)):
        k, j, i = np.meshgrid(*(np.arange(n) for n in here.shape), indexing="ij")
        points = here.to_world(np.stack([i, j, k], -1))
        mm = points @ gradient.T
        fields.append(mm @ np.linalg.inv(there.faces_to_world()[:3, :3]).T)
    displacement = torch.tensor(np.stack(fields), dtype=torch.float32).movedim(-1, 1)
    expected = (gradient**2).sum() / 3
    in_mm = torch.einsum("nij,njdhw->nidhw", space.target_to_mm, displacement).requires_grad_()
    found = space.squared_gradient(in_mm)
    assert found.item() == pytest.approx(expected, rel=1e-3)
    (slope,) = torch.autograd.grad(found, in_mm)
    displacement.requires_grad_()
    (expected,) = torch.autograd.grad(roughness(space, displacement), displacement)
    slope = torch.einsum("nij,nidhw->njdhw", space.target_to_mm, slope)
    torch.testing.assert_close(slope, expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    shift = torch.tensor(np.linalg.inv(pair.moving_lattice.faces_to_world()[:3, :3]) @ [2.0, -1.0, 1.5])
    there = shift.float().view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    back = -(space.linear[1, :3, :3] @ shift.float()).view(1, 3, 1, 1, 1).expand(1, 3, *SHAPE)
    assert space.inverse_consistency_loss(torch.cat([there, back])).item() < 1e-9
    assert space.inverse_consistency_loss(torch.cat([there, 0 * back])).item() < 1e-9  # a constant has no derivative
    assert space.inverse_consistency_loss(displacement.detach()).item() > 1e-4


@pytest.mark.parametrize("matrix", [bspline_matrix, cubic_matrix])
def test_spline_matrices_reproduce_a_straight_line(matrix):
    """A cubic basis reproduces linear functions away from the ends, where the last control point repeats."""
    count, controls = 23, 12
    weights = matrix(count, controls)
    torch.testing.assert_close(weights.sum(1), torch.ones(count))
    centres = (torch.arange(controls) + 0.5) / controls
    line = weights @ centres
    expected = (torch.arange(count) + 0.5) / count
    torch.testing.assert_close(line[5:-5], expected[5:-5])


def test_folds_are_removed_and_nothing_else_changes():
    pair = a_pair(a_blurred_noise(), a_blurred_noise())
    space = room.BoxGeometry(pair)
    displacement = torch.zeros(2, 3, *SHAPE)
    displacement[0, 0, 10:14, 10:14, 10:14] = 0.25  # four voxels along x within four voxels: folded
    assert (space.jacobian(displacement) <= 0).any()
    unfolded = room.remove_folds(space, displacement)
    assert space.jacobian(unfolded).min() >= room.LEAST_JACOBIAN
    assert torch.equal(unfolded[1], displacement[1])
    assert torch.equal(unfolded[0, :, :, :, 25:], displacement[0, :, :, :, 25:])


def test_the_jacobian_equals_that_of_the_flattened_field():
    """In mm and world axes, by the module that the quality report uses."""
    from IconRegistrationLib.spatial.field import displacement_from_phi, jacobian_determinant

    pair = a_pair(a_blurred_noise(), a_blurred_noise())
    phi = a_known_map()
    space = room.BoxGeometry(pair)
    displacement = torch.cat([room.faces_from_phi(phi)] * 2) - space.linear_points(SHAPE)
    field = displacement_from_phi(phi, pair.fixed_lattice, pair.moving_lattice)
    linear = np.linalg.det(pair.linear[:3, :3])
    mine = space.jacobian(displacement)[0, 0].numpy() * linear
    np.testing.assert_allclose(mine, jacobian_determinant(field), atol=2e-3)


def test_roughness_of_a_spline_is_that_of_its_samples():
    pair = a_pair(a_blurred_noise(), a_blurred_noise(1))
    space, shape, controls = room.BoxGeometry(pair), pair.fixed_lattice.shape, (9, 12, 14)
    spline = [bspline_matrix(n, c) for n, c in zip(shape, controls, strict=True)]
    voxel = torch.tensor([2 / n for n in reversed(shape)]).view(3, 1, 1, 1)
    start = 0.1 * torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(2))
    form = Roughness(space, start, spline, voxel)
    coefficients = torch.randn(2, 3, *controls, generator=torch.Generator().manual_seed(3))
    value, derivative = form(coefficients)
    coefficients.requires_grad_()

    sampled = roughness(space, start + apply_along_axes(coefficients, spline) * voxel)
    assert value.item() == pytest.approx(sampled.item(), rel=1e-5)
    (expected,) = torch.autograd.grad(sampled, coefficients)
    assert (derivative - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("similarity", ["lncc2", "mind"])
@pytest.mark.parametrize("term", ["similarity", "inverse_consistency", "diffusion"])
def test_the_derivative_is_that_of_the_documented_loss(similarity, term):
    """Term by term against automatic differentiation of the whole."""
    moving = a_blurred_noise()
    pair = a_pair(a_warped(moving, a_known_map()), moving)
    space, shape = room.BoxGeometry(pair), pair.fixed_lattice.shape
    weights = {name: 1e3 if name == term else 0.0 for name in ("inverse_consistency", "diffusion")}
    options = FieldRefinement(similarity=similarity, **weights)
    draw = torch.Generator().manual_seed(1)
    start = 0.1 * room.resize_smoothly(torch.randn(2, 3, 5, 5, 5, generator=draw), shape)
    objective = room.Objective(pair, space, start, options)
    coefficients = torch.randn(2, 3, *objective.controls, generator=draw)
    # the mean over the turns
    turns = [(0, 0), (0, 1), (1, 0), (1, 1)] if similarity == "mind" else [()]
    derivative = sum(objective.derivative(coefficients, step) for step in range(len(turns))) / len(turns)

    def displacement(shape):
        matrices = [bspline_matrix(n, c) for n, c in zip(shape, objective.controls, strict=True)]
        voxel = torch.tensor([2 / n for n in reversed(pair.fixed_lattice.shape)]).view(3, 1, 1, 1)
        return torch.einsum("abijk,xi,yj,zk->abxyz", coefficients, *matrices) * voxel + room.resize_by_area(
            start, shape
        )

    coefficients.requires_grad_()
    everywhere = displacement(shape)
    level, points = room.LevelImages(pair, shape, options), space.linear_points(shape) + everywhere
    parts = [tuple(slice(n, None, 2) for n in turn) for turn in turns]
    every = (slice(None), slice(None))
    loss = sum(level.dissimilarity(points[(*every, *(part or every))], part or every) for part in parts) / len(parts)
    if similarity == "mind":  # as many voxels count in each, nearly
        assert loss.item() == pytest.approx(level.dissimilarity(points).item(), rel=0.03)
    thinned = [max(n // 2, c) for n, c in zip(shape, objective.controls, strict=True)]
    assert thinned != [n // 2 for n in shape]  # along the thick slices it is all of them
    loss = loss + options.inverse_consistency * space.inverse_consistency_loss(displacement(thinned))
    loss = loss + options.diffusion * torch.log1p(roughness(space, everywhere) / options.roughness)
    (expected,) = torch.autograd.grad(loss, coefficients)
    assert expected.abs().max() > 1e-5
    torch.testing.assert_close(derivative, expected, rtol=0, atol=2e-4 * expected.abs().max().item())
