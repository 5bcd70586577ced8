"""The line under the selectors, and the state of the Apply button."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import slicer
from slicer.util import VTKObservationMixin

from ..errors import InputError, words_of
from ..workflow.preflight import Preflight, updated_speed
from .checking import EVENTS, Checker, apply_state
from .panel import Panel
from .panel_request import chosen_nodes, request_from
from .status import level_style

#: Key of this computer's speed in Slicer's user settings.
SPEED_KEY = "IconRegistration/speed"


class PreflightLine(VTKObservationMixin):
    """Asks the preflight whenever something that is chosen changes, and shows its answer.

    Attributes
    ----------
    devices : list of dict or None
        What the worker said that it has.
    """

    def __init__(self, panel: Panel, refresh: Callable[[], None]):
        super().__init__()
        self._panel, self._refresh = panel, refresh
        self.devices: list[dict] | None = None
        self._checker = Checker()
        self._checked: tuple | None = None  # what the preflight was asked, and its answer
        self._watched: list = []  # nodes whose changes change the preflight
        self._is_paused = False

    def refresh(self) -> None:
        """Show the preflight and what the Apply button says."""
        panel, ui, flight = self._panel, self._panel.ui, None
        p, busy = panel.parameters, panel.session.busy
        if None not in (p.fixedVolume, p.movingVolume) and not busy:
            flight = self.answer()
            text = [flight.summary, *flight.warnings] if flight.problem is None else [flight.summary, flight.problem]
            ui.preflightLabel.text = "\n".join(filter(None, text))
            level = "red" if flight.problem else "amber" if flight.warnings else None
            ui.preflightLabel.styleSheet = level_style(level)
        elif not busy:
            ui.preflightLabel.text = ""
        button = ui.applyButton
        button.enabled, button.text, button.toolTip = apply_state(
            p.fixedVolume is not None, p.movingVolume is not None, flight, busy
        )
        self._watch([] if p.fixedVolume is None and p.movingVolume is None else chosen_nodes(p))

    def answer(self) -> Preflight:
        """Return the preflight of what the panel asks for now."""
        try:
            request = request_from(self._panel.parameters)
        except InputError as error:
            return Preflight("", words_of(error), (), 0.0, None, None)
        question = (request, self.devices, self._speed())
        if self._checked is None or self._checked[0] != question:
            with self._panel.review.aside():
                self._checked = question, self._checker.check(*question)
        return self._checked[1]

    def learn(self, predicted: float | None, provenance: dict) -> None:
        """Let later predictions go by how long a run took. predicted: seconds, by the preflight."""
        if predicted and provenance["device"].startswith("cpu"):
            speed = updated_speed(self._speed(), predicted, provenance["seconds"]["total"])
            slicer.app.userSettings().setValue(SPEED_KEY, speed)

    def forget(self) -> None:
        """Let go of the nodes."""
        self._watch([])
        self._checker.forget()
        self._checked = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take no notice of changes of nodes meanwhile."""
        was_paused, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = was_paused

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """Let the review move data meanwhile, which is no reason to refresh."""
        try:
            with self.paused():
                yield
        finally:
            self._checked = None

    def on_input_changed(self, caller: Any = None, event: Any = None) -> None:
        """Repeat the preflight, unless the change was made by the review."""
        if not self._is_paused:
            self._checked = None
            self._refresh()

    def _speed(self) -> float:
        return float(slicer.app.userSettings().value(SPEED_KEY) or 1.0)

    def _watch(self, nodes: list) -> None:
        """Refresh when one of these nodes changes, and no others."""
        if nodes == self._watched:
            return
        for node in self._watched:
            for event in EVENTS:
                self.removeObserver(node, event, self.on_input_changed)
        for node in nodes:
            for event in EVENTS:
                self.addObserver(node, event, self.on_input_changed)
        self._watched = nodes
