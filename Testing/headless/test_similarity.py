"""similarity.py against icon_registration's losses: values and gradients, with and without masks."""

from pathlib import Path

import pytest
import torch

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.registration.similarities import SIMILARITIES, find_similarity, make_similarity
from IconRegistrationLib.registration.similarity import LNCC, MINDSSC

SHAPES = [(24, 31, 27), (9, 40, 13)]


def smooth_images(shape, seed=0, count=2):
    """Images [1, 1, D, H, W] in [0, 1] with flat regions (clipped), as after normalisation."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 6, 6, 6, generator=generator)
    fine = torch.rand(count, 1, *shape, generator=generator) * 0.1
    images = torch.nn.functional.interpolate(coarse, size=shape, mode="trilinear") * 1.6 - 0.4 + fine
    return images.clamp(0, 1).split(1)


def published(name):
    losses = pytest.importorskip("icon_registration").losses
    return {
        "lncc": lambda: losses.LNCC(sigma=5),
        "lncc2": lambda: losses.SquaredLNCC(sigma=5),
        "mind": lambda: losses.MINDSSC(radius=2, dilation=2),
    }[name]()


def value_and_gradient(loss, warped, *rest):
    warped = warped.clone().requires_grad_()
    value = loss(warped, *rest)
    value.backward()
    return value.item(), warped.grad


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SIMILARITIES)
def test_values_and_gradients_are_the_published_ones(name, shape, masked):
    warped, fixed = smooth_images(shape)
    mask = [(smooth_images(shape, 3)[0] > 0.4).float() * 2] if masked else []
    ours = make_similarity(name)
    expected, expected_gradient = value_and_gradient(published(name), warped, fixed, *mask)
    for _ in range(2):  # the second call uses what was kept of the fixed image
        value, gradient = value_and_gradient(ours, warped, fixed, *mask)
        assert value == pytest.approx(expected, abs=1e-5)
        assert (gradient - expected_gradient).abs().max() <= 1e-5 * max(1, expected_gradient.abs().max() * 100)
        assert (gradient - expected_gradient).norm() <= 2e-3 * expected_gradient.norm()


@pytest.mark.parametrize("name", SIMILARITIES)
def test_another_fixed_image_is_noticed(name):
    """One object serves many pairs: nothing kept of the first fixed image may enter the second loss."""
    warped, first = smooth_images(SHAPES[0])
    second = smooth_images(SHAPES[0], 9)[1]
    reused = make_similarity(name)
    reused(warped, first)
    assert reused(warped, second).item() == pytest.approx(make_similarity(name)(warped, second).item(), abs=1e-7)
    smaller = smooth_images(SHAPES[1])
    assert reused(*smaller).item() == pytest.approx(make_similarity(name)(*smaller).item(), abs=1e-7)


@pytest.mark.parametrize("name", ["lncc", "lncc2"])
def test_gradient_with_respect_to_the_fixed_image(name):
    warped, fixed = smooth_images(SHAPES[0])
    fixed.requires_grad_()
    expected = torch.autograd.grad(published(name)(warped, fixed), fixed)[0]
    gradient = torch.autograd.grad(make_similarity(name)(warped, fixed), fixed)[0]
    assert (gradient - expected).norm() <= 2e-3 * expected.norm()


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_other_window_is_what_all_of_them_show_there(shape, within):
    images = [image.requires_grad_() for image in smooth_images(shape)]
    sparse, dense = (LNCC(2, squared=True, within=within, every=every) for every in (2, 1))
    found, expected = sparse.compare(*images), dense.compare(*images)[..., ::2, ::2, ::2]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    for image in images:
        gradient, reference = (torch.autograd.grad(x.sum(), image, retain_graph=True)[0] for x in (found, expected))
        assert (gradient - reference).norm() <= 1e-5 * reference.norm()
    mask = (images[0] > 0.4).detach().float()
    assert sparse(*images, mask).item() == pytest.approx(found[mask[..., ::2, ::2, ::2] > 0].mean().item(), rel=1e-5)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_a_match_is_best_and_the_mask_alone_counts(name):
    loss = make_similarity(name)
    warped, fixed = smooth_images(SHAPES[0])
    assert loss(fixed, fixed).item() < 0.2 * loss(warped, fixed).item()
    half = torch.zeros_like(fixed)
    half[:, :, :8] = 1
    changed = warped.clone()
    changed[:, :, 21:] = 0.5  # beyond the window of the masked part
    difference = abs(loss(changed, fixed, half).item() - loss(warped, fixed, half).item())
    # MIND-SSC clamps by the mean variance of the whole image: a distant change may enter there, hardly
    assert difference < (1e-3 if name == "mind" else 1e-6)


def test_unknown_names_are_answered_with_the_known_ones():
    for function in (make_similarity, find_similarity):
        with pytest.raises(InputError, match=r"'ssd'.*lncc, lncc2, mind"):
            function("ssd")


def test_the_table_in_the_docs_is_that_of_the_code():
    page = (Path(__file__).parents[2] / "docs" / "refinement.md").read_text(encoding="utf-8")
    section = page.partition("## The similarities")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        [
            *(f"`{name}`", entry.title, entry.summary, "two" if entry.two_contrasts else "one"),
            *(f"{number:g}" for number in (entry.seconds, entry.bytes_per_sample, entry.gpu_bytes_per_sample)),
        ]
        for name, entry in SIMILARITIES.items()
    ]


def test_a_constant_image_has_descriptors_and_tells_nothing():
    similarity = MINDSSC(radius=1, dilation=1)
    features = similarity.features(torch.full((1, 1, 6, 7, 8), 0.3))
    assert torch.equal(features, torch.ones(1, 12, 6, 7, 8))
    assert not similarity.informative(features).any()
