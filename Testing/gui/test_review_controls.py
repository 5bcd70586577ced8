"""A Review control is one file: a toy one is added to the folder, and is there in the panel, the scene and the view."""

import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from panel import Panel
from reviewed import Reviewed
from slicerharness import settle

from IconRegistrationLib.ui import review_controls
from IconRegistrationLib.ui.reviewing import BUTTONS, view_of

TOY = '''
"""Show the names of landmarks."""

import qt

from IconRegistrationLib.ui.control import Control


def show_names(review):
    for node in (review.request.fixed_landmarks, review.nodes.warped_landmarks):
        review.restore_point.change(node.GetDisplayNode(), "TextScale", 7 if review.view.names else 3)


CONTROLS = (
    Control(
        name="names",
        parameter="landmarkNames",
        kind=bool,
        default=False,
        widget=qt.QCheckBox,
        title="Names of landmarks",
        enabled=lambda view, request, nodes: nodes.warped_landmarks is not None,
        show=show_names,
        follows=("swap",),
    ),
)
'''


@pytest.fixture
def toy(tmp_path_factory, monkeypatch):
    """One file in the folder of controls."""
    folder = tmp_path_factory.mktemp("controls")
    (folder / "toy.py").write_text(textwrap.dedent(TOY))
    monkeypatch.setattr(review_controls, "__path__", [*review_controls.__path__, str(folder)])
    review_controls.controls.cache_clear()
    yield review_controls.controls()[-1]
    sys.modules.pop("IconRegistrationLib.ui.review_controls.toy", None)
    monkeypatch.undo()
    review_controls.controls.cache_clear()


@pytest.fixture
def reviewed(toy, scene, monkeypatch, tmp_path):
    panel = Panel(monkeypatch, tmp_path)
    yield Reviewed(panel)
    panel.close()


def text_scale(reviewed) -> float:
    return reviewed.n.fixed_landmarks.GetDisplayNode().GetTextScale()


def test_a_control_in_a_file_of_its_own_is_part_of_the_panel(toy, reviewed):
    ui, p = reviewed.ui, reviewed.panel.parameters
    was = 3
    assert toy.title == "Names of landmarks"
    row = ui.moreControlsWidget.layout().labelForField(ui.names)
    assert row.text == toy.title
    assert ui.names.enabled
    assert text_scale(reviewed) == was
    reviewed.click("names")
    assert p.landmarkNames is True
    assert view_of(p).names is True
    assert text_scale(reviewed) == 7
    assert p.parameterNode.GetParameter("landmarkNames") == "True", "saved with the scene"
    p.landmarkNames = False
    settle()
    assert not ui.names.checked
    assert text_scale(reviewed) == was
    p.landmarkNames = True
    p.result = None
    settle()
    assert not ui.names.enabled
    assert text_scale(reviewed) == reviewed.n.moving_landmarks.GetDisplayNode().GetTextScale(), "as it was"


def test_a_control_says_when_it_does_something(toy):
    without = SimpleNamespace(warped_landmarks=None)
    assert not toy.enabled(None, None, without)


def test_every_control_is_of_one_name_parameter_and_widget():
    controls = review_controls.controls()
    for names in ([c.name for c in controls], [c.parameter for c in controls], [c.widget_name for c in controls]):
        assert len(names) == len(set(names))
    assert not BUTTONS.keys() & {control.widget_name for control in controls}
    known = {control.name for control in controls}
    for control in controls:
        assert set(control.follows) <= known, control.name


def test_the_page_of_the_panel_describes_controls_that_make_their_widget():
    """Those of the .ui file: Testing/headless/test_documentation.py."""
    page = (Path(__file__).parents[2] / "docs" / "panel.md").read_text("utf-8")
    assert not [c.title for c in review_controls.controls() if not isinstance(c.widget, str) and c.title not in page]
