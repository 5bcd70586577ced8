"""Instance optimisation as uniGradICON publishes it: a copy of the weights is trained on the one pair.

The loss is that of unigradicon 1.0.6's `GradientICONSparse` in evaluation mode (batch-norm statistics stay; Demir et
al., "multiGradICON", 2024):

    similarity(A o phi_AB, B) + similarity(B o phi_BA, A) + lambda * GradICON + label_weight * Dice

Out of reach on a CPU (minutes per step at 175^3); `refine.py` optimises the maps themselves instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

import torch

from ..errors import InputError
from ..networks.inference import predict_maps
from ..networks.unet import GradICON, compose_cascade, directly, identity_points, recomputing, sample_at
from ..text import tr
from .similarity import LNCC, Similarity

#: Step of the finite differences along each axis, in [0, 1] coordinates.
_DELTA = 0.001


def gradient_inverse_consistency(
    forward: list[torch.Tensor], backward: list[torch.Tensor], points: torch.Tensor, run: Callable = directly
) -> torch.Tensor:
    """Return the mean squared Jacobian of x - phi_AB(phi_BA(x)), the sum over its three columns.

    Parameters
    ----------
    forward, backward : list[torch.Tensor]
        Displacements of the two cascades, [1, 3, D, H, W] each.
    points : torch.Tensor
        [1, 3, D, H, W] in [0, 1], where it is measured.
    run : Callable
        `unet.recomputing` to save memory.

    References
    ----------
    Tian et al., GradICON, CVPR 2023, eq. 4.
    """

    def error(x: torch.Tensor) -> torch.Tensor:
        return x - compose_cascade(forward, compose_cascade(backward, x))

    here = run(error, points)
    loss = points.new_zeros(())
    for axis in range(3):
        step = points.new_zeros(1, 3, 1, 1, 1)
        step[:, axis] = _DELTA
        loss = loss + ((here - run(error, points + step)) / _DELTA).square().mean()
    return loss


def perturbed_points(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return every second lattice point of each axis, moved by Gaussian noise of two samples of the last axis."""
    points = identity_points(shape, device)
    # drawn on the CPU and in full, as published, so that a seed gives the same points everywhere
    noise = torch.randn(points.shape).to(device)
    return (points + 2 * noise / shape[-1])[:, :, ::2, ::2, ::2]


def soft_dice_loss(warped: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return 1 - soft Dice of [1, C, D, H, W] and the same, mean over the classes."""
    shared = (warped * target).sum((2, 3, 4))
    total = warped.sum((2, 3, 4)) + target.sum((2, 3, 4))
    return 1 - ((2 * shared + 1e-6) / (total + 1e-6)).mean()


def finetune(
    network: GradICON,
    moving: torch.Tensor,
    fixed: torch.Tensor,
    *,
    steps: int = 50,
    similarity: Similarity | None = None,
    regularisation: float = 1.5,
    learning_rate: float = 2e-5,
    moving_mask: torch.Tensor | None = None,
    fixed_mask: torch.Tensor | None = None,
    moving_labels: torch.Tensor | None = None,
    fixed_labels: torch.Tensor | None = None,
    label_weight: float = 1.0,
    save_memory: bool = True,
    progress: Callable[[int, float], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
    """Train a copy of the network on one pair and evaluate it; `network` itself is never changed.

    Parameters
    ----------
    network : GradICON
        With trainable weights.
    moving, fixed : torch.Tensor
        [1, 1, D, H, W] in [0, 1], of the network's shape.
    steps : int
        Of Adam.
    similarity : Callable, optional
        A loss of `similarity.py`; the published LNCC (sigma 5) unless given.
    regularisation : float
        lambda, the weight of inverse consistency.
    learning_rate : float
        Of Adam.
    moving_mask, fixed_mask : torch.Tensor, optional
        [1, 1, D, H, W], non-zero where the similarity counts.
    moving_labels, fixed_labels : torch.Tensor, optional
        [1, C, D, H, W] in [0, 1], one channel per structure, the same in both.
    label_weight : float
        Weight of the soft Dice loss.
    save_memory : bool
        Whether to compute what the backward pass needs again instead of keeping it.
    progress : Callable[[int, float], None], optional
        Called after each step with the number of steps done and the loss; may raise Cancelled.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor, list[float]]
        phi_AB and phi_BA, float32 [1, 3, D, H, W] in [0, 1], detached; the loss at each step.

    Raises
    ------
    InputError
        For settings or shapes that do not fit.

    References
    ----------
    Demir et al., multiGradICON, 2024; `GradICONSparse` of unigradicon 1.0.6.
    """
    if steps < 1 or not learning_rate > 0:
        raise InputError(
            tr(
                "Fine-tuning needs at least one step and a positive learning rate, not {steps} steps at {rate:g}.",
                steps=steps,
                rate=learning_rate,
            )
        )
    if (moving_labels is None) != (fixed_labels is None):
        raise InputError(tr("Labels guide the fine-tuning only if both images have them; give both or neither."))
    device = next(network.parameters()).device
    expected = (1, 1, *network.shape)
    given = {
        tr("moving image"): moving,
        tr("fixed image"): fixed,
        tr("moving mask"): moving_mask,
        tr("fixed mask"): fixed_mask,
    }
    for name, tensor in given.items():
        if tensor is not None and tuple(tensor.shape) != expected:
            raise InputError(
                tr(
                    "The {name} is {shape}, the network takes {expected}; resample it.",
                    name=name,
                    shape=str(tuple(tensor.shape)),
                    expected=str(expected),
                )
            )
    moving, fixed = (image.to(device, torch.float32) for image in (moving, fixed))
    moving_mask, fixed_mask, moving_labels, fixed_labels = (
        None if tensor is None else tensor.to(device, torch.float32)
        for tensor in (moving_mask, fixed_mask, moving_labels, fixed_labels)
    )
    # One object per direction: each keeps the statistics of its own fixed image between the steps.
    similarity_AB = LNCC() if similarity is None else similarity
    similarity_BA = copy.deepcopy(similarity_AB)
    tuned = copy.deepcopy(network).eval().requires_grad_()
    optimiser = torch.optim.Adam(tuned.parameters(), lr=learning_rate)
    history = []
    run = recomputing if save_memory else directly

    def mismatch(similarity, source, target, mask, source_labels, target_labels, displacements):
        phi = compose_cascade(displacements)
        loss = similarity(sample_at(source, phi, "zeros"), target, mask)
        if source_labels is not None:
            loss = loss + label_weight * soft_dice_loss(sample_at(source_labels, phi), target_labels)
        return loss

    for step in range(steps):
        optimiser.zero_grad()
        forward = tuned(moving, fixed, save_memory)
        backward = tuned(fixed, moving, save_memory)
        loss = run(mismatch, similarity_AB, moving, fixed, fixed_mask, moving_labels, fixed_labels, forward)
        loss = loss + run(mismatch, similarity_BA, fixed, moving, moving_mask, fixed_labels, moving_labels, backward)
        points = perturbed_points(network.shape, device)
        loss = loss + regularisation * gradient_inverse_consistency(forward, backward, points, run)
        loss.backward()
        optimiser.step()
        history.append(loss.item())
        del forward, backward, loss  # before the next step allocates its own
        if progress:
            progress(step + 1, history[-1])

    optimiser.zero_grad()
    phi_AB, phi_BA = cast("tuple[torch.Tensor, torch.Tensor]", predict_maps(tuned, moving, fixed))
    return phi_AB, phi_BA, history
