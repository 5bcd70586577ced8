"""Remember the state of the scene and restore it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import vtk

from ..scene import nodes_of_class
from ..transforms import LINEAR_ATTRIBUTE, world_matrix

#: Marks a linear transform that stands in for a parent of moving data under a registration, and refers to the parent.
_STANDS_FOR = "IconRegistration.standsFor"


@dataclass
class SceneRestorePoint:
    """State of the scene before Review changed it; `restore` goes back to it.

    Nodes are remembered by ID, so that none is kept alive; what has been deleted meanwhile is left alone, and a
    restore point of a closed scene restores nothing.
    values: (node ID, property, arguments of its getter) -> value.  added: IDs of nodes made for looking.
    moved: IDs of nodes that were put under a transform.
    """

    scene: Any
    values: dict[tuple, Any] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)

    def change(self, node: Any, name: str, value: Any, *key: Any) -> None:
        """Set the property `name` of a node (of its part `key`), for the first time remembering what it was."""
        self.values.setdefault((node.GetID(), name, *key), getattr(node, f"Get{name}")(*key))
        _setter(node, name)(*key, value)

    def restore(self, *nodes: Any) -> None:
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
            self.remove_hidden_nodes(*self._present(self.added))
            self.moved, self.added = [], []

    def add_hidden_node(self, class_name: str, name: str) -> Any:
        """Add a node with display nodes, for looking: neither saved with the scene nor listed in the data tree."""
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

    def remove_hidden_nodes(self, *nodes: Any) -> None:
        """Remove nodes that `add_hidden_node` made, with their displays, which would hold on to voxels."""
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


def display_of(node: Any) -> Any:
    """Return the display node of a node, made where there is none."""
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    return node.GetDisplayNode()


def put_under(restore_point: SceneRestorePoint, node: Any, transform: Any) -> None:
    """Put data (volume, segmentation, markups, model) under a registration's transform; `take_out` undoes it exactly.

    Data that has a linear parent keeps its place in the world, where it was registered: the parent itself stays as it
    is, since other nodes (the fixed image, perhaps) may share it. A stand-in with the parent's matrix lies between data
    and registration, and knows its parent, also in a saved scene. It does not follow the parent: the registration would
    not either. Data that `transform` already transforms, however indirectly, stays; data under another of our
    registrations is taken out of that first. Raises InputError if the data has a non-linear parent.
    """
    if _lies_under(node, transform):
        return
    take_out(restore_point, node)
    parent = node.GetParentTransformNode()
    over = transform if parent is None else _stand_in(restore_point.scene, node, parent, transform)
    node.SetAndObserveTransformNodeID(over.GetID())
    restore_point.moved.append(node.GetID())


def take_out(restore_point: SceneRestorePoint, node: Any) -> None:
    """Give data back the parent that it had before `put_under`; data that none of ours transforms is not changed."""
    parent = node.GetParentTransformNode()
    if parent is None or not _is_ours(parent):
        return
    original = own_parent(node)
    node.SetAndObserveTransformNodeID(original.GetID() if original else None)
    if parent.GetAttribute(_STANDS_FOR) and not any(
        other.GetParentTransformNode() is parent
        for other in nodes_of_class(restore_point.scene, "vtkMRMLTransformableNode")
    ):
        restore_point.scene.RemoveNode(parent)
    if node.GetID() in restore_point.moved:
        restore_point.moved.remove(node.GetID())


def _is_ours(transform) -> bool:
    return bool(transform.GetAttribute(_STANDS_FOR) or transform.GetAttribute(LINEAR_ATTRIBUTE))


def own_parent(node: Any) -> Any:
    """Return the parent that data has when it is not under a registration, or None."""
    parent = node.GetParentTransformNode()
    if parent is None or not _is_ours(parent):
        return parent
    return parent.GetNodeReference(_STANDS_FOR) if parent.GetAttribute(_STANDS_FOR) else None


def _lies_under(node, transform) -> bool:
    parent = node.GetParentTransformNode()
    return parent is not None and (parent is transform or bool(parent.IsTransformNodeMyParent(transform)))


def _stand_in(scene, node, parent, transform):
    """Return a transform with the matrix of `parent` to the world, under `transform`; one for all nodes of `parent`."""
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
