"""The Review section: the chosen result as its controls say, its buttons, and its trust card."""

from __future__ import annotations

from typing import Any

from ..mrml.registration import REPORT_ATTRIBUTE, outputs_of, request_of
from ..text import tr, translated
from .control import Control
from .panel import Panel
from .preflight_line import PreflightLine
from .review_controls import controls
from .reviewing import view_of
from .trust_card import TrustCard


class ReviewSection:
    """Follows the parameters of the Review section."""

    def __init__(self, panel: Panel, preflight: PreflightLine):
        self._panel, self._preflight = panel, preflight
        self._unusable: Any = None  # the result of which was said, once, why it cannot be shown
        panel.ui.resultSelector.addAttribute("vtkMRMLGridTransformNode", REPORT_ATTRIBUTE)
        panel.ui.hardenButton.connect("clicked()", self.on_harden)
        made = [(control, control.widget) for control in controls() if not isinstance(control.widget, str)]
        for control, make in made:
            self._add_widget(control, make())
        panel.ui.moreControlsWidget.setVisible(bool(made))  # an empty row would leave a gap
        self._card = TrustCard(panel)

    def _add_widget(self, control: Control, widget: Any) -> None:
        """Show a control whose widget is not in the .ui file in a row of its own."""
        ui = self._panel.ui
        widget.setProperty("SlicerParameterName", control.parameter)
        ui.moreControlsWidget.layout().addRow(str(translated(control.title)), widget)
        setattr(ui, control.widget_name, widget)

    def refresh(self) -> None:
        """Show the result that is chosen as the controls say, and enable what does something."""
        panel, review = self._panel, self._panel.review
        p, ui, busy = panel.parameters, panel.ui, panel.session.busy
        view = view_of(p)
        with panel.status.reporting():
            if p.result is None or (busy and review.forward is not p.result):
                review.close()
            elif review.forward is p.result:
                review.apply(view)
            elif self._unusable is not p.result:
                review.close()
                self._unusable = p.result
                request = request_of(p.result)
                self._unusable = None
                if request is not None:
                    review.show(request, outputs_of(p.result), view)
        self._card.refresh()
        for name, enabled in review.enabled().items():
            getattr(ui, name).enabled = enabled
        for button in (ui.runAgainButton, ui.hardenButton):
            button.enabled = button.enabled and not busy
        for control in controls():
            if control.visible is not None:
                for name in filter(None, (control.label, control.widget_name)):
                    getattr(ui, name).setVisible(control.visible(view))

    def close(self) -> None:
        """Restore the scene to its state before a result was shown."""
        with self._preflight.unwatched():
            self._panel.review.close()

    def forget(self) -> None:
        """Say again why a result cannot be shown."""
        self._unusable = None

    def on_harden(self) -> None:
        """Put the ticked segments onto the fixed grid."""
        panel = self._panel
        with panel.status.reporting():
            panel.status.notes = []
            with self._preflight.unwatched():
                panel.review.harden(panel.session, self._on_hardened)
            panel.status.start()

    def _on_hardened(self, node: Any) -> None:
        self._panel.status.end(tr("The segments are in {name}.", name=node.GetName()), "green")
