"""Numbers in docs/panel.md that are defaults or limits of the code."""

import re
from pathlib import Path

import pytest

from IconRegistrationLib.mrml.review import DISTRUST_LIMITS
from IconRegistrationLib.networks.catalog import known_cards
from IconRegistrationLib.registration.register import NETWORK_STEPS
from IconRegistrationLib.ui.process import CANCEL_SECONDS
from IconRegistrationLib.ui.review_controls import controls
from IconRegistrationLib.worker.serve import OLDEST

DOCS = Path(__file__).parents[2] / "docs"


def words_of(page: str) -> str:
    """A page's text, its line ends as spaces."""
    return re.sub(r"\s+", " ", (DOCS / page).read_text("utf-8"))


PANEL, ARCHITECTURE = words_of("panel.md"), words_of("architecture.md")


def defaults() -> dict:
    """Parameter -> its default."""
    return {control.parameter: control.default for control in controls()}


def test_steps_of_the_refinement():
    from IconRegistrationLib.registration.objective import FieldRefinement
    from IconRegistrationLib.registration.settings import SETTINGS

    assert f"default: {FieldRefinement().steps} field, {NETWORK_STEPS} network" in PANEL
    assert f"{FieldRefinement().steps} for the field, {NETWORK_STEPS} for a network" in SETTINGS["steps"].help


def test_how_a_result_is_looked_at():
    d = defaults()
    direction = d["curtainDirection"].label()
    assert f"{d['blend']:g} %, {d['cells']:g}, {d['curtain']:g} % {direction} |" in PANEL
    assert f"0 to {d['warpAmount']:g} % of the deformation" in PANEL
    assert f"disagree by more than {DISTRUST_LIMITS[0]:g} mm" in PANEL


@pytest.mark.parametrize("parameter", ["comparison", "deformation", "overlay", "shown"])
def test_a_list_starts_where_the_page_says(parameter):
    rows = {"comparison": "Compare", "deformation": "Deformation", "overlay": "Overlay", "shown": "Moving data"}
    (default,) = re.findall(rf"\| {rows[parameter]} \|[^|]*\| ([^|]*) \|", PANEL)
    assert default == defaults()[parameter].label()


def test_the_size_of_a_download():
    sizes = {round(card.size / 1e6) for card in known_cards().values() if card.url}
    assert {int(number) for number in re.findall(r"\((\d+) MB; \[where", PANEL)} == sizes


def test_what_another_python_needs():
    assert f"{OLDEST['Python']} or later with torch {OLDEST['torch']} and SimpleITK {OLDEST['SimpleITK']}" in PANEL


def test_how_long_a_cancelled_worker_has():
    assert f"does not answer within {CANCEL_SECONDS:g} s" in ARCHITECTURE
