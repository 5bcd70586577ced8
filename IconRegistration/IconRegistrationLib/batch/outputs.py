"""Add the scene and the pictures to a folder of results, and list its files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError, words_of
from ..spatial.geometry import index_range
from ..text import tr, translated
from ..workflow.outputs import FILES, files_in, write_values

if TYPE_CHECKING:
    from ..spatial.geometry import Grid
    from ..workflow.results import Inputs, Results

#: Window and level in HU that show soft tissue.
_SOFT_TISSUE = (400, 40)


def list_files(folder: Path, notes: Iterable[str]) -> str:
    """List, for printing, the files to open and the notes on what was omitted."""
    lines = ["", tr("Open this, in {folder}:", folder=folder)]
    lines += [f"  {name:<30}{translated(FILES[name])}" for name in files_in(folder)]
    return "\n".join([*lines, *(tr("Note: {note}", note=note) for note in notes)])


def write_inputs(folder: Path, inputs: Inputs) -> None:
    """Write volumes, segmentations and landmarks of a pair to the subfolder ``inputs``."""
    from ..io.images import write_image
    from ..io.landmarks import write_landmarks
    from ..io.segmentations import write_segmentation

    folder = folder / "inputs"
    folder.mkdir()
    for side in ("fixed", "moving"):
        write_image(getattr(inputs, side), folder / f"{side}.nii.gz")
        write_segmentation(getattr(inputs, f"{side}_segmentation"), folder / f"{side}.seg.nrrd")
        write_landmarks(getattr(inputs, f"{side}_landmarks"), folder / f"{side}.mrk.json")


def write_results(folder: Path, inputs: Inputs, results: Results, *, scene=True, pictures=True) -> list[str]:
    """Write everything of `FILES` that the results have; return notes on what was omitted."""
    write_values(folder, results)
    notes: list[str] = []
    steps = ([_write_grid_picture] if pictures else []) + ([_write_scene] if scene or pictures else [])
    for step in steps:
        try:
            step(folder, inputs, results, scene, pictures)
        except _Unavailable as missing:
            notes.append(words_of(missing))
    return notes


class _Unavailable(Exception):
    """An optional package or a graphics driver is not there."""


def _write_grid_picture(folder: Path, inputs: Inputs, results: Results, scene: bool, pictures: bool) -> None:
    """Write pictures/grid.png: three slices."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise _Unavailable(
            tr(
                "pictures/grid.png left out: matplotlib is not installed; "
                'pip install "slicer-icon-registration[scene]".'
            )
        ) from None
    from ..demo.plot import plot_deformation

    fixed = inputs.fixed
    deformation = results.registration.forward.after(np.linalg.inv(results.registration.linear))
    index = np.rint(fixed.grid.to_index(centre_of_interest(inputs))).astype(int)
    index = index.clip(0, np.array(fixed.grid.size) - 1)
    figure = Figure(figsize=(16, 6), layout="constrained")
    for axes, axis in zip(figure.subplots(1, 3), (2, 1, 0), strict=True):
        plot_deformation(axes, deformation, _windowed(fixed, results), axis, int(index[axis]))
    figure.suptitle("Deformation without its linear part: a straight grid of the moving image, on the fixed image")
    (folder / "pictures").mkdir(exist_ok=True)
    figure.savefig(folder / "pictures" / "grid.png", dpi=100)


def _windowed(fixed, results):
    """Return the fixed image for display: CT in the soft-tissue window."""
    from dataclasses import replace

    if results.registration.provenance["fixed"]["modality"] != "ct":
        return fixed
    window, level = _SOFT_TISSUE
    return replace(fixed, array=fixed.array.clip(level - window / 2, level + window / 2))


def centre_of_interest(inputs: Inputs) -> np.ndarray:
    """Return the centre of the segments of the fixed image, else of the image: (x, y, z) mm, LPS."""
    segmentation = inputs.fixed_segmentation
    if segmentation is not None:
        inside = np.any([layer != 0 for layer in segmentation.layers], axis=0)
        if inside.any():
            return segmentation.grid.to_world(index_range(inside).mean(axis=0))
    return inputs.fixed.grid.centre


