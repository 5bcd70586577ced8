"""The GradICON network of uniGradICON and multiGradICON, written for inference.

Four U-Nets in a cascade (Tian et al., "GradICON", CVPR 2023; uniGradICON, MICCAI 2024): the first sees the images at
a quarter of the resolution, the second at half, the last two at the full one, each after the moving image was warped
by what came before. Every U-Net returns a displacement d_s on its own lattice, and the map is

    phi(x) = (id + d_0) o (id + d_1) o (id + d_2) o (id + d_3) (x)

Coordinates are those of `phi` everywhere: [0, 1] per axis, in axis order, 0 and 1 at the first and last sample.
Images are tensors [1, 1, D, H, W] in [0, 1]; A is the moving image, B the fixed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .errors import DeviceMemoryError, InputError

#: Channels of the published U-Nets at full, 1/2, ... 1/32 resolution on the way down, and from 1/16 to full on the
#: way up (finest first).
DOWN_CHANNELS = (2, 16, 32, 64, 256, 512)
UP_CHANNELS = (16, 32, 64, 128, 256)
#: Where the four U-Nets are in the published state dict, in the order in which they run.
STAGES = ("netPhi.netPhi.net.netPhi.net.net", "netPhi.netPhi.net.netPsi.net", "netPhi.netPsi.net", "netPsi.net")
#: How much coarser than the images the lattice of each stage is, and its part of the time.
_HALVINGS = (2, 1, 0, 0)
_TIME = (0.02, 0.10, 0.36, 0.40)


def identity_points(shape: Sequence[int], device=None) -> torch.Tensor:
    """Coordinates [1, 3, D, H, W] in [0, 1] of the samples of a lattice of `shape` (D, H, W)."""
    # arange * spacing, as icon_registration computes it, so that both agree to the last bit
    axes = [torch.arange(n, dtype=torch.float32, device=device) * torch.tensor(1 / (n - 1)) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]


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
    for displacement in reversed(remaining):
        points = points + sample_at(displacement, points)
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
        levels = self._encode(pair)
        x = levels.pop()
        for convolution, norm in zip(reversed(self.upConvs), reversed(self.batchNorms), strict=True):
            y = convolution(F.leaky_relu(x))
            y = norm(y + F.interpolate(x[:, : y.shape[1]], scale_factor=2, mode="trilinear"))
            skip = levels.pop()
            x = torch.cat([_crop(y, skip.shape[2:]), skip], 1)
        with torch.autocast(x.device.type, enabled=False):  # a map needs more digits than bfloat16 has
            return self.lastConv(x.float()) / 10


def _crop(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    d, h, w = shape
    return x[:, :, :d, :h, :w]


def _arrange(x: torch.Tensor) -> torch.Tensor:
    """`x` in the memory layout in which its device convolves fastest (channels last: 1.5 times on a CPU)."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


