"""The request that the panel's parameters describe."""

from __future__ import annotations

from typing import Any

from ..mrml.registration import RegistrationRequest
from . import choices
from .role_boxes import roles_from
from .tick_list import segment_names


def request_from(parameters: Any) -> RegistrationRequest:
    """Return what the panel asks for.

    Raises
    ------
    InputError
        For choices that exclude each other.
    """
    p = parameters
    return RegistrationRequest(
        p.fixedVolume,
        p.movingVolume,
        fixed_segmentation=p.fixedSegmentation,
        moving_segmentation=p.movingSegmentation,
        fixed_landmarks=p.fixedLandmarks,
        moving_landmarks=p.movingLandmarks,
        initial=p.initialTransform,
        region=p.region,
        fixed_segments=choices.chosen_segments(p.fixedSegments, segment_names(p.fixedSegmentation)),
        moving_segments=choices.chosen_segments(p.movingSegments, segment_names(p.movingSegmentation)),
        settings=choices.settings_of(p),
        roles=roles_from(p),
        moving_resolution=p.movingResolution,
        jacobian=p.jacobian,
        distrust=p.distrust,
    )


def chosen_nodes(parameters: Any) -> list:
    """Return the nodes on which the request depends, each once."""
    p = parameters
    nodes = (
        *(p.fixedVolume, p.movingVolume, p.fixedSegmentation, p.movingSegmentation),
        *(p.fixedLandmarks, p.movingLandmarks, p.initialTransform, p.region),
    )
    return list(dict.fromkeys(node for node in nodes if node is not None))
