"""What the parts of the panel share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .reviewing import Review
    from .session import Session
    from .status import StatusLine


class Panel:
    """The widgets of the page, the scene, and what the parts of the panel work with.

    Attributes
    ----------
    ui
        The widgets of the .ui file by their names.
    scene : vtkMRMLScene
    parameters
        The bound parameter node; None while another module is open.
    session : Session
        Runs requests in the worker.
    review : Review
        Shows results.
    status : StatusLine
    """

    session: Session
    review: Review
    status: StatusLine

    def __init__(self, ui: Any, scene: Any):
        self.ui, self.scene = ui, scene
        self.parameters: Any = None
