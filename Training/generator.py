"""Pairs of images to learn registration from, made of nothing but random numbers.

One random anatomy is seen twice: each side of a pair looks at it through a deformation of its own, and is then painted
with intensities of its own (Hoffmann et al., "SynthMorph", IEEE TMI 2022). Anatomies are functions of place, so that
both sides are crisp: no label is interpolated.

    labels_side(x) = anatomy(affine_side o exp(v_side) (x)),   x in [-1, 1]^3, axis order k, j, i

A seed gives the same pair whatever was drawn before; on another device or version of torch it may give another pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

#: What a label is made of. CT shows them at known values, (mean, spread) after its window -1000 .. 1000 HU.
AIR, LUNG, FAT, SOFT, FLUID, BONE = range(6)
CT_VALUES = ((0.0, 0.0), (0.10, 0.04), (0.45, 0.01), (0.525, 0.02), (0.505, 0.005), (0.75, 0.12))
#: Share of the pairs that differ linearly by what an alignment leaves, not as two scans laid box on box do.
ALIGNED = 0.8
#: Share of the pairs whose sides have one contrast, of those that are painted as CT, and of the anatomies.
SAME_CONTRAST, CT = 0.35, 0.3
ANATOMIES = {"shapes": 0.4, "head": 0.2, "trunk": 0.25, "limb": 0.15}


@dataclass(frozen=True)
class Sample:
    """images: float32 [2, 1, D, H, W] in [0, 1] as `registration.intensity.normalise` gives them, moving first.

    labels: int64 [2, 1, D, H, W]; one number is one structure on both sides, 0 is what lies around.
    places: float32 [2, 3, D, H, W], where in the anatomy, whose box is 2 wide, each sample is.
    """

    images: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor


def make_pair(shape: tuple[int, int, int], seed: int, device="cpu") -> Sample:
    """The pair of a seed (0 .. 2^62), on `device`."""
    draw = Draw(seed, device)
    points = _looks(shape, draw)
    labels, tissues = _anatomy(points, draw)
    texture = _sampled(draw.noise(1, draw.integer(12, 40)), points)[:, 0]
    return Sample(_paint(labels, tissues, texture, draw)[:, None], labels[:, None], points.movedim(-1, 1))


class Draw:
    """The random numbers of one pair: decisions from the CPU, so that a GPU never waits; volumes from the device."""

    def __init__(self, seed: int, device):
        self.device = torch.device(device)
        self._decisions = torch.Generator().manual_seed(seed)
        self._volumes = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        return low + (high - low) * torch.rand((), generator=self._decisions).item()

    def vector(self, low: float, high: float, n: int = 3) -> torch.Tensor:
        """float32 [n], on the CPU."""
        return low + (high - low) * torch.rand(n, generator=self._decisions)

    def normal(self, n: int) -> torch.Tensor:
        """float32 [n], on the CPU, mean 0, variance 1."""
        return torch.randn(n, generator=self._decisions)

    def integer(self, low: int, high: int) -> int:
        """low .. high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self._decisions))

    def chance(self, share: float) -> bool:
        return self.uniform() < share

    def choose(self, shares: dict[str, float]) -> str:
        index = torch.multinomial(torch.tensor(list(shares.values())), 1, generator=self._decisions)
        return list(shares)[int(index)]

    def permutation(self, n: int) -> list[int]:
        return torch.randperm(n, generator=self._decisions).tolist()

    def white(self, *shape: int) -> torch.Tensor:
        """Gaussian noise, mean 0, variance 1."""
        return torch.randn(shape, generator=self._volumes, device=self.device)

    def noise(self, channels: int, cells: int) -> torch.Tensor:
        """Smooth noise [1, channels, n, n, n] with about `cells` bumps along an axis, variance about 1."""
        coarse = self.white(1, channels, cells, cells, cells)
        fine = F.interpolate(coarse, scale_factor=2, mode="trilinear")
        fine = F.avg_pool3d(F.pad(fine, (1,) * 6, mode="replicate"), 3, 1)
        return fine / fine.std().clamp(min=1e-3)


# ------------------------------------------------------------------------------------------------- where a side looks


