"""The tests that are written for Slicer (Testing/Python), run on the double too: so they are not untested code."""

import re
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

pytest.mark.slow(RunTest)  # by the real worker


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


def test_the_console_example_of_the_readme_runs(capsys):
    from IconRegistrationLib.ui.samples import add_phantom

    nodes = add_phantom(slicer.mrmlScene, size=32)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    (example,) = [block for block in blocks if "IconRegistrationLogic" in block]
    assert len(example.splitlines()) <= 10
    names = {"slicer": slicer}
    exec(example.replace('align="rigid"', 'align="mass", steps=2'), names)  # the same, in less time
    outputs = names["outputs"]
    assert nodes[3].GetParentTransformNode() is outputs.forward
    composite = slicer.app.layoutManager().sliceWidget("Red").mrmlSliceCompositeNode()
    assert composite.GetForegroundVolumeID() == outputs.warped_volume.GetID()
    assert "Registration quality" in capsys.readouterr().out


@pytest.mark.slow
def test_the_modules_self_test_passes():
    """Developer mode's button Reload and Test: a small phantom, registered for real."""
    sys.modules["IconRegistration"].IconRegistrationTest("test_phantom").runTest()
