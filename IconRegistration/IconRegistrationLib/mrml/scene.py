"""Scenes as files, and the place of a node in the data tree."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import slicer

from ..errors import InputError
from ..text import tr
from .transforms import set_linear_interpolation


def save_scene(scene: Any, path: str | Path) -> Path:
    """Write the whole scene, data included, as one .mrb file.

    Raises
    ------
    InputError
        If the path is not one of an .mrb file in an existing folder.
    OSError
        If the file cannot be written.
    """
    path = _bundle_path(path)
    if not path.parent.is_dir():
        raise InputError(tr("The folder {folder} does not exist; create it first.", folder=path.parent))
    messages = slicer.vtkMRMLMessageCollection()
    with _kept_working_directory():
        written = scene.WriteToMRB(str(path), None, messages)
    if not written or not path.is_file():
        raise OSError(tr("The scene could not be written to {path}. {reason}", path=path, reason=_text(messages)))
    return path


def load_scene(scene: Any, path: str | Path, clear: bool = False) -> None:
    """Read an .mrb file into `scene`, instead of its content if `clear`, else beside it.

    Our grid transforms warp as before saving: they are set back to linear interpolation.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    path = _bundle_path(path)
    if not path.is_file():
        raise InputError(tr("There is no scene file {path}; check the path.", path=path))
    messages = slicer.vtkMRMLMessageCollection()
    with _kept_working_directory():
        read = scene.ReadFromMRB(str(path), clear, messages)
    if not read:
        raise InputError(
            tr("The scene {path} could not be read; it may be damaged. {reason}", path=path, reason=_text(messages))
        )
    set_linear_interpolation(scene)


def place_beside(scene: Any, node: Any, source: Any) -> None:
    """Put `node` into the folder, study or patient of the subject hierarchy in which `source` lies."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    source_item = hierarchy.GetItemByDataNode(source)
    if not source_item:  # desktop Slicer gives every node an item, slicer-core none
        return
    parent, item = hierarchy.GetItemParent(source_item), hierarchy.GetItemByDataNode(node)
    if item:
        hierarchy.SetItemParent(item, parent)
    else:
        hierarchy.CreateItem(parent, node)


def nodes_of_class(scene: Any, class_name: str) -> list:
    """Return the nodes of a class and its subclasses."""
    nodes = scene.GetNodesByClass(class_name)
    nodes.UnRegister(None)  # the collection is ours
    return [nodes.GetItemAsObject(n) for n in range(nodes.GetNumberOfItems())]


@contextmanager
def temporary_nodes(scene: Any, only_on_error: bool = False) -> Iterator[None]:
    """Take out of the scene, at the end (`only_on_error`: if there was one), what was added within the block.

    Display and storage nodes too: they do not go with the node that they belong to, and hold its voxels.
    """
    before = {node.GetID() for node in nodes_of_class(scene, "vtkMRMLNode")}
    failed = True
    try:
        yield
        failed = False
    finally:
        if failed or not only_on_error:
            for node in nodes_of_class(scene, "vtkMRMLNode"):
                if node.GetID() not in before:
                    scene.RemoveNode(node)


@contextmanager
def _kept_working_directory():
    """Keep the working directory: MRML packs bundles in a temporary one, deletes it and leaves the process there."""
    folder = os.getcwd()
    try:
        yield
    finally:
        os.chdir(folder)


def _bundle_path(path) -> Path:
    path = Path(path).absolute()
    if path.suffix.lower() != ".mrb":
        raise InputError(tr("A scene is saved as one .mrb file, not {name!r}; give that ending.", name=path.name))
    return path


def _text(messages) -> str:
    return messages.GetAllMessagesAsString() or ""
