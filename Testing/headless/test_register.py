"""The whole middle: volumes in, transforms out, with and without a network."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch

from IconRegistrationLib.errors import Cancelled, InputError
from IconRegistrationLib.networks.cards import ModelCard
from IconRegistrationLib.networks.inference import predict_maps
from IconRegistrationLib.networks.unet import GradICON
from IconRegistrationLib.registration import register as room
from IconRegistrationLib.registration.register import register
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.spatial.field import jacobian_determinant
from IconRegistrationLib.spatial.geometry import Grid, Image, Segmentation, apply_affine

QUICK = Settings(spacing=9.0, align="centre", steps=25, device="cpu")


@pytest.fixture(scope="module")
def a_phantom():
    return phantoms.phantom(48)


@pytest.fixture(scope="module")
def a_registration(a_phantom):
    return register(a_phantom.fixed, a_phantom.moving, QUICK)


def test_a_known_deformation_between_two_scanners_is_found(a_phantom, a_registration):
    before = a_phantom.end_point_error(lambda points: points).mean()
    after = a_phantom.end_point_error(a_registration.forward.transform_points).mean()
    assert before > 15
    assert after < 4.5  # half a sample of the lattice
    assert (jacobian_determinant(a_registration.forward) > 0).all()


def test_both_fields_cover_their_images_and_undo_each_other(a_phantom, a_registration):
    for field, image in ((a_registration.forward, a_phantom.fixed), (a_registration.backward, a_phantom.moving)):
        assert np.isfinite(field.displacement).all()
        assert field.grid.contains(image.grid.corners(faces=True) * 0.999 + image.grid.centre * 0.001).all()
    points = a_phantom.fixed_landmarks.points
    there_and_back = a_registration.backward.transform_points(a_registration.forward.transform_points(points))
    assert np.linalg.norm(there_and_back - points, axis=1).mean() < 2


def test_the_record_of_a_run_is_json_and_complete(a_registration):
    record = json.loads(json.dumps(a_registration.provenance, allow_nan=False))
    assert record["settings"]["spacing"] == 9.0
    assert record["model"]["name"] == "none"
    assert record["similarity"] == "lncc2"
    assert {"IconRegistration", "torch", "itk", "numpy", "python"} <= set(record["versions"])
    assert record["seconds"]["total"] >= record["seconds"]["refinement"] > 0


def test_the_same_call_gives_the_same_numbers(a_phantom, a_registration):
    again = register(a_phantom.fixed, a_phantom.moving, QUICK)
    np.testing.assert_allclose(again.forward.displacement, a_registration.forward.displacement, atol=1e-3)


def test_different_contrasts_are_noticed():
    phantom = phantoms.phantom(48, "ct-mr")
    registration = register(phantom.fixed, phantom.moving, QUICK)
    assert registration.provenance["fixed"]["modality"] == "ct"
    assert registration.provenance["moving"]["modality"] == "mri"
    assert registration.provenance["similarity"] == "mind"
    before = phantom.end_point_error(lambda points: points).mean()
    assert phantom.end_point_error(registration.forward.transform_points).mean() < before / 2


@pytest.mark.parametrize(("modality", "similarity"), [("mr", "lncc2"), ("ct-mr", "mind")])
def test_one_contrast_is_recognised_from_far(modality, similarity):
    """20 mm beside its place an image agrees with itself no more than another contrast does; 0.69 was measured."""
    phantom = phantoms.phantom(48, modality, seed=3)
    start = phantom.moving_pose @ np.linalg.inv(phantom.fixed_pose)
    start[:3, 3] += np.array([20, -20, 20]) / np.sqrt(3)
    settings = Settings(align="none", device="cpu", steps=1)
    registration = register(phantom.fixed, phantom.moving, settings, initial=start)
    assert registration.provenance["similarity"] == similarity


def test_alignment_alone_is_one_linear_map(a_phantom):
    settings = dataclasses.replace(QUICK, refine="off")
    registration = register(a_phantom.fixed, a_phantom.moving, settings)
    points = a_phantom.fixed_landmarks.points
    expected = apply_affine(registration.linear, points)
    np.testing.assert_allclose(registration.forward.transform_points(points), expected, atol=1e-2)
    back = registration.backward.transform_points(expected)
    np.testing.assert_allclose(back, points, atol=1e-2)


def test_an_initial_transform_is_the_start_and_part_of_the_result(a_phantom):
    """With the true rigid part given and no alignment asked for, only the deformation is left to find."""
    rigid = a_phantom.moving_pose @ np.linalg.inv(a_phantom.fixed_pose)
    settings = dataclasses.replace(QUICK, align="auto")
    registration = register(a_phantom.fixed, a_phantom.moving, settings, initial=rigid)
    np.testing.assert_allclose(registration.linear, rigid)
    assert a_phantom.end_point_error(registration.forward.transform_points).mean() < 4


def test_a_region_confines_the_lattice_but_the_field_covers_the_image(a_phantom):
    liver = a_phantom.fixed_segmentation.mask(a_phantom.fixed_segmentation.by_name()["liver"])
    low, high = np.argwhere(liver).min(0)[::-1], np.argwhere(liver).max(0)[::-1] + 1
    region = a_phantom.fixed.grid.box(low, high)
    rigid = a_phantom.moving_pose @ np.linalg.inv(a_phantom.fixed_pose)
    registration = register(a_phantom.fixed, a_phantom.moving, QUICK, initial=rigid, region=region)
    assert np.prod(registration.fixed_lattice.extent) <= 1.01 * np.prod(region.extent)
    assert registration.forward.grid.contains(a_phantom.fixed.grid.corners()).all()
    inside = region.to_world(np.array(region.size) / 2)
    assert np.linalg.norm(registration.forward.transform_points(inside) - a_phantom.truth(inside[None])[0]) < 8


def test_masks_and_labels_reach_the_refinement(a_phantom, monkeypatch):
    seen = {}

    def spy(pair, *maps, options, progress):
        seen.update(pair=pair, options=options)
        return maps

    monkeypatch.setattr(room, "refine", spy)
    segmentation = a_phantom.fixed_segmentation
    mask = Image(segmentation.mask(segmentation.by_name()["body"]), segmentation.grid, "body")
    register(
        a_phantom.fixed,
        a_phantom.moving,
        dataclasses.replace(QUICK, label_weight=3.0),
        fixed_mask=mask,
        fixed_labels=segmentation,
        moving_labels=a_phantom.moving_segmentation,
    )
    pair = seen["pair"]
    share = pair.fixed_mask.mean().item()
    assert abs(share - mask.array.mean()) < 0.05
    assert pair.fixed_labels.shape[1] == len(segmentation.segments)
    assert seen["options"].label_weight == 3.0
    # the labels' volumes in mm3 are those of the segmentation
    liver = sorted(segmentation.by_name()).index("liver")
    voxel = np.prod(pair.fixed_lattice.extent) / np.prod(pair.fixed_labels.shape[2:])
    there = segmentation.mask(segmentation.by_name()["liver"]).sum() * segmentation.grid.voxel_volume
    assert pair.fixed_labels[0, liver].sum().item() * voxel == pytest.approx(there, rel=0.05)


def test_progress_rises_from_0_to_1_and_cancels(a_phantom):
    seen = []
    register(a_phantom.fixed, a_phantom.moving, QUICK, progress=lambda stage, fraction: seen.append((stage, fraction)))
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert 0.9 < fractions[-1] <= 1.0001
    assert [stage for n, (stage, _) in enumerate(seen) if stage not in [s for s, _ in seen[:n]]] == [
        "model",
        "alignment",
        "preparation",
        "refinement",
        "transform",
    ]

    def stop(stage, fraction):
        if stage == "refinement":
            raise Cancelled

    with pytest.raises(Cancelled):
        register(a_phantom.fixed, a_phantom.moving, QUICK, progress=stop)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"refine": "fields"}, "field, network, off"),
        ({"similarity": "ssd"}, "lncc"),
        ({"align": "affin"}, "affine"),
        ({"refine": "network"}, "name a model"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"spacing": -1.0}, "spacing is -1.0 mm; it must be more than 0 mm"),
        ({"padding": 1000.0}, "padding is 1000.0 mm; it must be at least 0 and less than 1000 mm"),
        ({"label_weight": -1.0}, "label_weight is -1.0; it must be at least 0"),
        ({"steps": "5"}, "steps is '5'; it must be a whole number."),
        ({"steps": True}, "steps is True; it must be a whole number."),
        ({"steps": 2.5}, "steps is 2.5; it must be a whole number."),
        ({"align": 5}, "align is 5; choose one of"),
        ({"device": None}, "device is None; it must be text."),
        ({"spacing": np.inf}, "spacing is inf; it must be a finite number."),
        ({"padding": np.nan}, "padding is nan; it must be a finite number."),
        ({"label_weight": False}, "label_weight is False; it must be a finite number."),
        ({"ct_window": (0,)}, r"ct_window is \(0,\); it must be two finite numbers."),
        ({"ct_window": (0, np.nan)}, "it must be two finite numbers."),
        ({"ct_window": (40, 40)}, r"ct_window is \(40, 40\); the first number must be less than the second."),
        ({"quantile_range": (0, 1.5)}, r"quantile_range is \(0, 1.5\); both numbers must be at least 0 and at most 1."),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(changes, words):
    with pytest.raises(InputError, match=words):
        Settings(**changes)


def test_settings_take_the_numbers_of_numpy_lists_and_paths():
    given = Settings(steps=np.int64(5), padding=np.float32(2), ct_window=[0, np.float32(40)], weights_dir=Path("w"))
    assert given == Settings(steps=5, padding=2.0, ct_window=(0, 40.0), weights_dir="w")
    assert type(given.steps) is int
    assert type(given.padding) is float


# ------------------------------------------------------------------------------------------------ with a network

SHAPE = (64, 72, 80)  # the published cascade of five halvings needs 65 and more; this one has three
CHANNELS = {"down": (2, 4, 8, 16), "up": (4, 4, 8)}
SMALL = {"model": "small", "device": "cpu"}


@pytest.fixture
def a_network():
    """A small cascade with random weights that moves things by some voxels, in place of the published one."""
    torch.manual_seed(0)
    network = GradICON(SHAPE, **CHANNELS).eval()
    for unet in network.unets:
        torch.nn.init.normal_(unet.lastConv.weight, std=0.02)
    return network


def loader(network, alignment="none"):
    """In place of `load_model`: this network whatever the name."""
    card = ModelCard("small", "A small network", "for tests", input_shape=network.shape, alignment=alignment)
    return lambda name, **options: (network, card, "0" * 64)


def two_scanners():
    turn = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, -1.0]])
    rng = np.random.default_rng(4)

    def image(size, spacing, origin, direction, name):
        grid = Grid.from_parts(size, spacing, origin, direction)
        coarse = torch.tensor(rng.random((1, 1, 6, 6, 6)), dtype=torch.float32)
        array = torch.nn.functional.interpolate(coarse, size=grid.shape, mode="trilinear")[0, 0].numpy()
        return Image(array * 900, grid, name)

    return (
        image((50, 44, 30), (1, 1.2, 2), (5, -7, 30), np.eye(3), "fixed"),
        image((40, 52, 36), (1.5, 1, 1.4), (-80, 30, 10), turn, "moving"),
    )


def test_the_network_path_is_icon_registrations_register_pair(a_network):
    """The same input tensors, the same composite: ITK's evaluation of both transforms agrees."""
    wrapper = pytest.importorskip("icon_registration.itk_wrapper", reason="icon_registration is not installed")
    itk = pytest.importorskip("itk")
    fixed, moving = two_scanners()
    registration = register(fixed, moving, Settings(**SMALL), load=loader(a_network))

    def as_itk(image):
        result = itk.image_from_array(image.array)
        result.SetSpacing(image.grid.spacing.tolist())
        result.SetOrigin(image.grid.origin.tolist())
        result.SetDirection(itk.matrix_from_array(np.ascontiguousarray(image.grid.direction)))
        return result

    def normalised(image):
        low, high = image.array.min(), np.sort(image.array, axis=None)[int(0.99 * image.array.size) - 1]
        values = torch.tensor((np.clip(image.array, low, high) - low) / (high - low))[None, None]
        return torch.nn.functional.interpolate(values, size=SHAPE, mode="trilinear")

    phi_AB, phi_BA = predict_maps(a_network, normalised(moving), normalised(fixed))
    torch.testing.assert_close(registration.phi_AB, phi_AB, atol=1e-5, rtol=0)
    identity = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, n) for n in SHAPE), indexing="ij"))[None]
    rng = np.random.default_rng(0)
    for phi, field, (here, there) in (
        (phi_AB, registration.forward, (fixed, moving)),
        (phi_BA, registration.backward, (moving, fixed)),
    ):
        composite = wrapper.create_itk_transform(phi, identity, as_itk(there), as_itk(here))
        ijk = rng.uniform(1, np.array(here.grid.size) - 2, (200, 3))
        points = here.grid.to_world(ijk)
        expected = np.array([list(composite.TransformPoint(point)) for point in points.tolist()])
        assert np.linalg.norm(expected - points, axis=1).mean() > 1
        np.testing.assert_allclose(field.transform_points(points), expected, atol=2e-3)


