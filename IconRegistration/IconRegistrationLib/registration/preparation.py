"""Make both images ready: intensities in [0, 1], sampled on the lattices that a network or the refinement works on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..spatial.geometry import Grid, Image, Segmentation
from ..spatial.lattice import REFINEMENT_VOXELS, linear_between, network_lattices, refinement_lattices, region_box
from ..spatial.sampling import coverage, sample, sample_mask, smooth_for
from .intensity import guess_modality, normalise
from .objective import RefinementPair
from .settings import Settings


@dataclass(frozen=True)
class PreparedImage:
    """One of the two images with its intensities normalised.

    Attributes
    ----------
    image : Image
        As it was given.
    values : np.ndarray
        [k, j, i] float32 in [0, 1].
    modality : str
        "ct" or "mri".
    mask : Image | None
        Where the image counts (non-zero), on a grid of its own.
    """

    image: Image
    values: np.ndarray
    modality: str
    mask: Image | None

    @classmethod
    def of(cls, image: Image, mask: Image | None, modality: str, settings: Settings) -> PreparedImage:
        """Normalise an image by its modality, which "auto" leaves to be guessed."""
        modality = guess_modality(image) if modality == "auto" else modality
        values = normalise(image, modality, ct_window=settings.ct_window, quantile_range=settings.quantile_range)
        return cls(image, values, modality, mask)

    def on(self, lattice: Grid, device: torch.device, *, antialias: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and mask on a lattice, [1, 1, D, H, W]; the mask also excludes unscanned voxels."""
        values = smooth_for(self.values, self.image.grid, lattice) if antialias else self.values
        on_lattice = torch.from_numpy(sample(values, self.image.grid, lattice))[None, None].to(device)
        return on_lattice, self.mask_on(lattice, device)

    def mask_on(self, lattice: Grid, device: torch.device) -> torch.Tensor:
        """Return [1, 1, D, H, W], 1 where the image was scanned and its mask, if any, lets it count."""
        seen = coverage(self.image.grid, lattice)
        if self.mask is not None:
            seen &= sample_mask(self.mask, lattice)
        if seen.all():
            return torch.ones(1, 1, 1, 1, 1, device=device).expand(1, 1, *lattice.shape)  # takes no memory
        return torch.from_numpy(seen.astype(np.float32))[None, None].to(device)


def refinement_pair(
    fixed: PreparedImage,
    moving: PreparedImage,
    linear: np.ndarray,
    region: Grid | None,
    settings: Settings,
    device: torch.device,
) -> RefinementPair:
    """Sample both images on lattices as fine as the budget allows, over what they share.

    Parameters
    ----------
    fixed, moving : PreparedImage
        The two images.
    linear : np.ndarray
        4x4, fixed mm -> moving mm (LPS).
    region : Grid | None
        A box in the fixed world to which the lattices are confined.
    settings : Settings
        Of which `spacing` is used, the distance of the samples in mm.
    device : torch.device
        Where the tensors are; its kind decides about the budget.
    """
    lattices = refinement_lattices(
        fixed.image.grid,
        moving.image.grid,
        linear,
        spacing=settings.spacing,
        voxels=REFINEMENT_VOXELS["cuda" if device.type == "cuda" else "cpu"],
        region=region,
    )
    images, masks = zip(
        *(side.on(lattice, device, antialias=True) for side, lattice in zip((fixed, moving), lattices, strict=True)),
        strict=True,
    )
    return RefinementPair(images[0], images[1], masks[0], masks[1], *lattices, linear)


def network_pair(
    fixed: PreparedImage,
    moving: PreparedImage,
    linear: np.ndarray | None,
    region: Grid | None,
    shape: Sequence[int],
    device: torch.device,
) -> RefinementPair:
    """Sample both images on the network's input lattices.

    Without a linear alignment both images are stretched to the input as published. With one, the moving image is seen
    on the fixed image's lattice, moved by it: the network's identity is then the alignment.
    A mask blanks the network's input outside of it, as published.

    Parameters
    ----------
    fixed, moving : PreparedImage
        The two images.
    linear : np.ndarray | None
        4x4, fixed mm -> moving mm (LPS); None to stretch both images to the input.
    region : Grid | None
        A box in the fixed world, to which the lattice is confined where there is a linear alignment.
    shape : Sequence[int]
        (D, H, W) of the network's input.
    device : torch.device
        Where the tensors are.
    """
    if linear is None:
        lattices = network_lattices(fixed.image.grid, moving.image.grid, shape)
        linear = linear_between(*lattices)
        values = [
            F.interpolate(torch.from_numpy(side.values)[None, None].to(device), size=tuple(shape), mode="trilinear")
            for side in (fixed, moving)
        ]
    else:
        box = fixed.image.grid if region is None else region_box(fixed.image.grid, region)
        lattices = box.with_shape(shape), box.with_shape(shape).moved(linear)
        values = [
            side.on(lattice, device, antialias=False)[0]
            for side, lattice in zip((fixed, moving), lattices, strict=True)
        ]
    masks = [side.mask_on(lattice, device) for side, lattice in zip((fixed, moving), lattices, strict=True)]
    for side, value, mask in zip((fixed, moving), values, masks, strict=True):
        if side.mask is not None:
            value *= mask
    return RefinementPair(values[0], values[1], masks[0], masks[1], *lattices, linear)


def with_labels(
    pair: RefinementPair, fixed: Segmentation | None, moving: Segmentation | None, thinned: bool
) -> RefinementPair:
    """Return the pair with the structures that both segmentations name, as shares of voxels.

    Parameters
    ----------
    pair : RefinementPair
        The images on their lattices.
    fixed, moving : Segmentation | None
        Both or neither, on grids of their own.
    thinned : bool
        Whether shares are those of every other sample along each axis.
    """
    if fixed is None or moving is None:  # check_pair: either both images have labels, or none
        return pair
    names = sorted(set(fixed.by_name()) & set(moving.by_name()))
    shape = [max(2, n // 2) if thinned else n for n in pair.fixed_lattice.shape]

    def shares(segmentation: Segmentation, lattice: Grid) -> torch.Tensor:
        layers = [sample(layer, segmentation.grid, lattice, order=0) for layer in segmentation.layers]
        result = torch.empty(1, len(names), *shape, device=pair.fixed.device)
        for channel, segment in enumerate(segmentation.by_name()[name] for name in names):
            inside = torch.from_numpy((layers[segment.layer] == segment.value).astype(np.float32))
            result[0, channel] = F.interpolate(inside[None, None], size=shape, mode="area")[0, 0]
        return result

    return dataclasses.replace(
        pair,
        fixed_labels=shares(fixed, pair.fixed_lattice),
        moving_labels=shares(moving, pair.moving_lattice),
    )
