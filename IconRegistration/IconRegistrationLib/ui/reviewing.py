"""The Review section: what its controls say (`View`), and the one place that makes the scene show it (`Review`)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import qt
import slicer

from ..errors import InputError
from ..mrml import review
from ..mrml.registration import RegistrationRequest, ResultNodes
from ..quality.report import Report
from ..quality.verdicts import WORDS
from .choices import FULL_WARP, chosen_segments
from .linked_cursor import STANDARD_VIEWS, LinkedCursor, slice_logic

#: Milliseconds for which flicker shows each image.
FLICKER_MS = 500
#: Of landmarks of the image that stays and of the one that is carried.
STILL_COLOR, CARRIED_COLOR = (1.0, 0.85, 0.1), (0.3, 0.9, 1.0)


@dataclass(frozen=True)
class View:
    """How a result is looked at. Words as in ui/choices.py; amounts in 0..1, lengths in mm, 0 for automatic."""

    shown: str = "resampled"
    swap: bool = False
    amount: float = 1.0
    comparison: str = "blend"
    blend: float = 0.5
    cells: int = 8
    curtain_direction: str = "R-L"
    curtain: float = 0.5
    linked_cursor: bool = False
    deformation: str = "none"
    deformation_spacing: float = 0.0
    line_width: int = 0
    deformation_in_3d: bool = False
    overlay: str = "none"
    outlines: bool = False
    labels: tuple[str, ...] = ()


def view_of(panel) -> View:
    """The View that the panel's parameters describe."""
    return View(
        shown=panel.shown.word,
        swap=panel.swap,
        amount=panel.warpAmount / FULL_WARP,
        comparison=panel.comparison.word,
        blend=panel.blend / 100,
        cells=round(panel.cells),
        curtain_direction=panel.curtainDirection.word,
        curtain=panel.curtain / 100,
        linked_cursor=panel.linkedCursor,
        deformation=panel.deformation.word,
        deformation_spacing=panel.deformationSpacing,
        line_width=panel.lineWidth,
        deformation_in_3d=panel.deformationIn3D,
        overlay=panel.overlay.word,
        outlines=panel.outlines,
        labels=tuple(chosen_segments(panel.labels) or ()),
    )


_OVERLAY_VOLUMES = {"distrust": "distrust", "folding": "jacobian"}
#: Comparisons with a copy of the resampled volume into which holes are cut.
_CUT = ("checkerboard", "curtain")


def possible(view: View, request: RegistrationRequest, outputs: ResultNodes) -> View:
    """`view` without what excludes each other or has no data.

    The linked cursor wants the moving scan where it was; checkerboard and curtain are cut from the resampled volume. Of
    the other direction nothing is resampled: it is live, and labels are not carried its way. The amount acts on what
    lies under a transform alone.
    """
    if outputs.warped_volume is None:
        comparison = "blend" if view.comparison in _CUT else view.comparison
        view = replace(view, shown="live", comparison=comparison, linked_cursor=False)
    elif view.linked_cursor or view.comparison in _CUT:
        view = replace(view, shown="resampled", swap=False)
    if outputs.backward is None:
        view = replace(view, swap=False)
    if view.swap:
        view = replace(view, shown="live", labels=())
    view = replace(view, labels=_present(view.labels, request.moving_segmentation))
    if view.shown == "resampled" and not view.labels:
        view = replace(view, amount=1.0)
    if None in _outlined(view, request, outputs):
        view = replace(view, outlines=False)
    if getattr(outputs, _OVERLAY_VOLUMES.get(view.overlay, ""), None) is None:
        view = replace(view, overlay="none")
    return view


def _present(identifiers: tuple[str, ...], segmentation) -> tuple[str, ...]:
    """Those of the segments that a segmentation node (or None) has."""
    there = segmentation.GetSegmentation().GetSegmentIDs() if segmentation is not None else ()
    return tuple(identifier for identifier in identifiers if identifier in there)


def _outlined(view: View, request: RegistrationRequest, outputs: ResultNodes) -> tuple:
    """The two segmentation nodes whose outlines belong over the images."""
    if view.swap:
        return request.moving_segmentation, request.fixed_segmentation
    if view.shown == "live":
        return request.fixed_segmentation, request.moving_segmentation
    return request.fixed_segmentation, outputs.warped_segmentation