def test_a_network_starts_from_an_initial_transform(a_network):
    """An untrained network is the identity: what comes out is the initial transform, sheared or not."""
    for unet in a_network.unets:
        torch.nn.init.zeros_(unet.lastConv.weight)
    fixed, moving = two_scanners()
    initial = np.eye(4)
    initial[:3, :3] = np.array([[0.9, -0.3, 0.1], [0.2, 1.0, 0.0], [0.0, 0.1, 1.1]])
    initial[:3, 3] = moving.grid.centre - initial[:3, :3] @ fixed.grid.centre
    registration = register(fixed, moving, Settings(**SMALL), initial=initial, load=loader(a_network))
    points = fixed.grid.to_world(np.random.default_rng(1).uniform(0, 29, (100, 3)))
    expected = apply_affine(initial, points)
    np.testing.assert_allclose(registration.forward.transform_points(points), expected, atol=1e-3)
    assert registration.backward.grid.is_orthogonal
    inside = moving.grid.contains(expected)
    assert inside.sum() > 50
    back = registration.backward.transform_points(expected[inside])
    np.testing.assert_allclose(back, points[inside], atol=1e-2)


def test_a_network_starts_where_its_card_says_and_is_refined_on_the_fields_lattice(a_network, monkeypatch):
    a_network.shape = (20, 22, 24)
    fixed, moving = two_scanners()
    plain = register(fixed, moving, Settings(**SMALL), load=loader(a_network, "centre"))
    assert plain.provenance["alignment"].startswith("centre")
    monkeypatch.setattr(room, "refine", lambda pair, *maps, **options: maps)
    refined = register(fixed, moving, Settings(**SMALL, refine="field"), load=loader(a_network, "centre"))
    assert (refined.fixed_lattice.spacing < plain.fixed_lattice.spacing).all()
    inner = fixed.grid.to_world(np.random.default_rng(1).uniform(12, 18, (200, 3)))
    away = np.linalg.norm(plain.forward.transform_points(inner) - apply_affine(plain.linear, inner), axis=1)
    apart = np.linalg.norm(refined.forward.transform_points(inner) - plain.forward.transform_points(inner), axis=1)
    assert away.mean() > 1
    assert apart.mean() < 0.05 * away.mean()


