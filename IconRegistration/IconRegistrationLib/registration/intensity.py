"""From scanner intensities to the [0, 1] that the networks were trained on, as unigradicon 1.0.6 does it."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from ..spatial.geometry import Image

#: Hounsfield units that the networks see: air to dense bone.
CT_WINDOW = (-1000.0, 1000.0)
#: Values that scanners write for air and for "outside the reconstruction circle", down to -3024.
_LOWEST_CT_VALUE = -3100


def guess_modality(image: Image) -> str:
    """ "ct" if the values look like Hounsfield units, else "mri".

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
        raise InputError(f"{image.name}: no modality is called {modality!r}; choose auto, ct or mri.")
    return modality


def _quantile(values: np.ndarray, q: float) -> float:
    """The int(q n)-th smallest of n values, without interpolation: unigradicon's definition."""
    k = max(1, min(int(q * values.size), values.size))
    return float(np.partition(values.ravel(), k - 1)[k - 1])


def _range(image: Image, values: np.ndarray, modality: str, ct_window, quantile_range) -> tuple[float, float]:
    """The two values that become 0 and 1."""
    if modality == "ct":
        low, high = CT_WINDOW if ct_window is None else ct_window
        if not low < high:
            raise InputError(f"The CT window {low:g} .. {high:g} HU is empty; its second value must be the larger.")
        return float(low), float(high)
    if quantile_range is None:
        low, high = float(values.min()), _quantile(values, 0.99)
    else:
        if not 0 <= quantile_range[0] < quantile_range[1] <= 1:
            raise InputError(f"The quantile range {tuple(quantile_range)} must rise within 0 .. 1.")
        low, high = (_quantile(values, q) for q in quantile_range)
    if not low < high:
        raise InputError(
            f"{image.name}: 99 % of the voxels have the same value {low:g}, so there is nothing to normalise; crop the "
            "image to its content or give a quantile range that reaches it."
            if quantile_range is None
            else f"{image.name}: the quantiles {tuple(quantile_range)} are both {low:g}; choose a wider range."
        )
    return low, high


def normalise(
    image: Image,
    modality: str = "auto",
    mask: np.ndarray | None = None,
    ct_window: tuple[float, float] | None = None,
    quantile_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """float32 [k, j, i] in [0, 1].

    CT is clamped to `ct_window` in HU (-1000..1000); MR to its minimum .. 99th percentile, or to the two quantiles of
    `quantile_range`. Then both are scaled linearly, and voxels where `mask` [k, j, i] is not positive become 0.
    Raises InputError for an unknown modality, an empty range, or a mask of another shape.
    """
    modality = _modality(image, modality)
    values = image.array.astype(np.float32)
    low, high = _range(image, values, modality, ct_window, quantile_range)
    np.clip(values, low, high, out=values)
    values -= np.float32(low)
    values *= np.float32(1 / (high - low))
    if mask is not None:
        if mask.shape != values.shape:
            raise InputError(f"The mask of {image.name} has shape {mask.shape}, the image {values.shape}; resample it.")
        values *= mask > 0
    return values


def background_value(image: Image, modality: str = "auto") -> float:
    """The value, in the image's own units, of "nothing there": what fills a warped image beyond the moving one.

    CT: air. The image's own minimum where it is air (-1024..-1000), so that the seam is invisible; a lower minimum is
    padding, a higher one belongs to a crop of tissue, and both give the nearer end of that interval. MR, and a CT in
    an unsigned type that cannot hold air: the minimum, which is also what normalises to 0.
    """
    minimum = float(image.array.min())
    if _modality(image, modality) == "ct" and not np.issubdtype(image.array.dtype, np.unsignedinteger):
        return float(np.clip(minimum, -1024, -1000))
    return minimum
