"""Show the undeformed moving scan in a second row of slice views that follows the crosshair."""

from __future__ import annotations

from ..control import Control
from ..linked_cursor import LinkedCursor
from ..reviewing import Review

_KEY = "linked cursor"


def link_cursor(review: Review) -> None:
    """Begin or end the linked cursor, as the view says."""
    unlink_cursor(review)
    if review.view.linked_cursor:
        review.kept[_KEY] = LinkedCursor(review.restore_point, review.request.moving, review.nodes.forward)


def unlink_cursor(review: Review) -> None:
    """End the linked cursor if there is one."""
    cursor = review.kept.pop(_KEY, None)
    if cursor is not None:
        cursor.end()


CONTROLS = (
    Control(
        name="linked_cursor",
        parameter="linkedCursor",
        kind=bool,
        default=False,
        widget="linkedCursorCheckBox",
        possible=lambda view, request, nodes: view.linked_cursor and nodes.warped_volume is not None,
        enabled=lambda view, request, nodes: nodes.warped_volume is not None,
        show=link_cursor,
        end=unlink_cursor,
    ),
)
