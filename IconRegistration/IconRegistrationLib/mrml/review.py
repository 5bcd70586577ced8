"""What the controls of the panel's Review section do to nodes: every one is live, none resamples.

    before = Before(scene)
    put_under(before, moving, forward)
    show_comparison(before, composites, fixed, moving)
    set_warp_amount(forward, 0.5)
    ...
    before.restore()

What is changed for looking goes through a `Before`, which can put it back. Points are (x, y, z) in mm, RAS, as Slicer's
crosshair and slice nodes have them. "Composites" are vtkMRMLSliceCompositeNodes, one per slice view.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ..core.errors import InputError
from ..core.geometry import Grid, Image
from ..core.intensity import guess_modality
from .scene import nodes_of_class
from .transforms import LINEAR_ATTRIBUTE, array_from_matrix, world_matrix
from .volumes import image_from_node, node_from_image, vtk_image

#: Directions of the curtain: from, to. Within Slicer's views: from the left or the top of the picture.
CURTAIN_DIRECTIONS = ("R-L", "A-P", "S-I")
#: Limits of the distrust map's colours in mm; below the first, tissue stays clear.
DISTRUST_LIMITS = (1.0, 2.0, 3.0, 5.0, 10.0)

#: The value of voxels that are cut out of a float32 volume.
_HOLE = -1e30
_DISTRUST_COLORS = ((1, 0.95, 0.3), (1, 0.75, 0.1), (1, 0.5, 0), (0.95, 0.2, 0.05), (0.7, 0, 0.25))
_FOLDED_COLOR = (0.9, 0, 1)
_UNKNOWN_COLOR = (0.45, 0.45, 0.5)
#: Marks a linear transform that stands in for a parent of moving data under a registration, and refers to the parent.
_STANDS_FOR = "IconRegistration.standsFor"


# ------------------------------------------------------------------------------------------------------ what was before


@dataclass
class Before:
    """How the scene was before Review changed it, and the way back.

    Nodes are remembered by ID, so that none is kept alive; what has been deleted meanwhile is left alone, and a
    `Before` of a closed scene restores nothing.
    values: (node ID, property, arguments of its getter) -> value.  added: IDs of nodes made for looking.
    moved: IDs of nodes that were put under a transform.
    """

    scene: Any
    values: dict[tuple, Any] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def change(self, node, name: str, value, *key) -> None:
        """Set the property `name` of a node (of its part `key`), for the first time remembering what it was."""
        self.values.setdefault((node.GetID(), name, *key), getattr(node, f"Get{name}")(*key))
        _setter(node, name)(*key, value)

    def restore(self, *nodes) -> None:
        """Put back the properties of `nodes`; without any: everything, parents too, and remove what was added."""
        chosen = {node.GetID() for node in nodes}
        for identity in [key for key in reversed(self.values) if not chosen or key[0] in chosen]:
            value = self.values.pop(identity)
            node_id, name, *key = identity
            node = self.scene.GetNodeByID(node_id)
            if node is None:
                continue
            if name.endswith("ID") and value and self.scene.GetNodeByID(value) is None:
                value = None
            _setter(node, name)(*key, value)
        if not nodes:
            for node in self._present(self.moved):
                take_out(self, node)
            self.discard(*self._present(self.added))
            self.moved, self.added = [], []

    def add(self, class_name: str, name: str):
        """A new node with display nodes, for looking: neither saved with the scene nor listed in the data tree."""
        node = self.scene.CreateNodeByClass(class_name)
        node.UnRegister(None)  # the reference is ours
        node.SetName(self.scene.GenerateUniqueName(name))
        node.SetSaveWithScene(False)
        node.SetHideFromEditors(True)
        self.scene.AddNode(node)
        self.added.append(node.GetID())
        if hasattr(node, "CreateDefaultDisplayNodes"):
            node.CreateDefaultDisplayNodes()
            for display in _displays(node):
                display.SetSaveWithScene(False)
        return node

    def discard(self, *nodes) -> None:
        """Remove nodes that `add` made, with their displays, which would hold on to voxels."""
        for node in nodes:
            if node.GetID() in self.moved:
                take_out(self, node)
            self.added.remove(node.GetID())
            for display in _displays(node):
                if display.IsA("vtkMRMLTransformDisplayNode") and display.GetColorNode():
                    self.scene.RemoveNode(display.GetColorNode())  # made by the display for itself
                self.scene.RemoveNode(display)
            self.scene.RemoveNode(node)

    def _present(self, identities: Iterable[str]) -> list:
        return [node for node in map(self.scene.GetNodeByID, list(identities)) if node is not None]


def _setter(node, name: str):
    return getattr(node, f"SetAndObserve{name}", None) or getattr(node, f"Set{name}")


def _displays(node) -> list:
    if not hasattr(node, "GetNumberOfDisplayNodes"):
        return []
    return [node.GetNthDisplayNode(n) for n in range(node.GetNumberOfDisplayNodes())]


def _display(node):
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    return node.GetDisplayNode()


# --------------------------------------------------------------------------------------------------- how much is warped


def set_warp_amount(transform, amount: float) -> None:
    """Show that part of a grid transform's displacement, 0 (none) to 1 (all): what lies under it follows at once.

    It scales both directions of the node, and what a file of it or `field_from_node` would hold: see `viewing_copy`.
    Raises InputError if the node holds no displacement grid.
    """
    if not 0 <= amount <= 1:
        raise InputError(f"The warp amount is between 0 and 1, not {amount:g}.")
    _grid_transform(transform).SetDisplacementScale(amount)


def viewing_copy(before: Before, transform):
    """A grid transform node with the displacements of `transform`, of which a part can be shown.

    The samples are shared, not copied. `transform` itself keeps all of the displacement, for a file would hold what is
    shown, and no event tells of every file that is written. The copy is not saved.
    """
    node = before.add("vtkMRMLGridTransformNode", f"{transform.GetName()}, as shown")
    node.SetAndObserveTransformFromParent(_with_all_displacement(transform))
    node.SetAttribute(LINEAR_ATTRIBUTE, "1")
    return node


def _with_all_displacement(transform):
    """The vtkOrientedGridTransform of a node, sharing the samples, whatever amount of it is shown."""
    shown = _grid_transform(transform)
    whole = slicer.vtkOrientedGridTransform()
    whole.SetGridDirectionMatrix(shown.GetGridDirectionMatrix())
    whole.SetDisplacementGridData(shown.GetDisplacementGrid())
    whole.SetInterpolationMode(shown.GetInterpolationMode())
    if shown.GetInverseFlag():
        whole.Inverse()
    return whole


def _grid_transform(node):
    stored = slicer.vtkOrientedGridTransform.SafeDownCast(node.GetTransformFromParent())
    if stored is None or stored.GetDisplacementGrid() is None:
        raise InputError(f"The transform {node.GetName()!r} holds no displacement field; choose a registration's.")
    return stored


# ----------------------------------------------------------------------------------------------- parents of moving data


def put_under(before: Before, node, transform) -> None:
    """Put data (volume, segmentation, markups, model) under a registration's transform; `take_out` undoes it exactly.

    Data that has a linear parent keeps its place in the world, where it was registered: the parent itself stays as it
    is, since other nodes (the fixed image, perhaps) may share it. A stand-in with the parent's matrix lies between data
    and registration, and knows its parent, also in a saved scene. It does not follow the parent: the registration would
    not either. Data that already lies under `transform`, however far below, is left there; data under another of our
    registrations is taken out of that first. Raises InputError if the data has a non-linear parent.
    """
    if _lies_under(node, transform):
        return
    take_out(before, node)
    parent = node.GetParentTransformNode()
    over = transform if parent is None else _stand_in(before.scene, node, parent, transform)
    node.SetAndObserveTransformNodeID(over.GetID())
    before.moved.append(node.GetID())


def take_out(before: Before, node) -> None:
    """Give data back the parent that it had before `put_under`; data that lies under none of ours is left alone."""
    parent = node.GetParentTransformNode()
    if parent is None or not _is_ours(parent):
        return
    original = _own_parent(node)
    node.SetAndObserveTransformNodeID(original.GetID() if original else None)
    if parent.GetAttribute(_STANDS_FOR) and not any(
        other.GetParentTransformNode() is parent for other in nodes_of_class(before.scene, "vtkMRMLTransformableNode")
    ):
        before.scene.RemoveNode(parent)
    if node.GetID() in before.moved:
        before.moved.remove(node.GetID())


def _is_ours(transform) -> bool:
    return bool(transform.GetAttribute(_STANDS_FOR) or transform.GetAttribute(LINEAR_ATTRIBUTE))


def _own_parent(node):
    """The parent that data has when it is not under a registration, or None."""
    parent = node.GetParentTransformNode()
    if parent is None or not _is_ours(parent):
        return parent
    return parent.GetNodeReference(_STANDS_FOR) if parent.GetAttribute(_STANDS_FOR) else None


def _lies_under(node, transform) -> bool:
    parent = node.GetParentTransformNode()
    return parent is not None and (parent is transform or bool(parent.IsTransformNodeMyParent(transform)))


def _stand_in(scene, node, parent, transform):
    """A linear transform with the matrix of `parent` to the world, under `transform`; one for all nodes of `parent`."""
    world_matrix(node)  # raises where it is not linear
    for standing in nodes_of_class(scene, "vtkMRMLLinearTransformNode"):
        if standing.GetNodeReference(_STANDS_FOR) is parent and standing.GetParentTransformNode() is transform:
            break
    else:
        name = scene.GenerateUniqueName(f"{parent.GetName()}, then {transform.GetName()}")
        standing = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
        standing.SetAttribute(_STANDS_FOR, parent.GetName())
        standing.SetNodeReferenceID(_STANDS_FOR, parent.GetID())
        standing.SetAndObserveTransformNodeID(transform.GetID())
    matrix = vtk.vtkMatrix4x4()
    parent.GetMatrixTransformToWorld(matrix)
    standing.SetMatrixTransformToParent(matrix)
    return standing


# --------------------------------------------------------------------------------------------------- one over the other


def show_carried(before: Before, composites, still: list, carried: list, transform) -> None:
    """One image's data under `transform`, its volume over the other image's, in all slice views.

    still, carried: nodes of the two images, the volume first. Forward: fixed, moving, and the forward transform; the
    other direction: moving, fixed, and the backward one. What lay under a registration and is now still is taken out.
    """
    for node in still:
        take_out(before, node)
    for node in carried:
        put_under(before, node, transform)
    show_comparison(before, composites, still[0], carried[0])


def show_comparison(before: Before, composites, fixed, moving, opacity: float = 0.5) -> None:
    """The volume `fixed` in the background, `moving` over it with matched window and level, in the given slice views.

    moving: any volume that lies on the fixed one: warped, or under the transform.
    """
    match_window(before, fixed, moving)
    for composite in composites:
        before.change(composite, "BackgroundVolumeID", fixed.GetID())
        before.change(composite, "ForegroundVolumeID", moving.GetID())
    blend(before, composites, opacity)


def match_window(before: Before, fixed, moving) -> None:
    """Show `moving` with the window and level that correspond to those of `fixed`, which stay as they are.

    Two CTs have one scale, Hounsfield units, and get the same window. Otherwise the window is carried over by the
    linear map that takes the fixed image's 1st and 99th percentiles (of a sample of its voxels) to the moving image's:
    MR has no scale of its own. Colours of the two stay. Label maps are left alone.
    """
    shown, display = _display(fixed), _display(moving)
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
    before.change(display, "AutoWindowLevel", False)
    before.change(display, "Window", high - low)
    before.change(display, "Level", (low + high) / 2)


def _sample(node) -> Image:
    """Every n-th voxel of a volume node, a million or so, wherever they lie."""
    voxels = _voxels(node)
    step = max(1, round((voxels.size / 1e6) ** (1 / 3)))
    thinned = voxels[::step, ::step, ::step]
    return Image(thinned, Grid(thinned.shape, np.eye(4)), node.GetName())


def _voxels(node) -> np.ndarray:
    """[k, j, i], a view: what is written into it is in the node."""
    voxels = node.GetImageData()
    return vtk_to_numpy(voxels.GetPointData().GetScalars()).reshape(voxels.GetDimensions()[::-1])


def blend(before: Before, composites, opacity: float) -> None:
    """How much of the foreground volume is seen, 0 to 1."""
    for composite in composites:
        before.change(composite, "ForegroundOpacity", opacity)


def flicker(before: Before, composites) -> None:
    """Show the other one of background and foreground, alone; for a timer to call. `blend` ends it."""
    shown = any(composite.GetForegroundOpacity() > 0.5 for composite in composites)
    blend(before, composites, 0 if shown else 1)


# --------------------------------------------------------------------------------------------- checkerboard and curtain


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


def cut_volume(before: Before, source) -> CutVolume:
    """A copy of a volume node for `checkerboard` and `curtain`, nothing cut yet, displayed as the source is now.

    Voxels of any type become float32, for the hole's value: far enough below all others that a view, which interpolates
    between the two, shows no dark seam around a hole. The display's threshold hides it. A label map stays one, and its
    holes are its background, 0, which its colour table leaves clear.
    """
    image = image_from_node(source)
    shown = _display(source)
    is_labels = source.IsA("vtkMRMLLabelMapVolumeNode")
    voxels, hole = (image.array, 0.0) if is_labels else (image.array.astype(np.float32, copy=False), _HOLE)
    node = before.add(source.GetClassName(), f"{source.GetName()}, cut")
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
    node_from_image(before.scene, Image(voxels, image.grid), "", node)
    return CutVolume(node, source, hole)


def checkerboard(cut: CutVolume, cells: int) -> None:
    """Cubes of the volume and holes by turns, `cells` along its longest axis; the first voxel lies in a cube."""
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
    """The volume from one side up to `fraction` of its breadth, then nothing. direction: of CURTAIN_DIRECTIONS.

    The edge is a plane of voxels, of the grid's axis that is nearest to the direction. Moving it writes the voxels
    between the old and the new place alone.
    """
    voxels, source = _voxels(cut.node), _voxels(cut.source)
    axis, rises = _axis_along(image_from_node(cut.node).grid, direction)
    planes = voxels.shape[axis]
    count = round(min(max(fraction, 0), 1) * planes)
    known = cut.curtain is not None and cut.curtain[0] == direction
    old = cut.curtain[1] if known else 0
    slabs = [(min(old, count), max(old, count), count > old)] if known else [(0, count, True), (count, planes, False)]
    for start, stop, is_shown in slabs:
        if not rises:
            start, stop = planes - stop, planes - start
        slab = (slice(None),) * axis + (slice(start, stop),)
        voxels[slab] = source[slab] if is_shown else cut.hole
    cut.curtain = (direction, count)
    _show_voxels(cut)


def _world_axis(direction: str) -> int:
    """0, 1, 2 for x, y, z."""
    if direction not in CURTAIN_DIRECTIONS:
        raise InputError(f"No curtain goes {direction!r}; choose of {', '.join(CURTAIN_DIRECTIONS)}.")
    return CURTAIN_DIRECTIONS.index(direction)


def _axis_along(grid: Grid, direction: str) -> tuple[int, bool]:
    """The axis of an array on `grid` that is nearest to the direction, and whether its index rises along it."""
    row = _world_axis(direction)
    component = grid.direction[row] * (1, 1, -1)[row]  # LPS: from R to L and from A to P rise, from S to I falls
    axis = int(np.abs(component).argmax())
    return 2 - axis, bool(component[axis] > 0)


def _show_voxels(cut: CutVolume) -> None:
    voxels = cut.node.GetImageData()
    voxels.GetPointData().GetScalars().Modified()
    voxels.Modified()


# ---------------------------------------------------------------------------------------------------------- deformation


def grid_spacing(field_of_view: float) -> float:
    """A round distance of grid lines in mm (1, 2 or 5 times a power of ten) that draws 15 to 40 of them."""
    raw = field_of_view / 25
    power = 10.0 ** np.floor(np.log10(raw))
    return float(min((1, 2, 5, 10), key=lambda step: abs(np.log(step * power / raw))) * power)


def show_grid(display, field_of_view: float) -> None:
    """Make a transform display node draw a deformation grid suited to a field of view in mm, in slices and in 3D.

    Its colour is the displacement's length: light blue for none (Slicer's own dark grey is lost on a dark image),
    yellow for half a cell, red from a cell on.
    """
    spacing = grid_spacing(field_of_view)
    _style_deformation(display, "grid", spacing, spacing)
    display.SetVisibility(True)
    display.SetVisibility2D(True)
    display.SetVisibility3D(True)


def deformation_spacing(style: str, region, transform) -> float:
    """What `show_deformation` chooses, in mm: distance of grid lines or arrows by the region's size, of contours by the
    largest displacement."""
    if style != "contours":
        bounds = [0.0] * 6
        region.GetRASBounds(bounds)
        return grid_spacing(float(np.ptp(np.reshape(bounds, (3, 2)), axis=1).max()))
    return grid_spacing(_longest(transform) * 2.5)  # about ten levels


def deformation_line_width(spacing: float, region) -> int:
    """What `show_deformation` chooses, in pixels of a slice view: an eighth of the spacing in voxels, 1 to 3.

    Lines that lie far apart are seen as lines; between close ones the image is.
    """
    return round(min(max(spacing / min(region.GetSpacing()) / 8, 1), 3))


def _longest(transform) -> float:
    """The longest displacement of a grid transform's samples (of 100,000 of them) in mm, at least 0.1."""
    vectors = vtk_to_numpy(_grid_transform(transform).GetDisplacementGrid().GetPointData().GetScalars())
    return max(0.1, float(np.linalg.norm(vectors[:: max(1, len(vectors) // 100_000)], axis=1).max()))


def show_deformation(
    before: Before,
    transform,
    style: str,
    region,
    *,
    spacing: float | None = None,
    line_width: int | None = None,
    in_slices: bool = True,
    in_3d: bool = False,
) -> None:
    """Draw a transform's deformation over a volume as "grid", "glyphs" (arrows) or "contours" (of its length).

    region: the volume node.  spacing: of lines, arrows or contour levels in mm, else `deformation_spacing`.
    line_width: pixels, in slices, else `deformation_line_width`.
    Colours go from light blue (no displacement) over yellow to red (the longest).
    `before.restore(transform.GetDisplayNode())` takes it away; the display node keeps distances and colours.
    """
    display = _display(transform)
    for name in ("Visibility", "Visibility2D", "Visibility3D", "VisualizationMode", "SliceIntersectionThickness"):
        before.change(display, name, getattr(display, f"Get{name}")())
    spacing = spacing or deformation_spacing(style, region, transform)
    _style_deformation(display, style, spacing, _longest(transform))
    display.SetAndObserveRegionNode(region)
    display.SetSliceIntersectionThickness(line_width or deformation_line_width(spacing, region))
    display.SetVisibility(True)
    display.SetVisibility2D(in_slices)
    display.SetVisibility3D(in_3d)


def _style_deformation(display, style: str, spacing: float, red: float) -> None:
    """Mode, distances and colours of a transform display node. spacing, red: mm, the displacement drawn in red."""
    modes = {"grid": display.VIS_MODE_GRID, "glyphs": display.VIS_MODE_GLYPH, "contours": display.VIS_MODE_CONTOUR}
    if style not in modes:
        raise InputError(f"No picture of the deformation is called {style!r}; choose of {', '.join(modes)}.")
    colors = vtk.vtkColorTransferFunction()
    colors.AddRGBPoint(0, 0.4, 0.8, 1)
    colors.AddRGBPoint(red / 2, 1, 0.9, 0.2)
    colors.AddRGBPoint(red, 1, 0.2, 0.1)
    modified = display.StartModify()
    display.SetColorMap(colors)
    display.SetVisualizationMode(modes[style])
    if style == "grid":
        display.SetGridSpacingMm(spacing)
        display.SetGridResolutionMm(spacing / 5)
        display.SetGridLineDiameterMm(spacing / 12)
        display.SetGridScalePercent(100)
    elif style == "glyphs":
        display.SetGlyphType(display.GLYPH_TYPE_ARROW)
        display.SetGlyphSpacingMm(spacing)
        display.SetGlyphDiameterMm(spacing / 3)
        display.SetGlyphScalePercent(100)
        display.SetGlyphDisplayRangeMinMm(0.01)
        display.SetGlyphDisplayRangeMaxMm(1000)
    else:
        display.SetContourLevelsMmFromString(" ".join(f"{n * spacing:g}" for n in range(1, 13)))
        display.SetContourResolutionMm(2.5)
    display.EndModify(modified)


# ------------------------------------------------------------------------------------------------------------- segments


def show_outlines(before: Before, fixed, moving) -> None:
    """Outline two segmentation nodes, without filling: the fixed one in thick lines, the moving one in thin ones.

    A moving segment has the colour of the fixed segment of its name, lightened so that it is seen on the thick line.
    `before.restore(*outline_displays(fixed, moving))` takes it away.
    """
    colors = {segment.GetName(): segment.GetColor() for _, segment in _segments(fixed)}
    for display, thickness in zip(outline_displays(fixed, moving), (4, 2), strict=True):
        before.change(display, "Visibility", True)
        before.change(display, "Visibility2D", True)
        before.change(display, "Visibility2DFill", False)
        before.change(display, "Visibility2DOutline", True)
        before.change(display, "Opacity2DOutline", 1.0)
        before.change(display, "SliceIntersectionThickness", thickness)
    display = _display(moving)
    for identifier, segment in _segments(moving):
        color = np.array(colors.get(segment.GetName(), segment.GetColor()))
        lighter = vtk.vtkVector3d(*(color + 0.55 * (1 - color)))
        before.change(display, "SegmentOverrideColor", lighter, identifier)


def outline_displays(fixed, moving) -> list:
    """The display nodes that `show_outlines` changes."""
    return [_display(fixed), _display(moving)]


def live_segments(before: Before, source, identifiers: list[str], transform, node=None):
    """A segmentation node with some of a segmentation's segments, under `transform`: seen warped at once, in 2D and 3D.

    The light node holds those segments alone, each cropped to its extent: ticking one leaves the others be. A linear
    parent of the source counts. `node`, of an earlier call, is brought up to date. The source itself stays where it is;
    `before.discard(node)` takes the light one away.
    """
    if node is None:
        node = before.add("vtkMRMLSegmentationNode", f"{source.GetName()}, warped live")
        node.GetDisplayNode().SetOpacity2DFill(0.25)  # the images are to be seen through them
        node.GetSegmentation().SetSourceRepresentationName(source.GetSegmentation().GetSourceRepresentationName())
        parent = _own_parent(source)
        node.SetAndObserveTransformNodeID(parent.GetID() if parent else None)
    put_under(before, node, transform)
    target = node.GetSegmentation()
    for identifier in set(target.GetSegmentIDs()) - set(identifiers):
        target.RemoveSegment(identifier)
    for identifier in identifiers:
        if target.GetSegment(identifier) is None:
            target.AddSegment(_lone_segment(source, identifier), identifier)
    node.CreateClosedSurfaceRepresentation()
    return node


def _lone_segment(source, identifier: str):
    """A vtkSegment with a label map of its own: a view draws every value of a shared one, whosever it is."""
    name = source.GetSegmentation().GetSourceRepresentationName()
    original, segment = source.GetSegmentation().GetSegment(identifier), slicer.vtkSegment()
    segment.DeepCopyMetadata(original)
    if name == slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName():
        image, extent = slicer.vtkOrientedImageData(), [0] * 6
        source.GetBinaryLabelmapRepresentation(identifier, image)
        if slicer.vtkOrientedImageDataResample.CalculateEffectiveExtent(image, extent):
            slicer.vtkOrientedImageDataResample.CopyImage(image, image, extent)
        segment.SetLabelValue(1)
        segment.AddRepresentation(name, image)
    else:
        segment.AddRepresentation(name, original.GetRepresentation(name))
    return segment


def _segments(node) -> list[tuple[str, Any]]:
    segmentation = node.GetSegmentation()
    return [(identifier, segmentation.GetSegment(identifier)) for identifier in segmentation.GetSegmentIDs()]


# ------------------------------------------------------------------------------------------------- distrust and folding


def trust_overlay(before: Before, distrust=None, jacobian=None, limits=DISTRUST_LIMITS):
    """A label map volume that says where not to trust a registration: its names are what the data probe shows.

    distrust: volume node, inverse-consistency error in mm; labels are "1 - 2 mm" and so on by `limits` (mm, rising,
    five at most), nothing below the first. NaN or negative (no counterpart in the moving image) is grey.
    jacobian: volume node, determinants; 0 or less is "folded", over everything else.
    A slice view's background and foreground hold the two images, and its label layer takes label maps alone: hence
    labels. A coarse map is interpolated before it is cut into steps.
    """
    steps = [f"{low:g} - {high:g} mm" for low, high in pairwise(limits)]
    names = [*steps, f"more than {limits[-1]:g} mm", "no counterpart in the moving image", "folded"]
    unknown, folded = len(names) - 1, len(names)
    errors, determinants = (node and _finer(image_from_node(node)) for node in (distrust, jacobian))
    grid = (errors or determinants).grid
    labels = np.zeros(grid.shape, np.uint8)
    if errors is not None:
        for limit in limits:
            labels += errors.array >= limit
        labels[~(errors.array >= 0)] = unknown
    if determinants is not None:
        if not determinants.grid.is_close(grid):
            raise InputError(
                f"{errors.name!r} and {determinants.name!r} are of different runs; choose those of one run."
            )
        labels[determinants.array <= 0] = folded
    table = before.add("vtkMRMLColorTableNode", "Registration distrust")
    table.SetTypeToUser()
    table.SetNumberOfColors(len(names) + 1)
    table.SetColor(0, "trusted", 0, 0, 0, 0)
    colors = (*_DISTRUST_COLORS[-len(limits) :], _UNKNOWN_COLOR, _FOLDED_COLOR)
    for value, (name, color) in enumerate(zip(names, colors, strict=True), start=1):
        table.SetColor(value, name, *color, 1)
    node = before.add("vtkMRMLLabelMapVolumeNode", "Registration distrust")
    node_from_image(before.scene, Image(labels, grid), "", node)
    node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    return node


def show_overlay(before: Before, composites, overlay, opacity: float = 0.5) -> None:
    """A label map over the images of slice views; `before.restore` of the composites, or None, takes it away."""
    for composite in composites:
        before.change(composite, "LabelVolumeID", overlay.GetID() if overlay else None)
        before.change(composite, "LabelOpacity", opacity)


def _finer(image: Image, spacing: float = 1.5, voxels: float = 3e7) -> Image:
    """float32, linearly interpolated, a whole number of new samples per old one: `spacing` in mm, within `voxels`."""
    factor = max(1, math.ceil(image.grid.spacing.max() / spacing - 1e-6))
    factor = max(1, min(factor, int((voxels / image.array.size) ** (1 / 3))))
    size = [(n - 1) * factor + 1 for n in image.grid.size]
    reslice = vtk.vtkImageReslice()
    reslice.SetInputData(vtk_image(image.array.astype(np.float32, copy=False)))
    reslice.SetInterpolationModeToLinear()
    reslice.SetOutputOrigin(0, 0, 0)
    reslice.SetOutputSpacing([1 / factor] * 3)
    reslice.SetOutputExtent(0, size[0] - 1, 0, size[1] - 1, 0, size[2] - 1)
    reslice.Update()
    array = vtk_to_numpy(reslice.GetOutput().GetPointData().GetScalars()).reshape(size[::-1])
    return Image(array, Grid(array.shape, image.grid.affine @ np.diag([*[1 / factor] * 3, 1])), image.name)


# -------------------------------------------------------------------------------------------------------- linked cursor


def corresponding_point(forward, point) -> np.ndarray:
    """Where a point of the fixed image lies in the undeformed moving scan; both (x, y, z) in mm, RAS, world.

    The whole map's answer, whatever amount of it is shown. The world is where the moving scan lies under its own linear
    parents, if it has any: that place was registered.
    """
    whole = _with_all_displacement(forward)
    return np.array(whole.TransformPoint([float(x) for x in point]))


def cursor_marker(before: Before, slice_nodes):
    """A locked point without a label, seen only in the given slice views (those of the moving scan)."""
    marker = before.add("vtkMRMLMarkupsFiducialNode", "Corresponding point")
    marker.SetLocked(True)
    display = marker.GetDisplayNode()
    display.SetPointLabelsVisibility(False)
    display.SetSelectedColor(1, 0.85, 0.1)
    display.SetViewNodeIDs([node.GetID() for node in slice_nodes])
    return marker


def place_cursor(marker, point, slice_nodes) -> None:
    """Put the marker to `point` (mm, RAS, world) and the slice views on it, panned only where it were out of view."""
    point = [float(x) for x in point]
    if marker.GetNumberOfControlPoints() == 0:
        marker.AddControlPointWorld(point)
    else:
        marker.SetNthControlPointPositionWorld(0, point)
    for node in slice_nodes:
        node.JumpSliceByOffsetting(*point)
        if not _in_view(node, point):
            node.JumpSliceByCentering(*point)


def _in_view(slice_node, point) -> bool:
    pixel = np.linalg.inv(array_from_matrix(slice_node.GetXYToRAS())) @ [*point, 1]
    width, height, _ = slice_node.GetDimensions()
    return bool(0 <= pixel[0] < width and 0 <= pixel[1] < height)


# ----------------------------------------------------------------------------------------------------------- trust card


def report_table(scene, report, name: str, node=None):
    """A table node with a Report's numbers, a row each, and its verdicts first (level, value, meaning).

    `node` is updated in place if given. What is not known is an empty cell.
    """
    node = node or scene.AddNewNodeByClass("vtkMRMLTableNode", name)
    rows = [("Verdict", v.level, v.measure, "", None, v.value, v.meaning) for v in report.verdicts]
    rows += [(r.group, r.name, r.measure, r.unit, r.before, r.after, "") for r in report.rows()]
    titles = ("Group", "Name", "Measure", "Unit", "Before", "After", "Meaning")
    table = vtk.vtkTable()
    for title, values in zip(titles, zip(*rows, strict=True), strict=True):
        column = vtk.vtkStringArray()
        column.SetName(title)
        for value in values:
            column.InsertNextValue(value if isinstance(value, str) else number_text(value, digits=6))
        table.AddColumn(column)
    node.SetAndObserveTable(table)
    node.SetUseColumnNameAsColumnHeader(True)
    node.SetLocked(True)
    return node


def number_text(value: float | None, digits: int) -> str:
    """A number of a Report for a cell: empty where it is not known, "inf" for the distance to an empty segment."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"
