"""Nodes in, nodes out: the whole registration for the Python console and for `Slicer --python-script`.

    from IconRegistrationLib.mrml.registration import register_nodes
    outputs = register_nodes(fixed_volume, moving_volume, moving_segmentation=labels)
    labels.SetAndObserveTransformNodeID(outputs.forward.GetID())

The scene is changed only after everything has been computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..plain import to_plain
from ..quality.report import Report
from ..registration.settings import Settings
from ..spatial.geometry import Image
from ..text import tr
from ..workflow.results import Inputs
from ..workflow.roles import SEGMENT_ROLES, apply_roles, complete_roles, compute_options, segments_mask
from .markups import landmarks_from_node, node_from_landmarks, region_from_node
from .scene import place_beside, temporary_nodes
from .segmentations import node_from_segmentation, segmentation_from_node
from .transforms import linear_from_node, node_from_field
from .volumes import image_from_node, node_from_image

if TYPE_CHECKING:
    from ..workflow.results import Results

#: Node attribute that says, as JSON, how a transform or volume was made.
PROVENANCE_ATTRIBUTE = "IconRegistration.provenance"
#: Node attribute of the forward transform that holds the quality report, as JSON.
REPORT_ATTRIBUTE = "IconRegistration.report"
#: Node attribute with the request as JSON, except nodes (which are node references) and settings.
REQUEST_ATTRIBUTE = "IconRegistration.request"


@dataclass(frozen=True)
class ResultNodes:
    """The nodes that a registration made or updated, named as what workflow.results holds, and its quality report.

    Data under a parent transform keeps it: the registration goes on top, between that parent and the world.

    Attributes
    ----------
    forward : vtkMRMLGridTransformNode
        The transform under which MOVING data is placed.
    backward : vtkMRMLGridTransformNode
        The transform under which FIXED data is placed.
    warped_volume, warped_volume_fine : vtkMRMLScalarVolumeNode
        The moving volume on the fixed grid, and on the same box at the moving resolution.
    warped_segmentation : vtkMRMLSegmentationNode
        The moving segments on the fixed grid.
    warped_landmarks : vtkMRMLMarkupsFiducialNode
        The moving points in the fixed image.
    jacobian : vtkMRMLScalarVolumeNode
        Determinants of the Jacobian.
    distrust : vtkMRMLScalarVolumeNode
        Inverse-consistency error in mm; -1 where it is unknown.
    report : Report
        The quality report.
    """

    forward: Any = None
    backward: Any = None
    warped_volume: Any = None
    warped_volume_fine: Any = None
    warped_segmentation: Any = None
    warped_landmarks: Any = None
    jacobian: Any = None
    distrust: Any = None
    report: Any = None


_OUTPUT_CLASSES = {
    "forward": "vtkMRMLGridTransformNode",
    "backward": "vtkMRMLGridTransformNode",
    "warped_volume": "vtkMRMLScalarVolumeNode",
    "warped_volume_fine": "vtkMRMLScalarVolumeNode",
    "warped_segmentation": "vtkMRMLSegmentationNode",
    "warped_landmarks": "vtkMRMLMarkupsFiducialNode",
    "jacobian": "vtkMRMLScalarVolumeNode",
    "distrust": "vtkMRMLScalarVolumeNode",
}


@dataclass(frozen=True)
class RegistrationRequest:
    """What is registered: workflow.results.Inputs as nodes; how; and what is made of it.

    Attributes
    ----------
    fixed, moving : vtkMRMLScalarVolumeNode
        The volumes.
    fixed_segmentation, moving_segmentation : vtkMRMLSegmentationNode or None
        Structures of the volumes.
    fixed_landmarks, moving_landmarks : vtkMRMLMarkupsNode or None
        Points, matched by name.
    fixed_mask, moving_mask : vtkMRMLVolumeNode or vtkMRMLSegmentationNode or None
        What is not 0 counts; of the two segmentations that take part the chosen segments.
    initial : vtkMRMLTransformNode or None
        The linear transform that brings the moving image roughly onto the fixed one.
    region : vtkMRMLMarkupsROINode or None
        A box in the fixed image to which the registration is confined.
    fixed_segments, moving_segments : sequence of str or None
        Identifiers of the segments that take part; None for all.
    settings : Settings
        How it is registered.
    roles : mapping of str to bool
        Whether the segments have each role of workflow.roles.
    moving_resolution : bool
        As in workflow.pipeline.compute.
    jacobian, distrust : bool
        Also make these volumes.
    """

    fixed: Any
    moving: Any
    fixed_segmentation: Any = None
    moving_segmentation: Any = None
    fixed_landmarks: Any = None
    moving_landmarks: Any = None
    fixed_mask: Any = None
    moving_mask: Any = None
    initial: Any = None
    region: Any = None
    fixed_segments: Sequence[str] | None = None
    moving_segments: Sequence[str] | None = None
    settings: Settings = field(default_factory=Settings)
    roles: Mapping[str, bool] = field(default_factory=complete_roles)
    moving_resolution: bool = False
    jacobian: bool = False
    distrust: bool = False

    @property
    def nodes(self) -> dict[str, Any]:
        """The nodes that are given, by field."""
        return {name: value for name in _NODE_FIELDS if (value := getattr(self, name)) is not None}

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `workflow.pipeline.compute` besides inputs and settings."""
        return {**compute_options(self.roles), "moving_resolution": self.moving_resolution}