@pytest.mark.slow
def test_a_networks_maps_are_refined_and_its_weights_stay(a_network):
    fixed, moving = two_scanners()
    weights = {name: value.clone() for name, value in a_network.state_dict().items()}
    plain = register(fixed, moving, Settings(**SMALL), load=loader(a_network))
    refined = register(fixed, moving, Settings(**SMALL, refine="field", steps=5), load=loader(a_network))
    load, asked = loader(a_network), []

    def spied(name, **options):
        asked.append(options["trainable"])
        return load(name, **options)

    tuned = register(fixed, moving, Settings(**SMALL, refine="network", steps=1), load=spied)
    assert asked == [True]
    for other in (refined, tuned):
        assert not torch.equal(other.phi_AB, plain.phi_AB)
    assert tuned.provenance["similarity"] == "lncc"
    for name, value in a_network.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_labels_of_one_image_alone_are_refused(a_phantom):
    with pytest.raises(InputError, match="both"):
        register(a_phantom.fixed, a_phantom.moving, QUICK, fixed_labels=a_phantom.fixed_segmentation)
    stranger = Segmentation.from_labels(
        Image(np.ones(a_phantom.moving.grid.shape, np.uint8), a_phantom.moving.grid, "other")
    )
    with pytest.raises(InputError, match="same name"):
        register(
            a_phantom.fixed,
            a_phantom.moving,
            QUICK,
            fixed_labels=a_phantom.fixed_segmentation,
            moving_labels=stranger,
        )


def test_padding_carries_the_same_map_beyond_the_image(a_phantom, a_registration):
    """The transform reaches further and changes nowhere that it was."""
    padded = register(a_phantom.fixed, a_phantom.moving, dataclasses.replace(QUICK, padding=25.0))
    grid = a_phantom.fixed.grid
    inside = grid.to_world(np.random.default_rng(0).uniform(0, np.array(grid.size) - 1, (200, 3)))
    np.testing.assert_allclose(
        padded.forward.transform_points(inside), a_registration.forward.transform_points(inside), atol=1e-3
    )
    beyond = grid.centre + (grid.corners(faces=True) - grid.centre) * (1 + 20 / np.linalg.norm(grid.extent / 2))
    assert padded.forward.grid.contains(beyond).all()
    assert not a_registration.forward.grid.contains(beyond).any()
