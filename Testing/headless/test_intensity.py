"""intensity.py against unigradicon's `preprocess`, and its guesses on real images."""

from pathlib import Path

import numpy as np
import pytest

from IconRegistrationLib.errors import InputError
from IconRegistrationLib.registration.intensity import background_value, guess_modality, normalise
from IconRegistrationLib.spatial.geometry import Grid, Image

DATA = Path(__file__).parents[3] / "shared" / "data"
#: Parts of the names of label maps (their folder's among them) and of a 4D series: they are not scans.
NOT_SCANS = ("mask", "gt.", "glm", "tissues", "seg", "labels.", "labels/", "lobes", "levels", "img4d")
SCANS = [
    path
    for path in sorted(DATA.glob("*/**/*"))
    if path.name.endswith((".nii.gz", ".mha")) and not any(word in path.as_posix().lower() for word in NOT_SCANS)
]


def an_image(array, name="image"):
    return Image(array, Grid(array.shape, np.eye(4)), name)


def a_ct(seed=0, shape=(12, 14, 16)):
    """Air around a body of fat, soft tissue and bone, in HU."""
    rng = np.random.default_rng(seed)
    array = np.full(shape, -1000.0)
    array[3:-3, 3:-3, 3:-3] = rng.choice([-100, 40, 60, 900], size=array[3:-3, 3:-3, 3:-3].shape)
    return an_image((array + rng.normal(0, 15, shape)).round().astype(np.int16), "ct")


def an_mr(seed=0, dtype=np.uint16):
    rng = np.random.default_rng(seed)
    return an_image(rng.gamma(2, 40, (11, 13, 10)).clip(0, 255).astype(dtype), "mr")


def published(image, modality, mask=None, **options):
    itk = pytest.importorskip("itk")
    unigradicon = pytest.importorskip("unigradicon")
    if mask is not None:
        mask = itk.image_from_array(mask.astype(np.int16))
    return itk.array_from_image(unigradicon.preprocess(itk.image_from_array(image.array), modality, mask, **options))


@pytest.mark.parametrize("options", [{}, {"ct_window": (-160, 240)}])
def test_ct_as_published(options):
    image = a_ct()
    np.testing.assert_allclose(normalise(image, "ct", **options), published(image, "ct", **options), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("options", [{}, {"quantile_range": (0.02, 0.9)}, {"quantile_range": (0, 1)}])
def test_mr_as_published(dtype, options):
    image = an_mr(dtype=dtype)
    np.testing.assert_allclose(normalise(image, "mri", **options), published(image, "mri", **options), atol=1e-6)


def test_mask_as_published():
    image = an_mr()
    mask = np.random.default_rng(1).integers(-1, 3, image.array.shape)
    ours = normalise(image, "mri", mask)
    np.testing.assert_allclose(ours, published(image, "mri", mask), atol=1e-6)
    assert (ours[mask <= 0] == 0).all()
    assert (ours[mask > 0] > 0).any()


def test_the_input_is_left_alone():
    image = an_image(an_mr().array.astype(np.float32))
    before = image.array.copy()
    normalise(image, "mri")
    np.testing.assert_array_equal(image.array, before)


@pytest.mark.parametrize(
    ("image", "arguments", "message"),
    [
        (a_ct(), {"modality": "pet"}, "'pet'"),
        (a_ct(), {"modality": "ct", "ct_window": (100, 100)}, "100 .. 100"),
        (an_mr(), {"modality": "mri", "quantile_range": (0.9, 0.1)}, "must rise"),
        (an_mr(), {"modality": "mri", "quantile_range": (0.5, 0.5001)}, "wider"),
        (an_mr(), {"mask": np.ones((2, 2, 2))}, "mask"),
    ],
)
def test_what_cannot_be_normalised_is_named(image, arguments, message):
    with pytest.raises(InputError, match=message):
        normalise(image, **arguments)


def test_an_almost_empty_mr_is_refused():
    array = np.zeros((10, 10, 10), np.uint16)
    array[5, 5, :5] = 700  # half a percent
    with pytest.raises(InputError, match="99 %"):
        normalise(an_image(array), "mri")
    assert normalise(an_image(array), "mri", quantile_range=(0, 1)).max() == 1


def test_modalities_are_told_apart():
    ct = a_ct().array
    assert guess_modality(an_image(ct)) == "ct"
    padded = ct.copy()
    padded[:, :, :2] = -3024
    assert guess_modality(an_image(padded)) == "ct"
    assert guess_modality(an_image(ct[3:-3, 3:-3, 3:-3])) == "ct", "a crop without air"
    assert guess_modality(an_image((ct.astype(int) + 1024).clip(0).astype(np.uint16))) == "mri", "documented"
    mr = an_mr().array
    assert guess_modality(an_image(mr)) == "mri"
    assert guess_modality(an_image(mr.astype(np.uint8))) == "mri"
    standardised = ((mr - mr.mean()) / mr.std()).astype(np.float32)
    assert guess_modality(an_image(standardised)) == "mri"
    ripples = mr.astype(np.float32) * 10
    ripples[0, 0, :3] = -700
    assert guess_modality(an_image(ripples)) == "mri"
    phase = np.random.default_rng(0).integers(-4096, 4096, (10, 10, 10)).astype(np.int16)
    assert guess_modality(an_image(phase)) == "mri"


@pytest.mark.skipif(not SCANS, reason="the public sample images are not beside the checkout")
@pytest.mark.parametrize("path", SCANS, ids=lambda path: path.name)
def test_real_modalities(path):
    """One CT in Hounsfield units; what is stored as bytes (mouse CT, ultrasound) and every MR are normalised as MR."""
    itk = pytest.importorskip("itk")
    image = an_image(itk.array_from_image(itk.imread(str(path))))
    assert guess_modality(image) == ("ct" if path.name.startswith("ct") else "mri")


def test_background():
    ct = a_ct().array
    assert background_value(an_image(np.maximum(ct, -1010))) == -1010
    assert background_value(an_image(np.where(ct < -900, -2048, ct))) == -1024
    assert background_value(an_image(np.maximum(ct, -150)), "ct") == -1000
    mr = an_mr().array
    assert background_value(an_image(mr + np.uint16(3))) == mr.min() + 3
    assert background_value(an_image(mr), "ct") == mr.min(), "an unsigned type holds no air"
