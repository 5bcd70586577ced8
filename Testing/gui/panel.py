"""The panel as its tests use it: the real page, nodes of a small phantom, and a worker that does as it is told.

`panel` (a fixture, see conftest.py) is the opened page with an empty scene and a FakeWorker instead of the process:

    panel.choose(fixedVolume=..., movingVolume=...)     # with the selectors, as a user does
    panel.ui.applyButton.click()
    panel.worker.progress("refinement", 0.4)
    panel.worker.finish()                               # with what the real worker would have answered
"""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import slicer
from phantoms import phantom
from slicerharness import load_module, pick, settle

from IconRegistrationLib.mrml.registration import outputs_of
from IconRegistrationLib.mrml.scene import nodes_of_class
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import samples
from IconRegistrationLib.worker import exchange

MODULE = Path(__file__).parents[2] / "IconRegistration" / "IconRegistration.py"
CPU = {"name": "cpu", "title": "x86_64", "memory": 64 << 30}
READY = {"protocol": 1, "version": "0.1.0", "python": "3.12.10", "torch": "2.8.0", "pid": 4711, "devices": [CPU]}
#: The phantom's nodes by the parameter that takes them.
ROLES = (
    *("fixedVolume", "movingVolume", "fixedSegmentation", "movingSegmentation"),
    *("fixedLandmarks", "movingLandmarks"),
)
VOLUMES = ("fixedVolume", "movingVolume")
MADE = ("forward", "backward", "warped_volume", "warped_segmentation", "warped_landmarks", "jacobian", "distrust")
#: Kind of failure -> what the worker says of it.
ENDS = {
    "memory": "This machine ran out of memory; crop or resample the images, run fewer at a time, or use a larger one.",
    "input": "Phantom inhale is constant: every voxel is 0. Choose a volume with content.",
    "worker": "The worker ended by a crash (SIGSEGV) in the middle of its work; try again, or choose another device.",
    "unexpected": "Unexpected ValueError: 1.",
    "cancelled": "Cancelled; nothing was changed.",
}


def add_phantom(monkeypatch) -> dict:
    """New nodes of one small phantom, by the parameter that takes them."""
    monkeypatch.setattr(samples, "make_phantom", lambda size: phantom())
    return dict(zip(ROLES, samples.add_phantom(slicer.mrmlScene), strict=True))


class FakeWorker:
    """In the place of ui.process.WorkerProcess: writes down what it is asked, and answers when the test says so."""

    def __init__(self, command, environment, callbacks):
        self.command, self.environment, self.callbacks = command, environment, callbacks
        self.requests: list[dict] = []
        self.busy = self.stopped = False
        self.cancelled = self.released = 0
        self.info = None

    # What the session calls.

    def submit(self, request):
        assert not self.busy, "one request at a time"
        assert not self.stopped
        self.requests.append(request)
        self.busy = True

    def cancel(self):
        self.cancelled += 1

    def release(self):
        self.released += 1

    def stop(self):
        self.busy, self.stopped = False, True

    # What the test lets happen.

    @property
    def request(self) -> dict:
        """The request at work, or the last one."""
        return self.requests[-1]

    @property
    def folder(self) -> Path:
        return Path(self.request["folder"])

    @property
    def inputs(self):
        """The workflow.results.Inputs that the panel sent."""
        return exchange.read(self.folder / "inputs")["inputs"]

    @property
    def settings(self) -> Settings:
        return Settings(**self.request["settings"])

    def ready(self, devices=(CPU,)):
        self.info = {**READY, "devices": list(devices)}
        self.callbacks.ready(self.info)

    def progress(self, stage, fraction):
        self.callbacks.progress(stage, fraction)

    def note(self, sentence):
        self.callbacks.note(sentence)

    def fail(self, kind, sentence, details=""):
        self.busy = False
        self.callbacks.failed(kind, sentence, details)

    def finish(self, notes=(), **answer):
        """End the request well. A registration is computed here and now, coarsely, from what the panel sent."""
        if self.request["request"] == "register":
            exchange.write_results(self.folder / "results", self.computed())
            answer = {"notes": list(notes)}
        elif self.request["request"] == "warp_segmentation":
            from IconRegistrationLib.spatial.field import warp_segmentation

            sent = exchange.read(self.folder / "inputs")
            warped = warp_segmentation(sent["segmentation"], sent["field"], sent["target"])
            exchange.write(self.folder / "results", segmentation=warped)
        self.busy = False
        self.callbacks.result(answer)

    def computed(self):
        """`Results` of the request, but only centred, and without ITK's surface distances: it is quick."""
        from IconRegistrationLib.workflow.pipeline import compute

        plain = {"model": "none", "refine": "off", "align": "mass", "device": "cpu", "precision": "auto"}
        return compute(self.inputs, replace(self.settings, **plain), **{**self.request["options"], "compare": False})