class _Step:
    """One way up of a U-Net, its batch norm in evaluation mode folded into the weights.

    u = scale * (transposed_convolution(leaky(x)) + upsampled(x)) + shift
    """

    def __init__(self, convolution: nn.ConvTranspose3d, norm: nn.BatchNorm3d):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.scale = scale.view(-1, 1, 1, 1)
        self.weight = convolution.weight * self.scale
        self.bias = (convolution.bias - norm.running_mean) * scale + norm.bias

    def __call__(self, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        # scaled before it is enlarged: an eighth of the work
        residual = F.interpolate(x[:, : len(self.scale)] * self.scale, scale_factor=2, mode="trilinear")
        residual += F.conv_transpose3d(F.leaky_relu(x), self.weight, self.bias, stride=2, padding=1)
        return _crop(residual, shape)


class InferenceUNet:
    """A `UNet` in evaluation mode rewritten as fewer and smaller operations; the same numbers but for rounding.

    The last step up and `lastConv` are both linear, so they act as one convolution of the activations at half the
    resolution whose output channels are the eight voxels of each cell times the three components. The 18 channels at
    full resolution, which cost most of the time and memory, exist in the outermost voxels only: there `lastConv` sees
    zeros beyond the border, and the two are applied one after the other.
    """

    def __init__(self, unet: UNet):
        self._encode = unet._encode
        self._steps = [
            _Step(convolution, norm)
            for convolution, norm in reversed(list(zip(unet.upConvs, unet.batchNorms, strict=True)))
        ]
        self._last_weight = unet.lastConv.weight / 10
        self._last_bias = unet.lastConv.bias / 10
        self._cell_weight, self._cell_bias = self._fuse_last(self._steps[-1])

    def _fuse_last(self, step: _Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [24, C + c, 3, 3, 3] for the input (leaky(x), x[:c]) and bias [3]."""
        channels = len(step.scale)
        last = self._last_weight[:, :channels]
        # Enlarging by two is itself a transposed convolution with (1, 3, 3, 1) / 4 along each axis.
        tent = torch.tensor([0.25, 0.75, 0.75, 0.25], dtype=last.dtype, device=last.device)
        tent = tent[:, None, None] * tent[:, None] * tent
        enlarge = torch.diag_embed(step.scale.flatten())[..., None, None, None] * tent
        # Transposed convolution (kernel 4) then convolution (3) is a transposed convolution with a kernel of 6, ...
        kernel = F.conv3d(torch.cat([step.weight, enlarge]), last, padding=2)
        # ... of which an even or odd output voxel sees every second tap.
        taps = kernel.view(*kernel.shape[:2], 3, 2, 3, 2, 3, 2).flip(2, 4, 6)
        weight = taps.permute(1, 3, 5, 7, 0, 2, 4, 6).reshape(-1, len(kernel), 3, 3, 3)
        return weight, self._last_bias + torch.einsum("ocxyz,c->o", last, step.bias)

    def __call__(self, pair: torch.Tensor) -> torch.Tensor:
        pair = _arrange(pair)
        levels = self._encode(pair)
        x = levels.pop()
        for step in self._steps[:-1]:
            skip = levels.pop()
            x = torch.cat([step(x, skip.shape[2:]), skip], 1)
        result = self._interior(x, pair)
        self._overwrite_faces(result, x, pair)
        return result

    def _interior(self, x: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        kept = len(self._steps[-1].scale)
        padded = [F.pad(F.leaky_relu(x), (1,) * 6), F.pad(x[:, :kept], (1,) * 6, mode="replicate")]
        cells = F.conv3d(torch.cat(padded, 1), self._cell_weight)
        d, h, w = x.shape[2:]
        fine = cells.reshape(3, 2, 2, 2, d, h, w).permute(0, 4, 1, 5, 2, 6, 3).reshape(1, 3, 2 * d, 2 * h, 2 * w)
        from_pair = F.conv3d(pair, self._last_weight[:, kept:], self._cell_bias, padding=1)
        return from_pair + _crop(fine, pair.shape[2:])

    def _overwrite_faces(self, result: torch.Tensor, x: torch.Tensor, pair: torch.Tensor) -> None:
        for axis in (2, 3, 4):
            coarse = x.shape[axis]
            for first in (True, False):
                # The outermost two voxels need the outermost two coarse ones; as two times the channels of an image,
                # because torch leaves thin volumes to a slow convolution.
                start = 0 if first else max(coarse - 2, 0)
                outer = pair.narrow(axis, 2 * start, min(4, pair.shape[axis] - 2 * start))
                y = torch.cat([self._steps[-1](x.narrow(axis, start, min(2, coarse)), outer.shape[2:]), outer], 1)
                y = y.narrow(axis, 0 if first else y.shape[axis] - 2, 2).movedim(axis, 2).flatten(1, 2)
                weight = self._last_weight.narrow(axis, 1 if first else 0, 2).movedim(axis, 2).flatten(1, 2)
                face = F.conv2d(y, weight, self._last_bias, padding=1)
                result.select(axis, 0 if first else -1).copy_(face)


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
        save_memory: recompute each U-Net's activations in the backward pass instead of keeping them: about a third
        more time, a third of the memory.
        """
        displacements = []
        moving_levels, fixed_levels = _pyramid(moving), _pyramid(fixed)
        for unet, level in list(zip(self.unets, _HALVINGS, strict=True))[:stages]:
            pair = torch.cat([_warp(moving_levels[level], displacements), fixed_levels[level]], 1)
            displacements.append(checkpoint(unet, pair, use_reentrant=False) if save_memory else unet(pair))
        return displacements

    @torch.no_grad()
    def maps(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        both: bool = True,
        precision: str = "float32",
        progress: Callable[[float], None] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """phi_AB and phi_BA, float32 [1, 3, D, H, W] on the network's device; phi_BA is None unless `both`.

        moving, fixed: [1, 1, D, H, W] of the network's shape, in [0, 1], on any device.
        precision: "mixed" runs the convolutions in bfloat16 (CUDA only), the maps stay float32.
        progress: called with the fraction done; may raise Cancelled.
        Raises InputError for another shape or precision.
        """
        device = next(self.parameters()).device
        precision = choose_precision(precision, device)
        images = []
        for name, image in (("moving", moving), ("fixed", fixed)):
            if tuple(image.shape) != (1, 1, *self.shape):
                raise InputError(f"The {name} image is {tuple(image.shape)}, the network takes {(1, 1, *self.shape)}.")
            images.append(_pyramid(image.to(device, torch.float32)))
        directions = [(0, 1), (1, 0)] if both else [(0, 1)]
        displacements = [[] for _ in directions]
        fraction = 0.0
        for unet, level, part in zip(self.unets, _HALVINGS, _TIME, strict=True):
            fast = InferenceUNet(unet)
            for done, (a, b) in zip(displacements, directions, strict=True):
                pair = torch.cat([_warp(images[a][level], done), images[b][level]], 1)
                with torch.autocast(device.type, torch.bfloat16) if precision == "mixed" else nullcontext():
                    done.append(fast(pair).float())
                fraction += part / len(directions)
                if progress:
                    progress(fraction)
        images.clear()
        forward = compose(displacements.pop(0))
        return forward, compose(displacements.pop(0)) if both else None


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
    remaining = list(displacements)
    last = remaining.pop()
    if last.shape[2:] != image.shape[2:]:
        last = F.interpolate(last, size=image.shape[2:], mode="trilinear", align_corners=True)
    return sample_at(image, compose([*remaining, last]))


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
