"""Scale the warp that is shown, without changing the saved transform."""

from __future__ import annotations

from typing import Any

import slicer

from ...errors import InputError
from ...text import tr
from ..transforms import LINEAR_ATTRIBUTE
from .scene_restore_point import SceneRestorePoint


def set_warp_amount(transform: Any, amount: float) -> None:
    """Show that part of a grid transform's displacement, 0 (none) to 1 (all): what it transforms follows at once.

    It scales both directions of the node, and what a file of it or `field_from_node` would hold: see `viewing_copy`.
    Raises InputError if the node holds no displacement grid.
    """
    if not 0 <= amount <= 1:
        raise InputError(tr("The warp amount is between 0 and 1, not {amount:g}.", amount=amount))
    grid_transform_of(transform).SetDisplacementScale(amount)


def viewing_copy(restore_point: SceneRestorePoint, transform: Any) -> Any:
    """Return a grid transform node with the displacements of `transform`, of which a part can be shown.

    The samples are shared, not copied. `transform` itself keeps all of the displacement, for a file would hold what is
    shown, and no event tells of every file that is written. The copy is not saved.
    """
    node = restore_point.add_hidden_node("vtkMRMLGridTransformNode", f"{transform.GetName()}, as shown")
    node.SetAndObserveTransformFromParent(whole_transform(transform))
    node.SetAttribute(LINEAR_ATTRIBUTE, "1")
    return node


def whole_transform(transform: Any) -> Any:
    """Return the vtkOrientedGridTransform of a node, sharing the samples, whatever amount of it is shown."""
    shown = grid_transform_of(transform)
    whole = slicer.vtkOrientedGridTransform()
    whole.SetGridDirectionMatrix(shown.GetGridDirectionMatrix())
    whole.SetDisplacementGridData(shown.GetDisplacementGrid())
    whole.SetInterpolationMode(shown.GetInterpolationMode())
    if shown.GetInverseFlag():
        whole.Inverse()
    return whole


def grid_transform_of(node: Any) -> Any:
    """Return the vtkOrientedGridTransform of a node; raise InputError if it holds no displacement grid."""
    stored = slicer.vtkOrientedGridTransform.SafeDownCast(node.GetTransformFromParent())
    if stored is None or stored.GetDisplacementGrid() is None:
        raise InputError(
            tr("The transform {name!r} holds no displacement field; choose a registration's.", name=node.GetName())
        )
    return stored
