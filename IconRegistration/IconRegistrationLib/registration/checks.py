"""What makes a pair impossible to register, found before any work: one sentence with the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import InputError
from ..machine import physical_memory
from ..spatial.geometry import Grid, Image, Segmentation
from ..spatial.lattice import REFINEMENT_VOXELS
from .similarities import SIMILARITIES

#: Fewest voxels along an axis from which a deformation can be told.
FEWEST_VOXELS = 4

#: Bytes per voxel that warping and measuring one image take beside the image itself: float32 copies of fixed, moving
#: and warped, the measures' maps.
BYTES_PER_VOXEL = 24

#: Bytes per lattice sample that a refinement takes at its peak, with the similarity that takes more.
BYTES_PER_SAMPLE = max(entry.bytes_per_sample for entry in SIMILARITIES.values())


def check_pair(
    fixed: Image,
    moving: Image,
    *,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    fixed_labels: Segmentation | None = None,
    moving_labels: Segmentation | None = None,
    look: Callable[[Image], None] | None = None,
) -> None:
    """Raises InputError if one of these cannot take part in a registration.

    look: `check_image`, or what remembers its answers.
    """
    check_memory(fixed.grid, moving.grid)
    for image, mask, labels in ((fixed, fixed_mask, fixed_labels), (moving, moving_mask, moving_labels)):
        (look or check_image)(image)
        if mask is not None:
            check_mask(mask, image)
        if labels is not None:
            check_overlap(labels, image)
    if (fixed_labels is None) != (moving_labels is None):
        raise InputError("Labels guide the registration only if both images have them; give both segmentations.")
    if fixed_labels is not None and not set(fixed_labels.by_name()) & set(moving_labels.by_name()):
        raise InputError(
            f"No segment has the same name in both segmentations ({_listed(fixed_labels)} and {_listed(moving_labels)}"
            "); rename those that belong together, or register without their guidance."
        )


def check_image(image: Image) -> None:
    """A volume of finite, varying values with at least FEWEST_VOXELS voxels along each axis."""
    array = image.array
    if array.ndim != 3:
        raise InputError(f"{image.name} has {array.ndim} dimensions {array.shape}; a volume with three is needed.")
    if min(array.shape) < FEWEST_VOXELS:
        raise InputError(
            f"{image.name} has {' x '.join(map(str, image.grid.size))} voxels; at least {FEWEST_VOXELS} along every "
            "axis are needed, so choose a volume instead of single slices."
        )
    if array.dtype.kind not in "biuf":
        raise InputError(f"{image.name} has values of type {array.dtype}; convert it to numbers.")
    if array.dtype.kind == "f":
        wrong = array.size - np.count_nonzero(np.isfinite(array))
        if wrong:
            raise InputError(
                f"{image.name} has {wrong} voxels that are not a number (NaN or infinite); replace them, for instance "
                "by the background value."
            )
    low, high = array.min(), array.max()
    if low == high:
        raise InputError(f"{image.name} is constant: every voxel is {low}. Choose a volume with content.")


def check_mask(mask: Image, image: Image) -> None:
    """Something is inside the mask, and it lies on the image."""
    if not np.any(mask.array):
        raise InputError(f"The mask {mask.name} is empty; mark what should count, or leave the mask away.")
    _check_boxes(mask.name, mask.grid, image)


def check_overlap(segmentation: Segmentation, image: Image) -> None:
    """A segmentation has segments and its grid lies on its image."""
    if not segmentation.segments:
        raise InputError(f"{segmentation.name} has no segments; leave it away or choose another segmentation.")
    _check_boxes(segmentation.name, segmentation.grid, image)


def _check_boxes(name: str, grid: Grid, image: Image) -> None:
    corners = image.grid.to_index(grid.corners(faces=True))
    low, high = corners.min(0), corners.max(0)
    if (high < -0.5).any() or (low > np.array(image.grid.size) - 0.5).any():
        apart = np.linalg.norm(grid.centre - image.grid.centre)
        raise InputError(
            f"{name} does not overlap {image.name}: their centres are {apart:.0f} mm apart. Was it drawn on another "
            "image? Choose the one that belongs to it."
        )


def estimate_memory(fixed: Grid, moving: Grid, samples: int = REFINEMENT_VOXELS["cpu"]) -> int:
    """Bytes that a field refinement of two such images needs, on lattices of `samples`."""
    voxels = int(np.prod(fixed.shape, dtype=object)) + int(np.prod(moving.shape, dtype=object))
    return voxels * BYTES_PER_VOXEL + samples * BYTES_PER_SAMPLE


def check_memory(fixed: Grid, moving: Grid) -> None:
    """The two images fit into this machine's memory, with what is computed from them."""
    there = physical_memory()
    needed = estimate_memory(fixed, moving)
    if there is not None and needed > there:
        raise InputError(
            f"Images of {_size(fixed)} and {_size(moving)} voxels need about {needed / 2**30:.0f} GiB of memory and "
            f"this machine has {there / 2**30:.0f} GiB; crop or resample them."
        )


def _size(grid: Grid) -> str:
    return " x ".join(map(str, grid.size))


def _listed(segmentation: Segmentation) -> str:
    return _some(tuple(segmentation.by_name()))


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
