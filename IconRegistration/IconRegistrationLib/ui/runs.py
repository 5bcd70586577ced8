"""Apply, Cancel and Run again: packages, weights, the worker, and what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import slicer

from ..errors import InputError
from ..mrml.registration import RegistrationRequest, ResultNodes, outputs_of, request_of
from ..text import tr
from ..workflow.presets import preset_of
from . import choices, dependencies
from .panel import Panel
from .panel_request import request_from
from .preflight_line import PreflightLine
from .preset_bar import PresetBar
from .review_section import ReviewSection


class Runs:
    """Starts and cancels registrations, and hears of them as the session's listener.

    unbound_parameters: called for a parameter node where the module was left meanwhile.
    """

    def __init__(
        self,
        panel: Panel,
        preflight: PreflightLine,
        preset_bar: PresetBar,
        review: ReviewSection,
        unbound_parameters: Callable[[], Any],
    ):
        self._panel, self._preflight, self._preset_bar, self._review = panel, preflight, preset_bar, review
        self._unbound_parameters = unbound_parameters
        self._predicted: float | None = None  # seconds of the run, by the preflight
        panel.ui.applyButton.connect("clicked()", self.on_apply)
        panel.ui.runAgainButton.connect("clicked()", self.on_run_again)
        panel.ui.releaseButton.connect("clicked()", lambda: panel.session.release())

    def on_apply(self) -> None:
        """Register, or cancel what runs."""
        panel = self._panel
        if panel.session.busy:
            panel.ui.applyButton.enabled = False  # until the worker has answered, within a second
            panel.session.cancel()
            return
        with panel.status.reporting():
            self._apply()

    def on_run_again(self) -> None:
        """Take over how the result under review was made, and register."""
        p = self._panel.parameters
        with self._panel.status.reporting():
            request: Any = request_of(p.result)
            choices.show_request(p, request)
            p.preset = preset_of(self._preset_bar.all_presets(), request.settings).name
            self._apply()

    def _apply(self) -> None:
        panel = self._panel
        panel.status.notes = []
        request = request_from(panel.parameters)
        nodes = self._nodes_to_update(request)
        self._predicted = self._preflight.answer().seconds
        if not panel.ui.pythonLineEdit.text.strip():
            self._install_packages()
        download = dependencies.needed_download(request.settings.model, request.settings.weights_dir)
        if download is None:
            self._register(request, nodes)
        elif slicer.util.confirmYesNoDisplay(download.question):
            then = partial(self._on_downloaded, request, nodes)
            panel.session.download(request.settings.model, request.settings.weights_dir, then)
            panel.status.start()
        else:
            raise InputError(tr("The weights were not downloaded; choose the offline preset, or Apply again."))

    def _install_packages(self) -> None:
        def say(sentence: str) -> None:
            self._panel.status.show(sentence)
            slicer.app.processEvents()

        self._panel.ui.applyButton.enabled = False  # installing lets Qt work
        try:
            dependencies.ensure_packages(slicer.util.confirmYesNoDisplay, say)
        finally:
            self._panel.ui.applyButton.enabled = True

    def _nodes_to_update(self, request: RegistrationRequest) -> ResultNodes:
        """Return the nodes of the chosen result if it is one of the same volumes: no other pair's is overwritten."""
        p = self._panel.parameters
        try:
            earlier = request_of(p.result) if p.update and p.result is not None else None
        except InputError:  # one of its volumes was deleted
            earlier = None
        same = earlier is not None and (earlier.fixed, earlier.moving) == (request.fixed, request.moving)
        return outputs_of(p.result) if same else ResultNodes()

    def _on_downloaded(self, request: RegistrationRequest, nodes: ResultNodes, path: Any) -> None:
        with self._panel.status.reporting():
            self._register(request, nodes)

    def _register(self, request: RegistrationRequest, nodes: ResultNodes) -> None:
        self._review.close()  # moving data goes back to where it was
        self._panel.session.register(request, nodes, self._on_registered)
        self._panel.status.start()

    def _on_registered(self, nodes: ResultNodes) -> None:
        self._preflight.learn(self._predicted, nodes.report.provenance)
        self._review.close()  # of the nodes that have just been updated
        # the module may have been left meanwhile: then it is shown when the user comes back
        parameters = self._panel.parameters or self._unbound_parameters()
        parameters.result = nodes.forward
        self._panel.ui.reviewSection.collapsed = False
        self._panel.status.done()

    # The session's listener.

    def on_ready(self, info: dict) -> None:
        """Learn which devices the worker has."""
        self._preflight.devices = info["devices"]
        self._preflight.on_input_changed()

    def on_progress(self, stage: str, fraction: float, seconds_left: float | None) -> None:
        """Show how far the run is."""
        self._panel.status.progress(stage, fraction, seconds_left)

    def on_note(self, sentence: str) -> None:
        """Show what the worker changed in order to go on."""
        self._panel.status.note(sentence)

    def on_failed(self, sentence: str, details: str, cancelled: bool) -> None:
        """Show why the run ended, and log the details."""
        if details:
            logging.error(details)
        self._panel.status.end(sentence, "amber" if cancelled else "red", details)