_NODE_FIELDS = tuple(f.name for f in fields(RegistrationRequest))[:10]


def register_nodes(
    fixed: Any,
    moving: Any,
    *,
    outputs: ResultNodes | None = None,
    progress: Callable[[str, float], None] | None = None,
    **asked: Any,
) -> ResultNodes:
    """Register the volume node `moving` to the volume node `fixed` and put the results beside them in their scene.

    After any exception the scene holds the nodes that it held before.

    Parameters
    ----------
    fixed, moving : vtkMRMLScalarVolumeNode
        The volumes; their linear parent transforms count.
    outputs : ResultNodes, optional
        Nodes of an earlier run to update in place; what is None in it is made anew.
    progress : callable, optional
        Called with (stage, fraction of the run); may raise Cancelled.
    **asked
        The other fields of `RegistrationRequest`: segmentations, settings, what is made and so on; of the roles each by
        its name, such as guide=True.

    Returns
    -------
    ResultNodes
        The nodes and the report.

    Raises
    ------
    InputError
        Before the registration starts, if something in the nodes cannot be used.
    """
    from ..workflow.pipeline import compute

    asked = {name: value for name, value in asked.items() if value is not None}
    request = RegistrationRequest(fixed, moving, **_with_roles(asked))
    check_outputs(outputs or ResultNodes(), request)
    results = compute(inputs_from_nodes(request), request.settings, progress=progress, **request.options)
    return nodes_from_results(results, request, outputs)


def _with_roles(asked: dict[str, Any]) -> dict[str, Any]:
    """Return fields of a request in which roles are still named one by one, as in the record of version 0.1."""
    roles = {name: value for name, value in asked.items() if name in SEGMENT_ROLES}
    rest = {name: value for name, value in asked.items() if name not in roles}
    return {"roles": complete_roles(roles), **rest}


