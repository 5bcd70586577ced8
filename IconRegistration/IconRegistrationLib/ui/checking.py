"""The preflight of what the panel asks for. What takes time is remembered until one of the nodes changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import slicer

from ..errors import InputError, words_of
from ..mrml.markups import landmarks_from_node
from ..mrml.registration import RegistrationRequest, inputs_from_nodes
from ..text import tr
from ..workflow.preflight import ImageFacts, Preflight, preflight
from ..workflow.results import Inputs

#: Events of a chosen node after which the preflight is another one.
EVENTS = (
    "ModifiedEvent",
    slicer.vtkMRMLTransformableNode.TransformModifiedEvent,
    slicer.vtkMRMLVolumeNode.ImageDataModifiedEvent,
    slicer.vtkSegmentation.SegmentAdded,
    slicer.vtkSegmentation.SegmentRemoved,
    slicer.vtkSegmentation.SegmentModified,
    slicer.vtkSegmentation.SourceRepresentationModified,
    slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent,
    slicer.vtkMRMLMarkupsNode.PointModifiedEvent,
    slicer.vtkMRMLMarkupsNode.PointRemovedEvent,
)


class Checker:
    """Asks workflow.preflight about nodes."""

    def __init__(self):
        self._facts: dict[tuple, ImageFacts] = {}
        self._inputs: tuple[tuple, Inputs] | None = None

    def check(self, request: RegistrationRequest, devices: list[dict] | None, speed: float) -> Preflight:
        """Return the preflight of a request with two volumes. devices, speed: as in workflow.preflight."""
        try:
            inputs = self._inputs_of(request)
        except InputError as error:
            return Preflight("", words_of(error), (), 0.0, None, None)
        volumes = {"fixed": (request.fixed, inputs.fixed), "moving": (request.moving, inputs.moving)}
        keys = {side: _state(node) for side, (node, _) in volumes.items()}
        self._facts = {
            keys[side]: self._facts.get(keys[side]) or ImageFacts.of(image) for side, (_, image) in volumes.items()
        }
        facts = self._facts[keys["fixed"]], self._facts[keys["moving"]]
        flight = preflight(
            inputs,
            request.settings,
            facts,
            guide=request.options["guide"],
            compare=request.options["compare"],
            devices=devices,
            speed=speed,
        )
        if request.fixed is request.moving:
            flight = replace(flight, warnings=(tr("Fixed and moving are one volume; choose two."), *flight.warnings))
        return flight

    def forget(self) -> None:
        """Let go of the nodes' voxels."""
        self._facts, self._inputs = {}, None

    def _inputs_of(self, request: RegistrationRequest) -> Inputs:
        # point lists are read each time: their time stamps do not change if a point is added, removed or renamed
        lists = {name: node for name, node in request.nodes.items() if name.endswith("landmarks")}
        without: dict[str, Any] = dict.fromkeys(lists)
        rest = replace(request, **without)
        key = (
            {name: _state(node) for name, node in rest.nodes.items()},
            *(request.fixed_segments, request.moving_segments, request.roles),
        )
        if self._inputs is None or self._inputs[0] != key:
            self._inputs = key, inputs_from_nodes(rest)
        landmarks: dict[str, Any] = {name: landmarks_from_node(node) for name, node in lists.items()}
        return replace(self._inputs[1], **landmarks)


def _state(node) -> tuple:
    """Return what changes whenever the node, its data, or its position in the world changes."""
    parts = [node.GetID()]
    while node is not None:
        parts.append(node.GetMTime())
        for name in ("GetImageData", "GetSegmentation", "GetTransformToParent"):
            data = getattr(node, name, lambda: None)()
            parts.append(data.GetMTime() if data is not None else 0)
        node = node.GetParentTransformNode()
    return tuple(parts)


def apply_state(fixed: bool, moving: bool, flight: Preflight | None, running: bool) -> tuple[bool, str, str]:
    """Return (enabled, text, tooltip) of the Apply button; fixed, moving: whether these volumes are chosen."""
    if running:
        return True, tr("Cancel"), tr("Stop the registration; the scene stays as it is.")
    if not (fixed and moving):
        if fixed:
            which = tr("Choose a moving volume.")
        else:
            which = tr("Choose a fixed volume.") if moving else tr("Choose a fixed and a moving volume.")
        return False, tr("Apply"), which
    if flight is None:
        return False, tr("Apply"), tr("The volumes are being checked.")
    return flight.problem is None, tr("Apply"), flight.problem or flight.summary
