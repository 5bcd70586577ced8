"""Instance optimisation of one pair without a network: the maps themselves are refined, both directions at once.

Minimised over residual displacements of both maps, on a coarse-to-fine pyramid:

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

Inside this file a place is (x, y, z) in [-1, 1] from face to face of a lattice's box: the coordinates of
torch.nn.functional.grid_sample with align_corners=False, the same on every level of the pyramid. Batch index 0 is the
direction fixed -> moving (phi_AB, on the fixed lattice), 1 is moving -> fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from ..spatial.trilinear import Frame, trilinear
from .objective import (
    FieldRefinement,
    Pair,
    _faces_from_phi,
    _Level,
    _Objective,
    _phi_from_faces,
    _rotated,
    _sample,
    _samples_through,
    _Space,
    level_shape,
)
from .similarity import GaussianWindow
from .splines import _resized, _smoothly_resized

#: Jacobian determinant, relative to the linear alignment's, below which a map counts as folded.
LEAST_JACOBIAN = 0.02

#: Local blurs after which what is still folded is left, and reported.
MOST_BLURS = 30

#: How much of the gradient's running mean and mean square Adam keeps from step to step.
MEAN_DECAY, SQUARE_DECAY = 0.9, 0.99


def refine(
    pair: Pair,
    phi_AB: torch.Tensor,
    phi_BA: torch.Tensor,
    options: FieldRefinement | None = None,
    progress: Callable[[float], None] = lambda fraction: None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Refined maps phi_AB, phi_BA, each [1, 3, D, H, W] in [0, 1]^3 (docs/phi.md), detached.

    phi_AB, phi_BA: where to start: a network's maps, or `linear_maps(pair)`.
    progress: called with the share of the work done after every step; what it raises ends the refinement.
    """
    options = options or FieldRefinement()
    space = _Space(pair)
    shape = pair.fixed_lattice.shape

    def start(level) -> torch.Tensor:
        """The given displacement; made anew rather than kept, where memory is short."""
        places = torch.cat([_faces_from_phi(phi_AB), _faces_from_phi(phi_BA)]).to(pair.fixed.device)
        return _resized(places.sub_(space.linear_places(shape)), level)

    levels = [level_shape(pair, distance) for distance in options.levels]
    work = [math.prod(level) for level in levels]
    residual = torch.zeros(2, 3, *levels[0], device=pair.fixed.device)
    for number, level in enumerate(levels):

        def report(share, number=number):
            progress((sum(work[:number]) + work[number] * share) / sum(work))

        residual = start(level).add_(_smoothly_resized(residual, level))
        residual = _optimise(_Objective(pair, space, residual, options), report).sub_(start(level))
    displacement = _unfolded(space, _smoothly_resized(residual, shape).add_(start(shape)))
    phi = _phi_from_faces(space.linear_places(shape) + displacement)
    return phi[:1], phi[1:]


def linear_maps(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """phi_AB, phi_BA of the linear alignment alone."""
    phi = _phi_from_faces(_Space(pair).linear_places(pair.fixed_lattice.shape))
    return phi[:1], phi[1:]


def carried(
    phi_AB: torch.Tensor, phi_BA: torch.Tensor, source: Pair, target: Pair
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps on the lattices of `source` as maps on those of `target`, [1, 3, D, H, W] in [0, 1]^3.

    Both pairs have one linear alignment; the displacement from it is interpolated, and continued beyond a box.
    """
    old, new = _Space(source), _Space(target)
    start = torch.cat([_faces_from_phi(phi_AB), _faces_from_phi(phi_BA)]).to(source.fixed.device)
    displacement = _rotated(old.target_to_mm, start - old.linear_places(start.shape[2:]))
    shape = target.fixed_lattice.shape
    lattices = (target.fixed_lattice, source.fixed_lattice), (target.moving_lattice, source.moving_lattice)
    boxes = np.stack([np.linalg.inv(theirs.faces_to_world()) @ ours.faces_to_world() for ours, theirs in lattices])
    places = _samples_through(torch.tensor(boxes, dtype=torch.float32, device=start.device), shape)
    moved = _rotated(torch.linalg.inv(new.target_to_mm), _sample(displacement, places))
    phi = _phi_from_faces(new.linear_places(shape) + moved)
    return phi[:1], phi[1:]


def contrast_agreement(pair: Pair, phi_AB: torch.Tensor, phi_BA: torch.Tensor) -> float:
    """Whether what is brighter in one image is brighter in the other: sum c |c| / sum c^2 of the local correlation c.

    In [-1, 1]: 1 where all local correlation is positive, as for two images of one contrast; well below where two
    contrasts agree here and oppose each other there.
    """
    level = _Level(pair, pair.fixed_lattice.shape, FieldRefinement(similarity="lncc"))
    places = torch.cat([_faces_from_phi(phi_AB), _faces_from_phi(phi_BA)]).to(pair.fixed.device)
    warped = trilinear(level.sources, places, Frame.faces(level.shape))
    correlation = level.similarity.correlation(warped, level.targets)
    weights = level.weights_at(places)
    return float((correlation * correlation.abs() * weights).sum() / (correlation**2 * weights).sum().clamp_min(1e-6))


def _optimise(objective: _Objective, report: Callable[[float], None]) -> torch.Tensor:
    """Displacements from the linear alignment after `options.steps` of Adam, [2, 3, D, H, W]."""
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
def _unfolded(space: _Space, displacement: torch.Tensor) -> torch.Tensor:
    """Displacements [2, 3, D, H, W], blurred where the map folds or is about to, until it does so nowhere.

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
