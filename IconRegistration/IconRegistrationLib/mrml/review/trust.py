"""Show where the deformation can be trusted, and the report as a table."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from ...errors import InputError
from ...spatial.geometry import Grid, Image
from ...text import tr
from ..volumes import image_from_node, node_from_image, vtk_image
from .scene_restore_point import SceneRestorePoint

#: Limits of the colours of the inverse-consistency error in mm; below the first, the map is transparent.
DISTRUST_LIMITS = (1.0, 2.0, 3.0, 5.0, 10.0)

_DISTRUST_COLORS = ((1, 0.95, 0.3), (1, 0.75, 0.1), (1, 0.5, 0), (0.95, 0.2, 0.05), (0.7, 0, 0.25))

_FOLDED_COLOR = (0.9, 0, 1)

_UNKNOWN_COLOR = (0.45, 0.45, 0.5)


def trust_overlay(
    restore_point: SceneRestorePoint,
    distrust: Any = None,
    jacobian: Any = None,
    limits: tuple[float, ...] = DISTRUST_LIMITS,
) -> Any:
    """Return a label map volume that says where not to trust a registration; the data probe shows its names.

    distrust: volume node, inverse-consistency error in mm; labels are "1 - 2 mm" and so on by `limits` (mm, rising,
    five at most), nothing below the first. NaN or negative (no counterpart in the moving image) is grey.
    jacobian: volume node, determinants; 0 or less is "folded", over everything else.
    A slice view's background and foreground hold the two images, and its label layer takes label maps alone: hence
    labels. A coarse map is interpolated before it is cut into steps.
    """
    steps = [tr("{low:g} - {high:g} mm", low=low, high=high) for low, high in pairwise(limits)]
    names = [*steps, tr("more than {limit:g} mm", limit=limits[-1])]
    names += [tr("no counterpart in the moving image"), tr("folded")]
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
                tr(
                    "{first!r} and {second!r} are of different runs; choose those of one run.",
                    first=errors.name,
                    second=determinants.name,
                )
            )
        labels[determinants.array <= 0] = folded
    table = restore_point.add_hidden_node("vtkMRMLColorTableNode", "Registration distrust")
    table.SetTypeToUser()
    table.SetNumberOfColors(len(names) + 1)
    table.SetColor(0, tr("trusted"), 0, 0, 0, 0)
    colors = (*_DISTRUST_COLORS[-len(limits) :], _UNKNOWN_COLOR, _FOLDED_COLOR)
    for value, (name, color) in enumerate(zip(names, colors, strict=True), start=1):
        table.SetColor(value, name, *color, 1)
    node = restore_point.add_hidden_node("vtkMRMLLabelMapVolumeNode", "Registration distrust")
    node_from_image(restore_point.scene, Image(labels, grid), "", node)
    node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    return node


def show_overlay(restore_point: SceneRestorePoint, composites: Any, overlay: Any, opacity: float = 0.5) -> None:
    """Lay a label map over the images of slice views; `restore` of the composites, or None, removes it."""
    for composite in composites:
        restore_point.change(composite, "LabelVolumeID", overlay.GetID() if overlay else None)
        restore_point.change(composite, "LabelOpacity", opacity)


def _finer(image: Image, spacing: float = 1.5, voxels: float = 3e7) -> Image:
    """Resample to float32, a whole number of linear samples per old one: `spacing` in mm, within `voxels`."""
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


def report_table(scene: Any, report: Any, name: str, node: Any = None) -> Any:
    """Return a table node with a Report's numbers, a row each, and its verdicts first (level, value, meaning).

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
    """Return a number of a Report for a cell: empty where unknown, "inf" for the distance to an empty segment."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}g}"
