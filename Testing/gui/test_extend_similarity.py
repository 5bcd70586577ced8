"""A similarity and a setting that are added in one place each, from the panel; the command is in Testing/headless."""

import json

import pytest
from extended import REGISTRATION, extend, run_extended

PANEL = """
import json, sys
from dataclasses import replace
from pathlib import Path
import pytest, slicerharness
slicerharness.install()
import panel
from slicerharness import pick
from IconRegistrationLib.registration.settings import Settings
from IconRegistrationLib.ui import choices, presets
from IconRegistrationLib.workflow.pipeline import compute
panel.MODULE = Path(sys.argv[1]) / "IconRegistration.py"
opened = panel.Panel(pytest.MonkeyPatch(), Path(sys.argv[1]).parent)
choices.show_settings(opened.parameters, Settings(patience=5))
opened.choose_phantom("fixedVolume", "movingVolume")
pick(opened.ui.similarityComboBox, "Mean squared difference")
opened.apply()
sent = opened.worker.settings
options = {**opened.worker.request["options"], "compare": False}
results = compute(opened.worker.inputs, replace(sent, steps=2), **options)
opened.worker.finish()
own = {}
store = type("Store", (), {"value": own.get, "setValue": own.__setitem__})()
presets.save_preset(store, "Mine", sent)
(preset,) = presets.user_presets(store)
seen = {
    "sent": [sent.similarity, sent.patience],
    "registered": results.registration.provenance["similarity"],
    "preset": [preset.settings["similarity"], preset.settings["patience"]],
    "shown": choices.settings_of(opened.parameters).patience,
    "errors": list(map(str, slicerharness.errors)),
}
opened.close()
print(json.dumps(seen), flush=True)
"""


@pytest.mark.slow
def test_the_panel_offers_and_keeps_them(tmp_path):
    copy = extend(tmp_path, REGISTRATION)
    run = run_extended(copy, "-c", PANEL, copy)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == {
        "sent": ["msd", 5],
        "registered": "msd",
        "preset": ["msd", 5],
        "shown": 5,
        "errors": [],
    }
