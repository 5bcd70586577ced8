"""A role, a verdict and a preset, each added in one place, from the panel; the command is in Testing/headless."""

import json

import pytest
from extended import WORKFLOW, extend, run_extended

pytestmark = pytest.mark.slow

PANEL = """
import json, sys
from pathlib import Path
import pytest, slicerharness
slicerharness.install()
import panel
from slicerharness import pick
panel.MODULE = Path(sys.argv[1]) / "IconRegistration.py"
opened = panel.Panel(pytest.MonkeyPatch(), Path(sys.argv[1]).parent)
opened.choose_phantom("fixedVolume", "movingVolume", "movingSegmentation")
pick(opened.ui.presetComboBox, "Quick look")
box = opened.ui.ignoreCheckBox
box.click()
opened.apply()
sent = opened.worker.inputs
opened.worker.finish()
table = opened.ui.trustTable
seen = {
    "box": [box.text, box.toolTip, box.checked],
    "outside": sent.moving_mask is not None and bool(sent.moving_mask.array.any()),
    "settings": [opened.worker.settings.steps, opened.worker.settings.spacing],
    "fixed": sent.fixed_mask is None,
    "measures": [table.item(row, 0).text() for row in range(table.rowCount)],
    "errors": list(map(str, slicerharness.errors)),
}
opened.close()
print(json.dumps(seen), flush=True)
"""


def test_the_panel_offers_role_and_preset_and_shows_the_verdict(tmp_path):
    copy = extend(tmp_path, WORKFLOW)
    run = run_extended(copy, "-c", PANEL, copy)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout.splitlines()[-1])
    assert not seen["errors"]
    assert seen["box"] == ["ignore", "What lies inside the segments does not count.", True]
    assert seen["settings"] == [5, 9.0]
    assert seen["outside"]
    assert seen["fixed"]
    assert "Displacement" in seen["measures"]