def _write_scene(folder: Path, inputs: Inputs, results: Results, scene: bool, pictures: bool) -> None:
    """Write pictures/before.png and after.png by Slicer's own views, then scene.mrb."""
    from ..mrml.embedded import private_scene

    try:
        mrml = private_scene()
    except InputError as error:
        reason = words_of(error)
        if scene and pictures:
            raise _Unavailable(tr("scene.mrb and Slicer's pictures left out. {reason}", reason=reason)) from None
        if scene:
            raise _Unavailable(tr("scene.mrb left out. {reason}", reason=reason)) from None
        raise _Unavailable(tr("Slicer's pictures left out. {reason}", reason=reason)) from None
    import vtk

    vtk.vtkLogger.SetStderrVerbosity(vtk.vtkLogger.VERBOSITY_ERROR)  # no DISPLAY is no reason to worry
    from ..mrml.markups import node_from_landmarks
    from ..mrml.pictures import can_render, render_slices
    from ..mrml.scene import save_scene, temporary_nodes
    from ..mrml.segmentations import node_from_segmentation
    from ..mrml.transforms import node_from_field
    from ..mrml.volumes import node_from_image

    with temporary_nodes(mrml):
        fixed = node_from_image(mrml, inputs.fixed, inputs.fixed.name)
        moving = node_from_image(mrml, inputs.moving, inputs.moving.name)
        for node, side in ((fixed, "fixed"), (moving, "moving")):
            if results.registration.provenance[side]["modality"] == "ct":
                node.GetDisplayNode().SetAutoWindowLevel(False)
                node.GetDisplayNode().SetWindowLevel(*_SOFT_TISSUE)
        warped = node_from_image(mrml, results.warped, f"{inputs.moving.name} warped", like=moving)
        forward = node_from_field(mrml, results.registration.forward, "moving to fixed (for moving data)")
        node_from_field(mrml, results.registration.backward, "fixed to moving (for fixed data)")
        segmentations = [
            None if segmentation is None else node_from_segmentation(mrml, segmentation, name)
            for segmentation, name in (
                (inputs.fixed_segmentation, "fixed segmentation"),
                (inputs.moving_segmentation, "moving segmentation"),
                (results.warped_segmentation, "warped segmentation"),
            )
        ]
        for node in filter(None, segmentations):
            node.GetDisplayNode().SetSliceIntersectionThickness(2)
        before = [node for node in segmentations[:2] if node]
        after = [node for node in segmentations[::2] if node]
        hindrance = can_render() if pictures else None
        if pictures and not hindrance:
            (folder / "pictures").mkdir(exist_ok=True)
            centre = centre_of_interest(inputs)
            shown: dict[str, Any] = {"centre": centre, "opacity": 0.5, "size": 560}
            render_slices(mrml, fixed, folder / "pictures" / "before.png", moving, segmentations=before, **shown)
            deformation = results.registration.forward.after(np.linalg.inv(results.registration.linear))
            with temporary_nodes(mrml):  # the grid shows the deformation, not the position of the patient
                grid = node_from_field(mrml, deformation, "deformation")
                render_slices(
                    mrml,
                    fixed,
                    folder / "pictures" / "after.png",
                    warped,
                    transform=grid,
                    segmentations=after,
                    **shown,
                )
        if scene:
            for landmarks, name in (
                (inputs.fixed_landmarks, "fixed landmarks"),
                (inputs.moving_landmarks, "moving landmarks"),
            ):
                if landmarks is not None:
                    node = node_from_landmarks(mrml, landmarks, name)
                    if landmarks is inputs.moving_landmarks:
                        node.SetAndObserveTransformNodeID(forward.GetID())
            moving.SetAndObserveTransformNodeID(forward.GetID())
            if segmentations[1]:
                segmentations[1].SetAndObserveTransformNodeID(forward.GetID())
                segmentations[1].SetDisplayVisibility(False)  # the warped one is there, and crisper
            for node in after:
                node.GetDisplayNode().SetVisibility2DFill(False)
            _prepare_grid(forward, inputs.fixed.grid)
            _prepare_views(mrml, fixed, moving)
            save_scene(mrml, folder / "scene.mrb")
    if hindrance:
        raise _Unavailable(tr("Slicer's pictures left out: {reason}", reason=hindrance))


def _prepare_grid(transform, grid: Grid) -> None:
    """Make the deformation grid suit the image; it waits, hidden, for a click on the transform's eye."""
    from ..mrml.review.deformation import show_grid

    transform.CreateDefaultDisplayNodes()
    show_grid(transform.GetDisplayNode(), float(grid.extent.max()))
    transform.GetDisplayNode().SetVisibility(False)


def _prepare_views(mrml, background, foreground) -> None:
    """Let Slicer's three slice views show both images, half and half, once the scene is loaded."""
    for name in ("Red", "Green", "Yellow"):
        composite = mrml.CreateNodeByClass("vtkMRMLSliceCompositeNode")
        composite.UnRegister(None)
        composite.SetSingletonTag(name)
        composite.SetLayoutName(name)
        composite = mrml.AddNode(composite)
        composite.SetBackgroundVolumeID(background.GetID())
        composite.SetForegroundVolumeID(foreground.GetID())
        composite.SetForegroundOpacity(0.5)
