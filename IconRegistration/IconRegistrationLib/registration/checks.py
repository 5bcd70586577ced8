"""What makes a pair impossible to register, found before any work: one sentence with the value and the remedy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import InputError
from ..machine import physical_memory
from ..spatial.geometry import Grid, Image, Segmentation
from ..spatial.lattice import REFINEMENT_VOXELS
from ..text import tr
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
    """Check that images, masks and labels can take part in a registration.

    Parameters
    ----------
    fixed, moving : Image
        The two images.
    fixed_mask, moving_mask : Image, optional
        Non-zero where the images count, on grids of their own.
    fixed_labels, moving_labels : Segmentation, optional
        Both or neither.
    look : Callable[[Image], None], optional
        `check_image`, or what remembers its answers.

    Raises
    ------
    InputError
        Naming the value that is wrong, and the remedy.
    """
    check_memory(fixed.grid, moving.grid)
    sides = (
        (fixed, fixed_mask, tr("fixed mask"), fixed_labels),
        (moving, moving_mask, tr("moving mask"), moving_labels),
    )
    for image, mask, role, labels in sides:
        (look or check_image)(image)
        if mask is not None:
            check_mask(mask, image, role)
        if labels is not None:
            check_overlap(labels, image)
    if (fixed_labels is None) != (moving_labels is None):
        raise InputError(tr("Labels guide the registration only if both images have them; give both segmentations."))
    if fixed_labels is None or moving_labels is None:
        return
    if not set(fixed_labels.by_name()) & set(moving_labels.by_name()):
        raise InputError(
            tr(
                "No segment has the same name in both segmentations ({fixed} and {moving}); rename those that belong "
                "together, or register without their guidance.",
                fixed=_listed(fixed_labels),
                moving=_listed(moving_labels),
            )
        )


def check_image(image: Image) -> None:
    """Check that a volume has finite, varying values and at least FEWEST_VOXELS voxels along each axis.

    Raises
    ------
    InputError
        Naming the image, what is wrong with it, and the remedy.
    """
    array = image.array
    if array.ndim != 3:
        raise InputError(
            tr(
                "{name} has {count} dimensions {shape}; a volume with three is needed.",
                name=image.name,
                count=array.ndim,
                shape=str(array.shape),
            )
        )
    if min(array.shape) < FEWEST_VOXELS:
        raise InputError(
            tr(
                "{name} has {size} voxels; at least {count} along every axis are needed, so choose a volume instead of "
                "single slices.",
                name=image.name,
                size=_size(image.grid),
                count=FEWEST_VOXELS,
            )
        )
    if array.dtype.kind not in "biuf":
        raise InputError(
            tr("{name} has values of type {type}; convert it to numbers.", name=image.name, type=str(array.dtype))
        )
    if array.dtype.kind == "f":
        wrong = array.size - np.count_nonzero(np.isfinite(array))
        if wrong:
            raise InputError(
                tr(
                    "{name} has {count} voxels that are not a number (NaN or infinite); replace them, for instance by "
                    "the background value.",
                    name=image.name,
                    count=wrong,
                )
            )
    low, high = array.min(), array.max()
    if low == high:
        raise InputError(
            tr("{name} is constant: every voxel is {value}. Choose a volume with content.", name=image.name, value=low)
        )


def check_mask(mask: Image, image: Image, role: str = "") -> None:
    """Check that a mask is finite, not empty, and overlaps its image; raise InputError otherwise.

    Parameters
    ----------
    mask, image : Image
        On grids of their own.
    role : str
        What messages call a mask that has no name of its own.
    """
    own = mask.name != Image.name or not role
    title = mask.name if own else role
    name = tr("mask {name}", name=mask.name) if own else role
    if mask.array.dtype.kind == "f":
        wrong = mask.array.size - np.count_nonzero(np.isfinite(mask.array))
        if wrong:
            raise InputError(
                tr(
                    "The {name} has {count} voxels that are not a number (NaN or infinite); replace them by 0 or 1.",
                    name=name,
                    count=wrong,
                )
            )
    if not np.any(mask.array):
        raise InputError(tr("The {name} is empty; mark what should count, or omit the mask.", name=name))
    _check_boxes(title, mask.grid, image)


def check_overlap(segmentation: Segmentation, image: Image) -> None:
    """Check that a segmentation has segments and overlaps its image; raise InputError otherwise."""
    if not segmentation.segments:
        raise InputError(tr("{name} has no segments; omit it or choose another segmentation.", name=segmentation.name))
    _check_boxes(segmentation.name, segmentation.grid, image)


def _check_boxes(name: str, grid: Grid, image: Image) -> None:
    corners = image.grid.to_index(grid.corners(faces=True))
    low, high = corners.min(0), corners.max(0)
    if (high < -0.5).any() or (low > np.array(image.grid.size) - 0.5).any():
        apart = np.linalg.norm(grid.centre - image.grid.centre)
        raise InputError(
            tr(
                "{name} does not overlap {image}: their centres are {distance:.0f} mm apart. Was it drawn on another "
                "image? Choose the one that belongs to it.",
                name=name,
                image=image.name,
                distance=float(apart),
            )
        )


def estimate_memory(fixed: Grid, moving: Grid, samples: int = REFINEMENT_VOXELS["cpu"]) -> int:
    """Estimate the bytes that a field refinement of two such images needs, on lattices of `samples` samples."""
    voxels = int(np.prod(fixed.shape, dtype=object)) + int(np.prod(moving.shape, dtype=object))
    return voxels * BYTES_PER_VOXEL + samples * BYTES_PER_SAMPLE


def check_memory(fixed: Grid, moving: Grid) -> None:
    """Check that two images and all results fit into this machine's memory; raise InputError otherwise."""
    available = physical_memory()
    needed = estimate_memory(fixed, moving)
    if available is not None and needed > available:
        raise InputError(
            tr(
                "Images of {fixed} and {moving} voxels need about {needed:.0f} GiB of memory and this machine has "
                "{available:.0f} GiB; crop or resample them.",
                fixed=_size(fixed),
                moving=_size(moving),
                needed=needed / 2**30,
                available=available / 2**30,
            )
        )


def _size(grid: Grid) -> str:
    return " x ".join(map(str, grid.size))


def _listed(segmentation: Segmentation) -> str:
    return first_names(tuple(segmentation.by_name()))


def first_names(names: tuple[str, ...]) -> str:
    """Return the first three of some names, for a sentence."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