def inputs_from_nodes(request: RegistrationRequest) -> Inputs:
    """Return the nodes as values of the library.

    Raises
    ------
    InputError
        Names a node that cannot be used.
    """

    def read(node, reader):
        return None if node is None else reader(node)

    def chosen(node, identifiers):
        segmentation = segmentation_from_node(node)
        return segmentation if identifiers is None else segmentation.only(identifiers)

    def mask(node, segmentation_node, identifiers):
        return mask_from_node(node, identifiers if node is segmentation_node else None)

    r = request
    # an initial transform above the moving image is already part of its position in the world
    initial = None if r.initial in _parents(r.moving) else r.initial
    inputs = Inputs(
        image_from_node(r.fixed),
        image_from_node(r.moving),
        read(r.fixed_segmentation, lambda node: chosen(node, r.fixed_segments)),
        read(r.moving_segmentation, lambda node: chosen(node, r.moving_segments)),
        read(r.fixed_landmarks, landmarks_from_node),
        read(r.moving_landmarks, landmarks_from_node),
        read(r.fixed_mask, lambda node: mask(node, r.fixed_segmentation, r.fixed_segments)),
        read(r.moving_mask, lambda node: mask(node, r.moving_segmentation, r.moving_segments)),
        read(initial, linear_from_node),
        read(r.region, region_from_node),
    )
    return apply_roles(inputs, r.roles)


def nodes_from_results(
    results: Results, request: RegistrationRequest, outputs: ResultNodes | None = None
) -> ResultNodes:
    """Put results into the scene, beside their inputs.

    What this registration did not make is not among the outputs, even if an earlier one had made it. If anything fails,
    the nodes that were added are removed again.

    Parameters
    ----------
    results : Results
        What workflow.pipeline.compute returned.
    request : RegistrationRequest
        The nodes of which it was computed.
    outputs : ResultNodes, optional
        Nodes to update in place.

    Returns
    -------
    ResultNodes
        The nodes, which remember request and provenance, and the report.
    """
    fixed, moving, scene = request.fixed, request.moving, request.fixed.GetScene()
    outputs = outputs or ResultNodes()
    nodes = {}
    provenance = json.dumps(results.registration.provenance, default=str)
    registered = f"registered to {fixed.GetName()}"

    def put(which: str, make: Callable, value, name: str, beside, **options) -> None:
        """Make the node `which` of a value, or update it."""
        earlier = getattr(outputs, which)
        node = make(scene, value, scene.GenerateUniqueName(name), earlier, **options)
        if earlier is None:
            place_beside(scene, node, beside)
        node.SetAttribute(PROVENANCE_ATTRIBUTE, provenance)
        _remember(node, request)
        nodes[which] = node

    with temporary_nodes(scene, only_on_error=True):
        there, back = f"{moving.GetName()} to {fixed.GetName()}", f"{fixed.GetName()} to {moving.GetName()}"
        put("forward", node_from_field, results.registration.forward, there, moving)
        put("backward", node_from_field, results.registration.backward, back, fixed)
        put("warped_volume", node_from_image, results.warped, f"{moving.GetName()} {registered}", moving, like=moving)
        if results.warped_fine is not None:
            name = f"{moving.GetName()} {registered}, fine"
            put("warped_volume_fine", node_from_image, results.warped_fine, name, fixed, like=moving)
        if results.warped_segmentation is not None:
            warped = results.warped_segmentation
            beside = request.moving_segmentation
            put(
                "warped_segmentation",
                node_from_segmentation,
                warped,
                f"{warped.name} {registered}",
                beside,
                reference=fixed,
            )
        if results.warped_landmarks is not None:
            points = results.warped_landmarks
            name = f"{points.name} {registered}"
            put("warped_landmarks", node_from_landmarks, points, name, request.moving_landmarks)
        if request.jacobian:
            put("jacobian", node_from_image, results.jacobian, f"Jacobian of {there}", fixed)
        if request.distrust:
            error = results.consistency_error
            error = replace(error, array=np.nan_to_num(error.array, nan=-1.0))  # Slicer's displays know no NaN
            put("distrust", node_from_image, error, f"distrust of {there}, mm", fixed)
        outputs = ResultNodes(**nodes, report=results.report)
        _remember_outputs(outputs)
    return outputs


