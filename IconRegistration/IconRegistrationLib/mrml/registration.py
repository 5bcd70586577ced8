"""Nodes in, nodes out: the whole registration for the Python console and for `Slicer --python-script`.

    from IconRegistrationLib.mrml.registration import register_nodes
    outputs = register_nodes(fixed_volume, moving_volume, moving_segmentation=labels)
    labels.SetAndObserveTransformNodeID(outputs.forward.GetID())

The scene is changed only after everything has been computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import InputError
from ..core.geometry import Image
from ..core.results import Inputs
from .markups import landmarks_from_node, node_from_landmarks, region_from_node
from .scene import place_beside, temporary_nodes
from .segmentations import node_from_segmentation, segmentation_from_node
from .transforms import linear_from_node, node_from_field
from .volumes import image_from_node, node_from_image

if TYPE_CHECKING:
    from ..core.results import Results

#: Node attribute that says, as JSON, how a transform or volume was made.
PROVENANCE_ATTRIBUTE = "IconRegistration.provenance"


@dataclass(frozen=True)
class Outputs:
    """The nodes that a registration made or updated, and its quality report.

    forward: the transform node under which MOVING data is placed.  backward: the one for FIXED data.
    jacobian: determinants of the forward map.  distrust: by how many mm the two directions disagree; -1 where unknown.
    Data that lies under a parent transform keeps it: the registration goes on top, between that parent and the world.
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


