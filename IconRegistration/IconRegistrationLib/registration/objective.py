"""The objective function of the field refinement, as a function of B-spline coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..spatial.geometry import Grid
from ..spatial.trilinear import Frame, compared, trilinear
from .similarities import ONE_CONTRAST, find_similarity
from .similarity import apply_along_axes
from .splines import _bspline_matrix, _resized

#: Where single voxels are compared, fifteen to a control point, a quarter of them is in each step: every other row of
#: every other plane; where these begin, in turn (new samples in every step: Klein et al., IEEE TIP 2007).
TURNS = (0, 0), (1, 1), (0, 1), (1, 0)

#: All samples of a lattice: an index of its axes D and H.
_ALL = (slice(None), slice(None))


@dataclass(frozen=True)
class FieldRefinement:
    """How the maps are refined. docs/refinement.md tells how the defaults were chosen."""

    steps: int = 40  #: Adam steps on each level
    levels: tuple[float, ...] = (4, 2, 1)  #: sample distance on each level, in samples of the lattice
    control_spacing: float = 2.5  #: distance of the B-spline's control points, in samples of the level's finest axis
    similarity: str = ONE_CONTRAST  #: of registration/similarities.py
    window: float = 2.0  #: LNCC's Gaussian sigma, in samples of the level
    inverse_consistency: float = 2.0  #: lambda_icon
    diffusion: float = 0.07  #: lambda_diffusion
    roughness: float = 0.004  #: mean |grad u|^2 (mm per mm) beyond which the pair is taken to deform more than usual
    label_weight: float = 1.0  #: weight of 1 - mean soft Dice where labels are given
    learning_rate: float = 0.3  #: Adam's first step size, in samples of the level

    def __post_init__(self):
        find_similarity(self.similarity)


@dataclass(frozen=True)
class Pair:
    """What is registered, on two lattices of one shape (D, H, W); every tensor is float32 on one device.

    fixed, moving: [1, 1, D, H, W] in [0, 1].
    fixed_mask, moving_mask: [1, 1, D, H, W], 1 where a voxel counts, 0 where it is masked out or was never scanned.
    fixed_labels, moving_labels: [1, C, D, H, W] or None: the share of each voxel that structure c fills.
    linear: 4x4 fixed mm -> moving mm (LPS), the alignment from which displacements are measured.
    """

    fixed: torch.Tensor
    moving: torch.Tensor
    fixed_mask: torch.Tensor
    moving_mask: torch.Tensor
    fixed_lattice: Grid
    moving_lattice: Grid
    linear: np.ndarray
    fixed_labels: torch.Tensor | None = None
    moving_labels: torch.Tensor | None = None


def level_shape(pair: Pair, distance: float) -> tuple[int, int, int]:
    """Shape of the pyramid's level with samples `distance` apart, in units of the lattice's finest axis.

    An axis that is sampled more coarsely than that keeps its samples: a stack of thick slices is first thinned in
    plane.
    """
    spacing = np.maximum(pair.fixed_lattice.spacing, pair.moving_lattice.spacing)[::-1]
    factor = np.maximum(distance * spacing.min() / spacing, 1)
    return tuple(max(min(n, 8), round(n / f)) for n, f in zip(pair.fixed_lattice.shape, factor, strict=True))


class _Space:
    """The boxes of the two lattices in mm and the linear alignment between them, batch index = direction."""

    def __init__(self, pair: Pair):
        fixed, moving = pair.fixed_lattice.faces_to_world(), pair.moving_lattice.faces_to_world()
        there = np.linalg.inv(moving) @ pair.linear @ fixed

        def tensor(*arrays):
            return torch.tensor(np.stack(arrays), dtype=torch.float32, device=pair.fixed.device)

        #: [2, 4, 4], a place in the domain's box -> its place in the target's box
        self.linear = tensor(there, np.linalg.inv(there))
        #: [2, 3, 3], a displacement in the target's box -> mm; and in the domain's box -> mm
        self.target_to_mm = tensor(moving[:3, :3], fixed[:3, :3])
        self.domain_to_mm = self.target_to_mm.flip(0)
        #: [2, 3], edges of the domain's box along (D, H, W) in mm
        self.edges = tensor(pair.fixed_lattice.extent[::-1].copy(), pair.moving_lattice.extent[::-1].copy())

    def linear_places(self, shape) -> torch.Tensor:
        """[2, 3, D, H, W]: where the linear alignment takes the samples of each domain."""
        return _samples_through(self.linear, shape)

    def jacobian(self, displacement: torch.Tensor) -> torch.Tensor:
        """Jacobian determinant of both maps, 1 where they are the linear alignment: [2, 1, D, H, W]."""
        shape = displacement.shape[2:]
        rows = []
        for axis in (4, 3, 2):  # along x, y, z of the domain's box
            (slope,) = torch.gradient(displacement, spacing=2 / shape[axis - 2], dim=axis)
            rows.append(slope + self.linear[:, :3, 4 - axis].view(2, 3, 1, 1, 1))
        # torch.linalg.cross takes ten times as long
        (a, b, c), (d, e, f), (g, h, i) = (row.split(1, 1) for row in rows)
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        return determinant / torch.linalg.det(self.linear[:, :3, :3]).view(2, 1, 1, 1, 1)

    def inverse_inconsistency(self, displacement: torch.Tensor) -> torch.Tensor:
        """Mean squared derivative of there-and-back minus identity, mm per mm, both ways round (GradICON).

        With x in one domain, its place y = phi(x) in the other and u the displacements from the linear alignment L,
        phi'(y) - x = L^-1 u(x) + u'(y).
        """
        places = self.linear_places(displacement.shape[2:]) + displacement
        back = _sample(displacement, places.flip(0)).flip(0)
        error = _rotated(self.linear.flip(0)[:, :3, :3], displacement) + back
        return self.squared_gradient(_rotated(self.domain_to_mm, error))

    def squared_gradient(self, vectors: torch.Tensor) -> torch.Tensor:
        """Mean squared derivative of vectors [2, 3, D, H, W] at the samples of both domains, in their units per mm."""
        edges = self.edges.view(2, 3, 1, 1, 1, 1).unbind(1)
        return _SquaredGradient.apply(vectors, [edge / n for edge, n in zip(edges, vectors.shape[2:], strict=True)])


class _Level:
    """The images at one resolution: what stays the same while one level of the pyramid is optimised."""

    def __init__(self, pair: Pair, shape: tuple[int, int, int], options: FieldRefinement):
        self.shape = shape
        entry = find_similarity(options.similarity)
        self.similarity = entry.make_for_field(options.window) if entry.make_for_field else entry.make()
        self.gain = entry.gain
        #: which samples are compared, in turn
        self.parts = [_ALL]
        if self.similarity.compares_voxels:
            self.parts = [(slice(plane, None, 2), slice(row, None, 2)) for plane, row in TURNS]
        self.sources = torch.cat([self.similarity.features(_resized(x, shape)) for x in (pair.moving, pair.fixed)])
        self.targets = None if self.similarity.compares_voxels else self.sources.flip(0)
        self.weights = self.similarity.informative(self.sources).flip(0)
        self.source_masks = None
        if bool((pair.moving_mask < 1).any() or (pair.fixed_mask < 1).any()):
            self.source_masks = _resized(torch.cat([pair.moving_mask, pair.fixed_mask]), shape)
            self.weights = self.weights * self.similarity.centres(self.source_masks).flip(0)

    def dissimilarity(self, places: torch.Tensor, part: tuple[slice, slice] = _ALL) -> torch.Tensor:
        """Sum over both directions. Voxels that leave the other image do not count.

        places: [2, 3, D, H, W], those of the samples `part` of D and H.
        """
        weights = self.weights_at(places, part)
        local = self._local_dissimilarity(places, part) * weights
        return self.gain * (local.sum((1, 2, 3, 4)) / weights.sum((1, 2, 3, 4)).clamp_min(1)).sum()

    def _local_dissimilarity(self, places: torch.Tensor, part: tuple[slice, slice]) -> torch.Tensor:
        """[2, 1, d, h, w]"""
        frame = Frame.faces(self.shape)
        if self.targets is None:  # the features of one voxel speak for themselves
            targets = self.sources[:, :, part[0], part[1]]

            def compare(values, n, planes):
                return self.similarity.compare_voxels(values, targets[1 - n, :, planes].view(values.shape))

            return compared(self.sources, places, frame, compare)
        warped = compared(self.sources, places, frame, lambda values, *_: (values[0], torch.ones_like(values)))
        return self.similarity.compare(warped, self.targets)

    @torch.no_grad()
    def weights_at(self, places: torch.Tensor, part: tuple[slice, slice] = _ALL) -> torch.Tensor:
        """How much each voxel that is compared counts, [2, 1, d, h, w], when the counterparts are at `places`."""
        places, weights = self.similarity.centres(places), self.weights[:, :, part[0], part[1]]
        inside = torch.ones_like(weights, dtype=torch.bool)
        for along in places.split(1, 1):
            inside &= along.abs() <= 1
        weights = weights * inside
        if self.source_masks is None:
            return weights.float()
        return weights * trilinear(self.source_masks, places, Frame.faces(self.shape))


class _Objective:
    """What is minimised on one level, as a function of the coefficients of a B-spline, [2, 3, d, h, w] in samples.

    start: displacements from the linear alignment, [2, 3, D, H, W], to which the spline is added.
    """

    def __init__(self, pair: Pair, space: _Space, start: torch.Tensor, options: FieldRefinement):
        level = _Level(pair, tuple(start.shape[2:]), options)
        self.options, self.device = options, start.device
        self._level, self._space, self._start = level, space, start
        extents = space.edges.mean(0).tolist()
        distance = self.options.control_spacing * min(e / n for e, n in zip(extents, level.shape, strict=True))
        # equally far apart in mm: thick slices, which are few, are not thinned once more
        self.controls = [
            max(4, min(n, math.ceil(e / distance - 1e-6))) for e, n in zip(extents, level.shape, strict=True)
        ]
        self._voxel = torch.tensor([2 / n for n in reversed(level.shape)], device=self.device).view(3, 1, 1, 1)
        self._spline = self._matrices(level.shape)
        self._roughness = _Roughness(space, start, self._spline, self._voxel)
        self._start_places = space.linear_places(level.shape).add_(start)
        # inverse consistency looks at every other sample, as in the published training, but at every slice of a few;
        # that is enough for labels, too, and makes a hundred structures affordable
        thin = [max(-(-n // 2), controls) for n, controls in zip(level.shape, self.controls, strict=True)]
        self._thin_spline, self._thin_start = self._matrices(thin), _resized(start, thin)
        self._labels = None
        if pair.fixed_labels is not None:
            self._labels = _resized(torch.cat([pair.moving_labels, pair.fixed_labels]), thin)

    def _matrices(self, shape) -> list[torch.Tensor]:
        return [_bspline_matrix(n, c).to(self.device) for n, c in zip(shape, self.controls, strict=True)]

    def displacement(self, coefficients: torch.Tensor) -> torch.Tensor:
        """From the linear alignment, [2, 3, D, H, W]."""
        return apply_along_axes(coefficients * self._voxel, self._spline).add_(self._start)

    def derivative(self, coefficients: torch.Tensor, step: int = 0) -> torch.Tensor:
        """By the coefficients; of one term after the other, for volumes of one need not wait for those of the next.

        step: whose turn it is of the parts of the images that are compared.
        """
        shift = coefficients * self._voxel
        along_d, along_h = part = self._level.parts[step % len(self._level.parts)]
        spline = [self._spline[0][along_d], self._spline[1][along_h], self._spline[2]]
        places = apply_along_axes(shift, spline).add_(self._start_places[:, :, along_d, along_h])
        by_places = _derivative(lambda places: self._level.dissimilarity(places, part), places)
        by_shift = _by_coefficients(by_places, spline)
        displacement = apply_along_axes(shift, self._thin_spline).add_(self._thin_start)
        by_shift.add_(_by_coefficients(_derivative(self._thin_terms, displacement), self._thin_spline))
        rough, by_coefficients = self._roughness(coefficients)
        # d/dx of diffusion * log(1 + x / roughness)
        diffusion = self.options.diffusion / (self.options.roughness + rough)
        return torch.addcmul(diffusion * by_coefficients, by_shift, self._voxel)

    def _thin_terms(self, displacement: torch.Tensor) -> torch.Tensor:
        """Inverse consistency and labels, which need fewer samples."""
        terms = self.options.inverse_consistency * self._space.inverse_inconsistency(displacement)
        if self._labels is not None:
            terms = terms + self.options.label_weight * self._label_mismatch(displacement)
        return terms

    def _label_mismatch(self, displacement: torch.Tensor) -> torch.Tensor:
        """1 - mean soft Dice (Milletari et al., 3DV 2016), summed over both directions."""
        warped = _sample(self._labels, self._space.linear_places(displacement.shape[2:]) + displacement)
        target = self._labels.flip(0)
        dims = (2, 3, 4)
        dice = (2 * (warped * target).sum(dims) + 1e-3) / (warped.sum(dims) + target.sum(dims) + 1e-3)
        return (1 - dice.mean(1)).sum()


def _derivative(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Of a scalar function, by `x`."""
    return torch.autograd.grad(function(x.requires_grad_()), x)[0]


