"""From scanner intensities to the [0, 1] that the networks were trained on, as unigradicon 1.0.6 does it."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image
from ..text import tr

#: Hounsfield units that the networks see: air to dense bone.
CT_WINDOW = (-1000.0, 1000.0)
#: Values that scanners write for air and for "outside the reconstruction circle", down to -3024.
_LOWEST_CT_VALUE = -3100


def guess_modality(image: Image) -> str:
    """Guess "ct" if the values look like Hounsfield units, else "mri".

    CT is recognised by what no MR has: air, lung or gas (1 % of the voxels at -500 or less), or, in a crop without
    any, fat and soft tissue (1 % below -20, nine tenths in -250..1500). A CT stored with an offset of 1024, hence
    without negative values, cannot be told from an MR and counts as "mri": that normalisation adapts to any offset,
    where a window in the wrong place would blank the image. Every rule is about counts, so single odd voxels
    (metal, padding, resampling ripples) change nothing.
    """
    values = image.array
    if values.min() >= 0 or values.min() < _LOWEST_CT_VALUE:
        return "mri"
    if np.count_nonzero(values <= -500) >= 0.01 * values.size:
        return "ct"
    negative = np.count_nonzero(values < -20)
    soft = np.count_nonzero((values >= -250) & (values <= 1500))
    return "ct" if negative >= 0.01 * values.size and soft >= 0.9 * values.size else "mri"


def _modality(image: Image, modality: str) -> str:
    if modality == "auto":
        return guess_modality(image)
    if modality not in ("ct", "mri"):
        raise InputError(
            tr(
                "{name}: no modality is called {modality}; choose auto, ct or mri.",
                name=image.name,
                modality=repr(modality),
            )
        )
    return modality


def _quantile(values: np.ndarray, q: float) -> float:
    """Return the int(q n)-th smallest of n values, without interpolation: unigradicon's definition."""
    k = max(1, min(int(q * values.size), values.size))
    return float(np.partition(values.ravel(), k - 1)[k - 1])


def _range(image: Image, values: np.ndarray, modality: str, ct_window, quantile_range) -> tuple[float, float]:
    """Return the two values that become 0 and 1."""
    if modality == "ct":
        low, high = CT_WINDOW if ct_window is None else ct_window
        if not low < high:
            raise InputError(
                tr(
                    "The CT window {low:g} .. {high:g} HU is empty; its second value must be the larger.",
                    low=low,
                    high=high,
                )
            )
        return float(low), float(high)
    if quantile_range is None:
        low, high = float(values.min()), _quantile(values, 0.99)
    else:
        if not 0 <= quantile_range[0] < quantile_range[1] <= 1:
            raise InputError(
                tr("The quantile range {range} must rise within 0 .. 1.", range=str(tuple(quantile_range)))
            )
        low, high = (_quantile(values, q) for q in quantile_range)
    if not low < high:
        if quantile_range is None:
            raise InputError(
                tr(
                    "{name}: 99 % of the voxels have the same value {value:g}, so there is nothing to normalise; crop "
                    "the image to its content or give a quantile range that reaches it.",
                    name=image.name,
                    value=low,
                )
            )
        raise InputError(
            tr(
                "{name}: the quantiles {range} are both {value:g}; choose a wider range.",
                name=image.name,
                range=str(tuple(quantile_range)),
                value=low,
            )
        )
    return low, high


def normalise(
    image: Image,
    modality: str = "auto",
    mask: np.ndarray | None = None,
    ct_window: tuple[float, float] | None = None,
    quantile_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """Scale the values of an image to [0, 1] as unigradicon does.

    CT is clamped to a window, MR to its minimum and 99th percentile; then both are scaled linearly.

    Parameters
    ----------
    image : Image
        A volume [k, j, i].
    modality : str
        "ct", "mri", or "auto" as `guess_modality` finds.
    mask : np.ndarray, optional
        [k, j, i]; voxels where it is not positive become 0.
    ct_window : tuple[float, float], optional
        HU that become 0 and 1; -1000 and 1000 unless given.
    quantile_range : tuple[float, float], optional
        Quantiles of an MR, in [0, 1], that become 0 and 1.

    Returns
    -------
    np.ndarray
        float32 [k, j, i] in [0, 1].

    Raises
    ------
    InputError
        For an unknown modality, an empty range, or a mask of another shape.

    References
    ----------
    `unigradicon.preprocess` of unigradicon 1.0.6.

    Examples
    --------
    >>> from IconRegistrationLib.spatial.geometry import Grid, Image
    >>> array = np.linspace(-1200, 1200, 5).reshape(1, 1, 5)
    >>> normalise(Image(array, Grid(array.shape, np.eye(4)), "head"), "ct").round(2).ravel()
    array([0. , 0.2, 0.5, 0.8, 1. ], dtype=float32)
    """
    modality = _modality(image, modality)
    values = image.array.astype(np.float32)
    low, high = _range(image, values, modality, ct_window, quantile_range)
    np.clip(values, low, high, out=values)
    values -= np.float32(low)
    values *= np.float32(1 / (high - low))
    if mask is not None:
        if mask.shape != values.shape:
            raise InputError(
                tr(
                    "The mask of {name} has shape {mask_shape}, the image {shape}; resample it.",
                    name=image.name,
                    mask_shape=str(mask.shape),
                    shape=str(values.shape),
                )
            )
        values *= mask > 0
    return values


def background_value(image: Image, modality: str = "auto") -> float:
    """Return the value of the background, in the image's own units, which fills a warped image beyond the moving one.

    CT: air. The image's own minimum where it is air (-1024..-1000), so that the seam is invisible; a lower minimum is
    padding, a higher one belongs to a crop of tissue, and both give the nearer end of that interval. MR, and a CT in
    an unsigned type that cannot hold air: the minimum, which is also what normalises to 0.
    """
    minimum = float(image.array.min())
    if _modality(image, modality) == "ct" and not np.issubdtype(image.array.dtype, np.unsignedinteger):
        return float(np.clip(minimum, -1024, -1000))
    return minimum
