"""The objective function of the field refinement, as a function of B-spline coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ..spatial.geometry import Grid
from ..spatial.trilinear import Frame, compared, trilinear
from .similarities import ONE_CONTRAST, find_similarity
from .similarity import apply_along_axes
from .splines import bspline_matrix, resize_by_area

#: Where single voxels are compared, fifteen to a control point, a quarter of them is in each step: every other row of
#: every other plane; where these begin, in turn (new samples in every step: Klein et al., IEEE TIP 2007).
SUBSET_OFFSETS = (0, 0), (1, 1), (0, 1), (1, 0)

#: All samples of a lattice: an index of its axes D and H.
_ALL = (slice(None), slice(None))


@dataclass(frozen=True)
class FieldRefinement:
    """Settings of the refinement. docs/refinement.md explains the choice of the defaults.

    Raises
    ------
    InputError
        For a similarity that registration/similarities.py does not have.
    """

    steps: int = 40  #: Adam steps on each level
    levels: tuple[float, ...] = (4, 2, 1)  #: sample distance on each level, in samples of the lattice
    control_spacing: float = 2.5  #: distance of the B-spline's control points, in samples of the level's finest axis
    similarity: str = ONE_CONTRAST  #: of registration/similarities.py
    window: float = 2.0  #: LNCC's Gaussian sigma, in samples of the level
    inverse_consistency: float = 2.0  #: lambda_icon
    diffusion: float = 0.07  #: lambda_diffusion
    roughness: float = 0.004  #: mean ``|grad u|^2`` (mm per mm) above which a pair counts as deforming unusually
    label_weight: float = 1.0  #: weight of 1 - mean soft Dice where labels are given
    learning_rate: float = 0.3  #: Adam's first step size, in samples of the level

    def __post_init__(self) -> None:
        """Check that the similarity exists."""
        find_similarity(self.similarity)


@dataclass(frozen=True)
class RefinementPair:
    """Two images on lattices of one shape (D, H, W); every tensor is float32 on one device.

    Attributes
    ----------
    fixed, moving : torch.Tensor
        [1, 1, D, H, W] in [0, 1].
    fixed_mask, moving_mask : torch.Tensor
        [1, 1, D, H, W], 1 where a voxel counts, 0 where it is masked out or was never scanned.
    fixed_lattice, moving_lattice : Grid
        Where the samples are, in mm (LPS).
    linear : np.ndarray
        4x4 fixed mm -> moving mm (LPS), the alignment from which displacements are measured.
    fixed_labels, moving_labels : torch.Tensor | None
        [1, C, D, H, W]: the share of each voxel that structure c fills.
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


def level_shape(pair: RefinementPair, distance: float) -> tuple[int, int, int]:
    """Return the shape of the pyramid's level with samples `distance` apart, in units of the lattice's finest axis.

    An axis that is sampled more coarsely than that keeps its samples: a stack of thick slices is first thinned in
    plane.
    """
    spacing = np.maximum(pair.fixed_lattice.spacing, pair.moving_lattice.spacing)[::-1]
    factor = np.maximum(distance * spacing.min() / spacing, 1)
    return tuple(max(min(n, 8), round(n / f)) for n, f in zip(pair.fixed_lattice.shape, factor, strict=True))