def register_nodes(
    fixed,
    moving,
    *,
    fixed_segmentation=None,
    moving_segmentation=None,
    fixed_landmarks=None,
    moving_landmarks=None,
    fixed_mask=None,
    moving_mask=None,
    initial=None,
    region=None,
    settings=None,
    fixed_segments: Sequence[str] | None = None,
    moving_segments: Sequence[str] | None = None,
    guide: bool = False,
    carry: bool = True,
    compare: bool = True,
    moving_resolution: bool = False,
    jacobian: bool = False,
    distrust: bool = False,
    outputs: Outputs | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Outputs:
    """Register the volume node `moving` to the volume node `fixed` and put the results beside them in their scene.

    Segmentations, landmarks: carried to the fixed image (segmentations if `carry`) and compared in the report (if
    `compare`). A segmentation also guides the registration, segments matched by name, if `guide` (its own Dice then no
    longer measures the accuracy). fixed_segments, moving_segments: identifiers of the segments that take part; all by
    default.
    fixed_mask, moving_mask: volume or segmentation nodes; what is not 0 counts, of the segmentations above the chosen
    segments.
    initial: the linear transform node under which the moving image lies roughly on the fixed one.
    region: a markups ROI node, a box in the fixed image to which the registration is confined.
    settings: core.settings.Settings.
    moving_resolution: also warp the moving volume at its own resolution.
    jacobian, distrust: also make these volumes.
    outputs: nodes of an earlier run to update in place; what is None in it is made anew.
    progress(stage, fraction of the run): may raise Cancelled.
    Raises InputError before the registration starts if something in the nodes cannot be used. After any exception the
    scene holds the nodes that it held before.
    """
    outputs = outputs or Outputs()
    _check_outputs(outputs, [fixed, moving, fixed_segmentation, moving_segmentation, initial])
    inputs = inputs_from_nodes(
        fixed,
        moving,
        fixed_segmentation=fixed_segmentation,
        moving_segmentation=moving_segmentation,
        fixed_landmarks=fixed_landmarks,
        moving_landmarks=moving_landmarks,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        initial=initial,
        region=region,
        fixed_segments=fixed_segments,
        moving_segments=moving_segments,
    )
    from ..core.pipeline import compute

    options = {"guide": guide, "carry": carry, "compare": compare, "moving_resolution": moving_resolution}
    results = compute(inputs, settings, progress=progress, **options)
    return nodes_from_results(
        results,
        fixed,
        moving,
        moving_segmentation=moving_segmentation,
        moving_landmarks=moving_landmarks,
        jacobian=jacobian,
        distrust=distrust,
        outputs=outputs,
    )


def inputs_from_nodes(
    fixed,
    moving,
    *,
    fixed_segmentation=None,
    moving_segmentation=None,
    fixed_landmarks=None,
    moving_landmarks=None,
    fixed_mask=None,
    moving_mask=None,
    initial=None,
    region=None,
    fixed_segments: Sequence[str] | None = None,
    moving_segments: Sequence[str] | None = None,
) -> Inputs:
    """The arguments of `register_nodes` as core types; raises InputError that names the node which cannot be used."""

    def read(node, reader):
        return None if node is None else reader(node)

    def chosen(node, identifiers):
        segmentation = segmentation_from_node(node)
        return segmentation if identifiers is None else segmentation.only(identifiers)

    def mask(node, segmentation_node, identifiers):
        return mask_from_node(node, identifiers if node is segmentation_node else None)

    if initial is not None and initial in _parents(moving):
        initial = None  # the moving image's place in the world already includes it
    return Inputs(
        image_from_node(fixed),
        image_from_node(moving),
        read(fixed_segmentation, lambda node: chosen(node, fixed_segments)),
        read(moving_segmentation, lambda node: chosen(node, moving_segments)),
        read(fixed_landmarks, landmarks_from_node),
        read(moving_landmarks, landmarks_from_node),
        read(fixed_mask, lambda node: mask(node, fixed_segmentation, fixed_segments)),
        read(moving_mask, lambda node: mask(node, moving_segmentation, moving_segments)),
        read(initial, linear_from_node),
        read(region, region_from_node),
    )


def nodes_from_results(
    results: Results,
    fixed,
    moving,
    *,
    moving_segmentation=None,
    moving_landmarks=None,
    jacobian: bool = False,
    distrust: bool = False,
    outputs: Outputs | None = None,
) -> Outputs:
    """Put results into the scene of `fixed`, beside their inputs; nodes of `outputs` are updated in place.

    jacobian, distrust: whether these volumes are wanted.

    If anything fails, the nodes that were added are removed again.
    """
    scene = fixed.GetScene()
    outputs = outputs or Outputs()
    nodes = {name: getattr(outputs, name) for name in _OUTPUT_CLASSES}
    provenance = json.dumps(results.registration.provenance, default=str)
    registered = f"registered to {fixed.GetName()}"

    def put(which: str, make: Callable, value, name: str, beside, about=(fixed, moving), **options) -> None:
        """Makes the node `which` of a value, or updates it."""
        node = make(scene, value, scene.GenerateUniqueName(name), nodes[which], **options)
        if nodes[which] is None:
            place_beside(scene, node, beside)
        node.SetAttribute(PROVENANCE_ATTRIBUTE, provenance)
        for side, source in zip(("fixed", "moving"), about, strict=True):
            node.SetNodeReferenceID(f"IconRegistration.{side}", source.GetID())
        nodes[which] = node

    with temporary_nodes(scene, only_on_error=True):
        there, back = f"{moving.GetName()} to {fixed.GetName()}", f"{fixed.GetName()} to {moving.GetName()}"
        put("forward", node_from_field, results.registration.forward, there, moving)
        put("backward", node_from_field, results.registration.backward, back, fixed, (moving, fixed))
        put("warped_volume", node_from_image, results.warped, f"{moving.GetName()} {registered}", moving, like=moving)
        if results.warped_fine is not None:
            name = f"{moving.GetName()} {registered}, fine"
            put("warped_volume_fine", node_from_image, results.warped_fine, name, fixed, like=moving)
        if results.warped_segmentation is not None:
            name = f"{results.warped_segmentation.name} {registered}"
            beside = moving_segmentation or moving
            put(
                "warped_segmentation",
                node_from_segmentation,
                results.warped_segmentation,
                name,
                beside,
                reference=fixed,
            )
        if results.warped_landmarks is not None:
            name = f"{results.warped_landmarks.name} {registered}"
            put("warped_landmarks", node_from_landmarks, results.warped_landmarks, name, moving_landmarks or moving)
        if jacobian:
            put("jacobian", node_from_image, results.jacobian, f"Jacobian of {there}", fixed)
        if distrust:
            known = np.nan_to_num(results.distrust.array, nan=-1.0)  # Slicer's displays know no NaN
            put("distrust", node_from_image, replace(results.distrust, array=known), f"distrust of {there}, mm", fixed)
    return Outputs(**nodes, report=results.report)


def mask_from_node(node, identifiers: Sequence[str] | None = None) -> Image:
    """uint8 Image, 1 where a volume node is not 0, or where a segmentation node has a segment (of `identifiers`)."""
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = segmentation_from_node(node)
        segmentation = segmentation if identifiers is None else segmentation.only(identifiers)
        inside = np.zeros(segmentation.grid.shape, dtype=bool)
        for segment in segmentation.segments:
            inside |= segmentation.mask(segment)
        return Image(inside.astype(np.uint8), segmentation.grid, node.GetName())
    image = image_from_node(node)
    return Image((image.array != 0).astype(np.uint8), image.grid, image.name)


def _parents(node) -> list:
    parents = []
    while node.GetParentTransformNode():
        node = node.GetParentTransformNode()
        parents.append(node)
    return parents


def _check_outputs(outputs: Outputs, inputs: list) -> None:
    for name, class_name in _OUTPUT_CLASSES.items():
        node = getattr(outputs, name)
        if node is None:
            continue
        if not node.IsA(class_name):
            raise InputError(f"The output {name} must be a {class_name}; {node.GetName()!r} is none.")
        if node in inputs:
            raise InputError(f"{node.GetName()!r} is an input and cannot be the output {name}; choose another node.")
