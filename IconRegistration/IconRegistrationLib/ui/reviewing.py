"""The one place that makes the scene show a result as the controls of the Review section say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import slicer

from ..errors import InputError
from ..mrml import review as scene_review
from ..mrml.registration import RegistrationRequest, ResultNodes
from ..quality.report import Report
from ..text import tr
from .control import View
from .linked_cursor import STANDARD_VIEWS, slice_logic
from .review_controls import controls

#: Buttons of the section -> whether they do something for (view, request, nodes).
BUTTONS: dict[str, Callable[[View, RegistrationRequest, ResultNodes], bool]] = {
    "runAgainButton": lambda view, request, nodes: True,
    "exportCsvButton": lambda view, request, nodes: nodes.report is not None,
    "exportTableButton": lambda view, request, nodes: nodes.report is not None,
    "hardenButton": lambda view, request, nodes: bool(view.labels),
}


def with_review_parameters(cls: type) -> type:
    """Add the parameters of the controls to the class of a parameter node; to be used below parameterNodeWrapper."""
    for control in controls():
        cls.__annotations__[control.parameter] = control.kind
        setattr(cls, control.parameter, control.default)
    return cls


def view_of(parameters: Any) -> View:
    """Return the view that the panel's parameters describe."""
    return View(**{control.name: control.value(getattr(parameters, control.parameter)) for control in controls()})


def possible(view: View, request: RegistrationRequest, nodes: ResultNodes) -> View:
    """Return `view` without what excludes each other or has no data."""
    for control in controls():
        if control.possible is not None:
            view = view.but(**{control.name: control.possible(view, request, nodes)})
    return view


def enabled_widgets(view: View | None, request: RegistrationRequest | None, nodes: ResultNodes) -> dict[str, bool]:
    """Return the widgets of the section by name, and whether they do something.

    view: what is shown, None without a result.
    """
    rules = {**BUTTONS, **{control.widget_name: control.enabled for control in controls()}}
    if view is None or request is None:
        return dict.fromkeys(rules, False)
    return {name: rule(view, request, nodes) for name, rule in rules.items()}


class Review:
    """Shows one result. `show` begins, `apply` follows the controls, `close` restores the scene.

    Attributes
    ----------
    request : RegistrationRequest or None
        What the result that is shown was made of; None while none is shown.
    nodes : ResultNodes
        The result that is shown.
    view : View or None
        How it is shown.
    restore_point : SceneRestorePoint
        Undoes every change that is made through it.
    copies : dict
        "forward", "backward" -> the transform node applied to the displayed data.
    kept : dict
        What controls keep while the result is shown, by keys of their own.
    """

    def __init__(self, scene: Any):
        self._scene = scene
        self.request: Any = None
        self.nodes = ResultNodes()
        self.view: Any = None
        self.restore_point = scene_review.SceneRestorePoint(scene)
        self.copies: dict[str, Any] = {}
        self.kept: dict[Any, Any] = {}

    @property
    def report(self) -> Report | None:
        """The report of the result that is shown, or None."""
        return self.nodes.report

    @property
    def forward(self) -> Any:
        """The forward transform of the result that is shown, or None."""
        return self.nodes.forward

    @property
    def labelled(self) -> Any:
        """The segmentation node whose segments can be warped live, or None."""
        return self.request.moving_segmentation if self.request else None

    def shows(self, node: Any) -> bool:
        """Return whether the result that is shown is made of this node."""
        return self.request is not None and node in (*self.request.nodes.values(), *vars(self.nodes).values())

    def enabled(self) -> dict[str, bool]:
        """Return the widgets by name, and whether they do something now."""
        return enabled_widgets(self.view, self.request, self.nodes)

    def show(self, request: RegistrationRequest, nodes: ResultNodes, view: View) -> None:
        """Show a result in the views, fitted and centred, in place of the previous one."""
        self.close()
        self.restore_point = scene_review.SceneRestorePoint(self._scene)
        self.request, self.nodes = request, nodes
        transforms = {"forward": nodes.forward, "backward": nodes.backward}
        self.copies = {
            which: scene_review.viewing_copy(self.restore_point, node)
            for which, node in transforms.items()
            if node is not None
        }
        self.apply(view)
        for name in slicer.app.layoutManager().sliceViewNames():
            slice_logic(name).FitSliceToBackground()

    def close(self) -> None:
        """End the review. Nodes that were deleted meanwhile are left alone."""
        if self.request is None:
            return
        for control in controls():
            if control.end is not None:
                control.end(self)
        self.restore_point.restore()
        self.request, self.nodes, self.view = None, ResultNodes(), None
        self.copies, self.kept = {}, {}

    def apply(self, wanted: View) -> None:
        """Update the scene where it differs from the settings of the view."""
        if self.request is None:
            return
        old, self.view = self.view, possible(wanted, self.request, self.nodes)
        changed = {name for name, value in vars(self.view).items() if old is None or getattr(old, name) != value}
        every = controls()
        steps = [c.show for c in every if c.show is not None and changed.intersection((c.name, *c.follows))]
        for show in dict.fromkeys(steps):
            show(self)

    def harden(self, session: Any, done: Callable[[Any], None]) -> None:
        """Let a Session put the ticked segments onto the fixed grid; `done` gets the segmentation node.

        Raises
        ------
        InputError
            If no segment is ticked.
        """
        if self.request is None or self.view is None or not self.view.labels:
            raise InputError(tr("No segment is ticked; tick those that should be warped."))
        with self.aside():
            session.warp_segments(
                self.request.moving_segmentation, list(self.view.labels), self.forward, self.request.fixed, done
            )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Put everything back into its registered position, without the transforms of the review."""
        carried = self.sides()[1] if self.view is not None and self.view.shown == "live" else []
        for node in carried:
            scene_review.take_out(self.restore_point, node)
        try:
            yield
        finally:
            for node in carried:
                scene_review.put_under(self.restore_point, node, self.transform)

    @property
    def transform(self) -> Any:
        """The transform node under which data is carried now."""
        return self.copies["backward" if self.view.swap else "forward"]

    def sides(self) -> tuple[list, list]:
        """Return the nodes of the image that stays and of the one that is carried, volumes first."""
        r = self.request
        fixed = [node for node in (r.fixed, r.fixed_segmentation, r.fixed_landmarks) if node is not None]
        moving = [node for node in (r.moving, r.moving_segmentation, r.moving_landmarks) if node is not None]
        return (moving, fixed) if self.view.swap else (fixed, moving)

    def composites(self) -> list:
        """Return the composite nodes of the slice views that compare.

        Those are the standard views, all there are in a layout without them: the linked cursor's lower row shows the
        moving scan alone.
        """
        names = list(slicer.app.layoutManager().sliceViewNames())
        upper = [name for name in names if name in STANDARD_VIEWS] or names
        return [slice_logic(name).GetSliceCompositeNode() for name in upper]


def displays_of(*nodes: Any) -> list:
    """Return the display nodes of the nodes that exist and have one."""
    return [node.GetDisplayNode() for node in nodes if node is not None and node.GetDisplayNode() is not None]