class BoxGeometry:
    """The boxes of the two lattices in mm and the linear alignment between them; batch index = direction."""

    def __init__(self, pair: RefinementPair):
        fixed, moving = pair.fixed_lattice.faces_to_world(), pair.moving_lattice.faces_to_world()
        there = np.linalg.inv(moving) @ pair.linear @ fixed

        def tensor(*arrays):
            return torch.tensor(np.stack(arrays), dtype=torch.float32, device=pair.fixed.device)

        #: [2, 4, 4], a point in the domain's box -> its point in the target's box
        self.linear = tensor(there, np.linalg.inv(there))
        #: [2, 3, 3], a displacement in the target's box -> mm; and in the domain's box -> mm
        self.target_to_mm = tensor(moving[:3, :3], fixed[:3, :3])
        self.domain_to_mm = self.target_to_mm.flip(0)
        #: [2, 3], edges of the domain's box along (D, H, W) in mm
        self.edges = tensor(pair.fixed_lattice.extent[::-1].copy(), pair.moving_lattice.extent[::-1].copy())

    def linear_points(self, shape) -> torch.Tensor:
        """Return the points to which the linear alignment maps the samples of each domain, [2, 3, D, H, W]."""
        return transform_samples(self.linear, shape)

    def jacobian(self, displacement: torch.Tensor) -> torch.Tensor:
        """Return the Jacobian determinant of both maps, [2, 1, D, H, W], 1 where they are the linear alignment."""
        shape = displacement.shape[2:]
        rows = []
        for axis in (4, 3, 2):  # along x, y, z of the domain's box
            (slope,) = torch.gradient(displacement, spacing=2 / shape[axis - 2], dim=axis)
            rows.append(slope + self.linear[:, :3, 4 - axis].view(2, 3, 1, 1, 1))
        # torch.linalg.cross takes ten times as long
        (a, b, c), (d, e, f), (g, h, i) = (row.split(1, 1) for row in rows)
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
        return determinant / torch.linalg.det(self.linear[:, :3, :3]).view(2, 1, 1, 1, 1)

    def inverse_consistency_loss(self, displacement: torch.Tensor) -> torch.Tensor:
        """Return the mean squared gradient of the round trip minus the identity, mm per mm, in both orders (GradICON).

        With x in one domain, its point y = phi(x) in the other and u the displacements from the linear alignment L,
        phi'(y) - x = L^-1 u(x) + u'(y).
        """
        points = self.linear_points(displacement.shape[2:]) + displacement
        back = sample_at_points(displacement, points.flip(0)).flip(0)
        error = transform_vectors(self.linear.flip(0)[:, :3, :3], displacement) + back
        return self.squared_gradient(transform_vectors(self.domain_to_mm, error))

    def squared_gradient(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return the mean squared gradient of vectors [2, 3, D, H, W] over both domains, in their units per mm."""
        edges = self.edges.view(2, 3, 1, 1, 1, 1).unbind(1)
        return _SquaredGradient.apply(vectors, [edge / n for edge, n in zip(edges, vectors.shape[2:], strict=True)])


class LevelImages:
    """The images at one level of the pyramid: features, masks and weights, constant while it is optimised."""

    def __init__(self, pair: RefinementPair, shape: Sequence[int], options: FieldRefinement):
        self.shape = tuple(shape)
        entry = find_similarity(options.similarity)
        self.similarity = entry.make_for_field(options.window) if entry.make_for_field else entry.make()
        self.gain = entry.gain
        #: which samples are compared, in turn
        self.parts = [_ALL]
        if self.similarity.compares_voxels:
            self.parts = [(slice(plane, None, 2), slice(row, None, 2)) for plane, row in SUBSET_OFFSETS]
        self.sources = torch.cat(
            [self.similarity.features(resize_by_area(x, shape)) for x in (pair.moving, pair.fixed)]
        )
        self.targets = None if self.similarity.compares_voxels else self.sources.flip(0)
        self.weights = self.similarity.informative(self.sources).flip(0)
        self.source_masks = None
        if bool((pair.moving_mask < 1).any() or (pair.fixed_mask < 1).any()):
            self.source_masks = resize_by_area(torch.cat([pair.moving_mask, pair.fixed_mask]), shape)
            self.weights = self.weights * self.similarity.centres(self.source_masks).flip(0)

    def dissimilarity(self, points: torch.Tensor, part: tuple[slice, slice] = _ALL) -> torch.Tensor:
        """Return the mean dissimilarity, summed over both directions; voxels outside the other image do not count.

        Parameters
        ----------
        points : torch.Tensor
            [2, 3, D, H, W], to which the samples `part` of D and H are mapped.
        part : tuple[slice, slice]
            Which samples along D and along H are compared.
        """
        weights = self.weights_at(points, part)
        local = self._local_dissimilarity(points, part) * weights
        return self.gain * (local.sum((1, 2, 3, 4)) / weights.sum((1, 2, 3, 4)).clamp_min(1)).sum()

    def _local_dissimilarity(self, points: torch.Tensor, part: tuple[slice, slice]) -> torch.Tensor:
        """Return the dissimilarity of each voxel that is compared, [2, 1, d, h, w]."""
        frame = Frame.faces(self.shape)
        if self.targets is None:  # voxels are compared one by one
            targets = self.sources[:, :, part[0], part[1]]

            def compare(values, n, planes):
                return self.similarity.compare_voxels(values, targets[1 - n, :, planes].view(values.shape))

            return compared(self.sources, points, frame, compare)
        warped = compared(self.sources, points, frame, lambda values, *_: (values[0], torch.ones_like(values)))
        return self.similarity.compare(warped, self.targets)

    @torch.no_grad()
    def weights_at(self, points: torch.Tensor, part: tuple[slice, slice] = _ALL) -> torch.Tensor:
        """Return the weight of each voxel that is compared, [2, 1, d, h, w], whose counterpart is at `points`."""
        points, weights = self.similarity.centres(points), self.weights[:, :, part[0], part[1]]
        inside = torch.ones_like(weights, dtype=torch.bool)
        for along in points.split(1, 1):
            inside &= along.abs() <= 1
        weights = weights * inside
        if self.source_masks is None:
            return weights.float()
        return weights * trilinear(self.source_masks, points, Frame.faces(self.shape))


class Objective:
    """The objective on one level, as a function of the coefficients of a B-spline, [2, 3, d, h, w] in samples.

    Parameters
    ----------
    pair : RefinementPair
        The images on their lattices.
    space : BoxGeometry
        Of the same pair.
    start : torch.Tensor
        Displacements from the linear alignment, [2, 3, D, H, W], to which the spline is added.
    options : FieldRefinement
        Weights and window.
    """

    def __init__(self, pair: RefinementPair, space: BoxGeometry, start: torch.Tensor, options: FieldRefinement):
        level = LevelImages(pair, tuple(start.shape[2:]), options)
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
        self._roughness = Roughness(space, start, self._spline, self._voxel)
        self._start_points = space.linear_points(level.shape).add_(start)
        # inverse consistency is measured at every other sample, as in the published training, but at every slice of
        # few; that is enough for labels, too, and makes a hundred structures affordable
        thinned = [max(-(-n // 2), controls) for n, controls in zip(level.shape, self.controls, strict=True)]
        self._thinned_spline, self._thinned_start = self._matrices(thinned), resize_by_area(start, thinned)
        self._labels: torch.Tensor | None = None
        if pair.fixed_labels is not None and pair.moving_labels is not None:
            self._labels = resize_by_area(torch.cat([pair.moving_labels, pair.fixed_labels]), thinned)

    def _matrices(self, shape) -> list[torch.Tensor]:
        return [bspline_matrix(n, c).to(self.device) for n, c in zip(shape, self.controls, strict=True)]

    def displacement(self, coefficients: torch.Tensor) -> torch.Tensor:
        """Return the displacement from the linear alignment, [2, 3, D, H, W]."""
        return apply_along_axes(coefficients * self._voxel, self._spline).add_(self._start)

    def derivative(self, coefficients: torch.Tensor, step: int = 0) -> torch.Tensor:
        """Return the gradient with respect to the coefficients, [2, 3, d, h, w].

        Terms are differentiated one after the other: the volumes of one are freed before those of the next are made.

        Parameters
        ----------
        coefficients : torch.Tensor
            [2, 3, d, h, w], in samples.
        step : int
            Number of the step, which chooses the part of the images that is compared.
        """
        shift = coefficients * self._voxel
        along_d, along_h = part = self._level.parts[step % len(self._level.parts)]
        spline = [self._spline[0][along_d], self._spline[1][along_h], self._spline[2]]
        points = apply_along_axes(shift, spline).add_(self._start_points[:, :, along_d, along_h])
        by_points = _gradient(lambda points: self._level.dissimilarity(points, part), points)
        by_shift = _gradient_of_coefficients(by_points, spline)
        displacement = apply_along_axes(shift, self._thinned_spline).add_(self._thinned_start)
        by_shift.add_(_gradient_of_coefficients(_gradient(self._thinned_terms, displacement), self._thinned_spline))
        rough, by_coefficients = self._roughness(coefficients)
        # d/dx of diffusion * log(1 + x / roughness)
        diffusion = self.options.diffusion / (self.options.roughness + rough)
        return torch.addcmul(diffusion * by_coefficients, by_shift, self._voxel)

    def _thinned_terms(self, displacement: torch.Tensor) -> torch.Tensor:
        """Return the terms of inverse consistency and labels, which need fewer samples."""
        terms = self.options.inverse_consistency * self._space.inverse_consistency_loss(displacement)
        if self._labels is not None:
            terms = terms + self.options.label_weight * self._label_mismatch(self._labels, displacement)
        return terms

    def _label_mismatch(self, labels: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        """Return 1 - mean soft Dice (Milletari et al., 3DV 2016), summed over both directions."""
        warped = sample_at_points(labels, self._space.linear_points(displacement.shape[2:]) + displacement)
        target = labels.flip(0)
        dims = (2, 3, 4)
        dice = (2 * (warped * target).sum(dims) + 1e-3) / (warped.sum(dims) + target.sum(dims) + 1e-3)
        return (1 - dice.mean(1)).sum()


def _gradient(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of `function`, a scalar, with respect to `x`."""
    return torch.autograd.grad(function(x.requires_grad_()), x)[0]


def _gradient_of_coefficients(by_samples: torch.Tensor, spline: list[torch.Tensor]) -> torch.Tensor:
    """Return the gradient with respect to a spline's coefficients, from that with respect to its samples."""
    return apply_along_axes(by_samples, [basis.T for basis in spline])


class _SquaredGradient(torch.autograd.Function):
    """Sum over the axes of mean (difference of neighbours / distance)^2, with its gradient written out.

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


class Roughness:
    """Mean squared gradient, mm per mm, of displacements start + spline(coefficients) * voxel: a quadratic form.

    A spline is a matrix along each axis, and so is a difference. The samples, of which there are fifteen to a
    coefficient, need not be visited: the form's matrix is a product of one small matrix per axis.
    """

    def __init__(self, space: BoxGeometry, start: torch.Tensor, spline: list[torch.Tensor], voxel: torch.Tensor):
        in_mm = space.target_to_mm * voxel.view(3)
        self._metric = in_mm.mT @ in_mm
        of_start = transform_vectors(in_mm.mT @ space.target_to_mm, start)
        self._of_start = space.squared_gradient(transform_vectors(space.target_to_mm, start))
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
        """Return the value and its gradient with respect to the coefficients."""
        mixed = transform_vectors(self._metric, coefficients)
        curved = sum(weights * apply_along_axes(mixed, matrices) for matrices, weights in self._axes)
        value = self._of_start + torch.dot((self._slope + curved).flatten(), coefficients.flatten())
        return value, self._slope + 2 * curved


def sample_at_points(values: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Interpolate values [2, C, D, H, W] at points [2, 3, d, h, w], trilinear, the border continued outwards."""
    return F.grid_sample(values, points.movedim(1, -1), padding_mode="border", align_corners=False)


def transform_samples(matrices: torch.Tensor, shape) -> torch.Tensor:
    """Apply [2, 4, 4] to the samples of a lattice of `shape`: points [2, 3, D, H, W]."""
    z, y, x = ((2 * torch.arange(n, device=matrices.device) + 1) / n - 1 for n in shape)
    by_x, by_y, by_z, shift = (column[..., None, None, None] for column in matrices[:, :3].unbind(2))
    return by_x * x + by_y * y[:, None] + shift + by_z * z[:, None, None]


def transform_vectors(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Multiply vectors [2, 3, D, H, W] by matrices [2, 3, 3]."""
    return (matrices @ vectors.flatten(2)).view(vectors.shape)


def faces_from_phi(phi: torch.Tensor) -> torch.Tensor:
    """Convert a map [1, 3, D, H, W] in [0, 1] (k, j, i; sample centres) to points (x, y, z) in [-1, 1] (faces)."""
    count = torch.tensor(phi.shape[2:], device=phi.device).view(1, 3, 1, 1, 1)
    return ((2 * phi * (count - 1) + 1) / count - 1).flip(1)


def phi_from_faces(points: torch.Tensor) -> torch.Tensor:
    """Convert points to a map: the inverse of `faces_from_phi`."""
    count = torch.tensor(points.shape[2:], device=points.device).view(1, 3, 1, 1, 1)
    return ((points.flip(1) + 1) * count - 1) / (2 * (count - 1))
