"""The GradICON network of uniGradICON and multiGradICON: architecture, differentiable cascade, composition of maps.

Four U-Nets in a cascade (Tian et al., "GradICON", CVPR 2023; uniGradICON, MICCAI 2024): the first sees the images at
a quarter of the resolution, the second at half, the last two at the full one, each after the moving image was warped
by what came before. Every U-Net returns a displacement d_s on its own lattice, and the map is

    phi(x) = (id + d_0) o (id + d_1) o (id + d_2) o (id + d_3) (x)

Coordinates are those of `phi` everywhere: [0, 1] per axis, in axis order, 0 and 1 at the first and last sample.
Images are tensors [1, 1, D, H, W] in [0, 1]; A is the moving image, B the fixed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..errors import InputError
from ..spatial.trilinear import Frame, trilinear
from ..text import tr

#: Channels of the published U-Nets at full, 1/2, ... 1/32 resolution on the way down, and from 1/16 to full on the
#: way up (finest first).
DOWN_CHANNELS = (2, 16, 32, 64, 256, 512)

UP_CHANNELS = (16, 32, 64, 128, 256)

#: Paths of the four U-Nets in the published state dict, in the order in which they run.
STAGES = ("netPhi.netPhi.net.netPhi.net.net", "netPhi.netPhi.net.netPsi.net", "netPhi.netPsi.net", "netPsi.net")

#: How many times the images are halved for the lattice of each stage.
HALVINGS = (2, 1, 0, 0)

#: The error that rounding may make where a displacement is sampled, in [0, 1] per axis: 0.0004 samples at 175^3.
ROUNDING = 2e-6

#: And where an image in [0, 1] is.
IMAGE_ROUNDING = 5e-5

#: Planes that are computed at a time where all of them would take much memory, or more if that is so many samples.
SLAB, SLAB_SAMPLES = 8, 20_000


def identity_points(
    shape: Sequence[int], device: torch.device | str | None = None, planes: slice = slice(None)
) -> torch.Tensor:
    """Return the coordinates of the samples of a lattice.

    Parameters
    ----------
    shape : sequence of int
        (D, H, W), in samples.
    device : torch.device, optional
        Where the coordinates are needed.
    planes : slice
        Along D, for some planes only.

    Returns
    -------
    torch.Tensor
        [1, 3, D, H, W] in [0, 1] per axis.

    Examples
    --------
    >>> identity_points((2, 2, 3))[0, 2, 0, 0].tolist()
    [0.0, 0.5, 1.0]
    """
    # arange * spacing, as icon_registration computes it, so that both agree to the last bit
    axes = [torch.arange(n, dtype=torch.float32, device=device) * torch.tensor(1 / (n - 1)) for n in shape]
    return torch.stack(torch.meshgrid(axes[0][planes], *axes[1:], indexing="ij"))[None]


def sample_at(field: torch.Tensor, points: torch.Tensor, outside: str = "border") -> torch.Tensor:
    """Sample a field at points, trilinearly and differentiably.

    Parameters
    ----------
    field : torch.Tensor
        [N, C, d, h, w].
    points : torch.Tensor
        [N, 3, D, H, W], coordinates in [0, 1] per axis.
    outside : str
        "border" repeats the outermost sample, "zeros" fades to 0 within one sample.

    Returns
    -------
    torch.Tensor
        [N, C, D, H, W].
    """
    if len(field) > 1:  # in training; the batch itself is what a CPU runs in parallel
        grid = (2 * points.flip(1) - 1).movedim(1, -1)
        return F.grid_sample(field, grid, mode="bilinear", padding_mode=outside, align_corners=True)
    depth = points.shape[2]
    # On a CPU torch's 3D grid_sample runs in parallel over the batch only: one slab of points per thread.
    slabs = min(torch.get_num_threads(), depth) if points.device.type == "cpu" else 1
    grid = (2 * points[0].flip(0) - 1).movedim(0, -1)
    rows = -(-depth // slabs)
    grid = F.pad(grid, (0, 0) * 3 + (0, rows * slabs - depth)).reshape(slabs, rows, *grid.shape[1:])
    parts = F.grid_sample(
        field.expand(slabs, -1, -1, -1, -1), grid, mode="bilinear", padding_mode=outside, align_corners=True
    )
    return parts.transpose(0, 1).flatten(1, 2)[None, :, :depth]


def compose_cascade(displacements: Sequence[torch.Tensor], points: torch.Tensor | None = None) -> torch.Tensor:
    """Compose the displacements of a cascade to its map.

    On its own lattice a displacement needs no sampling, and on another lattice's samples it needs a resize only.

    Parameters
    ----------
    displacements : sequence of torch.Tensor
        d_0, d_1, ..., each [1, 3, d, h, w] in [0, 1] per axis, coarse to fine; the last is the first to act on a point.
    points : torch.Tensor, optional
        [1, 3, D, H, W]; the samples of the last displacement unless given.

    Returns
    -------
    torch.Tensor
        phi at the points, [1, 3, D, H, W] in [0, 1] per axis.
    """
    remaining = list(displacements)
    if points is None:
        last = remaining.pop()
        points = identity_points(last.shape[2:], last.device) + last
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (points, *remaining))
    for displacement in reversed(remaining):
        if differentiable:
            points = points + sample_at(displacement, points)
        else:
            points = points + trilinear(displacement, points, Frame.unit(displacement.shape[2:]), ROUNDING)
    return points


class UNet(nn.Module):
    """A residual U-Net, icon_registration's `UNet2`: [1, 2, D, H, W] -> displacement [1, 3, D, H, W], any size.

    Weights and their names are those of the published files.

    Parameters
    ----------
    down : sequence of int
        Channels at full, 1/2, 1/4, ... resolution on the way down; the first are those of the pair.
    up : sequence of int
        Channels on the way up, finest first.
    """

    def __init__(self, down: Sequence[int] = DOWN_CHANNELS, up: Sequence[int] = UP_CHANNELS):
        super().__init__()
        into = [d + u for d, u in zip(down[1:], (*up[1:], 0), strict=True)]
        self.downConvs = nn.ModuleList(nn.Conv3d(a, b, 3, stride=2, padding=1) for a, b in pairwise(down))
        self.upConvs = nn.ModuleList(
            nn.ConvTranspose3d(a, b, 4, stride=2, padding=1) for a, b in zip(into, up, strict=True)
        )
        self.batchNorms = nn.ModuleList(nn.BatchNorm3d(n) for n in up)
        self.lastConv = nn.Conv3d(down[0] + up[0], 3, 3, padding=1)
        nn.init.zeros_(self.lastConv.weight)  # an untrained network is the identity
        nn.init.constant_(cast(nn.Parameter, self.lastConv.bias), 0.0)

    def _encode(self, pair: torch.Tensor) -> list[torch.Tensor]:
        """Return activations at full, 1/2, ... resolution; each level adds its pooled input to its last channels."""
        levels = [pair]
        for convolution in self.downConvs:
            x = levels[-1]
            y = convolution(F.leaky_relu(x))
            pooled = F.avg_pool3d(x, 2, ceil_mode=True)
            levels.append(y + F.pad(pooled, (0,) * 6 + (y.shape[1] - pooled.shape[1], 0)))
        return levels

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """Compute the displacement for training and fine-tuning: differentiable, batch norm in its module's mode."""
        pair = in_fastest_layout(pair)
        levels = self._encode(pair)
        x = levels.pop()
        for step in reversed(range(len(self.upConvs))):
            if step == 0 and not self.batchNorms[0].training:
                with torch.autocast(x.device.type, enabled=False):  # a map needs more digits than bfloat16 has
                    return FinalStep(self).on(x.float(), pair)
            y = self.upConvs[step](F.leaky_relu(x))
            residual = F.interpolate(in_fastest_layout(x[:, : y.shape[1]]), scale_factor=2, mode="trilinear")
            y = self.batchNorms[step](y + residual)
            skip = levels.pop()
            x = torch.cat([crop(y, skip.shape[2:]), skip], 1)
        with torch.autocast(x.device.type, enabled=False):
            return self.lastConv(x.float()) / 10


