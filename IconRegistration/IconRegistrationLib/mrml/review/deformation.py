"""Show a deformation as a grid, arrows or contours."""

from __future__ import annotations

from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ...errors import InputError
from ...text import tr
from .amount import grid_transform_of
from .scene_restore_point import SceneRestorePoint, display_of


def grid_spacing(field_of_view: float) -> float:
    """Return a round distance of grid lines in mm (1, 2 or 5 times a power of ten) that draws 15 to 40 of them."""
    raw = field_of_view / 25
    power = 10.0 ** np.floor(np.log10(raw))
    return float(min((1, 2, 5, 10), key=lambda step: abs(np.log(step * power / raw))) * power)


def show_grid(display: Any, field_of_view: float) -> None:
    """Make a transform display node draw a deformation grid suited to a field of view in mm, in slices and in 3D.

    Its colour is the displacement's length: light blue for none (Slicer's own dark grey is lost on a dark image),
    yellow for half a cell, red from a cell on.
    """
    spacing = grid_spacing(field_of_view)
    _style_deformation(display, "grid", spacing, spacing)
    display.SetVisibility(True)
    display.SetVisibility2D(True)
    display.SetVisibility3D(True)


def deformation_spacing(style: str, region: Any, transform: Any) -> float:
    """Return the spacing that `show_deformation` chooses, in mm.

    Of grid lines and arrows it follows from the region's size, of contours from the
    largest displacement.
    """
    if style != "contours":
        bounds = [0.0] * 6
        region.GetRASBounds(bounds)
        return grid_spacing(float(np.ptp(np.reshape(bounds, (3, 2)), axis=1).max()))
    return grid_spacing(_longest(transform) * 2.5)  # about ten levels


def deformation_line_width(spacing: float, region: Any) -> int:
    """Return the line width that `show_deformation` chooses, in pixels: an eighth of the spacing in voxels, 1 to 3.

    Lines that lie far apart are seen as lines; between close ones the image is.
    """
    return round(min(max(spacing / min(region.GetSpacing()) / 8, 1), 3))


def _longest(transform) -> float:
    """Return the longest displacement of a grid transform's samples (of 100,000 of them) in mm, at least 0.1."""
    vectors = vtk_to_numpy(grid_transform_of(transform).GetDisplacementGrid().GetPointData().GetScalars())
    return max(0.1, float(np.linalg.norm(vectors[:: max(1, len(vectors) // 100_000)], axis=1).max()))


def show_deformation(
    restore_point: SceneRestorePoint,
    transform: Any,
    style: str,
    region: Any,
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
    `restore_point.restore(transform.GetDisplayNode())` takes it away; the display node keeps distances and colours.
    """
    display = display_of(transform)
    for name in ("Visibility", "Visibility2D", "Visibility3D", "VisualizationMode", "SliceIntersectionThickness"):
        restore_point.change(display, name, getattr(display, f"Get{name}")())
    spacing = spacing or deformation_spacing(style, region, transform)
    _style_deformation(display, style, spacing, _longest(transform))
    display.SetAndObserveRegionNode(region)
    display.SetSliceIntersectionThickness(line_width or deformation_line_width(spacing, region))
    display.SetVisibility(True)
    display.SetVisibility2D(in_slices)
    display.SetVisibility3D(in_3d)


def _style_deformation(display, style: str, spacing: float, red: float) -> None:
    """Set mode, distances and colours of a transform display node. spacing, red: mm, the displacement drawn in red."""
    modes = {"grid": display.VIS_MODE_GRID, "glyphs": display.VIS_MODE_GLYPH, "contours": display.VIS_MODE_CONTOUR}
    if style not in modes:
        raise InputError(
            tr(
                "No picture of the deformation is called {style!r}; choose one of {modes}.",
                style=style,
                modes=", ".join(modes),
            )
        )
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