def _pointed(view: View, request: RegistrationRequest, outputs: ResultNodes) -> tuple:
    """The two landmark nodes that belong over the images; None where there is none."""
    if view.swap:
        return request.moving_landmarks, request.fixed_landmarks
    if view.shown == "live":
        return request.fixed_landmarks, request.moving_landmarks
    return request.fixed_landmarks, outputs.warped_landmarks


def controls(view: View | None, request: RegistrationRequest | None, outputs: ResultNodes) -> dict[str, bool]:
    """Controls of the panel by name, and whether they do something. view: what is shown, None without a result."""
    is_open = view is not None
    live = is_open and view.shown == "live"
    resampled = is_open and outputs.warped_volume is not None
    bound = is_open and (view.linked_cursor or view.comparison in _CUT)
    outlined = is_open and None not in _outlined(view, request, outputs)
    return {
        "runAgainButton": is_open,
        "shownComboBox": resampled and not bound and not view.swap,
        "swapCheckBox": is_open and not bound and outputs.backward is not None,
        "warpAmountSlider": live or (is_open and bool(view.labels)),
        "compareComboBox": is_open,
        "blendSlider": is_open,
        "cellsSlider": is_open,
        "curtainSlider": is_open,
        "curtainComboBox": is_open,
        "linkedCursorCheckBox": resampled,
        "deformationComboBox": is_open,
        "deformationSpacingSpinBox": is_open and view.deformation != "none",
        "lineWidthSpinBox": is_open and view.deformation != "none",
        "deformationIn3DCheckBox": is_open and view.deformation != "none",
        "overlayComboBox": is_open and (outputs.distrust is not None or outputs.jacobian is not None),
        "outlinesCheckBox": outlined,
        "exportCsvButton": is_open and outputs.report is not None,
        "exportTableButton": is_open and outputs.report is not None,
        "labelsList": is_open and request.moving_segmentation is not None and not view.swap,
        "hardenButton": is_open and bool(view.labels),
    }


@dataclass(frozen=True)
class TrustRow:
    """A line of the trust card: measure, before, after, verdict; the colour of the verdict, "" for none."""

    cells: tuple[str, str, str, str]
    level: str = ""
    meaning: str = ""


def trust_card(report: Report | None) -> list[TrustRow]:
    """Verdicts first, then every number."""
    if report is None:
        return []
    verdicts = [
        TrustRow((v.measure, _number(v.before), _number(v.value), WORDS[v.level]), v.level, v.meaning)
        for v in report.verdicts
    ]
    numbers = []
    for row in report.rows():
        unit = f" [{row.unit}]" if row.unit else ""
        name = f"{row.name}: {row.measure}" if row.name else row.measure
        numbers.append(TrustRow((name + unit, _number(row.before), _number(row.after), "")))
    return verdicts + numbers


def _number(value: float | None) -> str:
    return review.number_text(value, digits=4)