def _by_coefficients(by_samples: torch.Tensor, spline: list[torch.Tensor]) -> torch.Tensor:
    """The derivative by a spline's coefficients, from that by its samples."""
    return apply_along_axes(by_samples, [basis.T for basis in spline])


class _SquaredGradient(torch.autograd.Function):
    """Sum over the axes of mean (difference of neighbours / distance)^2, with its derivative written out.

    distances: [2, 1, 1, 1, 1] for each axis.
    """

    @staticmethod
    def forward(context, vectors, distances):
        total = torch.zeros((), device=vectors.device)
        slope = torch.zeros_like(vectors) if context.needs_input_grad[0] else None
        for axis, distance in enumerate(distances, 2):
            difference = vectors.diff(dim=axis)
            weighted = difference / (distance**2 * difference.numel())
            total += torch.dot(difference.flatten(), weighted.flatten())
            if slope is not None:
                slope.narrow(axis, 1, difference.shape[axis]).add_(weighted, alpha=2)
                slope.narrow(axis, 0, difference.shape[axis]).sub_(weighted, alpha=2)
        context.save_for_backward(slope)
        return total

    @staticmethod
    def backward(context, gradient):
        return context.saved_tensors[0] * gradient, None


class _Roughness:
    """Mean squared derivative, mm per mm, of displacements start + spline(coefficients) * voxel: a quadratic form.

    A spline is a matrix along each axis, and so is a difference. The samples, of which there are fifteen to a
    coefficient, need not be visited: the form's matrix is a product of one small matrix per axis.
    """

    def __init__(self, space: _Space, start: torch.Tensor, spline: list[torch.Tensor], voxel: torch.Tensor):
        in_mm = space.target_to_mm * voxel.view(3)
        self._metric = in_mm.mT @ in_mm
        of_start = _rotated(in_mm.mT @ space.target_to_mm, start)
        self._of_start = space.squared_gradient(_rotated(space.target_to_mm, start))
        self._slope = 0.0
        self._axes = []
        for axis, basis in enumerate(spline):
            shape = list(start.shape)
            distance = space.edges[:, axis] / shape[2 + axis]
            shape[2 + axis] -= 1
            weights = (1 / (distance**2 * math.prod(shape))).view(2, 1, 1, 1, 1)
            step = torch.eye(len(basis), device=basis.device).diff(dim=0)
            left = [matrix.T for matrix in spline]
            left[axis] = (step @ basis).T @ step
            matrices = [one @ other for one, other in zip(left, spline, strict=True)]
            self._slope = self._slope + 2 * weights * apply_along_axes(of_start, left)
            self._axes.append((matrices, weights))

    def __call__(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The value, and its derivative by the coefficients."""
        mixed = _rotated(self._metric, coefficients)
        curved = sum(weights * apply_along_axes(mixed, matrices) for matrices, weights in self._axes)
        value = self._of_start + torch.dot((self._slope + curved).flatten(), coefficients.flatten())
        return value, self._slope + 2 * curved


def _sample(values: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """values [2, C, D, H, W] at places [2, 3, d, h, w], trilinear, the border continued outwards."""
    return F.grid_sample(values, places.movedim(1, -1), padding_mode="border", align_corners=False)


def _samples_through(matrices: torch.Tensor, shape) -> torch.Tensor:
    """[2, 4, 4] applied to the samples of a lattice of `shape`: places [2, 3, D, H, W]."""
    z, y, x = ((2 * torch.arange(n, device=matrices.device) + 1) / n - 1 for n in shape)
    by_x, by_y, by_z, shift = (column[..., None, None, None] for column in matrices[:, :3].unbind(2))
    return by_x * x + by_y * y[:, None] + shift + by_z * z[:, None, None]


def _rotated(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """[2, 3, 3] times [2, 3, D, H, W]."""
    return (matrices @ vectors.flatten(2)).view(vectors.shape)


def _faces_from_phi(phi: torch.Tensor) -> torch.Tensor:
    """Map [1, 3, ...] in [0, 1] (k, j, i; sample centres) to places (x, y, z; faces). The lattices share one shape."""
    count = torch.tensor(phi.shape[2:], device=phi.device).view(1, 3, 1, 1, 1)
    return ((2 * phi * (count - 1) + 1) / count - 1).flip(1)


def _phi_from_faces(places: torch.Tensor) -> torch.Tensor:
    """The way back."""
    count = torch.tensor(places.shape[2:], device=places.device).view(1, 3, 1, 1, 1)
    return ((places.flip(1) + 1) * count - 1) / (2 * (count - 1))
