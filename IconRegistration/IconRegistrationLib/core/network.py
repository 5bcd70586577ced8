"""The GradICON network of uniGradICON and multiGradICON, written for inference.

Four U-Nets in a cascade (Tian et al., "GradICON", CVPR 2023; uniGradICON, MICCAI 2024): the first sees the images at
a quarter of the resolution, the second at half, the last two at the full one, each after the moving image was warped
by what came before. Every U-Net returns a displacement d_s on its own lattice, and the map is

    phi(x) = (id + d_0) o (id + d_1) o (id + d_2) o (id + d_3) (x)

Coordinates are those of `phi` everywhere: [0, 1] per axis, in axis order, 0 and 1 at the first and last sample.
Images are tensors [1, 1, D, H, W] in [0, 1]; A is the moving image, B the fixed one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .errors import DeviceMemoryError, InputError
from .trilinear import Frame, trilinear

#: Channels of the published U-Nets at full, 1/2, ... 1/32 resolution on the way down, and from 1/16 to full on the
#: way up (finest first).
DOWN_CHANNELS = (2, 16, 32, 64, 256, 512)
UP_CHANNELS = (16, 32, 64, 128, 256)
#: Where the four U-Nets are in the published state dict, in the order in which they run.
STAGES = ("netPhi.netPhi.net.netPhi.net.net", "netPhi.netPhi.net.netPsi.net", "netPhi.netPsi.net", "netPsi.net")
#: How much coarser than the images the lattice of each stage is, and its part of the time.
_HALVINGS = (2, 1, 0, 0)
_TIME = (0.02, 0.10, 0.36, 0.40)
#: The error that rounding may make where a displacement is sampled, in [0, 1] per axis: 0.0004 samples at 175^3.
ROUNDING = 2e-6
#: And where an image in [0, 1] is.
IMAGE_ROUNDING = 5e-5
#: Planes that are computed at a time where all of them would take much memory, or more if that is so many samples.
SLAB, SLAB_SAMPLES = 8, 20_000


def identity_points(shape: Sequence[int], device=None, planes: slice = slice(None)) -> torch.Tensor:
    """Coordinates [1, 3, D, H, W] in [0, 1] of the samples of a lattice of `shape` (D, H, W), or some planes."""
    # arange * spacing, as icon_registration computes it, so that both agree to the last bit
    axes = [torch.arange(n, dtype=torch.float32, device=device) * torch.tensor(1 / (n - 1)) for n in shape]
    return torch.stack(torch.meshgrid(axes[0][planes], *axes[1:], indexing="ij"))[None]


def sample_at(field: torch.Tensor, points: torch.Tensor, outside: str = "border") -> torch.Tensor:
    """`field` [N, C, d, h, w], trilinear, at `points` [N, 3, D, H, W] in [0, 1]: [N, C, D, H, W].

    outside: "border" repeats the outermost sample, "zeros" fades to 0 within one sample.
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


def compose(displacements: Sequence[torch.Tensor], points: torch.Tensor | None = None) -> torch.Tensor:
    """The map of a cascade, [1, 3, D, H, W] in [0, 1], at `points` or at the samples of the last displacement.

    displacements: d_0, d_1, ... [1, 3, d, h, w], coarse to fine; the last is the first to act on a point.
    On its own lattice a displacement needs no sampling, and on another lattice's samples it needs a resize only.
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
    """icon_registration's `UNet2`: a residual U-Net, [1, 2, D, H, W] -> displacement [1, 3, D, H, W], any size.

    Parameters and their names are those of the published weights.
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
        nn.init.zeros_(self.lastConv.bias)

    def _encode(self, pair: torch.Tensor) -> list[torch.Tensor]:
        """Activations at full, 1/2, 1/4, ... resolution; each level adds its pooled input to its last channels."""
        levels = [pair]
        for convolution in self.downConvs:
            x = levels[-1]
            y = convolution(F.leaky_relu(x))
            pooled = F.avg_pool3d(x, 2, ceil_mode=True)
            levels.append(y + F.pad(pooled, (0,) * 6 + (y.shape[1] - pooled.shape[1], 0)))
        return levels

    def forward(self, pair: torch.Tensor) -> torch.Tensor:
        """For training and fine-tuning: batch norm in its module's mode, everything differentiable."""
        pair = _arrange(pair)
        levels = self._encode(pair)
        x = levels.pop()
        for step in reversed(range(len(self.upConvs))):
            if step == 0 and not self.batchNorms[0].training:
                with torch.autocast(x.device.type, enabled=False):  # a map needs more digits than bfloat16 has
                    return _End(self).on(x.float(), pair)
            y = self.upConvs[step](F.leaky_relu(x))
            residual = F.interpolate(_arrange(x[:, : y.shape[1]]), scale_factor=2, mode="trilinear")
            y = self.batchNorms[step](y + residual)
            skip = levels.pop()
            x = torch.cat([_crop(y, skip.shape[2:]), skip], 1)
        with torch.autocast(x.device.type, enabled=False):
            return self.lastConv(x.float()) / 10


