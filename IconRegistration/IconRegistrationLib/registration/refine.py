"""Instance optimisation of one pair without a network: the maps themselves are refined, both directions at once.

Minimised over residual displacements of both maps, on a coarse-to-fine pyramid::

    similarity(A o phi_AB, B) + similarity(B o phi_BA, A)
      + lambda_icon (|grad(phi_BA o phi_AB - id)|^2 + |grad(phi_AB o phi_BA - id)|^2) / 2
      + lambda_diffusion log(1 + (|grad u_AB|^2 + |grad u_BA|^2) / 2 roughness)

The second line is GradICON's regulariser (Tian et al., CVPR 2023, eq. 4), applied to one pair's maps in place of a
network's. In the third u is the displacement from the linear alignment, and its logarithm a prior whose strength is not
known beforehand: one normal distribution of grad u for two visits of a patient, who hardly deforms, a wider one for two
people, its scale integrated out (inferred from the pair in Simpson et al., NeuroImage 2012). Gradients are mm per mm. A
residual is a cubic B-spline (Rueckert et al., IEEE TMI 1999), which keeps it smooth, optimised by Adam. Nothing is
back-propagated through a network, and the two directions are the two samples of one batch, so that they share every
kernel.

Inside this file a point is (x, y, z) in [-1, 1] from face to face of a lattice's box: the coordinates of
torch.nn.functional.grid_sample with align_corners=False, the same on every level of the pyramid. Batch index 0 is the
direction fixed -> moving (phi_AB, on the fixed lattice), 1 is moving -> fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F

from ..spatial.trilinear import Frame, trilinear
from .objective import (
    BoxGeometry,
    FieldRefinement,
    LevelImages,
    Objective,
    RefinementPair,
    faces_from_phi,
    level_shape,
    phi_from_faces,
    sample_at_points,
    transform_samples,
    transform_vectors,
)
from .similarity import LNCC, GaussianWindow
from .splines import resize_by_area, resize_smoothly

#: Jacobian determinant, relative to the linear alignment's, below which a map counts as folded.
LEAST_JACOBIAN = 0.02

#: Local blurs after which remaining folds are left, and reported.
MOST_BLURS = 30

#: How much of the gradient's running mean and mean square Adam keeps from step to step.
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.99


def refine(
    pair: RefinementPair,
    phi_AB: torch.Tensor,
    phi_BA: torch.Tensor,
    options: FieldRefinement | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refine the maps of both directions on a coarse-to-fine pyramid.

    Parameters
    ----------
    pair : RefinementPair
        The images on their lattices.
    phi_AB, phi_BA : torch.Tensor
        Where to start, each [1, 3, D, H, W] in [0, 1] (docs/phi.md): a network's maps, or `linear_maps(pair)`.
    options : FieldRefinement, optional
        Steps, levels, similarity and weights.
    progress : Callable[[float], None]
        Called with the share of the work done after every step; what it raises ends the refinement.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        phi_AB and phi_BA refined, each [1, 3, D, H, W] in [0, 1], detached, without folds.

    References
    ----------
    Tian et al., GradICON, CVPR 2023; Rueckert et al., IEEE TMI 1999; Simpson et al., NeuroImage 2012.
    """
    options = options or FieldRefinement()
    space = BoxGeometry(pair)
    shape = pair.fixed_lattice.shape

    def start(level) -> torch.Tensor:
        """Return the given displacement; it is computed again rather than kept, to save memory."""
        points = torch.cat([faces_from_phi(phi_AB), faces_from_phi(phi_BA)]).to(pair.fixed.device)
        return resize_by_area(points.sub_(space.linear_points(shape)), level)

    levels = [level_shape(pair, distance) for distance in options.levels]
    work = [math.prod(level) for level in levels]
    residual = torch.zeros(2, 3, *levels[0], device=pair.fixed.device)
    for number, level in enumerate(levels):

        def report(share, number=number):
            progress((sum(work[:number]) + work[number] * share) / sum(work))

        residual = start(level).add_(resize_smoothly(residual, level))
        residual = _optimise(Objective(pair, space, residual, options), report).sub_(start(level))
    displacement = remove_folds(space, resize_smoothly(residual, shape).add_(start(shape)))
    phi = phi_from_faces(space.linear_points(shape) + displacement)
    return phi[:1], phi[1:]


def linear_maps(pair: RefinementPair) -> tuple[torch.Tensor, torch.Tensor]:
    """Return phi_AB and phi_BA of the linear alignment alone, each [1, 3, D, H, W] in [0, 1]."""
    phi = phi_from_faces(BoxGeometry(pair).linear_points(pair.fixed_lattice.shape))
    return phi[:1], phi[1:]