class Review:
    """Shows one result. `show` begins, `apply` follows the controls, `close` puts the scene back as it was."""

    def __init__(self, scene):
        self._scene = scene
        self._request: RegistrationRequest | None = None
        self._outputs = ResultNodes()
        self._view: View | None = None
        self._before = review.SceneRestorePoint(scene)
        self._cut: review.CutVolume | None = None
        self._copies = {}  # "forward", "backward" -> what data is looked at under
        self._live_labels = None
        self._overlays = {}  # kind -> label map
        self._cursor: LinkedCursor | None = None
        self._timer = qt.QTimer()
        self._timer.interval = FLICKER_MS
        self._timer.connect("timeout()", self._flicker)

    @property
    def report(self) -> Report | None:
        return self._outputs.report

    @property
    def forward(self):
        """The forward transform of the result that is shown, or None."""
        return self._outputs.forward

    @property
    def labelled(self):
        """The segmentation node whose segments can be warped live, or None."""
        return self._request.moving_segmentation if self._request else None

    def shows(self, node) -> bool:
        """Whether the result that is shown is made of this node."""
        return self._request is not None and node in (*self._request.nodes.values(), *vars(self._outputs).values())

    def enabled(self) -> dict[str, bool]:
        """Controls by name, and whether they do something now."""
        return controls(self._view, self._request, self._outputs)

    def show(self, request: RegistrationRequest, outputs: ResultNodes, view: View) -> None:
        """Bring a result into the views, fitted and centred, instead of what was shown before."""
        self.close()
        self._before = review.SceneRestorePoint(self._scene)
        self._request, self._outputs = request, outputs
        transforms = {"forward": outputs.forward, "backward": outputs.backward}
        self._copies = {
            which: review.viewing_copy(self._before, node) for which, node in transforms.items() if node is not None
        }
        self.apply(view)
        for name in slicer.app.layoutManager().sliceViewNames():
            slice_logic(name).FitSliceToBackground()

    def close(self) -> None:
        """End the review. Nodes that were deleted meanwhile are left alone."""
        if self._request is None:
            return
        self._timer.stop()
        self._link_cursor(False)
        self._before.restore()
        self._request, self._outputs, self._view = None, ResultNodes(), None
        self._cut = self._live_labels = None
        self._copies, self._overlays = {}, {}

    def apply(self, wanted: View) -> None:
        """Change in the scene what differs from what is shown."""
        if self._request is None:
            return
        view = possible(wanted, self._request, self._outputs)
        old, self._view = self._view, view

        def changed(*names: str) -> bool:
            return old is None or any(getattr(old, name) != getattr(view, name) for name in names)

        if changed("amount"):
            for transform in self._copies.values():
                review.set_warp_amount(transform, view.amount)
        if changed("linked_cursor"):
            self._link_cursor(view.linked_cursor)
        if changed("shown", "swap", "comparison", "linked_cursor"):
            self._lay_over()
        if changed("comparison", "cells", "curtain", "curtain_direction", "blend", "shown", "swap", "linked_cursor"):
            self._compare()
        names = ("deformation", "deformation_spacing", "line_width", "deformation_in_3d", "swap")
        if changed(*names):
            self._show_deformation()
        if changed("outlines", "shown", "swap"):
            self._show_segments()
            self._show_landmarks()
        if changed("overlay", "linked_cursor"):
            self._show_overlay()
        if changed("labels"):
            self._show_labels()

    def harden(self, session, done) -> None:
        """Let a Session put the ticked segments onto the fixed grid; `done` gets the segmentation node."""
        if self._request is None or not self._view.labels:
            raise InputError("No segment is ticked; tick those that should be warped.")
        source = self._request.moving_segmentation
        with self.aside():
            session.warp_segments(source, list(self._view.labels), self._outputs.forward, self._request.fixed, done)

    @contextmanager
    def aside(self):
        """Everything where it was registered, not where it is looked at."""
        carried = self._sides()[1] if self._view is not None and self._view.shown == "live" else []
        for node in carried:
            review.take_out(self._before, node)
        try:
            yield
        finally:
            for node in carried:
                review.put_under(self._before, node, self._transform)

    # --------------------------------------------------------------------------------------------------- one part each

    @property
    def _transform(self):
        """The one under which data is carried now."""
        return self._copies["backward" if self._view.swap else "forward"]

    def _sides(self) -> tuple[list, list]:
        """Nodes of the image that stays and of the one that is carried, volumes first."""
        r = self._request
        fixed = [node for node in (r.fixed, r.fixed_segmentation, r.fixed_landmarks) if node is not None]
        moving = [node for node in (r.moving, r.moving_segmentation, r.moving_landmarks) if node is not None]
        return (moving, fixed) if self._view.swap else (fixed, moving)

    def _composites(self) -> list:
        """Of the slice views that compare; the linked cursor's lower row shows the moving scan alone."""
        return [slice_logic(name).GetSliceCompositeNode() for name in _upper_views()]

    def _link_cursor(self, on: bool) -> None:
        if self._cursor is not None:
            self._cursor.end()
        self._cursor = LinkedCursor(self._before, self._request.moving, self._outputs.forward) if on else None

    def _lay_over(self) -> None:
        still, carried = self._sides()
        if self._view.shown == "live":
            review.show_carried(self._before, self._composites(), still, carried, self._transform)
        else:
            for node in (*still, *carried):
                review.take_out(self._before, node)
            review.show_comparison(self._before, self._composites(), self._request.fixed, self._outputs.warped_volume)

    def _compare(self) -> None:
        view, composites = self._view, self._composites()
        if view.comparison != "flicker":
            self._timer.stop()
        if view.comparison in _CUT:
            if self._cut is None:
                self._cut = review.cut_volume(self._before, self._outputs.warped_volume)
            if view.comparison == "checkerboard":
                review.checkerboard(self._cut, view.cells)
            else:
                review.curtain(self._cut, view.curtain_direction, view.curtain)
            for composite in composites:
                self._before.change(composite, "ForegroundVolumeID", self._cut.node.GetID())
            review.blend(self._before, composites, 1.0)
            return
        if self._cut is not None:
            self._before.remove_hidden_nodes(self._cut.node)
            self._cut = None
        if view.comparison == "flicker":
            self._timer.start()
        else:
            review.blend(self._before, composites, view.blend)

    def _flicker(self) -> None:
        review.flicker(self._before, self._composites())

    def _show_deformation(self) -> None:
        view = self._view
        for transform in self._copies.values():
            self._before.restore(transform.GetDisplayNode())
        if view.deformation != "none":
            review.show_deformation(
                self._before,
                self._transform,
                view.deformation,
                self._sides()[0][0],
                spacing=view.deformation_spacing or None,
                line_width=view.line_width or None,
                in_3d=view.deformation_in_3d,
            )

    def _show_segments(self) -> None:
        """In slices: outlines of what is compared, or nothing; filled segments would hide the images."""
        nodes = (self._request.fixed_segmentation, self._request.moving_segmentation, self._outputs.warped_segmentation)
        for display in _displays(nodes):
            self._before.restore(display)
            self._before.change(display, "Visibility2D", False)
        if self._view.outlines:
            review.show_outlines(self._before, *_outlined(self._view, self._request, self._outputs))

    def _show_landmarks(self) -> None:
        """Those that should coincide, in two colours; without names, which would hide the images."""
        still, carried = _pointed(self._view, self._request, self._outputs)
        nodes = (self._request.fixed_landmarks, self._request.moving_landmarks, self._outputs.warped_landmarks)
        for display in _displays(nodes):
            node = display.GetDisplayableNode()
            self._before.restore(display)
            self._before.change(display, "Visibility", node in (still, carried))
            self._before.change(display, "PointLabelsVisibility", False)
            self._before.change(display, "SelectedColor", CARRIED_COLOR if node is carried else STILL_COLOR)
            if node is carried:
                self._before.change(display, "GlyphScale", 0.6 * display.GetGlyphScale())  # both are seen

    def _show_overlay(self) -> None:
        kind = self._view.overlay
        if kind != "none" and kind not in self._overlays:
            volumes = {_OVERLAY_VOLUMES[kind]: getattr(self._outputs, _OVERLAY_VOLUMES[kind])}
            self._overlays[kind] = review.trust_overlay(self._before, **volumes)
        review.show_overlay(self._before, self._composites(), self._overlays.get(kind))

    def _show_labels(self) -> None:
        identifiers = list(self._view.labels)
        if identifiers:
            self._live_labels = review.live_segments(
                self._before,
                self._request.moving_segmentation,
                identifiers,
                self._copies["forward"],
                self._live_labels,
            )
        elif self._live_labels is not None:
            self._before.remove_hidden_nodes(self._live_labels)
            self._live_labels = None


def _displays(nodes) -> list:
    """Display nodes of the nodes that are there and have one."""
    return [node.GetDisplayNode() for node in nodes if node is not None and node.GetDisplayNode() is not None]


def _upper_views() -> list[str]:
    """The standard slice views; all there are in a layout without them."""
    names = list(slicer.app.layoutManager().sliceViewNames())
    return [name for name in names if name in STANDARD_VIEWS] or names