class Panel:
    """The module's page, entered. folder: where it exchanges arrays with its worker."""

    def __init__(self, monkeypatch, folder: Path, real_worker: bool = False):
        self.folder, self.scene, self.workers = folder, slicer.mrmlScene, []
        self._monkeypatch = monkeypatch
        slicer.app.userSettings().clear()
        slicer.app.userSettings().setValue("IconRegistration/workingFolder", str(folder))
        self.module = load_module(MODULE)
        if not real_worker:
            self._fake_workers()
        self.page = self.module.widgetRepresentation()
        self.page.enter()

    def _fake_workers(self):
        import IconRegistration

        def make(*arguments):
            self.workers.append(FakeWorker(*arguments))
            return self.workers[-1]

        session = functools.partial(IconRegistration.Session, worker=make)
        self._monkeypatch.setattr(IconRegistration, "Session", session)

    @property
    def widget(self):
        """The page's Python side; a reload makes another one."""
        return self.page.self()

    @property
    def ui(self):
        return self.widget.ui

    @property
    def parameters(self):
        """The parameter node; None while the page is not entered."""
        return self.widget.panel.parameters

    @property
    def review(self):
        """The ui.reviewing.Review that shows results."""
        return self.widget.panel.review

    def request(self):
        """The RegistrationRequest that the panel makes now."""
        from IconRegistrationLib.ui.panel_request import request_from

        return request_from(self.parameters)

    @property
    def worker(self) -> FakeWorker:
        """The one that was started last."""
        return self.workers[-1]

    @property
    def busy(self) -> bool:
        return self.widget.panel.session.busy

    @property
    def status(self) -> str:
        return self.ui.statusLabel.text

    def add_phantom(self) -> dict:
        """Nodes of the phantom in the scene, by the parameter that takes them."""
        return add_phantom(self._monkeypatch)

    def choose(self, **nodes):
        """Pick nodes, or None, in the selectors of these parameters."""
        for parameter, node in nodes.items():
            selector = getattr(self.ui, parameter + "Selector")
            pick(selector, selector.noneDisplay if node is None else node.GetName())
        settle()

    def choose_phantom(self, *parameters) -> dict:
        """New nodes of the phantom, picked in the selectors of `parameters`, of all by default."""
        nodes = self.add_phantom()
        self.choose(**{name: nodes[name] for name in parameters or ROLES})
        return nodes

    def register(self, *parameters) -> dict:
        """A result of the phantom's nodes, as `choose_phantom` picks them."""
        nodes = self.choose_phantom(*parameters)
        self.apply()
        self.worker.finish()
        settle()
        assert self.parameters.result is not None, self.status
        return nodes

    def apply(self):
        """Click Apply; a run is at work afterwards."""
        assert self.ui.applyButton.enabled, self.ui.applyButton.toolTip
        self.ui.applyButton.click()
        assert self.busy, self.status

    def close(self):
        self.module.close()
        settle()


def tick(widget, name: str, on: bool = True) -> None:
    """Tick, or untick, the entry `name` of a list as a click on its box does."""
    import qt

    found = widget.findItems(name, qt.Qt.MatchExactly)
    assert len(found) == 1, f"{len(found)} entries {name!r}"
    found[0].setCheckState(qt.Qt.Checked if on else qt.Qt.Unchecked)


def ticked(widget) -> dict[str, bool]:
    """Entries of a list by their text, and whether they are ticked."""
    import qt

    entries = [widget.item(row) for row in range(widget.count)]
    return {entry.text(): entry.checkState() == qt.Qt.Checked for entry in entries}


def state_of(nodes) -> dict:
    """What changes when a node or its data does, by id."""
    return {node.GetID(): _state(node) for node in nodes}


def _state(node) -> tuple:
    parts = [node.GetName(), node.GetParentTransformNode() and node.GetParentTransformNode().GetID(), node.GetMTime()]
    for name in ("GetImageData", "GetSegmentation", "GetTransformToParent"):
        data = getattr(node, name, lambda: None)()
        parts.append(data.GetMTime() if data is not None else 0)
    return tuple(parts)


def ids(scene) -> list[str]:
    """Identifiers of the nodes that a file of the scene would hold: not those that come and go as a result is shown."""
    return [node.GetID() for node in nodes_of_class(scene, "vtkMRMLNode") if node.GetSaveWithScene()]


def made_by(panel) -> dict:
    """The nodes of the result that is chosen, by the field of ResultNodes."""
    outputs = outputs_of(panel.parameters.result)
    return {name: getattr(outputs, name) for name in MADE if getattr(outputs, name) is not None}


def trust_rows(panel) -> int:
    """Number of lines of the trust card."""
    return panel.ui.trustTable.rowCount


def is_ready(panel) -> bool:
    """The panel waits for the next click, with two volumes chosen."""
    settle()
    ui = panel.ui
    return (
        not panel.busy
        and ui.applyButton.enabled
        and ui.applyButton.text == "Apply"
        and not ui.progressBar.isVisibleTo(panel.page)
        and not list(panel.folder.glob("IconRegistration-*"))
    )


def grids(scene) -> list:
    """Grid transform nodes that a file of the scene would hold."""
    return [node for node in nodes_of_class(scene, "vtkMRMLGridTransformNode") if node.GetSaveWithScene()]
