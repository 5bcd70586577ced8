"""The tests that are written for Slicer (Testing/Python), run on the double too: so they are not untested code."""

import sys
from pathlib import Path

import pytest
import slicer
import slicerharness

from IconRegistrationLib.mrml.scene import load_scene, save_scene

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "Testing" / "Python"))

# pytest runs the TestCases that it finds among a module's names
from test_IconRegistrationConsole import ConsoleTest, SamplesTest  # noqa: E402, F401
from test_IconRegistrationPanel import PanelTest, RunTest  # noqa: E402, F401


@pytest.fixture(autouse=True)
def application(monkeypatch, scene):
    """The module loaded, and what the double lacks of slicer.util: a main window's module selector, files."""
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "IconRegistrationLib"}
    slicer.app.userSettings().clear()
    module = slicerharness.load_module(ROOT / "IconRegistration" / "IconRegistration.py")

    def select(name):
        page = module.widgetRepresentation()
        page.enter() if name == module.name else page.exit()

    monkeypatch.setattr(slicer.util, "selectModule", select)
    monkeypatch.setattr(slicer.util, "saveScene", lambda path: save_scene(slicer.mrmlScene, path).is_file())
    monkeypatch.setattr(slicer.util, "loadScene", lambda path: load_scene(slicer.mrmlScene, path))
    yield
    module.close()
    slicerharness.process_until(lambda: not sys.modules["IconRegistrationLib.ui.process"]._running)
    sys.modules.update(ours)  # a reload read them anew; other tests hold these
