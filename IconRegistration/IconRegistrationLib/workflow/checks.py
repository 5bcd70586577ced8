"""Check the inputs of a whole job before any work starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import InputError
from ..registration.checks import check_pair, first_names
from ..spatial.geometry import Image, Landmarks
from ..text import tr

if TYPE_CHECKING:
    from .results import Inputs


def check_inputs(inputs: Inputs, guide: bool, look: Callable[[Image], None] | None = None) -> None:
    """Raise InputError if this cannot be registered and compared.

    guide: whether the segmentations guide the registration.  look: as in `check_pair`.
    """
    check_pair(
        inputs.fixed,
        inputs.moving,
        fixed_mask=inputs.fixed_mask,
        moving_mask=inputs.moving_mask,
        fixed_labels=inputs.fixed_segmentation if guide else None,
        moving_labels=inputs.moving_segmentation if guide else None,
        look=look,
    )
    if inputs.fixed_landmarks is not None and inputs.moving_landmarks is not None:
        check_landmarks(inputs.fixed_landmarks, inputs.moving_landmarks)


def check_landmarks(fixed: Landmarks, moving: Landmarks) -> None:
    """Raise InputError unless a point of each list has its counterpart in the other, by name."""
    if not set(fixed.labels) & set(moving.labels):
        raise InputError(
            tr(
                "No landmark has the same name in {fixed} ({fixed_labels}) and {moving} ({moving_labels}); rename "
                "those that belong together.",
                fixed=fixed.name,
                fixed_labels=first_names(fixed.labels),
                moving=moving.name,
                moving_labels=first_names(moving.labels),
            )
        )
