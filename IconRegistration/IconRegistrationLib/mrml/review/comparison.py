"""Compare two volumes in the slice views: blend, flicker, checkerboard, curtain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
from vtk.util.numpy_support import vtk_to_numpy

from ...errors import InputError
from ...registration.intensity import guess_modality
from ...spatial.geometry import Grid, Image
from ...text import tr
from ..volumes import image_from_node, node_from_image
from .scene_restore_point import SceneRestorePoint, display_of, put_under, take_out

#: Directions of the curtain: from, to. Within Slicer's views: from the left or the top of the picture.
CURTAIN_DIRECTIONS = ("R-L", "A-P", "S-I")

#: The value of voxels that are cut out of a float32 volume.
_HOLE = -1e30


def show_carried(restore_point: SceneRestorePoint, composites: Any, still: list, carried: list, transform: Any) -> None:
    """Show one image's data under `transform`, its volume over the other image's, in all slice views.

    still, carried: nodes of the two images, the volume first. Forward: fixed, moving, and the forward transform; the
    other direction: moving, fixed, and the backward one. What lay under a registration and is now still is taken out.
    """
    for node in still:
        take_out(restore_point, node)
    for node in carried:
        put_under(restore_point, node, transform)
    show_comparison(restore_point, composites, still[0], carried[0])


def show_comparison(
    restore_point: SceneRestorePoint, composites: Any, fixed: Any, moving: Any, opacity: float = 0.5
) -> None:
    """Show the volume `fixed` in the background and `moving` over it, with matched window and level, in slice views.

    moving: any volume that lies on the fixed one: warped, or under the transform.
    """
    match_window(restore_point, fixed, moving)
    for composite in composites:
        restore_point.change(composite, "BackgroundVolumeID", fixed.GetID())
        restore_point.change(composite, "ForegroundVolumeID", moving.GetID())
    blend(restore_point, composites, opacity)


def match_window(restore_point: SceneRestorePoint, fixed: Any, moving: Any) -> None:
    """Show `moving` with the window and level that correspond to those of `fixed`, which stay as they are.

    Two CTs have one scale, Hounsfield units, and get the same window. Otherwise the window is carried over by the
    linear map that takes the fixed image's 1st and 99th percentiles (of a sample of its voxels) to the moving image's:
    MR has no scale of its own. Colours of the two stay. Label maps are left alone.
    """
    shown, display = display_of(fixed), display_of(moving)
    if not all(isinstance(each, slicer.vtkMRMLScalarVolumeDisplayNode) for each in (shown, display)):
        return
    low, high = shown.GetWindowLevelMin(), shown.GetWindowLevelMax()
    images = [_sample(node) for node in (fixed, moving)]
    if not all(guess_modality(image) == "ct" for image in images):
        (low_fixed, high_fixed), (low_moving, high_moving) = (
            np.nanpercentile(image.array, (1, 99)).tolist() for image in images
        )
        if high_fixed > low_fixed and high_moving > low_moving:
            scale = (high_moving - low_moving) / (high_fixed - low_fixed)
            low, high = (low_moving + (value - low_fixed) * scale for value in (low, high))
    restore_point.change(display, "AutoWindowLevel", False)
    restore_point.change(display, "Window", high - low)
    restore_point.change(display, "Level", (low + high) / 2)


def _sample(node) -> Image:
    """Return every n-th voxel of a volume node, a million or so, wherever they lie."""
    voxels = _voxels(node)
    step = max(1, round((voxels.size / 1e6) ** (1 / 3)))
    thinned = voxels[::step, ::step, ::step]
    return Image(thinned, Grid(thinned.shape, np.eye(4)), node.GetName())


def _voxels(node) -> np.ndarray:
    """Return the voxels, [k, j, i], as a view: writing to it changes the node."""
    voxels = node.GetImageData()
    return vtk_to_numpy(voxels.GetPointData().GetScalars()).reshape(voxels.GetDimensions()[::-1])


def blend(restore_point: SceneRestorePoint, composites: Any, opacity: float) -> None:
    """Set how much of the foreground volume is seen, 0 to 1."""
    for composite in composites:
        restore_point.change(composite, "ForegroundOpacity", opacity)


def flicker(restore_point: SceneRestorePoint, composites: Any) -> None:
    """Show the other one of background and foreground, alone; for a timer to call. `blend` ends it."""
    shown = any(composite.GetForegroundOpacity() > 0.5 for composite in composites)
    blend(restore_point, composites, 0 if shown else 1)


@dataclass
class CutVolume:
    """A copy of a volume with transparent holes, to lie over another one at full opacity.

    node: the copy.  source: the volume node that it was made of.  hole: the value that is not drawn.
    curtain: direction and number of planes shown of the curtain that it holds now; None if it holds another pattern.
    """

    node: Any
    source: Any
    hole: float
    curtain: tuple[str, int] | None = None


def cut_volume(restore_point: SceneRestorePoint, source: Any) -> CutVolume:
    """Return a copy of a volume node for `checkerboard` and `curtain`, nothing cut yet, displayed as the source is now.

    Voxels of any type become float32, for the hole's value: far enough below all others that a view, which interpolates
    between the two, shows no dark seam around a hole. The display's threshold hides it. A label map stays one, and its
    holes are its background, 0, which its colour table leaves clear.
    """
    image = image_from_node(source)
    shown = display_of(source)
    is_labels = source.IsA("vtkMRMLLabelMapVolumeNode")
    voxels, hole = (image.array, 0.0) if is_labels else (image.array.astype(np.float32, copy=False), _HOLE)
    node = restore_point.add_hidden_node(source.GetClassName(), f"{source.GetName()}, cut")
    display = node.GetDisplayNode()
    display.CopyContent(shown)
    display.SetAndObserveColorNodeID(shown.GetColorNodeID())
    display.SetSaveWithScene(False)
    if not is_labels:
        low, high = source.GetImageData().GetScalarRange()
        display.SetAutoWindowLevel(False)
        display.SetWindowLevel(shown.GetWindow(), shown.GetLevel())
        display.SetAutoThreshold(False)
        display.SetThreshold(low - 1e-3 * ((high - low) or 1), high + 1e-3 * ((high - low) or 1))
        display.SetApplyThreshold(True)
    # last: a display that finds window and level itself would look at every voxel
    node_from_image(restore_point.scene, Image(voxels, image.grid), "", node)
    return CutVolume(node, source, hole)


def checkerboard(cut: CutVolume, cells: int) -> None:
    """Alternate cubes of the volume and holes, `cells` along its longest axis; the first voxel lies in a cube."""
    grid, voxels, source = image_from_node(cut.node).grid, _voxels(cut.node), _voxels(cut.source)
    edge = grid.extent.max() / cells
    odd = [
        (((np.arange(n) + 0.5) * spacing / edge).astype(int) % 2).astype(bool)
        for n, spacing in zip(grid.shape, grid.spacing[::-1], strict=True)
    ]
    plane = odd[1][:, None] ^ odd[2][None, :]
    for k, flipped in enumerate(odd[0]):
        np.copyto(voxels[k], source[k])
        voxels[k][plane ^ flipped] = cut.hole
    cut.curtain = None
    _show_voxels(cut)


def curtain(cut: CutVolume, direction: str, fraction: float) -> None:
    """Show the volume from one side up to `fraction` of its breadth, then nothing. direction: of CURTAIN_DIRECTIONS.

    The edge is a plane of voxels, of the grid's axis that is nearest to the direction. Moving it writes the voxels
    between the old and the new place alone.
    """
    voxels, source = _voxels(cut.node), _voxels(cut.source)
    axis, rises = _axis_along(image_from_node(cut.node).grid, direction)
    planes = voxels.shape[axis]
    count = round(min(max(fraction, 0), 1) * planes)
    if cut.curtain is not None and cut.curtain[0] == direction:
        old = cut.curtain[1]
        slabs = [(min(old, count), max(old, count), count > old)]
    else:
        slabs = [(0, count, True), (count, planes, False)]
    for start, stop, is_shown in slabs:
        if not rises:
            start, stop = planes - stop, planes - start
        slab = (slice(None),) * axis + (slice(start, stop),)
        voxels[slab] = source[slab] if is_shown else cut.hole
    cut.curtain = (direction, count)
    _show_voxels(cut)


def _world_axis(direction: str) -> int:
    """Return the world axis, 0, 1, 2 for x, y, z."""
    if direction not in CURTAIN_DIRECTIONS:
        raise InputError(
            tr(
                "No curtain goes {direction!r}; choose one of {choices}.",
                direction=direction,
                choices=", ".join(CURTAIN_DIRECTIONS),
            )
        )
    return CURTAIN_DIRECTIONS.index(direction)


def _axis_along(grid: Grid, direction: str) -> tuple[int, bool]:
    """Return the axis of an array on `grid` that is nearest to the direction, and whether its index rises along it."""
    row = _world_axis(direction)
    component = grid.direction[row] * (1, 1, -1)[row]  # LPS: from R to L and from A to P rise, from S to I falls
    axis = int(np.abs(component).argmax())
    return 2 - axis, bool(component[axis] > 0)


def _show_voxels(cut: CutVolume) -> None:
    voxels = cut.node.GetImageData()
    voxels.GetPointData().GetScalars().Modified()
    voxels.Modified()
