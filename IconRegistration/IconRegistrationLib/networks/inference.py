"""Evaluate the GradICON network without training's overhead."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import product
from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import InputError
from ..text import tr
from .unet import (
    HALVINGS,
    STAGES,
    FinalStep,
    GradICON,
    UNet,
    crop,
    evaluate_cascade,
    fastest_layout,
    fold_batch_norm,
    image_pyramid,
    in_fastest_layout,
    slabs_of_planes,
    warp_by_cascade,
)

#: Part of the time that each stage takes.
_TIME_OF_STAGES = (0.02, 0.10, 0.36, 0.40)


def _side_by_side(moving: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """Return both images as channels, [1, 2, D, H, W]."""
    shape = 1, 2, *fixed.shape[2:]
    pair = torch.empty(shape, device=fixed.device, memory_format=fastest_layout(fixed.device))
    for channel, image in enumerate((moving, fixed)):
        pair[:, channel] = image[:, 0]
    return pair


def _halved(x: torch.Tensor) -> torch.Tensor:
    """Return `avg_pool3d(x, 2, ceil_mode=True)`, not differentiable; several times as fast with channels last."""
    for axis in (2, 3, 4):
        even, odd = (x[(slice(None),) * axis + (slice(n, None, 2),)] for n in (0, 1))
        x = even.clone()
        x.narrow(axis, 0, odd.shape[axis]).add_(odd).mul_(0.5)  # an even sample without an odd neighbour stays
    return x


class _UpwardStep:
    """One way up of a U-Net in evaluation mode.

    A transposed convolution with kernel 4 and stride 2 gives every fine voxel 2 x 2 x 2 of the coarse ones. All eight
    voxels of a cell together are therefore one convolution of 2^3 taps with eight times the channels and no more
    work, which libraries compute faster (up to seven times for 512 channels, on a CPU).
    """

    def __init__(self, convolution: nn.ConvTranspose3d, norm: nn.BatchNorm3d):
        weight, self._bias, self._scale = fold_batch_norm(convolution, norm)
        # u[2m + p] = weight[3 - p] x[m - 1 + p] + weight[1 - p] x[m + p]: tap 3 - p - 2q is that of x[m - 1 + p + q]
        order = torch.arange(64, device=weight.device).view(2, 2, 2, 2, 2, 2).flip(0, 1, 2, 3, 4, 5)
        order = order.permute(1, 3, 5, 0, 2, 4).reshape(8, 1, 8)
        # rows of input channels are moved, not single numbers: the deepest weights have 17 million
        rows = weight.flatten(1).T.contiguous().view(-1, 64, len(weight))
        rows = rows[torch.arange(len(rows), device=weight.device)[:, None], order]
        self._weight = in_fastest_layout(rows.view(-1, 2, 2, 2, len(weight)).movedim(-1, 1))

    def __call__(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """Compute, of x [1, C, d, h, w] and leaky(skip), which joins it but not the residual -> [1, c, 2d, 2h, 2w]."""
        channels, (d, h, w) = len(self._scale), x.shape[2:]
        source = F.leaky_relu(x) if skip is None else torch.cat([F.leaky_relu(x), skip], 1)
        kept = x[:, :channels] * self._scale  # scaled before it is enlarged: an eighth of the work
        result = torch.empty(
            (1, channels, 2 * d, 2 * h, 2 * w), device=x.device, memory_format=fastest_layout(x.device)
        )
        for start, stop, low, high in slabs_of_planes((d, h, w)):
            padded = F.pad(source[:, :, low:high], (0, 0, 0, 0, low - start + 1, stop + 1 - high))
            cells = F.conv3d(padded, self._weight, self._bias.repeat(8), padding=(0, 1, 1)).split(channels, 1)
            residual = F.interpolate(kept[:, :, low:high], scale_factor=2, mode="trilinear")
            residual = residual[:, :, 2 * (start - low) : 2 * (stop - low)]
            for (p, q, r), part in zip(product((0, 1), repeat=3), cells, strict=True):
                every_second = (..., slice(p, None, 2), slice(q, None, 2), slice(r, None, 2))
                cell = part[..., p : p + stop - start, q : q + h, r : r + w]
                torch.add(residual[every_second], cell, out=result[:, :, 2 * start : 2 * stop][every_second])
        return result


class MinimalFiltering:
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
        """Transform the weight [c, C, 3, 3, 3]."""
        taps = torch.einsum("nt,oithw->noihw", torch.tensor(self._TAPS, dtype=torch.float64), weight.double()).float()
        self._weights = [plane.contiguous(memory_format=torch.channels_last) for plane in taps]
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve [1, C, D + 2, H + 2, W + 2] to [1, c, D, H, W], channels last."""
        before, after = self._sums(x.shape[2] - 2)
        rows = x[0].movedim(0, -1)
        sums = (before @ rows.flatten(1)).view(self._BEFORE, -1, *rows.shape[1:]).movedim(-1, 2)
        filtered = [F.conv2d(planes, weight).movedim(1, -1) for planes, weight in zip(sums, self._weights, strict=True)]
        parts = torch.stack(filtered)
        height, width, channels = parts.shape[2:]
        result = torch.addmm(self._bias.repeat(height * width), after, parts.flatten(0, 1).flatten(1))
        return result.view(1, -1, height, width, channels).movedim(-1, 1)

    @classmethod
    @cache
    def _sums(cls, planes: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return [6 T, planes + 2] and [planes, 6 T], of T tiles of which the last may be cut."""
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
        down = [cast(nn.Conv3d, convolution) for convolution in unet.downConvs]
        self._down = [(in_fastest_layout(convolution.weight), convolution.bias) for convolution in down]
        up = reversed(list(zip(unet.upConvs, unet.batchNorms, strict=True))[1:])
        self._steps = [
            _UpwardStep(cast(nn.ConvTranspose3d, convolution), cast(nn.BatchNorm3d, norm)) for convolution, norm in up
        ]
        self._end = FinalStep(unet)
        self._convolved: Callable[[torch.Tensor], torch.Tensor] = self._end.convolved
        if self._end.cell_weight.device.type == "cpu":  # other devices' libraries choose such things themselves
            self._convolved = MinimalFiltering(self._end.cell_weight, self._end.cell_bias)

    def __call__(self, pair: torch.Tensor) -> torch.Tensor:
        """Compute the displacement [1, 3, D, H, W] of a pair [1, 2, D, H, W]; not differentiable."""
        pair = in_fastest_layout(pair)
        x, skips = self._encode(pair)
        x = self._steps[0](x, None)
        skip = skips.pop()
        x = crop(x, skip.shape[2:])
        for step in self._steps[1:]:
            x = step(x, skip)
            skip = skips.pop()
            x = crop(x, skip.shape[2:])
        result = self._cells(x, skip, pair)

        def plane_of(axis: int, place: int) -> tuple[torch.Tensor, torch.Tensor]:
            plane = x.select(axis, place)
            return torch.cat([F.leaky_relu(plane), skip.select(axis, place)], 1), plane[:, : self._end.kept]

        self._end.stop_at_faces(result, plane_of)
        return result

    def _encode(self, pair: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the coarsest activations as they are, and leaky(x) of those at 1/2, 1/4, ... resolution."""
        x, skips = pair, list[torch.Tensor]()
        for weight, bias in self._down:
            pooled = _halved(x)
            skips.append(F.leaky_relu(x, inplace=x is not pair))
            x = F.conv3d(skips[-1], weight, bias, stride=2, padding=1)
            x[:, -pooled.shape[1] :] += pooled
        return x, skips[1:]

    def _cells(self, x: torch.Tensor, skip: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """Compute [1, 3, D, H, W], right but for the outermost voxels."""
        d, h, w = x.shape[2:]
        beyond = [2 * coarse + 1 - fine for coarse, fine in zip((d, h, w), pair.shape[2:], strict=True)]
        result = torch.empty((1, 3, 2 * d, 2 * h, 2 * w), device=x.device)
        slabs = list(slabs_of_planes((d, h, w)))
        size = 1, x.shape[1] + skip.shape[1] + self._end.kept, slabs[0][1] + 2, h + 2, w + 2
        padded = torch.empty(size, device=x.device, memory_format=fastest_layout(x.device))  # one for all
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
        return crop(result, pair.shape[2:])

    def _pad(self, result: torch.Tensor, x: torch.Tensor, skip: torch.Tensor, in_depth: tuple[int, int]) -> None:
        """Write into `result` (leaky(x), skip) with zeros around them and x[:c] with its outermost values repeated.

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


class InferenceNetwork:
    """A `GradICON` in evaluation mode, rewritten once for many pairs; it does not need the original any more.

    The rewriting takes a tenth of a pair's time on a CPU.

    Parameters
    ----------
    network : GradICON
        Its weights are copied where they are rewritten.
    """

    @torch.no_grad()
    def __init__(self, network: GradICON):
        self.shape = network.shape
        self._device = next(network.parameters()).device
        self._unets = [InferenceUNet(unet) for unet in network.unets]

    def maps(self, moving: torch.Tensor, fixed: torch.Tensor, **options) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute phi_AB and phi_BA.

        Parameters
        ----------
        moving, fixed : torch.Tensor
            [1, 1, D, H, W] of the network's shape, in [0, 1], on any device.
        both : bool
            The second map too; True unless given.
        precision : str
            "mixed" runs the convolutions in bfloat16 (CUDA only), the maps stay float32; "float32" unless given.
        progress : callable, optional
            Called with the fraction done; may raise Cancelled.

        Returns
        -------
        phi_AB, phi_BA : torch.Tensor
            float32 [1, 3, D, H, W] in [0, 1] per axis, on the network's device; phi_BA is None unless `both`.

        Raises
        ------
        InputError
            For another shape or precision.
        """
        return _maps(self._unets, self.shape, self._device, moving, fixed, **options)


def predict_maps(
    network: GradICON | InferenceNetwork, moving: torch.Tensor, fixed: torch.Tensor, **options
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Evaluate a network of either kind; of a `GradICON`, whose weights may change, nothing is kept.

    Parameters, results and errors are those of `InferenceNetwork.maps`. The U-Nets of a `GradICON` are rewritten one at
    a time and forgotten.
    """
    if isinstance(network, InferenceNetwork):
        return network.maps(moving, fixed, **options)
    device = next(network.parameters()).device
    return _maps(map(InferenceUNet, network.unets), network.shape, device, moving, fixed, **options)


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
    """Compute the maps as `InferenceNetwork.maps` says."""
    precision = choose_precision(precision, device)
    images = []
    for name, image in (("moving", moving), ("fixed", fixed)):
        if tuple(image.shape) != (1, 1, *shape):
            raise InputError(
                tr(
                    "The {side} image is {found}, the network takes {expected}.",
                    side=name,
                    found=str(tuple(image.shape)),
                    expected=str((1, 1, *shape)),
                )
            )
        images.append(image_pyramid(image.to(device, torch.float32)))
    directions = [(0, 1), (1, 0)] if both else [(0, 1)]
    displacements: list[list[torch.Tensor]] = [[] for _ in directions]
    maps = []
    fraction = 0.0
    for unet, level, part in zip(unets, HALVINGS, _TIME_OF_STAGES, strict=True):
        for done, (a, b) in zip(displacements, directions, strict=True):
            pair = _side_by_side(warp_by_cascade(images[a][level], done), images[b][level])
            with torch.autocast(device.type, torch.bfloat16) if precision == "mixed" else nullcontext():
                done.append(unet(pair))
            del pair
            if len(done) == len(STAGES):  # at once, so that the displacements can go
                maps.append(evaluate_cascade(done))
                done.clear()
            fraction += part / len(directions)
            if progress:
                progress(fraction)
    return maps[0], maps[1] if both else None


def choose_precision(name: str, device: torch.device) -> str:
    """Decide on "float32" or "mixed".

    "auto" is float32: a CPU is slower in bfloat16 (measured: 0.6 times the speed), and a recent GPU already
    multiplies float32 convolutions on its tensor cores. Raises InputError for "mixed" anywhere but on CUDA.
    """
    if name not in ("auto", "float32", "mixed"):
        raise InputError(
            tr("No precision is called {name}; choose auto, float32 or mixed.", name=repr(name)),
        )
    if name == "mixed" and torch.device(device).type != "cuda":
        raise InputError(
            tr(
                "Mixed precision gains nothing on {device} and costs accuracy; choose float32 or auto.",
                device=str(device),
            )
        )
    return "mixed" if name == "mixed" else "float32"
