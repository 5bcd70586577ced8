"""A test double of desktop Slicer around one scripted module: PySide6 for Qt, slicer-core for MRML. For tests only.

    slicerharness.install()                                   # before anything imports qt
    module = slicerharness.load_module("IconRegistration.py")
    widget = module.widgetRepresentation().self()             # the real setup() on the real .ui file

What is genuine: the module's code, its .ui file, every MRML node and logic, slicer.util, the layout logic. What is not:
the widgets of CTK and Slicer (widgets), the binding's manners (pythonqt), slicer.app (application), scripted modules
(scripted) and parameter nodes (parameters). Unknown names, signals and properties raise; exceptions in slots and
observers collect in `errors`; what would pop up collects in `popups.shown`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types

from waiting import PATIENCE

from . import popups

__all__ = ["errors", "grab", "install", "load_module", "pick", "popups", "process_until", "settle", "unavailable"]

#: Exceptions that slots, observers and Qt's virtual methods raised since the last clear.
errors: list[BaseException] = []

_PROBE = """
import slicer
slicer.vtkMRMLScene
from PySide6 import QtGui, QtNetwork, QtSvg, QtUiTools, QtWidgets
QtWidgets.QApplication(["probe"])
"""


def unavailable() -> str | None:
    """None where the harness works, else what is missing.

    Asked of a child process: PySide6 needs libraries of the system, and ends the process where its platform is broken.
    """
    environment = {**os.environ, "QT_QPA_PLATFORM": "offscreen"}
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    if probe.returncode == 0:
        return None
    reason = (probe.stderr.strip().splitlines() or [f"exit code {probe.returncode}"])[-1]
    return f"the panel's tests need PySide6-Essentials and slicer-core, on Linux also libegl1 ({reason})"


def install():
    """Turn this process into the double, once; the scene is the one that IconRegistrationLib.mrml.embedded boots."""
    if "qt" in sys.modules:
        return
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from IconRegistrationLib.mrml import embedded

    embedded.boot()
    import slicer
    import slicer.util

    from . import pythonqt

    pythonqt.patch()
    from . import application, parameters, scripted, widgets

    qt, ctk = pythonqt.make_module(), types.ModuleType("ctk")
    qt.QUiLoader = widgets.QUiLoader
    ctk.__dict__.update(widgets.CTK)
    slicer.__dict__.update(widgets.MRML)
    slicer.qSlicerScriptedLoadableModule = scripted.qSlicerScriptedLoadableModule
    slicer.qSlicerScriptedLoadableModuleWidget = scripted.qSlicerScriptedLoadableModuleWidget
    slicer.app = application.SlicerApplication(embedded.application_logic())
    slicer.modules.sampleDataSources = {}
    slicer.modules.sampledata = types.SimpleNamespace(name="SampleData")
    popups.install(slicer.util)
    modules = {"qt": qt, "ctk": ctk, "slicer.parameterNodeWrapper": parameters.module(), **scripted.submodules()}
    sys.modules.update(modules)
    for name, module in modules.items():
        if name.startswith("slicer."):
            setattr(slicer, name.removeprefix("slicer."), module)


def load_module(path):
    """slicer.modules.<name> of the scripted module in the file `path`, with which Slicer's startup is complete."""
    import slicer

    from .scripted import qSlicerScriptedLoadableModule

    module = qSlicerScriptedLoadableModule(path)
    slicer.app.startupCompleted.emit()
    return module


def pick(selector, text: str) -> None:
    """Choose the entry `text` of a combo box or node selector as a user does."""
    combo = getattr(selector, "_h_combo", selector)
    index = combo.findText(text)
    assert index >= 0, f"no entry {text!r} in {[combo.itemText(i) for i in range(combo.count)]}"
    combo.setCurrentIndex(index)
    combo.activated.emit(index)


def process_until(condition) -> None:
    """Let Qt work until `condition()` holds; give up after minutes, which matter only where something hangs."""
    from PySide6.QtCore import QDeadlineTimer, QEventLoop, QTimer

    deadline = QDeadlineTimer(int(1000 * PATIENCE))
    while not condition():
        assert not deadline.hasExpired(), f"it did not happen within {PATIENCE:.0f} s"
        loop = QEventLoop()
        QTimer.singleShot(10, loop.quit)
        loop.exec()


def settle() -> None:
    """Let Qt do what is pending: deferred deletions, queued signals, new layouts."""
    from PySide6.QtCore import QCoreApplication, QEvent

    for _ in range(3):
        QCoreApplication.processEvents()
        QCoreApplication.sendPostedEvents(None, QEvent.DeferredDelete)


def grab(widget, path, width: int = 480, height: int | None = None) -> None:
    """A picture of a widget; by default as high as it wants to be."""
    widget.resize(width, height or max(widget.sizeHint().height(), 200))
    widget.show()
    settle()
    if not widget.grab().save(str(path)):
        raise OSError(f"The picture could not be written to {path}.")