def request_of(node: Any) -> RegistrationRequest | None:
    """Return the request that a result was made by, as far as its nodes are still in the scene; None if it is not ours.

    Survives saving and loading the scene.

    Raises
    ------
    InputError
        If either volume is missing, or the record is of a version that this one does not understand.
    """
    record, provenance = node.GetAttribute(REQUEST_ATTRIBUTE), node.GetAttribute(PROVENANCE_ATTRIBUTE)
    if not record or not provenance:
        return None
    nodes = {name: node.GetNodeReference(f"IconRegistration.{name}") for name in _NODE_FIELDS}
    for side in ("fixed", "moving"):
        if nodes[side] is None:
            raise InputError(
                tr(
                    "The {side} volume of {name!r} is no longer in the scene; choose the volumes anew.",
                    side=tr("fixed") if side == "fixed" else tr("moving"),
                    name=node.GetName(),
                )
            )
    try:
        settings = Settings.from_plain(json.loads(provenance)["settings"])
        return RegistrationRequest(**nodes, **_with_roles(json.loads(record)), settings=settings)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            tr(
                "The record of {name!r} cannot be read ({error}); choose the settings anew.",
                name=node.GetName(),
                error=error,
            )
        ) from None


def outputs_of(forward: Any) -> ResultNodes:
    """Return what the scene holds of the registration that made the transform node `forward`, and its report."""
    nodes = {name: forward.GetNodeReference(f"IconRegistration.output.{name}") for name in _OUTPUT_CLASSES}
    report = forward.GetAttribute(REPORT_ATTRIBUTE)
    return ResultNodes(
        **{**nodes, "forward": forward}, report=Report.from_plain(json.loads(report)) if report else None
    )


def _remember_outputs(outputs: ResultNodes) -> None:
    forward = outputs.forward
    for name in _OUTPUT_CLASSES:
        node = getattr(outputs, name)
        if name != "forward":
            forward.SetNodeReferenceID(f"IconRegistration.output.{name}", node.GetID() if node is not None else None)
    forward.SetAttribute(REPORT_ATTRIBUTE, json.dumps(to_plain(replace(outputs.report, provenance={}))))


def _remember(node, request: RegistrationRequest) -> None:
    for name in _NODE_FIELDS:
        source = getattr(request, name)
        node.SetNodeReferenceID(f"IconRegistration.{name}", source.GetID() if source is not None else None)
    others = (*_NODE_FIELDS, "settings", "roles")
    rest = {f.name: getattr(request, f.name) for f in fields(request) if f.name not in others}
    node.SetAttribute(REQUEST_ATTRIBUTE, json.dumps({**rest, **request.roles}, default=list))


def mask_from_node(node: Any, identifiers: Sequence[str] | None = None) -> Image:
    """Return where a volume node is not 0, or where a segmentation node has a segment.

    Parameters
    ----------
    node : vtkMRMLVolumeNode or vtkMRMLSegmentationNode
        In world coordinates.
    identifiers : sequence of str, optional
        Segments that count; all by default.

    Returns
    -------
    Image
        uint8 [k, j, i], 1 inside and 0 outside.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = segmentation_from_node(node)
        segmentation = segmentation if identifiers is None else segmentation.only(identifiers)
        return segments_mask(segmentation)
    image = image_from_node(node)
    return Image((image.array != 0).astype(np.uint8), image.grid, image.name)


def _parents(node) -> list:
    parents = []
    while node.GetParentTransformNode():
        node = node.GetParentTransformNode()
        parents.append(node)
    return parents


def check_outputs(outputs: ResultNodes, request: RegistrationRequest) -> None:
    """Raise InputError if a node of `outputs` cannot be updated to be the output that it is meant to be."""
    for name, class_name in _OUTPUT_CLASSES.items():
        node = getattr(outputs, name)
        if node is None:
            continue
        if not node.IsA(class_name):
            raise InputError(
                tr(
                    "The output {output} must be a {class_name}; {name!r} is none.",
                    output=name,
                    class_name=class_name,
                    name=node.GetName(),
                )
            )
        if node in request.nodes.values():
            raise InputError(
                tr(
                    "{name!r} is an input and cannot be the output {output}; choose another node.",
                    name=node.GetName(),
                    output=name,
                )
            )