def resample_maps(
    phi_AB: torch.Tensor, phi_BA: torch.Tensor, source: RefinementPair, target: RefinementPair
) -> tuple[torch.Tensor, torch.Tensor]:
    """Resample maps on the lattices of `source` on those of `target`.

    Both pairs have the same linear alignment; the displacement from it is interpolated, and continued beyond a box.

    Parameters
    ----------
    phi_AB, phi_BA : torch.Tensor
        Each [1, 3, D, H, W] in [0, 1], on the lattices of `source`.
    source, target : RefinementPair
        The same images on two pairs of lattices.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        The same two maps on the lattices of `target`.
    """
    old, new = BoxGeometry(source), BoxGeometry(target)
    start = torch.cat([faces_from_phi(phi_AB), faces_from_phi(phi_BA)]).to(source.fixed.device)
    displacement = transform_vectors(old.target_to_mm, start - old.linear_points(start.shape[2:]))
    shape = target.fixed_lattice.shape
    lattices = (target.fixed_lattice, source.fixed_lattice), (target.moving_lattice, source.moving_lattice)
    boxes = np.stack([np.linalg.inv(theirs.faces_to_world()) @ ours.faces_to_world() for ours, theirs in lattices])
    points = transform_samples(torch.tensor(boxes, dtype=torch.float32, device=start.device), shape)
    moved = transform_vectors(torch.linalg.inv(new.target_to_mm), sample_at_points(displacement, points))
    phi = phi_from_faces(new.linear_points(shape) + moved)
    return phi[:1], phi[1:]


def contrast_agreement(pair: RefinementPair, phi_AB: torch.Tensor, phi_BA: torch.Tensor) -> float:
    """Measure the signed agreement of local contrast: ``sum c |c| / sum c^2`` of the local correlation c.

    Parameters
    ----------
    pair : RefinementPair
        The images on their lattices.
    phi_AB, phi_BA : torch.Tensor
        Maps that bring them together, each [1, 3, D, H, W] in [0, 1].

    Returns
    -------
    float
        In [-1, 1]: 1 where all local correlation is positive, as for two images of one contrast; well below 1 where two
        contrasts agree in some places and are opposed in others.
    """
    level = LevelImages(pair, pair.fixed_lattice.shape, FieldRefinement(similarity="lncc"))
    lncc = cast("LNCC", level.similarity)
    points = torch.cat([faces_from_phi(phi_AB), faces_from_phi(phi_BA)]).to(pair.fixed.device)
    warped = trilinear(level.sources, points, Frame.faces(level.shape))
    correlation = lncc.correlation(warped, level.sources.flip(0))
    weights = level.weights_at(points)
    return float((correlation * correlation.abs() * weights).sum() / (correlation**2 * weights).sum().clamp_min(1e-6))


def _optimise(objective: Objective, report: Callable[[float], None]) -> torch.Tensor:
    """Return displacements [2, 3, D, H, W] from the linear alignment, after `options.steps` of Adam."""
    # Kingma & Ba, ICLR 2015; loading torch.optim costs a process a second
    options = objective.options
    coefficients = torch.zeros(2, 3, *objective.controls, device=objective.device)
    mean, square = torch.zeros_like(coefficients), torch.zeros_like(coefficients)
    for step in range(1, options.steps + 1):
        gradient = objective.derivative(coefficients, step)
        mean.lerp_(gradient, 1 - MEAN_DECAY)
        square.lerp_(gradient**2, 1 - SQUARE_DECAY)
        scale = torch.sqrt(square / (1 - SQUARE_DECAY**step)) + 1e-8
        cosine = (1 + math.cos(math.pi * (step - 1) / options.steps)) / 2
        rate = options.learning_rate * (0.02 + 0.98 * cosine) / (1 - MEAN_DECAY**step)
        coefficients -= rate * mean / scale
        report(step / options.steps)
    return objective.displacement(coefficients)


@torch.no_grad()
def remove_folds(space: BoxGeometry, displacement: torch.Tensor) -> torch.Tensor:
    """Blur displacements [2, 3, D, H, W] where the map folds or is about to, until it no longer does.

    The regularisers leave a few folds in ten thousand samples; a handful of local blurs removes them and leaves
    everything farther than three samples from one as it was.
    """
    blur = GaussianWindow(1.0, within=True)
    for _ in range(MOST_BLURS):
        folded = space.jacobian(displacement) < LEAST_JACOBIAN
        if not bool(folded.any()):
            break
        weight = blur(F.max_pool3d(folded.to(displacement.dtype), 3, stride=1, padding=1))
        displacement = torch.lerp(displacement, blur(displacement), weight)
    return displacement