def crop(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Return the first (d, h, w) samples of [N, C, D, H, W]."""
    d, h, w = shape
    return x[:, :, :d, :h, :w]


def fastest_layout(device: torch.device) -> torch.memory_format:
    """Return the memory layout in which a device convolves fastest (channels last: 1.5 times on a CPU)."""
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def in_fastest_layout(x: torch.Tensor) -> torch.Tensor:
    """Return the same values in the `fastest_layout` of their device."""
    return x.contiguous(memory_format=fastest_layout(x.device))


def slabs_of_planes(shape: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """Yield (start, stop, low, high): some planes at a time, and the same with the planes next to them.

    All have as many as can be: libraries prepare themselves for every new shape.

    Parameters
    ----------
    shape : sequence of int
        (D, H, W) in samples; planes are those along D.
    """
    depth, height, width = shape
    count = math.ceil(depth / max(SLAB, SLAB_SAMPLES // (height * width)))
    planes = math.ceil(depth / count)
    for start in range(0, depth, planes):
        stop = min(start + planes, depth)
        yield start, stop, max(start - 1, 0), min(stop + 1, depth)


def fold_batch_norm(
    convolution: nn.ConvTranspose3d, norm: nn.BatchNorm3d
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return weight, bias and scale [C, 1, 1, 1] with which a step up needs no batch norm.

    scale * (transposed_convolution(leaky(x)) + upsampled(x)) + shift
    """
    mean, variance = cast(torch.Tensor, norm.running_mean), cast(torch.Tensor, norm.running_var)
    scale = norm.weight / torch.sqrt(variance + norm.eps)
    bias = (cast(torch.Tensor, convolution.bias) - mean) * scale + norm.bias
    scale = scale.view(-1, 1, 1, 1)
    return convolution.weight * scale, bias, scale


def _transposed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Return `conv_transpose2d(x, weight, bias, stride=2)` for a kernel of 4, six times as fast."""
    into, out = weight.shape[:2]
    taps = weight.reshape(into, out, 2, 2, 2, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(-1, into, 2, 2)
    return F.pixel_shuffle(F.conv2d(x, taps, bias.repeat_interleave(4), padding=1), 2)


class FinalStep:
    """The last step up and `lastConv` of a U-Net in evaluation mode, as one; differentiable in its weights.

    Both are linear, so they act as one convolution of the activations at half the resolution whose output channels are
    the three components times the eight voxels of each cell. The 18 channels at full resolution, which cost most of
    the time and memory, exist beyond the outermost voxels only: `lastConv` sees zeros there, the one convolution goes
    on, and what that adds to the outermost voxels is taken off again.
    """

    def __init__(self, unet: UNet):
        convolution, norm = cast(nn.ConvTranspose3d, unet.upConvs[0]), cast(nn.BatchNorm3d, unet.batchNorms[0])
        self._weight, self._bias, self.scale = fold_batch_norm(convolution, norm)
        self.kept = len(self.scale)
        weight = unet.lastConv.weight / 10
        self._last_weight = weight[:, : self.kept]
        bias = cast(torch.Tensor, unet.lastConv.bias) / 10 + torch.einsum("ocxyz,c->o", self._last_weight, self._bias)
        self.cell_weight, self.cell_bias = in_fastest_layout(self._fused()), bias.repeat_interleave(8)
        # The pair's part of `lastConv`: each of the eight voxels of a cell sees 3^3 of the 4^3 in and around it.
        inside = product((0, 1), repeat=3)
        shifted = [F.pad(weight[:, self.kept :], (r, 1 - r, q, 1 - q, p, 1 - p)) for p, q, r in inside]
        self._pair_weight = torch.stack(shifted, 1).flatten(0, 1)

    def _fused(self) -> torch.Tensor:
        """Return the weight [24, C + c, 3, 3, 3] for the input (leaky(x), x[:c])."""
        # Enlarging by two is itself a transposed convolution with (1, 3, 3, 1) / 4 along each axis.
        last = self._last_weight
        tent = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=last.dtype, device=last.device)
        tent = tent[:, None, None] * tent[:, None] * tent
        enlarge = torch.diag_embed(self.scale.flatten())[..., None, None, None] * tent
        # Transposed convolution (kernel 4) then convolution (3) is a transposed convolution with a kernel of 6, ...
        kernel = F.conv3d(torch.cat([self._weight, enlarge]), last, padding=2)
        # ... of which an even or odd output voxel sees every second tap.
        taps = kernel.view(*kernel.shape[:2], 3, 2, 3, 2, 3, 2).flip(2, 4, 6)
        return taps.permute(1, 3, 5, 7, 0, 2, 4, 6).reshape(-1, len(kernel), 3, 3, 3)

    def convolved(self, padded: torch.Tensor) -> torch.Tensor:
        """Return [N, 24, d, h, w] of (leaky(x), x[:c]) with a voxel around it."""
        return F.conv3d(padded, self.cell_weight, self.cell_bias)

    def of_images(self, pair: torch.Tensor) -> torch.Tensor:
        """Return what the pair adds, [N, 24, d, h, w]; it has a voxel (or two, where it is odd) around it."""
        return F.conv3d(pair, self._pair_weight, stride=2)

    def on(self, x: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """Return [N, 3, D, H, W] of all activations x at half the resolution and the pair, differentiable."""
        activated, kept = F.leaky_relu(x), x[:, : self.kept]
        padded = [F.pad(activated, (1,) * 6), F.pad(in_fastest_layout(kept), (1,) * 6, mode="replicate")]
        (d, h, w), (depth, height, width) = x.shape[2:], pair.shape[2:]
        images = F.pad(pair, (1, 2 * w + 1 - width, 1, 2 * h + 1 - height, 1, 2 * d + 1 - depth))
        cells = self.convolved(torch.cat(padded, 1)) + self.of_images(images)
        cells = cells.contiguous().view(-1, 3, 2, 2, 2, d, h, w)
        fine = cells.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(-1, 3, 2 * d, 2 * h, 2 * w)
        result = crop(fine, pair.shape[2:])
        self.stop_at_faces(result, lambda axis, place: (activated.select(axis, place), kept.select(axis, place)))
        return result

    def stop_at_faces(self, result: torch.Tensor, plane_of: Callable) -> None:
        """Subtract what the last step's activations beyond the border contributed, in place.

        Parameters
        ----------
        result : torch.Tensor
            [N, 3, D, H, W].
        plane_of : callable
            plane_of(axis, 0 or -1) returns leaky(x) and x[:c] in the first (0) or last (-1) plane across an axis.
        """
        for axis in (2, 3, 4):
            across = [other for other in (2, 3, 4) if other != axis]
            height, width = (result.shape[other] + 2 for other in across)
            # The fine voxels one beyond the border see the outermost coarse ones only, through a single tap.
            for outermost, tap in ((0, 0), (-1, 3 - result.shape[axis] % 2)):
                activated, kept = plane_of(axis, outermost)
                beyond = _transposed(activated, self._weight.select(axis, tap), self._bias)
                kept = F.pad(kept * self.scale[..., 0], (1,) * 4, mode="replicate")
                beyond = beyond + F.interpolate(kept, scale_factor=2, mode="bilinear")[..., 1:-1, 1:-1]
                # an edge or corner belongs to the first of its faces
                inset = [int(other < axis) for other in across]
                beyond = beyond[..., inset[0] : height - inset[0], inset[1] : width - inset[1]]
                weight = self._last_weight.select(axis, 0 if outermost == 0 else 2)
                result.select(axis, outermost).sub_(F.conv2d(beyond, weight, padding=inset))


class GradICON(nn.Module):
    """The cascade of four U-Nets. `load_state_dict` takes the published file as it is.

    Parameters
    ----------
    shape : sequence of int
        (D, H, W) of the lattice in samples, 175^3 for the published weights; any other shape is allowed, the weights do
        not depend on it.
    down, up : sequence of int
        See `UNet`.

    Raises
    ------
    InputError
        For a lattice whose coarsest level would have no sample.
    """

    def __init__(
        self,
        shape: Sequence[int] = (175, 175, 175),
        down: Sequence[int] = DOWN_CHANNELS,
        up: Sequence[int] = UP_CHANNELS,
    ):
        super().__init__()
        smallest = 4 * 2 ** (len(up) - 1) + 1  # the coarsest level of the quarter-resolution U-Net still has a sample
        if len(shape) != 3 or min(shape) < smallest:
            raise InputError(
                tr(
                    "The network's lattice needs three axes of {smallest} samples or more, not {shape}.",
                    smallest=smallest,
                    shape=str(tuple(shape)),
                )
            )
        self.shape = tuple(int(n) for n in shape)
        for path in STAGES:
            _attach(self, path, UNet(down, up))

    @property
    def unets(self) -> list[UNet]:
        """The four U-Nets, coarse to fine."""
        return [cast(UNet, self.get_submodule(path)) for path in STAGES]

    def forward(
        self, moving: torch.Tensor, fixed: torch.Tensor, save_memory: bool = False, stages: int = len(STAGES)
    ) -> list[torch.Tensor]:
        """Compute the displacements d_0 .. d_3 for `compose_cascade`, differentiable in weights and images.

        Parameters
        ----------
        moving, fixed : torch.Tensor
            [N, 1, D, H, W] in [0, 1].
        save_memory : bool
            See `recomputing`.
        stages : int
            Only the first so many U-Nets, as a training begins.

        Returns
        -------
        list of torch.Tensor
            One [N, 3, d, h, w] per stage, in [0, 1] per axis.
        """
        run = recomputing if save_memory else directly
        displacements: list[torch.Tensor] = []
        moving_levels, fixed_levels = image_pyramid(moving), image_pyramid(fixed)
        for unet, level in list(zip(self.unets, HALVINGS, strict=True))[:stages]:
            displacements.append(run(_stage, unet, moving_levels[level], fixed_levels[level], list(displacements)))
        return displacements


def _stage(unet: UNet, moving: torch.Tensor, fixed: torch.Tensor, displacements: list) -> torch.Tensor:
    """Return the next displacement of a cascade, differentiable."""
    return unet(torch.cat([warp_by_cascade(moving, displacements), fixed], 1))


def recomputing(function: Callable, *arguments):
    """Call a function whose intermediate tensors are computed again in the backward pass instead of kept."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def directly(function: Callable, *arguments):
    """Call a function as it is, in place of `recomputing`."""
    return function(*arguments)


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """Make `module` root.a.b.c for the path "a.b.c"; containers on the way are made as needed."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(name, module)


def image_pyramid(image: torch.Tensor) -> list[torch.Tensor]:
    """Return the image [N, 1, D, H, W] at full, half and quarter resolution."""
    levels = [image]
    for _ in range(max(HALVINGS)):
        levels.append(F.avg_pool3d(levels[-1], 2, ceil_mode=True))
    return levels


def warp_by_cascade(image: torch.Tensor, displacements: Sequence[torch.Tensor]) -> torch.Tensor:
    """Pull `image` back by the cascade so far, on its own lattice."""
    if not displacements:
        return image
    *coarser, last = displacements
    if last.shape[2:] != image.shape[2:]:
        last = F.interpolate(last, size=image.shape[2:], mode="trilinear", align_corners=True)
    if torch.is_grad_enabled():
        return sample_at(image, compose_cascade([*coarser, last]))
    return evaluate_cascade([*coarser, last], image)


def evaluate_cascade(displacements: Sequence[torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the map of a cascade at the samples of its last displacement, or pull `image` back; without gradients.

    Some planes at a time: what the composition holds meanwhile is a multiple of the map.
    """
    *coarser, last = displacements
    shape = last.shape[2:]
    result = last.new_empty((len(last), 3 if image is None else image.shape[1], *shape))
    for start, stop, *_ in slabs_of_planes(shape):
        points = identity_points(shape, last.device, slice(start, stop)) + last[:, :, start:stop]
        points = compose_cascade(coarser, points)
        if image is not None:
            points = trilinear(image, points, Frame.unit(image.shape[2:]), IMAGE_ROUNDING)
        result[:, :, start:stop] = points
    return result