def _looks(shape, draw: Draw) -> torch.Tensor:
    """Places in the anatomy that the samples of both sides see, [2, D, H, W, 3] in axis order."""
    axes = [torch.linspace(-1, 1, n, device=draw.device) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
    aligned = draw.chance(ALIGNED)
    coarse = tuple(-(-n // 2) for n in shape)
    strength = draw.uniform(0.2, 1.0)
    common = _zoom(draw)
    sides = []
    for _ in range(2):
        displacement = F.interpolate(_diffeomorphism(coarse, strength, draw), size=shape, mode="trilinear")
        matrix, shift = _affine(aligned, draw)
        matrix = (common @ matrix).to(draw.device)
        sides.append((points + displacement[0].movedim(0, -1)) @ matrix.T + shift.to(draw.device))
    return torch.stack(sides)


def _zoom(draw: Draw) -> torch.Tensor:
    """3 x 3, for both sides: how much of the anatomy the box shows, and along which axes it lies."""
    scale = torch.diag(draw.vector(0.7, 1.25))
    if draw.chance(0.5):
        scale = scale[draw.permutation(3)]
    return scale * (1 - 2 * (draw.vector(0, 1) < 0.25).float())[:, None]


def _affine(aligned: bool, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """3 x 3 and 3: half of the difference between the sides."""
    degrees, scale, shift = (3.0, 0.04, 0.03) if aligned else (12.0, 0.18, 0.12)
    generators = torch.zeros(3, 3)
    generators[[0, 0, 1], [1, 2, 2]] = draw.vector(-1, 1) * math.radians(degrees)
    return torch.matrix_exp(generators - generators.T + torch.diag(draw.vector(-scale, scale))), draw.vector(
        -shift, shift
    )


def _diffeomorphism(shape, strength: float, draw: Draw) -> torch.Tensor:
    """Displacement [1, 3, d, h, w]: a velocity of several scales, integrated by scaling and squaring."""
    velocity = torch.zeros(1, 3, *shape, device=draw.device)
    for cells, size in ((3, 0.09), (5, 0.05), (9, 0.025), (16, 0.010)):
        part = F.interpolate(draw.noise(3, cells), size=shape, mode="trilinear")
        velocity += strength * draw.uniform(0, size) * part
    displacement = velocity / 2**5
    axes = [torch.linspace(-1, 1, n, device=draw.device) for n in shape]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)[None]
    for _ in range(5):
        displacement = displacement + _sampled(displacement, points + displacement.movedim(1, -1))
    return displacement


def _sampled(volume: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """`volume` [1, C, d, h, w] at points [N, D, H, W, 3] (axis order): [N, C, D, H, W], mirrored beyond its box."""
    grid = points.flip(-1)
    return F.grid_sample(
        volume.expand(len(points), -1, -1, -1, -1), grid, padding_mode="reflection", align_corners=True
    )


# ---------------------------------------------------------------------------------------------------------- anatomies


class _Canvas:
    """Labels under construction; `points` [2, D, H, W, 3]. What is painted later covers what was there."""

    def __init__(self, points: torch.Tensor, draw: Draw):
        self.points, self.draw = points, draw
        self.labels = torch.zeros(points.shape[:-1], dtype=torch.int64, device=points.device)
        self.tissues = [AIR]

    def paint(self, inside: torch.Tensor, tissue: int) -> torch.Tensor:
        self.labels = torch.where(inside, len(self.tissues), self.labels)
        self.tissues.append(tissue)
        return inside

    def divide(self, inside: torch.Tensor, parts: int, cells: int, tissues: tuple[int, ...]) -> None:
        """Fill with random shapes: where which of `parts` smooth noises is largest."""
        which = _sampled(self.draw.noise(parts, cells), self.points).argmax(1)
        self.labels = torch.where(inside, which + len(self.tissues), self.labels)
        self.tissues += [tissues[self.draw.integer(0, len(tissues) - 1)] for _ in range(parts)]

    def level(self, centre, radii, power: float = 2.0) -> torch.Tensor:
        """Below 1 inside a superellipsoid; a radius of infinity makes it a tube."""
        centre, radii = (torch.as_tensor(v, dtype=torch.float32, device=self.points.device) for v in (centre, radii))
        return (((self.points - centre) / radii).abs() ** power).sum(-1)


def _anatomy(points: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, list[int]]:
    """Labels [2, D, H, W] and the tissue of each label."""
    canvas = _Canvas(points, draw)
    {"shapes": _shapes, "head": _head, "trunk": _trunk, "limb": _limb}[draw.choose(ANATOMIES)](canvas)
    return canvas.labels, canvas.tissues


def _shapes(canvas: _Canvas) -> None:
    draw = canvas.draw
    everywhere = torch.ones_like(canvas.labels, dtype=torch.bool)
    inside = everywhere if draw.chance(0.3) else canvas.level(draw.vector(-0.1, 0.1), draw.vector(0.6, 1.0), 3) < 1
    canvas.divide(inside, draw.integer(5, 16), draw.integer(3, 10), (LUNG, FAT, SOFT, FLUID, BONE))
    _blobs(canvas, inside, draw.integer(0, 5), 0.7, (SOFT, FLUID, BONE))


def _blobs(canvas: _Canvas, inside: torch.Tensor, count: int, reach: float, tissues: tuple[int, ...]) -> None:
    """Organs, cysts, vessels: ellipsoids within `inside`."""
    draw = canvas.draw
    for _ in range(count):
        blob = canvas.level(draw.vector(-reach, reach), draw.vector(0.07, 0.28)) < 1
        canvas.paint(blob & inside, tissues[draw.integer(0, len(tissues) - 1)])


def _head(canvas: _Canvas) -> None:
    """Axis 0 up, 1 to the back, 2 to the side: scalp, skull, fluid, folded cortex, white matter, nuclei, ventricles."""
    draw = canvas.draw
    folds = 0.12 * _sampled(draw.noise(1, draw.integer(10, 16)), canvas.points)[:, 0]
    shape = canvas.level((0.1, 0, 0), draw.vector(0.72, 0.9), 2.3)
    thick = draw.uniform(0.04, 0.07)
    canvas.paint(shape < 1 + 4 * thick, SOFT if draw.chance(0.5) else FAT)
    neck = canvas.level((-0.8, 0.1, 0), (0.6, 0.42, 0.4)) < 1
    canvas.paint(neck, SOFT)
    canvas.paint(shape < 1 + 2 * thick, BONE)
    canvas.paint(shape < 1, FLUID)
    canvas.paint(shape + folds < 0.88, SOFT)
    white = canvas.paint(shape + 1.8 * folds < draw.uniform(0.55, 0.7), SOFT)
    if draw.chance(0.5):  # parcels
        canvas.divide(shape + folds < 0.88, draw.integer(4, 10), draw.integer(3, 7), (SOFT,))
        canvas.paint(white, SOFT)
    for side in (-1, 1):
        size = draw.uniform(0.05, 0.11)
        canvas.paint(canvas.level((0.1, 0.05, 0.17 * side), (0.14, 0.16, size)) < 1, SOFT)
        canvas.paint(canvas.level((0.22, 0.02, 0.1 * side), (0.1, 0.32, size)) < 1, FLUID)
        canvas.paint(canvas.level((-0.15, -0.72, 0.3 * side), (0.1, 0.1, 0.1)) < 1, FLUID)
    canvas.paint(canvas.level((-0.35, 0.42, 0), (0.2, 0.24, 0.36)) + folds < 1, SOFT)
    canvas.paint(canvas.level((-0.45, 0.08, 0), (0.35, 0.12, 0.12)) < 1, SOFT)
    canvas.paint(canvas.level((-0.4, -0.6, 0), (0.16, 0.18, 0.1)) < 1, AIR)


def _trunk(canvas: _Canvas) -> None:
    """Axis 0 up, 1 to the back, 2 to the side: skin and fat, muscle, ribs and spine, lungs with air, organs."""
    draw = canvas.draw
    endless, along = math.inf, canvas.points[..., 0]
    width, depth = draw.uniform(0.8, 0.92), draw.uniform(0.55, 0.8)
    body = canvas.level((0, 0, 0), (endless, depth, width), 2.6)
    canvas.paint(body < 1, FAT)
    wall = canvas.paint(body < draw.uniform(0.7, 0.9), SOFT)
    cavity = body < draw.uniform(0.5, 0.6)
    canvas.divide(cavity, draw.integer(3, 7), draw.integer(4, 8), (FAT, SOFT, SOFT))
    diaphragm = draw.uniform(-0.3, 0.3) + 0.15 * torch.cos(2 * canvas.points[..., 2])
    chest = along > diaphragm
    slope = along + 0.35 * canvas.points[..., 1]
    ribs = torch.cos(slope * draw.uniform(16, 26)) > draw.uniform(0.2, 0.5)
    canvas.paint(wall & ~cavity & (body < 0.68) & chest & ribs, BONE)
    for side in (-1, 1):
        lung = (canvas.level((0.3, 0, 0.36 * side), (endless, 0.9 * depth, 0.33), 2.4) < 1) & chest & cavity
        canvas.paint(lung, LUNG)
        canvas.paint(lung & (canvas.level((0.1, 0, 0.3 * side), (0.9, 0.06, 0.1)) < 1), SOFT)
        kidney = (draw.uniform(-0.6, -0.4), 0.35 * depth, 0.34 * side)
        canvas.paint((canvas.level(kidney, draw.vector(0.1, 0.2)) < 1) & cavity, SOFT)
    canvas.paint((canvas.level((0.2, -0.15, 0.12), draw.vector(0.2, 0.32)) < 1) & cavity & chest, SOFT)
    abdomen = cavity & ~chest
    canvas.paint((canvas.level((-0.2, -0.05, -0.38), (0.5, 0.45, 0.42)) < 1) & abdomen, SOFT)
    canvas.paint((canvas.level((-0.15, 0.2, 0.5), (0.25, 0.2, 0.15)) < 1) & abdomen, SOFT)
    canvas.paint(
        (canvas.level((-0.3, -0.2, 0.3), draw.vector(0.1, 0.25)) < 1) & abdomen, AIR if draw.chance(0.3) else FLUID
    )
    _blobs(canvas, abdomen, draw.integer(0, 4), 0.5, (SOFT, FLUID, AIR))
    canvas.paint(canvas.level((0, 0.35 * depth, 0.06), (endless, 0.06, 0.06)) < 1, SOFT)
    spine = canvas.level((0, 0.62 * depth, 0), (endless, 0.13, 0.13)) < 1
    canvas.paint(spine, SOFT)
    canvas.paint(spine & (torch.cos(along * draw.uniform(18, 30)) > -0.5), BONE)
    canvas.paint(canvas.level((0, 0.75 * depth, 0), (endless, 0.045, 0.05)) < 1, FLUID)


def _limb(canvas: _Canvas) -> None:
    """A joint along axis 0: skin, fat, muscles, two bones with marrow, fluid between them; perhaps a second limb."""
    draw = canvas.draw
    endless = math.inf
    centres = (-0.48, 0.48) if draw.chance(0.3) else (0.0,)
    scale = 0.5 if len(centres) == 2 else draw.uniform(0.75, 1.0)
    bone = scale * draw.uniform(0.2, 0.42)
    muscles, cells = draw.integer(3, 8), draw.integer(3, 6)
    gap, bend, thick = draw.uniform(-0.2, 0.2), draw.uniform(-0.4, 0.4), draw.uniform(0.5, 0.8)
    for side in centres:
        leg = canvas.level((0, 0, side), (endless, 0.9 * scale, 0.85 * scale))
        canvas.paint(leg < 1, FAT)
        canvas.divide(leg < 0.75, muscles, cells, (SOFT,))
        above = canvas.points[..., 0] - gap > 0
        swell = 1 + 0.7 * torch.exp(-(((canvas.points[..., 0] - gap) / 0.25) ** 2))
        tilt = bend * (canvas.points[..., 0] - gap).abs()
        place = ((canvas.points[..., 1] - tilt) ** 2 + (canvas.points[..., 2] - side) ** 2).sqrt() / (bone * swell)
        for half in (above, ~above):
            canvas.paint(half & (place < 1), BONE)
            canvas.paint(half & (place < thick), FAT)
        joint = canvas.level((gap, 0, side), (0.05, 1.6 * bone, 1.6 * bone)) < 1
        canvas.paint(joint, FLUID)


# --------------------------------------------------------------------------------------------------------- intensities


def _paint(labels: torch.Tensor, tissues: list[int], texture: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Images [2, D, H, W] in [0, 1] of labels and of a texture that belongs to the anatomy, both [2, D, H, W]."""
    same = draw.chance(SAME_CONTRAST)
    is_ct = [draw.chance(CT), draw.chance(CT)]
    if same:
        is_ct[1] = is_ct[0]
    tables = [_contrast(tissues, ct, draw) for ct in is_ct]
    grain = [draw.uniform(-0.08, 0.08) for _ in range(2)]
    if same:
        tables[1] = tables[0] + draw.uniform(0, 0.03) * draw.normal(len(tissues))
        grain[1] = grain[0]
    images = []
    for side in range(2):
        share = 0.15 if is_ct[side] else 1.0  # organs are smooth in a CT's wide window
        image = tables[side].to(labels.device)[labels[side]]
        image = image + share * grain[side] * texture[side] * (labels[side] > 0)
        images.append(_acquire(image, is_ct[side], draw))
    return torch.stack(images)


def _contrast(tissues: list[int], ct: bool, draw: Draw) -> torch.Tensor:
    """Intensity of each label, [n]."""
    n = len(tissues)
    if ct:
        mean, spread = torch.tensor(CT_VALUES)[tissues].T
        return mean + spread * draw.normal(n)
    by_tissue, table = draw.vector(0.05, 1, len(CT_VALUES))[tissues], draw.vector(0.05, 1, n)
    table = torch.lerp(table, by_tissue, draw.uniform(0, 0.8))
    for tissue, share in ((AIR, 0.9), (LUNG, 0.5), (BONE, 0.4)):  # MR: no signal from them
        if draw.chance(share):
            table[torch.tensor(tissues) == tissue] = draw.uniform(0, 0.05)
    return table


def _acquire(image: torch.Tensor, ct: bool, draw: Draw) -> torch.Tensor:
    """Shading, resolution, noise and field of view of a scanner, then `registration.intensity.normalise`; [D, H, W]."""
    shape = image.shape
    image = image[None, None]
    if not ct:
        shading = F.interpolate(draw.noise(1, draw.integer(2, 4)), size=shape, mode="trilinear")
        image = image * torch.exp(draw.uniform(0, 0.3) * shading)
    image = _blurred(image, draw)
    level = draw.uniform(0, 0.02 if ct else 0.07)
    noise = level * draw.white(*image.shape)
    image = (
        image + noise if ct or draw.chance(0.5) else ((image + noise) ** 2 + level**2 * draw.white(*shape) ** 2).sqrt()
    )
    image = image[0, 0]
    if draw.chance(0.25):
        axis = draw.integer(0, 2)
        lost = draw.integer(1, max(1, shape[axis] // 5))
        start = 0 if draw.chance(0.5) else shape[axis] - lost
        image.narrow(axis, start, lost).fill_(0.0)
    if ct:
        return image.clamp(0, 1)
    low = image.amin()
    high = image.flatten().kthvalue(max(1, int(0.99 * image.numel()))).values
    return ((image - low) / (high - low).clamp(min=1e-3)).clamp(0, 1) ** draw.uniform(0.7, 1.4)


def _blurred(image: torch.Tensor, draw: Draw) -> torch.Tensor:
    """[1, 1, D, H, W] as it was scanned on a coarser lattice: partial volume, often thick slices along one axis."""
    shape = image.shape[2:]
    share = draw.vector(0.6, 1.0)
    if draw.chance(0.3):
        share[draw.integer(0, 2)] *= draw.uniform(0.3, 0.7)
    scanned = [max(8, round(n * s)) for n, s in zip(shape, share.tolist(), strict=True)]
    return F.interpolate(F.interpolate(image, size=scanned, mode="area"), size=shape, mode="trilinear")