def _crop(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    d, h, w = shape
    return x[:, :, :d, :h, :w]


def _layout(device: torch.device) -> torch.memory_format:
    """The memory layout in which a device convolves fastest (channels last: 1.5 times on a CPU)."""
    return torch.channels_last_3d if device.type == "cpu" else torch.contiguous_format


def _arrange(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=_layout(x.device))


def _side_by_side(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """[1, 2, D, H, W]"""
    shape = 1, 2, *fixed.shape[2:]
    pair = torch.empty(shape, device=fixed.device, memory_format=_layout(fixed.device))
    for channel, image in enumerate((moving, fixed)):
        pair[:, channel] = image[:, 0]
    return pair


def _halved(x: torch.Tensor) -> torch.Tensor:
    """`avg_pool3d(x, 2, ceil_mode=True)`, several times as fast on a CPU with channels last; not differentiable."""
    for axis in (2, 3, 4):
        even, odd = (x[(slice(None),) * axis + (slice(n, None, 2),)] for n in (0, 1))
        x = even.clone()
        x.narrow(axis, 0, odd.shape[axis]).add_(odd).mul_(0.5)  # an even sample without an odd neighbour stays
    return x


def _slabs(shape: Sequence[int]) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, low, high): some planes at a time, and with the planes next to them. As many in each as can be:
    libraries prepare themselves for every new shape."""
    depth, height, width = shape
    count = math.ceil(depth / max(SLAB, SLAB_SAMPLES // (height * width)))
    planes = math.ceil(depth / count)
    for start in range(0, depth, planes):
        stop = min(start + planes, depth)
        yield start, stop, max(start - 1, 0), min(stop + 1, depth)


def _fold(convolution: nn.ConvTranspose3d, norm: nn.BatchNorm3d) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, bias and scale [C, 1, 1, 1] with which a step up needs no batch norm:

    scale * (transposed_convolution(leaky(x)) + upsampled(x)) + shift
    """
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = (convolution.bias - norm.running_mean) * scale + norm.bias
    scale = scale.view(-1, 1, 1, 1)
    return convolution.weight * scale, bias, scale


def _transposed(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """`conv_transpose2d(x, weight, bias, stride=2)` for a kernel of 4, as `_Step` computes it; six times as fast."""
    into, out = weight.shape[:2]
    taps = weight.reshape(into, out, 2, 2, 2, 2).flip(2, 4).permute(1, 3, 5, 0, 2, 4).reshape(-1, into, 2, 2)
    return F.pixel_shuffle(F.conv2d(x, taps, bias.repeat_interleave(4), padding=1), 2)


class _Step:
    """One way up of a U-Net in evaluation mode.

    A transposed convolution with kernel 4 and stride 2 gives every fine voxel 2 x 2 x 2 of the coarse ones. All eight
    voxels of a cell together are therefore one convolution of 2^3 taps with eight times the channels and no more
    work, which libraries compute faster (up to seven times for 512 channels, on a CPU).
    """

    def __init__(self, convolution: nn.ConvTranspose3d, norm: nn.BatchNorm3d):
        weight, self._bias, self._scale = _fold(convolution, norm)
        # u[2m + p] = weight[3 - p] x[m - 1 + p] + weight[1 - p] x[m + p]: tap 3 - p - 2q is that of x[m - 1 + p + q]
        order = torch.arange(64, device=weight.device).view(2, 2, 2, 2, 2, 2).flip(0, 1, 2, 3, 4, 5)
        order = order.permute(1, 3, 5, 0, 2, 4).reshape(8, 1, 8)
        # rows of input channels are moved, not single numbers: the deepest weights have 17 million
        rows = weight.flatten(1).T.contiguous().view(-1, 64, len(weight))
        rows = rows[torch.arange(len(rows), device=weight.device)[:, None], order]
        self._weight = _arrange(rows.view(-1, 2, 2, 2, len(weight)).movedim(-1, 1))

    def __call__(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """x [1, C, d, h, w] and leaky(skip), which joins it but not the residual -> [1, c, 2d, 2h, 2w]."""
        channels, (d, h, w) = len(self._scale), x.shape[2:]
        source = F.leaky_relu(x) if skip is None else torch.cat([F.leaky_relu(x), skip], 1)
        kept = x[:, :channels] * self._scale  # scaled before it is enlarged: an eighth of the work
        result = torch.empty((1, channels, 2 * d, 2 * h, 2 * w), device=x.device, memory_format=_layout(x.device))
        for start, stop, low, high in _slabs((d, h, w)):
            padded = F.pad(source[:, :, low:high], (0, 0, 0, 0, low - start + 1, stop + 1 - high))
            cells = F.conv3d(padded, self._weight, self._bias.repeat(8), padding=(0, 1, 1)).split(channels, 1)
            residual = F.interpolate(kept[:, :, low:high], scale_factor=2, mode="trilinear")
            residual = residual[:, :, 2 * (start - low) : 2 * (stop - low)]
            for (p, q, r), part in zip(product((0, 1), repeat=3), cells, strict=True):
                every_second = (..., slice(p, None, 2), slice(q, None, 2), slice(r, None, 2))
                cell = part[..., p : p + stop - start, q : q + h, r : r + w]
                torch.add(residual[every_second], cell, out=result[:, :, 2 * start : 2 * stop][every_second])
        return result


class _End:
    """The last step up and `lastConv` of a U-Net in evaluation mode, as one; differentiable in its weights.

    Both are linear, so they act as one convolution of the activations at half the resolution whose output channels are
    the three components times the eight voxels of each cell. The 18 channels at full resolution, which cost most of
    the time and memory, exist beyond the outermost voxels only: `lastConv` sees zeros there, the one convolution goes
    on, and what that adds to the outermost voxels is taken off again.
    """

    def __init__(self, unet: UNet):
        self._weight, self._bias, self.scale = _fold(unet.upConvs[0], unet.batchNorms[0])
        self.kept = len(self.scale)
        weight = unet.lastConv.weight / 10
        self._last_weight = weight[:, : self.kept]
        bias = unet.lastConv.bias / 10 + torch.einsum("ocxyz,c->o", self._last_weight, self._bias)
        self.cell_weight, self.cell_bias = _arrange(self._fused()), bias.repeat_interleave(8)
        # The pair's part of `lastConv`: each of the eight voxels of a cell sees 3^3 of the 4^3 in and around it.
        inside = product((0, 1), repeat=3)
        shifted = [F.pad(weight[:, self.kept :], (r, 1 - r, q, 1 - q, p, 1 - p)) for p, q, r in inside]
        self._pair_weight = torch.stack(shifted, 1).flatten(0, 1)

    def _fused(self) -> torch.Tensor:
        """Weight [24, C + c, 3, 3, 3] for the input (leaky(x), x[:c])."""
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
        """[N, 24, d, h, w] of (leaky(x), x[:c]) with a voxel around it."""
        return F.conv3d(padded, self.cell_weight, self.cell_bias)

    def of_images(self, pair: torch.Tensor) -> torch.Tensor:
        """[N, 24, d, h, w], what the pair adds; it has a voxel (or two, where it is odd) around it."""
        return F.conv3d(pair, self._pair_weight, stride=2)

    def on(self, x: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """[N, 3, D, H, W] of all activations x at half the resolution and the pair, differentiable."""
        activated, kept = F.leaky_relu(x), x[:, : self.kept]
        padded = [F.pad(activated, (1,) * 6), F.pad(_arrange(kept), (1,) * 6, mode="replicate")]
        (d, h, w), (depth, height, width) = x.shape[2:], pair.shape[2:]
        images = F.pad(pair, (1, 2 * w + 1 - width, 1, 2 * h + 1 - height, 1, 2 * d + 1 - depth))
        cells = self.convolved(torch.cat(padded, 1)) + self.of_images(images)
        cells = cells.contiguous().view(-1, 3, 2, 2, 2, d, h, w)
        fine = cells.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(-1, 3, 2 * d, 2 * h, 2 * w)
        result = _crop(fine, pair.shape[2:])
        self.stop_at_faces(result, lambda axis, place: (activated.select(axis, place), kept.select(axis, place)))
        return result

    def stop_at_faces(self, result: torch.Tensor, plane_of: Callable) -> None:
        """Takes off what the last step's activations beyond the border contributed to `result` [N, 3, D, H, W].

        plane_of: leaky(x) and x[:c] in the first (0) or last (-1) plane across an axis, as plane_of(axis, 0 or -1).
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


class _Filtered:
    """A convolution of 3 taps per axis with half of the multiplications: four planes from six, not from twelve.

    Winograd's minimal filtering F(4, 3) along the first axis (Lavin & Gray, "Fast algorithms for convolutional neural
    networks", CVPR 2016): six sums of six planes, six convolutions of planes, four sums of those. Rounding errors are
    three times those of a plain convolution.
    """

    _PLANES, _BEFORE = 4, 6
    _SUMS_BEFORE = (
        (4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
        (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1),
    )  # fmt: skip
    _TAPS = (
        (1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
        (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6), (0, 0, 1),
    )  # fmt: skip
    _SUMS_AFTER = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor):
        """weight: [c, C, 3, 3, 3]."""
        taps = torch.einsum("nt,oithw->noihw", torch.tensor(self._TAPS, dtype=torch.float64), weight.double()).float()
        self._weights = [plane.contiguous(memory_format=torch.channels_last) for plane in taps]
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[1, C, D + 2, H + 2, W + 2] -> [1, c, D, H, W], channels last."""
        before, after = self._sums(x.shape[2] - 2)
        rows = x[0].movedim(0, -1)
        sums = (before @ rows.flatten(1)).view(self._BEFORE, -1, *rows.shape[1:]).movedim(-1, 2)
        parts = [F.conv2d(planes, weight).movedim(1, -1) for planes, weight in zip(sums, self._weights, strict=True)]
        parts = torch.stack(parts)
        height, width, channels = parts.shape[2:]
        result = torch.addmm(self._bias.repeat(height * width), after, parts.flatten(0, 1).flatten(1))
        return result.view(1, -1, height, width, channels).movedim(-1, 1)

    @classmethod
    @cache
    def _sums(cls, planes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[6 T, planes + 2] and [planes, 6 T], of T tiles of which the last may be cut."""
        tiles = math.ceil(planes / cls._PLANES)
        before = torch.zeros(cls._BEFORE, tiles, cls._PLANES * tiles + 2)
        after = torch.zeros(tiles, cls._PLANES, cls._BEFORE, tiles)
        for tile in range(tiles):
            start = cls._PLANES * tile
            before[:, tile, start : start + cls._BEFORE] = torch.tensor(cls._SUMS_BEFORE)
            after[tile, :, :, tile] = torch.tensor(cls._SUMS_AFTER)
        return before.flatten(0, 1)[:, : planes + 2].contiguous(), after.flatten(2).flatten(0, 1)[:planes].contiguous()


class InferenceUNet:
    """A `UNet` in evaluation mode rewritten as fewer and smaller operations; the same numbers but for rounding.

    The fine levels are computed some planes at a time, so that little is held at once.
    """

    def __init__(self, unet: UNet):
        self._down = [(_arrange(convolution.weight), convolution.bias) for convolution in unet.downConvs]
        up = reversed(list(zip(unet.upConvs, unet.batchNorms, strict=True))[1:])
        self._steps = [_Step(convolution, norm) for convolution, norm in up]
        self._end = _End(unet)
        self._convolved = self._end.convolved
        if self._end.cell_weight.device.type == "cpu":  # other devices' libraries choose such things themselves
            self._convolved = _Filtered(self._end.cell_weight, self._end.cell_bias)

    def __call__(self, pair: torch.Tensor) -> torch.Tensor:
        pair = _arrange(pair)
        x, skips = self._encode(pair)
        skip = None
        for step in self._steps:
            x = step(x, skip)
            skip = skips.pop()
            x = _crop(x, skip.shape[2:])
        result = self._cells(x, skip, pair)

        def plane_of(axis: int, place: int) -> tuple[torch.Tensor, torch.Tensor]:
            plane = x.select(axis, place)
            return torch.cat([F.leaky_relu(plane), skip.select(axis, place)], 1), plane[:, : self._end.kept]

        self._end.stop_at_faces(result, plane_of)
        return result

    def _encode(self, pair: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The coarsest activations as they are, and leaky(x) of those at 1/2, 1/4, ... resolution."""
        x, skips = pair, []
        for weight, bias in self._down:
            pooled = _halved(x)
            skips.append(F.leaky_relu(x, inplace=x is not pair))
            x = F.conv3d(skips[-1], weight, bias, stride=2, padding=1)
            x[:, -pooled.shape[1] :] += pooled
        return x, skips[1:]

    def _cells(self, x: torch.Tensor, skip: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """[1, 3, D, H, W]: right but for the outermost voxels."""
        d, h, w = x.shape[2:]
        beyond = [2 * coarse + 1 - fine for coarse, fine in zip((d, h, w), pair.shape[2:], strict=True)]
        result = torch.empty((1, 3, 2 * d, 2 * h, 2 * w), device=x.device)
        slabs = list(_slabs((d, h, w)))
        size = 1, x.shape[1] + skip.shape[1] + self._end.kept, slabs[0][1] + 2, h + 2, w + 2
        padded = torch.empty(size, device=x.device, memory_format=_layout(x.device))  # one for all
        for start, stop, low, high in slabs:
            padded = padded[:, :, : stop - start + 2]
            self._pad(padded, x[:, :, low:high], skip[:, :, low:high], (low - start + 1, stop + 1 - high))
            first, last = max(2 * start - 1, 0), min(2 * stop + 1, pair.shape[2])
            in_depth = first - 2 * start + 1, 2 * stop + 1 - last
            images = F.pad(pair[:, :, first:last], (1, beyond[2], 1, beyond[1], *in_depth))
            cells = self._convolved(padded).add_(self._end.of_images(images))
            n = stop - start
            # neighbours along W lie side by side in both: moved as one number, which takes half the time
            fine = torch.view_as_complex(result[0, :, 2 * start : 2 * stop].view(3, n, 2, h, 2, w, 2))
            pairs = torch.view_as_complex(cells[0].movedim(0, -1).contiguous().float().view(n, h, w, 3, 2, 2, 2))
            fine.copy_(pairs.permute(3, 0, 4, 1, 5, 2))
        return _crop(result, pair.shape[2:])

    def _pad(self, result: torch.Tensor, x: torch.Tensor, skip: torch.Tensor, in_depth: tuple[int, int]) -> None:
        """Into `result`: (leaky(x), skip) with zeros around them and x[:c] with its outermost values repeated.

        in_depth: whether (1) or not (0) a plane is added in front and at the end; along H and W always.
        """
        activated = x.shape[1] + skip.shape[1]
        inner = result[:, :, in_depth[0] : in_depth[0] + x.shape[2], 1:-1, 1:-1]
        F.leaky_relu(inner[:, : x.shape[1]].copy_(x), inplace=True)
        inner[:, x.shape[1] : activated] = skip
        inner[:, activated:] = x[:, : self._end.kept]
        for axis, added in zip((2, 3, 4), (in_depth, (1, 1), (1, 1)), strict=True):
            n = result.shape[axis]
            for outermost, next_to_it, is_added in zip((0, n - 1), (1, n - 2), added, strict=True):
                if is_added:
                    plane = result.select(axis, outermost)
                    plane[:, :activated] = 0
                    plane[:, activated:] = result.select(axis, next_to_it)[:, activated:]


class GradICON(nn.Module):
    """The cascade of four U-Nets. `load_state_dict` takes the published file as it is.

    shape: (D, H, W) of the lattice, 175^3 for the published weights; any other shape is allowed, the weights do not
    depend on it.
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
                f"The network's lattice needs three axes of {smallest} samples or more, not {tuple(shape)}."
            )
        self.shape = tuple(int(n) for n in shape)
        for path in STAGES:
            _attach(self, path, UNet(down, up))

    @property
    def unets(self) -> list[UNet]:
        """The four U-Nets, coarse to fine."""
        return [self.get_submodule(path) for path in STAGES]

    def forward(
        self, moving: torch.Tensor, fixed: torch.Tensor, save_memory: bool = False, stages: int = len(STAGES)
    ) -> list[torch.Tensor]:
        """Displacements d_0 .. d_3 for `compose`, differentiable in the weights and the images.

        moving, fixed: [N, 1, D, H, W].  stages: only the first so many U-Nets, as a training begins.
        save_memory: see `recomputing`.
        """
        run = recomputing if save_memory else directly
        displacements = []
        moving_levels, fixed_levels = _pyramid(moving), _pyramid(fixed)
        for unet, level in list(zip(self.unets, _HALVINGS, strict=True))[:stages]:
            displacements.append(run(_stage, unet, moving_levels[level], fixed_levels[level], list(displacements)))
        return displacements

    def maps(self, moving: torch.Tensor, fixed: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As of an `InferenceNetwork`; the U-Nets are rewritten one at a time and forgotten, as weights may change."""
        device = next(self.parameters()).device
        return _maps(map(InferenceUNet, self.unets), self.shape, device, moving, fixed, **options)


class InferenceNetwork:
    """A `GradICON` in evaluation mode, rewritten once for many pairs; it does not need the original any more.

    The rewriting takes a tenth of a pair's time on a CPU.
    """

    @torch.no_grad()
    def __init__(self, network: GradICON):
        self.shape = network.shape
        self._device = next(network.parameters()).device
        self._unets = [InferenceUNet(unet) for unet in network.unets]

    def maps(self, moving: torch.Tensor, fixed: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
        """phi_AB and phi_BA, float32 [1, 3, D, H, W] on the network's device; phi_BA is None unless `both`.

        moving, fixed: [1, 1, D, H, W] of the network's shape, in [0, 1], on any device.
        both: the second map too, True unless given.
        precision: "mixed" runs the convolutions in bfloat16 (CUDA only), the maps stay float32; "float32" unless given.
        progress: called with the fraction done; may raise Cancelled.
        Raises InputError for another shape or precision.
        """
        return _maps(self._unets, self.shape, self._device, moving, fixed, **options)


@torch.no_grad()
def _maps(
    unets: Iterable[InferenceUNet],
    shape: Sequence[int],
    device: torch.device,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    *,
    both: bool = True,
    precision: str = "float32",
    progress: Callable[[float], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`InferenceNetwork.maps`."""
    precision = choose_precision(precision, device)
    images = []
    for name, image in (("moving", moving), ("fixed", fixed)):
        if tuple(image.shape) != (1, 1, *shape):
            raise InputError(f"The {name} image is {tuple(image.shape)}, the network takes {(1, 1, *shape)}.")
        images.append(_pyramid(image.to(device, torch.float32)))
    directions = [(0, 1), (1, 0)] if both else [(0, 1)]
    displacements = [[] for _ in directions]
    maps = []
    fraction = 0.0
    for unet, level, part in zip(unets, _HALVINGS, _TIME, strict=True):
        for done, (a, b) in zip(displacements, directions, strict=True):
            pair = _side_by_side(_warp(images[a][level], done), images[b][level])
            with torch.autocast(device.type, torch.bfloat16) if precision == "mixed" else nullcontext():
                done.append(unet(pair))
            del pair
            if len(done) == len(STAGES):  # at once, so that the displacements can go
                maps.append(_evaluate(done))
                done.clear()
            fraction += part / len(directions)
            if progress:
                progress(fraction)
    return maps[0], maps[1] if both else None


def _stage(unet: UNet, moving: torch.Tensor, fixed: torch.Tensor, displacements: list) -> torch.Tensor:
    """The next displacement of a cascade, differentiable."""
    return unet(torch.cat([_warp(moving, displacements), fixed], 1))


def recomputing(function: Callable, *arguments):
    """function(*arguments), whose intermediate tensors are computed again in the backward pass instead of kept."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def directly(function: Callable, *arguments):
    return function(*arguments)


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    """`module` as root.a.b.c for the path "a.b.c"; containers on the way are made as needed."""
    *parents, name = path.split(".")
    for parent in parents:
        if not hasattr(root, parent):
            root.add_module(parent, nn.Module())
        root = getattr(root, parent)
    root.add_module(name, module)


def _pyramid(image: torch.Tensor) -> list[torch.Tensor]:
    """The image at full, half and quarter resolution."""
    levels = [image]
    for _ in range(max(_HALVINGS)):
        levels.append(F.avg_pool3d(levels[-1], 2, ceil_mode=True))
    return levels


def _warp(image: torch.Tensor, displacements: Sequence[torch.Tensor]) -> torch.Tensor:
    """`image` pulled back by the cascade so far, on its own lattice."""
    if not displacements:
        return image
    *coarser, last = displacements
    if last.shape[2:] != image.shape[2:]:
        last = F.interpolate(last, size=image.shape[2:], mode="trilinear", align_corners=True)
    if torch.is_grad_enabled():
        return sample_at(image, compose([*coarser, last]))
    return _evaluate([*coarser, last], image)


def _evaluate(displacements: Sequence[torch.Tensor], image: torch.Tensor | None = None) -> torch.Tensor:
    """The map of a cascade at the samples of its last displacement, or `image` pulled back by it; without gradients.

    Some planes at a time: what the composition holds meanwhile is a multiple of the map.
    """
    *coarser, last = displacements
    shape = last.shape[2:]
    result = last.new_empty((len(last), 3 if image is None else image.shape[1], *shape))
    for start, stop, *_ in _slabs(shape):
        points = identity_points(shape, last.device, slice(start, stop)) + last[:, :, start:stop]
        points = compose(coarser, points)
        if image is not None:
            points = trilinear(image, points, Frame.unit(image.shape[2:]), IMAGE_ROUNDING)
        result[:, :, start:stop] = points
    return result


def choose_precision(name: str, device: torch.device) -> str:
    """ "float32" or "mixed".

    "auto" is float32: a CPU is slower in bfloat16 (measured: 0.6 times the speed), and a recent GPU already
    multiplies float32 convolutions on its tensor cores. Raises InputError for "mixed" anywhere but on CUDA.
    """
    if name not in ("auto", "float32", "mixed"):
        raise InputError(f"No precision is called {name!r}; choose auto, float32 or mixed.")
    if name == "mixed" and torch.device(device).type != "cuda":
        raise InputError(f"Mixed precision gains nothing on {device} and costs accuracy; choose float32 or auto.")
    return "mixed" if name == "mixed" else "float32"


def choose_device(name: str = "auto") -> torch.device:
    """The torch device of a setting: "auto" (CUDA, else Apple's GPU where it can run the network, else the CPU),
    "cpu", "cuda", "cuda:N" or "mps". Raises InputError with the remedy if it is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() and _runs_network("mps") else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"No device is called {name!r}; choose auto, cpu, cuda, cuda:N or mps.")
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count == 0:
            raise InputError(
                f"Device {name!r} was asked for but this PyTorch ({torch.__version__}) sees no CUDA GPU; choose auto "
                "or cpu, or install a CUDA build of PyTorch and the NVIDIA driver."
            )
        if device.index is not None and device.index >= count:
            raise InputError(f"Device {name!r} does not exist; this machine has cuda:0 to cuda:{count - 1}.")
    if device.type == "mps":
        if not torch.backends.mps.is_available():
            raise InputError(
                f"Device {name!r} needs an Apple GPU and a PyTorch with Metal support; choose auto or cpu."
            )
        if not _runs_network("mps"):
            raise InputError(
                f"PyTorch {torch.__version__} lacks 3D operations on Apple's GPU (mps); choose cpu or a newer PyTorch."
            )
    return device


def _runs_network(device: str) -> bool:
    """Whether the device has every operation of a (tiny) cascade: 3D sampling is missing on MPS in many versions."""
    try:
        network = GradICON((9, 9, 9), down=(2, 2, 2), up=(2, 2)).to(device).eval()
        network.maps(torch.zeros(1, 1, 9, 9, 9), torch.zeros(1, 1, 9, 9, 9), both=False)
    except RuntimeError:  # NotImplementedError, where an operation is missing, is one
        return False
    return True


@contextmanager
def memory_guard(device: torch.device, remedy: str) -> Iterator[None]:
    """Turns "out of memory" of the device or the host into one DeviceMemoryError that ends with `remedy`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch.OutOfMemoryError on CUDA; a plain RuntimeError with these words on a CPU and on MPS
        words = str(error).lower()
        if not isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) and not any(
            phrase in words for phrase in ("out of memory", "can't allocate memory", "not enough memory")
        ):
            raise
        message = f"{device} ran out of memory"
        if torch.device(device).type == "cuda":
            free, total = torch.cuda.mem_get_info(device)
            message += f" ({free / 2**30:.1f} of {total / 2**30:.1f} GiB free)"
            torch.cuda.empty_cache()
        raise DeviceMemoryError(f"{message}; {remedy}.") from None
