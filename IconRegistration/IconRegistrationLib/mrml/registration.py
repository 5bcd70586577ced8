"""Nodes in, nodes out: the whole registration for the Python console and for `Slicer --python-script`.

    from IconRegistrationLib.mrml.registration import register_nodes
    outputs = register_nodes(fixed_volume, moving_volume, moving_segmentation=labels)
    labels.SetAndObserveTransformNodeID(outputs.forward.GetID())

The scene is changed only after everything has been computed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import InputError
from ..core.geometry import Image
from .markups import landmarks_from_node, region_from_node
from .scene import place_beside, temporary_nodes
from .segmentations import node_from_segmentation, segmentation_from_node
from .transforms import linear_from_node, node_from_field
from .volumes import image_from_node, node_from_image

if TYPE_CHECKING:
    from ..core.results import Inputs, Results

#: Node attribute that says, as JSON, how a transform or volume was made.
PROVENANCE_ATTRIBUTE = "IconRegistration.provenance"


@dataclass(frozen=True)
class Outputs:
    """The nodes that a registration made or updated, and its quality report.

    forward: the transform node under which MOVING data is placed.  backward: the one for FIXED data.
    Data that lies under a parent transform keeps it: the registration goes on top, between that parent and the world.
    """

    forward: Any = None
    backward: Any = None
    warped_volume: Any = None
    warped_volume_fine: Any = None
    warped_segmentation: Any = None
    report: Any = None


_OUTPUT_CLASSES = {
    "forward": "vtkMRMLGridTransformNode",
    "backward": "vtkMRMLGridTransformNode",
    "warped_volume": "vtkMRMLScalarVolumeNode",
    "warped_volume_fine": "vtkMRMLScalarVolumeNode",
    "warped_segmentation": "vtkMRMLSegmentationNode",
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
    guide: bool = False,
    moving_resolution: bool = False,
    outputs: Outputs | None = None,
    progress: Callable[[str, float], None] | None = None,
) -> Outputs:
    """Register the volume node `moving` to the volume node `fixed` and put the results beside them in their scene.

    Segmentations, landmarks: carried to the fixed image and compared in the report. A segmentation also guides the
    registration, segments matched by name, if `guide` (its own Dice then no longer measures the accuracy).
    fixed_mask, moving_mask: volume or segmentation nodes; what is not 0 counts.
    initial: the linear transform node under which the moving image lies roughly on the fixed one.
    region: a markups ROI node, a box in the fixed image to which the registration is confined.
    settings: core.settings.Settings.
    moving_resolution: also warp the moving volume at its own resolution.
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
    )
    from ..core.pipeline import compute

    results = compute(inputs, settings, guide=guide, moving_resolution=moving_resolution, progress=progress)
    return nodes_from_results(results, fixed, moving, moving_segmentation=moving_segmentation, outputs=outputs)


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
) -> Inputs:
    """The arguments of `register_nodes` as core types; raises InputError that names the node which cannot be used."""

    from ..core.results import Inputs

    def read(node, reader):
        return None if node is None else reader(node)

    if initial is not None and initial in _parents(moving):
        initial = None  # the moving image's place in the world already includes it
    return Inputs(
        image_from_node(fixed),
        image_from_node(moving),
        read(fixed_segmentation, segmentation_from_node),
        read(moving_segmentation, segmentation_from_node),
        read(fixed_landmarks, landmarks_from_node),
        read(moving_landmarks, landmarks_from_node),
        read(fixed_mask, mask_from_node),
        read(moving_mask, mask_from_node),
        read(initial, linear_from_node),
        read(region, region_from_node),
    )


def nodes_from_results(results: Results, fixed, moving, *, moving_segmentation=None, outputs=None) -> Outputs:
    """Put results into the scene of `fixed`, beside their inputs; nodes of `outputs` are updated in place.

    If anything fails, the nodes that were added are removed again.
    """
    scene = fixed.GetScene()
    outputs = outputs or Outputs()

    def named(name: str) -> str:
        return scene.GenerateUniqueName(name)

    def finished(node, source, about_fixed, about_moving):
        if node not in updated:
            place_beside(scene, node, source)
        node.SetAttribute(PROVENANCE_ATTRIBUTE, json.dumps(results.registration.provenance, default=str))
        node.SetNodeReferenceID("IconRegistration.fixed", about_fixed.GetID())
        node.SetNodeReferenceID("IconRegistration.moving", about_moving.GetID())
        return node

    updated = [getattr(outputs, name) for name in _OUTPUT_CLASSES]
    registered = f"registered to {fixed.GetName()}"
    with temporary_nodes(scene, only_on_error=True):
        forward = node_from_field(
            scene, results.registration.forward, named(f"{moving.GetName()} to {fixed.GetName()}"), outputs.forward
        )
        backward = node_from_field(
            scene, results.registration.backward, named(f"{fixed.GetName()} to {moving.GetName()}"), outputs.backward
        )
        warped = node_from_image(
            scene, results.warped, named(f"{moving.GetName()} {registered}"), outputs.warped_volume, like=moving
        )
        fine, segmentation = outputs.warped_volume_fine, outputs.warped_segmentation
        if results.warped_fine is not None:
            name = named(f"{moving.GetName()} {registered}, fine")
            fine = finished(node_from_image(scene, results.warped_fine, name, fine, like=moving), fixed, fixed, moving)
        if results.warped_segmentation is not None:
            name = named(f"{results.warped_segmentation.name} {registered}")
            segmentation = node_from_segmentation(
                scene, results.warped_segmentation, name, segmentation, reference=fixed
            )
            finished(segmentation, moving_segmentation or moving, fixed, moving)
        return Outputs(
            finished(forward, moving, fixed, moving),
            finished(backward, fixed, moving, fixed),
            finished(warped, moving, fixed, moving),
            fine,
            segmentation,
            results.report,
        )


def mask_from_node(node) -> Image:
    """uint8 Image, 1 where a volume node is not 0, or where a segmentation node has a segment."""
    if node.IsA("vtkMRMLSegmentationNode"):
        segmentation = segmentation_from_node(node)
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
