"""Lists with a box to tick before each entry: what Slicer's own widgets lack."""

from __future__ import annotations

from typing import Any

import qt


def segment_names(node: Any) -> dict[str, str]:
    """Return the names of the segments of a node by identifier; none without a node."""
    if node is None:
        return {}
    segmentation = node.GetSegmentation()
    return {identifier: segmentation.GetSegment(identifier).GetName() for identifier in segmentation.GetSegmentIDs()}


def fill_ticks(widget: Any, names: dict[str, str], ticked: Any) -> None:
    """Make a QListWidget show `names` (identifier -> text), those in `ticked` with a tick; untouched where it does."""
    wanted = [(identifier, text, identifier in ticked) for identifier, text in names.items()]
    if wanted == [(_identifier(item), item.text(), _is_ticked(item)) for item in _items(widget)]:
        return
    widget.clear()
    for identifier, text, is_ticked in wanted:
        item = qt.QListWidgetItem(text)
        item.setData(qt.Qt.UserRole, identifier)
        item.setFlags(item.flags() | qt.Qt.ItemIsUserCheckable)
        item.setCheckState(qt.Qt.Checked if is_ticked else qt.Qt.Unchecked)
        widget.addItem(item)


def ticks(widget: Any) -> tuple[list[str], list[str]]:
    """Return the identifiers of all entries, and of those with a tick."""
    items = _items(widget)
    return [_identifier(item) for item in items], [_identifier(item) for item in items if _is_ticked(item)]


def _items(widget) -> list:
    return [widget.item(row) for row in range(widget.count)]


def _identifier(item) -> str:
    return item.data(qt.Qt.UserRole)


def _is_ticked(item) -> bool:
    return item.checkState() == qt.Qt.Checked
